//! `cargo xtask bench profile`: the figures that profiles have to reach.

mod kernel_time;
mod peers;
mod programs;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use super::agent::Agent;
use super::agent_as_root;
use super::exposition::{label, total};
use super::figure::{Figure, Reach, machine, megabytes, print};
use super::pairs::{Ratios, in_turn};
use super::processors::Processors;
use super::server::Kept;
use crate::command::output;
use crate::host;
use programs::{SPLITS, Split, Turns, start_drowsy};

/// Nothing but what is asked for.
const ON_DEMAND: &str =
    "profile:\n  continuous:\n    hz: 0\nmetrics:\n  program_statistics: always\n";
const CONTINUOUS: &str = "profile:\n  continuous:\n    hz: 19\n";

/// How long continuous profiling is watched: the kernel tells processor time in hundredths of a
/// second.
const WATCHED: Duration = Duration::from_secs(30);

const PROCESSES: usize = 200;

#[derive(Args)]
pub(crate) struct Profile {
    /// What to measure; all of it unless told
    #[arg(value_enum)]
    subjects: Vec<Subject>,
    /// Runs with a profile at 997 Hz, and as many without
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Print JSON in place of a table
    #[arg(long)]
    json: bool,
    /// An agent that is built already
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Programs whose time is split by construction: shares, and stacks that are complete
    Shares,
    /// Time in the kernel of a sample with 70 native frames
    Sample,
    /// How much less a program gets done that is sampled 997 times a second
    Slowdown,
    /// The agent's processor time, continuous at 19 Hz, all processors busy
    Continuous,
    /// From nothing to a profile by `telltale profile`, and from a running agent
    Latency,
    /// Memory with 200 processes
    Memory,
    /// The same programs by perf, py-spy and samply, where they are installed
    Peers,
}

/// What each measurement is given.
struct Setting {
    agent: PathBuf,
    processors: Processors,
    pairs: u32,
    folder: tempfile::TempDir,
}

/// Measures and prints.
///
/// # Errors
/// When something cannot be installed or compiled, or the agent does not start or answer.
pub(super) fn bench(arguments: &Profile) -> Result<()> {
    let subjects = match &arguments.subjects[..] {
        [] => Subject::value_variants(),
        chosen => chosen,
    };
    let packages: BTreeSet<_> = [("gcc", "gcc"), ("go", "golang"), ("python3", "python3")]
        .into_iter()
        .filter(|(program, _)| host::find(program).is_none())
        .map(|(_, package)| package)
        .collect();
    host::install_packages(&packages)?;
    let setting = Setting {
        agent: agent_as_root(arguments.agent.as_deref())?,
        processors: Processors::of_this_machine()?,
        pairs: arguments.pairs,
        folder: tempfile::tempdir()?,
    };
    let machine = machine(setting.processors.count);
    let groups = subjects.iter().map(|subject| subject.measure(&setting));
    print(&machine, arguments.json, groups)
}

impl Subject {
    fn measure(self, setting: &Setting) -> Result<Vec<Figure>> {
        match self {
            Self::Shares => shares(setting),
            Self::Sample => kernel_time::measure(setting),
            Self::Slowdown => slowdown(setting),
            Self::Continuous => continuous(setting),
            Self::Latency => latency(setting),
            Self::Memory => memory(setting),
            Self::Peers => peers::measure(setting),
        }
    }
}

fn shares(setting: &Setting) -> Result<Vec<Figure>> {
    let agent = setting.agent(ON_DEMAND)?;
    let mut figures = Vec::new();
    for split in &SPLITS {
        let before = agent.metrics()?;
        let folded = setting.profile_of(&agent, split)?;
        let after = agent.metrics()?;
        let samples: u64 = stacks(&folded).map(|(_, count)| count).sum();
        ensure!(samples > 0, "no samples of the {} program", split.language);
        let error = largest_error(&folded);
        let language = split.language;
        figures.push(
            Figure::new(
                format!("{language}: shares of three functions, 997 Hz × 10 s"),
                error,
                "points",
                format!("off by {error:.2} points at most, of {samples} samples"),
            )
            .reach(Reach::AtMost(1.0)),
        );
        let grown = |wanted: &dyn Fn(&str) -> bool| {
            let of = |text: &str| total(text, "telltale_profile_samples_total", wanted);
            of(&after) - of(&before)
        };
        let complete = label("outcome", "complete");
        let share = grown(&|labels| labels.contains(&complete)) * 100.0 / grown(&|_| true);
        figures.push(
            Figure::new(
                format!("{language}: complete stacks"),
                share,
                "%",
                format!("{share:.2} %"),
            )
            .reach(Reach::AtLeast(99.9)),
        );
    }
    agent.stop()?;
    Ok(figures)
}

