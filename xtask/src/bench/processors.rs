//! Which processors each side may use.

use std::process::{self, Command};
use std::thread;

use anyhow::{Result, bail};

use crate::command::output;

/// Lists of processors, as taskset takes them.
pub(super) struct Processors {
    pub(super) server: String,
    pub(super) load: String,
    pub(super) agent: String,
    /// All of them.
    pub(super) count: usize,
}

impl Processors {
    /// Server, load and agent on processors of their own, where there are enough.
    ///
    /// # Errors
    /// When there is only one.
    pub(super) fn of_this_machine() -> Result<Self> {
        let count = thread::available_parallelism()?.get();
        let (server, load) = ("0".to_owned(), "1".to_owned());
        Ok(match count {
            0 | 1 => bail!("one processor cannot serve, load and observe at once"),
            // The agent shares with the load, so that it does not take from the server.
            2 | 3 => Self {
                server,
                agent: load.clone(),
                load,
                count,
            },
            // One for the load: it is as busy as the server then. A load that idles has to be woken
            // at each answer, which on a virtual machine costs the server a third of its time and
            // differs with how long the idling lasted.
            _ => Self {
                server,
                load,
                agent: format!("2-{}", count - 1),
                count,
            },
        })
    }

    /// Keeps this process, whose threads are clients too, on the load's processors.
    ///
    /// # Errors
    /// When taskset does not succeed.
    pub(super) fn keep_to_load(&self) -> Result<()> {
        let pid = process::id().to_string();
        output(Command::new("taskset").args([
            "--all-tasks",
            "--cpu-list",
            "--pid",
            &self.load,
            &pid,
        ]))
        .map(drop)
    }
}

/// A command that runs on these processors alone.
pub(super) fn pinned(processors: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", processors]).arg(program);
    command
}
