//! `cargo xtask test`: every test of the project, with what they need installed first.

mod install;
mod outcome;
mod prerequisites;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::command::cargo;
use crate::run::build_agent;
use crate::{host, paths};
use install::{Variable, prepare};
pub(crate) use install::{newest_python, python_environment};
use outcome::{Outcome, print_summary};

#[derive(Args)]
pub(crate) struct Test {
    /// End-to-end suites to run alone, named as the files of tests/tests; without one, all but
    /// `elasticsearch_versions`, which needs a JDK of 21 or newer
    suites: Vec<String>,
    /// Run the unit and property tests alone, which need nothing but Rust
    #[arg(long, conflicts_with = "suites")]
    unit: bool,
    /// Install nothing
    #[arg(long)]
    no_install: bool,
    /// For the test programs: a filter, --nocapture, …
    #[arg(last = true)]
    harness: Vec<String>,
}

/// Runs the tests; the exit status is 0 only where all of them passed.
///
/// # Errors
/// When a suite is unknown, something cannot be installed or the agent does not build.
pub(crate) fn test(arguments: &Test) -> Result<ExitCode> {
    let suites = selected_suites(arguments)?;
    let variables = prepare(&suites, !arguments.no_install)?;
    let mut outcomes = Vec::new();
    if arguments.suites.is_empty() {
        let mut command = cargo();
        command.args([
            "test",
            "--workspace",
            "--exclude",
            "e2e",
            "--no-fail-fast",
            "--",
        ]);
        command.args(&arguments.harness);
        outcomes.push(Outcome::of("unit and property tests", command)?);
    }
    if !suites.is_empty() {
        let agent = build_agent("quick")?;
        if !host::is_root() {
            println!("The agent loads programs into the kernel: its tests run as root, by sudo.");
        }
        let variables = [vec![("TELLTALE_BIN", agent)], variables].concat();
        for suite in &suites {
            let command = suite_command(suite, &variables, &arguments.harness);
            outcomes.push(Outcome::of(&format!("end to end: {suite}"), command)?);
        }
    }
    Ok(print_summary(&outcomes))
}

fn selected_suites(arguments: &Test) -> Result<Vec<String>> {
    if arguments.unit {
        return Ok(Vec::new());
    }
    let known = known_suites()?;
    if let Some(unknown) = arguments.suites.iter().find(|suite| !known.contains(suite)) {
        bail!(
            "no suite is named `{unknown}`; there are: {}",
            known.join(", ")
        );
    }
    Ok(if arguments.suites.is_empty() {
        let is_default = |suite: &String| !prerequisites::ON_DEMAND.contains(&suite.as_str());
        known.into_iter().filter(is_default).collect()
    } else {
        arguments.suites.clone()
    })
}

/// The files of `tests/tests`, without their ending.
fn known_suites() -> Result<Vec<String>> {
    let folder = paths::root().join("tests/tests");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut suites = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            suites.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    suites.sort();
    Ok(suites)
}

fn suite_command(suite: &str, variables: &[Variable], harness: &[String]) -> Command {
    let mut command = cargo();
    command.args([
        "test",
        "--package",
        "e2e",
        "--test",
        suite,
        "--no-fail-fast",
    ]);
    if !host::is_root() {
        command.arg("--config").arg(sudo_runner(variables));
    }
    command.envs(variables.iter().map(|(name, value)| (*name, value)));
    // An error of a test names what failed; where anyhow made it says nothing more.
    command.env("RUST_LIB_BACKTRACE", "0");
    command.arg("--");
    // One at a time: each starts servers and a load, and some measure time.
    if !harness
        .iter()
        .any(|argument| argument.starts_with("--test-threads"))
    {
        command.arg("--test-threads=1");
    }
    command.args(harness);
    command
}

/// Cargo's setting that starts test programs by sudo, with their variables and our search path.
fn sudo_runner(variables: &[Variable]) -> String {
    let mut words = vec!["sudo".to_owned(), "env".to_owned()];
    let path = PathBuf::from(env::var_os("PATH").unwrap_or_default());
    let kept = variables.iter().map(|(name, value)| (*name, value.clone()));
    for (name, value) in kept.chain([("PATH", path)]) {
        words.push(format!("{name}={}", value.display()));
    }
    // Debug formatting of these words is TOML's basic string.
    format!("target.'cfg(unix)'.runner={words:?}")
}
