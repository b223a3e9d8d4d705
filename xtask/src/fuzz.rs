//! `cargo xtask fuzz`: every fuzz target for a while, from its committed inputs on.
//!
//! cargo-fuzz wants a nightly compiler, for its sanitizers. Code without `unsafe` needs none: what
//! libFuzzer has to know, stable Rust tells it too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::command::{output, run};
use crate::paths;

/// Packages of fuzz targets, by their folders.
const PACKAGES: [&str; 3] = ["agent/fuzz", "agent/protocol/fuzz", "agent/profile/fuzz"];

/// Coverage as cargo-fuzz asks for it, and every check that a debug build has.
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks \
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

#[derive(Args)]
pub(crate) struct Fuzz {
    /// Targets, named as the files of fuzz_targets; all of them unless told
    targets: Vec<String>,
    /// Seconds that each one runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Runs them one after the other. Inputs that lead somewhere new are left in `target/fuzz/corpus`,
/// those that fail in `target/fuzz`.
///
/// # Errors
/// When a target does not compile, or an input makes it fail; when there is none of that name.
pub(crate) fn fuzz(arguments: &Fuzz) -> Result<()> {
    let mut known = Vec::new();
    for package in PACKAGES {
        let package = paths::root().join(package);
        for target in targets(&package)? {
            known.push((package.clone(), target));
        }
    }
    let names = || known.iter().map(|(_, target)| target.as_str());
    for wanted in &arguments.targets {
        ensure!(
            names().any(|name| name == wanted),
            "no fuzz target is called {wanted}; there are {}",
            names().collect::<Vec<_>>().join(", ")
        );
    }
    let triple = host_triple()?;
    for package in PACKAGES {
        build(&paths::root().join(package), &triple)?;
    }
    let wanted = |name: &String| arguments.targets.is_empty() || arguments.targets.contains(name);
    for (package, target) in known.iter().filter(|(_, name)| wanted(name)) {
        run_target(package, target, &triple, arguments.seconds)?;
    }
    Ok(())
}

fn targets(package: &Path) -> Result<Vec<String>> {
    let folder = package.join("fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(name) = path.file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Where all of it goes.
fn folder() -> PathBuf {
    paths::target().join("fuzz")
}

fn host_triple() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let line = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc does not tell its host")?.to_owned())
}

fn build(package: &Path, triple: &str) -> Result<()> {
    run(Command::new("cargo")
        .args(["build", "--release", "--locked", "--target", triple])
        .arg("--manifest-path")
        .arg(package.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", folder())
        .env("RUSTFLAGS", FLAGS))
}

fn run_target(package: &Path, target: &str, triple: &str, seconds: u32) -> Result<()> {
    let found = folder().join("corpus").join(target);
    fs::create_dir_all(&found)?;
    let mut command = Command::new(folder().join(triple).join("release").join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{target}-", folder().display()))
        .args(["-verbosity=0", "-print_final_stats=1", "-timeout=10"])
        .arg(&found);
    let committed = package.join("corpus").join(target);
    if committed.is_dir() {
        command.arg(committed);
    }
    let ended = command
        .output()
        .with_context(|| format!("cannot start fuzz target {target}"))?;
    let log = String::from_utf8_lossy(&ended.stderr);
    ensure!(
        ended.status.success(),
        "fuzz target {target} failed, {}:\n{log}",
        ended.status
    );
    let executed = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    println!("{target}: {} inputs", executed.unwrap_or("?").trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_targets_that_its_manifest_names() {
        for package in PACKAGES {
            let package = paths::root().join(package);
            let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap();
            let targets = targets(&package).unwrap();
            assert!(!targets.is_empty());
            for target in targets {
                assert!(
                    manifest.contains(&format!("name = \"{target}\"")),
                    "{target}"
                );
            }
        }
    }
}
