//! Programs under test that a compiler makes: by the test itself, or before it where there is none.
//!
//! `TELLTALE_PROGRAMS` names a folder with the programs, made by `compile_programs`: guests of
//! `cargo xtask kernels` have no compilers.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::prerequisite;

/// How a program is made from a file of `workloads`.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// `gcc`, `clang`, `g++`, `musl-gcc`, `rustc` or `go`.
    pub compiler: &'static str,
    /// Its flags, but for source and output.
    pub flags: &'static [&'static str],
    /// The file.
    pub source: &'static str,
    /// Without symbols, but for those of dynamic linking.
    pub is_stripped: bool,
}

/// Flags of code that keeps no frame pointers, for C and C++; the depth is that of `split.*`.
const DEEP: [&str; 3] = ["-O2", "-fomit-frame-pointer", "-DDEPTH=60"];

/// `split.c` without frame pointers.
pub const SPLIT: Recipe = recipe("gcc", "split.c", &DEEP);
/// The same, without symbols.
pub const SPLIT_STRIPPED: Recipe = Recipe {
    is_stripped: true,
    ..recipe("gcc", "split.c", &[DEEP[0], DEEP[1], DEEP[2], "-rdynamic"])
};
/// The split in Rust.
pub const SPLIT_RUST: Recipe = recipe(
    "rustc",
    "split.rs",
    &["--edition", "2024", "-C", "opt-level=3"],
);
/// The split in Go, without symbols.
pub const SPLIT_GO: Recipe = recipe("go", "split.go", &["-ldflags=-s -w"]);
/// Go that makes garbage, likewise.
pub const GARBAGE_GO: Recipe = recipe("go", "garbage.go", &["-ldflags=-s -w"]);
/// Stacks that are hard to follow, in the layouts that linkers make.
pub const STACKS: Recipe = recipe("gcc", "stacks.c", &DEEP);
/// Position-dependent.
pub const STACKS_NO_PIE: Recipe = recipe("gcc", "stacks.c", &[DEEP[0], DEEP[1], "-no-pie"]);
/// Static and position-independent.
pub const STACKS_STATIC: Recipe = recipe("gcc", "stacks.c", &[DEEP[0], DEEP[1], "-static-pie"]);
/// The library that one of them loads.
pub const LATE: Recipe = recipe("gcc", "late.c", &[DEEP[0], DEEP[1], "-shared", "-fPIC"]);
/// Calls in code that keeps frame pointers, also where nothing is called, and has no rows.
pub const RECURSION: Recipe = recipe(
    "gcc",
    "recursion.c",
    &["-O0", "-fno-asynchronous-unwind-tables"],
);
/// Calls that move bytes through sockets.
pub const TRANSFERS: Recipe = with_frame_pointers("transfers.c");

/// What the suites need that run in guests.
pub const FOR_GUESTS: [Recipe; 11] = [
    SPLIT,
    SPLIT_STRIPPED,
    SPLIT_RUST,
    SPLIT_GO,
    GARBAGE_GO,
    STACKS,
    STACKS_NO_PIE,
    STACKS_STATIC,
    LATE,
    RECURSION,
    TRANSFERS,
];

/// One of C that keeps frame pointers.
#[must_use]
pub const fn with_frame_pointers(source: &'static str) -> Recipe {
    recipe(
        "gcc",
        source,
        &["-O2", "-g", "-fno-omit-frame-pointer", "-pthread"],
    )
}

/// A program with symbols.
#[must_use]
pub const fn recipe(
    compiler: &'static str,
    source: &'static str,
    flags: &'static [&'static str],
) -> Recipe {
    Recipe {
        compiler,
        flags,
        source,
        is_stripped: false,
    }
}

impl Recipe {
    /// Puts the program where `binary` says: a copy where it was made before.
    ///
    /// # Errors
    /// When the compiler is missing or refuses the source, or it was not made before and should be.
    pub fn make(&self, binary: &Path) -> Result<()> {
        let Some(folder) = env::var_os("TELLTALE_PROGRAMS") else {
            return self.compile(binary);
        };
        let made = PathBuf::from(folder).join(self.name());
        fs::copy(&made, binary).with_context(|| made.display().to_string())?;
        Ok(())
    }

    /// Compiles the program.
    ///
    /// # Errors
    /// When the compiler is missing or refuses the source.
    pub fn compile(&self, binary: &Path) -> Result<()> {
        let mut command = Command::new(prerequisite::on_path(self.compiler)?);
        if self.compiler == "go" {
            command.arg("build");
        }
        command.args(self.flags).arg("-o").arg(binary);
        checked(command.arg(prerequisite::workload(self.source)))?;
        if self.is_stripped {
            checked(Command::new(prerequisite::on_path("strip")?).arg(binary))?;
        }
        Ok(())
    }

    /// A name that no other recipe has.
    #[must_use]
    pub fn name(&self) -> String {
        let stripped = if self.is_stripped { " stripped" } else { "" };
        let words = [self.source, self.compiler, &self.flags.join(" ")].join(" ") + stripped;
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        words.chars().map(plain).collect()
    }
}

fn checked(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(())
}
