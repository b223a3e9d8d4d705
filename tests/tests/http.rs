//! Counts, sizes and durations of real servers and clients: three accounts that have to agree.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::accounts::{
    Side, application_plan, check_body_sizes, check_durations, check_exported, check_handlers,
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
    compare_all(agent, server, &tally)
}

fn compare_all(agent: &Agent, server: &Server, tally: &Tally) -> Result<()> {
    check_handlers(server, tally)?;
    check_exported(agent, Side::Server(server), &tally.counts())?;
    let metrics = check_exported(agent, Side::Client(server), &tally.counts())?;
    check_durations(&metrics, server, tally)?;
    check_body_sizes(&metrics, server, tally)
}

/// Sends requests one after the other on a connection and tallies them.
fn send_all(client: &mut Client, requests: &[(Request, &str)]) -> Result<Tally> {
    let mut tally = Tally::default();
    for (request, route) in requests {
        tally.add(request, route, &client.send(request)?);
    }
    Ok(tally)
}

fn key(method: &str, route: &str, status: &str) -> Key {
    [method.to_owned(), route.to_owned(), status.to_owned()]
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
    let metrics = agent.metrics()?;
    let upstream = metrics.sum(
        "http_client_request_duration_seconds_count",
        &[("service_name", &nginx.service)],
    );
    assert_eq!(
        upstream,
        tally.total() as f64,
        "requests from nginx to gunicorn"
    );
    Ok(())
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
    let agent = Agent::start()?;
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
        Ok(())
    })
}

/// 64 MiB by sendfile to a reader that takes its time: the answer lasts as long as the reading.
#[test]
fn a_big_download_lasts_until_its_last_byte() -> Result<()> {
    const BYTES: u64 = 64 << 20;
    let agent = Agent::start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    std::fs::File::create(nginx.folder().join("files/big.bin"))?.set_len(BYTES)?;
    let client = Client::connect(nginx.address)?;
    let mut stream = client.stream();
    let start = Instant::now();
    stream.write_all(
        &Request::new("GET", "/files/big.bin")
            .header("Connection: close")
            .head(),
    )?;
    let mut piece = vec![0; 1 << 20];
    let mut received = 0;
    loop {
        let read = stream.read(&mut piece)? as u64;
        if read == 0 {
            break;
        }
        received += read;
        thread::sleep(Duration::from_millis(read * 16 / (1 << 20)));
    }
    let took = start.elapsed().as_secs_f64();
    ensure!(received > BYTES, "{received} bytes with the head");
    let counts = BTreeMap::from([(key("GET", "/files/big.bin", "200"), 1)]);
    check_exported(&agent, Side::Server(&nginx), &counts)?;
    let metrics = check_exported(&agent, Side::Client(&nginx), &counts)?;
    let seconds = |side: Side<'_>| {
        side.sum(&metrics, "request_duration_seconds_sum")
            .into_values()
            .sum::<f64>()
    };
    // The client stops its clock after the end of the connection, which follows at once.
    let on_client = seconds(Side::Client(&nginx));
    ensure!(
        on_client <= took && on_client > took - 0.05,
        "agent {on_client} s, client {took} s"
    );
    // nginx is done once the rest fits into the socket buffers. Its own clock ticks in
    // milliseconds and is read once for a turn of its loop, in which it may send for long.
    let on_server = seconds(Side::Server(&nginx));
    let by_nginx = nginx
        .handler_lines()?
        .first()
        .context("nginx has logged")?
        .seconds;
    ensure!(
        by_nginx > 0.3,
        "the download was too fast to tell: {by_nginx} s"
    );
    ensure!(
        (on_server - by_nginx).abs() < 0.05,
        "agent {on_server} s, nginx itself {by_nginx} s, client {took} s"
    );
    let sizes = Side::Server(&nginx).sum(&metrics, "response_body_size_bytes_sum");
    assert_eq!(sizes.into_values().sum::<f64>(), BYTES as f64);
    Ok(())
}

/// 32 MiB in pieces, over 320 ms and more: the request's time counts from its first byte.
#[test]
fn a_big_slow_upload_counts_from_its_first_byte() -> Result<()> {
    let agent = Agent::start()?;
    for server in [Server::axum(AXUM)?, Server::express()?] {
        let request = Request::new("POST", "/items").body(vec![b'x'; 32 << 20]);
        let mut client = Client::connect(server.address)?;
        let start = Instant::now();
        client.write(&request.head())?;
        for piece in request.body.chunks(1 << 20) {
            client.write_more(piece)?;
            thread::sleep(Duration::from_millis(10));
        }
        let sent = start.elapsed().as_secs_f64();
        let response = client.read_response("POST")?;
        let mut tally = Tally::default();
        tally.add(&request, "/items", &response);
        compare_all(&agent, &server, &tally)?;
        let metrics = agent.metrics()?;
        let seconds = Side::Server(&server).sum(&metrics, "request_duration_seconds_sum");
        let seconds: f64 = seconds.into_values().sum();
        // The head has left at once; the sleep after the last piece comes after its bytes.
        ensure!(
            seconds > sent - 0.05,
            "{}: {seconds} s of {sent} s",
            server.service
        );
    }
    Ok(())
}

