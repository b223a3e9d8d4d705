//! What the agent tells about itself: losses, exchanges by outcome, the cost of its kernel
//! programs, its own CPU and memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, IntCounter, IntCounterVec, Opts, Registry};

pub use exchanges::{Counted, Exchanges, InFlight};

mod exchanges;
mod own_process;

/// Reads totals that the kernel keeps: stage, reason, number since the start.
pub type LossSource = Box<dyn Fn() -> Vec<(&'static str, &'static str, u64)> + Send + Sync>;

/// Reads the kernel's statistics: program, runs, nanoseconds in it since it was loaded.
pub type ProgramSource = Box<dyn Fn() -> Vec<(String, u64, u64)> + Send + Sync>;

/// Every metric about the agent itself. Clones share the values.
#[derive(Clone)]
pub struct SelfMetrics {
    /// Everything seen and not reported.
    pub losses: Losses,
    /// Exchanges by outcome and in flight.
    pub exchanges: Exchanges,
    /// `telltale_profile_samples_total`.
    pub profile_samples: ProfileSamples,
    /// `telltale_profile_labels_total`.
    pub profile_labels: ProfileLabels,
    registry: Registry,
}

impl SelfMetrics {
    /// Registers the metrics, `process_*` and `telltale_build_info` among them.
    ///
    /// # Errors
    ///
    /// When the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let losses = Losses::new(registry)?;
        let metrics = Self {
            exchanges: Exchanges::new(registry)?,
            profile_samples: ProfileSamples::new(registry, &losses)?,
            profile_labels: ProfileLabels::new(registry)?,
            losses,
            registry: registry.clone(),
        };
        own_process::register_build_info(registry)?;
        own_process::register_process(registry)?;
        Ok(metrics)
    }

    /// Registers `telltale_bpf_run_seconds_total` and `telltale_bpf_runs_total`, read from `source`
    /// at each scrape.
    ///
    /// # Errors
    ///
    /// When it was called before.
    pub fn watch_programs(&self, source: ProgramSource) -> Result<(), prometheus::Error> {
        let seconds = CounterVec::new(
            Opts::new(
                "telltale_bpf_run_seconds_total",
                "Time spent in a kernel program, by the kernel's own statistics of one second in ten, \
                 unless program_statistics says otherwise.",
            ),
            &["program"],
        )?;
        let runs = IntCounterVec::new(
            Opts::new(
                "telltale_bpf_runs_total",
                "Runs of a kernel program, by the kernel's own statistics of one second in ten, unless \
                 program_statistics says otherwise.",
            ),
            &["program"],
        )?;
        let seen: Mutex<HashMap<String, (u64, u64)>> = Mutex::default();
        let parts: Vec<Box<dyn Collector>> =
            vec![Box::new(seconds.clone()), Box::new(runs.clone())];
        self.registry
            .register(Box::new(OnScrape::new(parts, move || {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                for (program, total_runs, total_ns) in source() {
                    let runs = runs.with_label_values(&[&program]);
                    let seconds = seconds.with_label_values(&[&program]);
                    let (last_runs, last_ns) = seen
                        .insert(program, (total_runs, total_ns))
                        .unwrap_or_default();
                    runs.inc_by(total_runs.saturating_sub(last_runs));
                    seconds.inc_by(total_ns.saturating_sub(last_ns) as f64 / 1e9);
                }
            })))
    }
}

/// `telltale_losses_total`. Clones share the values.
#[derive(Clone)]
pub struct Losses {
    counters: IntCounterVec,
    sources: Arc<Mutex<Vec<TotalsSource>>>,
}

/// A source of totals and what it said last.
struct TotalsSource {
    read: LossSource,
    last: HashMap<(&'static str, &'static str), u64>,
}

