//! What the agent takes to start, and what many services and connections make it hold.

use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Setting;
use super::nginx::{Nginx, Target};
use crate::bench::agent::Agent;
use crate::bench::figure::{Figure, Reach, megabytes};
use crate::bench::server::{KeptAlive, wait_for};
use crate::command::output;
use crate::paths;

const SERVICES: usize = 200;
const CONNECTIONS_EACH: usize = 50;
/// Descriptors of this process, which is the client: all connections and a few more.
const DESCRIPTORS: usize = SERVICES * CONNECTIONS_EACH + 1000;

/// Size at the start, and with 10,000 connections kept alive, each after exchanges of its own.
///
/// # Errors
/// When the agent or a server does not start or answer.
pub(super) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    output(Command::new("prlimit").args([
        "--pid",
        &process::id().to_string(),
        &format!("--nofile={DESCRIPTORS}:"),
    ]))
    .context("10,000 connections take as many descriptors")?;
    let agent = Agent::start(&setting.agent, &setting.processors.agent, "")?;
    let at_start = agent.rss_bytes()?;
    let start_peak = agent.peak_rss_bytes()?;
    let verified = agent.verified_instructions()?;

    let services = (0..SERVICES)
        .map(|number| Nginx::launch(&format!("bench-{number:03}"), &setting.processors.server))
        .collect::<Result<Vec<_>>>()?;
    let mut connections = Vec::new();
    for service in &services {
        wait_for("nginx", || service.requests())?;
        for _ in 0..CONNECTIONS_EACH {
            let mut connection = KeptAlive::new(service.address, Target::Return.path())?;
            connection.exchange()?;
            connections.push(connection);
        }
    }
    // Each again, now that all of them are there.
    for connection in &mut connections {
        connection.exchange()?;
    }
    thread::sleep(Duration::from_secs(1));
    let settled = agent.settled()?;
    let counted: u64 = (0..SERVICES)
        .map(|number| settled.at_server(&format!("bench-{number:03}"), "/status"))
        .sum();
    let rss = agent.rss_bytes()?;
    let peak = agent.peak_rss_bytes()?;
    let ready_ms = agent.ready_ms();
    agent.stop()?;

    let object = paths::ebpf().join("telltale.bpf.o");
    let object_bytes = object.metadata().context("no committed object")?.len();
    let mut figures = vec![
        Figure::new(
            "start: ready after",
            ready_ms,
            "ms",
            format!("{ready_ms:.0} ms"),
        )
        .reach(Reach::AtMost(1000.0)),
        Figure::new(
            "start: peak of resident memory",
            start_peak as f64 / 1e6,
            "MB",
            format!(
                "{} ({} afterwards)",
                megabytes(start_peak),
                megabytes(at_start)
            ),
        )
        .reach(Reach::AtMost(60.0)),
        Figure::new(
            format!(
                "resident memory with {} open connections, {SERVICES} services",
                connections.len()
            ),
            rss as f64 / 1e6,
            "MB",
            format!(
                "{} (peak {}); both ends of each watched, {counted} exchanges counted of {}",
                megabytes(rss),
                megabytes(peak),
                2 * connections.len()
            ),
        )
        .reach(Reach::AtMost(40.0)),
        Figure::new(
            "object of the kernel programs",
            object_bytes as f64 / 1e3,
            "KB",
            format!("{:.0} KB", object_bytes as f64 / 1e3),
        )
        .reach(Reach::AtMost(200.0)),
    ];
    // Kernels before 5.16 don't tell.
    if let Some((name, count)) = verified.iter().max_by_key(|(_, count)| **count) {
        figures.push(
            Figure::new(
                "largest kernel program, verified instructions",
                *count as f64,
                "",
                format!("{count} (`{name}`)"),
            )
            .reach(Reach::AtMost(50_000.0)),
        );
    }
    Ok(figures)
}
