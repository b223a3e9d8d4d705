//! Every call that moves bytes through a socket, and what becomes of descriptors: each exchange of
//! `workloads/transfers.c` is found on either side, with method, status and sizes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::accounts::EXPORT_DELAY;
use e2e::{Agent, Metrics, Split, eventually};

const BODY: f64 = 200_000.0;
/// Bytes of each side's bodies, method, path, status, and how many exchanges.
type Case = (&'static str, &'static str, &'static str, f64, [f64; 2]);

const CASES: [Case; 21] = [
    ("GET", "/messages/one", "200", 1.0, [0.0, 3.0]),
    ("POST", "/messages/two", "201", 1.0, [5.0, 4.0]),
    ("GET", "/messages/three", "404", 1.0, [0.0, 0.0]),
    ("GET", "/messages/again", "200", 6.0, [0.0, 12.0]),
    ("GET", "/discarded", "200", 1.0, [0.0, BODY]),
    ("GET", "/behind-discarded", "200", 1.0, [0.0, 2.0]),
    ("POST", "/zero-copy", "200", 1.0, [BODY, 2.0]),
    ("POST", "/splice/up", "200", 1.0, [BODY, 2.0]),
    ("GET", "/splice/down", "200", 1.0, [0.0, BODY]),
    ("GET", "/splice/tee", "200", 1.0, [0.0, BODY]),
    ("GET", "/splice/last", "200", 1.0, [0.0, BODY]),
    ("GET", "/sendfile", "200", 1.0, [0.0, BODY]),
    ("PUT", "/pieces", "202", 1.0, [4.0, 2.0]),
    ("POST", "/partial", "200", 1.0, [16_777_216.0, 2.0]),
    ("GET", "/deep", "200", 64.0, [0.0, 64.0 * 900.0]),
    ("GET", "/deep/short", "200", 64.0, [0.0, 64.0 * 900.0]),
    ("GET", "/long-head", "200", 1.0, [0.0, 2.0]),
    ("GET", "/copied", "200", 1.0, [0.0, 2.0]),
    ("GET", "/inherited", "200", 1.0, [0.0, 2.0]),
    ("GET", "/sent", "200", 1.0, [0.0, 2.0]),
    ("GET", "/reused", "200", 300.0, [0.0, 600.0]),
];

fn check_case(metrics: &Metrics, (method, route, status, count, bodies): Case) -> Result<()> {
    for (role, label) in [("server", "http_route"), ("client", "url_template")] {
        let sum = |what: &str, more: &[(&str, &str)]| {
            let labels = [&[(label, route)], more].concat();
            metrics.sum(&format!("http_{role}_{what}"), &labels)
        };
        let labels = [
            ("http_request_method", method),
            ("http_response_status_code", status),
            ("error_type", ""),
        ];
        let all = sum("request_duration_seconds_count", &[]);
        let right = sum("request_duration_seconds_count", &labels);
        ensure!(
            all == count && right == count,
            "{role}: {right} of {all} as expected, of {count}"
        );
        for (what, bytes) in [("request", bodies[0]), ("response", bodies[1])] {
            let known = sum(&format!("{what}_body_size_bytes_count"), &[]);
            let seen = sum(&format!("{what}_body_size_bytes_sum"), &[]);
            ensure!(
                known == count && seen == bytes,
                "{role}: {what} bodies of {seen} bytes, {known} times; {bytes} were sent"
            );
        }
    }
    Ok(())
}

#[test]
fn each_call_moves_the_bytes_that_it_moves() -> Result<()> {
    check_each_call("auto")
}

#[test]
fn the_walk_sees_the_same_calls() -> Result<()> {
    check_each_call("walk")
}

fn check_each_call(tap: &str) -> Result<()> {
    let program = Split::compile("transfers.c")?;
    let agent = Agent::command()?
        .config(format!(
            "targets: {{ include: [{{ executable: 'e2e-split-*' }}] }}\ntap: {tap}"
        ))
        .start()?;
    let mut program = program.spawn(Duration::ZERO)?;
    let log = program.child.folder().join("output.log");
    program.child.wait_until(Duration::from_secs(20), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("done"))
    })?;
    for case in CASES {
        eventually(EXPORT_DELAY, || check_case(&agent.metrics()?, case))
            .with_context(|| format!("{tap}: {}", case.1))?;
    }
    let metrics = eventually(EXPORT_DELAY, || {
        let metrics = agent.metrics()?;
        check_ends(&metrics).context(tap.to_owned())?;
        Ok(metrics)
    })?;
    for reason in ["read_fault", "no_syscall", "unknown_syscall"] {
        let lost = metrics.lost("tap", reason);
        ensure!(lost == 0.0, "{reason}: {lost}");
    }
    for reason in ["gap", "garbage", "head_cut", "orphan_response"] {
        let lost = metrics.lost("protocol", reason);
        ensure!(lost == 0.0, "{reason}: {lost}");
    }
    let noticed = metrics.lost("tap", "read_past");
    // Two bodies before which and one behind which something was read; only the tap of sockets is
    // passed by.
    let is_passed_by = agent.log().contains("tap=\"socket\"");
    let passed = if is_passed_by { 3.0 } else { 0.0 };
    ensure!(
        noticed == passed,
        "{noticed} of {passed} reads past the tap noticed"
    );
    Ok(())
}

/// Every request has ended, one of them when a process was killed.
fn check_ends(metrics: &Metrics) -> Result<()> {
    // A child died in the middle of its answer.
    for role in ["server", "client"] {
        let name = format!("http_{role}_request_duration_seconds_count");
        let labels = [
            ("http_response_status_code", "200"),
            ("error_type", "closed_early"),
        ];
        let killed = metrics.sum(&name, &labels);
        ensure!(killed == 1.0, "{role}: {killed} killed");
        let of_role = [("role", role)];
        let sum = |name| metrics.sum(name, &of_role);
        let heads = sum("telltale_http_request_heads_total");
        let ended = sum("telltale_http_exchanges_total");
        let in_flight = sum("telltale_http_exchanges_in_flight");
        ensure!(
            heads == ended + in_flight && in_flight == 0.0,
            "{role}: {heads} heads, {ended} exchanges, {in_flight} in flight"
        );
    }
    Ok(())
}
