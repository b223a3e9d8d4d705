//! The process table: pid → [`Process`], for as long as late observations may refer to it.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ebpf_common::process::ProcessExec;

use super::name::{clean, executable_name};
use super::procfs::{Reader, command_line};
use super::script::{Script, script};
use super::{NameSource, Process, runtime};
use crate::clock::monotonic_ns;

/// Most processes that the table holds.
const MAX_PROCESSES: usize = 16_384;
/// Room made at a time when it is full, so that the search for the oldest is rare.
const EVICTED_AT_ONCE: usize = MAX_PROCESSES / 16;
/// How long an ended process is kept: far above the time that its records may wait in a ring.
const KEEP_ENDED_NS: u64 = 60_000_000_000;
/// Ports noted for one process.
const MAX_PORTS: usize = 64;
/// Protocols noted for one process.
const MAX_PROTOCOLS: usize = 8;

/// A watched process, for `/targets`.
#[derive(Clone, Debug)]
pub struct Target {
    /// Who it is.
    pub process: Arc<Process>,
    /// TCP ports that it was seen to serve, in ascending order; at most 64.
    pub ports: Vec<u16>,
    /// Protocols that it was seen to speak, in alphabetical order.
    pub protocols: Vec<&'static str>,
    /// The interpreter whose frames its profiles show, or why they don't: `CPython 3.11`. `None`
    /// where it has none, or was not sampled yet.
    pub interpreter: Option<String>,
}

/// Knows the processes. Shared by all workers; the lookup of a known pid takes a read lock alone.
#[derive(Debug)]
pub struct ProcessTable {
    reader: Reader,
    entries: RwLock<HashMap<u32, Entry>>,
    capacity: usize,
    /// Processes that were forgotten, to make room, before their time.
    evicted: AtomicU64,
    /// Processes that were looked up and of which neither an event nor `/proc` told.
    unknown: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    /// Named by its exec event alone; `/proc` was not read yet.
    provisional: bool,
    /// When it came into the table: the age where nothing else tells it. `CLOCK_MONOTONIC`.
    since_ns: u64,
    /// When it ended. `CLOCK_MONOTONIC`.
    ended_ns: Option<u64>,
    ports: BTreeSet<u16>,
    protocols: BTreeSet<&'static str>,
}

impl Entry {
    fn new(process: Process) -> Self {
        Self {
            process: Arc::new(process),
            provisional: false,
            since_ns: monotonic_ns(),
            ended_ns: None,
            ports: BTreeSet::new(),
            protocols: BTreeSet::new(),
        }
    }

    fn is_settled(&self) -> bool {
        !self.provisional && self.ended_ns.is_none()
    }

    fn has_expired(&self, now_ns: u64) -> bool {
        self.ended_ns
            .is_some_and(|ended_ns| now_ns.saturating_sub(ended_ns) > KEEP_ENDED_NS)
    }
}

impl Default for ProcessTable {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl ProcessTable {
    /// An empty table that reads `proc_root`, which is `/proc` save in tests.
    #[must_use]
    pub fn new(proc_root: impl Into<PathBuf>) -> Self {
        Self::with_capacity(proc_root, MAX_PROCESSES)
    }

