//! What people read: a real Prometheus that scrapes and answers, a real OpenTelemetry Collector
//! that gets the spans.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::accounts::{EXPORT_DELAY, Side, application_plan, check_exported};
use e2e::otlp::{Collector, Span};
use e2e::script::{converse, listen};
use e2e::{
    Agent, AgentCommand, Child, Client, Load, Request, Server, Split, free_port, prerequisite,
};

/// Spans of these alone: what else runs on the machine must not fill the exporter's queue.
const TARGETS: &str = "targets:
  include:
  - service: 'e2e-*'
  - executable: 'monitoring-*'
  - executable: 'python*'
";

const SERVER: u64 = 2;
const CLIENT: u64 = 3;
const ERROR: u64 = 2;

/// A real Prometheus that scrapes one agent each second.
struct Prometheus {
    address: SocketAddr,
    _child: Child,
}

impl Prometheus {
    fn start(agent: &Agent) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("prometheus.yml");
        std::fs::write(
            &config,
            format!(
                "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\n\
                 scrape_configs:\n\
                 - job_name: telltale\n  static_configs: [{{ targets: ['{}'] }}]\n",
                agent.address()
            ),
        )?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new(prerequisite::on_path("prometheus")?);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"));
        let mut child = Child::spawn("prometheus", command, folder)?;
        child.wait_for_port(address, Duration::from_secs(20))?;
        Ok(Self {
            address,
            _child: child,
        })
    }

    /// The value of an instant query that gives one series.
    fn query(&self, query: &str) -> Result<f64> {
        let body = format!("query={}", percent_encoded(query));
        let request = Request::new("POST", "/api/v1/query")
            .header("Content-Type: application/x-www-form-urlencoded")
            .body(body);
        let answer: serde_json::Value =
            serde_json::from_slice(&Client::once(self.address, &request)?.body)?;
        let result = answer["data"]["result"]
            .as_array()
            .with_context(|| answer.to_string())?;
        ensure!(result.len() == 1, "{query} gives {} series", result.len());
        Ok(result[0]["value"][1].as_str().context("a value")?.parse()?)
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| {
        if byte.is_ascii_alphanumeric() {
            encoded + &char::from(byte).to_string()
        } else {
            encoded + &format!("%{byte:02X}")
        }
    })
}

#[test]
fn prometheus_scrapes_and_answers() -> Result<()> {
    let agent = Agent::start()?;
    let prometheus = Prometheus::start(&agent)?;
    let server = Server::uvicorn()?;
    let service = &server.service;
    let plan = vec![(Request::new("GET", "/sleep/30"), "/sleep/{id}")];
    let load = Load {
        address: server.address,
        connections: 2,
        rounds: 5,
        plan,
    };
    // `rate` needs a series before its first increase.
    let mut tally = load.run()?;
    let count = format!(
        "sum(http_server_request_duration_seconds_count{{service_name=\"{service}\",\
         http_route=\"/sleep/{{id}}\"}})"
    );
    e2e::eventually(Duration::from_secs(15), || {
        let seen = prometheus.query(&count)?;
        ensure!(seen == 10.0, "Prometheus has {seen} of 10");
        Ok(())
    })?;
    tally.merge(Load { rounds: 50, ..load }.run()?);
    e2e::eventually(Duration::from_secs(15), || {
        let seen = prometheus.query(&count)?;
        ensure!(
            seen == tally.total() as f64,
            "Prometheus has {seen} of {}",
            tally.total()
        );
        let up = prometheus.query("up{job=\"telltale\"}")?;
        ensure!(up == 1.0, "up is {up}");
        // The handler sleeps 30 ms: the median lies in the bucket from 25 ms to 50 ms.
        let median = prometheus.query(&format!(
            "histogram_quantile(0.5, sum by (le) (rate(\
             http_server_request_duration_seconds_bucket{{service_name=\"{service}\"}}[1m])))"
        ))?;
        ensure!((0.025..=0.05).contains(&median), "the median is {median} s");
        Ok(())
    })
}

