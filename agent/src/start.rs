//! The steps of the start, each by itself; `agent.rs` has their order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use aya_log::EbpfLogger;
use ebpf_common::loss::LossReason;
use prometheus::Registry;
use protocol::Limits;
use tokio::task::JoinHandle as JoinTask;

use crate::agent::AgentError;
use crate::clock::Ticks;
use crate::clusters::Clusters;
use crate::config::{Config, LogLevel, Sampling};
use crate::health::{Health, Status};
use crate::http;
use crate::kernel_side::{self, KernelSide};
use crate::probes::attach::{Attached, ProbeReport, attach};
use crate::probes::load::{ArrivalVariant, LoadOptions, Loaded, RING_MAPS};
use crate::probes::maps::{ClusterEndpoints, Connections, KernelLosses};
use crate::probes::mounts;
use crate::probes::programs::Programs;
use crate::probes::ring::Ring;
use crate::probes::sampler::Sampler;
use crate::process::ProcessTable;
use crate::process_events::ProcessEvents;
use crate::profiler::{Continuous, Interpreters, LostRecords, Profiler, RequestSource};
use crate::push::Push;
use crate::requests::Requests;
use crate::routes::Routes;
use crate::selection::Selection;
use crate::self_metrics::SelfMetrics;
use crate::sink::Sink;
use crate::sink::otlp::OtlpOptions;
use crate::sink::prometheus::PrometheusOptions;
use crate::tracker::Shared;
use crate::worker::Worker;

/// Bytes of a query's masked text that are kept, where it is asked for.
const QUERY_TEXT_BYTES: usize = 1024;

/// How often the kernel side's log is read.
const KERNEL_LOG_INTERVAL: Duration = Duration::from_millis(250);

/// What the configuration says of loading.
pub(crate) fn load_options(config: &Config) -> LoadOptions {
    LoadOptions {
        capture_bytes: config.capture.bytes,
        body_bytes: config.elasticsearch.body_bytes,
        rings: config.capture.rings,
        ring_bytes: config.capture.ring_bytes,
        max_connections: config.capture.max_connections,
        tap: config.tap,
        queue_time: config.http.queue_time != Sampling::Off,
        delivery_time: config.http.delivery_time,
        sample_times: true,
        verbose: config.log.level >= LogLevel::Debug,
    }
}

/// Bounds of one connection.
pub(crate) fn limits(config: &Config) -> Limits {
    Limits {
        query_text_bytes: if config.elasticsearch.query_text {
            QUERY_TEXT_BYTES
        } else {
            0
        },
        ..Limits::default()
    }
}

/// What it says of metrics.
pub(crate) fn prometheus_options(config: &Config) -> PrometheusOptions {
    PrometheusOptions {
        buckets: config.metrics.buckets.clone(),
        max_series: config.metrics.max_series,
    }
}

/// What it says of spans; `None` where none are exported.
pub(crate) fn otlp_options(config: &Config) -> Option<OtlpOptions> {
    let otlp = &config.otlp;
    Some(OtlpOptions {
        endpoint: otlp.traces_url()?,
        protocol: otlp.protocol,
        headers: otlp.headers.clone().into_iter().collect(),
        timeout: otlp.timeout,
        queue: otlp.queue_spans,
        batch: otlp.batch_spans,
        linger: otlp.interval,
        ..OtlpOptions::default()
    })
}

/// Mounts what is absent. Nothing of today's taps needs it, so that a refusal is no failure.
pub(crate) fn mount_filesystems() {
    for filesystem in mounts::WANTED {
        if let Err(error) = filesystem.ensure() {
            tracing::debug!(target = filesystem.target, %error, "not mounted");
        }
    }
}

/// Shows the kernel side's counters among the losses.
pub(crate) fn watch_kernel_losses(
    loaded: &mut Loaded,
    metrics: &SelfMetrics,
) -> Result<(), AgentError> {
    let kernel = KernelLosses::share(&loaded.ebpf)?;
    metrics.losses.watch(Box::new(move || {
        let totals = kernel.read().into_iter();
        totals
            .map(|(reason, total)| {
                let (stage, name) = reason.labels();
                (stage, name, total)
            })
            .collect()
    }));
    Ok(())
}

