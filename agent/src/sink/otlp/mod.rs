//! Observations as spans, sent by OTLP over gRPC or HTTP.
//!
//! Workers put observations into one bounded queue; a task makes spans of them, batch by batch, and
//! hands them to the exporter. A resource belongs to a process, and the exporter has one resource at
//! a time, so that a batch leaves as one request for each process in it.
//!
//! What cannot be sent is counted in `telltale_losses_total{stage="otlp"}`: `queue_full` (more came
//! than the collector took), `export_failed` (the collector was not there, or refused, until the
//! time limit), `shutdown` (the agent stopped before they left).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_otlp::{
    ExporterBuildError, Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig,
    WithTonicConfig,
};
use prometheus::IntCounter;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Sink, semantics};
use crate::clock::Clock;
use crate::config::OtlpProtocol;
use crate::health::{Health, Status};
use crate::observation::Observation;
use crate::self_metrics::Losses;
use export::Exporter;

mod export;
mod span;

/// Where spans go, and how many may wait.
#[derive(Clone, Debug)]
pub struct OtlpOptions {
    /// Where requests go: the collector's URL for gRPC, the full URL (`…/v1/traces`) for
    /// `http/protobuf`.
    pub endpoint: String,
    /// Transport.
    pub protocol: OtlpProtocol,
    /// Headers (gRPC: metadata) of each request.
    pub headers: Vec<(String, String)>,
    /// Time limit of one request and of its retries together.
    pub timeout: Duration,
    /// Most observations that wait to be sent; what comes when it is full is dropped and counted.
    pub queue: usize,
    /// Most spans that are sent at once.
    pub batch: usize,
    /// Longest time that an observation waits for its batch to fill.
    pub linger: Duration,
    /// `host.name` of every resource.
    pub host_name: String,
}

impl Default for OtlpOptions {
    /// The defaults of the OpenTelemetry specification, with a queue for short outages.
    fn default() -> Self {
        Self {
            endpoint: "http://localhost:4317".to_owned(),
            protocol: OtlpProtocol::Grpc,
            headers: Vec::new(),
            timeout: Duration::from_secs(10),
            queue: 8192,
            batch: 512,
            linger: Duration::from_secs(1),
            host_name: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
        }
    }
}

/// Why spans cannot be exported at all.
#[derive(Debug, Error)]
pub enum OtlpError {
    /// The endpoint is no URL that can be used.
    #[error("otlp.endpoint: `{endpoint}` cannot be used: {reason}")]
    BadEndpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header has a name or value that HTTP does not allow. The value may be a secret and is not
    /// told.
    #[error("otlp.headers: `{name}` has a name or a value that HTTP does not allow")]
    BadHeader {
        /// The header's name.
        name: String,
    },
    /// The exporter refused its settings.
    #[error("the OTLP exporter cannot be built: {0}")]
    Build(#[from] ExporterBuildError),
}

/// The span exporter; makes one [`Sink`] a worker.
pub struct OtlpSink {
    sender: mpsc::Sender<Observation>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// Observations that were queued and neither sent nor counted as lost.
    pending: Arc<AtomicU64>,
    losses: Losses,
}

impl OtlpSink {
    /// Starts the exporting task on the current tokio runtime. The collector need not be there.
    ///
    /// # Errors
    ///
    /// When the endpoint or a header cannot be used.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(
        options: OtlpOptions,
        clock: Clock,
        losses: &Losses,
        health: &Health,
    ) -> Result<Self, OtlpError> {
        let exporter = build(&options)?;
        let (sender, receiver) = mpsc::channel(options.queue.max(1));
        let (stop, stopped) = oneshot::channel();
        let pending = Arc::new(AtomicU64::new(0));
        health.set("otlp", Status::Healthy, "");
        // Shown with zero from the start.
        let failed = losses.counter("otlp", "export_failed");
        let exporter = Exporter {
            exporter,
            options,
            clock,
            pending: Arc::clone(&pending),
            failed,
            health: health.clone(),
        };
        let task = tokio::spawn(exporter.run(receiver, stopped));
        Ok(Self {
            sender,
            stop,
            task,
            pending,
            losses: losses.clone(),
        })
    }

    /// A handle for one worker.
    #[must_use]
    pub fn worker(&self) -> OtlpWorker {
        OtlpWorker {
            sender: self.sender.clone(),
            pending: Arc::clone(&self.pending),
            queue_full: self.losses.counter("otlp", "queue_full"),
        }
    }

    /// Sends what is queued, for at most `within`, and stops; what is left then is counted as lost.
    pub async fn shutdown(mut self, within: Duration) {
        // The task may have ended by a panic: then nobody listens, and the rest is lost below.
        let _ = self.stop.send(());
        if tokio::time::timeout(within, &mut self.task).await.is_err() {
            self.task.abort();
            let _ = self.task.await;
        }
        self.losses
            .add("otlp", "shutdown", self.pending.load(Ordering::Acquire));
    }
}

/// One worker's handle.
pub struct OtlpWorker {
    sender: mpsc::Sender<Observation>,
    pending: Arc<AtomicU64>,
    queue_full: IntCounter,
}

impl Sink for OtlpWorker {
    fn observe(&mut self, observation: &Observation) {
        if !semantics::is_observed(observation.exchange.outcome) {
            return;
        }
        // A permit first: a full queue then costs no copy of the observation.
        match self.sender.try_reserve() {
            Ok(permit) => {
                self.pending.fetch_add(1, Ordering::AcqRel);
                permit.send(observation.clone());
            }
            Err(_) => self.queue_full.inc(),
        }
    }
}

/// Builds the exporter. Retries with backoff, and which errors are worth one, are the exporter's.
fn build(options: &OtlpOptions) -> Result<SpanExporter, OtlpError> {
    check_endpoint(options)?;
    let retry = RetryPolicy::recommended()
        .with_max_retries(usize::MAX)
        .with_max_delay(Duration::from_secs(5));
    let mut headers = axum::http::HeaderMap::with_capacity(options.headers.len());
    for (name, value) in &options.headers {
        let bad = || OtlpError::BadHeader { name: name.clone() };
        let name = axum::http::HeaderName::try_from(name).map_err(|_| bad())?;
        headers.insert(
            name,
            axum::http::HeaderValue::try_from(value).map_err(|_| bad())?,
        );
    }
    let exporter = match options.protocol {
        OtlpProtocol::Grpc => SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&options.endpoint)
            .with_timeout(options.timeout)
            .with_metadata(tonic::metadata::MetadataMap::from_headers(headers))
            .with_retry_policy(retry)
            .build()?,
        OtlpProtocol::HttpProtobuf => SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&options.endpoint)
            .with_timeout(options.timeout)
            .with_headers(options.headers.iter().cloned().collect())
            .with_retry_policy(retry)
            .build()?,
    };
    Ok(exporter)
}

fn check_endpoint(options: &OtlpOptions) -> Result<(), OtlpError> {
    let bad = |reason: &str| OtlpError::BadEndpoint {
        endpoint: options.endpoint.clone(),
        reason: reason.to_owned(),
    };
    let uri: axum::http::Uri = options
        .endpoint
        .parse()
        .map_err(|_| bad("it has to be http://HOST:PORT"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(bad(
                "this build has no TLS; use http:// and a collector nearby",
            ));
        }
        _ => return Err(bad("it has to begin with http://")),
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(bad("it names no host"));
    }
    if uri.query().is_some() {
        return Err(bad("it must not have a query"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