/// The clock's interrupt costs its part whoever samples: that is measured with a target that never runs,
/// whose samples end as they begin.
fn slowdown(setting: &Setting) -> Result<Vec<Figure>> {
    let turns = Turns::new(setting.folder.path())?;
    let server = &setting.processors.server;
    let agent = setting.agent("profile:\n  continuous:\n    hz: 0\n")?;
    let asleep = Kept(Command::new("sleep").arg("600").spawn()?);
    let slowed_by = |target: &str| {
        let asked = format!("/debug/pprof/flamegraph?format=folded&hz=997&seconds=3{target}");
        let pairs = in_turn(
            setting.pairs,
            || turns.run(server, 2),
            || {
                thread::scope(|scope| {
                    let taken = scope.spawn(|| agent.get(&asked));
                    // It samples by then.
                    thread::sleep(Duration::from_millis(400));
                    let done = turns.run(server, 2)?;
                    taken.join().expect("the client does not panic")?;
                    Ok(done)
                })
            },
        )?;
        let ratios = Ratios::of(pairs.iter().map(|pair| (pair.without, pair.with)));
        Ok::<_, anyhow::Error>(((1.0 - ratios.median) * 100.0, ratios))
    };
    let (slower, ratios) = slowed_by("")?;
    let (by_clock, clock_ratios) = slowed_by(&format!("&pid={}", asleep.0.id()))?;
    agent.stop()?;
    Ok(vec![
        Figure::new(
            "a program is slowed by sampling the host at 997 Hz",
            slower,
            "%",
            format!("{slower:.2} %; on/off {ratios}"),
        )
        .reach(Reach::AtMost(0.8)),
        Figure::new(
            "by the clock alone: samples of a process that sleeps",
            by_clock,
            "%",
            format!("{by_clock:.2} %; on/off {clock_ratios}"),
        ),
    ])
}

fn continuous(setting: &Setting) -> Result<Vec<Figure>> {
    let turns = Turns::new(setting.folder.path())?;
    let agent = Agent::start(&setting.agent, &setting.all(), CONTINUOUS)?;
    let off = Agent::start(
        &setting.agent,
        &setting.all(),
        "profile:\n  continuous:\n    hz: 0\n",
    )?;
    let _busy = (0..setting.processors.count)
        .map(|number| turns.start(&number.to_string(), 60))
        .collect::<Result<Vec<_>>>()?;
    // The host's executables have been read by then.
    thread::sleep(Duration::from_secs(10));
    let spent = || Ok::<_, anyhow::Error>((agent.cpu_seconds()?, off.cpu_seconds()?));
    let (before, begin) = (spent()?, Instant::now());
    thread::sleep(WATCHED);
    let (after, lasted) = (spent()?, begin.elapsed().as_secs_f64());
    let share = |before: f64, after: f64| (after - before) * 100.0 / lasted;
    let (with, without) = (share(before.0, after.0), share(before.1, after.1));
    agent.stop()?;
    off.stop()?;
    let more = (with - without).max(0.0);
    Ok(vec![
        Figure::new(
            format!(
                "the agent's processor time for continuous profiling, {} busy CPUs",
                setting.processors.count
            ),
            more,
            "% of a core",
            format!("{more:.2} %: {with:.2} % with, {without:.2} % without"),
        )
        .reach(Reach::AtMost(0.3)),
    ])
}

