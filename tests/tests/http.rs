//! Counts, sizes and durations of real servers and clients: three accounts that have to agree.

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::accounts::{
    EXPORT_DELAY, Side, application_plan, check_all, check_body_sizes, check_exported,
    check_handlers, key,
};
use e2e::{Agent, Client, Key, Load, NginxOptions, Request, Server, Tally, prerequisite};

const AXUM: &str = env!("CARGO_BIN_EXE_axum_server");

/// Loads a server over several connections and compares all accounts.
fn compare(agent: &Agent, server: &Server) -> Result<()> {
    let plan = application_plan();
    let load = Load {
        address: server.address,
        connections: 3,
        rounds: 10,
        plan,
    };
    let tally = load.run()?;
    ensure!(tally.total() == 3 * 10 * load.plan.len() as u64);
    check_all(agent, server, &tally)
}

/// Sends requests one after the other on a connection and tallies them.
fn send_all(client: &mut Client, requests: &[(Request, &str)]) -> Result<Tally> {
    let mut tally = Tally::default();
    for (request, route) in requests {
        tally.add(request, route, &client.send(request)?);
    }
    Ok(tally)
}

#[test]
fn uvicorn_started_after_the_agent() -> Result<()> {
    let agent = Agent::start()?;
    compare(&agent, &Server::uvicorn()?)
}

#[test]
fn gunicorn_started_after_the_agent() -> Result<()> {
    let agent = Agent::start()?;
    compare(&agent, &Server::gunicorn()?)
}

#[test]
fn express_started_after_the_agent() -> Result<()> {
    let agent = Agent::start()?;
    compare(&agent, &Server::express()?)
}

#[test]
fn axum_started_after_the_agent() -> Result<()> {
    let agent = Agent::start()?;
    compare(&agent, &Server::axum(AXUM)?)
}

/// The tap for kernels before 6.3.
#[test]
fn the_walk_from_descriptor_to_socket_sees_the_same() -> Result<()> {
    let agent = Agent::command()?.config("tap: walk\n").start()?;
    compare(&agent, &Server::axum(AXUM)?)?;
    compare(&agent, &Server::uvicorn()?)
}

#[test]
fn keep_alive_connections_from_before_the_agent_are_seen() -> Result<()> {
    for start in [Server::uvicorn, Server::gunicorn, Server::express, || {
        Server::axum(AXUM)
    }] {
        let server = start()?;
        let mut old = Client::connect(server.address)?;
        // These two are before the agent: nobody can count them.
        let before = send_all(&mut old, &application_plan())?;
        let agent = Agent::start()?;
        let mut tally = Tally::default();
        for _ in 0..5 {
            tally.merge(send_all(&mut old, &application_plan())?);
        }
        let mut young = Client::connect(server.address)?;
        tally.merge(send_all(&mut young, &application_plan())?);
        check_exported(&agent, Side::Server(&server), &tally.counts())?;
        check_exported(&agent, Side::Client(&server), &tally.counts())?;
        tally.merge(before);
        check_handlers(&server, &tally)?;
    }
    Ok(())
}

/// Its head passed before the agent was there, its answer after: neither counts, and the next
/// request on that connection counts once.
#[test]
fn a_request_in_flight_at_the_start_confuses_nothing() -> Result<()> {
    let server = Server::express()?;
    let mut client = Client::connect(server.address)?;
    client.write(&Request::new("GET", "/sleep/4000").head())?;
    let agent = Agent::start()?;
    let readied = Instant::now();
    client.read_response("GET")?;
    ensure!(
        readied.elapsed() > Duration::from_millis(200),
        "the agent took too long to start"
    );
    let tally = send_all(&mut client, &application_plan())?;
    check_exported(&agent, Side::Server(&server), &tally.counts())?;
    check_exported(&agent, Side::Client(&server), &tally.counts())?;
    Ok(())
}

#[test]
fn nginx_and_gunicorn_on_a_unix_socket_are_both_seen() -> Result<()> {
    let agent = Agent::start()?;
    let (nginx, gunicorn) = Server::gunicorn_behind_nginx()?;
    let load = Load {
        address: nginx.address,
        connections: 3,
        rounds: 10,
        plan: application_plan(),
    };
    let tally = load.run()?;
    check_handlers(&gunicorn, &tally)?;
    check_exported(&agent, Side::Server(&gunicorn), &tally.counts())?;
    check_exported(&agent, Side::Server(&nginx), &tally.counts())?;
    check_exported(&agent, Side::Client(&nginx), &tally.counts())?;
    // nginx is a client too, of the Unix socket.
    e2e::eventually(EXPORT_DELAY, || {
        let upstream = agent.metrics()?.sum(
            "http_client_request_duration_seconds_count",
            &[("service_name", &nginx.service)],
        );
        let all = tally.total() as f64;
        ensure!(
            upstream == all,
            "{upstream} of {all} requests from nginx to gunicorn"
        );
        Ok(())
    })
}

