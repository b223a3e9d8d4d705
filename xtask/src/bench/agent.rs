//! The agent under measurement.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Kept;
use super::load::{CLIENT, SERVER, STATUS_PATH, get};
use crate::command::output;

const START_TIMEOUT: Duration = Duration::from_secs(20);
/// The kernel counts a process's processor time in these, whatever its own clock's rate.
const TICKS_PER_SECOND: f64 = 100.0;

const LOSSES: &str = "telltale_losses_total";
const EXCHANGES: &str = "telltale_http_exchanges_total";

/// A ready agent.
pub(crate) struct Agent {
    address: SocketAddr,
    child: Kept,
    folder: tempfile::TempDir,
    ready: Duration,
    cpu_at_start: f64,
    started: Instant,
    /// A request that was under way while the agent attached is a loss of its own.
    losses_at_start: BTreeMap<String, u64>,
}

/// What one run showed.
#[derive(Debug)]
pub(crate) struct AgentFigures {
    pub(crate) ready_ms: f64,
    pub(crate) rss_bytes: u64,
    pub(crate) peak_rss_bytes: u64,
    /// Processors that the agent kept busy during the load.
    pub(crate) cpus: f64,
    /// Requests that nginx served, and that the agent saw it serve.
    pub(crate) served: u64,
    pub(crate) server_counted: u64,
    /// Exchanges that the agent saw wrk complete: those without an error.
    pub(crate) client_counted: u64,
    /// Losses under load, by their labels.
    pub(crate) losses: BTreeMap<String, u64>,
    /// Exchanges of the whole machine, by their labels.
    pub(crate) exchanges: BTreeMap<String, u64>,
    /// Nanoseconds in kernel programs, where the agent tells.
    pub(crate) programs_ns: f64,
    /// Verified instructions by kernel program.
    pub(crate) verified_instructions: BTreeMap<String, u64>,
}

impl Agent {
    /// Starts the agent on these processors, with this configuration, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in twenty seconds; with its log.
    pub(crate) fn start(binary: &Path, processors: &str, config: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("telltale-bench-")
            .tempdir()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let log = File::create(folder.path().join("output.log"))?;
        let config_path = folder.path().join("telltale.yaml");
        fs::write(&config_path, config)?;
        let started = Instant::now();
        let child = Command::new("taskset")
            .args(["--cpu-list", processors])
            .arg(binary)
            .args(["run", "--listen", &address.to_string(), "--config"])
            .arg(&config_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let ready = Duration::ZERO;
        let mut agent = Self {
            address,
            child: Kept(child),
            folder,
            ready,
            cpu_at_start: 0.0,
            losses_at_start: BTreeMap::new(),
            started,
        };
        while get(address, "/readyz").is_err() {
            if let Some(status) = agent.child.0.try_wait()? {
                bail!("the agent ended with {status}; it wrote:\n{}", agent.log());
            }
            if started.elapsed() > START_TIMEOUT {
                bail!("the agent is not ready; it wrote:\n{}", agent.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        agent.ready = started.elapsed();
        agent.losses_at_start = above_zero(&get(address, "/metrics")?, LOSSES);
        agent.cpu_at_start = agent.cpu_seconds()?;
        agent.started = Instant::now();
        Ok(agent)
    }

    /// Reads what the agent says after a load of so many served requests, and stops it.
    ///
    /// # Errors
    /// When it does not answer, or does not end cleanly on SIGTERM.
    pub(crate) fn stop(mut self, served: u64) -> Result<AgentFigures> {
        let cpus = (self.cpu_seconds()? - self.cpu_at_start) / self.started.elapsed().as_secs_f64();
        let metrics = self.settled_metrics()?;
        // nginx served all that it read; wrk leaves the last requests without reading the answer.
        let server_counted = total(
            &metrics,
            "http_server_request_duration_seconds_count",
            |labels| {
                labels.contains(&label("service_name", SERVER))
                    && !labels.contains(&label("http_route", STATUS_PATH))
            },
        );
        let client_counted = total(
            &metrics,
            "http_client_request_duration_seconds_count",
            |labels| {
                labels.contains(&label("service_name", CLIENT))
                    && labels.contains(&label("error_type", ""))
            },
        );
        let figures = AgentFigures {
            ready_ms: self.ready.as_secs_f64() * 1e3,
            rss_bytes: self.status_bytes("VmRSS:")?,
            peak_rss_bytes: self.status_bytes("VmHWM:")?,
            cpus,
            served,
            server_counted: server_counted as u64,
            client_counted: client_counted as u64,
            losses: under_load(since(above_zero(&metrics, LOSSES), &self.losses_at_start)),
            exchanges: above_zero(&metrics, EXCHANGES),
            programs_ns: total(&metrics, "telltale_bpf_run_seconds_total", |_| true) * 1e9,
            verified_instructions: self.verified_instructions()?,
        };
        output(Command::new("kill").args(["-TERM", &self.pid()]))?;
        let stopping = Instant::now();
        loop {
            match self.child.0.try_wait()? {
                Some(status) if status.success() => return Ok(figures),
                Some(status) => bail!("the agent ended with {status}; it wrote:\n{}", self.log()),
                None if stopping.elapsed() > START_TIMEOUT => bail!("the agent does not stop"),
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The metrics once their counts stand still: what the load left in rings is drained.
    fn settled_metrics(&self) -> Result<String> {
        let exchanges = |text: &str| total(text, EXCHANGES, |_| true);
        let mut metrics = get(self.address, "/metrics")?;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(250));
            let later = get(self.address, "/metrics")?;
            let before = exchanges(&metrics);
            metrics = later;
            // The scrape itself is an exchange or two.
            if exchanges(&metrics) - before < 5.0 {
                break;
            }
        }
        Ok(metrics)
    }

    /// taskset becomes the program that it starts, so the child is the agent.
    fn pid(&self) -> String {
        self.child.0.id().to_string()
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.pid()).join(file)
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.proc("stat"))?;
        // The name, in brackets, may hold spaces; user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
        let mut times = fields.split_whitespace().skip(11);
        let mut next = || times.next().and_then(|ticks| ticks.parse::<f64>().ok());
        let (user, system) = next().zip(next()).context("no times in /proc/PID/stat")?;
        Ok((user + system) / TICKS_PER_SECOND)
    }

    fn status_bytes(&self, name: &str) -> Result<u64> {
        let status = fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes
            .with_context(|| format!("no {name}"))?
            .parse::<u64>()?
            * 1024)
    }

    /// From the descriptors of the agent's programs; `verified_insns` is there since kernel 5.16.
    fn verified_instructions(&self) -> Result<BTreeMap<String, u64>> {
        let programs: serde_json::Value = serde_json::from_str(&output(
            Command::new("bpftool").args(["prog", "show", "-j"]),
        )?)?;
        let name_of = |id: u64| {
            let programs = programs.as_array()?;
            let program = programs
                .iter()
                .find(|program| program["id"].as_u64() == Some(id))?;
            program["name"].as_str().map(str::to_owned)
        };
        let mut verified = BTreeMap::new();
        for entry in fs::read_dir(self.proc("fdinfo"))? {
            // A descriptor can be closed while we look.
            let Ok(info) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            let field = |name: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<u64>().ok()
            };
            if let (Some(id), Some(count)) = (field("prog_id:"), field("verified_insns:")) {
                verified.insert(
                    name_of(id).unwrap_or_else(|| format!("program {id}")),
                    count,
                );
            }
        }
        Ok(verified)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("output.log")).unwrap_or_default()
    }
}

