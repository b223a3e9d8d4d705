//! The accounting identity: request heads = exchanges by outcome + in flight, whatever is lost.
//! Client and server are threads of the test; the agent observes no other process.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::accounts::{EXPORT_DELAY, check_identity};
use e2e::script::{check_both_sides, converse, listen, read_head};
use e2e::{Agent, AgentCommand, Client, Request, eventually};
use rustix::process::{Pid, Signal, kill_process};

/// The default of `capture.bytes`.
const CAPTURE_BYTES: usize = 4096;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An agent that observes this process alone.
fn agent(more: &str) -> Result<AgentCommand> {
    let only_us = "targets: { include: [{ executable: 'accounting-*' }] }\n";
    Ok(Agent::command()?.config(format!("{only_us}{more}")))
}

fn exact(mut stream: &TcpStream, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// 64 requests in flight, in one write or in pieces that end anywhere; answers alike.
#[test]
fn sixty_four_pipelined_requests_are_each_counted() -> Result<()> {
    const DEPTH: usize = 64;
    let agent = agent("")?.start()?;
    let sizes = [1_usize, 7, 41, 500, usize::MAX];
    for size in sizes {
        let (listener, address) = listen()?;
        let requests: Vec<u8> = (0..DEPTH)
            .flat_map(|index| {
                format!("GET /deep/{} HTTP/1.1\r\nA: b\r\n\r\n", index + 10).into_bytes()
            })
            .collect();
        let answers = OK.repeat(DEPTH);
        let write_cut = |mut stream: &TcpStream, bytes: &[u8]| -> Result<()> {
            stream.set_nodelay(true)?;
            for piece in bytes.chunks(size) {
                stream.write_all(piece)?;
            }
            Ok(())
        };
        let len = requests.len();
        converse(
            listener,
            |stream| {
                exact(&stream, len)?;
                write_cut(&stream, &answers)
            },
            || {
                let stream = TcpStream::connect(address)?;
                write_cut(&stream, &requests)?;
                exact(&stream, answers.len())?;
                Ok(())
            },
        )?;
    }
    check_both_sides(&agent, "/deep/{id}", "200", (DEPTH * sizes.len()) as u64)?;
    let metrics = check_identity(&agent)?;
    ensure!(metrics.lost("protocol", "orphan_response") == 0.0);
    Ok(())
}

/// 200 requests in one segment, which is twice as long as what is captured of one message: all are
/// seen, and no exchange gets the answer of another.
#[test]
fn requests_beyond_what_is_captured_of_one_are_seen() -> Result<()> {
    const DEPTH: usize = 200;
    let agent = agent("")?.start()?;
    let (listener, address) = listen()?;
    let requests: Vec<u8> = (0..DEPTH)
        .flat_map(|index| {
            let path = if index % 2 == 0 { "even" } else { "odds" };
            format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
        })
        .collect();
    let answer = |index: usize| {
        let status = if index.is_multiple_of(2) { 200 } else { 404 };
        format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok").into_bytes()
    };
    let len = requests.len();
    ensure!(len > 7000, "only {len} bytes");
    let (taken, next) = mpsc::channel();
    converse(
        listener,
        move |mut stream| {
            stream.set_nodelay(true)?;
            // Wait until all is there, so that one call reads it.
            let mut all = vec![0; len];
            while stream.peek(&mut all)? < len {
                thread::sleep(Duration::from_millis(1));
            }
            exact(&stream, len)?;
            for index in 0..DEPTH {
                stream.write_all(&answer(index))?;
                next.recv()?;
            }
            Ok(())
        },
        || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&requests)?;
            for index in 0..DEPTH {
                exact(&stream, answer(index).len())?;
                taken.send(())?;
            }
            Ok(())
        },
    )?;
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(&agent)?;
        let orphans = metrics.lost("protocol", "orphan_response");
        let mut seen = 0.0;
        for (role, label) in [("server", "http_route"), ("client", "url_template")] {
            let name = format!("http_{role}_request_duration_seconds_count");
            for (route, right, wrong) in [("/even", "200", "404"), ("/odds", "404", "200")] {
                let of = |status| {
                    let labels = [(label, route), ("http_response_status_code", status)];
                    metrics.sum(&name, &labels)
                };
                ensure!(of(wrong) == 0.0, "{role} {route}: {} mispaired", of(wrong));
                seen += of(right);
            }
        }
        ensure!(
            seen == 2.0 * DEPTH as f64 && orphans == 0.0,
            "{seen} exchanges and {orphans} orphans"
        );
        Ok(())
    })
}

