//! Harness of the end-to-end tests: starts the built agent, real servers and real clients on
//! 127.0.0.1, counts what was sent, and reads back what the agent says about it.
//!
//! The tests run as root (the agent loads kernel programs) with `cargo xtask test`, which installs
//! what they need, builds the agent and sets the variables below. One suite by hand:
//! `cargo test -p e2e --test http -- --test-threads=1`. Tests of one binary share the machine's
//! cores with each other, so timings want one thread; counts do not.
//!
//! | variable | names |
//! |---|---|
//! | `TELLTALE_BIN` | the agent's binary; default: `telltale` next to the tests' own build |
//! | `TELLTALE_VENV` | a Python virtual environment with `tests/workloads/requirements.txt` |
//! | `TELLTALE_NODE_MODULES` | the `node_modules` made from `tests/workloads/package-lock.json` |
//! | `TELLTALE_COLLECTOR` | the OpenTelemetry Collector built from `tests/workloads/collector` |
//! | `TELLTALE_OPENSEARCH_CP` | a file with the class path of `tests/workloads/opensearch` |
//! | `TELLTALE_ELASTICSEARCH_CP` | a file with the class path of `tests/workloads/elasticsearch` |
//! | `TELLTALE_PROGRAMS` | a folder with programs that are compiled already (may be absent) |
//! | `TELLTALE_PYTHON_3_14` | CPython 3.14, from `tests/workloads/cpython-3.14` |
//! | `TELLTALE_PYTHONS` | further Python interpreters, separated by `:` (may be absent) |
//! | `E2E_PICTURES` | a folder for pictures of the pages that a browser shows (may be absent) |
//! | `E2E_EMULATED` | anything, where the machine is emulated: times mean little there |
//!
//! From `PATH`: `nginx`, `apache2`, `ip`, `runc`, `node`, `java` (a JDK), `curl`, `prometheus`, `promtool`, `bpftool`, `setpriv`,
//! `chromium-headless-shell`.
//! A missing prerequisite fails the test and says so; nothing is skipped.
//!
//! Every server gets a service name of its own (`OTEL_SERVICE_NAME`, or for nginx, which
//! overwrites its environment, the name of the executable), so that exact counts hold although
//! the agent sees the whole machine.

use std::time::{Duration, Instant, UNIX_EPOCH};

pub mod accounts;
pub mod agent;
pub mod browser;
pub mod child;
pub mod client;
pub mod cluster;
pub mod flames;
pub mod folded;
pub mod load;
pub mod metrics;
pub mod network;
pub mod otlp;
pub mod prerequisite;
pub mod programs;
pub mod recursion;
pub mod requests;
pub mod script;
pub mod server;
pub mod split;
pub mod traces;

pub use agent::{Agent, AgentCommand, Finished};
pub use browser::Browser;
pub use child::{Child, free_port};
pub use client::{Client, Request, Response};
pub use folded::Folded;
pub use load::{Key, Load, Tally, Totals};
pub use metrics::{Metrics, Sample};
pub use network::Network;
pub use server::{NginxOptions, Server};
pub use split::Split;

/// Is the machine emulated? All is slow there, and timers are late in bunches.
#[must_use]
pub fn is_emulated() -> bool {
    std::env::var_os("E2E_EMULATED").is_some()
}

/// Largest error of a share of the CPU time: a point; on an emulated machine, two and a half.
#[must_use]
pub fn share_tolerance() -> f64 {
    if is_emulated() { 0.025 } else { 0.01 }
}

/// Seconds since 1970.
///
/// # Errors
/// Where the clock says that it is earlier.
pub fn now_s() -> anyhow::Result<f64> {
    Ok(UNIX_EPOCH.elapsed()?.as_secs_f64())
}

/// Calls `probe` until it succeeds, for at most `timeout`.
///
/// # Errors
/// The last error of `probe`, with the time that was waited.
pub fn eventually<T>(
    timeout: Duration,
    mut probe: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= timeout => {
                return Err(error.context(format!("still so after {timeout:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