/// Passes on what the kernel side logs; with `--log-level debug` it says what it takes each
/// connection for.
pub(crate) fn follow_kernel_log(loaded: &mut Loaded) -> JoinTask<()> {
    let logger = EbpfLogger::init(&mut loaded.ebpf);
    tokio::spawn(async move {
        let mut logger = match logger {
            Ok(logger) => logger,
            Err(error) => return tracing::warn!(%error, "the kernel side's log cannot be read"),
        };
        let mut timer = tokio::time::interval(KERNEL_LOG_INTERVAL);
        loop {
            timer.tick().await;
            logger.flush();
        }
    })
}

/// What all workers look things up in, and the part of it that is the kernel side's.
pub(crate) fn share(
    loaded: &mut Loaded,
    config: &Config,
    processes: &Arc<ProcessTable>,
    requests: &Arc<Requests>,
    metrics: &SelfMetrics,
) -> Result<(Arc<Shared>, Arc<kernel_side::Programs>), AgentError> {
    let process_ring = Ring::take(&mut loaded.ebpf, "PROCESS_RING")?;
    let kernel = kernel_side::Programs {
        connections: Connections::take(&mut loaded.ebpf)?,
        losses: KernelLosses::share(&loaded.ebpf)?,
        process_events: ProcessEvents::new(
            process_ring,
            Arc::clone(processes),
            metrics.losses.clone(),
        ),
    };
    let kernel = Arc::new(kernel);
    let kernel_clusters = match config.elasticsearch.body_bytes {
        0 => None,
        _ => Some(ClusterEndpoints::take(&mut loaded.ebpf)?),
    };
    let shared = Arc::new(Shared {
        processes: Arc::clone(processes),
        selection: Selection::new(&config.targets)?,
        routes: Routes::new(&config.routes)?,
        clusters: Clusters::new(&config.elasticsearch.endpoints, kernel_clusters),
        older_sockets: OnceLock::new(),
        kernel: Arc::clone(&kernel) as Arc<dyn KernelSide>,
        losses: metrics.losses.clone(),
        exchanges: metrics.exchanges.clone(),
        ticks: Ticks::of_kernel(),
        requests: Arc::clone(requests),
        limits: Arc::new(limits(config)),
        stop: AtomicBool::new(false),
    });
    Ok((shared, kernel))
}

/// HTTP that is watched for nothing but the requests that threads serve. Dropping it ends that.
pub(crate) struct WatchedRequests {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    programs: Loaded,
}

/// What [`WatchedRequests`] needs.
pub(crate) fn load_options_for_requests(config: &Config) -> LoadOptions {
    LoadOptions {
        queue_time: false,
        delivery_time: false,
        ..load_options(config)
    }
}

impl WatchedRequests {
    /// Attaches what watches sockets.
    pub(crate) fn start(
        mut loaded: Loaded,
        config: &Config,
        processes: &Arc<ProcessTable>,
    ) -> Result<(RequestSource, Self), AgentError> {
        let metrics = SelfMetrics::new(&Registry::new())?;
        let requests = Arc::new(Requests::new(loaded.rings as usize));
        let (shared, _) = share(&mut loaded, config, processes, &requests, &metrics)?;
        let lost = lost_records(&loaded.ebpf)?;
        let workers = start_workers(&mut loaded, &shared, config, &Health::new(), Vec::new)?;
        let mut watched = Self {
            shared,
            workers,
            programs: loaded,
        };
        attach(&mut watched.programs)?;
        let source = RequestSource {
            requests,
            lost,
            outcomes: None,
        };
        Ok((source, watched))
    }
}

impl Drop for WatchedRequests {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a worker had ended by a panic");
            }
        }
    }
}

/// One thread a ring.
pub(crate) fn start_workers(
    loaded: &mut Loaded,
    shared: &Arc<Shared>,
    config: &Config,
    health: &Health,
    sinks: impl Fn() -> Vec<Box<dyn Sink>>,
) -> Result<Vec<JoinHandle<()>>, AgentError> {
    let capacity = (config.capture.max_connections / loaded.rings) as usize;
    let mut workers = Vec::with_capacity(loaded.rings as usize);
    for (index, name) in RING_MAPS.iter().take(loaded.rings as usize).enumerate() {
        let ring = Ring::take(&mut loaded.ebpf, name)?;
        let health = health.clone();
        let worker = Worker::new(index, ring, Arc::clone(shared), sinks(), capacity);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || guard(index, &health, || worker.run()))
            .map_err(|error| AgentError::System("cannot start a worker", error))?;
        workers.push(thread);
    }
    Ok(workers)
}

/// Runs a worker. One that panics leaves its ring to fill, which nobody may take for silence.
fn guard(index: usize, health: &Health, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!(
            worker = index,
            "ended by a panic: its connections go unseen"
        );
        health.set(
            "workers",
            Status::Unhealthy,
            format!("worker {index} ended by a panic"),
        );
        health.set_ready(false);
    }
}

