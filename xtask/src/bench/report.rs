//! Figures from runs, as a table for people or as JSON.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;
use serde_json::{Value, json};

use super::load::Target;
use super::{Measured, Pair, object_bytes};

/// The promises: throughput kept, and the agent's own size.
const MIN_THROUGHPUT_RATIO: f64 = 0.90;
const MAX_READY_MS: f64 = 1000.0;
const MAX_RSS_BYTES: u64 = 60_000_000;
const MAX_VERIFIED_INSTRUCTIONS: u64 = 50_000;
const MAX_OBJECT_BYTES: u64 = 200_000;

/// Programs that are listed one by one; the others are below them.
const LISTED_PROGRAMS: usize = 8;

/// One target of the load.
struct Scenario {
    name: String,
    without_per_second: f64,
    with_per_second: f64,
    /// Median of the pairs' ratios, and their extremes.
    ratio: f64,
    ratio_range: (f64, f64),
    p50_us: (f64, f64),
    p99_us: (f64, f64),
    served: u64,
    server_counted: u64,
    client_received: u64,
    client_counted: u64,
    losses: BTreeMap<String, u64>,
    exchanges: BTreeMap<String, u64>,
    agent_cpus: f64,
    programs_ns_per_request: f64,
}

/// All that was measured.
pub(crate) struct Report {
    machine: String,
    scenarios: Vec<Scenario>,
    ready_ms: f64,
    ready_ms_max: f64,
    rss_bytes: u64,
    peak_rss_bytes: u64,
    verified_instructions: Vec<(String, u64)>,
    object_bytes: u64,
}

impl Report {
    /// Sums up the runs.
    ///
    /// # Errors
    /// When the committed object cannot be read.
    pub(crate) fn of(machine: String, scenarios: &[(Target, Measured)]) -> Result<Self> {
        let agents = || {
            scenarios
                .iter()
                .flat_map(|(_, measured)| &measured.pairs)
                .map(|pair| &pair.agent)
        };
        let verified = agents().flat_map(|agent| agent.verified_instructions.clone());
        let mut verified: Vec<_> = verified.collect::<BTreeMap<_, _>>().into_iter().collect();
        verified.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(Self {
            machine,
            scenarios: scenarios
                .iter()
                .map(|(target, measured)| Scenario::of(*target, measured))
                .collect(),
            ready_ms: median(agents().map(|agent| agent.ready_ms)),
            ready_ms_max: agents().map(|agent| agent.ready_ms).fold(0.0, f64::max),
            rss_bytes: agents().map(|agent| agent.rss_bytes).max().unwrap_or(0),
            peak_rss_bytes: agents()
                .map(|agent| agent.peak_rss_bytes)
                .max()
                .unwrap_or(0),
            verified_instructions: verified,
            object_bytes: object_bytes()?,
        })
    }

    /// The same figures for programs.
    pub(crate) fn json(&self) -> Value {
        let scenarios = self
            .scenarios
            .iter()
            .map(Scenario::json)
            .collect::<Vec<_>>();
        json!({
            "machine": self.machine,
            "scenarios": scenarios,
            "ready_ms": { "median": self.ready_ms, "max": self.ready_ms_max },
            "rss_bytes": { "after_load": self.rss_bytes, "peak": self.peak_rss_bytes },
            "verified_instructions": BTreeMap::from_iter(self.verified_instructions.iter().cloned()),
            "object_bytes": self.object_bytes,
        })
    }

    /// Prints tables.
    pub(crate) fn print(&self) {
        println!("\n{}", self.machine);
        for scenario in &self.scenarios {
            scenario.print();
        }
        println!("\nthe agent");
        let limit = |met: bool, limit: String| format!("{} {limit}", verdict(met));
        row(
            "ready, median (max)",
            &format!("{:.0} ms ({:.0})", self.ready_ms, self.ready_ms_max),
            &limit(
                self.ready_ms_max <= MAX_READY_MS,
                format!("≤ {MAX_READY_MS:.0} ms"),
            ),
        );
        row(
            "RSS after the load (peak)",
            &format!(
                "{} ({})",
                megabytes(self.rss_bytes),
                megabytes(self.peak_rss_bytes)
            ),
            &limit(
                self.peak_rss_bytes <= MAX_RSS_BYTES,
                format!("≤ {}", megabytes(MAX_RSS_BYTES)),
            ),
        );
        row(
            "object",
            &format!("{} bytes", self.object_bytes),
            &limit(
                self.object_bytes <= MAX_OBJECT_BYTES,
                format!("≤ {MAX_OBJECT_BYTES}"),
            ),
        );
        println!("\nverified instructions");
        if self.verified_instructions.is_empty() {
            println!("  this kernel does not tell them (5.16 and newer do)");
        }
        for (name, count) in self.verified_instructions.iter().take(LISTED_PROGRAMS) {
            let met = *count < MAX_VERIFIED_INSTRUCTIONS;
            row(
                name,
                &count.to_string(),
                &limit(met, format!("< {MAX_VERIFIED_INSTRUCTIONS}")),
            );
        }
        let others = self
            .verified_instructions
            .len()
            .saturating_sub(LISTED_PROGRAMS);
        if others > 0 {
            println!("  and {others} smaller ones");
        }
    }
}

