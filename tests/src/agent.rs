//! The agent under test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::child::{Child, free_port};
use crate::client::{Client, Request, Response};
use crate::metrics::Metrics;
use crate::prerequisite;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Environment variable with the tap of agents whose test does not choose one. `cargo xtask kernels`
/// runs suites once with each.
const TAP: &str = "E2E_TAP";

/// How to start the agent: `telltale run` with a free port, unless told otherwise.
#[derive(Debug)]
pub struct AgentCommand {
    binary: Option<PathBuf>,
    subcommand: &'static str,
    prefix: Vec<String>,
    listen: SocketAddr,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    config: Option<String>,
}

/// A run of the agent that came to its end.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote, standard output and standard error.
    pub output: String,
}

/// A ready agent. Dropping it ends it and prints the end of its log and its counters, which
/// libtest shows when the test failed.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    address: SocketAddr,
}

impl AgentCommand {
    /// Adds an argument after the subcommand.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Writes this YAML to a file and passes it with `--config`.
    #[must_use]
    pub fn config(mut self, yaml: impl Into<String>) -> Self {
        self.config = Some(yaml.into());
        self
    }

    /// Another address for `--listen`.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Another file than [`prerequisite::agent`].
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// Another subcommand than `run`; it gets no `--listen`.
    #[must_use]
    pub fn subcommand(mut self, subcommand: &'static str) -> Self {
        self.subcommand = subcommand;
        self
    }

    /// Starts the agent through another program, such as `setpriv --reuid …`.
    #[must_use]
    pub fn through(mut self, prefix: &[&str]) -> Self {
        self.prefix = prefix.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Starts the agent and waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When it ends first or is not ready in 20 seconds; with its log.
    pub fn start(self) -> Result<Agent> {
        let address = self.listen;
        let mut child = self.spawn()?;
        child.wait_until(START_TIMEOUT, || {
            Client::once(address, &Request::new("GET", "/readyz"))
                .is_ok_and(|response| response.status == 200)
        })?;
        Ok(Agent { child, address })
    }

    /// Runs the agent to its own end.
    ///
    /// # Errors
    /// When it still runs after `timeout`; with its log.
    pub fn run_to_end(self, timeout: Duration) -> Result<Finished> {
        let mut child = self.spawn()?;
        let status = child.wait(timeout)?;
        Ok(Finished {
            status,
            output: child.output(),
        })
    }

    /// Starts the agent without waiting for anything.
    ///
    /// # Errors
    /// When there is no agent to start.
    pub fn spawn(self) -> Result<Child> {
        let binary = self.binary.map_or_else(prerequisite::agent, Ok)?;
        let folder = tempfile::tempdir()?;
        let mut command = match self.prefix.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(prerequisite::on_path(program)?);
                command.args(arguments).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.arg(self.subcommand);
        if self.subcommand == "run" {
            command.args(["--listen", &self.listen.to_string()]);
        }
        if let Some(yaml) = with_tap(self.config) {
            let path: PathBuf = folder.path().join("telltale.yaml");
            std::fs::write(&path, &yaml)?;
            command.arg("--config").arg(path);
        }
        command.args(&self.arguments);
        // The tests' own environment must not configure the agent.
        for (name, _) in std::env::vars() {
            if name.starts_with("OTEL_") || name.starts_with("TELLTALE_") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment);
        Child::spawn("telltale", command, folder)
    }
}

/// The configuration with the tap that [`TAP`] names, unless the test chose one.
fn with_tap(config: Option<String>) -> Option<String> {
    let tap = std::env::var(TAP).ok().map(|tap| format!("tap: {tap}\n"));
    match (config, tap) {
        (Some(yaml), Some(_)) if yaml.lines().any(|line| line.starts_with("tap:")) => Some(yaml),
        (Some(yaml), tap) => Some(format!("{yaml}\n{}", tap.unwrap_or_default())),
        (None, tap) => tap,
    }
}

impl Agent {
    /// `telltale run` on a free port.
    ///
    /// # Errors
    /// When no port is free.
    pub fn command() -> Result<AgentCommand> {
        Ok(AgentCommand {
            binary: None,
            subcommand: "run",
            prefix: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            arguments: Vec::new(),
            environment: Vec::new(),
            config: None,
        })
    }

    /// A ready agent with its defaults.
    ///
    /// # Errors
    /// As [`AgentCommand::start`].
    pub fn start() -> Result<Self> {
        Self::command()?.start()
    }

    /// One that samples where it is asked to, and only there.
    ///
    /// # Errors
    /// As [`AgentCommand::start`].
    pub fn for_profiles() -> Result<Self> {
        Self::command()?
            .config("profile: {continuous: {hz: 0}}")
            .start()
    }

    /// Where its HTTP API listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.child.output()
    }

    /// One GET of its HTTP API, whatever the status of the answer.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn get(&self, target: &str) -> Result<Response> {
        Client::once(
            self.address,
            &Request::new("GET", target).header("Connection: close"),
        )
        .with_context(|| format!("GET {target}"))
    }

    /// One scrape of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer, not with 200, or not in the Prometheus text format.
    pub fn metrics(&self) -> Result<Metrics> {
        let response = self.get("/metrics")?;
        ensure!(
            response.status == 200,
            "/metrics answers {}",
            response.status
        );
        Metrics::parse(&response.text())
    }

    /// Asks it to end with SIGTERM and waits.
    ///
    /// # Errors
    /// When it has not ended after 20 seconds.
    pub fn stop(self) -> Result<Finished> {
        self.stop_with(Signal::TERM)
    }

    /// Ends it with another signal and waits.
    ///
    /// # Errors
    /// When it has not ended after 20 seconds.
    pub fn stop_with(mut self, signal: Signal) -> Result<Finished> {
        self.child.signal(signal)?;
        let status = self.child.wait(STOP_TIMEOUT)?;
        Ok(Finished {
            status,
            output: self.log(),
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(metrics) = self.metrics() {
            println!(
                "--- the agent's counters\n{}",
                metrics.excerpt(&["telltale_", "http_", "db_"])
            );
        }
        let log = self.log();
        let start = log.len().saturating_sub(4_000);
        let tail = log.get(start..).unwrap_or(&log);
        println!("--- the end of the agent's log\n{tail}");
    }
}
