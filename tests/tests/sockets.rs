//! What programs do with sockets beside reading and writing. Client and server are threads of the
//! test, so that each call is chosen.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::script::{check_both_sides, converse, listen, read_head};
use e2e::{Agent, Client, NginxOptions, Request, Server, prerequisite};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn what_is_peeked_at_counts_once() -> Result<()> {
    let agent = Agent::start()?;
    let (listener, address) = listen()?;
    let serve = |mut stream: TcpStream| {
        for _ in 0..3 {
            let mut piece = [0; 512];
            for _ in 0..3 {
                stream.peek(&mut piece)?;
            }
            read_head(&mut stream)?;
            stream.write_all(ANSWER)?;
        }
        Ok(())
    };
    converse(listener, serve, || {
        let mut client = Client::connect(address)?;
        for _ in 0..3 {
            client.send(&Request::new("GET", "/peeked"))?;
        }
        Ok(())
    })?;
    check_both_sides(&agent, "/peeked", "200", 3)
}

#[test]
fn a_client_that_has_said_all_still_gets_its_answer() -> Result<()> {
    let agent = Agent::start()?;
    let (listener, address) = listen()?;
    let serve = |mut stream: TcpStream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request)?;
        thread::sleep(Duration::from_millis(50));
        Ok(stream.write_all(ANSWER)?)
    };
    converse(listener, serve, || {
        let mut client = Client::connect(address)?;
        client.write(&Request::new("GET", "/half-closed").head())?;
        client.stream().shutdown(Shutdown::Write)?;
        ensure!(client.read_response("GET")?.status == 200);
        Ok(())
    })?;
    check_both_sides(&agent, "/half-closed", "200", 1)
}

/// What follows a 101 is another protocol, whatever it looks like.
#[test]
fn an_upgraded_connection_has_left_http() -> Result<()> {
    let agent = Agent::start()?;
    let (listener, address) = listen()?;
    let request = Request::new("GET", "/upgraded")
        .header("Connection: Upgrade")
        .header("Upgrade: echo");
    let later = Request::new("GET", "/not-a-request").head();
    let serve = |mut stream: TcpStream| {
        read_head(&mut stream)?;
        stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        )?;
        for _ in 0..3 {
            read_head(&mut stream)?;
            stream.write_all(ANSWER)?;
        }
        Ok(())
    };
    converse(listener, serve, || {
        let mut client = Client::connect(address)?;
        ensure!(client.send(&request)?.status == 101);
        for _ in 0..3 {
            client.write_more(&later)?;
            client.read_response("GET")?;
        }
        Ok(())
    })?;
    check_both_sides(&agent, "/upgraded", "101", 1)?;
    check_both_sides(&agent, "/not-a-request", "200", 0)?;
    let metrics = agent.metrics()?;
    for role in ["server", "client"] {
        let labels = [("role", role), ("outcome", "upgraded")];
        assert_eq!(
            metrics.sum("telltale_http_exchanges_total", &labels),
            1.0,
            "{role}"
        );
    }
    Ok(())
}

#[test]
fn ipv6_and_mapped_addresses_are_named() -> Result<()> {
    let agent = Agent::start()?;
    for (bind, connect, route, named) in [
        (Ipv6Addr::LOCALHOST, "::1", "/six", "::1"),
        (Ipv6Addr::UNSPECIFIED, "127.0.0.1", "/mapped", "127.0.0.1"),
    ] {
        let listener = TcpListener::bind((bind, e2e::free_port()?))?;
        let address = SocketAddr::new(connect.parse()?, listener.local_addr()?.port());
        let serve = |mut stream: TcpStream| {
            read_head(&mut stream)?;
            Ok(stream.write_all(ANSWER)?)
        };
        converse(listener, serve, || {
            let mut client = Client::connect(address)?;
            // No host is named, so that the address has to come from the socket.
            client.write(format!("GET {route} HTTP/1.0\r\n\r\n").as_bytes())?;
            ensure!(client.read_response("GET")?.status == 200);
            Ok(())
        })?;
        check_both_sides(&agent, route, "200", 1)?;
        let metrics = agent.metrics()?;
        let port = address.port().to_string();
        let labels = [
            ("url_template", route),
            ("server_address", named),
            ("server_port", &port),
        ];
        let seen = metrics.sum("http_client_request_duration_seconds_count", &labels);
        ensure!(
            seen == 1.0,
            "not named {named}:\n{}",
            metrics.excerpt(&["http_client_request_d"])
        );
    }
    Ok(())
}

