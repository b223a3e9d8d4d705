//! `cargo xtask kernels`: the agent on Debian's stock kernels, in QEMU.
//!
//! Each guest boots a kernel with nothing but busybox, a static agent and static end-to-end suites.
//! It runs `telltale check`, counts requests between busybox's httpd and wget, takes a profile, and
//! up to 6.19 runs the suites with each tap of the kernel. Emulated: times mean nothing there.

mod debian;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::command::{cargo, output, run};
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
const GUEST_SECONDS: u32 = 420;

/// End-to-end suites whose client and server are the test itself, and what of them needs more.
const END_TO_END: [&str; 2] = ["exchanges", "sockets"];
const SKIPPED: [&str; 2] = [
    // nginx and hey
    "short_connections_are_each_counted",
    // chooses its tap
    "the_walk_from_descriptor_to_socket_finds_the_same",
];

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
    /// Leave the end-to-end suites out
    #[arg(long)]
    no_suites: bool,
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
    let end_to_end = if arguments.no_suites {
        Vec::new()
    } else {
        build_static_suites()?
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
        let guest = boot(&kernel, &agent, &end_to_end, &folder)?;
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
        let suites = guest.suites.join("; ");
        lines.push(format!(
            "{:<28} {verdict:<7} {counted}; {suites}",
            kernel.version
        ));
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
    /// What became of the suites, a tap each.
    suites: Vec<String>,
    console: String,
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The agent without shared libraries: the guests have none.
fn build_static_agent() -> Result<PathBuf> {
    run(static_cargo("build").args(["--package", "agent", "--bin", "telltale"]))?;
    let agent = format!("static/{TRIPLE}/quick/telltale");
    Ok(paths::target().join(agent))
}

/// The suites' executables, likewise.
fn build_static_suites() -> Result<Vec<PathBuf>> {
    let mut build = static_cargo("test");
    build.args(["--no-run", "--message-format", "json", "--package", "e2e"]);
    for suite in END_TO_END {
        build.args(["--test", suite]);
    }
    // Each line that is not about an executable has none.
    let executables = output(&mut build)?
        .lines()
        .filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let name = message.pointer("/target/name")?.as_str()?;
            let executable = message.get("executable")?.as_str()?;
            END_TO_END
                .contains(&name)
                .then(|| PathBuf::from(executable))
        })
        .collect::<Vec<_>>();
    if executables.len() != END_TO_END.len() {
        bail!("cargo built {executables:?} of the suites {END_TO_END:?}");
    }
    Ok(executables)
}

fn static_cargo(command: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .args([command, "--profile", "quick", "--target", TRIPLE])
        .env("CARGO_TARGET_DIR", paths::target().join("static"))
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    cargo
}

fn boot(kernel: &Kernel, agent: &Path, suites: &[PathBuf], folder: &Path) -> Result<Guest> {
    let initramfs = folder.join("initramfs.cpio");
    write_initramfs(agent, suites, &initramfs)?;
    let guest = Command::new("timeout")
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
    let console = String::from_utf8_lossy(&guest.stdout).replace('\r', "");
    let all_after = |mark: &str| {
        let lines = console.lines().filter_map(|line| line.split_once(mark));
        lines
            .map(|(_, rest)| rest.trim().to_owned())
            .collect::<Vec<_>>()
    };
    let after = |mark: &str| all_after(mark).into_iter().next();
    Ok(Guest {
        // A kernel that panics or hangs leaves no status.
        succeeded: after("GUEST-STATUS").as_deref() == Some("0"),
        counted: after("GUEST-COUNTED"),
        suites: all_after("GUEST-SUITES"),
        console,
    })
}

/// Packs busybox, the agent, the suites and the two scripts.
fn write_initramfs(agent: &Path, suites: &[PathBuf], initramfs: &Path) -> Result<()> {
    let root = tempfile::tempdir()?;
    for folder in ["bin", "proc", "sys", "dev", "tmp", "run", "etc", "suites"] {
        fs::create_dir(root.path().join(folder))?;
    }
    let busybox = host::find("busybox").context("busybox is not installed")?;
    fs::copy(busybox, root.path().join("bin/busybox"))?;
    fs::copy(agent, root.path().join("bin/telltale"))?;
    for suite in suites {
        let name = suite.file_name().context("a suite has a name")?;
        fs::copy(suite, root.path().join("suites").join(name))?;
    }
    let skipped = SKIPPED.map(|test| format!("--skip\n{test}\n")).concat();
    fs::write(root.path().join("skipped"), skipped)?;
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
