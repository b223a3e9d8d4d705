//! The process table: pid → [`Process`], for as long as late observations may refer to it.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use ebpf_common::process::ProcessExec;

use super::name::{clean, executable_name};
use super::procfs::{Reader, command_line};
use super::script::{Script, script};
use super::{NameSource, Process, runtime};

/// Most processes that the table holds.
const MAX_PROCESSES: usize = 16_384;
/// Room made at a time when it is full, so that the search for the oldest is rare.
const EVICTED_AT_ONCE: usize = MAX_PROCESSES / 16;
/// How long an ended process is kept: far above the time that its records may wait in a ring.
const KEEP_ENDED: Duration = Duration::from_secs(60);
/// Exec events a second for which `/proc` is read at once. A build starts thousands; those are
/// named when somebody asks for them, as nearly none of them is.
const EXEC_READS_A_SECOND: u32 = 200;
/// Ports noted for one process.
const MAX_PORTS: usize = 64;
/// Protocols noted for one process.
const MAX_PROTOCOLS: usize = 8;

/// What the table counts about itself.
#[derive(Debug, Default)]
pub struct ProcessTableCounters {
    /// Processes that were forgotten, to make room, before their time.
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

/// Knows the processes. Shared by all workers; the lookup of a known pid takes a read lock alone.
#[derive(Debug)]
pub struct ProcessTable {
    reader: Reader,
    entries: RwLock<HashMap<u32, Entry>>,
    exec_budget: Mutex<ExecBudget>,
    counters: ProcessTableCounters,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    /// Named by its exec event alone; `/proc` was not read yet.
    provisional: bool,
    /// When it came into the table: the age where nothing else tells it.
    since: Instant,
    ended: Option<Instant>,
    ports: BTreeSet<u16>,
    protocols: BTreeSet<&'static str>,
}

impl Entry {
    fn new(process: Process) -> Self {
        Self {
            process: Arc::new(process),
            provisional: false,
            since: Instant::now(),
            ended: None,
            ports: BTreeSet::new(),
            protocols: BTreeSet::new(),
        }
    }

