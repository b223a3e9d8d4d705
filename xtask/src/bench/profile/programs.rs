//! What is profiled: programs of this repository, compiled here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::bench::processors::pinned;
use crate::bench::server::Kept;
use crate::command::{output, run};
use crate::paths;

/// A program whose time is split 50/30/20 among three functions, and how it is compiled.
pub(super) struct Split {
    /// How the figures name it.
    pub(super) language: &'static str,
    source: &'static str,
    /// What comes before the sources; nothing where they are run as they are.
    compiler: &'static [&'static str],
}

/// In each language whose stacks are taken in a way of its own.
pub(super) const SPLITS: [Split; 4] = [
    Split {
        language: "C",
        source: "split.c",
        compiler: &["gcc", "-O2", "-g", "-fomit-frame-pointer", "-DDEPTH=60"],
    },
    Split {
        language: "Rust",
        source: "split.rs",
        compiler: &["rustc", "-O", "-g"],
    },
    Split {
        language: "Go",
        source: "split.go",
        compiler: &["go", "build"],
    },
    Split {
        language: "Python",
        source: "split.py",
        compiler: &[],
    },
];

impl Split {
    /// Starts it for so many seconds of its own time.
    ///
    /// # Errors
    /// When the compiler or the program does not start.
    pub(super) fn start(&self, folder: &Path, processors: &str, seconds: u32) -> Result<Kept> {
        let source = workload(self.source);
        let mut command = if self.compiler.is_empty() {
            let mut command = pinned(processors, "python3");
            command.arg(source);
            command
        } else {
            pinned(processors, compile(self.compiler, &source, folder)?)
        };
        let child = command
            .arg(seconds.to_string())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.source))?;
        Ok(Kept(child))
    }
}

/// Turns that a program did in so many seconds of wall time.
pub(super) struct Turns(PathBuf);

impl Turns {
    /// Compiles it.
    ///
    /// # Errors
    /// When the compiler fails.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let compiler = ["gcc", "-O2", "-fomit-frame-pointer"];
        compile(&compiler, &workload("turns.c"), folder).map(Self)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn run(&self, processors: &str, seconds: u32) -> Result<f64> {
        let turns = output(pinned(processors, &self.0).arg(seconds.to_string()))?;
        Ok(turns.trim().parse()?)
    }

    /// Starts it for so many seconds.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(&self, processors: &str, seconds: u32) -> Result<Kept> {
        let mut command = pinned(processors, &self.0);
        command.arg(seconds.to_string()).stdout(Stdio::null());
        Ok(Kept(command.spawn()?))
    }
}

/// A process that works a little now and then.
///
/// # Errors
/// When there is no Python.
pub(super) fn start_drowsy() -> Result<Kept> {
    const PROGRAM: &str = "import time\nwhile True:\n    sum(range(20000))\n    time.sleep(0.1)\n";
    Ok(Kept(Command::new("python3").args(["-c", PROGRAM]).spawn()?))
}

fn workload(name: &str) -> PathBuf {
    paths::root().join("tests/workloads").join(name)
}

fn compile(compiler: &[&str], source: &Path, folder: &Path) -> Result<PathBuf> {
    let program = folder.join(source.file_stem().context("a source without a name")?);
    run(Command::new(compiler[0])
        .args(&compiler[1..])
        .arg("-o")
        .arg(&program)
        .arg(source))?;
    Ok(program)
}
