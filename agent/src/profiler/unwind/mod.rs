//! Keeps the kernel side able to walk the stacks of the processes that are sampled: reads what a
//! process has mapped, builds the unwind rows of files that were not met yet, and loads both.
//!
//! Works in a thread of its own: a large executable takes a good part of a second.

mod interpreters;
mod pool;
mod scripts;
mod tables;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_common::sample::{SampleKey, stack_flags};
use ebpf_common::unwind::{
    MAX_MAPPINGS, MAX_PROCESS_MAPPINGS, MAX_PROCESSES, StackEnd, UnwindMapping, UnwindProcess,
};
use profile::python::PythonFile;
use profile::unwind::{CodeSegment, UnwindSections, UnwindTable};
use profile::v8::{V8, V8Error};

use self::interpreters::Interpreters;
use self::pool::Pool;
use self::scripts::Scripts;
use self::tables::{LoadError, TableKey, Tables};
use super::python::PythonProcesses;
use super::v8::V8Processes;
use crate::probes::release_memory;
use crate::probes::unwind_maps::UnwindMaps;
use crate::symbolize::executable::FileIdentity;
use crate::symbolize::image::open_mapped;
use crate::symbolize::maps::{self, MapsEntry};

/// Requests that may wait.
const MAX_WAITING: usize = 1024;

/// How often one process's mappings are read anew when its stacks end badly.
const REFRESH: Duration = Duration::from_secs(1);

/// How often processes that have ended are looked for.
const CLEANING: Duration = Duration::from_secs(10);

/// How long room that was given up is left alone: programs that still read it take microseconds.
const REST: Duration = Duration::from_millis(20);

/// How long a process stays at least: where all that is sampled at a time has no room, some of it is
/// walked by frame pointers, and nothing is built over and over.
const STAY: Duration = Duration::from_secs(10);

/// How long a file whose rows found no room is not tried again: to read those of a large compiler
/// takes a third of a second, and every process of it would have them read.
const RETRY: Duration = Duration::from_secs(60);

/// Files whose content is remembered.
const MAX_FILES: usize = 8192;

/// Longest vDSO that is read; it has a few pages.
const MAX_VDSO_BYTES: u64 = 64 * 1024;

/// A process image that is sampled.
#[derive(Clone, Copy, Debug)]
struct Asked {
    pid: u32,
    tid: u32,
    /// See [`SampleKey::image`].
    image: u64,
}

enum Request {
    /// Make an image known.
    Load(Asked),
    /// Say when all before is done.
    Answer(Sender<()>),
}

/// Handle on the thread. Dropping it ends the thread.
pub struct Unwinder {
    requests: SyncSender<Request>,
    /// When an image was asked for last, by pid.
    asked: HashMap<u32, (u64, Instant)>,
    python: PythonProcesses,
    v8: V8Processes,
}