    fn expired(&self, now: Instant) -> bool {
        self.ended
            .is_some_and(|ended| now.saturating_duration_since(ended) > KEEP_ENDED)
    }
}

/// How many execs of the current second have cost a read of `/proc`.
#[derive(Debug, Default)]
struct ExecBudget {
    second: u64,
    spent: u32,
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
            exec_budget: Mutex::default(),
            counters: ProcessTableCounters::default(),
            capacity,
        }
    }

    /// Who `pid` is. Never fails: a process that ended unseen is named `unknown`. Reads `/proc`
    /// for a new pid alone, and `/proc/PID/stat` for one whose exit was told: its pid may be
    /// another's by now.
    #[must_use]
    pub fn lookup(&self, pid: u32) -> Arc<Process> {
        let known = self.read().get(&pid).map(|entry| {
            let settled = !entry.provisional && entry.ended.is_none();
            (Arc::clone(&entry.process), settled, entry.provisional)
        });
        match known {
            Some((process, true, _)) => process,
            Some((process, false, provisional)) => {
                let start_ticks = self.reader.start_ticks(pid);
                let reused = start_ticks.is_some_and(|start| start != process.start_ticks);
                if provisional || reused {
                    if let Some(fresh) = self.reader.read(pid) {
                        return self.replace(fresh);
                    }
                    if let Some(entry) = self.write().get_mut(&pid) {
                        entry.provisional = false;
                    }
                }
                process
            }
            None => match self.reader.read(pid) {
                Some(process) => self.replace(process),
                None => {
                    self.counters.unknown.fetch_add(1, Ordering::Relaxed);
                    self.insert_ended(Process::unknown(pid, ""))
                }
            },
        }
    }

    /// Takes in an exec event with the command line that follows it (arguments end with NUL).
    /// A process that has ended since is named by these alone.
    pub fn handle_exec(&self, exec: &ProcessExec, command_line: &[u8]) {
        let fresh = self
            .spend(exec.time_ns)
            .then(|| self.reader.read(exec.pid))
            .flatten();
        if let Some(process) = fresh {
            self.replace(process);
            return;
        }
        let mut entry = Entry::new(process_of_event(exec, command_line));
        entry.provisional = true;
        let mut entries = self.write();
        self.make_room(&mut entries, exec.pid);
        entries.insert(exec.pid, entry);
    }

    /// Takes in an exit event. The process is kept for a minute: observations of what it did last
    /// may still be on their way.
    pub fn handle_exit(&self, pid: u32) {
        let mut entries = self.write();
        if let Some(entry) = entries.get_mut(&pid) {
            entry.ended = Some(Instant::now());
        }
    }

    /// Takes in every process of `/proc`, and marks those as ended whose exit went unseen. For
    /// the start, and once a minute.
    pub fn scan(&self) {
        let mut running = self.reader.pids();
        running.sort_unstable();
        for &pid in &running {
            let known = self
                .read()
                .get(&pid)
                .map(|entry| (entry.process.start_ticks, entry.ended.is_some()));
            let same = known.is_some_and(|(start_ticks, ended)| {
                !ended && self.reader.start_ticks(pid) == Some(start_ticks)
            });
            if !same && let Some(process) = self.reader.read(pid) {
                self.replace(process);
            }
        }
        let now = Instant::now();
        let mut entries = self.write();
        entries.retain(|_, entry| !entry.expired(now));
        for (pid, entry) in entries.iter_mut() {
            if entry.ended.is_none() && running.binary_search(pid).is_err() {
                entry.ended = Some(now);
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

    /// Every process that runs, by pid.
    #[must_use]
    pub fn list(&self) -> Vec<Target> {
        let entries = self.read();
        let running = entries.values().filter(|entry| entry.ended.is_none());
        let mut targets: Vec<Target> = running
            .map(|entry| Target {
                process: Arc::clone(&entry.process),
                ports: entry.ports.iter().copied().collect(),
                protocols: entry.protocols.iter().copied().collect(),
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

    /// What the table counts about itself.
    #[must_use]
    pub fn counters(&self) -> &ProcessTableCounters {
        &self.counters
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
                entry.ended = None;
                Arc::clone(&entry.process)
            }
            Slot::Occupied(mut slot) => {
                slot.insert(Entry::new(process));
                Arc::clone(&slot.get().process)
            }
            Slot::Vacant(slot) => Arc::clone(&slot.insert(Entry::new(process)).process),
        }
    }

    fn insert_ended(&self, process: Process) -> Arc<Process> {
        let mut entries = self.write();
        self.make_room(&mut entries, process.pid);
        // Another worker, or an exec event, may have been quicker and know more.
        let entry = entries.entry(process.pid).or_insert_with(|| Entry {
            ended: Some(Instant::now()),
            ..Entry::new(process)
        });
        Arc::clone(&entry.process)
    }

    /// Lets the oldest go where `pid` would be one too many: of the ended ones first.
    fn make_room(&self, entries: &mut HashMap<u32, Entry>, pid: u32) {
        if entries.len() < self.capacity || entries.contains_key(&pid) {
            return;
        }
        let now = Instant::now();
        entries.retain(|_, entry| !entry.expired(now));
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
        let mut by_age: Vec<(bool, Instant, u32)> = entries
            .iter()
            .map(|(pid, entry)| {
                (
                    entry.ended.is_none(),
                    entry.ended.unwrap_or(entry.since),
                    *pid,
                )
            })
            .collect();
        by_age.sort_unstable();
        for (_, _, pid) in by_age.into_iter().take(surplus) {
            entries.remove(&pid);
        }
        self.counters
            .evicted
            .fetch_add(surplus as u64, Ordering::Relaxed);
    }

    /// Whether `/proc` may be read for an exec event of this time.
    fn spend(&self, time_ns: u64) -> bool {
        let mut budget = self
            .exec_budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let second = time_ns / 1_000_000_000;
        if budget.second != second {
            *budget = ExecBudget { second, spent: 0 };
        }
        budget.spent = budget.spent.saturating_add(1);
        budget.spent <= EXEC_READS_A_SECOND
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
