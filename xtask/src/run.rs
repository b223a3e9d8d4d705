//! `cargo xtask run`: the agent on this host, from its sources.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{cargo, run as run_command, shown};
use crate::{host, paths};

/// Where the agent listens unless it is told otherwise.
const DEFAULT_LISTEN: &str = "127.0.0.1:9464";

/// Variables that configure the agent: sudo would drop them.
const KEPT_VARIABLES: &str = "TELLTALE_CONFIG,TELLTALE_LISTEN,TELLTALE_LOG_FORMAT,\
    TELLTALE_LOG_LEVEL,OTEL_EXPORTER_OTLP_ENDPOINT,OTEL_EXPORTER_OTLP_PROTOCOL,\
    OTEL_EXPORTER_OTLP_HEADERS,RUST_BACKTRACE";

/// Builds the agent and becomes it, as root. `flags` are those of `telltale run`.
///
/// # Errors
/// When the build fails or the machine cannot run the agent; on success this does not return.
pub(crate) fn run(flags: &[String]) -> Result<()> {
    preflight()?;
    let agent = build_agent("quick")?;
    let mut command = if host::is_root() {
        Command::new(&agent)
    } else {
        println!(
            "\nThe agent loads programs into the kernel, which takes root: starting it by sudo."
        );
        let mut command = Command::new("sudo");
        command
            .arg(format!("--preserve-env={KEPT_VARIABLES}"))
            .arg(&agent);
        command
    };
    command.arg("run").args(flags);
    let from_variable = env::var("TELLTALE_LISTEN").ok();
    let listen = listen_address(flags)
        .or(from_variable.as_deref())
        .unwrap_or(DEFAULT_LISTEN);
    println!("\n  Look at   http://{listen}/ (unless a configuration file says otherwise)");
    println!("  Metrics   http://{listen}/metrics");
    println!("  Stop      Ctrl-C\n");
    println!("$ {}", shown(&command));
    // Becoming the agent leaves nobody between it and the terminal's signals.
    Err(command.exec()).with_context(|| format!("cannot start {}", agent.display()))
}

/// Builds the agent by that profile of Cargo.toml and returns its path.
///
/// # Errors
/// When the build fails.
pub(crate) fn build_agent(profile: &str) -> Result<PathBuf> {
    let arguments = ["--package", "agent", "--bin", "telltale"];
    run_command(
        cargo()
            .args(["build", "--profile", profile])
            .args(arguments),
    )?;
    Ok(paths::target().join(profile).join("telltale"))
}

/// What can be told before the build, which takes a minute or two.
fn preflight() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("Telltale watches Linux hosts");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "this kernel does not describe its types: /sys/kernel/btf/vmlinux is missing \
             (CONFIG_DEBUG_INFO_BTF, on in all distributions' kernels since 2021)"
        );
    }
    if !host::is_root() && host::find("sudo").is_none() {
        bail!("the agent needs root, and there is no sudo here: call this task as root");
    }
    Ok(())
}

/// The value of `--listen`, in either spelling.
fn listen_address(flags: &[String]) -> Option<&str> {
    let position = flags.iter().position(|flag| flag == "--listen");
    let separate = position
        .and_then(|at| flags.get(at + 1))
        .map(String::as_str);
    separate.or_else(|| flags.iter().find_map(|flag| flag.strip_prefix("--listen=")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_told_is_the_one_the_agent_is_given() {
        let flags = |flags: &[&str]| {
            flags
                .iter()
                .map(|&flag| flag.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            listen_address(&flags(&["--listen", "[::1]:80"])),
            Some("[::1]:80")
        );
        assert_eq!(
            listen_address(&flags(&["--log-level=debug", "--listen=[::]:1"])),
            Some("[::]:1")
        );
        assert_eq!(listen_address(&flags(&["--listen"])), None);
    }
}