#[test]
fn nginx_serves_files_returns_and_empty_answers() -> Result<()> {
    let agent = Agent::start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    std::fs::write(
        nginx.folder().join("files/hello.txt"),
        "hello\n".repeat(2000),
    )?;
    let fresh = Client::once(nginx.address, &Request::new("GET", "/files/hello.txt"))?;
    let etag = fresh
        .header("etag")
        .context("nginx sends an ETag")?
        .to_owned();
    let plan = vec![
        (Request::new("GET", "/files/hello.txt"), "/files/hello.txt"),
        (Request::new("HEAD", "/files/hello.txt"), "/files/hello.txt"),
        (
            Request::new("GET", "/files/hello.txt").header(format!("If-None-Match: {etag}")),
            "/files/hello.txt",
        ),
        (Request::new("GET", "/return?token=1"), "/return"),
        (Request::new("GET", "/empty"), "/empty"),
        (Request::new("GET", "/teapot"), "/teapot"),
        (Request::new("GET", "/broken"), "/broken"),
        (Request::new("GET", "/moved"), "/moved"),
        (Request::new("GET", "/files/none"), "/files/none"),
        (
            Request::new("DELETE", "/files/hello.txt"),
            "/files/hello.txt",
        ),
    ];
    let load = Load {
        address: nginx.address,
        connections: 4,
        rounds: 25,
        plan,
    };
    let mut tally = load.run()?;
    tally.add(
        &Request::new("GET", "/files/hello.txt"),
        "/files/hello.txt",
        &fresh,
    );
    check_exported(&agent, Side::Server(&nginx), &tally.counts())?;
    let metrics = check_exported(&agent, Side::Client(&nginx), &tally.counts())?;
    check_body_sizes(&metrics, &nginx, &tally)
}

#[test]
fn wrk_and_the_agent_count_the_same() -> Result<()> {
    // Room for a machine that is busy with other things: this test is about counting, not about
    // the share of the CPU that the agent gets (`cargo xtask bench` is about that).
    let agent = Agent::command()?
        .config("capture:\n  ring_bytes: 64MiB\n")
        .start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    let url = format!("http://{}/return", nginx.address);
    let output = Command::new(prerequisite::on_path("wrk")?)
        .args(["-t2", "-c16", "-d3s", &url])
        .output()?;
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!report.contains("Socket errors"), "{report}");
    // nginx's own count; wrk's leaves out what was in flight when it ended.
    let served = e2e::eventually(Duration::from_secs(5), || {
        let served = nginx.handler_lines()?.len();
        thread::sleep(Duration::from_millis(200));
        ensure!(
            served == nginx.handler_lines()?.len(),
            "nginx still writes its log"
        );
        Ok(served as u64)
    })?;
    let wrk: u64 = report
        .lines()
        .find_map(|line| line.trim().split_once(" requests in"))
        .context("wrk counts")?
        .0
        .parse()?;
    ensure!(
        served >= wrk && served <= wrk + 16,
        "nginx served {served}, wrk counts {wrk}"
    );
    e2e::eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics()?;
        let seen = Side::Server(&nginx).sum(&metrics, "request_duration_seconds_count");
        let seen: u64 = seen.values().map(|count| *count as u64).sum();
        ensure!(seen == served, "the agent has {seen}, nginx {served}");
        let lost = metrics.sum("telltale_losses_total", &[("reason", "ring_full")]);
        ensure!(lost == 0.0, "{lost} events did not fit into the rings");
        Ok(())
    })
}

