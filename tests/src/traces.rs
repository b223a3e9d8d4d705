//! Stacks of a profile, as `go tool pprof` reads them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::Agent;
use crate::prerequisite;

/// A stack and what is told about it.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Functions, leaf first.
    pub functions: Vec<String>,
    /// Their places, `FILE:LINE`; empty where there is none.
    pub places: Vec<String>,
    /// The label `unwind`.
    pub unwind: String,
    /// The label `http_route`; empty where there is none.
    pub route: String,
    /// The label `http_method`, likewise.
    pub method: String,
    /// The label `db_operation`, likewise.
    pub operation: String,
    /// Samples, or nanoseconds of waiting.
    pub count: u64,
}

impl Trace {
    /// Is there a function of that name?
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.functions.iter().any(|function| function == name)
    }
}

/// The stacks of a profile.
#[derive(Debug)]
pub struct Traces {
    /// Each with its labels once.
    pub traces: Vec<Trace>,
}

impl Traces {
    /// `telltale profile --pid PID` at 997 Hz; `folder` is for its file.
    ///
    /// # Errors
    /// When it fails, or gives no samples.
    pub fn take(pid: u32, seconds: u32, folder: &Path) -> Result<Self> {
        let file = folder.join("x.pb.gz");
        let finished = Agent::command()?
            .subcommand("profile")
            .arg("--pid")
            .arg(pid.to_string())
            .arg("--seconds")
            .arg(seconds.to_string())
            .arg("--hz")
            .arg("997")
            .arg("-o")
            .arg(file.to_str().context("a path in UTF-8")?)
            .run_to_end(Duration::from_secs(60))?;
        ensure!(finished.status.success(), "{}", finished.output);
        Self::read(&file)
    }

    /// The samples that `go tool pprof -traces` lists.
    ///
    /// # Errors
    /// When there are none.
    pub fn read(file: &Path) -> Result<Self> {
        Self::read_as(file, "samples")
    }

    /// The waits of an off-CPU profile, likewise.
    ///
    /// # Errors
    /// When there are none.
    pub fn read_waits(file: &Path) -> Result<Self> {
        Self::read_as(file, "off_cpu")
    }

    fn read_as(file: &Path, sample_type: &str) -> Result<Self> {
        let output = Command::new(prerequisite::on_path("go")?)
            .args([
                "tool",
                "pprof",
                "-traces",
                "-lines",
                "-unit=ns",
                &format!("-sample_index={sample_type}"),
            ])
            .arg(file)
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let traces: Result<Vec<_>> = text
            .split("-----------+")
            .skip(1)
            .map(Trace::parse)
            .collect();
        let mut traces = traces?;
        traces.retain(|trace| trace.count > 0);
        ensure!(!traces.is_empty(), "no samples: {text}");
        Ok(Self { traces })
    }

    /// Samples of the stacks that `of` wants.
    pub fn count(&self, of: impl Fn(&Trace) -> bool) -> f64 {
        let counts = self.traces.iter().filter(|trace| of(trace));
        counts.map(|trace| trace.count).sum::<u64>() as f64
    }

    /// Samples by the label `unwind`.
    #[must_use]
    pub fn outcomes(&self) -> BTreeMap<&str, u64> {
        let mut outcomes = BTreeMap::new();
        for trace in &self.traces {
            *outcomes.entry(&*trace.unwind).or_default() += trace.count;
        }
        outcomes
    }
}

impl Trace {
    fn parse(block: &str) -> Result<Self> {
        let mut trace = Self {
            functions: Vec::new(),
            places: Vec::new(),
            unwind: String::new(),
            route: String::new(),
            method: String::new(),
            operation: String::new(),
            count: 0,
        };
        for line in block.lines().skip(1) {
            let words = line.trim();
            let label = match words.split_once(':') {
                Some(("unwind", _)) => Some(&mut trace.unwind),
                Some(("http_route", _)) => Some(&mut trace.route),
                Some(("http_method", _)) => Some(&mut trace.method),
                Some(("db_operation", _)) => Some(&mut trace.operation),
                _ => None,
            };
            if let (Some(label), Some((_, value))) = (label, words.split_once(':')) {
                value.trim().clone_into(label);
                continue;
            }
            let count_of = |word: &str| word.trim_end_matches("ns").parse::<u64>().ok();
            match words.split_once(char::is_whitespace) {
                Some((word, function)) if let Some(count) = count_of(word) => {
                    trace.count = count;
                    trace.push(function);
                }
                // Labels come before the first function.
                _ if trace.count > 0 && !words.is_empty() => trace.push(words),
                _ => {}
            }
        }
        Ok(trace)
    }

    /// `NAME FILE:LINE (inline)`, of which the name may hold spaces and the rest be missing.
    fn push(&mut self, text: &str) {
        let text = text.trim().trim_end_matches(" (inline)");
        let (name, place) = match text.rsplit_once(' ') {
            Some((name, place)) if place.contains(':') && place.contains(['/', '.', '<']) => {
                (name, place)
            }
            _ => (text, ""),
        };
        self.functions.push(name.to_owned());
        self.places.push(place.to_owned());
    }
}
