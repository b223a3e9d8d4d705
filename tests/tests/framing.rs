//! Every way in which HTTP/1.1 says where a message ends, and connections that end before.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::accounts::{Side, check_all, check_body_sizes, check_exported, key};
use e2e::{Agent, Client, NginxOptions, Request, Server, Tally};

const AXUM: &str = env!("CARGO_BIN_EXE_axum_server");

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
        check_all(&agent, &server, &tally)?;
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

/// Cookies of 6 KiB, of which 4 KiB are captured: the request line is, and the answers pair.
#[test]
fn heads_longer_than_what_is_captured_are_counted() -> Result<()> {
    let agent = Agent::start()?;
    for server in [Server::nginx(NginxOptions::default())?, Server::axum(AXUM)?] {
        let mut client = Client::connect(server.address)?;
        let mut tally = Tally::default();
        let cookie = "Cookie: a=".to_owned() + &"c".repeat(6 << 10);
        for round in 0..5 {
            for request in [
                Request::new("GET", "/return").header(cookie.clone()),
                Request::new("GET", "/return"),
                // Its length stands behind what is captured, so that its end is known by the answer:
                // to a server that takes the body first.
                Request::new("POST", "/items")
                    .header(cookie.clone())
                    .body(vec![b'x'; 1000 * round]),
            ] {
                let route = request.target.clone();
                tally.add(&request, &route, &client.send(&request)?);
            }
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
    // A request that came after it is counted, so it would have been too.
    let nginx = Server::nginx(NginxOptions::default())?;
    Client::once(nginx.address, &Request::new("GET", "/return"))?;
    let counts = BTreeMap::from([(key("GET", "/return", "200"), 1)]);
    let metrics = check_exported(&agent, Side::Client(&nginx), &counts)?;
    let port = address.port().to_string();
    let name = "http_client_request_duration_seconds_count";
    assert_eq!(metrics.sum(name, &[("server_port", &port)]), 0.0);
    Ok(())
}
