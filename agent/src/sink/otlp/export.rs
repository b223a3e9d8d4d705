//! The task that sends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use prometheus::IntCounter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::{OtlpOptions, span};
use crate::clock::Clock;
use crate::health::{Health, Status};
use crate::observation::Observation;
use crate::process::Process;

pub(super) struct Exporter {
    pub(super) exporter: SpanExporter,
    pub(super) options: OtlpOptions,
    pub(super) clock: Clock,
    pub(super) pending: Arc<AtomicU64>,
    pub(super) failed: IntCounter,
    pub(super) health: Health,
}

impl Exporter {
    /// Sends until it is stopped and the queue is empty.
    pub(super) async fn run(
        mut self,
        mut receiver: mpsc::Receiver<Observation>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut batch = Vec::with_capacity(self.options.batch);
        loop {
            tokio::select! {
                biased;
                // An error says that the sink is gone without a word: stop as well.
                _ = &mut stopped, if !receiver.is_closed() => {
                    // What is queued can still be received; the workers can add nothing.
                    receiver.close();
                }
                received = self.fill(&mut receiver, &mut batch) => {
                    if !received {
                        return;
                    }
                    self.send(&mut batch).await;
                }
            }
        }
    }

    /// Waits for a batch: full, or as old as `linger`. `false` when nothing is to come any more.
    /// Cancelled in the middle it keeps what it has in `batch`.
    async fn fill(
        &self,
        receiver: &mut mpsc::Receiver<Observation>,
        batch: &mut Vec<Observation>,
    ) -> bool {
        let wanted = self.options.batch.max(1);
        if batch.is_empty() && receiver.recv_many(batch, wanted).await == 0 {
            return false;
        }
        let deadline = Instant::now() + self.options.linger;
        while batch.len() < wanted {
            let room = wanted - batch.len();
            match timeout_at(deadline, receiver.recv_many(batch, room)).await {
                Ok(1..) => {}
                // The queue is closed and empty, or the batch is old enough.
                Ok(0) | Err(_) => break,
            }
        }
        true
    }

    /// Sends a batch, one request a process, and empties it.
    async fn send(&mut self, batch: &mut Vec<Observation>) {
        let mut by_process: HashMap<(u32, u64), (Arc<Process>, Vec<SpanData>)> = HashMap::new();
        for observation in batch.drain(..) {
            let process = &observation.process;
            let (_, spans) = by_process
                .entry((process.pid, process.start_ticks))
                .or_insert_with(|| (Arc::clone(process), Vec::new()));
            spans.push(span::from_observation(&observation, &self.clock));
        }
        for (process, spans) in by_process.into_values() {
            let count = spans.len() as u64;
            self.exporter
                .set_resource(&span::resource(&process, &self.options.host_name));
            match self.exporter.export(spans).await {
                Ok(()) => self.health.set("otlp", Status::Healthy, ""),
                Err(error) => {
                    self.failed.inc_by(count);
                    self.complain(&reason_of(error));
                }
            }
            self.pending.fetch_sub(count, Ordering::AcqRel);
        }
    }

    /// Tells once that the collector does not take spans, not with each batch.
    fn complain(&self, error: &str) {
        let reason = format!("{} takes no spans: {error}", self.options.endpoint);
        let told = self.health.report().subsystems;
        if told
            .get("otlp")
            .is_none_or(|otlp| otlp.status == Status::Healthy)
        {
            tracing::warn!(
                endpoint = self.options.endpoint,
                error,
                "the collector takes no spans; they are counted as lost"
            );
        }
        self.health.set("otlp", Status::Degraded, reason);
    }
}

/// What the exporter says, without the SDK's words around it.
fn reason_of(error: OTelSdkError) -> String {
    match error {
        OTelSdkError::InternalFailure(reason) => reason,
        other => other.to_string(),
    }
}
