//! C programs whose use of the CPU is known, compiled under a name that no other process has.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::child::{Child, free_port};
use crate::programs;

/// One of them, running.
#[derive(Debug)]
pub struct Split {
    /// The process.
    pub child: Child,
    /// Its service name: that of the executable.
    pub service: String,
}

impl Split {
    /// `workloads/split.c` for `life` of CPU time, at work.
    ///
    /// # Errors
    /// When it can't be compiled, or is not ready in ten seconds.
    pub fn start(life: Duration) -> Result<Self> {
        Self::compile("split.c")?.run(life)
    }

    /// `workloads/threads.c` for `life`, at work.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn threads(life: Duration) -> Result<Self> {
        Self::compile("threads.c")?.run(life)
    }

    /// Compiles a program of `workloads`.
    ///
    /// # Errors
    /// When the compiler refuses it.
    pub fn compile(source: &'static str) -> Result<Compiled> {
        let folder = tempfile::tempdir()?;
        let service = format!("e2e-split-{}", free_port()?);
        programs::with_frame_pointers(source).make(&folder.path().join(&service))?;
        Ok(Compiled { folder, service })
    }
}

/// A program that does not run yet.
#[derive(Debug)]
pub struct Compiled {
    folder: tempfile::TempDir,
    service: String,
}

impl Compiled {
    /// Starts it and waits until it is at work.
    ///
    /// # Errors
    /// When it is not ready in ten seconds.
    pub fn run(self, life: Duration) -> Result<Split> {
        let mut split = self.spawn(life)?;
        let log = split.child.folder().join("output.log");
        split.child.wait_until(Duration::from_secs(10), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
        })?;
        Ok(split)
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(self, life: Duration) -> Result<Split> {
        let Self { folder, service } = self;
        let mut command = Command::new(folder.path().join(&service));
        command.arg(life.as_secs().to_string());
        let child = Child::spawn("split", command, folder)?;
        Ok(Split { child, service })
    }
}
