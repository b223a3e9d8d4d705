//! Where the tests find the programs that they drive.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const ADVICE: &str = "run the tests with `cargo xtask test`, which installs it";

/// The agent's binary.
///
/// # Errors
/// When it is not there.
pub fn agent() -> Result<PathBuf> {
    let path = match env::var_os("TELLTALE_BIN") {
        Some(path) => PathBuf::from(path),
        // target/debug/deps/http-0123 → target/debug/telltale
        None => env::current_exe()?
            .parent()
            .and_then(Path::parent)
            .context("the test binary has no build folder")?
            .join("telltale"),
    };
    if !path.is_file() {
        bail!(
            "no agent at {}: build it (`cargo build -p agent`) or set TELLTALE_BIN",
            path.display()
        );
    }
    Ok(path)
}

/// A program of the Python virtual environment: `python`, `uvicorn`, `gunicorn`.
///
/// # Errors
/// When it is not there.
pub fn python(program: &str) -> Result<PathBuf> {
    from_variable("TELLTALE_VENV", &Path::new("bin").join(program))
}

/// CPython 3.14.
///
/// # Errors
/// When it is not there.
pub fn newest_python() -> Result<PathBuf> {
    from_variable("TELLTALE_PYTHON_3_14", Path::new(""))
}

/// The `node_modules` folder with `package`.
///
/// # Errors
/// When the package is not there.
pub fn node_modules(package: &str) -> Result<PathBuf> {
    from_variable("TELLTALE_NODE_MODULES", Path::new(package))?;
    from_variable("TELLTALE_NODE_MODULES", Path::new(""))
}

/// The OpenTelemetry Collector.
///
/// # Errors
/// When it is not there.
pub fn collector() -> Result<PathBuf> {
    from_variable("TELLTALE_COLLECTOR", Path::new(""))
}

/// The Java class path in the file that `variable` names.
///
/// # Errors
/// When it is not there.
pub fn class_path(variable: &str) -> Result<String> {
    let path = from_variable(variable, Path::new(""))?;
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// `java` of a JDK that is `least_version` or newer: the first of `TELLTALE_JDK`, `PATH` and the
/// folders where Linux distributions put them.
///
/// # Errors
/// When there is none.
pub fn java(least_version: u32) -> Result<PathBuf> {
    let told = env::var_os("TELLTALE_JDK").map(|home| Path::new(&home).join("bin/java"));
    let installed = std::fs::read_dir("/usr/lib/jvm").into_iter().flatten();
    let installed = installed.filter_map(|entry| Some(entry.ok()?.path().join("bin/java")));
    told.into_iter()
        .chain(on_path("java").ok())
        .chain(installed)
        .find(|java| java_version(java) >= Some(least_version))
        .with_context(|| {
            format!(
                "no JDK of {least_version} or newer: install one, or set TELLTALE_JDK to its folder"
            )
        })
}

/// The major version in a JDK's own `release` file: `JAVA_VERSION="17.0.15"`.
fn java_version(java: &Path) -> Option<u32> {
    let program = java.canonicalize().ok()?;
    let home = program.parent()?.parent()?;
    let release = std::fs::read_to_string(home.join("release")).ok()?;
    let mut lines = release.lines();
    let version = lines.find_map(|line| line.strip_prefix("JAVA_VERSION=\""))?;
    version.split(['.', '"']).next()?.parse().ok()
}

/// A program on `PATH`.
///
/// # Errors
/// When it is not there.
pub fn on_path(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps nginx and bpftool in sbin, which is not on every root's PATH.
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("`{program}` is not on PATH: {ADVICE}"))
}

/// A file of `tests/workloads`.
#[must_use]
pub fn workload(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("workloads")
        .join(name)
}

fn from_variable(variable: &str, below: &Path) -> Result<PathBuf> {
    let root = env::var_os(variable).with_context(|| format!("{variable} is not set: {ADVICE}"))?;
    let mut path = PathBuf::from(root);
    if below != Path::new("") {
        path.push(below);
    }
    if !path.exists() {
        bail!("{variable} has no {}: {ADVICE}", path.display());
    }
    Ok(path)
}
