//! What builds the kernel programs: a rustc with a `core` for `bpfel-unknown-none`, bpf-linker,
//! and an objcopy that knows BPF.
//!
//! rustup has no prebuilt `core` for that target. Debian has one, for a stable compiler, which is
//! unpacked into a folder of its own; with rustup a nightly builds `core` from rust-src.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::command::{cargo, output, run};
use crate::{host, paths};

/// The linker's version. It has to know the compiler's LLVM; 0.13 knows 21 to 23.
const BPF_LINKER: &str = "0.13.0";

/// The Debian packages and the versions that the committed object was built with.
const DEBIAN_PACKAGES: [(&str, &str); 7] = [
    ("rustc-web", "1.96.0+dfsg1-1~deb12u2"),
    ("libstd-rust-web-1.96", "1.96.0+dfsg1-1~deb12u2"),
    // Libraries for the host: the programs' procedural macros and build scripts need them.
    ("libstd-rust-web-dev", "1.96.0+dfsg1-1~deb12u2"),
    ("libstd-rust-web-dev-bpf", "1.96.0+dfsg1-1~deb12u2"),
    ("rust-web-clippy", "1.96.0+dfsg1-1~deb12u2"),
    ("libllvm22", "1:22.1.8-1~deb12u1"),
    // llvm-objcopy.
    ("llvm-22", "1:22.1.8-1~deb12u1"),
];

/// What `libllvm22` loads: small libraries that most systems have.
const LLVM_NEEDS: [&str; 5] = ["libedit2", "libffi8", "libxml2", "libz3-4", "libzstd1"];

/// Where a toolchain comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Origin {
    Debian,
    Rustup,
}

/// A toolchain that is in place.
pub(crate) struct Toolchain {
    folder: PathBuf,
    pub(crate) origin: Origin,
}

/// Installs a toolchain; does nothing where the same one is in place already.
///
/// # Errors
/// When a package, the compiler or the linker cannot be had.
pub(crate) fn install(origin: Origin) -> Result<()> {
    let folder = paths::toolchain();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let toolchain = Toolchain { folder, origin };
    let relink = Toolchain::installed().is_some_and(|installed| installed.origin != origin);
    // Written back last: a folder without it counts as no toolchain.
    let _ = fs::remove_file(toolchain.folder.join("origin"));
    match origin {
        Origin::Debian => toolchain.install_debian(relink)?,
        Origin::Rustup => toolchain.install_rustup(relink)?,
    }
    toolchain
        .versions()
        .context("the toolchain was installed and does not run")?;
    fs::write(toolchain.folder.join("origin"), format!("{origin:?}\n"))?;
    println!(
        "toolchain of the kernel programs: {}",
        toolchain.folder.display()
    );
    for (tool, version) in toolchain.versions()? {
        println!("  {tool:<11} {version}");
    }
    Ok(())
}

impl Toolchain {
    /// The installed toolchain; installs the Debian one where there is none.
    ///
    /// # Errors
    /// As [`install`].
    pub(crate) fn get() -> Result<Self> {
        if Self::installed().is_none() {
            println!("no toolchain for the kernel programs yet: getting Debian's");
            install(Origin::Debian)?;
        }
        Self::installed().context("the toolchain was installed and is not there")
    }

    fn installed() -> Option<Self> {
        let folder = paths::toolchain();
        let origin = fs::read_to_string(folder.join("origin")).ok()?;
        let origin = Origin::from_str(origin.trim(), true).ok()?;
        Some(Self { folder, origin })
    }

    /// The compiler, cargo, LLVM and linker versions: what the object's bytes depend on.
    ///
    /// # Errors
    /// When one of them does not run.
    pub(crate) fn versions(&self) -> Result<Vec<(&'static str, String)>> {
        let rustc = output(self.command(&self.rustc()?).arg("-vV"))?;
        let line = |start: &str| {
            rustc
                .lines()
                .find_map(|line| line.strip_prefix(start))
                .unwrap_or("?")
                .trim()
                .to_owned()
        };
        let linker = output(self.command(&self.linker()).arg("--version"))?;
        let objcopy = output(self.command(&self.objcopy()?).arg("--version"))?;
        let objcopy = objcopy
            .lines()
            .find_map(|line| line.split_once("LLVM version "));
        // Cargo chooses the crates' disambiguators, which are part of the functions' names.
        let cargo = output(self.cargo().arg("--version"))?;
        let last = |text: &str| text.split_whitespace().nth(1).unwrap_or("?").to_owned();
        Ok(vec![
            ("rustc", line("rustc ")),
            ("llvm", line("LLVM version: ")),
            ("cargo", last(&cargo)),
            ("bpf-linker", last(&linker)),
            (
                "objcopy",
                objcopy
                    .map_or("?", |(_, version)| version.trim())
                    .to_owned(),
            ),
        ])
    }

