//! The agent under measurement.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::exposition::{above_zero, label, since, total};
use super::processors::pinned;
use super::server::{Kept, free_address, get, get_within};
use crate::command::output;

const TIMEOUT: Duration = Duration::from_secs(20);
/// What is sampled is sampled for the first second of every seven or ten. By then the executables of
/// the host have been read too, on processors that may share cores with the server's.
const SETTLED: Duration = Duration::from_secs(3);
/// The kernel tells a process's processor time in these, whatever its own clock's rate.
const TICKS_PER_SECOND: f64 = 100.0;

const LOSSES: &str = "telltale_losses_total";
const HEADS: &str = "telltale_http_request_heads_total";
const EXCHANGES: &str = "telltale_http_exchanges_total";
const IN_FLIGHT: &str = "telltale_http_exchanges_in_flight";

/// Waits for as long as an agent is given to settle. After such a pause a server is slower for its first
/// second, by 5 to 10 %, whoever observes it: so the runs without the agent come after one too, and
/// each run that counts after one that does not.
pub(super) fn rest() {
    thread::sleep(SETTLED);
}

/// A ready agent.
pub(super) struct Agent {
    address: SocketAddr,
    child: Kept,
    folder: tempfile::TempDir,
    ready: Duration,
    /// Of what was under way while the agent attached.
    losses_at_start: BTreeMap<String, u64>,
}

impl Agent {
    /// Starts the agent on these processors, with this configuration, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in twenty seconds; with its log.
    pub(super) fn start(binary: &Path, processors: &str, config: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("telltale-bench-")
            .tempdir()?;
        let address = free_address()?;
        let log = File::create(folder.path().join("output.log"))?;
        let config_path = folder.path().join("telltale.yaml");
        fs::write(&config_path, config)?;
        let started = Instant::now();
        let child = pinned(processors, binary)
            .args(["run", "--listen", &address.to_string(), "--config"])
            .arg(&config_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut agent = Self {
            address,
            child: Kept(child),
            folder,
            ready: Duration::ZERO,
            losses_at_start: BTreeMap::new(),
        };
        while get(address, "/readyz").is_err() {
            if let Some(status) = agent.child.0.try_wait()? {
                bail!("the agent ended with {status}; it wrote:\n{}", agent.log());
            }
            if started.elapsed() > TIMEOUT {
                bail!("the agent is not ready; it wrote:\n{}", agent.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        agent.ready = started.elapsed();
        agent.losses_at_start = above_zero(&agent.metrics()?, LOSSES);
        Ok(agent)
    }

    /// Waits until its start is over, and what it watches now and then (arrivals, its programs'
    /// statistics) has been watched for the first time: a run of a few seconds that begins now is
    /// like most of the time.
    pub(super) fn past_samples(self) -> Self {
        rest();
        self
    }

    /// From its start until it answered that it observes.
    pub(super) fn ready_ms(&self) -> f64 {
        self.ready.as_secs_f64() * 1e3
    }

    /// What it says now.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn metrics(&self) -> Result<String> {
        get(self.address, "/metrics")
    }

    /// What it answers to GET.
    ///
    /// # Errors
    /// When it does not answer within fifteen seconds, or not with 200.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        get_within(self.address, path, Duration::from_secs(15))
    }

    /// What it says once its counts stand still: what a load left in rings is drained.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn settled(&self) -> Result<Settled> {
        let exchanges = |text: &str| total(text, EXCHANGES, |_| true);
        let mut metrics = self.metrics()?;
        for _ in 0..40 {
            thread::sleep(Duration::from_millis(100));
            let later = self.metrics()?;
            let before = exchanges(&metrics);
            metrics = later;
            // The scrape itself is an exchange or two, and may fall between two of the sums.
            if exchanges(&metrics) - before < 5.0 && unaccounted(&metrics) == 0.0 {
                break;
            }
        }
        Ok(Settled {
            losses: under_load(since(above_zero(&metrics, LOSSES), &self.losses_at_start)),
            metrics,
        })
    }

    /// Processor time that it has taken so far.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.proc("stat"))?;
        // The name, in brackets, may hold spaces; user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
        let mut times = fields.split_whitespace().skip(11);
        let mut next = || times.next().and_then(|ticks| ticks.parse::<f64>().ok());
        let (user, system) = next().zip(next()).context("no times in /proc/PID/stat")?;
        Ok((user + system) / TICKS_PER_SECOND)
    }

    /// Resident memory.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory that it has had.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn peak_rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// Memory of the kernel's maps that it holds, each once.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn map_bytes(&self) -> Result<u64> {
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(self.proc("fdinfo"))? {
            // A descriptor can be closed while we look.
            let Ok(info) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            let field = |name: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<u64>().ok()
            };
            if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
                maps.insert(id, bytes);
            }
        }
        Ok(maps.values().sum())
    }

    /// By kernel program, from the descriptors of the agent's programs; `verified_insns` is there
    /// since kernel 5.16.
    ///
    /// # Errors
    /// When bpftool does not answer.
    pub(super) fn verified_instructions(&self) -> Result<BTreeMap<String, u64>> {
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

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end cleanly on SIGTERM.
    pub(super) fn stop(mut self) -> Result<()> {
        output(Command::new("kill").args(["-TERM", &self.pid()]))?;
        let stopping = Instant::now();
        loop {
            match self.child.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the agent ended with {status}; it wrote:\n{}", self.log()),
                None if stopping.elapsed() > TIMEOUT => bail!("the agent does not stop"),
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// taskset becomes the program that it starts, so the child is the agent.
    fn pid(&self) -> String {
        self.child.0.id().to_string()
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.pid()).join(file)
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

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("output.log")).unwrap_or_default()
    }
}

/// What the agent says of a load that is over.
pub(super) struct Settled {
    metrics: String,
    /// Losses under load, by their labels.
    pub(super) losses: BTreeMap<String, u64>,
}

impl Settled {
    /// Exchanges of a server's service on all routes but `except`.
    pub(super) fn at_server(&self, service: &str, except: &str) -> u64 {
        let exchanges = total(
            &self.metrics,
            "http_server_request_duration_seconds_count",
            |labels| {
                labels.contains(&label("service_name", service))
                    && !labels.contains(&label("http_route", except))
            },
        );
        exchanges as u64
    }

    /// Exchanges of a client's service that did not break.
    pub(super) fn at_client(&self, service: &str) -> u64 {
        let exchanges = total(
            &self.metrics,
            "http_client_request_duration_seconds_count",
            |labels| {
                labels.contains(&label("service_name", service))
                    && labels.contains(&label("error_type", ""))
            },
        );
        exchanges as u64
    }

    /// Nanoseconds in kernel programs.
    pub(super) fn programs_ns(&self) -> f64 {
        total(&self.metrics, "telltale_bpf_run_seconds_total", |_| true) * 1e9
    }

    /// By how much request heads differ from exchanges by outcome and in flight.
    pub(super) fn unaccounted(&self) -> f64 {
        unaccounted(&self.metrics)
    }
}

fn unaccounted(metrics: &str) -> f64 {
    let of = |name| total(metrics, name, |_| true);
    (of(HEADS) - of(EXCHANGES) - of(IN_FLIGHT)).abs()
}

/// The losses that are the load's: what began before the agent, and other programs' TLS, are not.
fn under_load(losses: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let of_others = [label("reason", "before_agent"), label("reason", "tls")];
    let losses = losses.into_iter();
    losses
        .filter(|(labels, _)| !of_others.iter().any(|other| labels.contains(other)))
        .collect()
}