#[test]
fn one_hundred_continue_is_not_the_answer() -> Result<()> {
    let agent = Agent::start()?;
    for server in [Server::axum(AXUM)?, Server::express()?, Server::uvicorn()?] {
        let mut client = Client::connect(server.address)?;
        let mut tally = Tally::default();
        for _ in 0..5 {
            let request = Request::new("POST", "/items")
                .header("Expect: 100-continue")
                .body(vec![b'x'; 5000]);
            client.write(&request.head())?;
            // Long enough for the server to answer 100 before it has the body.
            thread::sleep(Duration::from_millis(30));
            client.write_more(&request.body)?;
            let response = client.read_response("POST")?;
            ensure!(
                response.interim == [100],
                "{}: {:?}",
                server.service,
                response.interim
            );
            tally.add(&request, "/items", &response);
        }
        check_exported(&agent, Side::Server(&server), &tally.counts())?;
        let metrics = check_exported(&agent, Side::Client(&server), &tally.counts())?;
        check_body_sizes(&metrics, &server, &tally)?;
        // The answer's first byte comes after the body, the 100 long before.
        let first = metrics.sum(
            "http_server_time_to_first_byte_seconds_sum",
            &[("service_name", &server.service)],
        );
        ensure!(
            first >= 5.0 * 0.03,
            "{}: first bytes after {first} s in all",
            server.service
        );
    }
    Ok(())
}

#[test]
fn pipelined_requests_are_each_counted() -> Result<()> {
    let agent = Agent::start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    for (server, targets) in [
        (&nginx, [("/return", "/return"), ("/teapot", "/teapot")]),
        (
            &Server::express()?,
            [("/items/1", "/items/{id}"), ("/fail", "/fail")],
        ),
        (
            &Server::axum(AXUM)?,
            [("/items/1", "/items/{id}"), ("/fail", "/fail")],
        ),
    ] {
        let requests: Vec<_> = (0..10)
            .flat_map(|_| targets)
            .map(|(target, route)| (Request::new("GET", target), route))
            .collect();
        let mut client = Client::connect(server.address)?;
        client.write(
            &requests
                .iter()
                .flat_map(|(request, _)| request.head())
                .collect::<Vec<_>>(),
        )?;
        let mut tally = Tally::default();
        for (request, route) in &requests {
            tally.add(request, route, &client.read_response("GET")?);
        }
        check_exported(&agent, Side::Server(server), &tally.counts())?;
        check_exported(&agent, Side::Client(server), &tally.counts())?;
    }
    Ok(())
}

#[test]
fn heads_in_many_pieces_are_one_request() -> Result<()> {
    let agent = Agent::start()?;
    for server in [Server::nginx(NginxOptions::default())?, Server::uvicorn()?] {
        let mut client = Client::connect(server.address)?;
        let mut tally = Tally::default();
        for _ in 0..3 {
            let request =
                Request::new("GET", "/nowhere").header("X-Long: ".to_owned() + &"y".repeat(3000));
            let head = request.head();
            let (first, rest) = head.split_at(2);
            client.write(first)?;
            for piece in rest.chunks(500) {
                thread::sleep(Duration::from_millis(5));
                client.write_more(piece)?;
            }
            tally.add(&request, "/nowhere", &client.read_response("GET")?);
        }
        check_exported(&agent, Side::Server(&server), &tally.counts())?;
        check_exported(&agent, Side::Client(&server), &tally.counts())?;
    }
    Ok(())
}

