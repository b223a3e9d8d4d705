//! Three accounts of the same requests, compared: the client's tally, the server's own log, and
//! what the agent exports for either side.
//!
//! Counts and body sizes have to be equal. Durations have no tolerance to choose, they nest: the
//! handler runs between the server's read of the request and its write of the answer, and those
//! happen between the client's write and its read. So handler ≤ agent (server side) ≤ client, and
//! agent (client side) ≤ client, each but for `CLOCK_SLACK`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::Agent;
use crate::client::Request;
use crate::eventually;
use crate::load::{Key, Tally};
use crate::metrics::Metrics;
use crate::server::Server;

/// How long the agent may take from the last byte of an exchange to its metrics.
pub const EXPORT_DELAY: Duration = Duration::from_secs(5);

/// The agent's clock is read when a system call returns. The peer can be woken by that call's
/// bytes, and be done, before the caller gets the CPU back and returns: on a loaded machine up to
/// some scheduler ticks later. This is the mean that is allowed for it, a request.
const CLOCK_SLACK: Duration = Duration::from_millis(4);

/// The side that metrics are read for, with the labels that tell one server's from all others.
#[derive(Clone, Copy, Debug)]
pub enum Side<'a> {
    /// What the server's process read and wrote.
    Server(&'a Server),
    /// What clients of the server's port wrote and read.
    Client(&'a Server),
}

impl Side<'_> {
    fn role(self) -> &'static str {
        match self {
            Self::Server(_) => "server",
            Self::Client(_) => "client",
        }
    }

    /// Sums the metric `http_server_…` or `http_client_…` by key; `rest` is what follows the role.
    #[must_use]
    pub fn sum(self, metrics: &Metrics, rest: &str) -> BTreeMap<Key, f64> {
        let name = &format!("http_{}_{rest}", self.role());
        let (method, status) = ("http_request_method", "http_response_status_code");
        match self {
            Self::Server(server) => metrics.sum_by(
                name,
                &[("service_name", &server.service)],
                [method, "http_route", status],
            ),
            Self::Client(server) => metrics.sum_by(
                name,
                &[("server_port", &server.address.port().to_string())],
                [method, "url_template", status],
            ),
        }
    }
}

/// Method, route template and status.
#[must_use]
pub fn key(method: &str, route: &str, status: &str) -> Key {
    [method.to_owned(), route.to_owned(), status.to_owned()]
}

/// One of each: methods, statuses, framings. With the route that each belongs to.
#[must_use]
pub fn application_plan() -> Vec<(Request, &'static str)> {
    vec![
        (Request::new("GET", "/items/7"), "/items/{id}"),
        (Request::new("GET", "/items/123456?limit=5"), "/items/{id}"),
        (Request::new("GET", "/items/8?limit=many"), "/items/{id}"),
        (Request::new("HEAD", "/items/9"), "/items/{id}"),
        (
            Request::new("POST", "/items").body(vec![b'x'; 3000]),
            "/items",
        ),
        (Request::new("DELETE", "/items/10"), "/items/{id}"),
        (
            Request::new(
                "GET",
                "/get_complete_tree/6f1c2f9e-52a1-4c5a-9a35-1c1b2f0a7d11",
            ),
            "/get_complete_tree/{id}",
        ),
        (Request::new("GET", "/cached"), "/cached"),
        (
            Request::new("GET", "/cached").header("If-None-Match: \"1\""),
            "/cached",
        ),
        (Request::new("GET", "/nowhere"), "/nowhere"),
        (Request::new("GET", "/fail"), "/fail"),
        (Request::new("GET", "/sleep/25"), "/sleep/{id}"),
    ]
}

/// Whether a server's own account has the same counts as the client's, and handler times that fit
/// into the client's.
///
/// # Errors
/// Every difference.
pub fn check_handlers(server: &Server, tally: &Tally) -> Result<()> {
    let handlers = server.handler_tally()?;
    let counts = handlers
        .iter()
        .map(|(key, (count, _))| (key.clone(), *count))
        .collect();
    check_counts("the server's account", &counts, &tally.counts())?;
    for (key, (_, seconds)) in &handlers {
        let client = tally.0[key].duration.as_secs_f64();
        ensure!(
            *seconds <= client,
            "{key:?}: handlers took {seconds} s, the client saw {client} s"
        );
    }
    Ok(())
}