/// A request that was sent before the agent came, and answered after.
#[test]
fn an_answer_to_an_older_request_is_told_from_a_loss() -> Result<()> {
    let (listener, address) = listen()?;
    let mut client = Client::connect(address)?;
    client.write(&Request::new("GET", "/older").head())?;
    let (mut stream, _) = listener.accept()?;
    read_head(&mut stream)?;
    let agent = agent("")?.start()?;
    stream.write_all(OK)?;
    ensure!(client.read_response("GET")?.status == 200);
    client.write(&Request::new("GET", "/younger").head())?;
    read_head(&mut stream)?;
    stream.write_all(OK)?;
    ensure!(client.read_response("GET")?.status == 200);
    check_both_sides(&agent, "/younger", "200", 1)?;
    let metrics = check_identity(&agent)?;
    // Of both sides; the poll that found the agent ready may be one more.
    let older = metrics.lost("protocol", "before_agent");
    ensure!((2.0..=3.0).contains(&older), "{older} older answers");
    ensure!(metrics.lost("protocol", "orphan_response") == 0.0);
    Ok(())
}

/// Sends `pieces` one after the other; the server reads each by itself and answers it as told.
fn exchange(address: SocketAddr, listener: TcpListener, pieces: &[(&[u8], &[u8])]) -> Result<()> {
    converse(
        listener,
        |mut stream| {
            stream.set_nodelay(true)?;
            for (piece, answer) in pieces {
                exact(&stream, piece.len())?;
                stream.write_all(answer)?;
            }
            // The client ends it.
            stream.read_to_end(&mut Vec::new())?;
            Ok(())
        },
        || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            for (piece, answer) in pieces {
                stream.write_all(piece)?;
                exact(&stream, answer.len())?;
                // One segment each.
                thread::sleep(Duration::from_millis(5));
            }
            stream.shutdown(Shutdown::Both)?;
            Ok(())
        },
    )
}