#[test]
fn promtool_finds_nothing_to_mend() -> Result<()> {
    let agent = Agent::start()?;
    let server = Server::express()?;
    let load = Load {
        address: server.address,
        connections: 2,
        rounds: 2,
        plan: application_plan(),
    };
    let tally = load.run()?;
    let metrics = check_exported(&agent, Side::Server(&server), &tally.counts())?;
    let alias = agent.get("/metrics/prometheus")?;
    ensure!(
        alias
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4"))
    );
    ensure!(
        alias
            .text()
            .contains("http_server_request_duration_seconds_bucket")
    );
    let mut promtool = Command::new(prerequisite::on_path("promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool
        .stdin
        .take()
        .context("piped")?
        .write_all(metrics.text.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.trim().is_empty(),
        "promtool: {said}"
    );
    Ok(())
}

fn unix_ns() -> Result<u64> {
    Ok(u64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos(),
    )?)
}

/// The spans of a server, by role, once there are `count` of each.
fn await_spans(collector: &Collector, server: &Server, count: usize) -> Result<[Vec<Span>; 2]> {
    let port = server.address.port().to_string();
    e2e::eventually(EXPORT_DELAY, || {
        let spans = collector.spans()?;
        let of_kind = |kind| {
            let chosen = spans
                .iter()
                .filter(|span| span.kind == kind && span.attribute("server.port") == port);
            chosen.cloned().collect::<Vec<_>>()
        };
        let both = [of_kind(SERVER), of_kind(CLIENT)];
        let found = both.each_ref().map(Vec::len);
        ensure!(
            found == [count; 2],
            "{found:?} server and client spans of {count} each"
        );
        Ok(both)
    })
}

fn check_spans(command: AgentCommand, collector: &Collector) -> Result<()> {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";
    let agent = command.config(TARGETS).start()?;
    let server = Server::uvicorn()?;
    let mut client = Client::connect(server.address)?;
    let start = unix_ns()?;
    for request in [
        Request::new("GET", "/items/7?limit=3")
            .header(format!("traceparent: 00-{TRACE}-{PARENT}-01"))
            .header("X-Request-ID: request-1")
            .header("X-Correlation-ID: correlation-1"),
        Request::new("GET", "/sleep/50"),
        Request::new("GET", "/fail"),
        Request::new("GET", "/nowhere"),
        Request::new("POST", "/items").body("body".repeat(10)),
    ] {
        client.send(&request)?;
    }
    let end = unix_ns()?;
    for (spans, kind) in await_spans(collector, &server, 5)?
        .iter()
        .zip([SERVER, CLIENT])
    {
        let named = |name: &str| {
            spans
                .iter()
                .find(|span| span.name == name)
                .with_context(|| {
                    let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
                    format!("no span `{name}` among {names:?}")
                })
        };
        for span in spans {
            // Clocks are read twice to convert between them: a millisecond is ample for that.
            ensure!(
                start <= span.start_unix_ns + 1_000_000
                    && span.start_unix_ns < span.end_unix_ns
                    && span.end_unix_ns <= end + 1_000_000,
                "{} lasts from {} to {}, the client from {start} to {end}",
                span.name,
                span.start_unix_ns,
                span.end_unix_ns
            );
            let (_, first_byte) = span
                .events
                .iter()
                .find(|(name, _)| name == "response.first_byte")
                .with_context(|| format!("{:?} has no response.first_byte", span.events))?;
            ensure!((span.start_unix_ns..=span.end_unix_ns).contains(first_byte));
            for (key, value) in [
                ("url.scheme", "http"),
                // The client says so in `Host`, and nothing is nearer to what was meant.
                ("server.address", "localhost"),
                ("network.protocol.version", "1.1"),
            ] {
                ensure!(
                    span.attribute(key) == value,
                    "{key} is `{}`",
                    span.attribute(key)
                );
            }
            for key in [
                "service.name",
                "process.pid",
                "process.executable.name",
                "host.name",
            ] {
                ensure!(
                    span.resource.contains_key(key),
                    "{key} is not in {:?}",
                    span.resource
                );
            }
        }
        let route = if kind == SERVER {
            "http.route"
        } else {
            "url.template"
        };
        let traced = named("GET /items/{id}")?;
        for (key, value) in [
            (route, "/items/{id}"),
            ("http.request.method", "GET"),
            ("url.path", "/items/7"),
            ("http.response.status_code", "200"),
            ("http.request.header.x_request_id", "request-1"),
            ("http.request.header.x_correlation_id", "correlation-1"),
        ] {
            ensure!(
                traced.attribute(key) == value,
                "{key} is `{}`",
                traced.attribute(key)
            );
        }
        ensure!(traced.trace_id == TRACE, "{}", traced.trace_id);
        ensure!(
            traced.parent_span_id == PARENT,
            "`{}`",
            traced.parent_span_id
        );
        let slept = named("GET /sleep/{id}")?;
        ensure!(slept.end_unix_ns - slept.start_unix_ns >= 50_000_000);
        ensure!(
            slept.parent_span_id.is_empty(),
            "a parent from nowhere: {slept:?}"
        );
        ensure!(slept.trace_id.len() == 32 && slept.trace_id != TRACE);
        let failed = named("GET /fail")?;
        ensure!(failed.status_code == ERROR && failed.attribute("error.type") == "500");
        let missing = named("GET /nowhere")?;
        // A client that gets 404 has failed; a server that answers it has not.
        ensure!(
            (missing.status_code == ERROR) == (kind == CLIENT),
            "{missing:?}"
        );
        let posted = named("POST /items")?;
        ensure!(
            posted.attribute("http.request.body.size") == "40",
            "{posted:?}"
        );
        if kind == SERVER {
            ensure!(traced.service() == server.service, "{}", traced.service());
            let pid = server.pid().to_string();
            ensure!(
                traced.resource["process.pid"] == pid,
                "{:?}",
                traced.resource
            );
            ensure!(traced.attribute("client.address") == "127.0.0.1");
        }
    }
    // What is still queued at the end is sent before it.
    for _ in 0..200 {
        client.send(&Request::new("GET", "/items/1"))?;
    }
    agent.stop()?;
    let [server_spans, client_spans] = await_spans(collector, &server, 205)?;
    let ids: BTreeSet<_> = server_spans
        .iter()
        .chain(&client_spans)
        .map(|span| &span.span_id)
        .collect();
    ensure!(ids.len() == 410, "{} different span ids of 410", ids.len());
    Ok(())
}

#[test]
fn the_collector_gets_spans_over_grpc() -> Result<()> {
    let collector = Collector::start()?;
    let command = Agent::command()?
        .arg("--otlp-endpoint")
        .arg(collector.grpc_endpoint());
    check_spans(command, &collector)
}

#[test]
fn the_collector_gets_spans_over_http() -> Result<()> {
    let collector = Collector::start()?;
    let command = Agent::command()?
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http_endpoint())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    check_spans(command, &collector)
}

