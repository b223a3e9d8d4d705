//! The label `db_operation`: samples and waits of a service that asks a real cluster, each in a function
//! of its own, beside what its own clock says.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{Node, OPENSEARCH};
use e2e::requests::{Load, calls, worker};
use e2e::traces::Traces;
use e2e::{Agent, Client, Request, Server};

/// A function, and the labels `http_route` and `db_operation` of whatever it calls while a call of the
/// cluster is in flight.
type Labelled = (&'static str, [&'static str; 2]);

const ASKING: [Labelled; 2] = [
    ("ask_a", ["/a/{id}", "search"]),
    ("ask_b", ["/b/{id}", "count"]),
];

const SPENDING: [Labelled; 4] = [
    ("spend_a", ["/a/{id}", ""]),
    ("spend_b", ["/b/{id}", ""]),
    ("spend_in_flight", ["/c/{id}", "search"]),
    ("spend_after", ["/c/{id}", ""]),
];

/// Shorter waits of the service are left out, by a profile that is told so.
const LEAST_WAIT_US: u64 = 20;

/// What is counted of a function, by its labels.
fn counts_of<'a>(traces: &'a Traces, function: &str) -> BTreeMap<[&'a str; 2], u64> {
    let mut counts = BTreeMap::new();
    for trace in traces.traces.iter().filter(|trace| calls(trace, function)) {
        *counts
            .entry([&*trace.route, &*trace.operation])
            .or_default() += trace.count;
    }
    println!("{function}: {counts:?}");
    counts
}

fn get(server: &Server, path: &str) -> Result<String> {
    let request = Request::new("GET", path).header("Connection: close");
    let response = Client::once(server.address, &request)?;
    ensure!(response.status == 200, "{}", response.text());
    Ok(response.text())
}

/// Nanoseconds that a function of the service has waited for the cluster, by its own clock.
fn told(server: &Server, function: &str) -> Result<u64> {
    let told: serde_json::Value = serde_json::from_str(&get(server, "/told")?)?;
    Ok(told[function].as_u64().unwrap_or(0))
}

#[test]
fn samples_and_waits_carry_the_operation_in_flight() -> Result<()> {
    let node = Node::start(&OPENSEARCH)?;
    let agent = Agent::for_profiles()?;
    let server = Server::gunicorn_search_requests(node.address, 3)?;
    // What the service loads late is loaded by then.
    for path in ["/a/1", "/b/1", "/c/1"] {
        get(&server, path)?;
    }
    check_samples(&agent, &server)?;
    check_waits(&agent, &server)
}

fn check_samples(agent: &Agent, server: &Server) -> Result<()> {
    let pid = worker(server)?;
    let load = Load {
        paths: &["/a", "/b", "/c"],
        connections: 2,
        closing: true,
    };
    let samples = load.during(server, || {
        Traces::of(agent, &format!("pid={pid}&seconds=2&hz=499"))
    })?;
    for (function, expected) in SPENDING {
        let counts = counts_of(&samples, function);
        let total: u64 = counts.values().sum();
        let right = counts.get(&expected).copied().unwrap_or(0);
        let none = counts.get(&["", ""]).copied().unwrap_or(0);
        ensure!(
            right >= 50 && right + none == total,
            "{function}: {counts:?}"
        );
        ensure!(right as f64 >= 0.9 * total as f64, "{function}: {counts:?}");
    }
    Ok(())
}

/// Requests that come one after the other while all waits are measured.
fn check_waits(agent: &Agent, server: &Server) -> Result<()> {
    let pid = worker(server)?;
    let query = format!("pid={pid}&seconds=3&type=off_cpu&min_us={LEAST_WAIT_US}");
    let mut before_ns = BTreeMap::new();
    for (function, _) in ASKING {
        before_ns.insert(function, told(server, function)?);
    }
    let waits = std::thread::scope(|scope| {
        let profile = scope.spawn(|| Traces::of(agent, &query));
        std::thread::sleep(Duration::from_millis(500));
        for number in 0..60 {
            for path in ["/a", "/b"] {
                get(server, &format!("{path}/{number}"))?;
            }
        }
        profile.join().expect("no panic")
    })?;
    for (function, expected) in ASKING {
        let counts = counts_of(&waits, function);
        let known = |labels: &&[&str; 2]| **labels == expected || **labels == [expected[0], ""];
        ensure!(
            counts.keys().all(|labels| known(&labels)),
            "{function}: {counts:?}"
        );
        let right_ns = counts.get(&expected).copied().unwrap_or(0) as f64;
        let told_ns = (told(server, function)? - before_ns[function]) as f64;
        println!("{function}: {right_ns} of {told_ns} ns");
        ensure!(
            right_ns <= 1.02 * told_ns && right_ns >= 0.8 * told_ns,
            "{function}: {right_ns} ns of waits, {told_ns} by its own clock"
        );
    }
    // What is told of no function that asks is told of no operation.
    let elsewhere = waits.count(|trace| {
        !trace.operation.is_empty() && !ASKING.iter().any(|(name, _)| calls(trace, name))
    });
    ensure!(elsewhere == 0.0, "{elsewhere} ns elsewhere");
    let of_search = query.replace("seconds=3", "seconds=1") + "&operation=search";
    let of_search = std::thread::scope(|scope| {
        let profile = scope.spawn(|| Traces::of(agent, &of_search));
        std::thread::sleep(Duration::from_millis(300));
        for path in ["/a/1", "/b/1", "/a/2"] {
            get(server, path)?;
        }
        profile.join().expect("no panic")
    })?;
    ensure!(of_search.count(|trace| calls(trace, "ask_a")) > 0.0);
    ensure!(of_search.count(|trace| trace.operation != "search") == 0.0);
    Ok(())
}