/// Each reason for which bytes go unexplained fires, and every head still ends in one outcome.
#[test]
fn every_loss_is_named_and_the_identity_holds() -> Result<()> {
    let agent = agent("")?.start()?;
    let chunked = b"POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    // What is captured ends with the body, and what follows begins no segment. Of a chunked body the
    // kernel side does not know the end.
    let chunked_head = b"POST /filled HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let data_bytes = CAPTURE_BYTES - chunked_head.len() - "fff\r\n\r\n0\r\n\r\n".len();
    let mut gap = chunked_head.to_vec();
    gap.extend_from_slice(format!("{data_bytes:03x}\r\n").as_bytes());
    gap.resize(gap.len() + data_bytes, b'x');
    gap.extend_from_slice(b"\r\n0\r\n\r\nPUT /unseen HTTP/1.1\r\nContent-Length: 1\r\n\r\nx");
    let cookie = format!(
        "GET /cut HTTP/1.1\r\nCookie: {}\r\n\r\n",
        "c".repeat(70_000)
    );
    let get = b"GET /get HTTP/1.1\r\n\r\n";
    let queue: Vec<(&[u8], &[u8])> = vec![(get, b""); 257];
    type Pieces<'a> = Vec<(&'a [u8], &'a [u8])>;
    let cases: [(&str, Pieces<'_>); 7] = [
        (
            "not_http",
            vec![(b"EHLO there\r\n", b"250 here\r\n"), (get, OK)],
        ),
        (
            "garbage",
            vec![
                (get, OK),
                (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", b""),
                (get, OK),
            ],
        ),
        ("gap", vec![(&gap, OK), (get, OK)]),
        ("head_cut", vec![(cookie.as_bytes(), OK), (get, OK)]),
        (
            "chunk_invalid",
            vec![(chunked, b""), (b"zz\r\n", OK), (get, OK)],
        ),
        (
            "ambiguous_head",
            vec![(chunked, b""), (b"zz\r\n", b""), (get, OK)],
        ),
        ("queue_full", queue),
    ];
    for (reason, pieces) in cases {
        let before = agent.metrics()?.lost("protocol", reason);
        let (listener, address) = listen()?;
        exchange(address, listener, &pieces).context(reason)?;
        eventually(EXPORT_DELAY, || {
            let metrics = check_identity(&agent)?;
            let fired = metrics.lost("protocol", reason) - before;
            ensure!(fired >= 2.0, "{reason}: {fired} on both sides");
            Ok(())
        })?;
    }
    Ok(())
}

/// An agent that stands still while its smallest rings fill: what they could not take is counted,
/// nothing is mispaired, and what comes afterwards is seen as ever.
#[test]
fn a_stopped_agent_with_tiny_rings_loses_by_count() -> Result<()> {
    let agent = agent("capture: { rings: 1, ring_bytes: 64KiB }\n")?.start()?;
    let pid = Pid::from_raw(i32::try_from(agent.pid())?).context("a pid")?;
    let (listener, address) = listen()?;
    let load = |rounds: usize, paths: &[(&'static str, u16)]| -> Result<()> {
        converse(
            listener.try_clone()?,
            |mut stream| {
                for (_, status) in paths.iter().cycle().take(rounds) {
                    read_head(&mut stream)?;
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok");
                    stream.write_all(answer.as_bytes())?;
                }
                Ok(())
            },
            || {
                let mut client = Client::connect(address)?;
                for (path, _) in paths.iter().cycle().take(rounds) {
                    client.send(&Request::new("GET", *path))?;
                }
                Ok(())
            },
        )
    };
    kill_process(pid, Signal::STOP)?;
    let loaded = load(600, &[("/first", 201), ("/second", 202), ("/third", 203)]);
    kill_process(pid, Signal::CONT)?;
    loaded?;
    let metrics = eventually(EXPORT_DELAY, || {
        load(10, &[("/after", 208)])?;
        thread::sleep(Duration::from_millis(200));
        let metrics = check_identity(&agent)?;
        let after = metrics.sum(
            "http_server_request_duration_seconds_count",
            &[
                ("http_route", "/after"),
                ("http_response_status_code", "208"),
            ],
        );
        ensure!(after >= 10.0, "{after} of ten and more");
        Ok(metrics)
    })?;
    let lost = metrics.lost("tap", "ring_full");
    ensure!(lost > 0.0, "the ring took all");
    for (role, label) in [("server", "http_route"), ("client", "url_template")] {
        let name = format!("http_{role}_request_duration_seconds_count");
        for (path, status) in [("/first", "201"), ("/second", "202"), ("/third", "203")] {
            let all = metrics.sum(&name, &[(label, path)]);
            let of = |status| {
                metrics.sum(
                    &name,
                    &[(label, path), ("http_response_status_code", status)],
                )
            };
            // An exchange whose answer was lost has no status.
            ensure!(all == of(status) + of(""), "{role} {path}: {all} in all");
        }
    }
    Ok(())
}

/// More connections than the agent may know: those that it gave up are counted, and those that it
/// never knew.
#[test]
fn connections_beyond_the_bound_are_evicted_by_count() -> Result<()> {
    const CONNECTIONS: usize = 450;
    let agent = agent("capture: { rings: 8, max_connections: 1024 }\n")?.start()?;
    let (listener, address) = listen()?;
    let mut pairs = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let client = TcpStream::connect(address)?;
        pairs.push((client, listener.accept()?.0));
    }
    // Opened by one thread, they all go to one or two of the rings.
    for (client, server) in &mut pairs {
        client.write_all(b"GET /held HTTP/1.1\r\n\r\n")?;
        read_head(server)?;
    }
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(&agent)?;
        let evicted = metrics.sum("telltale_http_exchanges_total", &[("outcome", "evicted")]);
        let gone = metrics.lost("worker", "connections_full");
        ensure!(
            gone > 0.0 && evicted > 0.0,
            "{gone} gone, {evicted} evicted"
        );
        Ok(())
    })?;
    for (client, server) in &mut pairs {
        server.write_all(OK)?;
        exact(client, OK.len())?;
    }
    drop(pairs);
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(&agent)?;
        let in_flight = metrics.sum("telltale_http_exchanges_in_flight", &[("role", "server")]);
        ensure!(in_flight == 0.0, "{in_flight} in flight");
        Ok(())
    })
}
