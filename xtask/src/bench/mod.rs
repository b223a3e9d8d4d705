//! `cargo xtask bench`: what the agent costs a server at full load, and whether it counts right.
//!
//! nginx with one worker under wrk, with the agent and without in turn, each on processors of its
//! own. The order within a pair alternates, so that a machine that gets slower favours neither.

mod agent;
mod load;
mod report;

use std::env;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::run::build_agent;
use crate::{host, paths};
use agent::{Agent, AgentFigures};
use load::{Nginx, Target, WrkResult};
use report::Report;

#[derive(Args)]
pub(crate) struct Bench {
    /// Runs with the agent; as many without
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Seconds of load a run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Connections that wrk keeps open
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
    /// An agent that is built already
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// What a target showed.
struct Measured {
    pairs: Vec<Pair>,
    /// Nanoseconds in kernel programs a request, of a run of its own: the kernel's measuring of
    /// each run of a program costs throughput.
    programs_ns_per_request: f64,
}

/// A run with the agent beside one without.
struct Pair {
    without: WrkResult,
    with: WrkResult,
    agent: AgentFigures,
}

/// Measures and prints.
///
/// # Errors
/// When a program is missing, or the agent or a server does not start or answer.
pub(crate) fn bench(arguments: &Bench) -> Result<()> {
    for (program, package) in [
        ("nginx", "nginx-light"),
        ("wrk", "wrk"),
        ("taskset", "util-linux"),
        ("bpftool", "bpftool"),
    ] {
        if host::find(program).is_none() {
            bail!("{program} is missing: install Debian's {package}");
        }
    }
    let agent = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => build_agent("release")?,
    };
    if !host::is_root() {
        return Err(again_by_sudo(&agent)?);
    }
    let machine = report::machine();
    let processors = Processors::of_this_machine()?;
    if !arguments.json {
        println!(
            "nginx on CPU {}, wrk on {}, the agent on {}",
            processors.server, processors.load, processors.agent
        );
    }
    let nginx = Nginx::start(&processors.server)?;
    let mut scenarios = Vec::new();
    for target in Target::ALL {
        scenarios.push((
            target,
            measure(arguments, &agent, &processors, &nginx, target)?,
        ));
    }
    let report = Report::of(machine, &scenarios)?;
    if arguments.json {
        println!("{:#}", report.json());
    } else {
        report.print();
    }
    Ok(())
}

fn measure(
    arguments: &Bench,
    binary: &Path,
    processors: &Processors,
    nginx: &Nginx,
    target: Target,
) -> Result<Measured> {
    let load = |seconds| nginx.load(target, &processors.load, arguments.connections, seconds);
    // Caches and the processor's clock settle.
    load(1)?;
    let with_agent = |config: &str| -> Result<(WrkResult, AgentFigures)> {
        let agent = Agent::start(binary, &processors.agent, config)?;
        let served_before = nginx.requests()?;
        let result = load(arguments.seconds)?;
        // nginx counts the request for its status too.
        let served = nginx.requests()? - served_before - 1;
        Ok((result, agent.stop(served)?))
    };
    let mut pairs = Vec::new();
    for number in 0..arguments.pairs {
        let (without, (with, agent)) = if number % 2 == 0 {
            (load(arguments.seconds)?, with_agent("")?)
        } else {
            let with = with_agent("")?;
            (load(arguments.seconds)?, with)
        };
        if !arguments.json {
            println!(
                "{target} {}/{}: {:.0} requests/s without, {:.0} with",
                number + 1,
                arguments.pairs,
                without.per_second(),
                with.per_second()
            );
        }
        pairs.push(Pair {
            without,
            with,
            agent,
        });
        // The ports of closed connections come free, the kernel frees what the agent held.
        thread::sleep(Duration::from_millis(200));
    }
    let (result, figures) = with_agent("metrics: {program_statistics: always}")?;
    Ok(Measured {
        pairs,
        programs_ns_per_request: figures.programs_ns / result.requests.max(1) as f64,
    })
}

/// Which processors each side may use, as taskset takes them.
struct Processors {
    server: String,
    load: String,
    agent: String,
}

impl Processors {
    fn of_this_machine() -> Result<Self> {
        let count = thread::available_parallelism()?.get();
        Ok(match count {
            0 | 1 => bail!("one processor cannot serve, load and observe at once"),
            // The agent shares with the load, so that it does not take from the server.
            2 | 3 => Self {
                server: "0".into(),
                load: "1".into(),
                agent: "1".into(),
            },
            // One for the load: it is as busy as the server then. A load that idles has to be woken
            // at each answer, which on a virtual machine costs the server a third of its time and
            // differs with how long the idling lasted.
            _ => Self {
                server: "0".into(),
                load: "1".into(),
                agent: format!("2-{}", count - 1),
            },
        })
    }
}

/// Becomes this task as root.
fn again_by_sudo(agent: &Path) -> Result<anyhow::Error> {
    println!("The agent loads programs into the kernel: measuring as root, by sudo.");
    let mut command = Command::new("sudo");
    command.arg("env");
    for name in ["PATH", "CARGO_MANIFEST_DIR"] {
        if let Some(value) = env::var_os(name) {
            command.arg(format!("{name}={}", value.to_string_lossy()));
        }
    }
    command
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .arg("--agent")
        .arg(agent);
    Ok(anyhow::Error::new(command.exec()).context("cannot start sudo"))
}

/// A child that does not outlive the bench.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes of the committed object.
fn object_bytes() -> Result<u64> {
    let object = paths::ebpf().join("telltale.bpf.o");
    Ok(fs::metadata(&object)
        .with_context(|| object.display().to_string())?
        .len())
}
