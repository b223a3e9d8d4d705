//! The wiring: reads from top to bottom as the data flow.
//!
//! ```text
//! kernel programs ─▶ ring k ─▶ worker k: decode ─▶ Connection ─▶ Observation ─▶ sinks
//!        exec, exit ─▶ process table ─────────────────────┘        prometheus · otlp · summary
//!           sampler ─▶ profiler ─▶ symbolize ─▶ pprof · flamegraph
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus::Registry;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::{Clock, monotonic_ns};
use crate::cluster_poll;
use crate::config::Config;
use crate::health::Health;
use crate::http::{self, Api, BindError};
use crate::kernel_side;
use crate::older_sockets::OlderSockets;
use crate::probes::attach::{self, AttachError};
use crate::probes::load::{LoadError, Loaded, load};
use crate::probes::programs::Programs;
use crate::probes::release_memory;
use crate::probes::ring::RingError;
use crate::process::ProcessTable;
use crate::push::PushError;
use crate::requests::Requests;
use crate::routes::RoutesError;
use crate::self_metrics::SelfMetrics;
use crate::sink::Sink;
use crate::sink::otlp::{OtlpError, OtlpOptions, OtlpSink};
use crate::sink::prometheus::PrometheusSink;
use crate::sink::slow::SlowCalls;
use crate::sink::summary::Summary;
use crate::start;

/// How long the end may take: queued spans are sent for that long.
const FLUSH: Duration = Duration::from_secs(3);