/// An HTTP/1.0 client gets a body without a length that ends with the connection.
#[test]
fn a_body_that_ends_with_the_connection_is_whole() -> Result<()> {
    let agent = Agent::start()?;
    let target = "/get_complete_tree/6f1c2f9e-52a1-4c5a-9a35-1c1b2f0a7d11";
    for server in [Server::express()?, Server::gunicorn()?] {
        let mut tally = Tally::default();
        for _ in 0..4 {
            let mut client = Client::connect(server.address)?;
            client.write(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes())?;
            let response = client.read_response("GET")?;
            ensure!(response.header("content-length").is_none());
            ensure!(response.header("transfer-encoding").is_none());
            tally.add(
                &Request::new("GET", target),
                "/get_complete_tree/{id}",
                &response,
            );
        }
        check_exported(&agent, Side::Server(&server), &tally.counts())?;
        let metrics = check_exported(&agent, Side::Client(&server), &tally.counts())?;
        check_body_sizes(&metrics, &server, &tally)?;
    }
    Ok(())
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
    let named = metrics.sum(
        "http_client_request_duration_seconds_count",
        &[("service_name", &service), ("url_template", "/return")],
    );
    assert_eq!(named, 20.0, "named by OTEL_SERVICE_NAME");
    Ok(())
}

#[test]
fn a_client_that_leaves_early_is_told() -> Result<()> {
    let agent = Agent::start()?;
    let server = Server::express()?;
    let mut client = Client::connect(server.address)?;
    client.write(&Request::new("GET", "/sleep/1000").head())?;
    thread::sleep(Duration::from_millis(200));
    drop(client);
    e2e::eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics()?;
        for (name, route, label) in [
            (
                "http_server_request_duration_seconds_count",
                "http_route",
                "service_name",
            ),
            (
                "http_client_request_duration_seconds_count",
                "url_template",
                "server_port",
            ),
        ] {
            let port = server.address.port().to_string();
            let whose = if label == "service_name" {
                &server.service
            } else {
                &port
            };
            let seen = metrics.sum(
                name,
                &[
                    (label, whose),
                    (route, "/sleep/{id}"),
                    ("http_response_status_code", ""),
                    ("error_type", "closed_early"),
                ],
            );
            ensure!(seen == 1.0, "{name}: {seen}");
        }
        Ok(())
    })
}

/// Servers that break the connection: before the answer, in the middle of it, by a reset.
#[test]
fn a_server_that_breaks_off_is_told() -> Result<()> {
    let agent = Agent::start()?;
    for (answer, unread, status, error) in [
        ("", false, "", "closed_early"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            false,
            "200",
            "closed_early",
        ),
        ("", true, "", "reset"),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, e2e::free_port()?))?;
        let address = listener.local_addr()?;
        let server = thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 1024];
            // What is left unread at the close makes the kernel send a reset.
            let wanted = if unread { 10 } else { request.len() };
            let _ = stream.read(&mut request[..wanted])?;
            stream.write_all(answer.as_bytes())?;
            Ok(())
        });
        let mut client = Client::connect(address)?;
        client.write(
            &Request::new("GET", "/broken")
                .header("X-Pad: ".to_owned() + &"p".repeat(500))
                .head(),
        )?;
        ensure!(client.read_response("GET").is_err());
        server
            .join()
            .map_err(|_| anyhow::anyhow!("the server died"))??;
        drop(client);
        e2e::eventually(Duration::from_secs(5), || {
            let metrics = agent.metrics()?;
            let port = address.port().to_string();
            let name = "http_client_request_duration_seconds_count";
            let all = metrics.sum(name, &[("server_port", &port)]);
            let seen = metrics.sum(
                name,
                &[
                    ("server_port", &port),
                    ("url_template", "/broken"),
                    ("http_response_status_code", status),
                    ("error_type", error),
                ],
            );
            ensure!(
                seen == 1.0 && all == 1.0,
                "{error} after `{answer}`: {seen} of {all}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// What does not speak HTTP costs nothing and is not counted.
#[test]
fn other_protocols_are_left_alone() -> Result<()> {
    let agent = Agent::start()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, e2e::free_port()?))?;
    let address = listener.local_addr()?;
    let echo = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut piece = [0; 64];
        loop {
            let read = stream.read(&mut piece)?;
            if read == 0 {
                return Ok(());
            }
            stream.write_all(&piece[..read])?;
        }
    });
    let mut stream = TcpStream::connect(address)?;
    let mut answer = [0; 5];
    for _ in 0..100 {
        stream.write_all(b"PING\n")?;
        stream.read_exact(&mut answer)?;
    }
    // Looks like a method, is none of HTTP's lines.
    stream.write_all(b"GET k")?;
    stream.read_exact(&mut answer)?;
    drop(stream);
    echo.join()
        .map_err(|_| anyhow::anyhow!("the server died"))??;
    thread::sleep(Duration::from_secs(1));
    let metrics = agent.metrics()?;
    let port = address.port().to_string();
    let name = "http_client_request_duration_seconds_count";
    assert_eq!(metrics.sum(name, &[("server_port", &port)]), 0.0);
    Ok(())
}