impl Losses {
    /// Registers the metric.
    ///
    /// # Errors
    ///
    /// When the registry has it already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = IntCounterVec::new(
            Opts::new(
                "telltale_losses_total",
                "What was seen and not reported, by stage and reason.",
            ),
            &["stage", "reason"],
        )?;
        let losses = Self {
            counters,
            sources: Arc::default(),
        };
        let scraped = losses.clone();
        registry.register(Box::new(OnScrape::new(
            vec![Box::new(losses.counters.clone())],
            move || {
                scraped.read_sources();
            },
        )))?;
        Ok(losses)
    }

    /// Counts `n` losses.
    pub fn add(&self, stage: &'static str, reason: &'static str, n: u64) {
        self.counter(stage, reason).inc_by(n);
    }

    /// The counter of one reason, for those who count often. From then on a scrape shows it, with
    /// zero too.
    #[must_use]
    pub fn counter(&self, stage: &'static str, reason: &'static str) -> IntCounter {
        self.counters.with_label_values(&[stage, reason])
    }

    /// Adds totals that are kept elsewhere (in a kernel map); they are read at each scrape.
    pub fn watch(&self, read: LossSource) {
        self.lock().push(TotalsSource {
            read,
            last: HashMap::new(),
        });
    }

    fn read_sources(&self) {
        for source in self.lock().iter_mut() {
            for (stage, reason, total) in (source.read)() {
                let last = source.last.insert((stage, reason), total).unwrap_or(0);
                self.add(stage, reason, total.saturating_sub(last));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<TotalsSource>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `telltale_profile_samples_total`. Clones share the values.
#[derive(Clone)]
pub struct ProfileSamples {
    counters: IntCounterVec,
    /// Lines of perf maps that could not be understood: `telltale_losses_total`.
    pub malformed_lines: IntCounter,
    /// Perf maps that were too long, or too dense, to be used whole, each once a profile:
    /// `telltale_losses_total`.
    pub cut_lists: IntCounter,
    /// Files, each once a process, whose functions have no names: more than are held open, and those
    /// that could not be opened. `telltale_losses_total`.
    pub nameless_files: [IntCounter; 2],
    /// Samples of more stacks than a profile can have: `telltale_losses_total`.
    pub dropped: IntCounter,
}

impl ProfileSamples {
    fn new(registry: &Registry, losses: &Losses) -> Result<Self, prometheus::Error> {
        let counters = IntCounterVec::new(
            Opts::new(
                "telltale_profile_samples_total",
                "Stack samples by how far their unwinding came.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(counters.clone()))?;
        Ok(Self {
            counters,
            malformed_lines: losses.counter("symbolize", "perf_map_line"),
            cut_lists: losses.counter("symbolize", "perf_map_limit"),
            nameless_files: ["file_limit", "file_unreadable"]
                .map(|reason| losses.counter("symbolize", reason)),
            dropped: losses.counter("profiler", "profile_full"),
        })
    }

    /// Counts `n` samples with this outcome: `complete`, `no_user_stack`, or why it was truncated.
    pub fn add(&self, outcome: &'static str, n: u64) {
        self.counters.with_label_values(&[outcome]).inc_by(n);
    }
}

/// `telltale_profile_labels_total`. Clones share the values.
#[derive(Clone)]
pub struct ProfileLabels {
    counters: IntCounterVec,
}

impl ProfileLabels {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = IntCounterVec::new(
            Opts::new(
                "telltale_profile_labels_total",
                "Ticks of the sampling clocks by whether the request is proven that the thread served.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(counters.clone()))?;
        Ok(Self { counters })
    }

    /// Counts `n` ticks with this outcome: `labelled`, or why they are not.
    pub fn add(&self, outcome: &'static str, n: u64) {
        self.counters.with_label_values(&[outcome]).inc_by(n);
    }
}

/// Collectors that are brought up to date when somebody looks.
struct OnScrape<F> {
    parts: Vec<Box<dyn Collector>>,
    refresh: F,
}

impl<F: Fn() + Send + Sync> OnScrape<F> {
    fn new(parts: Vec<Box<dyn Collector>>, refresh: F) -> Self {
        Self { parts, refresh }
    }
}

impl<F: Fn() + Send + Sync> Collector for OnScrape<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.parts.iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.refresh)();
        self.parts.iter().flat_map(|part| part.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    #[test]
    fn totals_of_the_kernel_join_the_agents_own_losses() {
        let registry = Registry::new();
        let metrics = SelfMetrics::new(&registry).unwrap();
        let ring_full = Arc::new(AtomicU64::new(3));
        let read = Arc::clone(&ring_full);
        metrics.losses.watch(Box::new(move || {
            vec![
                ("tap", "ring_full", read.load(Ordering::Relaxed)),
                ("tap", "tls", 0),
            ]
        }));
        metrics.losses.add("decode", "too_short", 2);
        let first = text(&registry);
        assert!(
            first.contains("telltale_losses_total{reason=\"ring_full\",stage=\"tap\"} 3"),
            "{first}"
        );
        assert!(
            first.contains("telltale_losses_total{reason=\"tls\",stage=\"tap\"} 0"),
            "{first}"
        );
        assert!(
            first.contains("telltale_losses_total{reason=\"too_short\",stage=\"decode\"} 2"),
            "{first}"
        );
        ring_full.store(10, Ordering::Relaxed);
        let _ = text(&registry);
        let third = text(&registry);
        assert!(
            third.contains("telltale_losses_total{reason=\"ring_full\",stage=\"tap\"} 10"),
            "{third}"
        );
    }

    #[test]
    fn program_statistics_are_totals_not_sums() {
        let registry = Registry::new();
        let metrics = SelfMetrics::new(&registry).unwrap();
        metrics
            .watch_programs(Box::new(|| vec![("sys_exit".into(), 1_000, 2_500_000_000)]))
            .unwrap();
        let _ = text(&registry);
        let second = text(&registry);
        assert!(
            second.contains("telltale_bpf_runs_total{program=\"sys_exit\"} 1000"),
            "{second}"
        );
        assert!(
            second.contains("telltale_bpf_run_seconds_total{program=\"sys_exit\"} 2.5"),
            "{second}"
        );
    }
}
