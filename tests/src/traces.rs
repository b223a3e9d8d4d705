//! Stacks of a profile, from its pprof file.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use pprof::protos::{self, Message as _};

use crate::agent::Agent;

/// A stack and what is told about it.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Functions, leaf first, inlined ones too; the address of what has no name.
    pub functions: Vec<String>,
    /// Their places, `FILE:LINE`, of which either part may be missing: `FILE`, `:LINE` or nothing.
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

    /// The same; on an emulated machine by an agent that sees the process for a second before, as there
    /// some samples come before the rows of its files are loaded.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_warm(agent: &Agent, pid: u32, seconds: u32, folder: &Path) -> Result<Self> {
        if !crate::is_emulated() {
            return Self::take(pid, seconds, folder);
        }
        let take = |seconds| Self::of(agent, &format!("seconds={seconds}&hz=997&pid={pid}"));
        take(1)?;
        take(seconds)
    }

    /// What the agent answers to a query of profiles: samples, or waits where it asks for those.
    ///
    /// # Errors
    /// When that is no 200, and as [`Self::read`].
    pub fn of(agent: &Agent, query: &str) -> Result<Self> {
        let response = agent.get(&format!("/debug/pprof/profile?{query}"))?;
        let status = response.status;
        ensure!(status == 200, "{query}: {status}: {}", response.text());
        let is_off_cpu = query.contains("type=off_cpu");
        Self::decode(
            &response.body,
            if is_off_cpu { "off_cpu" } else { "samples" },
        )
    }

    /// The samples of a gzipped pprof protobuf.
    ///
    /// # Errors
    /// When it is none, refers to what it does not hold, or has no samples.
    pub fn read(file: &Path) -> Result<Self> {
        Self::decode(&fs::read(file)?, "samples")
    }

    fn decode(gzipped: &[u8], sample_type: &str) -> Result<Self> {
        let mut bytes = Vec::new();
        GzDecoder::new(gzipped).read_to_end(&mut bytes)?;
        let profile = Decoded::new(protos::Profile::decode(&*bytes)?);
        let traces: Result<Vec<_>> = profile.samples(sample_type)?.collect();
        let mut traces = traces?;
        traces.retain(|trace| trace.count > 0);
        ensure!(!traces.is_empty(), "no samples");
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

/// A profile whose locations and functions are found by number.
struct Decoded {
    profile: protos::Profile,
    locations: HashMap<u64, usize>,
    functions: HashMap<u64, usize>,
}

impl Decoded {
    fn new(profile: protos::Profile) -> Self {
        let locations = profile.location.iter().map(|location| location.id);
        let functions = profile.function.iter().map(|function| function.id);
        Self {
            locations: locations.zip(0..).collect(),
            functions: functions.zip(0..).collect(),
            profile,
        }
    }

    /// Its samples, counted by one of its types.
    fn samples(&self, sample_type: &str) -> Result<impl Iterator<Item = Result<Trace>>> {
        let types = self.profile.sample_type.iter();
        let names: Result<Vec<_>> = types.map(|of| self.text(of.ty)).collect();
        let value = names?.iter().position(|name| *name == sample_type);
        let value = value.with_context(|| format!("the profile has no {sample_type}"))?;
        let samples = self.profile.sample.iter();
        Ok(samples.map(move |sample| self.trace(sample, value)))
    }

    fn trace(&self, sample: &protos::Sample, value: usize) -> Result<Trace> {
        let count = sample.value.get(value).context("a sample has no value")?;
        let mut trace = Trace {
            functions: Vec::new(),
            places: Vec::new(),
            unwind: self.label(sample, "unwind")?,
            route: self.label(sample, "http_route")?,
            method: self.label(sample, "http_method")?,
            operation: self.label(sample, "db_operation")?,
            count: u64::try_from(*count)?,
        };
        for id in &sample.location_id {
            let location = self.locations.get(id).context("an unknown location")?;
            let location = &self.profile.location[*location];
            if location.line.is_empty() {
                trace.functions.push(format!("{:#x}", location.address));
                trace.places.push(String::new());
            }
            for line in &location.line {
                let function = self.functions.get(&line.function_id);
                let function = &self.profile.function[*function.context("an unknown function")?];
                let file = self.text(function.filename)?;
                trace.functions.push(self.text(function.name)?.to_owned());
                trace.places.push(match line.line {
                    0 => file.to_owned(),
                    line => format!("{file}:{line}"),
                });
            }
        }
        Ok(trace)
    }

    /// The text of a label; empty where there is none.
    fn label(&self, sample: &protos::Sample, key: &str) -> Result<String> {
        for label in &sample.label {
            if self.text(label.key)? == key {
                return Ok(self.text(label.str)?.to_owned());
            }
        }
        Ok(String::new())
    }

    fn text(&self, index: i64) -> Result<&str> {
        let text = self.profile.string_table.get(usize::try_from(index)?);
        text.map(|text| &**text).context("an unknown string")
    }
}
