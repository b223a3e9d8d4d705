//! `cargo xtask kernels`: the agent on Debian's stock kernels, in QEMU.
//!
//! Each guest boots a kernel with nothing but busybox and a static agent, runs `telltale check`,
//! then counts requests between busybox's httpd and wget. Emulated: times mean nothing there.

mod debian;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::command::{cargo, run};
use crate::{host, paths};
use debian::Kernel;

/// Suites of Debian and what they boot: 5.10, 6.1, 6.12 (twice) and the newest two.
const SUITES: [&str; 6] = [
    "bullseye",
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
    "sid",
];

/// A guest that hangs is ended after so many seconds.
const GUEST_SECONDS: u32 = 170;

/// A busy host is late with the emulated timer, which the kernel would take for a broken one.
const KERNEL_PARAMETERS: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check";

const NEEDS: [&str; 4] = ["qemu-system-x86", "seabios", "busybox-static", "cpio"];

#[derive(Args)]
pub(crate) struct Kernels {
    /// Debian suites whose newest kernel to boot; all known ones without one
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(SUITES))]
    suites: Vec<String>,
    /// A static agent that is built already
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// Boots the kernels one after the other; the exit status is 0 where all guests succeeded.
///
/// # Errors
/// When the agent does not build or a kernel cannot be had.
pub(crate) fn kernels(arguments: &Kernels) -> Result<ExitCode> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the guests are x86-64, and so has to be the machine that builds their agent");
    }
    host::install_packages(&BTreeSet::from(NEEDS))?;
    let agent = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => build_static_agent()?,
    };
    let suites = match arguments.suites.as_slice() {
        [] => SUITES.map(str::to_owned).to_vec(),
        suites => suites.to_vec(),
    };
    let mut lines = Vec::new();
    let mut failed = 0;
    for suite in &suites {
        let folder = paths::target().join("kernels").join(suite);
        let kernel = debian::newest_kernel(suite, &folder)?;
        let start = Instant::now();
        let guest = boot(&kernel, &agent, &folder)?;
        let seconds = start.elapsed().as_secs();
        failed += u32::from(!guest.succeeded);
        let verdict = if guest.succeeded { "ok" } else { "FAILED" };
        println!(
            "\n== {} ({suite}), {seconds} s: {verdict}\n{}",
            kernel.version, guest.console
        );
        let counted = guest
            .counted
            .unwrap_or_else(|| "nothing counted".to_owned());
        lines.push(format!("{:<32} {verdict:<7} {counted}", kernel.version));
    }
    println!("\n{}", lines.join("\n"));
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What a guest left.
struct Guest {
    succeeded: bool,
    counted: Option<String>,
    console: String,
}

/// The agent without shared libraries: the guests have none.
fn build_static_agent() -> Result<PathBuf> {
    let triple = "x86_64-unknown-linux-gnu";
    let target = paths::target().join("static");
    run(cargo()
        .args([
            "build",
            "--release",
            "--package",
            "agent",
            "--bin",
            "telltale",
            "--target",
            triple,
        ])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static"))?;
    Ok(target.join(triple).join("release/telltale"))
}

fn boot(kernel: &Kernel, agent: &Path, folder: &Path) -> Result<Guest> {
    let initramfs = folder.join("initramfs.cpio");
    write_initramfs(agent, &initramfs)?;
    let output = Command::new("timeout")
        .arg(GUEST_SECONDS.to_string())
        .args([
            "qemu-system-x86_64",
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
        ])
        // With cx16 emulated, kernel 6.12 came up six times of eight.
        .args(["-cpu", "max,-cx16", "-smp", "2", "-m", "1536"])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", KERNEL_PARAMETERS])
        .stdin(Stdio::null())
        .output()
        .context("cannot start qemu-system-x86_64")?;
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let after = |mark: &str| {
        console.lines().find_map(|line| {
            line.split_once(mark)
                .map(|(_, rest)| rest.trim().to_owned())
        })
    };
    Ok(Guest {
        // A kernel that panics or hangs leaves no status.
        succeeded: after("GUEST-STATUS").as_deref() == Some("0"),
        counted: after("GUEST-COUNTED"),
        console,
    })
}

/// Packs busybox, the agent and the two scripts.
fn write_initramfs(agent: &Path, initramfs: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    for folder in ["bin", "proc", "sys", "dev", "tmp", "run", "etc"] {
        fs::create_dir(root.path().join(folder))?;
    }
    let busybox = host::find("busybox").context("busybox is not installed")?;
    fs::copy(busybox, root.path().join("bin/busybox"))?;
    fs::copy(agent, root.path().join("bin/telltale"))?;
    let init = root.path().join("init");
    fs::write(&init, include_str!("init.sh"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    fs::write(root.path().join("payload.sh"), include_str!("payload.sh"))?;
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --create --format=newc --quiet"])
        .current_dir(root.path())
        .stdout(File::create(initramfs)?)
        .status()?;
    if !status.success() {
        bail!("cpio failed: {status}");
    }
    Ok(())
}
