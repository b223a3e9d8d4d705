//! How the agent's parts are doing, as `/readyz` and `/health/detailed` tell it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// How well a part does; ordered, the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It does all that it is there for.
    Healthy,
    /// It works, with something missing or lost; the reason says what.
    Degraded,
    /// It does not work.
    Unhealthy,
}

/// One part of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subsystem {
    /// How well it does.
    pub status: Status,
    /// Why it is not healthy; empty where it is.
    pub reasons: Vec<String>,
}

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst status of any part.
    pub status: Status,
    /// The agent observes: probes are attached and rings are drained.
    pub ready: bool,
    /// Version of the agent.
    pub version: &'static str,
    /// Each part by its name.
    pub subsystems: BTreeMap<&'static str, Subsystem>,
}

/// Shared state of health. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    ready: bool,
    subsystems: BTreeMap<&'static str, Subsystem>,
}

impl Health {
    /// Nothing is known and nothing is ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says how `subsystem` does from now on. An empty `reason` is none.
    pub fn set(&self, subsystem: &'static str, status: Status, reason: impl Into<String>) {
        let reason = reason.into();
        let reasons = if reason.is_empty() {
            Vec::new()
        } else {
            vec![reason]
        };
        self.set_reasons(subsystem, status, reasons);
    }

    /// Says how `subsystem` does from now on, with any number of reasons.
    pub fn set_reasons(&self, subsystem: &'static str, status: Status, reasons: Vec<String>) {
        self.lock()
            .subsystems
            .insert(subsystem, Subsystem { status, reasons });
    }

    /// Says whether probes are attached and rings are drained.
    pub fn set_ready(&self, ready: bool) {
        self.lock().ready = ready;
    }

    /// The agent observes, and no part of it is unhealthy.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        state.ready && worst(&state.subsystems) != Status::Unhealthy
    }

    /// Everything at this moment.
    #[must_use]
    pub fn report(&self) -> Report {
        let state = self.lock();
        Report {
            status: worst(&state.subsystems),
            ready: state.ready && worst(&state.subsystems) != Status::Unhealthy,
            version: env!("CARGO_PKG_VERSION"),
            subsystems: state.subsystems.clone(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is plain data, valid after any panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn worst(subsystems: &BTreeMap<&'static str, Subsystem>) -> Status {
    subsystems
        .values()
        .map(|subsystem| subsystem.status)
        .max()
        .unwrap_or(Status::Healthy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_part_decides() {
        let health = Health::new();
        health.set("tap", Status::Healthy, "");
        health.set("otlp", Status::Degraded, "collector unreachable");
        let report = health.report();
        assert_eq!(report.status, Status::Degraded);
        assert_eq!(report.subsystems["otlp"].reasons, ["collector unreachable"]);
        assert!(report.subsystems["tap"].reasons.is_empty());
        health.set("tap", Status::Unhealthy, "no probe could be attached");
        assert_eq!(health.report().status, Status::Unhealthy);
    }

    #[test]
    fn ready_needs_the_word_and_no_unhealthy_part() {
        let health = Health::new();
        assert!(!health.is_ready());
        health.set_ready(true);
        assert!(health.is_ready());
        health.set("otlp", Status::Degraded, "collector unreachable");
        assert!(
            health.is_ready(),
            "a missing collector does not stop the observing"
        );
        health.set("tap", Status::Unhealthy, "ring 0 is not drained");
        assert!(!health.is_ready());
        health.set("tap", Status::Healthy, "");
        assert!(health.is_ready());
    }

    #[test]
    fn the_report_reads_as_the_contract_says() {
        let health = Health::new();
        health.set("otlp", Status::Degraded, "collector unreachable");
        let json = serde_json::to_value(health.report()).unwrap();
        assert_eq!(json["status"], "degraded");
        assert_eq!(json["subsystems"]["otlp"]["status"], "degraded");
    }
}