/// The profiler behind its endpoints, and what sends its profiles to others; neither of them where
/// this kernel does not let it sample.
pub(crate) fn profile_routes(
    loaded: &mut Loaded,
    config: &Config,
    processes: &Arc<ProcessTable>,
    requests: &Arc<Requests>,
    metrics: &SelfMetrics,
    health: &Health,
    host_name: &Arc<str>,
) -> Result<(Router, Option<Push>, Interpreters), AgentError> {
    match Sampler::new(&mut loaded.ebpf, &loaded.btf) {
        Ok(sampler) => {
            health.set("profiler", Status::Healthy, "");
            let unread = sampler.unread();
            let losses = move || vec![("sampler", "unread", unread.total())];
            metrics.losses.watch(Box::new(losses));
            let samples = metrics.profile_samples.clone();
            let continuous = continuous(config, metrics);
            let requests = RequestSource {
                requests: Arc::clone(requests),
                lost: lost_records(&loaded.ebpf)?,
                outcomes: Some(metrics.profile_labels.clone()),
            };
            let processes = Arc::clone(processes);
            let samples = Some(samples);
            let profiler =
                Profiler::new(sampler, processes, samples, continuous, Some(requests))
                    .map_err(|error| AgentError::System("cannot start the profiler", error))?;
            let push = &config.profile.push;
            let push = Push::new(push, &profiler, host_name, &metrics.losses, health)?;
            let interpreters = profiler.interpreters().clone();
            let router = http::profile::router(Some(profiler), config.profile.clone());
            Ok((router, push, interpreters))
        }
        Err(error) => {
            tracing::warn!(%error, "no CPU profiles");
            health.set(
                "profiler",
                Status::Degraded,
                format!("no CPU profiles: {error}"),
            );
            let router = http::profile::router(None, config.profile.clone());
            Ok((router, None, Interpreters::default()))
        }
    }
}

/// Records lost that may have told of requests.
pub(crate) fn lost_records(ebpf: &aya::Ebpf) -> Result<LostRecords, AgentError> {
    let kernel = KernelLosses::share(ebpf)?;
    Ok(Box::new(move || {
        let reasons = [LossReason::RingFull, LossReason::ConnectionsFull];
        reasons.map(|reason| kernel.total(reason)).iter().sum()
    }))
}

/// What the configuration says of continuous profiling; `None` where it is off.
fn continuous(config: &Config, metrics: &SelfMetrics) -> Option<Continuous> {
    let continuous = &config.profile.continuous;
    (continuous.hz > 0).then(|| Continuous {
        hz: continuous.hz,
        window: continuous.window,
        retention: continuous.retention,
        max_bytes: continuous.max_bytes as usize,
        dropped: metrics.losses.counter("profiler", "history_full"),
    })
}

/// Watches arrivals, as often as the configuration says.
pub(crate) fn watch_arrivals(
    programs: &Programs,
    variant: Option<ArrivalVariant>,
    mode: Sampling,
) -> JoinTask<()> {
    let windows = variant.map(|variant| programs.watch_arrivals(variant, mode));
    tokio::spawn(async move {
        match windows {
            Some(Ok(windows)) => windows.run().await,
            Some(Err(error)) => tracing::warn!(%error, "no queue time"),
            None => {}
        }
    })
}

/// Logs what became of each probe and shows fallbacks as degraded health.
pub(crate) fn report_probes(attached: &Attached, health: &Health) {
    let mut reasons = Vec::new();
    for ProbeReport { probe, result } in &attached.probes {
        match result {
            Ok(steps) => tracing::debug!(program = probe.program, ?steps, "attached"),
            Err(error) => {
                let fallback = probe.fallback.unwrap_or_default();
                tracing::warn!(program = probe.program, %error, fallback, "not attached");
                reasons.push(format!("{}: {fallback}", probe.program));
            }
        }
    }
    if let Some((tap, ProbeReport { probe, result })) = &attached.refused {
        let error = result.as_ref().err().map(tracing::field::display);
        tracing::info!(
            tap = tap.as_str(),
            program = probe.program,
            error,
            "tap refused"
        );
    }
    tracing::info!(tap = attached.tap.as_str());
    let status = if reasons.is_empty() {
        Status::Healthy
    } else {
        Status::Degraded
    };
    health.set_reasons("probes", status, reasons);
}