/// The Collector comes up after the agent, as in any restart of a node.
#[test]
fn a_collector_that_comes_later_gets_the_spans() -> Result<()> {
    let (grpc_port, http_port) = (free_port()?, free_port()?);
    let agent = Agent::command()?
        .config(TARGETS)
        .arg("--otlp-endpoint")
        .arg(format!("http://127.0.0.1:{grpc_port}"))
        .start()?;
    let server = Server::express()?;
    let health = |status: &str| -> Result<()> {
        let health: serde_json::Value =
            serde_json::from_slice(&agent.get("/health/detailed")?.body)?;
        let otlp = &health["subsystems"]["otlp"]["status"];
        ensure!(otlp == status, "otlp is {otlp} instead of {status}");
        Ok(())
    };
    Client::once(server.address, &Request::new("GET", "/items/1"))?;
    e2e::eventually(Duration::from_secs(30), || health("degraded"))?;
    let collector = Collector::start_on(grpc_port, http_port)?;
    e2e::eventually(Duration::from_secs(45), || {
        Client::once(server.address, &Request::new("GET", "/items/2"))?;
        let spans = collector.spans()?;
        let arrived = spans.iter().any(|span| span.service() == server.service);
        ensure!(arrived, "no span of {}", server.service);
        health("healthy")
    })
}