    /// Cargo set up to build kernel programs with this toolchain; flags are the caller's.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match self.origin {
            Origin::Debian => cargo(),
            Origin::Rustup => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
        };
        // Nothing of the caller's may reach the compiler: the bytes would differ.
        for variable in [
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC",
        ] {
            command.env_remove(variable);
        }
        if self.origin == Origin::Debian {
            command.env("RUSTC", self.folder.join("debian/usr/bin/rustc"));
        }
        self.set_library_path(&mut command);
        // aya-ebpf uses features that are unstable on this target; the compiler is a stable one.
        command.env("RUSTC_BOOTSTRAP", "1");
        // The target's linker is named `bpf-linker` and searched for. Its path stays out of the
        // flags, which are part of the crates' hashes.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut search_path = OsString::from(self.folder.join("bin"));
        search_path.push(":");
        search_path.push(path);
        command.env("PATH", search_path);
        command
    }

    /// Clippy for kernel programs, set up as [`Self::cargo`].
    pub(crate) fn clippy(&self) -> Command {
        let mut command = self.cargo();
        if self.origin == Origin::Debian {
            // cargo's own subcommand would be the one of cargo's toolchain, for another compiler.
            let mut clippy = Command::new(self.folder.join("debian/usr/bin/cargo-clippy"));
            for (name, value) in command.get_envs() {
                match value {
                    Some(value) => clippy.env(name, value),
                    None => clippy.env_remove(name),
                };
            }
            command = clippy;
        }
        command.arg("clippy");
        command
    }

    /// What cargo needs beside the flags that every toolchain takes.
    pub(crate) fn cargo_arguments(&self) -> &'static [&'static str] {
        match self.origin {
            Origin::Debian => &[],
            Origin::Rustup => &["-Zbuild-std=core"],
        }
    }

    /// A command of the toolchain, with the libraries that it needs.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        self.set_library_path(&mut command);
        command
    }

    /// The compiler.
    ///
    /// # Errors
    /// When rustup has no nightly.
    pub(crate) fn rustc(&self) -> Result<PathBuf> {
        match self.origin {
            Origin::Debian => Ok(self.folder.join("debian/usr/bin/rustc")),
            Origin::Rustup => Ok(nightly_sysroot()?.join("bin/rustc")),
        }
    }

    /// An objcopy that knows BPF objects.
    ///
    /// # Errors
    /// When rustup has no nightly.
    pub(crate) fn objcopy(&self) -> Result<PathBuf> {
        match self.origin {
            Origin::Debian => Ok(self.folder.join("debian/usr/lib/llvm-22/bin/llvm-objcopy")),
            Origin::Rustup => {
                let sysroot = nightly_sysroot()?;
                let target = output(Command::new(sysroot.join("bin/rustc")).arg("-vV"))?;
                let host = target.lines().find_map(|line| line.strip_prefix("host: "));
                let host = host.context("rustc tells no host")?;
                Ok(sysroot
                    .join("lib/rustlib")
                    .join(host)
                    .join("bin/rust-objcopy"))
            }
        }
    }

    fn linker(&self) -> PathBuf {
        self.folder.join("bin/bpf-linker")
    }

    fn set_library_path(&self, command: &mut Command) {
        if self.origin == Origin::Debian {
            command.env(
                "LD_LIBRARY_PATH",
                self.folder.join("debian/usr/lib/x86_64-linux-gnu"),
            );
        } else {
            command.env_remove("LD_LIBRARY_PATH");
        }
    }

    fn install_debian(&self, relink: bool) -> Result<()> {
        if !cfg!(target_arch = "x86_64") || host::find("apt-get").is_none() {
            bail!("Debian's packages need Debian on x86-64; try `--from rustup`");
        }
        let unpacked = self.folder.join("debian");
        if DEBIAN_PACKAGES
            .iter()
            .any(|(package, _)| host::candidate(package).is_none())
        {
            println!("apt's lists do not know the packages: updating them");
            run(host::apt_get(true).arg("update"))?;
        }
        let wanted = DEBIAN_PACKAGES.map(|(package, pinned)| available(package, pinned));
        let wanted = wanted.into_iter().collect::<Result<Vec<_>>>()?;
        let stamp = self.folder.join("packages");
        let list = wanted.join("\n") + "\n";
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == list) {
            println!("Debian packages are in place: {}", wanted.join(" "));
        } else {
            let downloads = tempfile::tempdir_in(&self.folder)?;
            println!(
                "unpacking into {} (the system stays untouched):",
                unpacked.display()
            );
            run(host::apt_get(false)
                .arg("download")
                .args(&wanted)
                .current_dir(downloads.path()))?;
            if unpacked.exists() {
                // The stamp first: what is left of an interrupted run counts as nothing.
                let _ = fs::remove_file(&stamp);
                fs::remove_dir_all(&unpacked)?;
            }
            for package in fs::read_dir(downloads.path())? {
                run(Command::new("dpkg-deb")
                    .arg("-x")
                    .arg(package?.path())
                    .arg(&unpacked))?;
            }
            fs::write(&stamp, list)?;
        }
        host::install_packages(&BTreeSet::from(LLVM_NEEDS))?;

        // bpf-linker is linked with the same LLVM as the compiler that feeds it, found relative
        // to its own place. Its build looks for a `libLLVM.so`, which the package does not name.
        let llvm = self.folder.join("llvm");
        fs::create_dir_all(llvm.join("lib"))?;
        let link = llvm.join("lib/libLLVM.so");
        if link.symlink_metadata().is_err() {
            symlink(
                "../../debian/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1",
                &link,
            )?;
        }
        self.install_linker(&llvm, "$ORIGIN/../debian/usr/lib/x86_64-linux-gnu", relink)
    }

    fn install_rustup(&self, relink: bool) -> Result<()> {
        let sysroot = nightly_sysroot()?;
        if !sysroot.join("lib/rustlib/src/rust/library/core").exists() {
            bail!(
                "nightly has no rust-src; get it by `rustup component add rust-src --toolchain nightly`"
            );
        }
        let library = fs::read_dir(sysroot.join("lib"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.to_string_lossy().contains("/libLLVM.so."))
            .context("the nightly toolchain carries no libLLVM.so")?;
        let llvm = self.folder.join("llvm");
        fs::create_dir_all(llvm.join("lib"))?;
        let link = llvm.join("lib/libLLVM.so");
        let _ = fs::remove_file(&link);
        symlink(&library, &link)?;
        self.install_linker(&llvm, &sysroot.join("lib").to_string_lossy(), relink)
    }

    /// Builds bpf-linker against the `lib/libLLVM.so` in `llvm`, which it finds again by `rpath`.
    fn install_linker(&self, llvm: &Path, rpath: &str, relink: bool) -> Result<()> {
        let version = output(self.command(&self.rustc()?).arg("-vV"))?;
        let major = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next())
            .context("rustc tells no LLVM version")?;
        let mut command = cargo();
        command.args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER]);
        command.args([
            "--no-default-features",
            "--features",
            &format!("llvm-{major}"),
        ]);
        command.arg("--root").arg(&self.folder);
        if relink {
            // The one that is there was linked with another toolchain's LLVM.
            command.arg("--force");
        }
        command.env("CARGO_TARGET_DIR", paths::target().join("bpf-linker"));
        command.env("LLVM_PREFIX", llvm);
        command.env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{rpath}"));
        command.env_remove("CARGO_ENCODED_RUSTFLAGS");
        // The libraries that libLLVM itself needs are found by the loader, not by this link.
        command.env("LD_LIBRARY_PATH", llvm.join("lib"));
        run(&mut command)
    }
}

/// `package=version` with the pinned version if it can be had, else with the one there is.
fn available(package: &str, pinned: &str) -> Result<String> {
    let known = output(Command::new("apt-cache").args(["madison", package]))?;
    if known
        .lines()
        .any(|line| line.split('|').nth(1).map(str::trim) == Some(pinned))
    {
        return Ok(format!("{package}={pinned}"));
    }
    let Some(version) = host::candidate(package) else {
        bail!(
            "Debian's package {package} cannot be had: Debian 12's security archive has it; \
             elsewhere try `cargo xtask ebpf toolchain --from rustup`"
        );
    };
    println!("warning: {package} {pinned} is no longer to be had; taking {version}");
    Ok(format!("{package}={version}"))
}

fn nightly_sysroot() -> Result<PathBuf> {
    let sysroot =
        output(Command::new("rustup").args(["run", "nightly", "rustc", "--print=sysroot"]))
            .context(
                "no nightly; get it by `rustup toolchain install nightly --component rust-src`",
            )?;
    Ok(PathBuf::from(sysroot.trim()))
}
