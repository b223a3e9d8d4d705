//! Figures beside their reach, as a table in Markdown or as JSON.

use std::fmt::{self, Display, Formatter};
use std::fs;

use serde_json::{Value, json};

/// How far a figure has to come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reach {
    AtLeast(f64),
    AtMost(f64),
    Exactly(f64),
}

impl Reach {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Exactly(wanted) => value == wanted,
        }
    }
}

/// One line of the table.
#[derive(Debug)]
pub(super) struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    reach: Option<Reach>,
    /// The value as people read it, with what it was made from.
    shown: String,
}

impl Figure {
    /// A figure in a unit; `shown` tells it to people.
    pub(super) fn new(
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        shown: impl Display,
    ) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            reach: None,
            shown: shown.to_string(),
        }
    }

    pub(super) fn reach(self, reach: Reach) -> Self {
        Self {
            reach: Some(reach),
            ..self
        }
    }

    /// Whether it comes as far as it has to.
    pub(super) fn is_met(&self) -> bool {
        self.reach.is_none_or(|reach| reach.is_met(self.value))
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "shown": self.shown,
            "reach": self.reach.map(|reach| self.shown_reach(reach)),
            "met": self.is_met(),
        })
    }

    fn shown_reach(&self, reach: Reach) -> String {
        let (sign, bound) = match reach {
            Reach::AtLeast(bound) => ("≥ ", bound),
            Reach::AtMost(bound) => ("≤ ", bound),
            Reach::Exactly(bound) => ("", bound),
        };
        let space = if self.unit.is_empty() { "" } else { " " };
        format!("{sign}{bound}{space}{}", self.unit)
    }
}

/// A line of the table in Markdown.
impl Display for Figure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (reach, verdict) = match self.reach {
            Some(reach) if self.is_met() => (self.shown_reach(reach), "ok"),
            Some(reach) => (self.shown_reach(reach), "missed"),
            None => (String::new(), ""),
        };
        let Self { what, shown, .. } = self;
        write!(f, "| {what} | {shown} | {reach} | {verdict} |")
    }
}

/// Prints all of them.
pub(super) fn print(machine: &str, figures: &[Figure], as_json: bool) {
    if as_json {
        let figures: Vec<_> = figures.iter().map(Figure::json).collect();
        println!("{:#}", json!({ "machine": machine, "figures": figures }));
        return;
    }
    println!("\n{machine}\n\n| | measured | reach | |\n|---|---|---|---|");
    for figure in figures {
        println!("{figure}");
    }
}

/// `12.3 MB`.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Kernel, processors and how busy they are now: figures mean little without them.
pub(super) fn machine(processors: usize) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    format!(
        "kernel {}, {processors} × {model}, load average {load}",
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_figure_its_reach_and_the_verdict() {
        let ratio = |value| {
            Figure::new("throughput", value, "", format!("{value:.3}")).reach(Reach::AtLeast(0.96))
        };
        assert_eq!(
            ratio(0.97).to_string(),
            "| throughput | 0.970 | ≥ 0.96 | ok |"
        );
        assert_eq!(
            ratio(0.9).to_string(),
            "| throughput | 0.900 | ≥ 0.96 | missed |"
        );
        let plain = Figure::new("object", 1.0, "bytes", 1);
        assert_eq!(plain.to_string(), "| object | 1 |  |  |");
        let bound = Figure::new("size", 41.0, "MB", "41 MB").reach(Reach::AtMost(40.0));
        assert_eq!(bound.to_string(), "| size | 41 MB | ≤ 40 MB | missed |");
        let lost = Figure::new("losses", 0.0, "", 0).reach(Reach::Exactly(0.0));
        assert_eq!(lost.to_string(), "| losses | 0 | 0 | ok |");
    }
}