/// Waits until the agent has exactly the counts that were sent, on one side, and sees that they
/// stay.
///
/// # Errors
/// Every difference.
pub fn check_exported(agent: &Agent, side: Side<'_>, sent: &BTreeMap<Key, u64>) -> Result<Metrics> {
    let check = || {
        let metrics = agent.metrics()?;
        let sums = side.sum(&metrics, "request_duration_seconds_count");
        let counts = sums
            .into_iter()
            .map(|(key, sum)| (key, sum as u64))
            .collect();
        check_counts(
            &format!("the agent's account of the {}", side.role()),
            &counts,
            sent,
        )?;
        Ok(metrics)
    };
    eventually(EXPORT_DELAY, check)?;
    // What is counted twice comes late.
    std::thread::sleep(Duration::from_millis(500));
    check()
}

/// Waits until the accounting identity holds for both roles: request heads = exchanges by outcome + in
/// flight.
///
/// # Errors
/// What does not add up.
pub fn check_identity(agent: &Agent) -> Result<Metrics> {
    eventually(EXPORT_DELAY, || {
        let metrics = agent.metrics()?;
        for role in ["client", "server"] {
            let sum = |name| metrics.sum(name, &[("role", role)]);
            let heads = sum("telltale_http_request_heads_total");
            let ended = sum("telltale_http_exchanges_total");
            let in_flight = sum("telltale_http_exchanges_in_flight");
            ensure!(
                heads == ended + in_flight,
                "{role}: {heads} heads, {ended} exchanges, {in_flight} in flight"
            );
        }
        Ok(metrics)
    })
}

/// Compares all accounts, of both sides: counts, durations, body sizes.
///
/// # Errors
/// The first difference.
pub fn check_all(agent: &Agent, server: &Server, tally: &Tally) -> Result<()> {
    check_handlers(server, tally)?;
    check_exported(agent, Side::Server(server), &tally.counts())?;
    let metrics = check_exported(agent, Side::Client(server), &tally.counts())?;
    check_durations(&metrics, server, tally)?;
    check_body_sizes(&metrics, server, tally)
}

/// Compares durations, of both sides, with the handlers' and the client's.
///
/// # Errors
/// The first that does not nest.
pub fn check_durations(metrics: &Metrics, server: &Server, tally: &Tally) -> Result<()> {
    let handlers = server.handler_tally()?;
    let server_side = Side::Server(server).sum(metrics, "request_duration_seconds_sum");
    let client_side = Side::Client(server).sum(metrics, "request_duration_seconds_sum");
    for (key, totals) in &tally.0 {
        let slack = CLOCK_SLACK.as_secs_f64() * totals.count as f64;
        let client = totals.duration.as_secs_f64();
        let handler = handlers[key].1;
        let on_server = server_side.get(key).copied().unwrap_or_default();
        let on_client = client_side.get(key).copied().unwrap_or_default();
        // Sums of floating-point numbers, hence the microsecond.
        ensure!(
            handler <= on_server + 1e-6 && on_server <= client + slack,
            "{key:?}: handlers {handler} s ≤ agent, server side {on_server} s ≤ client {client} s"
        );
        ensure!(
            on_server <= on_client + slack && on_client <= client + 1e-6,
            "{key:?}: agent, server side {on_server} s ≤ client side {on_client} s ≤ {client} s"
        );
    }
    Ok(())
}

/// Compares the sizes of bodies on the server's side with what the client sent and received.
/// (The client's metrics of them have no label for the server.)
///
/// # Errors
/// The first difference.
pub fn check_body_sizes(metrics: &Metrics, server: &Server, tally: &Tally) -> Result<()> {
    let side = Side::Server(server);
    let requests = side.sum(metrics, "request_body_size_bytes_sum");
    let responses = side.sum(metrics, "response_body_size_bytes_sum");
    for (key, totals) in &tally.0 {
        for (what, found, sent) in [
            ("request", &requests, totals.request_bytes),
            ("response", &responses, totals.response_bytes),
        ] {
            let found = found.get(key).copied().unwrap_or_default();
            ensure!(
                found == sent as f64,
                "{key:?}: {what} bodies have {found} bytes, sent {sent}"
            );
        }
    }
    Ok(())
}

/// Whether `found` has exactly the counts that were sent.
///
/// # Errors
/// Every key whose counts differ.
pub fn check_counts(
    what: &str,
    found: &BTreeMap<Key, u64>,
    sent: &BTreeMap<Key, u64>,
) -> Result<()> {
    let mut differences = String::new();
    for key in found
        .keys()
        .chain(sent.keys().filter(|key| !found.contains_key(*key)))
    {
        let (left, right) = (found.get(key), sent.get(key));
        if left != right {
            let (left, right) = (left.unwrap_or(&0), right.unwrap_or(&0));
            differences += &format!("\n  {}: {left}, sent {right}", key.join(" "));
        }
    }
    ensure!(differences.is_empty(), "{what} differs:{differences}");
    Ok(())
}
