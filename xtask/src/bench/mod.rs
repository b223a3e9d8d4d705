//! `cargo xtask bench …`: what the agent costs, measured on this machine.

mod agent;
mod exposition;
mod figure;
mod http;
mod pairs;
mod processors;
mod profile;
mod server;

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::Subcommand;

use crate::host;
use crate::run::build_agent;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// What HTTP observation costs servers of several kinds, whether it counts right, how large
    /// and how quick the agent is; each figure beside its reach
    Http(http::Http),
    /// What profiles cost, whether they are true and complete; each figure beside its reach
    Profile(profile::Profile),
}

/// Measures and prints.
///
/// # Errors
/// When something cannot be installed, or the agent or a server does not start or answer.
pub(crate) fn bench(task: &Bench) -> Result<()> {
    match task {
        Bench::Http(arguments) => http::bench(arguments),
        Bench::Profile(arguments) => profile::bench(arguments),
    }
}

/// The agent to measure: `built`, or one built now. Becomes this task as root where we are not.
fn agent_as_root(built: Option<&Path>) -> Result<PathBuf> {
    let agent = match built {
        Some(agent) => agent.to_path_buf(),
        None => build_agent("release")?,
    };
    if host::is_root() {
        return Ok(agent);
    }
    eprintln!("The agent loads programs into the kernel: measuring as root, by sudo.");
    let mut command = Command::new("sudo");
    command.arg("env");
    for name in ["PATH", "CARGO_MANIFEST_DIR", "CARGO_TARGET_DIR"] {
        if let Some(value) = env::var_os(name) {
            command.arg(format!("{name}={}", value.to_string_lossy()));
        }
    }
    command
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1));
    if built.is_none() {
        command.arg("--agent").arg(agent);
    }
    Err(anyhow::Error::new(command.exec()).context("cannot start sudo"))
}
