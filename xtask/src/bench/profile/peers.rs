//! Other profilers beside Telltale: the same programs, one after the other, in one run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::programs::{SPLITS, Split, Turns};
use super::{ON_DEMAND, Setting, largest_error, stacks};
use crate::bench::agent::Agent;
use crate::bench::figure::Figure;
use crate::bench::pairs::{Ratios, in_turn};
use crate::command::output;
use crate::host;

const HZ: u32 = 997;
const SECONDS: u32 = 10;
/// How long a program runs uncounted: whoever profiles it has attached by then.
const BEFORE: u32 = 2;
const COUNTED: u32 = 2;

/// A profiler, and how it is called.
#[derive(Clone, Copy)]
enum Profiler<'a> {
    Telltale(&'a Agent),
    /// `perf record --call-graph dwarf`
    Perf,
    PySpy,
    Samply,
}

/// What one made of a program.
struct Recording {
    /// Folded stacks; `None` where it leaves the names to somebody else.
    folded: Option<String>,
    /// Processor time of all that it took to get there.
    cpu_seconds: f64,
}

/// Asks each of them for the same, and tells which ones are missing.
///
/// # Errors
/// When a program or a profiler that is there fails.
pub(super) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let agent = setting.agent(ON_DEMAND)?;
    let mut figures = Vec::new();
    let programs = [
        (&SPLITS[0], vec![Profiler::Perf, Profiler::Samply]),
        (&SPLITS[3], vec![Profiler::PySpy]),
    ];
    for (split, mut profilers) in programs {
        profilers.retain(|profiler| profiler.is_there());
        profilers.insert(0, Profiler::Telltale(&agent));
        figures.extend(record(setting, split, &mut profilers)?);
        figures.extend(slowed(setting, split.language, &profilers)?);
    }
    agent.stop()?;
    Ok(figures)
}

/// Whoever is there but fails is left out of what comes after.
fn record(
    setting: &Setting,
    split: &Split,
    profilers: &mut Vec<Profiler<'_>>,
) -> Result<Vec<Figure>> {
    let (mut errors, mut complete, mut spent) = (Row::new(), Row::new(), Row::new());
    let mut failed = Vec::new();
    for profiler in &*profilers {
        let name = profiler.name();
        let child = split.start(setting.folder.path(), &setting.processors.server, 60)?;
        thread::sleep(Duration::from_millis(500));
        let recording = match profiler.record(setting, child.0.id()) {
            Err(error) if !matches!(profiler, Profiler::Telltale(_)) => {
                eprintln!("Left out: {error:#}");
                failed.push(name);
                continue;
            }
            recording => recording?,
        };
        spent.insert(name, recording.cpu_seconds);
        if let Some(folded) = recording.folded {
            let samples: u64 = stacks(&folded).map(|(_, count)| count).sum();
            ensure!(samples > 0, "{name} has no samples");
            let whole = stacks(&folded).filter(|(stack, _)| split.is_complete(stack));
            let whole: u64 = whole.map(|(_, count)| count).sum();
            errors.insert(name, largest_error(&folded));
            complete.insert(name, whole as f64 * 100.0 / samples as f64);
        }
    }
    profilers.retain(|profiler| !failed.contains(&profiler.name()));
    let language = split.language;
    Ok(vec![
        figure(
            format!("{language}: shares of three functions, {HZ} Hz × {SECONDS} s, off by at most"),
            &errors,
            "points",
        ),
        figure(
            format!("{language}: stacks with every call down to the program's first"),
            &complete,
            "%",
        ),
        figure(
            format!("{language}: processor time for that profile, names included"),
            &spent,
            "s",
        ),
    ])
}

