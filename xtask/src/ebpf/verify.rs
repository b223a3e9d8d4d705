//! Is the committed object what the sources give?

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::build::{build, committed_object, description};
use super::record;
use super::toolchain::Toolchain;

/// Exit status of a verification that could not be made.
const NOT_VERIFIED: u8 = 3;

/// Builds in a folder of its own and compares the bytes with the committed object.
///
/// # Errors
/// When the build fails, or the same tools give other bytes.
pub(crate) fn verify() -> Result<ExitCode> {
    let committed_path = committed_object();
    let committed = fs::read(&committed_path).with_context(|| {
        format!(
            "cannot read {}; make it by `cargo xtask ebpf build`",
            committed_path.display()
        )
    })?;
    let toolchain = Toolchain::get()?;
    let target = tempfile::tempdir()?;
    let built = build(&toolchain, target.path())?;
    if built == committed {
        println!(
            "verified: {} is what the sources give: {}",
            committed_path.display(),
            description(&built)?
        );
        return Ok(ExitCode::SUCCESS);
    }

    let differences = record::differences(&record::committed()?, &record::here(&toolchain)?);
    if differences.sources || differences.tools.is_empty() {
        bail!(
            "{} is not what the sources give ({} bytes committed, {} built): run \
             `cargo xtask ebpf build` and commit it",
            committed_path.display(),
            committed.len(),
            built.len(),
        );
    }
    println!(
        "NOT VERIFIED: the sources build and are those of the committed object, which other tools \
         built, so that the bytes differ:\n  {}\n\
         `cargo xtask ebpf toolchain` gets the recorded ones while Debian's archive has them. When \
         it no longer does: pin the present packages in xtask/src/ebpf/toolchain.rs, run \
         `cargo xtask ebpf build` and the tests, and commit ebpf/telltale.bpf.o together with \
         ebpf/telltale.bpf.toolchain.",
        differences.tools.join("\n  "),
    );
    Ok(ExitCode::from(NOT_VERIFIED))
}
