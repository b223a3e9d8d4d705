//! FastAPI on uvicorn at a fixed rate.
//!
//! The load is open: requests fall due at a constant rate, whatever became of those before, and each
//! one's time runs from when it fell due. Users do not wait for each other, and a load with a fixed
//! number of clients would slow down with the server and so hide just the delays that are looked
//! for here. The rate is a share of what the server can do, found out before.

use std::fs::File;
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Setting;
use crate::bench::agent::Agent;
use crate::bench::figure::{Figure, Reach};
use crate::bench::pairs::{Ratios, in_turn, median, quantile};
use crate::bench::processors::pinned;
use crate::bench::server::{Kept, KeptAlive, free_address, wait_for};
use crate::paths;
use crate::test::python_environment;

const PATH: &str = "/items/7";
const CONNECTIONS: u32 = 16;
/// Of the server's highest rate.
const SHARE: f64 = 0.6;
/// A run has to be long enough for a hundredth of its requests to be many.
const RUN_FACTOR: u32 = 2;

/// # Errors
/// When the agent or uvicorn does not start or answer.
pub(super) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let environment = python_environment()?;
    let address = free_address()?;
    let folder = tempfile::Builder::new()
        .prefix("telltale-bench-")
        .tempdir()?;
    let log = File::create(folder.path().join("output.log"))?;
    let server = pinned(&setting.processors.server, environment.join("bin/python"))
        .args(["-m", "uvicorn", "fastapi_app:api", "--no-access-log"])
        .args(["--log-level", "warning", "--host", "127.0.0.1", "--port"])
        .arg(address.port().to_string())
        .current_dir(paths::root().join("tests/workloads"))
        // The application writes what it served, which nobody reads here.
        .env("TELLTALE_TEST_LOG", "/dev/null")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start uvicorn")?;
    let _server = Kept(server);
    wait_for("uvicorn", || KeptAlive::new(address, PATH)?.exchange())?;
    highest_rate(address, Duration::from_secs(1))?;
    let highest = highest_rate(address, Duration::from_secs(1))?;
    let per_second = (highest * SHARE / 50.0).floor() * 50.0;
    let seconds = setting.seconds * RUN_FACTOR;
    let load = || at_rate(address, per_second, Duration::from_secs(seconds.into()));
    let pairs = in_turn(setting.pairs, load, || {
        let agent = Agent::start(&setting.agent, &setting.processors.agent, "")?;
        let times = load()?;
        agent.stop()?;
        eprintln!(
            "FastAPI: p50 {:.0} µs, p99 {:.0} µs",
            times.p50_us, times.p99_us
        );
        Ok(times)
    })?;
    let p99_us = || {
        pairs
            .iter()
            .map(|pair| (pair.without.p99_us, pair.with.p99_us))
    };
    let p50_us = pairs
        .iter()
        .map(|pair| (pair.without.p50_us, pair.with.p50_us));
    let ratios = Ratios::of(p99_us());
    let without = median(p99_us().map(|(without, _)| without));
    let with = median(p99_us().map(|(_, with)| with));
    let figure = Figure::new(
        format!("FastAPI on uvicorn at {per_second:.0} requests/s: p99 on/off"),
        ratios.median,
        "",
        format!(
            "{ratios}: {without:.0} → {with:.0} µs; p50 {}",
            Ratios::of(p50_us)
        ),
    );
    Ok(vec![figure.reach(Reach::AtMost(1.01))])
}

/// What a load's requests took, from when each fell due to its answer's last byte.
struct Times {
    p50_us: f64,
    p99_us: f64,
}

/// Requests a second of clients that each wait for their answers.
fn highest_rate(address: SocketAddr, time: Duration) -> Result<f64> {
    let start = Instant::now();
    let exchanges = on_connections(address, |_, connection| {
        let mut exchanges = 0;
        while start.elapsed() < time {
            connection.exchange()?;
            exchanges += 1;
        }
        Ok(exchanges)
    })?;
    Ok(f64::from(exchanges.iter().sum::<u32>()) / start.elapsed().as_secs_f64())
}

/// Requests at a constant rate, on each connection in turn.
fn at_rate(address: SocketAddr, per_second: f64, time: Duration) -> Result<Times> {
    let start = Instant::now() + Duration::from_millis(20);
    let requests = (per_second * time.as_secs_f64()) as u32;
    let taken = on_connections(address, |number, connection| {
        let mut taken_us = Vec::new();
        for request in (number..requests).step_by(CONNECTIONS as usize) {
            let due = start + Duration::from_secs_f64(f64::from(request) / per_second);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            connection.exchange()?;
            taken_us.push(due.elapsed().as_secs_f64() * 1e6);
        }
        Ok(taken_us)
    })?;
    let mut taken_us = taken.concat();
    let mut at = |share| quantile(&mut taken_us, share).context("no requests");
    Ok(Times {
        p50_us: at(0.5)?,
        p99_us: at(0.99)?,
    })
}

/// The same work on connections of their own, at once.
fn on_connections<T: Send>(
    address: SocketAddr,
    work: impl Fn(u32, &mut KeptAlive) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let work = &work;
                scope.spawn(move || work(number, &mut KeptAlive::new(address, PATH)?))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a client does not panic"))
            .collect()
    })
}