#[test]
fn python_clients_are_counted_by_their_own_name() -> Result<()> {
    let agent = Agent::start()?;
    let server = Server::uvicorn()?;
    for library in ["httpx", "requests"] {
        let service = format!("e2e-{library}-{}", server.address.port());
        let output = Command::new(prerequisite::python("python")?)
            .arg(prerequisite::workload("client.py"))
            .args([library, &format!("http://{}", server.address), "12"])
            .env("OTEL_SERVICE_NAME", &service)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let mut counts = BTreeMap::new();
        let mut seconds = BTreeMap::new();
        for row in rows.as_array().context("rows")? {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let key = [text("method"), text("route"), row["status"].to_string()];
            counts.insert(key.clone(), row["count"].as_f64().context("count")?);
            seconds.insert(key, row["seconds"].as_f64().context("seconds")?);
        }
        let by = [
            "http_request_method",
            "url_template",
            "http_response_status_code",
        ];
        let sum = |part: &str| -> Result<BTreeMap<Key, f64>> {
            let name = format!("http_client_request_duration_seconds_{part}");
            Ok(agent
                .metrics()?
                .sum_by(&name, &[("service_name", &service)], by))
        };
        e2e::eventually(Duration::from_secs(5), || {
            let seen = sum("count")?;
            ensure!(
                seen == counts,
                "{library}: agent {seen:#?}, itself {counts:#?}"
            );
            Ok(())
        })?;
        // The library's own time has its work around the socket in it, so it is an upper bound.
        for (key, agent_seconds) in sum("sum")? {
            let own = seconds[&key];
            ensure!(
                agent_seconds <= own,
                "{library} {key:?}: {agent_seconds} s, itself {own} s"
            );
        }
    }
    Ok(())
}

#[test]
fn curl_that_lives_for_one_request_is_counted() -> Result<()> {
    let agent = Agent::start()?;
    let server = Server::nginx(NginxOptions::default())?;
    let service = format!("e2e-curl-{}", server.address.port());
    for _ in 0..20 {
        let status = Command::new(prerequisite::on_path("curl")?)
            .args(["--silent", "--noproxy", "*", "--output", "/dev/null"])
            .arg(format!("http://{}/return", server.address))
            .env("OTEL_SERVICE_NAME", &service)
            .status()?;
        ensure!(status.success(), "curl: {status}");
    }
    let counts = BTreeMap::from([(key("GET", "/return", "200"), 20)]);
    check_exported(&agent, Side::Server(&server), &counts)?;
    let metrics = check_exported(&agent, Side::Client(&server), &counts)?;
    // Who lives for less than the agent's poll (20 ms) has no environment left to read, and is
    // named by what it executed.
    let named = |service: &str| {
        metrics.sum(
            "http_client_request_duration_seconds_count",
            &[
                ("server_port", &server.address.port().to_string()),
                ("service_name", service),
            ],
        )
    };
    assert_eq!(named(&service) + named("curl"), 20.0);
    Ok(())
}

#[test]
fn requests_under_way_are_a_gauge() -> Result<()> {
    let agent = Agent::start()?;
    let server = Server::express()?;
    let labels = [
        ("service_name", server.service.as_str()),
        ("http_request_method", "GET"),
    ];
    let await_active = |expected: f64| {
        e2e::eventually(EXPORT_DELAY, || {
            let active = agent.metrics()?.sum("http_server_active_requests", &labels);
            ensure!(
                active == expected,
                "{active} active requests instead of {expected}"
            );
            Ok(())
        })
    };
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(server.address)?;
        client.write(&Request::new("GET", "/sleep/3000").head())?;
        clients.push(client);
    }
    await_active(3.0)?;
    for client in &mut clients {
        ensure!(client.read_response("GET")?.status == 200);
    }
    await_active(0.0)
}

/// More paths than routes may be: none goes uncounted, and of the paths that come again, at most
/// 200 routes and the overflow have their requests.
#[test]
fn routes_are_bounded_and_nothing_goes_uncounted() -> Result<()> {
    const WORDS: [&str; 20] = [
        "apple", "bread", "cheese", "dough", "egg", "fig", "grape", "honey", "ice", "jam", "kale",
        "lemon", "melon", "nut", "olive", "peach", "quince", "rice", "sugar", "tea",
    ];
    let agent = Agent::start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    let mut client = Client::connect(nginx.address)?;
    let mut before = BTreeMap::new();
    for round in 1..=2 {
        for first in WORDS {
            for second in WORDS {
                client.send(&Request::new("GET", format!("/{first}/{second}")))?;
            }
        }
        let counts = e2e::eventually(EXPORT_DELAY, || {
            let metrics = agent.metrics()?;
            let counts = Side::Server(&nginx).sum(&metrics, "request_duration_seconds_count");
            let all: f64 = counts.values().sum();
            ensure!(all == f64::from(round * 400), "{all} of {}", round * 400);
            Ok(counts)
        })?;
        let grown = counts
            .iter()
            .filter(|(key, count)| before.get(*key) != Some(*count))
            .count();
        // What was exported in the first round stays, though routes were merged since.
        ensure!(
            round == 1 || (2..=201).contains(&grown),
            "{grown} routes in use"
        );
        before = counts;
    }
    Ok(())
}