/// Samples of a metric family in the text format: their labels and values.
fn samples<'a>(text: &'a str, name: &str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (family, labels) = series.split_once('{').unwrap_or((series, ""));
            (family == name).then(|| Some((labels.trim_end_matches('}'), value.parse().ok()?)))?
        })
}

/// The sum of a family's samples whose labels are wanted.
fn total(text: &str, name: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    samples(text, name)
        .filter(|(labels, _)| wanted(labels))
        .map(|(_, value)| value)
        .sum()
}

/// A label as the text format writes it.
fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

/// Series of a family above zero, by their labels.
fn above_zero(text: &str, name: &str) -> BTreeMap<String, u64> {
    let above_zero = samples(text, name).filter(|(_, value)| *value > 0.0);
    above_zero
        .map(|(labels, value)| (format!("{{{labels}}}"), value as u64))
        .collect()
}

/// What grew, and by how much.
fn since(now: BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = now.into_iter().map(|(labels, count)| {
        let count = count - before.get(&labels).copied().unwrap_or(0).min(count);
        (labels, count)
    });
    grown.filter(|(_, count)| *count > 0).collect()
}

/// The losses that are the load's: what began before the agent, and other programs' TLS, are not.
fn under_load(losses: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let of_others = [label("reason", "before_agent"), label("reason", "tls")];
    let losses = losses.into_iter();
    losses
        .filter(|(labels, _)| !of_others.iter().any(|other| labels.contains(other)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP a_count Of a.
a_count{service_name=\"nginx\",http_route=\"/a b\"} 3
a_count{service_name=\"wrk\"} 5
a_count_more 7
telltale_losses_total{reason=\"full\",stage=\"ring\"} 2
telltale_losses_total{reason=\"bad\",stage=\"ring\"} 0
";

    #[test]
    fn samples_are_summed_by_family_and_label() {
        assert_eq!(total(TEXT, "a_count", |_| true), 8.0);
        let nginx = label("service_name", "nginx");
        assert_eq!(
            total(TEXT, "a_count", |labels| labels.contains(&nginx)),
            3.0
        );
        assert_eq!(total(TEXT, "b_count", |_| true), 0.0);
    }

    #[test]
    fn only_losses_that_happened_are_told() {
        let losses =
            |count| BTreeMap::from([("{reason=\"full\",stage=\"ring\"}".to_owned(), count)]);
        let told = above_zero(TEXT, LOSSES);
        assert_eq!(told, losses(2));
        assert_eq!(since(told.clone(), &losses(1)), losses(1));
        assert_eq!(since(told.clone(), &told), BTreeMap::new());
    }
}