/// Secrets in every place of a request and an answer where people put them: nothing that the agent
/// shows has any of them.
#[test]
fn secrets_stay_where_they_are() -> Result<()> {
    const SECRET: &str = "hunter2swordfish";
    let collector = Collector::start()?;
    let agent = Agent::command()?
        .config(TARGETS)
        .arg("--otlp-endpoint")
        .arg(collector.grpc_endpoint())
        .arg("--log-level")
        .arg("trace")
        .start()?;
    let server = Server::express()?;
    let mut client = Client::connect(server.address)?;
    let requests = [
        Request::new("GET", format!("/items/7?token={SECRET}&limit=1")),
        Request::new("GET", format!("/items/7?limit={SECRET}")),
        Request::new("GET", format!("/items/7#{SECRET}")),
        Request::new("GET", "/items/7").header(format!("Cookie: session={SECRET}")),
        Request::new("GET", "/items/7").header(format!("Authorization: Bearer {SECRET}")),
        Request::new("GET", "/items/7").header(format!("X-Api-Key: {SECRET}")),
        Request::new("GET", "/items/7").header(format!("Referer: http://a/?q={SECRET}")),
        Request::new("POST", "/items")
            .header("Content-Type: application/json")
            .body(format!("{{\"password\":\"{SECRET}\"}}")),
        // Answered with an error, broken off, and not parsed.
        Request::new("GET", format!("/nowhere?token={SECRET}")),
    ];
    for request in &requests {
        client.send(request)?;
    }
    let mut absolute = Client::connect(server.address)?;
    absolute.send(&Request::new(
        "GET",
        format!("http://user:{SECRET}@localhost/items/7"),
    ))?;
    let mut left = Client::connect(server.address)?;
    left.write(&Request::new("GET", format!("/sleep/500?token={SECRET}")).head())?;
    std::thread::sleep(Duration::from_millis(100));
    drop(left);
    let mut broken = Client::connect(server.address)?;
    broken.write(format!("GET /?{SECRET} HTTP/1.1\r\nBad Header {SECRET}\r\n\r\n").as_bytes())?;
    let _ = broken.read_response("GET");
    // What a server says in an answer, and what is said behind a head.
    let (listener, address) = listen()?;
    let chunked = format!(
        "POST /answered?{SECRET} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
         1;{SECRET}\r\nx\r\n0\r\nX-Trailer: {SECRET}\r\n\r\n"
    );
    let answer = format!(
        "HTTP/1.1 302 {SECRET}\r\nSet-Cookie: session={SECRET}\r\nLocation: /?token={SECRET}\r\n\
         WWW-Authenticate: Basic realm={SECRET}\r\nContent-Length: {}\r\n\r\n{SECRET}",
        SECRET.len()
    );
    converse(
        listener,
        |mut stream| {
            stream.read_exact(&mut vec![0; chunked.len()])?;
            stream.write_all(answer.as_bytes())?;
            Ok(())
        },
        || {
            let mut client = Client::connect(address)?;
            client.write(chunked.as_bytes())?;
            ensure!(client.read_response("POST")?.status == 302);
            let mut tunnel = Client::connect(server.address)?;
            tunnel
                .write(format!("CONNECT user:{SECRET}@localhost:1 HTTP/1.1\r\n\r\n").as_bytes())?;
            let _ = tunnel.read_response("CONNECT");
            Ok(())
        },
    )?;
    // And where a process has them: its arguments and its environment.
    let port = free_port()?;
    let mut python = Command::new(prerequisite::python("python")?);
    python
        .args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"])
        .arg(format!("/tmp/{SECRET}"))
        .arg(port.to_string())
        .env("DATABASE_PASSWORD", SECRET);
    let mut python = Child::spawn("http.server", python, tempfile::tempdir()?)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    python.wait_for_port(address, Duration::from_secs(10))?;
    Client::once(address, &Request::new("GET", "/in-arguments"))?;
    e2e::eventually(EXPORT_DELAY, || {
        let spans = collector.spans()?;
        let found = spans
            .iter()
            .filter(|span| span.service() == server.service)
            .count();
        ensure!(
            found >= requests.len(),
            "{found} spans of {}",
            requests.len()
        );
        for path in ["/in-arguments", "/answered"] {
            let any = spans.iter().any(|span| span.attribute("url.path") == path);
            ensure!(any, "no span of {path}");
        }
        Ok(())
    })?;
    let mut shown = vec![("the spans".to_owned(), collector.raw().concat())];
    for path in ["/metrics", "/", "/targets", "/health/detailed"] {
        shown.push((path.to_owned(), agent.get(path)?.text()));
    }
    // Where nothing runs, there is nothing to show.
    let _busy = Split::start(Duration::from_secs(60))?;
    for format in ["svg", "folded", "speedscope"] {
        let path = format!("/debug/pprof/flamegraph?format={format}&seconds=1");
        shown.push((path.clone(), agent.get(&path)?.text()));
    }
    shown.push(("the log".to_owned(), agent.stop()?.output));
    // The search does find what it should.
    ensure!(shown[0].1.contains("/in-arguments") && shown[1].1.contains("/in-arguments"));
    ensure!(shown[0].1.contains("/items/7") && shown[1].1.contains(&server.service));
    for (place, text) in &shown {
        ensure!(!text.is_empty(), "{place} is empty");
        if let Some(at) = text.find(SECRET) {
            let around = text.get(at.saturating_sub(200)..at + SECRET.len());
            anyhow::bail!("{place} has the secret: {around:?}");
        }
    }
    Ok(())
}
