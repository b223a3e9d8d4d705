//! Connections that break: by a reset, by a network that goes away, by the end of a process, each in
//! the middle of a request and in the middle of an answer. Both sides tell how.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::accounts::{EXPORT_DELAY, check_identity};
use e2e::network::End;
use e2e::script::{converse, listen, read_head};
use e2e::{
    Agent, AgentCommand, Child, Client, Network, NginxOptions, Request, Server, eventually,
    prerequisite,
};
use rustix::net::sockopt::{set_socket_linger, set_tcp_user_timeout};
use rustix::process::Signal;

/// An answer's head and the first tenth of its body.
const HALF_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";

fn agent(program: &str) -> Result<AgentCommand> {
    Ok(Agent::command()?.config(format!(
        "targets: {{ include: [{{ executable: 'breaks-*' }}, {{ service: 'e2e-*' }}, {{ executable: {program} }}] }}\n"
    )))
}

/// An upload's head and the first tenth of its body.
fn half_request(path: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nContent-Length: 50\r\n\r\nhello").into_bytes()
}

/// Waits until `route` has one exchange, of that status and error on that side.
fn check(agent: &Agent, role: &str, route: &str, status: &str, error: &str) -> Result<()> {
    let label = if role == "server" {
        "http_route"
    } else {
        "url_template"
    };
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(agent)?;
        let name = format!("http_{role}_request_duration_seconds_count");
        let all = metrics.sum(&name, &[(label, route)]);
        let labels = [
            (label, route),
            ("http_response_status_code", status),
            ("error_type", error),
        ];
        let right = metrics.sum(&name, &labels);
        ensure!(
            all == 1.0 && right == 1.0,
            "{role} {route}: {right} of {all} with status `{status}` and error `{error}`:\n{}",
            metrics.excerpt(&[&name])
        );
        Ok(())
    })
}

/// Ends a connection with a reset in place of an orderly end.
fn reset(stream: TcpStream) -> Result<()> {
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

#[test]
fn resets_are_told_by_both_sides() -> Result<()> {
    let agent = agent("none")?.start()?;
    let (listener, address) = listen()?;
    let upload = half_request("/half-request");
    converse(
        listener.try_clone()?,
        |mut stream| {
            stream.read_exact(&mut vec![0; upload.len()])?;
            ensure!(stream.read(&mut [0; 64]).is_err(), "no reset");
            Ok(())
        },
        || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&upload)?;
            std::thread::sleep(Duration::from_millis(20));
            reset(stream)
        },
    )?;
    converse(
        listener,
        |mut stream| {
            read_head(&mut stream)?;
            stream.write_all(HALF_ANSWER)?;
            std::thread::sleep(Duration::from_millis(20));
            reset(stream)
        },
        || {
            let mut client = Client::connect(address)?;
            client.write(&Request::new("GET", "/half-answer").head())?;
            ensure!(client.read_response("GET").is_err(), "no reset");
            Ok(())
        },
    )?;
    // Whoever resets has closed; the other one was reset.
    for (role, request, answer) in [
        ("server", "reset", "closed_early"),
        ("client", "closed_early", "reset"),
    ] {
        check(&agent, role, "/half-request", "", request)?;
        check(&agent, role, "/half-answer", "200", answer)?;
    }
    Ok(())
}

/// The network is gone while the server sends its answer, and while the client awaits one.
#[test]
fn a_network_that_goes_away_is_a_timeout() -> Result<()> {
    const PATIENCE: u32 = 600;
    let agent = agent("none")?.start()?;
    let network = Network::new()?;
    let (listener, address) = network.listen(End::Near)?;
    let mut pairs = Vec::new();
    for path in ["/no-answer", "/part-of-it"] {
        let mut client = network.connect(End::Far, address)?;
        let (mut server, _) = listener.accept()?;
        for stream in [&client, &server] {
            set_tcp_user_timeout(stream, PATIENCE)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        }
        if path == "/part-of-it" {
            client.write_all(&Request::new("GET", path).head())?;
            read_head(&mut server)?;
        }
        pairs.push((client, server));
    }
    network.cut()?;
    let [(unanswered, _), (_, writer)] = &mut pairs[..] else {
        unreachable!("two pairs");
    };
    unanswered.write_all(&Request::new("GET", "/no-answer").head())?;
    writer.write_all(HALF_ANSWER)?;
    for stream in [&mut *unanswered, &mut *writer] {
        let error = stream.read(&mut [0; 64]).expect_err("the network is gone");
        ensure!(error.kind() == std::io::ErrorKind::TimedOut, "{error}");
    }
    drop(pairs);
    check(&agent, "client", "/no-answer", "", "timeout")?;
    check(&agent, "server", "/part-of-it", "200", "timeout")?;
    // The other end of it never heard of the answer, nor of its own end.
    check(&agent, "client", "/part-of-it", "", "timeout")
}

/// Processes that are killed: a server before its answer and a client in the middle of one.
#[test]
fn killed_processes_leave_an_account() -> Result<()> {
    let agent = agent("curl")?.start()?;
    let uvicorn = Server::uvicorn()?;
    let mut client = Client::connect(uvicorn.address)?;
    client.write(&Request::new("GET", "/sleep/5000").head())?;
    std::thread::sleep(Duration::from_millis(200));
    uvicorn.kill()?;
    ensure!(client.read_response("GET").is_err());
    drop(client);
    for role in ["server", "client"] {
        check(&agent, role, "/sleep/{id}", "", "closed_early")?;
    }

    let nginx = Server::nginx(NginxOptions::default())?;
    std::fs::write(nginx.folder().join("files/large"), vec![b'x'; 64 << 20])?;
    let mut curl = Command::new(prerequisite::on_path("curl")?);
    curl.args([
        "--silent",
        "--noproxy",
        "*",
        "--limit-rate",
        "1M",
        "--output",
        "/dev/null",
    ])
    .arg(format!("http://{}/files/large", nginx.address));
    let curl = Child::spawn("curl", curl, tempfile::tempdir()?)?;
    std::thread::sleep(Duration::from_millis(500));
    curl.signal(Signal::KILL)?;
    // What it had not read makes its kernel answer with a reset.
    check(&agent, "server", "/files/large", "200", "reset")?;
    check(&agent, "client", "/files/large", "200", "closed_early")
}