/// An answer that does not wait for the upload's end.
#[test]
fn an_early_answer_ends_the_exchange() -> Result<()> {
    let agent = Agent::start()?;
    let (listener, address) = listen()?;
    let serve = |mut stream: TcpStream| {
        read_head(&mut stream)?;
        stream.write_all(
            b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        )?;
        // Takes the rest, so that no reset overtakes the answer.
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    };
    converse(listener, serve, || {
        let request = Request::new("POST", "/too-large").body(vec![b'x'; 200_000]);
        let mut client = Client::connect(address)?;
        client.write(&request.head())?;
        client.write_more(&request.body[..50_000])?;
        thread::sleep(Duration::from_millis(50));
        client.write_more(&request.body[50_000..])?;
        ensure!(client.read_response("POST")?.status == 413);
        Ok(())
    })?;
    check_both_sides(&agent, "/too-large", "413", 1)
}

/// Descriptors and ports come again and again: each connection is its own.
#[test]
fn short_connections_are_each_counted() -> Result<()> {
    let agent = Agent::start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    for _ in 0..500 {
        Client::once(nginx.address, &Request::new("GET", "/return"))?;
    }
    let url = format!("http://{}/teapot", nginx.address);
    let output = Command::new(prerequisite::on_path("hey")?)
        .args(["-n", "5000", "-c", "50", "-disable-keepalive", &url])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report = String::from_utf8_lossy(&output.stdout);
    ensure!(report.contains("[418]\t5000 responses"), "{report}");
    check_both_sides(&agent, "/return", "200", 500)?;
    check_both_sides(&agent, "/teapot", "418", 5000)
}

/// Heads and bodies in many pieces, more than the kernel side looks at: what the pieces hold is one
/// stream, and a call that ends in the middle of a piece ends there.
#[test]
fn many_pieces_are_one_message() -> Result<()> {
    let agent = Agent::start()?;
    let (listener, address) = listen()?;
    let body = vec![b'x'; 900];
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n";
    let serve = |mut stream: TcpStream| {
        for _ in 0..3 {
            // Pieces of sixteen bytes; the request ends in the middle of one.
            let mut room = [[0; 16]; 40];
            let mut pieces = room.each_mut().map(|piece| IoSliceMut::new(piece));
            let length = stream.read_vectored(&mut pieces)?;
            ensure!(room.concat()[..length].ends_with(b"\r\n\r\n"), "{length}");
            let answer = [head.as_slice(), &body].concat();
            let pieces: Vec<_> = answer.chunks(10).map(IoSlice::new).collect();
            ensure!(stream.write_vectored(&pieces)? == answer.len());
        }
        Ok(())
    };
    let request = b"GET /in-pieces HTTP/1.1\r\nHost: pieces\r\nAccept: */*\r\n\r\n";
    converse(listener, serve, || {
        let mut client = Client::connect(address)?;
        for _ in 0..3 {
            let pieces: Vec<_> = request.chunks(9).map(IoSlice::new).collect();
            ensure!(client.stream().write_vectored(&pieces)? == request.len());
            ensure!(client.read_response("GET")?.body == body);
        }
        Ok(())
    })?;
    check_both_sides(&agent, "/in-pieces", "200", 3)?;
    let metrics = agent.metrics()?;
    for role in ["server", "client"] {
        let name = format!("http_{role}_response_body_size_bytes_sum");
        let label = ["http_route", "url_template"][usize::from(role == "client")];
        let bytes = metrics.sum(&name, &[(label, "/in-pieces")]);
        ensure!(bytes == 2700.0, "{role}: {bytes} bytes");
    }
    Ok(())
}
