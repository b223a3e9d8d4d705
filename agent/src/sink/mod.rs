//! Sinks turn observations into what people read. A sink knows observations, never probes.

#[cfg(test)]
pub(crate) mod fixtures;
pub mod flame_data;
pub mod flamegraph;
pub mod flamegraph_diff;
pub mod otlp;
pub mod pprof;
#[cfg(test)]
pub(crate) mod profile_fixture;
pub mod profile_format;
pub mod prometheus;
mod semantics;
pub mod slow;
pub mod speedscope;
pub mod summary;
pub mod top;

use crate::observation::{Delivery, Observation};

/// One worker's handle on an exporter. Each worker has its own, so that `observe` needs no lock
/// that another worker holds for long. It must not block.
pub trait Sink: Send {
    /// Takes in one finished exchange.
    fn observe(&mut self, observation: &Observation);

    /// Takes in how long the answer of an exchange took to reach its peer, after the exchange.
    fn deliver(&mut self, _delivery: &Delivery) {}
}