/// How often /proc is compared with the process table and dead Unix sockets leave the kernel's map.
const HOUSEKEEPING: Duration = Duration::from_secs(30);

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The address of the HTTP API cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The kernel programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A probe without which nothing can be observed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The object is not what this version expects.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A route template.
    #[error(transparent)]
    Routes(#[from] RoutesError),
    /// A pattern of `targets`.
    #[error("targets: {0}")]
    Targets(#[from] globset::Error),
    /// The span exporter.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// Where profiles are sent to.
    #[error("profile.push: {0}")]
    Push(#[from] PushError),
    /// Metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A thread could not be started, or a signal not be waited for.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// Runs the agent until `SIGTERM` or `SIGINT`; then detaches, flushes and returns.
///
/// # Errors
/// Whatever keeps it from starting. Once it observes, nothing but the end stops it.
pub async fn run(config: Config) -> Result<(), AgentError> {
    let started = Instant::now();
    // Before anything is attached: a taken port is the commonest mistake.
    let listener = http::bind(config.listen)?;

    // What everything reports to.
    let registry = Registry::new();
    let metrics = SelfMetrics::new(&registry)?;
    let health = Health::new();
    let clock = Clock::new();
    let processes = Arc::new(ProcessTable::default());
    processes.scan();
    let watched = Arc::clone(&processes);
    metrics.losses.watch(Box::new(move || watched.losses()));

    // The kernel side: loaded now, attached once its rings are drained.
    start::mount_filesystems();
    let mut loaded = load(&start::load_options(&config))?;
    start::watch_kernel_losses(&mut loaded, &metrics)?;

    // Sinks.
    let prometheus = PrometheusSink::new(&registry, &start::prometheus_options(&config), &metrics)?;
    let summary = Summary::new();
    let slow = SlowCalls::default();
    let otlp = match start::otlp_options(&config) {
        Some(options) => Some(OtlpSink::start(
            options,
            clock.clone(),
            &metrics.losses,
            &health,
        )?),
        None => None,
    };
    let sinks = || {
        let mut sinks: Vec<Box<dyn Sink>> = vec![
            Box::new(prometheus.worker()),
            Box::new(summary.worker()),
            Box::new(slow.worker()),
        ];
        sinks.extend(
            otlp.iter()
                .map(|otlp| Box::new(otlp.worker()) as Box<dyn Sink>),
        );
        sinks
    };

    // Workers: ring → decode → Connection → Observation → sinks.
    let requests = Arc::new(Requests::new(loaded.rings as usize));
    let (shared, kernel) = start::share(&mut loaded, &config, &processes, &requests, &metrics)?;
    let workers = start::start_workers(&mut loaded, &shared, &config, &health, sinks)?;
    let host_name = Arc::from(OtlpOptions::default().host_name);
    let (profile_routes, push, interpreters) = start::profile_routes(
        &mut loaded,
        &config,
        &processes,
        &requests,
        &metrics,
        &health,
        &host_name,
    )?;

    let kernel_log = start::follow_kernel_log(&mut loaded);

    // Attach: from here on traffic is seen.
    start::report_probes(&attach::attach(&mut loaded)?, &health);
    // Whatever is not among these now has all of its bytes seen.
    shared
        .older_sockets
        .get_or_init(|| OlderSockets::scan(Path::new("/proc")));
    let Loaded {
        ebpf,
        btf,
        arrivals,
        ..
    } = loaded;
    drop(btf);
    release_memory();
    let programs = Programs::new(ebpf);
    let arrivals = start::watch_arrivals(&programs, arrivals, config.http.queue_time);
    let statistics = programs.run_statistics(config.metrics.program_statistics);
    let measuring = tokio::spawn(statistics.clone().run());
    let missed = statistics.clone();
    metrics.losses.watch(Box::new(move || {
        vec![("tap", "missed_run", missed.missed_runs())]
    }));
    metrics.watch_programs(Box::new(move || statistics.read()))?;
    health.set_ready(true);
    tracing::info!(
        listen = %config.listen,
        workers = workers.len(),
        ready_ms = started.elapsed().as_millis() as u64,
        "observing"
    );

    // Serve until told to end.
    let housekeeping = tokio::spawn(keep_house(kernel, Arc::clone(&processes), clock.clone()));
    let cluster_poll = cluster_poll::start(
        &config.elasticsearch.poll,
        prometheus.clone(),
        metrics.losses.clone(),
        health.clone(),
    );
    let targets = Arc::new(move || {
        let mut targets = processes.list();
        for target in &mut targets {
            target.interpreter = interpreters.describe(target.process.pid);
        }
        targets
    });
    let push = push.map(|push| tokio::spawn(push.run()));
    let api = Api {
        registry,
        health: health.clone(),
        summary,
        slow,
        targets,
        host_name,
    };
    http::serve(
        listener,
        http::router(api, profile_routes),
        shutdown_signal()?,
    )
    .await
    .map_err(|error| AgentError::System("cannot serve the HTTP API", error))?;

    // The end: detach, let the workers finish what is in the rings, flush.
    tracing::info!("stopping");
    health.set_ready(false);
    housekeeping.abort();
    for task in [cluster_poll, push].into_iter().flatten() {
        task.abort();
    }
    kernel_log.abort();
    measuring.abort();
    arrivals.abort();
    drop(programs);
    shared.stop.store(true, Ordering::Release);
    join(workers).await;
    if let Some(otlp) = otlp {
        otlp.shutdown(FLUSH).await;
    }
    Ok(())
}

/// What has to be done now and then, apart from the workers.
async fn keep_house(
    kernel: Arc<kernel_side::Programs>,
    processes: Arc<ProcessTable>,
    clock: Clock,
) {
    let mut timer = tokio::time::interval(HOUSEKEEPING);
    loop {
        timer.tick().await;
        clock.refresh();
        let (kernel, processes) = (Arc::clone(&kernel), Arc::clone(&processes));
        // Reads /proc: not for a thread of the runtime.
        let work = tokio::task::spawn_blocking(move || {
            kernel.process_events.drain();
            processes.scan();
            let silent_ns = HOUSEKEEPING.as_nanos() as u64;
            kernel
                .connections
                .forget_dead_unix_sockets(monotonic_ns(), silent_ns);
        });
        if let Err(error) = work.await {
            tracing::error!(%error, "housekeeping failed");
        }
    }
}

/// Resolves at the first `SIGTERM` or `SIGINT`.
fn shutdown_signal() -> Result<impl Future<Output = ()> + Send + 'static, AgentError> {
    let wait =
        |kind| signal(kind).map_err(|error| AgentError::System("cannot wait for signals", error));
    let (mut terminate, mut interrupt) = (
        wait(SignalKind::terminate())?,
        wait(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn join(workers: Vec<JoinHandle<()>>) {
    let joined = tokio::task::spawn_blocking(move || {
        workers
            .into_iter()
            .filter_map(|worker| worker.join().err())
            .count()
    });
    match joined.await {
        Ok(0) => {}
        Ok(panicked) => tracing::error!(panicked, "workers had ended by a panic"),
        Err(error) => tracing::error!(%error, "workers could not be joined"),
    }
}
