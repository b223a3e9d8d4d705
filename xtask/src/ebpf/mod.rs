//! The kernel programs: their toolchain, their build, and whether the committed object is it.

mod build;
mod object_file;
mod record;
mod sources;
mod toolchain;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use toolchain::Origin;

#[derive(Subcommand)]
pub(crate) enum Ebpf {
    /// Get what builds the kernel programs, into .toolchain (or $TELLTALE_TOOLCHAIN)
    Toolchain {
        /// Debian's packages (what CI uses; the system's Rust stays untouched), or a nightly that
        /// rustup has, with rust-src
        #[arg(long, value_enum, default_value_t = Origin::Debian)]
        from: Origin,
    },
    /// Build the kernel programs and write ebpf/telltale.bpf.o, which the agent embeds
    Build,
    /// Run clippy on the kernel programs, with warnings as errors
    Clippy,
    /// Fail when ebpf/telltale.bpf.o is not what the sources give
    ///
    /// Exit status: 0 the same bytes; 1 different, or no build; 3 not verified, because the
    /// recorded toolchain cannot be had and another one gave different bytes.
    Verify,
}

pub(crate) fn main(task: &Ebpf) -> Result<ExitCode> {
    match task {
        Ebpf::Toolchain { from } => toolchain::install(*from)?,
        Ebpf::Build => build::build_and_write()?,
        Ebpf::Clippy => build::clippy()?,
        Ebpf::Verify => return verify::verify(),
    }
    Ok(ExitCode::SUCCESS)
}