impl Scenario {
    fn of(target: Target, measured: &Measured) -> Self {
        let pairs = &measured.pairs;
        let ratio = |pair: &Pair| pair.with.per_second() / pair.without.per_second();
        let ratios = || pairs.iter().map(ratio);
        let requests: u64 = pairs.iter().map(|pair| pair.with.requests).sum();
        Self {
            name: target.to_string(),
            without_per_second: median(pairs.iter().map(|pair| pair.without.per_second())),
            with_per_second: median(pairs.iter().map(|pair| pair.with.per_second())),
            ratio: median(ratios()),
            ratio_range: (
                ratios().fold(f64::MAX, f64::min),
                ratios().fold(0.0, f64::max),
            ),
            p50_us: (
                median(pairs.iter().map(|pair| pair.without.p50_us)),
                median(pairs.iter().map(|pair| pair.with.p50_us)),
            ),
            p99_us: (
                median(pairs.iter().map(|pair| pair.without.p99_us)),
                median(pairs.iter().map(|pair| pair.with.p99_us)),
            ),
            served: pairs.iter().map(|pair| pair.agent.served).sum(),
            server_counted: pairs.iter().map(|pair| pair.agent.server_counted).sum(),
            client_received: requests,
            client_counted: pairs.iter().map(|pair| pair.agent.client_counted).sum(),
            losses: summed(pairs.iter().map(|pair| &pair.agent.losses)),
            exchanges: summed(pairs.iter().map(|pair| &pair.agent.exchanges)),
            agent_cpus: median(pairs.iter().map(|pair| pair.agent.cpus)),
            programs_ns_per_request: measured.programs_ns_per_request,
        }
    }

    fn print(&self) {
        println!("\n{}", self.name);
        let throughput = |per_second: f64| format!("{per_second:.0} requests/s");
        row(
            "without the agent",
            &throughput(self.without_per_second),
            "",
        );
        row("with the agent", &throughput(self.with_per_second), "");
        let (low, high) = self.ratio_range;
        row(
            "throughput ratio (range)",
            &format!("{:.3} ({low:.3} – {high:.3})", self.ratio),
            &format!(
                "{} ≥ {MIN_THROUGHPUT_RATIO:.2}",
                verdict(self.ratio >= MIN_THROUGHPUT_RATIO)
            ),
        );
        let (without, with) = self.p50_us;
        row(
            "p50 without → with",
            &format!("{without:.0} → {with:.0} µs"),
            "",
        );
        let (without, with) = self.p99_us;
        row(
            "p99 without → with",
            &format!("{without:.0} → {with:.0} µs"),
            "",
        );
        row("busy CPUs, agent", &format!("{:.2}", self.agent_cpus), "");
        if self.programs_ns_per_request > 0.0 {
            row(
                "in kernel programs",
                &format!("{:.0} ns a request", self.programs_ns_per_request),
                "",
            );
        }
        let counts = |counted, true_count| format!("{counted} of {true_count}");
        row(
            "counted at nginx",
            &counts(self.server_counted, self.served),
            verdict(self.server_counted == self.served),
        );
        row(
            "counted at wrk",
            &counts(self.client_counted, self.client_received),
            verdict(self.client_counted == self.client_received),
        );
        row(
            "losses",
            &self.losses.values().sum::<u64>().to_string(),
            verdict(self.losses.is_empty()),
        );
        for (labels, count) in &self.losses {
            row("", &format!("{count} {labels}"), "");
        }
        for (labels, count) in &self.exchanges {
            row("exchanges", &format!("{count} {labels}"), "");
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "requests_per_second": { "without": self.without_per_second, "with": self.with_per_second },
            "throughput_ratio": {
                "median": self.ratio, "min": self.ratio_range.0, "max": self.ratio_range.1,
            },
            "p50_us": { "without": self.p50_us.0, "with": self.p50_us.1 },
            "p99_us": { "without": self.p99_us.0, "with": self.p99_us.1 },
            "agent_cpus": self.agent_cpus,
            "programs_ns_per_request": self.programs_ns_per_request,
            "server": { "served": self.served, "counted": self.server_counted },
            "client": { "received": self.client_received, "counted": self.client_counted },
            "losses": self.losses,
            "exchanges": self.exchanges,
        })
    }
}

fn row(name: &str, value: &str, verdict: &str) {
    println!("  {name:<26} {value:<32} {verdict}");
}

fn verdict(met: bool) -> &'static str {
    if met { "ok" } else { "MISSED" }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn summed<'a>(maps: impl Iterator<Item = &'a BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for (key, value) in maps.flatten() {
        *sum.entry(key.clone()).or_default() += value;
    }
    sum
}

/// The middle value; the mean of the middle two; 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len(), values.get(middle)) {
        (length, Some(high)) if length % 2 == 0 => (values[middle - 1] + high) / 2.0,
        (_, Some(value)) => *value,
        (_, None) => 0.0,
    }
}

/// Kernel, processors and how busy they are now: figures mean little without them.
pub(crate) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?");
    format!(
        "kernel {}, {count} × {model}, load average {load}",
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_few_values_is_exact() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
