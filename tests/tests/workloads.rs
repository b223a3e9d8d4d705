//! The workloads themselves, without an agent: what the servers log is what the client sent, or no
//! other suite proves anything.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::accounts::{application_plan, check_handlers};

use e2e::otlp::Collector;
use e2e::{Client, Load, NginxOptions, Request, Server, Tally};

fn check(server: &Server) -> Result<()> {
    let tally = load(server)?;
    check_handlers(server, &tally)
}

fn load(server: &Server) -> Result<Tally> {
    let plan = application_plan();
    let load = Load {
        address: server.address,
        connections: 3,
        rounds: 4,
        plan,
    };
    let tally = load.run()?;
    ensure!(tally.total() == 3 * 4 * load.plan.len() as u64);
    Ok(tally)
}

#[test]
fn uvicorn_logs_what_was_sent() -> Result<()> {
    check(&Server::uvicorn()?)
}

#[test]
fn gunicorn_logs_what_was_sent() -> Result<()> {
    let server = Server::gunicorn()?;
    check(&server)?;
    let mut pids: Vec<u32> = server
        .handler_lines()?
        .iter()
        .map(|line| line.pid)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    ensure!(
        !pids.contains(&server.pid()),
        "the workers answer, not the arbiter"
    );
    Ok(())
}

#[test]
fn express_logs_what_was_sent() -> Result<()> {
    check(&Server::express()?)
}

#[test]
fn axum_logs_what_was_sent() -> Result<()> {
    check(&Server::axum(env!("CARGO_BIN_EXE_axum_server"))?)
}

#[test]
fn nginx_passes_on_to_a_unix_socket() -> Result<()> {
    let (nginx, gunicorn) = Server::gunicorn_behind_nginx()?;
    let tally = load(&nginx)?;
    check_handlers(&gunicorn, &tally)?;
    // nginx writes its log after the last byte.
    e2e::eventually(Duration::from_secs(2), || {
        let lines = nginx.handler_lines()?.len() as u64;
        ensure!(lines == tally.total(), "{lines} lines of {}", tally.total());
        Ok(())
    })
}

#[test]
fn nginx_serves_files_and_returns() -> Result<()> {
    let nginx = Server::nginx(NginxOptions::default())?;
    std::fs::write(nginx.folder().join("files/hello.txt"), "hello\n")?;
    let mut client = Client::connect(nginx.address)?;
    for (method, path, status, body) in [
        ("GET", "/files/hello.txt", 200, "hello\n"),
        ("HEAD", "/files/hello.txt", 200, ""),
        ("GET", "/return", 200, "returned\n"),
        ("GET", "/empty", 204, ""),
        ("GET", "/teapot", 418, "short and stout\n"),
    ] {
        let response = client.send(&Request::new(method, path))?;
        assert_eq!(
            (response.status, response.text().as_str()),
            (status, body),
            "{method} {path}"
        );
    }
    Ok(())
}

#[test]
fn the_collector_passes_spans_on() -> Result<()> {
    let collector = Collector::start()?;
    let body = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name",
        "value":{"stringValue":"by hand"}}]},"scopeSpans":[{"spans":[{
        "traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"GET /x",
        "kind":2,"startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000",
        "attributes":[{"key":"http.response.status_code","value":{"intValue":"200"}}]}]}]}]}"#;
    let request = Request::new("POST", "/v1/traces")
        .header("Content-Type: application/json")
        .body(body);
    let answer = Client::once(collector.http_address(), &request)?;
    ensure!(answer.status == 200, "{}", answer.text());
    let spans = e2e::eventually(Duration::from_secs(5), || {
        let spans = collector.spans()?;
        ensure!(!spans.is_empty());
        Ok(spans)
    })?;
    assert_eq!(spans.len(), 1);
    assert_eq!(spans[0].name, "GET /x");
    assert_eq!(spans[0].service(), "by hand");
    assert_eq!(spans[0].attribute("http.response.status_code"), "200");
    assert_eq!(spans[0].end_unix_ns - spans[0].start_unix_ns, 1_000_000_000);
    Ok(())
}
