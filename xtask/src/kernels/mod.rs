//! `cargo xtask kernels`: the agent on Debian's stock kernels, in QEMU.
//!
//! Each guest boots a kernel with nothing but busybox, a static agent, static end-to-end suites and
//! the programs that these run. It runs `telltale check`, counts requests between busybox's httpd and
//! wget, takes a profile, and up to 6.19 runs the suites: what a tap sees with each tap of the kernel,
//! the others once. Emulated: times mean nothing there.

mod debian;
mod root;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::command::{cargo, output, run};
use crate::{host, paths};
use debian::Kernel;
use root::Root;

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
const GUEST_SECONDS: u32 = 900;

/// End-to-end suites that run with each tap: client and server are the test itself.
const OF_TAPS: [&str; 2] = ["exchanges", "sockets"];
/// Those that run once.
const ONCE: [&str; 4] = ["accounting", "transfers", "unwind", "python_profile"];

/// What of them needs more than a guest has.
const SKIPPED: [&str; 12] = [
    // nginx and hey
    "short_connections_are_each_counted",
    // chooses its tap
    "the_walk_from_descriptor_to_socket_finds_the_same",
    // other compilers and files, which differ for no kernel
    "a_stripped_program_has_its_shares_and_depth",
    "c_by_clang_has_its_shares_and_depth",
    "a_static_program_with_musl_has_its_shares_and_depth",
    "cpp_with_exceptions_has_its_shares_and_depth",
    // the environment with the servers
    "a_process_that_has_just_begun_is_there_and_so_is_one_in_a_pid_namespace",
    "a_service_shows_its_handlers",
    "stacks_of_programs_that_start_are_told_as_whole_only_with_their_frames",
    // ctypes
    "frames_that_cannot_be_read_are_told",
    // the same for every kernel
    "an_interpreter_whose_frames_are_not_read_is_told",
    // sched_switch, from 5.17 on
    "waits_have_their_frames_too",
];

/// A busy host is late with the emulated timer, which the kernel would take for a broken one.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet panic=-1 softlockup_panic=1 mitigations=off random.trust_cpu=on \
     no_timer_check";

const NEEDS: [&str; 4] = ["qemu-system-x86", "seabios", "busybox-static", "cpio"];

#[derive(Args)]
pub(crate) struct Kernels {
    /// Debian suites whose newest kernel to boot; all known ones without one
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(SUITES))]
    suites: Vec<String>,
    /// A static agent that is built already
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Of the end-to-end suites only these
    #[arg(long, value_name = "NAME", value_delimiter = ',', conflicts_with = "no_suites",
          value_parser = clap::builder::PossibleValuesParser::new(OF_TAPS.into_iter().chain(ONCE)))]
    only: Vec<String>,
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
    let mut root = Root::new(&agent)?;
    if !arguments.no_suites {
        add_suites(&mut root, &arguments.only)?;
    }
    let initramfs = root.pack(&paths::target().join("kernels"))?;
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
        let guest = boot(&kernel, &initramfs)?;
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

/// The suites, likewise, and what they run; all of them where `only` names none.
fn add_suites(root: &mut Root, only: &[String]) -> Result<()> {
    let names = [&OF_TAPS[..], &ONCE].concat();
    let mut build = static_cargo("test");
    build.args(["--no-run", "--message-format", "json", "--package", "e2e"]);
    for suite in &names {
        build.args(["--test", suite]);
    }
    // Each line that is not about an executable has none.
    let executables = output(&mut build)?
        .lines()
        .filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let name = message.pointer("/target/name")?.as_str()?;
            let executable = message.get("executable")?.as_str()?;
            Some((name.to_owned(), PathBuf::from(executable)))
        })
        .collect::<BTreeMap<_, _>>();
    let executable = |name: &str| {
        executables
            .get(name)
            .with_context(|| format!("cargo built no {name}"))
    };
    for (folder, suites) in [("suites", &OF_TAPS[..]), ("suites-once", &ONCE)] {
        let is_wanted = |suite: &&&str| only.is_empty() || only.iter().any(|name| name == **suite);
        for suite in suites.iter().filter(is_wanted) {
            // Some tell the agent what they are called, which ends with a number of cargo's.
            let file = executable(suite)?;
            let name = file.file_name().context("a suite has a name")?;
            root.add(file, &Path::new("/").join(folder).join(name))?;
        }
    }
    root.write(
        "/skipped",
        &SKIPPED.map(|test| format!("--skip\n{test}\n")).concat(),
    )?;
    root.add_programs(executable("compile_programs")?)?;
    root.add_folder(&paths::root().join("tests/workloads"), |name| {
        matches!(name.extension().and_then(OsStr::to_str), Some("c" | "py"))
    })?;
    root.add_pythons()
}

fn static_cargo(command: &str) -> Command {
    let mut cargo = cargo();
    cargo
        .args([command, "--profile", "quick", "--target", TRIPLE])
        .env("CARGO_TARGET_DIR", paths::target().join("static"))
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    cargo
}

fn boot(kernel: &Kernel, initramfs: &Path) -> Result<Guest> {
    let guest = Command::new("timeout")
        .arg(GUEST_SECONDS.to_string())
        // With a thread for each processor, QEMU 7.2 goes on executing what the kernel has patched: both
        // processors of 5.10 stood in the trap of a tracepoint's branch, once in ten boots.
        .args([
            "qemu-system-x86_64",
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=single",
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
        .arg(initramfs)
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
