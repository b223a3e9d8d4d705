//! A child process in a process group of its own, ended with everything that it started.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Held while a port is probed and while a program is spawned. A child inherits the probing
/// listener until it executes its program, so that a server would seem to be up before it is.
static FORK: Mutex<()> = Mutex::new(());

const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 12_000;

/// In a child's folder: what it wrote.
const LOG: &str = "output.log";

/// A port that was free a moment ago and that this process has not been given before.
///
/// It lies below 32768, where Linux begins to take the ports of outgoing connections from: between
/// this answer and the server's own bind, no connection of the loads can take it.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let _no_fork = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    // Test binaries that run at the same time start at different places.
    let offset = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let candidate = offset.wrapping_add(NEXT.fetch_add(1, Relaxed)) % PORTS;
        let port = u16::try_from(FIRST_PORT + candidate)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!(
        "no port from {FIRST_PORT} to {} is free",
        FIRST_PORT + PORTS
    );
}

/// A running program. Dropping it ends its whole process group.
#[derive(Debug)]
pub struct Child {
    name: String,
    child: std::process::Child,
    output: PathBuf,
    // Holds `output` and the program's other files.
    folder: tempfile::TempDir,
}

impl Child {
    /// Starts `command` in `folder`; both outputs go to one file there.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(name: &str, command: Command, folder: tempfile::TempDir) -> Result<Self> {
        let log = appended(&folder.path().join(LOG))?;
        Self::spawn_between(Stdio::null(), log, name, command, folder)
    }

    /// The same with an input and an output of its own; what it writes to standard error goes to the file.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_between(
        input: impl Into<Stdio>,
        output: impl Into<Stdio>,
        name: &str,
        mut command: Command,
        folder: tempfile::TempDir,
    ) -> Result<Self> {
        let log = folder.path().join(LOG);
        let errors = appended(&log)?;
        let _no_probe = FORK.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command
            .stdin(input)
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            output: log,
            folder,
        })
    }

    /// Process id, which is the id of the group too.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder that lives as long as the child.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the program wrote so far.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.output)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the program accepts connections on `address`.
    ///
    /// # Errors
    /// When it ends first, or after `timeout`.
    pub fn wait_for_port(&mut self, address: SocketAddr, timeout: Duration) -> Result<()> {
        self.wait_until(timeout, || TcpStream::connect(address).is_ok())
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the program ends first, or after `timeout`.
    pub fn wait_until(&mut self, timeout: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended with {status}; it wrote:\n{}",
                    self.name,
                    self.output()
                );
            }
            if start.elapsed() > timeout {
                bail!(
                    "{} is not ready after {timeout:?}; it wrote:\n{}",
                    self.name,
                    self.output()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends a signal to the program alone, not to its group.
    ///
    /// # Errors
    /// When the program has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.group()?, signal)?)
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// After `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > timeout {
                bail!(
                    "{} still runs after {timeout:?}; it wrote:\n{}",
                    self.name,
                    self.output()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn group(&self) -> Result<Pid> {
        Pid::from_raw(i32::try_from(self.child.id())?).context("a child has a pid")
    }
}

/// A file that several write to.
fn appended(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Drop for Child {
    fn drop(&mut self) {
        let Ok(group) = self.group() else { return };
        // An error means that nobody is left in the group.
        let _ = kill_process_group(group, Signal::TERM);
        let _ = self.wait(Duration::from_secs(3));
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}
