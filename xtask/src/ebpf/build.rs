//! Builds the kernel programs so that the same sources give the same bytes in every checkout.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::object_file;
use super::record;
use super::toolchain::Toolchain;
use crate::command::run;
use crate::paths;

/// The object is committed and embedded: it has to stay small.
const MAX_OBJECT_BYTES: usize = 200_000;

const TARGET: &str = "bpfel-unknown-none";

/// The kernel's calling convention for saved registers differs by architecture.
const TARGET_ARCH: &str = "x86_64";

/// Builds, writes the committed object and its record, and tells what it holds.
///
/// # Errors
/// When the build fails or the object is larger than its limit.
pub(crate) fn build_and_write() -> Result<()> {
    let toolchain = Toolchain::get()?;
    let object = build(&toolchain, &paths::target().join("ebpf"))?;
    fs::write(committed_object(), &object)?;
    fs::write(record::path(), record::here(&toolchain)?)?;
    println!(
        "wrote {}: {}",
        committed_object().display(),
        description(&object)?
    );
    Ok(())
}

/// Clippy with warnings as errors.
///
/// # Errors
/// When it finds something or the build fails.
pub(crate) fn clippy() -> Result<()> {
    let toolchain = Toolchain::get()?;
    let target = paths::target().join("ebpf");
    run(toolchain
        .cargo()
        .args(["fetch", "--locked"])
        .current_dir(paths::ebpf()))?;
    let mut clippy = toolchain.clippy();
    clippy
        .current_dir(paths::ebpf())
        .args(["--release", "--locked"]);
    clippy
        .args(["--target", TARGET])
        .args(toolchain.cargo_arguments());
    clippy.env("CARGO_TARGET_DIR", &target);
    clippy.env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain, &target)?);
    run(clippy.args(["--", "-D", "warnings"]))
}

/// Where the committed object is.
pub(crate) fn committed_object() -> PathBuf {
    paths::ebpf().join("telltale.bpf.o")
}

/// Size and number of programs, for people.
///
/// # Errors
/// When the bytes are no ELF object.
pub(crate) fn description(object: &[u8]) -> Result<String> {
    let programs = object_file::programs(object)?;
    Ok(format!(
        "{} bytes, {} programs",
        object.len(),
        programs.len()
    ))
}

/// Builds the kernel programs in `target` and returns the stripped object.
///
/// # Errors
/// When the build fails or the object is larger than its limit.
pub(crate) fn build(toolchain: &Toolchain, target: &Path) -> Result<Vec<u8>> {
    let ebpf = paths::ebpf();
    // Sources have to be there before the build: their folders are named in its flags.
    run(toolchain
        .cargo()
        .args(["fetch", "--locked"])
        .current_dir(&ebpf))?;

    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(&ebpf)
        .args(["build", "--release", "--locked"]);
    cargo
        .args(["--target", "bpfel-unknown-none"])
        .args(toolchain.cargo_arguments());
    cargo.env("CARGO_TARGET_DIR", target);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain, target)?);
    run(&mut cargo)?;

    // Kernel and loader need BTF and symbols; DWARF, which BTF was made from, is four fifths.
    let built = target.join(TARGET).join("release/telltale-bpf");
    let stripped = target.join("telltale.bpf.o");
    let objcopy = toolchain.objcopy()?;
    run(toolchain
        .command(&objcopy)
        .arg("--strip-debug")
        // Their addends are in place already, and loaders leave these alone.
        .args([
            "--remove-section",
            ".rel.BTF",
            "--remove-section",
            ".rel.BTF.ext",
        ])
        .arg(&built)
        .arg(&stripped))?;
    drop_lines(toolchain, &objcopy, &stripped)?;
    let object = fs::read(&stripped)?;
    if object.len() > MAX_OBJECT_BYTES {
        bail!(
            "the object has {} bytes, more than {MAX_OBJECT_BYTES}",
            object.len()
        );
    }
    Ok(object)
}

/// Takes the lines of the sources out of `.BTF.ext`, a third of the object: only the verifier's log
/// would show them. What says which function is which stays, as the kernel needs it.
fn drop_lines(toolchain: &Toolchain, objcopy: &Path, object: &Path) -> Result<()> {
    let section = object.with_extension("ext");
    let mut dump = OsString::from("--dump-section=.BTF.ext=");
    dump.push(&section);
    run(toolchain.command(objcopy).arg(dump).arg(object))?;
    fs::write(&section, without_lines(&fs::read(&section)?)?)?;
    let mut update = OsString::from("--update-section=.BTF.ext=");
    update.push(&section);
    run(toolchain.command(objcopy).arg(update).arg(object))
}

/// `.BTF.ext` without its line information (`struct btf_ext_header`, Documentation/bpf/btf.rst).
fn without_lines(section: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| -> Result<usize> {
        let bytes = section.get(at..at + 4).context("a short .BTF.ext")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let (header_len, lines_at, lines_len) = (word(4)?, word(16)?, word(20)?);
    // The size of a record comes first, and loaders read it of an empty table too.
    let kept = header_len + lines_at + 4;
    if header_len + lines_at + lines_len != section.len() || lines_len < 4 {
        bail!(".BTF.ext does not end with its line information");
    }
    let mut shorter = section[..kept].to_vec();
    shorter[20..24].copy_from_slice(&4_u32.to_le_bytes());
    // What would come behind, of which there is none, begins there.
    shorter[24..28].copy_from_slice(&(u32::try_from(lines_at + 4)?).to_le_bytes());
    Ok(shorter)
}

/// The compiler's flags in cargo's encoding.
fn rustflags(toolchain: &Toolchain, target: &Path) -> Result<OsString> {
    let mut flags: Vec<OsString> = vec![
        format!("--cfg=bpf_target_arch=\"{TARGET_ARCH}\"").into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    // Where two match the later one wins, so the folders that may lie in others come later.
    remap(&paths::root(), "/telltale");
    // The registry's folder is named after where the index came from: a mirror has another name.
    let sources = paths::cargo_home().join("registry/src");
    let registries = fs::read_dir(&sources).with_context(|| sources.display().to_string())?;
    for registry in registries {
        remap(&registry?.path(), "/cargo");
    }
    remap(target, "/target");
    remap(&sysroot(toolchain)?, "/rust");
    Ok(flags.join(OsString::from("\u{1f}").as_os_str()))
}

fn sysroot(toolchain: &Toolchain) -> Result<PathBuf> {
    let rustc = toolchain.rustc()?;
    let sysroot = crate::command::output(toolchain.command(&rustc).arg("--print=sysroot"))?;
    Ok(PathBuf::from(sysroot.trim()))
}
