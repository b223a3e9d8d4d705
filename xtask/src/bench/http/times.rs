//! What the agent says that exchanges took, against what the server took of each itself.
//!
//! The server reads `CLOCK_MONOTONIC` behind the read of a request and behind the last write of its
//! answer. Each exchange has a path of its own that is a route of its own, so that the sum of the
//! route's histogram is the duration of that one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Setting;
use crate::bench::agent::Agent;
use crate::bench::exposition::{label, samples};
use crate::bench::figure::{Figure, Reach};
use crate::bench::pairs::{median, quantile};
use crate::bench::processors::pinned;
use crate::bench::server::{Kept, KeptAlive, free_address, wait_for};
use crate::command::output;
use crate::paths;

const EXCHANGES: usize = 2000;
/// Bytes of the long answer: what another agent once timed at 10 ms.
const DOWNLOAD_BYTES: u64 = 183_000_000;
const DOWNLOADS: usize = 5;
/// A reader takes so many bytes, and then a pause.
const PIECE_BYTES: usize = 4 << 20;
const PAUSE: Duration = Duration::from_millis(10);
const SERVICE: &str = "bench-times";
const DURATION: &str = "http_server_request_duration_seconds_sum";

/// # Errors
/// When the server does not compile, the agent does not start, or an exchange is not told of.
pub(super) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let folder = tempfile::Builder::new()
        .prefix("telltale-bench-")
        .tempdir()?;
    let log = folder.path().join("times.log");
    let address = free_address()?;
    let server = launch(folder.path(), &log, address, &setting.processors.server)?;
    let paths: Vec<_> = (0..EXCHANGES)
        .map(|number| format!("/times/{number:04}"))
        .collect();
    let agent =
        Agent::start(&setting.agent, &setting.processors.agent, &config(&paths))?.past_samples();
    wait_for("the server", || Ok(TcpStream::connect(address)?)).map(drop)?;
    for path in &paths {
        KeptAlive::new(address, path)?.exchange()?;
    }
    let small = told(&log, &agent, EXCHANGES)?;
    let mut errors_us: Vec<_> = small
        .values()
        .map(|[own_ns, told_ns]| (told_ns - own_ns).abs() / 1e3)
        .collect();
    let mut long = Vec::new();
    for number in 1..=DOWNLOADS {
        download(address)?;
        let all = told(&log, &agent, EXCHANGES + 1)?;
        long.push(all["/download"]);
        ensure!(long.len() == number);
    }
    drop(server);
    agent.stop()?;
    Ok(figures(&mut errors_us, &long))
}

fn figures(errors_us: &mut [f64], long: &[[f64; 2]]) -> Vec<Figure> {
    let middle = median(errors_us.iter().copied());
    let p99 = quantile(errors_us, 0.99).unwrap_or_default();
    let most = quantile(errors_us, 1.0).unwrap_or_default();
    let [own_ns, told_ns] = long.last().copied().unwrap_or_default();
    // Sums grow with each download: the last one tells of all.
    let off_percent = (told_ns / own_ns - 1.0).abs() * 1e2;
    let count = long.len();
    vec![
        Figure::new(
            format!(
                "duration against what the server took itself, {EXCHANGES} exchanges: median error"
            ),
            middle,
            "µs",
            format!("{middle:.1} µs"),
        )
        .reach(Reach::AtMost(20.0)),
        Figure::new(
            "the same: 99th percentile",
            p99,
            "µs",
            format!("{p99:.1} µs (worst {most:.1} µs)"),
        )
        .reach(Reach::AtMost(100.0)),
        Figure::new(
            format!("{count} answers of 183 MB by sendfile: off by"),
            off_percent,
            "%",
            format!(
                "{off_percent:.4} % of {:.0} ms",
                own_ns / 1e6 / count as f64
            ),
        )
        .reach(Reach::AtMost(1.0)),
    ]
}

/// Compiles and starts the server.
fn launch(folder: &Path, log: &Path, address: SocketAddr, processors: &str) -> Result<Kept> {
    let binary = folder.join(SERVICE);
    let source = paths::root().join("tests/workloads/times.c");
    output(
        Command::new("gcc")
            .args(["-O2", "-o"])
            .arg(&binary)
            .arg(source),
    )?;
    let file = folder.join("download");
    File::create(&file)?.set_len(DOWNLOAD_BYTES)?;
    let child = pinned(processors, &binary)
        .arg(address.port().to_string())
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(File::create(log)?)
        .spawn()
        .context("cannot start the server")?;
    Ok(Kept(child))
}

/// The server's exchanges alone, each with a route of its own.
fn config(paths: &[String]) -> String {
    let templates = paths.join(", ");
    format!(
        "targets: {{include: [{{executable: {SERVICE}}}]}}\n\
         routes: {{max_per_service: 10000, templates: {{'{SERVICE}': [{templates}, /download]}}}}\n\
         metrics: {{max_series: 100000}}\n"
    )
}

/// Reads the long answer, slower than it could come.
fn download(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /download HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut room = vec![0; 1 << 20];
    let (mut all, mut since_pause) = (0, 0);
    while all < DOWNLOAD_BYTES {
        let read = stream.read(&mut room)?;
        ensure!(read > 0, "the download ended after {all} bytes");
        all += read as u64;
        since_pause += read;
        if since_pause >= PIECE_BYTES {
            since_pause = 0;
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Nanoseconds by path, summed over its exchanges: the server's and the agent's.
fn told(log: &Path, agent: &Agent, wanted: usize) -> Result<BTreeMap<String, [f64; 2]>> {
    wait_for("the agent's account", || {
        let mut all: BTreeMap<String, [f64; 2]> = BTreeMap::new();
        let lines = std::fs::read_to_string(log)?;
        let count = lines.lines().count();
        for line in lines.lines() {
            let (path, ns) = line.split_once(' ').context("a line of the server")?;
            all.entry(path.to_owned()).or_default()[0] += ns.parse::<f64>()?;
        }
        let metrics = agent.metrics()?;
        let counted: f64 = samples(&metrics, "http_server_request_duration_seconds_count")
            .map(|(_, value)| value)
            .sum();
        for (labels, seconds) in samples(&metrics, DURATION) {
            let path = all
                .iter_mut()
                .find(|(path, _)| labels.contains(&label("http_route", path)));
            if let Some((_, times)) = path {
                times[1] += seconds * 1e9;
            }
        }
        ensure!(
            all.len() == wanted && counted == count as f64,
            "{} paths of {wanted}, {counted} exchanges of {count}",
            all.len()
        );
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_errors_of_single_exchanges_and_of_all_downloads() {
        let mut errors_us: Vec<_> = (1..=100).map(f64::from).collect();
        let shown: Vec<_> = figures(&mut errors_us, &[[1e8, 1e8], [2e8, 2.03e8]])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(
            shown[0].contains("50.5 µs") && shown[0].ends_with("missed |"),
            "{shown:?}"
        );
        assert!(
            shown[1].contains("99.0 µs") && shown[1].ends_with("ok |"),
            "{shown:?}"
        );
        assert!(
            shown[2].contains("1.5000 % of 100 ms") && shown[2].ends_with("missed |"),
            "{shown:?}"
        );
    }
}