impl Unwinder {
    /// Starts the thread.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(maps: Option<UnwindMaps>) -> io::Result<Self> {
        let maps = maps.ok_or_else(|| io::Error::other("the unwind maps are taken"))?;
        let (requests, waiting) = mpsc::sync_channel(MAX_WAITING);
        let python = PythonProcesses::default();
        let v8 = V8Processes::default();
        let worker = Worker::new(maps, "/proc", python.clone(), v8.clone());
        thread::Builder::new()
            .name("unwinder".into())
            .spawn(move || worker.run(&waiting))?;
        Ok(Self {
            requests,
            asked: HashMap::new(),
            python,
            v8,
        })
    }

    /// One that makes nothing known, for tests without kernel maps.
    #[cfg(test)]
    pub(super) fn idle() -> Self {
        Self {
            requests: mpsc::sync_channel(0).0,
            asked: HashMap::new(),
            python: PythonProcesses::default(),
            v8: V8Processes::default(),
        }
    }

    /// The processes that run CPython, as far as they were met.
    #[must_use]
    pub fn python(&self) -> &PythonProcesses {
        &self.python
    }

    /// The processes that run V8, as far as they were met.
    #[must_use]
    pub fn v8(&self) -> &V8Processes {
        &self.v8
    }

    /// Takes note of a sample: a process that is not known yet becomes so, and one whose stack
    /// ended where it should not is looked at again, once a second.
    pub fn observe(&mut self, key: &SampleKey) {
        let end = StackEnd::of_flags(key.flags);
        let is_unknown = key.flags & stack_flags::PROCESS_UNKNOWN != 0;
        let ended_well = matches!(
            end,
            StackEnd::NoUserStack | StackEnd::Outermost | StackEnd::Depth
        );
        if ended_well && !is_unknown {
            return;
        }
        let now = Instant::now();
        if let Some((image, last)) = self.asked.get(&key.pid)
            && *image == key.image
            && now.duration_since(*last) < REFRESH
        {
            return;
        }
        // While more wait than there is room for, the next sample asks again.
        self.ask(key.pid, key.tid, key.image, now);
    }

    /// Makes processes known before they are sampled; waits no longer than `until`.
    pub fn prepare(&mut self, pids: impl IntoIterator<Item = u32>, until: Instant) {
        let (answer, done) = mpsc::channel();
        for pid in pids {
            let now = Instant::now();
            let image = maps::read_image(Path::new("/proc"), pid);
            // Kernel threads have none.
            let Some(image) = image.filter(|image| *image != 0) else {
                continue;
            };
            if now >= until || !self.ask(pid, pid, image, now) {
                break;
            }
        }
        if self.requests.try_send(Request::Answer(answer)).is_ok() {
            // What is not ready then will be during the profile.
            let _ = done.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Asks for an image. False where too much is asked for already.
    fn ask(&mut self, pid: u32, tid: u32, image: u64, now: Instant) -> bool {
        if self.asked.len() >= MAX_PROCESSES {
            self.asked.clear();
        }
        let asked = self
            .requests
            .try_send(Request::Load(Asked { pid, tid, image }));
        let is_asked = asked.is_ok();
        if is_asked {
            self.asked.insert(pid, (image, now));
        }
        is_asked
    }
}

/// What is known of a file.
#[derive(Clone, Debug)]
struct KnownFile {
    code: Vec<CodeSegment>,
    /// `None` without rows.
    table: Option<TableKey>,
    python: Option<PythonFile>,
    v8: Option<Arc<Result<V8, V8Error>>>,
}

/// A process image in the kernel's maps.
struct KnownProcess {
    image: u64,
    entries: Vec<MapsEntry>,
    tables: Vec<TableKey>,
    range: Range<u32>,
    /// See [`UnwindProcess::version`].
    version: u32,
    loaded: Instant,
}

struct Worker {
    maps: UnwindMaps,
    proc_root: PathBuf,
    tables: Tables,
    mappings: Pool,
    /// The last one that was given.
    version: u32,
    /// Ranges given up, see [`REST`].
    resting: Vec<Range<u32>>,
    files: HashMap<FileIdentity, KnownFile>,
    /// Files whose rows found no room, and when.
    refused: HashMap<FileIdentity, Instant>,
    vdso: Option<KnownFile>,
    processes: HashMap<u32, KnownProcess>,
    interpreters: Interpreters,
    scripts: Scripts,
}

impl Worker {
    fn new(maps: UnwindMaps, proc_root: &str, python: PythonProcesses, v8: V8Processes) -> Self {
        Self {
            maps,
            proc_root: proc_root.into(),
            tables: Tables::new(),
            mappings: Pool::new(MAX_MAPPINGS),
            version: 0,
            resting: Vec::new(),
            files: HashMap::new(),
            refused: HashMap::new(),
            vdso: None,
            processes: HashMap::new(),
            interpreters: Interpreters::new(python),
            scripts: Scripts::new(v8),
        }
    }

    fn run(mut self, requests: &Receiver<Request>) {
        let mut cleaned = Instant::now();
        let mut built = false;
        loop {
            // Building takes memory that nobody needs once nothing more is asked for.
            let wait = if built { REFRESH } else { CLEANING };
            let wait = wait.min(self.interpreters.wait());
            match requests.recv_timeout(wait) {
                Ok(Request::Load(asked)) => built |= self.load(asked),
                Ok(Request::Answer(done)) => {
                    // Whoever asked may have given up.
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !self.interpreters.are_awaited() && std::mem::take(&mut built) {
                        release_memory();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.attach_awaited();
            if cleaned.elapsed() >= CLEANING {
                cleaned = Instant::now();
                self.forget_ended();
            }
        }
    }

    /// Makes an image known. True where a table was built for it.
    fn load(&mut self, asked: Asked) -> bool {
        let Some((image, entries)) = self.read_maps(asked) else {
            return false;
        };
        let known = self.processes.get(&asked.pid);
        if known.is_some_and(|known| known.image == image && known.entries == entries) {
            return false;
        }
        let mut built = false;
        let mut tables = Vec::new();
        let mut ranges = Vec::with_capacity(entries.len());
        for entry in &entries {
            let file = self.file_of(asked.pid, entry, &mut built);
            self.interpreters
                .note(asked.pid, image, entry, file.as_ref());
            if let Some(v8) = file.as_ref().and_then(|file| file.v8.as_ref()) {
                self.scripts.note(&self.maps, asked.pid, image, v8);
            }
            ranges.push(self.range_of(entry, file, &mut tables));
        }
        // Before its stacks can be walked, so that no one is taken for whole without these frames.
        self.attach(asked.pid);
        if let Err(error) = self.publish(asked.pid, image, &ranges) {
            tracing::warn!(pid = asked.pid, %error, "stacks of a process are walked by frame pointers alone");
            tables.into_iter().for_each(|key| self.tables.release(key));
            if !self.processes.contains_key(&asked.pid) {
                self.interpreters.forget(asked.pid);
                self.scripts.forget(asked.pid);
            }
            return built;
        }
        if let Some(known) = self.processes.get_mut(&asked.pid) {
            known.image = image;
            known.entries = entries;
            let old = std::mem::replace(&mut known.tables, tables);
            old.into_iter().for_each(|key| self.tables.release(key));
        }
        tracing::debug!(
            pid = asked.pid,
            ranges = ranges.len(),
            processes = self.processes.len(),
            row_bytes = self.tables.row_bytes(),
            "stacks of a process can be walked"
        );
        built
    }

    /// The executable ranges of an image, and which one it is.
    fn read_maps(&self, asked: Asked) -> Option<(u64, Vec<MapsEntry>)> {
        // When the main thread has ended and others run on, only those show the maps.
        let (id, mut entries) = [asked.pid, asked.tid].into_iter().find_map(|id| {
            let entries = maps::read(&self.proc_root, id).ok()?;
            (!entries.is_empty()).then_some((id, entries))
        })?;
        // Kernel memory that every process shows; no user code calls from there.
        entries.retain(|entry| entry.path != "[vsyscall]");
        entries.truncate(MAX_PROCESS_MAPPINGS);
        let image = maps::read_image(&self.proc_root, id)?;
        (asked.image == image).then_some((image, entries))
    }

    /// What is known of the file behind a range; its table is in the kernel then.
    fn file_of(&mut self, pid: u32, entry: &MapsEntry, built: &mut bool) -> Option<KnownFile> {
        if entry.path == "[vdso]" {
            let known = self.vdso.as_ref().and_then(|known| known.table);
            if !known.is_some_and(|key| self.tables.contains(key)) {
                self.vdso = self.load_vdso();
            }
            return self.vdso.clone();
        }
        if entry.inode == 0 || !entry.path.starts_with('/') {
            return None;
        }
        let executable = open_mapped(&self.proc_root, pid, entry)?;
        let identity = executable.identity();
        if let Some(known) = self.files.get(&identity)
            && known.table.is_none_or(|key| self.tables.contains(key))
        {
            return Some(known.clone());
        }
        if let Some(refused) = self.refused.get(&identity)
            && refused.elapsed() < RETRY
        {
            return None;
        }
        let loaded = executable
            .with_unwind_sections(|sections| self.load_table(executable.path(), sections))?;
        *built = true;
        let Some(mut known) = loaded else {
            if self.refused.len() >= MAX_FILES {
                self.refused.clear();
            }
            self.refused.insert(identity, Instant::now());
            return None;
        };
        known.python = executable.python();
        known.v8 = executable.v8().map(Arc::new);
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        self.files.insert(identity, known.clone());
        Some(known)
    }

    /// What is known of a file from now on; `None` where its table found no room.
    fn load_table(&mut self, path: &str, sections: &UnwindSections<'_>) -> Option<KnownFile> {
        let table = if sections.is_empty() {
            None
        } else {
            Some(self.ensure_table(path, sections)?)
        };
        Some(KnownFile {
            code: sections.code().to_vec(),
            table,
            python: None,
            v8: None,
        })
    }

    /// Builds and loads the table of `sections`, unless an equal one is there. Where there is no
    /// room, what is not used goes, and then what was loaded first.
    fn ensure_table(&mut self, path: &str, sections: &UnwindSections<'_>) -> Option<TableKey> {
        let key = self.tables.key(sections);
        if self.tables.contains(key) {
            return Some(key);
        }
        let table = UnwindTable::build(sections);
        let statistics = table.statistics;
        if statistics.truncated || statistics.unreadable > 0 {
            tracing::debug!(
                path,
                ?statistics,
                "not all of a file's unwind information is used"
            );
        }
        loop {
            match self.tables.load(&mut self.maps, key, &table) {
                Ok(()) => return Some(key),
                Err(LoadError::Full) if self.tables.give_up_one() || self.give_up_process() => {
                    thread::sleep(REST);
                    self.tables.tick();
                }
                Err(error) => {
                    tracing::warn!(path, %error, "code is walked by frame pointers alone");
                    return None;
                }
            }
        }
    }

    /// The vDSO is the same in every 64-bit process, this one included.
    fn load_vdso(&mut self) -> Option<KnownFile> {
        let own = std::process::id();
        let entries = maps::read(&self.proc_root, own).ok()?;
        let entry = entries.iter().find(|entry| entry.path == "[vdso]")?;
        let len = (entry.end - entry.start).min(MAX_VDSO_BYTES);
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        let memory = File::open(self.proc_root.join(format!("{own}/mem"))).ok()?;
        memory.read_exact_at(&mut bytes, entry.start).ok()?;
        let sections = UnwindSections::of_elf(&*bytes).ok()?;
        self.load_table("[vdso]", &sections)
    }

    /// The kernel's form of a range, whose table counts as used from now on.
    fn range_of(
        &mut self,
        entry: &MapsEntry,
        file: Option<KnownFile>,
        tables: &mut Vec<TableKey>,
    ) -> UnwindMapping {
        let mut range = UnwindMapping {
            start: entry.start,
            end: entry.end,
            ..UnwindMapping::default()
        };
        let Some(KnownFile {
            code,
            table: Some(key),
            ..
        }) = file
        else {
            return range;
        };
        let segment = code
            .iter()
            .find(|segment| segment.is_mapped_at(entry.file_offset));
        if let Some(segment) = segment
            && let Some(place) = self.tables.acquire(key)
        {
            tables.push(key);
            let address = segment.address_at(entry.file_offset);
            range.bias = entry.start.wrapping_sub(address).wrapping_add(place.start);
            range.first_page = place.first_page;
            range.pages = place.pages;
        }
        range
    }

    /// Writes an image's ranges into the kernel and makes them the process's.
    fn publish(&mut self, pid: u32, image: u64, ranges: &[UnwindMapping]) -> io::Result<()> {
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        let range = loop {
            if let Some(range) = self.mappings.take(count) {
                break range;
            }
            if self.resting.is_empty() && !self.give_up_process() {
                return Err(io::Error::other("no room for its executable ranges"));
            }
            thread::sleep(REST);
            for range in std::mem::take(&mut self.resting) {
                self.mappings.give_back(range);
            }
        };
        self.version = self.version.wrapping_add(1).max(1);
        let process = self.element(pid, image, &range, self.version);
        if self.processes.len() >= MAX_PROCESSES && !self.processes.contains_key(&pid) {
            self.give_up_process();
        }
        let written = self.maps.set_mappings(range.start, ranges).and_then(|()| {
            self.maps
                .set_process(pid, process)
                .map_err(io::Error::other)
        });
        if let Err(error) = written {
            self.resting.push(range);
            return Err(error);
        }
        let known = self.processes.entry(pid).or_insert(KnownProcess {
            image,
            entries: Vec::new(),
            tables: Vec::new(),
            range: 0..0,
            version: 0,
            loaded: Instant::now(),
        });
        known.loaded = Instant::now();
        known.version = self.version;
        let old = std::mem::replace(&mut known.range, range);
        if !old.is_empty() {
            self.resting.push(old);
        }
        Ok(())
    }

    /// What the kernel side has to know of a process image.
    fn element(&self, pid: u32, image: u64, range: &Range<u32>, version: u32) -> UnwindProcess {
        UnwindProcess {
            image,
            first_mapping: range.start,
            mappings: range.end - range.start,
            python: self.interpreters.element(pid, image),
            v8: self.scripts.element(pid, image),
            version,
            padding: 0,
        }
    }

    /// Forgets the process that was loaded first, for want of room. Its next sample brings it back.
    fn give_up_process(&mut self) -> bool {
        let Some(pid) = self
            .processes
            .iter()
            .filter(|(_, known)| known.loaded.elapsed() >= STAY)
            .min_by_key(|(_, known)| known.loaded)
            .map(|(pid, _)| *pid)
        else {
            return false;
        };
        tracing::debug!(pid, "a process's unwind ranges give way to another's");
        self.forget(pid);
        true
    }

    fn forget(&mut self, pid: u32) {
        self.maps.remove_process(pid);
        self.interpreters.forget(pid);
        self.scripts.forget(pid);
        if let Some(known) = self.processes.remove(&pid) {
            self.resting.push(known.range);
            known
                .tables
                .into_iter()
                .for_each(|key| self.tables.release(key));
        }
    }

    /// Forgets processes that have ended, and lets go of what rested.
    fn forget_ended(&mut self) {
        self.tables.tick();
        for range in std::mem::take(&mut self.resting) {
            self.mappings.give_back(range);
        }
        let ended: Vec<_> = self
            .processes
            .keys()
            .copied()
            .filter(|pid| !is_there(&self.proc_root, *pid))
            .collect();
        ended.into_iter().for_each(|pid| self.forget(pid));
    }
}

fn is_there(proc_root: &Path, pid: u32) -> bool {
    proc_root.join(pid.to_string()).exists()
}
