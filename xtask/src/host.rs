//! What this machine has and may: privileges, programs on the path, Debian packages.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{output, run};

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    // The owner of /proc/self is the effective user: no call into libc is needed.
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// A command that runs as root: through sudo where we are somebody else.
pub(crate) fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// The program's path, from the search path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Debian keeps daemons in sbin, which is not on the path of ordinary users.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| {
        fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

/// `apt-get` with the options that suit scripts: waits for a lock, asks nothing.
pub(crate) fn apt_get(as_root_user: bool) -> Command {
    let mut command = if as_root_user {
        as_root("apt-get")
    } else {
        Command::new("apt-get")
    };
    command.args([
        "-qq",
        "-o",
        "DPkg::Lock::Timeout=600",
        "-o",
        "APT::Sandbox::User=root",
    ]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The version that apt would install, if its lists know the package.
pub(crate) fn candidate(package: &str) -> Option<String> {
    let policy = output(Command::new("apt-cache").args(["policy", package])).ok()?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Installs those of the Debian packages that are missing, telling which.
///
/// # Errors
/// Without apt, or when it fails.
pub(crate) fn install_packages(packages: &BTreeSet<&str>) -> Result<()> {
    let missing: Vec<_> = packages
        .iter()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(|name| **name).collect::<Vec<_>>();
    if find("apt-get").is_none() {
        bail!(
            "this is no Debian: install what these packages hold by hand: {}",
            names.join(" ")
        );
    }
    println!("installing Debian packages: {}", names.join(" "));
    if names.iter().any(|name| candidate(name).is_none()) {
        run(apt_get(true).arg("update"))?;
    }
    run(apt_get(true)
        .args(["install", "--yes", "--no-install-recommends"])
        .args(names))
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}
