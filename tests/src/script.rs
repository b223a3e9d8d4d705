//! Conversations between two threads of the test, in which each call is chosen.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use crate::accounts::EXPORT_DELAY;
use crate::agent::Agent;
use crate::child::free_port;
use crate::eventually;

/// Runs a server for one connection beside a client of it.
///
/// # Errors
/// Those of either side.
pub fn converse(
    listener: TcpListener,
    serve: impl FnOnce(TcpStream) -> Result<()> + Send,
    talk: impl FnOnce() -> Result<()>,
) -> Result<()> {
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            serve(stream)
        });
        let talked = talk();
        server.join().map_err(|_| anyhow!("the server died"))??;
        talked
    })
}

/// A listener on a free port.
///
/// # Errors
/// When there is none.
pub fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port()?))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Reads until the empty line.
///
/// # Errors
/// When the connection ends first.
pub fn read_head(stream: &mut TcpStream) -> Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(
            stream.read(&mut byte)? == 1,
            "the connection ended in the head"
        );
        head.push(byte[0]);
    }
    Ok(())
}

/// Waits until `route` has exactly `count` exchanges with `status` on both sides, and no others.
///
/// # Errors
/// The first difference.
pub fn check_both_sides(agent: &Agent, route: &str, status: &str, count: u64) -> Result<()> {
    let check = || {
        let metrics = agent.metrics()?;
        for (role, label) in [("server", "http_route"), ("client", "url_template")] {
            let name = format!("http_{role}_request_duration_seconds_count");
            let all = metrics.sum(&name, &[(label, route)]);
            let right = metrics.sum(
                &name,
                &[(label, route), ("http_response_status_code", status)],
            );
            ensure!(
                right == count as f64 && all == right,
                "{role}: {right} of {count} with status `{status}`, {all} in all"
            );
        }
        Ok(())
    };
    eventually(EXPORT_DELAY, check)?;
    thread::sleep(Duration::from_millis(300));
    check()
}
