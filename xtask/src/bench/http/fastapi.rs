//! FastAPI on uvicorn, at the rate that clients reach who each wait for their answers.
//!
//! The number of requests under way is constant, and the server always busy. An open load, whose
//! requests fall due at a fixed rate, was tried first: whenever the hypervisor stops the server for
//! 15 ms, all that falls due meanwhile is late, which made ratios of p99 range from 0.85 to 2.4 on
//! a quiet machine. Here such a pause meets as many requests as there are clients, a
//! thousandth of all, and p99 tells of the server.

use std::fs::File;
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Setting;
use crate::bench::agent::{Agent, rest};
use crate::bench::figure::{Figure, Reach};
use crate::bench::pairs::{Ratios, in_turn, median, quantile};
use crate::bench::processors::pinned;
use crate::bench::server::{Kept, KeptAlive, free_address, wait_for};
use crate::paths;
use crate::test::python_environment;

const PATH: &str = "/items/7";
const CONNECTIONS: u32 = 8;
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
    let seconds = setting.seconds * RUN_FACTOR;
    let load = || load(address, Duration::from_secs(seconds.into()));
    load()?;
    let pairs = in_turn(
        setting.pairs,
        || {
            rest();
            load()?;
            load()
        },
        || {
            let agent = Agent::start(&setting.agent, &setting.processors.agent, "")?.past_samples();
            load()?;
            let times = load()?;
            agent.stop()?;
            eprintln!(
                "FastAPI: p50 {:.0} µs, p99 {:.0} µs",
                times.p50_us, times.p99_us
            );
            Ok(times)
        },
    )?;
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
    let per_second = median(pairs.iter().map(|pair| pair.without.per_second));
    let figure = Figure::new(
        format!(
            "FastAPI on uvicorn, {CONNECTIONS} connections, {per_second:.0} requests/s: p99 on/off"
        ),
        ratios.median,
        "",
        format!(
            "{ratios}: {without:.0} → {with:.0} µs; p50 {}",
            Ratios::of(p50_us)
        ),
    );
    Ok(vec![figure.reach(Reach::AtMost(1.01))])
}

/// What a load's requests took.
struct Times {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Clients that each send the next request when they have been answered.
fn load(address: SocketAddr, time: Duration) -> Result<Times> {
    let start = Instant::now();
    let taken: Vec<Vec<f64>> = thread::scope(|scope| {
        let client = || -> Result<Vec<f64>> {
            let mut connection = KeptAlive::new(address, PATH)?;
            let mut taken_us = Vec::new();
            while start.elapsed() < time {
                let sent = Instant::now();
                connection.exchange()?;
                taken_us.push(sent.elapsed().as_secs_f64() * 1e6);
            }
            Ok(taken_us)
        };
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(client)).collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client does not panic"))
            .collect::<Result<_>>()
    })?;
    let per_second = taken.iter().map(Vec::len).sum::<usize>() as f64 / time.as_secs_f64();
    let mut taken_us = taken.concat();
    let mut at = |share| quantile(&mut taken_us, share).context("no requests");
    Ok(Times {
        per_second,
        p50_us: at(0.5)?,
        p99_us: at(0.99)?,
    })
}