fn latency(setting: &Setting) -> Result<Vec<Figure>> {
    let split = SPLITS[0].start(setting.folder.path(), &setting.processors.server, 60)?;
    thread::sleep(Duration::from_millis(200));
    let file = setting.folder.path().join("cold.folded");
    let begin = Instant::now();
    output(
        Command::new(&setting.agent)
            .args(["profile", "--seconds", "1", "--hz", "997", "--pid"])
            .arg(split.0.id().to_string())
            .arg("--output")
            .arg(&file),
    )?;
    let cold_ms = (begin.elapsed().as_secs_f64() - 1.0) * 1e3;
    let folded = std::fs::read_to_string(&file)?;
    ensure!(folded.contains("nest_fifty"), "no sample has a name");
    let agent = setting.agent(CONTINUOUS)?;
    let begin = Instant::now();
    setting.profile(&agent, &split, 1, 99)?;
    let answered = begin.elapsed().as_secs_f64();
    agent.stop()?;
    Ok(vec![
        Figure::new(
            "`telltale profile`, cold: all that it takes beside the time that it samples",
            cold_ms,
            "ms",
            format!("{cold_ms:.0} ms"),
        )
        .reach(Reach::AtMost(500.0)),
        Figure::new(
            "a running agent answers a profile of one second after",
            answered,
            "s",
            format!("{answered:.2} s"),
        )
        .reach(Reach::AtMost(1.2)),
    ])
}

fn memory(setting: &Setting) -> Result<Vec<Figure>> {
    let agent = setting.agent(CONTINUOUS)?;
    let _processes = (0..PROCESSES)
        .map(|_| start_drowsy())
        .collect::<Result<Vec<_>>>()?;
    thread::sleep(Duration::from_secs(20));
    let rss = agent.rss_bytes()?;
    let maps = agent.map_bytes()?;
    agent.stop()?;
    Ok(vec![
        Figure::new(
            format!("resident memory, continuous, {PROCESSES} processes more"),
            rss as f64 / 1e6,
            "MB",
            megabytes(rss),
        )
        .reach(Reach::AtMost(40.0)),
        Figure::new(
            "the kernel's maps, all of the agent's",
            maps as f64 / 1e6,
            "MB",
            megabytes(maps),
        )
        .reach(Reach::AtMost(24.0)),
    ])
}

impl Setting {
    fn agent(&self, config: &str) -> Result<Agent> {
        Agent::start(&self.agent, &self.processors.agent, config)
    }

    /// Every processor, as taskset takes them.
    fn all(&self) -> String {
        format!("0-{}", self.processors.count - 1)
    }

    /// Ten seconds at 997 Hz of a program that is split by construction, folded.
    fn profile_of(&self, agent: &Agent, split: &Split) -> Result<String> {
        let child = split.start(self.folder.path(), &self.processors.server, 30)?;
        thread::sleep(Duration::from_millis(500));
        self.profile(agent, &child, 10, 997)
    }

    fn profile(&self, agent: &Agent, child: &Kept, seconds: u32, hz: u32) -> Result<String> {
        let pid = child.0.id();
        agent.get(&format!(
            "/debug/pprof/flamegraph?format=folded&pid={pid}&seconds={seconds}&hz={hz}"
        ))
    }
}

/// By how many points the shares of a program's functions differ at most from what they are by
/// construction.
fn largest_error(folded: &str) -> f64 {
    let samples: u64 = stacks(folded).map(|(_, count)| count).sum();
    let shares = [
        ("nest_fifty", 50.0),
        ("nest_thirty", 30.0),
        ("nest_twenty", 20.0),
    ];
    let errors = shares.into_iter().map(|(name, wanted)| {
        let within = stacks(folded).filter(|(stack, _)| stack.contains(name));
        let counted: u64 = within.map(|(_, count)| count).sum();
        (counted as f64 * 100.0 / samples as f64 - wanted).abs()
    });
    errors.fold(0.0, f64::max)
}

/// Stacks of a folded profile with their counts.
fn stacks(folded: &str) -> impl Iterator<Item = (&str, u64)> {
    folded.lines().filter_map(|line| {
        let (stack, count) = line.rsplit_once(' ')?;
        Some((stack, count.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_lines_end_with_their_count() {
        let folded = "a;b c;d 12\na 3\n";
        assert_eq!(
            stacks(folded).collect::<Vec<_>>(),
            [("a;b c;d", 12), ("a", 3)]
        );
    }
}
