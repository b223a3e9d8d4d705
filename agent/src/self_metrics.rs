//! What the agent tells about itself: losses, exchanges by outcome, the cost of its kernel
//! programs, its own CPU and memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Counter, CounterVec, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use protocol::observation::{Outcome, Role};

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
    registry: Registry,
}

impl SelfMetrics {
    /// Registers the metrics, `process_*` and `telltale_build_info` among them.
    ///
    /// # Errors
    ///
    /// When the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            losses: Losses::new(registry)?,
            exchanges: Exchanges::new(registry)?,
            profile_samples: ProfileSamples::new(registry)?,
            registry: registry.clone(),
        };
        register_build_info(registry)?;
        register_process(registry)?;
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
                "Time spent in a kernel program, by the kernel's own statistics.",
            ),
            &["program"],
        )?;
        let runs = IntCounterVec::new(
            Opts::new(
                "telltale_bpf_runs_total",
                "Runs of a kernel program, by the kernel's own statistics.",
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

/// `telltale_http_exchanges_total`, `telltale_http_exchanges_in_flight` and
/// `http_server_active_requests`. Clones share the values.
#[derive(Clone)]
pub struct Exchanges {
    by_outcome: [[IntCounter; Outcome::ALL.len()]; 2],
    in_flight: [IntGauge; 2],
    active: IntGaugeVec,
}

impl Exchanges {
    /// Registers the metrics; every role and outcome shows from the start.
    ///
    /// # Errors
    ///
    /// When the registry has one of them already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let total = IntCounterVec::new(
            Opts::new(
                "telltale_http_exchanges_total",
                "HTTP exchanges by how they ended: every request head ends in exactly one outcome.",
            ),
            &["role", "outcome"],
        )?;
        let in_flight = IntGaugeVec::new(
            Opts::new(
                "telltale_http_exchanges_in_flight",
                "HTTP exchanges whose request head was seen and whose end was not.",
            ),
            &["role"],
        )?;
        let active = IntGaugeVec::new(
            Opts::new(
                "http_server_active_requests",
                "HTTP requests that a server is answering.",
            ),
            &["service_name", "http_request_method"],
        )?;
        registry.register(Box::new(total.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(active.clone()))?;
        let of_role = |role: Role| {
            Outcome::ALL.map(|outcome| total.with_label_values(&[role.as_str(), outcome.as_str()]))
        };
        Ok(Self {
            by_outcome: [of_role(Role::Client), of_role(Role::Server)],
            in_flight: [Role::Client, Role::Server]
                .map(|role| in_flight.with_label_values(&[role.as_str()])),
            active,
        })
    }

    /// Counts `n` exchanges that ended so. The Prometheus sink counts those that it observes; call
    /// this only for those that become no observation.
    pub fn ended(&self, role: Role, outcome: Outcome, n: u64) {
        self.by_outcome[role as usize][outcome as usize].inc_by(n);
    }

    /// The gauge of the exchanges in flight.
    #[must_use]
    pub fn in_flight(&self, role: Role) -> &IntGauge {
        &self.in_flight[role as usize]
    }

    /// The gauge of the requests that `service` is answering; keep it, a look-up takes a lock.
    #[must_use]
    pub fn active(&self, service: &str, method: &'static str) -> IntGauge {
        self.active.with_label_values(&[service, method])
    }

    /// Drops the gauges of a service that ended.
    pub fn forget_active(&self, service: &str, method: &'static str) {
        // An error says that there was none: nothing to drop.
        let _ = self.active.remove_label_values(&[service, method]);
    }
}

/// `telltale_profile_samples_total`. Clones share the values.
#[derive(Clone)]
pub struct ProfileSamples {
    counters: IntCounterVec,
}

impl ProfileSamples {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = IntCounterVec::new(
            Opts::new(
                "telltale_profile_samples_total",
                "Stack samples by how far their unwinding came.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(counters.clone()))?;
        Ok(Self { counters })
    }

    /// Counts `n` samples with this outcome: `complete`, `no_user_stack`, or why it was truncated.
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

fn register_build_info(registry: &Registry) -> Result<(), prometheus::Error> {
    let info = IntGaugeVec::new(
        Opts::new(
            "telltale_build_info",
            "Always 1; the version is in the label.",
        ),
        &["version"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(info))
}

/// The `process_*` metrics that every Prometheus client library has, from `/proc/self`.
fn register_process(registry: &Registry) -> Result<(), prometheus::Error> {
    let cpu = Counter::new(
        "process_cpu_seconds_total",
        "CPU time of the agent, user and system.",
    )?;
    let gauges = [
        (
            "process_resident_memory_bytes",
            "Resident memory of the agent.",
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory of the agent.",
        ),
        (
            "process_open_fds",
            "File descriptors that the agent holds open.",
        ),
        (
            "process_max_fds",
            "File descriptors that the agent may hold open.",
        ),
        ("process_threads", "Threads of the agent."),
        (
            "process_start_time_seconds",
            "When the agent started, seconds since the epoch.",
        ),
    ];
    let mut made = Vec::with_capacity(gauges.len());
    for (name, help) in gauges {
        made.push(Gauge::new(name, help)?);
    }
    let mut parts: Vec<Box<dyn Collector>> = vec![Box::new(cpu.clone())];
    parts.extend(
        made.iter()
            .map(|gauge| Box::new(gauge.clone()) as Box<dyn Collector>),
    );
    registry.register(Box::new(OnScrape::new(parts, move || {
        let Some(usage) = ProcessUsage::read() else {
            return;
        };
        cpu.inc_by((usage.cpu_seconds - cpu.get()).max(0.0));
        for (gauge, value) in made.iter().zip(usage.gauges) {
            gauge.set(value);
        }
    })))
}

struct ProcessUsage {
    cpu_seconds: f64,
    /// In the order of the names in `register_process`.
    gauges: [f64; 6],
}

impl ProcessUsage {
    /// `None` where `/proc` cannot be read; the metrics then keep their last values.
    fn read() -> Option<Self> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let ticks_per_second = procfs::ticks_per_second() as f64;
        let open_fds = process.fd_count().ok()?;
        let max_fds = match process.limits().ok()?.max_open_files.soft_limit {
            procfs::process::LimitValue::Unlimited => f64::INFINITY,
            procfs::process::LimitValue::Value(limit) => limit as f64,
        };
        let boot_seconds = procfs::boot_time_secs().ok()?;
        Some(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks_per_second,
            gauges: [
                stat.rss as f64 * procfs::page_size() as f64,
                stat.vsize as f64,
                open_fds as f64,
                max_fds,
                stat.num_threads as f64,
                boot_seconds as f64 + stat.starttime as f64 / ticks_per_second,
            ],
        })
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

    #[test]
    fn every_outcome_shows_from_the_start() {
        let registry = Registry::new();
        let metrics = SelfMetrics::new(&registry).unwrap();
        metrics.exchanges.ended(Role::Server, Outcome::NotParsed, 4);
        let told = text(&registry);
        for role in ["client", "server"] {
            for outcome in Outcome::ALL {
                let n = if role == "server" && outcome == Outcome::NotParsed {
                    4
                } else {
                    0
                };
                let line = format!(
                    "telltale_http_exchanges_total{{outcome=\"{}\",role=\"{role}\"}} {n}",
                    outcome.as_str()
                );
                assert!(told.contains(&line), "{line} is missing in {told}");
            }
        }
    }

    #[test]
    fn the_agent_tells_its_own_memory_and_start() {
        let registry = Registry::new();
        let _metrics = SelfMetrics::new(&registry).unwrap();
        let value = |name: &str| -> f64 {
            let told = text(&registry);
            let line = told
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")));
            line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_secs_f64() - value("process_start_time_seconds");
        assert!(
            (-2.0..600.0).contains(&age),
            "the agent is {age} seconds old"
        );
    }
}
