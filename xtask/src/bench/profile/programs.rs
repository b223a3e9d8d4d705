//! What is profiled: programs of this repository, compiled here.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::bench::processors::pinned;
use crate::bench::server::Kept;
use crate::command::output;
use crate::paths;

/// A program whose time is split 50/30/20 among three functions, and how it is compiled.
pub(super) struct Split {
    /// How the figures name it.
    pub(super) language: &'static str,
    source: &'static str,
    /// What comes before the sources; nothing where they are run as they are.
    compiler: &'static [&'static str],
    /// How many calls lie below each other at least, and who began them.
    nested: usize,
    outermost: &'static str,
}

/// In each language whose stacks are taken in a way of its own.
pub(super) const SPLITS: [Split; 4] = [
    Split {
        language: "C",
        source: "split.c",
        compiler: &["gcc", "-O2", "-g", "-fomit-frame-pointer", "-DDEPTH=60"],
        nested: 60,
        outermost: "_start",
    },
    Split {
        language: "Rust",
        source: "split.rs",
        compiler: &["rustc", "-O", "-g"],
        nested: 60,
        outermost: "_start",
    },
    Split {
        language: "Go",
        source: "split.go",
        compiler: &["go", "build"],
        nested: 60,
        outermost: "main.main",
    },
    Split {
        language: "Python",
        source: "split.py",
        compiler: &[],
        nested: 20,
        outermost: "<module>",
    },
];

impl Split {
    /// Whether a folded stack has all calls, from the function that spends the time to the first.
    pub(super) fn is_complete(&self, stack: &str) -> bool {
        stack.matches("nest_").count() >= self.nested && stack.contains(self.outermost)
    }

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

/// A program that counts the turns that it does in a twentieth of a second.
pub(super) struct Turns {
    program: PathBuf,
    /// Its first argument, where an interpreter runs it.
    script: Option<PathBuf>,
}

impl Turns {
    /// Compiles it: 70 nested calls.
    ///
    /// # Errors
    /// When the compiler fails.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let compiler = ["gcc", "-O2", "-fomit-frame-pointer"];
        let program = compile(&compiler, &workload("turns.c"), folder)?;
        Ok(Self {
            program,
            script: None,
        })
    }

    /// One in Python: 20 nested calls.
    pub(super) fn of_python() -> Self {
        Self {
            program: "python3".into(),
            script: Some(workload("turns.py")),
        }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn run(&self, processors: &str, seconds: u32) -> Result<f64> {
        Self::finish(self.start_counted(processors, seconds, 0)?)
    }

    /// Starts it for so many seconds.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start(&self, processors: &str, seconds: u32) -> Result<Kept> {
        let mut command = self.command(processors, seconds, 0);
        Ok(Kept(command.stdout(Stdio::null()).spawn()?))
    }

    /// Starts it for so many seconds after `before` others.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start_counted(
        &self,
        processors: &str,
        seconds: u32,
        before: u32,
    ) -> Result<Kept> {
        let mut command = self.command(processors, seconds, before);
        Ok(Kept(command.stdout(Stdio::piped()).spawn()?))
    }

    /// Turns of one that was started so.
    ///
    /// # Errors
    /// When it fails.
    pub(super) fn finish(mut running: Kept) -> Result<f64> {
        let mut turns = String::new();
        let stdout = running
            .0
            .stdout
            .as_mut()
            .context("its output is not kept")?;
        stdout.read_to_string(&mut turns)?;
        Ok(turns.trim().parse()?)
    }

    fn command(&self, processors: &str, seconds: u32, before: u32) -> Command {
        let mut command = pinned(processors, &self.program);
        command.args(&self.script);
        command.args([seconds.to_string(), before.to_string()]);
        command
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
    output(
        Command::new(compiler[0])
            .args(&compiler[1..])
            .arg("-o")
            .arg(&program)
            .arg(source),
    )?;
    Ok(program)
}