fn slowed(setting: &Setting, language: &str, profilers: &[Profiler<'_>]) -> Result<Vec<Figure>> {
    let turns = if language == "Python" {
        Turns::of_python()
    } else {
        Turns::new(setting.folder.path())?
    };
    let server = &setting.processors.server;
    let mut slower = Row::new();
    for profiler in profilers {
        let pairs = in_turn(
            setting.pairs.min(5),
            || Turns::finish(turns.start_counted(server, COUNTED, BEFORE)?),
            || {
                let child = turns.start_counted(server, COUNTED, BEFORE)?;
                let pid = child.0.id();
                thread::scope(|scope| {
                    let taken = scope.spawn(move || profiler.watch(setting, pid));
                    let done = Turns::finish(child)?;
                    taken.join().expect("the client does not panic")?;
                    Ok(done)
                })
            },
        )?;
        let ratios = Ratios::of(pairs.iter().map(|pair| (pair.without, pair.with)));
        slower.insert(profiler.name(), (1.0 - ratios.median) * 100.0);
    }
    Ok(vec![figure(
        format!("{language}: the program is slowed by {HZ} Hz"),
        &slower,
        "%",
    )])
}

type Row = BTreeMap<&'static str, f64>;

/// One line: the agent's value counts, the others stand beside it.
fn figure(what: String, row: &Row, unit: &'static str) -> Figure {
    let shown = row
        .iter()
        .rev()
        .map(|(name, value)| format!("{name} {value:.2}"));
    let shown = shown.collect::<Vec<_>>().join(" · ");
    let own = row.get("telltale").copied().unwrap_or(f64::NAN);
    Figure::new(what, own, unit, format!("{shown} {unit}"))
}

impl Profiler<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::Telltale(_) => "telltale",
            Self::Perf => "perf",
            Self::PySpy => "py-spy",
            Self::Samply => "samply",
        }
    }

    /// Says what is missing, and how to get it.
    fn is_there(self) -> bool {
        let from = match self {
            Self::Telltale(_) => return true,
            Self::Perf => "`apt-get install linux-perf`",
            Self::PySpy => "`pip install py-spy`",
            Self::Samply => "`cargo install samply`",
        };
        let is_there = host::find(self.name()).is_some();
        if !is_there {
            eprintln!("No {} here ({from}): left out.", self.name());
        }
        is_there
    }

    /// Samples a process for so many seconds into a file, and ends.
    fn command(self, pid: u32, seconds: u32, file: &Path) -> Command {
        let mut command = Command::new(self.name());
        let (pid, seconds, hz) = (pid.to_string(), seconds.to_string(), HZ.to_string());
        match self {
            // The agent is asked instead.
            Self::Telltale(_) => {}
            Self::Perf => {
                command.args(["record", "--quiet", "--event", "cpu-clock"]);
                command.args(["--call-graph", "dwarf", "--freq", &hz, "--pid", &pid]);
                command.arg("--output").arg(file);
                command.args(["--", "sleep", &seconds]);
            }
            Self::PySpy => {
                command.args(["record", "--pid", &pid, "--rate", &hz]);
                command.args(["--duration", &seconds, "--format", "raw", "--output"]);
                command.arg(file);
            }
            Self::Samply => {
                command.args(["record", "--save-only", "--pid", &pid, "--rate", &hz]);
                command.args(["--duration", &seconds, "--output"]).arg(file);
            }
        }
        command
    }

    fn file(self, setting: &Setting) -> PathBuf {
        // samply compresses by the name's end.
        let name = format!("{}.json.gz", self.name());
        setting.folder.path().join(name)
    }

    fn record(self, setting: &Setting, pid: u32) -> Result<Recording> {
        if let Self::Telltale(agent) = self {
            let before = agent.cpu_seconds()?;
            let asked = format!(
                "/debug/pprof/flamegraph?format=folded&pid={pid}&seconds={SECONDS}&hz={HZ}"
            );
            let folded = agent.get(&asked)?;
            let cpu_seconds = agent.cpu_seconds()? - before;
            return Ok(Recording {
                folded: Some(folded),
                cpu_seconds,
            });
        }
        let file = self.file(setting);
        let before = children_cpu_seconds()?;
        output(&mut self.command(pid, SECONDS, &file))?;
        let folded = match self {
            Self::Perf => Some(folded_by_perf(&output(
                Command::new("perf")
                    .args([
                        "script",
                        "--no-inline",
                        "--fields",
                        "event,ip,sym",
                        "--input",
                    ])
                    .arg(&file),
            )?)),
            Self::PySpy => Some(fs::read_to_string(&file)?),
            Self::Telltale(_) | Self::Samply => None,
        };
        let cpu_seconds = children_cpu_seconds()? - before;
        Ok(Recording {
            folded,
            cpu_seconds,
        })
    }

    /// Samples a process until after it has counted its turns.
    fn watch(self, setting: &Setting, pid: u32) -> Result<()> {
        let seconds = COUNTED + BEFORE;
        if let Self::Telltale(agent) = self {
            let asked = format!(
                "/debug/pprof/flamegraph?format=folded&pid={pid}&seconds={seconds}&hz={HZ}"
            );
            return agent.get(&asked).map(drop);
        }
        let mut command = self.command(pid, seconds, &self.file(setting));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // Some fail because the process ends before their time is up.
        command.status()?;
        Ok(())
    }
}

/// What `perf script` prints, folded: an event, its addresses and names leaf first, an empty line.
fn folded_by_perf(script: &str) -> String {
    let mut counts = BTreeMap::<String, u64>::new();
    for sample in script.split("\n\n") {
        let mut frames: Vec<_> = sample
            .lines()
            .filter_map(|line| line.trim().split_once(' '))
            .map(|(_, name)| name.trim())
            .collect();
        frames.reverse();
        if !frames.is_empty() {
            *counts.entry(frames.join(";")).or_default() += 1;
        }
    }
    let lines = counts
        .iter()
        .map(|(stack, count)| format!("{stack} {count}\n"));
    lines.collect()
}

/// Processor time of this process's children that have ended, and of theirs.
fn children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat
        .rsplit_once(')')
        .context("no name in /proc/self/stat")?;
    // Fields 16 and 17, in hundredths.
    let times = fields.split_whitespace().skip(13).take(2);
    let ticks = times.map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perf_prints_the_leaf_first() {
        let script =
            "cpu-clock: \n\t 12 leaf\n\t 13 main\n\ncpu-clock: \n\t 14 leaf\n\t 13 main\n\n";
        assert_eq!(folded_by_perf(script), "main;leaf 2\n");
    }
}
