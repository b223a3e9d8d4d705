//! `cargo xtask bench http`: the figures that HTTP observation has to reach.
//!
//! With the agent and without in turn, server, load and agent on processors of their own. A shared
//! machine drifts by tens of percent: of ratios counts the median over short pairs.

mod fastapi;
mod first_exchange;
mod footprint;
mod nginx;
mod others;
mod throughput;
mod times;
mod wrk;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::agent_as_root;
use super::figure::{Figure, machine, print};
use super::processors::Processors;
use crate::host;
use crate::test::python_environment;

#[derive(Args)]
pub(crate) struct Http {
    /// What to measure; all of it unless told
    #[arg(value_enum)]
    subjects: Vec<Subject>,
    /// Runs with the agent, and as many without
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Seconds of load a run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Print JSON in place of a table
    #[arg(long)]
    json: bool,
    /// An agent that is built already
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// nginx, `return 200`, one worker under wrk: throughput, kernel time, the agent's time, counts
    Nginx,
    /// The same with a file of 1 KiB
    File,
    /// Servers and loads on all processors: losses and the accounting identity
    Losses,
    /// FastAPI on uvicorn at a fixed rate: 99th percentile
    Fastapi,
    /// Start, and 10,000 open connections to 200 services: memory
    Footprint,
    /// New processes: when their first exchange shows on /metrics
    FirstExchange,
    /// A server that takes the time itself: how far the agent's durations are off
    Times,
    /// redis-server under redis-benchmark, which is not HTTP
    Redis,
    /// PostgreSQL under pgbench, which is not HTTP
    Postgres,
}

/// What each measurement is given.
struct Setting {
    agent: PathBuf,
    processors: Processors,
    pairs: u32,
    seconds: u32,
}

/// Measures and prints.
///
/// # Errors
/// When something cannot be installed, or the agent or a server does not start or answer.
pub(super) fn bench(arguments: &Http) -> Result<()> {
    let subjects = match &arguments.subjects[..] {
        [] => Subject::value_variants(),
        chosen => chosen,
    };
    let packages: BTreeSet<_> = subjects
        .iter()
        .flat_map(|subject| subject.programs())
        .filter(|(program, _)| host::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    host::install_packages(&packages)?;
    if subjects.contains(&Subject::Fastapi) {
        // Not as root yet: it belongs to who calls this.
        python_environment()?;
    }
    let setting = Setting {
        agent: agent_as_root(arguments.agent.as_deref())?,
        processors: Processors::of_this_machine()?,
        pairs: arguments.pairs,
        seconds: arguments.seconds,
    };
    let Processors {
        server,
        load,
        agent,
        ..
    } = &setting.processors;
    eprintln!("servers on CPU {server}, loads on {load}, the agent on {agent}");
    setting.processors.keep_to_load()?;
    let machine = machine(setting.processors.count);
    let groups = subjects.iter().map(|subject| subject.measure(&setting));
    print(&machine, arguments.json, groups)
}

impl Subject {
    fn measure(self, setting: &Setting) -> Result<Vec<Figure>> {
        match self {
            Self::Nginx => throughput::measure(setting, nginx::Target::Return),
            Self::File => throughput::measure(setting, nginx::Target::File),
            Self::Losses => throughput::on_all_processors(setting),
            Self::Fastapi => fastapi::measure(setting),
            Self::Footprint => footprint::measure(setting),
            Self::FirstExchange => first_exchange::measure(setting),
            Self::Times => times::measure(setting),
            Self::Redis => others::redis(setting),
            Self::Postgres => others::postgres(setting),
        }
    }

    /// Programs that it runs, and the Debian packages that hold them.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Nginx | Self::File | Self::Losses => &[
                ("nginx", "nginx-light"),
                ("wrk", "wrk"),
                ("taskset", "util-linux"),
            ],
            Self::Fastapi => &[("python3", "python3-venv"), ("taskset", "util-linux")],
            Self::Footprint | Self::FirstExchange => &[
                ("nginx", "nginx-light"),
                ("bpftool", "bpftool"),
                ("prlimit", "util-linux"),
            ],
            Self::Times => &[("gcc", "gcc"), ("taskset", "util-linux")],
            Self::Redis => &[
                ("redis-server", "redis-server"),
                ("redis-benchmark", "redis-tools"),
            ],
            Self::Postgres => &[
                ("pg_lsclusters", "postgresql"),
                ("pgbench", "postgresql-contrib"),
                ("setpriv", "util-linux"),
            ],
        }
    }
}