    fn with_capacity(proc_root: impl Into<PathBuf>, capacity: usize) -> Self {
        Self {
            reader: Reader::new(proc_root.into()),
            entries: RwLock::default(),
            capacity,
            evicted: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }

    /// Who `pid` is. Never fails: a process that ended unseen is named `unknown`. Reads `/proc`
    /// for a new pid and after an exec, and `/proc/PID/stat` for one whose exit was told: its pid
    /// may be another's by now.
    #[must_use]
    pub fn lookup(&self, pid: u32) -> Arc<Process> {
        if let Some(entry) = self.read().get(&pid)
            && entry.is_settled()
        {
            return Arc::clone(&entry.process);
        }
        self.settle(pid)
    }

    /// Takes in an exec event with the command line that follows it (arguments end with NUL).
    /// Nearly all processes never speak to anybody, so `/proc` is read when somebody asks for
    /// this one; until then, and when it has ended by then, the event alone names it.
    pub fn handle_exec(&self, exec: &ProcessExec, command_line: &[u8]) {
        let entry = Entry {
            provisional: true,
            since_ns: exec.time_ns,
            ..Entry::new(process_of_event(exec, command_line))
        };
        let mut entries = self.write();
        self.make_room(&mut entries, exec.pid);
        entries.insert(exec.pid, entry);
    }

    /// Takes in an exit event. The process is kept for a minute: observations of what it did last
    /// may still be on their way.
    pub fn handle_exit(&self, pid: u32) {
        if let Some(entry) = self.write().get_mut(&pid) {
            entry.ended_ns = Some(monotonic_ns());
        }
    }

    /// Takes in every process of `/proc`, and marks those as ended whose exit went unseen. For
    /// the start, and once a minute.
    pub fn scan(&self) {
        let began_ns = monotonic_ns();
        let mut running = self.reader.pids();
        running.sort_unstable();
        for &pid in &running {
            let known = self
                .read()
                .get(&pid)
                .and_then(|entry| entry.is_settled().then(|| Arc::clone(&entry.process)));
            // The exec of one that was read before may have been lost, or come before the probe.
            let same = known.is_some_and(|process| self.reader.is_unchanged(&process));
            if !same && let Some(process) = self.reader.read(pid) {
                self.replace(process);
            }
        }
        let now_ns = monotonic_ns();
        let mut entries = self.write();
        entries.retain(|_, entry| !entry.has_expired(now_ns));
        for (pid, entry) in entries.iter_mut() {
            let is_listed = entry.since_ns >= began_ns || running.binary_search(pid).is_ok();
            if entry.ended_ns.is_none() && !is_listed {
                entry.ended_ns = Some(now_ns);
            }
        }
    }

    /// Notes that `pid` speaks `protocol`, and serves it on TCP `port` (`None` for clients and
    /// Unix sockets). Does nothing for a pid that was never looked up.
    pub fn note_seen(&self, pid: u32, port: Option<u16>, protocol: &'static str) {
        let noted = |entry: &Entry| {
            entry.protocols.contains(protocol)
                && port.is_none_or(|port| entry.ports.contains(&port))
        };
        // Nearly always so: no lock that others wait for.
        if self.read().get(&pid).is_none_or(noted) {
            return;
        }
        if let Some(entry) = self.write().get_mut(&pid) {
            if let Some(port) = port.filter(|_| entry.ports.len() < MAX_PORTS) {
                entry.ports.insert(port);
            }
            if entry.protocols.len() < MAX_PROTOCOLS {
                entry.protocols.insert(protocol);
            }
        }
    }

    /// TCP ports that `pid` was seen to serve.
    #[must_use]
    pub fn ports(&self, pid: u32) -> Vec<u16> {
        let entries = self.read();
        let ports = entries.get(&pid).map(|entry| entry.ports.iter().copied());
        ports.map(Iterator::collect).unwrap_or_default()
    }

    /// Every process that runs, by pid. Reads `/proc` for those that were told of by their exec
    /// alone.
    #[must_use]
    pub fn list(&self) -> Vec<Target> {
        let provisional: Vec<u32> = {
            let entries = self.read();
            let unread = entries.iter().filter(|(_, entry)| entry.provisional);
            unread.map(|(pid, _)| *pid).collect()
        };
        for pid in provisional {
            self.settle(pid);
        }
        let entries = self.read();
        let running = entries.values().filter(|entry| entry.ended_ns.is_none());
        let mut targets: Vec<Target> = running
            .map(|entry| Target {
                process: Arc::clone(&entry.process),
                ports: entry.ports.iter().copied().collect(),
                protocols: entry.protocols.iter().copied().collect(),
                interpreter: None,
            })
            .collect();
        targets.sort_unstable_by_key(|target| target.process.pid);
        targets
    }

    /// Processes in the table, those that ended a short while ago too.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// What was seen and cannot be named or kept: stage, reason, number since the start.
    #[must_use]
    pub fn losses(&self) -> Vec<(&'static str, &'static str, u64)> {
        vec![
            (
                "process",
                "table_full",
                self.evicted.load(Ordering::Relaxed),
            ),
            ("process", "unknown", self.unknown.load(Ordering::Relaxed)),
        ]
    }

    /// The answer for a pid that is new, provisional or said to have ended.
    fn settle(&self, pid: u32) -> Arc<Process> {
        let known = self
            .read()
            .get(&pid)
            .map(|entry| (Arc::clone(&entry.process), entry.provisional));
        if let Some((process, false)) = &known {
            match self.reader.start_ticks(pid) {
                // The exit was of whoever had the pid before, or the process has not ended at all.
                Some(start_ticks) if start_ticks == process.start_ticks => {
                    if let Some(entry) = self.write().get_mut(&pid) {
                        entry.ended_ns = None;
                    }
                    return Arc::clone(process);
                }
                Some(_) => {}
                None => return Arc::clone(process),
            }
        }
        if let Some(process) = self.reader.read(pid) {
            return self.replace(process);
        }
        let now_ns = monotonic_ns();
        let mut entries = self.write();
        self.make_room(&mut entries, pid);
        let entry = entries.entry(pid).or_insert_with(|| {
            self.unknown.fetch_add(1, Ordering::Relaxed);
            Entry::new(Process::unknown(pid, ""))
        });
        entry.provisional = false;
        entry.ended_ns.get_or_insert(now_ns);
        Arc::clone(&entry.process)
    }

    /// Puts a running process in the place of whoever had its pid. One that says the same as the
    /// one before keeps that one's place, ports and protocols.
    fn replace(&self, process: Process) -> Arc<Process> {
        let pid = process.pid;
        let mut entries = self.write();
        self.make_room(&mut entries, pid);
        match entries.entry(pid) {
            Slot::Occupied(mut slot) if *slot.get().process == process => {
                let entry = slot.get_mut();
                entry.provisional = false;
                entry.ended_ns = None;
                Arc::clone(&entry.process)
            }
            Slot::Occupied(mut slot) => {
                slot.insert(Entry::new(process));
                Arc::clone(&slot.get().process)
            }
            Slot::Vacant(slot) => Arc::clone(&slot.insert(Entry::new(process)).process),
        }
    }

    /// Lets the oldest go where `pid` would be one too many: of the ended ones first.
    fn make_room(&self, entries: &mut HashMap<u32, Entry>, pid: u32) {
        if entries.len() < self.capacity || entries.contains_key(&pid) {
            return;
        }
        let now_ns = monotonic_ns();
        entries.retain(|_, entry| !entry.has_expired(now_ns));
        let least = self
            .capacity
            .saturating_sub(EVICTED_AT_ONCE)
            .max(self.capacity / 2);
        let Some(surplus) = entries
            .len()
            .checked_sub(least)
            .filter(|&surplus| surplus > 0)
        else {
            return;
        };
        let mut by_age: Vec<(bool, u64, u32)> = entries
            .iter()
            .map(|(pid, entry)| {
                (
                    entry.ended_ns.is_none(),
                    entry.ended_ns.unwrap_or(entry.since_ns),
                    *pid,
                )
            })
            .collect();
        by_age.sort_unstable();
        for (_, _, pid) in by_age.into_iter().take(surplus) {
            entries.remove(&pid);
        }
        self.evicted.fetch_add(surplus as u64, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<u32, Entry>> {
        // Each change leaves the map whole, so that a panic elsewhere does it no harm.
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<u32, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process by its exec event alone.
fn process_of_event(exec: &ProcessExec, arguments: &[u8]) -> Process {
    let comm = exec
        .comm
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    let comm = clean(&String::from_utf8_lossy(comm)).unwrap_or_default();
    let mut process = Process::unknown(exec.pid, &comm);
    process.command_line = command_line(arguments);
    let Some(program) = process.command_line.first() else {
        return process;
    };
    // `argv[0]` is what the caller chose to write there: for naming it will do.
    let program = PathBuf::from(program);
    let named = match script(&program, &process.command_line, None) {
        Script::Named(name) => clean(&name).map(|name| (name, NameSource::Script)),
        Script::AsParent | Script::None => None,
    };
    let named = named.or_else(|| Some((executable_name(&program)?, NameSource::Executable)));
    if let Some((name, source)) = named {
        process.service = name.into();
        process.service_source = source;
    }
    process.runtime = runtime::by_name(&program).unwrap_or(process.runtime);
    process
}

#[cfg(test)]
mod tests;
