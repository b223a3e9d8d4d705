//! What sampled processes had mapped. Asked while the process is likely to be there still: at
//! its first sample.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_common::sample::SampleKey;
use profile::Thread;
use rustix::process::{Resource, getrlimit};

use super::executable::{Executable, FileIdentity};
use super::jit;
use super::maps::{self, MapsEntry};
use super::perf_map::PerfMapFile;

/// Most files that are held open for sampled processes, and at most half of those that may be open.
const MAX_OPEN_FILES: u64 = 8192;

/// First pause after a look in vain.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// Longest pause after looks in vain.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause between looks for a perf map, which somebody may ask a runtime to write at any time.
const PERF_MAP_PAUSE: Duration = Duration::from_secs(1);

/// Most process images. What continuous profiling keeps is bounded by memory well before.
const MAX_IMAGES: usize = 65_536;

/// A pid and the value that tells apart the images it had: `ebpf_common::sample::SampleKey`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageKey {
    /// Process.
    pub pid: u32,
    /// See `SampleKey::image`.
    pub image: u64,
}

impl ImageKey {
    /// The image that a thread ran.
    #[must_use]
    pub fn of(thread: &Thread) -> Self {
        Self {
            pid: thread.pid,
            image: thread.image,
        }
    }

    /// The image that was sampled.
    #[must_use]
    pub const fn of_sample(key: &SampleKey) -> Self {
        Self {
            pid: key.pid,
            image: key.image,
        }
    }
}

/// Backing of an executable range.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A file that is open.
    File(Arc<Executable>),
    /// The kernel's code in the process: `[vdso]`.
    Vdso,
    /// No file, or one that is none on a disk: code that the process wrote itself.
    Anonymous,
    /// A file that no sample has touched yet, or that could not be opened.
    Unopened,
}

/// An executable range and its backing.
#[derive(Clone, Debug)]
pub struct Region {
    /// The range.
    pub entry: MapsEntry,
    /// What is there.
    pub backing: Backing,
    /// Opening the file was tried, and failed.
    unreadable: bool,
}

/// When to look again for what was not there: code that no mapping holds, or a perf map. Reading the maps of a large process takes
/// longer than all else that is done for a sample, and what frame pointers lead to in code without
/// them is often no code at all: each look in vain makes the next one wait twice as long.
#[derive(Clone, Debug, Default)]
struct Looks {
    last: Option<Instant>,
    pause: Duration,
}

impl Looks {
    fn is_due(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= self.pause)
    }

    fn note(&mut self, found: bool) {
        self.last = Some(Instant::now());
        self.pause = if found {
            Duration::ZERO
        } else {
            (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
        };
    }

    fn note_perf_map(&mut self) {
        self.last = Some(Instant::now());
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, PERF_MAP_PAUSE);
    }
}

/// Whether a process still has its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    #[default]
    Lasts,
    /// Its last stacks may not have been read yet.
    Ended,
    /// Those have been read.
    Settled,
}

/// What one process image had mapped.
#[derive(Clone, Debug, Default)]
pub struct Image {
    life: Life,
    regions: Vec<Region>,
    looks: Looks,
    perf_map: Option<Arc<PerfMapFile>>,
    perf_map_looks: Looks,
    /// Stands for code of a JIT compiler that has no name.
    jit_mark: Option<Arc<str>>,
}

impl Image {
    /// The region that `address` lies in.
    #[must_use]
    pub fn region(&self, address: u64) -> Option<&Region> {
        self.position(address)
            .map(|position| &self.regions[position])
    }

    /// Could the process be asked what it had mapped?
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.regions.is_empty()
    }

    /// The JIT compiler's list, where there is one.
    #[must_use]
    pub fn perf_map(&self) -> Option<&PerfMapFile> {
        self.perf_map.as_deref()
    }

    /// What stands for the function at `address`, if a JIT compiler wrote it.
    #[must_use]
    pub fn jit_mark(&self, address: u64) -> Option<&Arc<str>> {
        let region = self.region(address)?;
        let is_kernels = ["[vsyscall]", "[uprobes]"].contains(&&*region.entry.path);
        let is_jit = matches!(region.backing, Backing::Anonymous) && !is_kernels;
        self.jit_mark.as_ref().filter(|_| is_jit)
    }

    /// A list that was replaced by another file gives way to that; one that is gone is kept.
    fn find_perf_map(&mut self, proc_root: &Path, pid: u32) {
        self.perf_map_looks.note_perf_map();
        let Some(found) = PerfMapFile::find(proc_root, pid) else {
            return;
        };
        if !self
            .perf_map
            .as_ref()
            .is_some_and(|known| known.is_same(&found))
        {
            self.perf_map = Some(Arc::new(found));
        }
    }

    /// Lets go of what no sample has touched, once the process has ended and had time to be read: most
    /// processes have far more mapped than they run, and where many begin and end, the lists of all
    /// of them would take more memory than their samples.
    fn age(&mut self, key: ImageKey, proc_root: &Path) {
        match self.life {
            Life::Lasts if maps::read_image(proc_root, key.pid) != Some(key.image) => {
                self.life = Life::Ended;
            }
            Life::Ended => {
                self.regions.retain(Region::was_touched);
                self.regions.shrink_to_fit();
                self.life = Life::Settled;
            }
            Life::Lasts | Life::Settled => {}
        }
    }

    fn position(&self, address: u64) -> Option<usize> {
        let after = self
            .regions
            .partition_point(|region| region.entry.start <= address);
        let position = after.checked_sub(1)?;
        (address < self.regions[position].entry.end).then_some(position)
    }
}

/// Images of the processes that were sampled since the last [`Images::clear`].
#[derive(Debug)]
pub struct Images {
    proc_root: PathBuf,
    images: HashMap<ImageKey, Image>,
    files: HashMap<FileIdentity, Arc<Executable>>,
    max_files: usize,
    nameless: NamelessFiles,
}

/// Files that were sampled and whose functions can have no names, each once a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamelessFiles {
    /// More files than are held open.
    pub beyond_limit: u64,
    /// They could not be opened.
    pub unreadable: u64,
}

impl Images {
    /// None yet; processes are read below `proc_root` (`/proc`).
    #[must_use]
    pub fn new(proc_root: impl Into<PathBuf>) -> Self {
        let open_files = getrlimit(Resource::Nofile).current;
        let max_files = open_files.map_or(MAX_OPEN_FILES, |limit| MAX_OPEN_FILES.min(limit / 2));
        Self {
            proc_root: proc_root.into(),
            images: HashMap::new(),
            files: HashMap::new(),
            max_files: max_files as usize,
            nameless: NamelessFiles::default(),
        }
    }

    /// Takes out how many files were met since the last call that can have no names.
    pub fn take_nameless(&mut self) -> NamelessFiles {
        std::mem::take(&mut self.nameless)
    }

    /// Makes sure that `addresses` of an image can be resolved later: reads what the process has
    /// mapped, opens the files. What has failed is tried again with the next stack.
    pub fn observe(&mut self, key: ImageKey, tid: u32, addresses: &[u64]) {
        if addresses.is_empty() {
            return;
        }
        if !self.images.contains_key(&key) && self.images.len() >= MAX_IMAGES {
            return;
        }
        let image = self.images.entry(key).or_default();
        // Code may have been mapped since the last look.
        let misses = |image: &Image| {
            let mut addresses = addresses.iter();
            addresses.any(|address| image.position(*address).is_none())
        };
        if misses(image) && image.looks.is_due() {
            refresh(image, &self.proc_root, key, tid);
            image.looks.note(!misses(image));
        }
        for address in addresses {
            let Some(position) = image.position(*address) else {
                continue;
            };
            let region = &mut image.regions[position];
            if matches!(region.backing, Backing::Unopened) && !region.unreadable {
                let (files, max_files) = (&mut self.files, self.max_files);
                match open(&region.entry, &self.proc_root, key.pid, files, max_files) {
                    Ok(file) => region.backing = Backing::File(file),
                    Err(refusal) => {
                        region.unreadable = true;
                        match refusal {
                            Refusal::Limit => self.nameless.beyond_limit += 1,
                            Refusal::Unreadable => self.nameless.unreadable += 1,
                        }
                    }
                }
            }
            if matches!(region.backing, Backing::Anonymous) && image.perf_map_looks.is_due() {
                image.find_perf_map(&self.proc_root, key.pid);
            }
        }
    }

    /// Looks for the perf maps of these images that were written, or written anew, since the last look.
    pub fn find_perf_maps<'a>(&mut self, keys: impl IntoIterator<Item = &'a ImageKey>) {
        for key in keys {
            if let Some(image) = self.images.get_mut(key)
                && image.perf_map_looks.last.is_some()
                && maps::read_image(&self.proc_root, key.pid) == Some(key.image)
            {
                image.find_perf_map(&self.proc_root, key.pid);
            }
        }
    }

    /// The image of `key`, where one was sampled. Cheap to clone but for the list of regions.
    #[must_use]
    pub fn get(&self, key: ImageKey) -> Option<&Image> {
        self.images.get(&key)
    }

    /// Forgets the images that are not among `keys`, and of ended ones what no sample has touched;
    /// closes the files that no other has. To be called seldom enough that meanwhile an ended
    /// process's last stacks were observed.
    pub fn retain(&mut self, keys: &HashSet<ImageKey>) {
        self.images.retain(|key, _| keys.contains(key));
        for (key, image) in &mut self.images {
            image.age(*key, &self.proc_root);
        }
        self.files.retain(|_, file| Arc::strong_count(file) > 1);
    }

    /// Forgets everything and closes the files.
    pub fn clear(&mut self) {
        self.images.clear();
        self.files.clear();
    }
}

/// Reads the process's maps anew, keeping files that are open already.
fn refresh(image: &mut Image, proc_root: &Path, key: ImageKey, tid: u32) {
    // When the main thread has ended and others run on, only those show the maps.
    let read = [key.pid, tid].into_iter().find_map(|pid| {
        let entries = maps::read(proc_root, pid)
            .ok()
            .filter(|entries| !entries.is_empty())?;
        Some((pid, entries))
    });
    let Some((pid, entries)) = read else {
        return;
    };
    // Maps are those of the sampled image only if it is still the same one after the reading.
    if key.image != 0 && maps::read_image(proc_root, pid) != Some(key.image) {
        return;
    }
    image.jit_mark = Some(jit::mark(entries.iter().map(|entry| &*entry.path)));
    let old = std::mem::take(&mut image.regions);
    image.regions = entries
        .into_iter()
        .map(|entry| {
            let known = old.iter().find(|region| region.entry == entry);
            known.cloned().unwrap_or_else(|| Region::new(entry))
        })
        .collect();
}

impl Region {
    fn new(entry: MapsEntry) -> Self {
        let backing = if entry.path == "[vdso]" {
            Backing::Vdso
        } else if entry.inode == 0 || !entry.path.starts_with('/') || is_unnamed(&entry.path) {
            Backing::Anonymous
        } else {
            Backing::Unopened
        };
        Self {
            entry,
            backing,
            unreadable: false,
        }
    }

    fn was_touched(&self) -> bool {
        self.unreadable || !matches!(self.backing, Backing::Unopened)
    }
}

/// Paths by which the kernel names memory that no file system has: where JIT compilers write.
fn is_unnamed(path: &str) -> bool {
    ["/memfd:", "/dev/zero", "/SYSV", "/anon_hugepage"]
        .iter()
        .any(|name| path.starts_with(name))
}

/// Opens the file behind a range that a process has mapped; `None` where that cannot be done.
#[must_use]
pub fn open_mapped(proc_root: &Path, pid: u32, entry: &MapsEntry) -> Option<Executable> {
    let MapsEntry {
        start,
        end,
        inode,
        path,
        ..
    } = entry;
    // `map_files` leads to the very file, even where it was deleted or lies in another mount
    // namespace, but asks for CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN). `exe` is one file alone.
    let paths = [
        format!("map_files/{start:x}-{end:x}"),
        format!("root{path}"),
        "exe".to_owned(),
    ];
    paths.iter().find_map(|file| {
        let executable =
            Executable::open(&proc_root.join(pid.to_string()).join(file), path).ok()?;
        // Another file may have taken the path.
        (executable.inode() == *inode).then_some(executable)
    })
}

/// Why a file is not held open.
enum Refusal {
    Limit,
    Unreadable,
}

/// Opens the file of a range, or finds the one that is open already.
fn open(
    entry: &MapsEntry,
    proc_root: &Path,
    pid: u32,
    files: &mut HashMap<FileIdentity, Arc<Executable>>,
    max_files: usize,
) -> Result<Arc<Executable>, Refusal> {
    let executable = open_mapped(proc_root, pid, entry).ok_or(Refusal::Unreadable)?;
    let identity = executable.identity();
    if let Some(known) = files.get(&identity) {
        return Ok(Arc::clone(known));
    }
    if files.len() >= max_files {
        return Err(Refusal::Limit);
    }
    let executable = Arc::new(executable);
    files.insert(identity, Arc::clone(&executable));
    Ok(executable)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn own_key() -> ImageKey {
        let pid = std::process::id();
        ImageKey {
            pid,
            image: maps::read_image(Path::new("/proc"), pid).unwrap(),
        }
    }

    #[test]
    fn this_process_is_opened_where_it_was_sampled() {
        let here = own_key as fn() -> ImageKey as usize as u64;
        let mut images = Images::new("/proc");
        images.observe(own_key(), own_key().pid, &[here]);
        let image = images.get(own_key()).unwrap();
        let Backing::File(executable) = &image.region(here).unwrap().backing else {
            panic!("{:?}", image.region(here));
        };
        assert_eq!(
            **executable.path(),
            *std::env::current_exe().unwrap().to_str().unwrap()
        );
        assert!(image.region(0).is_none());
    }

    #[test]
    fn a_file_that_finds_no_room_is_counted_once() {
        let here = own_key as fn() -> ImageKey as usize as u64;
        let mut images = Images::new("/proc");
        images.max_files = 0;
        for _ in 0..2 {
            images.observe(own_key(), own_key().pid, &[here, here + 1]);
        }
        let expected = NamelessFiles {
            beyond_limit: 1,
            unreadable: 0,
        };
        assert_eq!(images.take_nameless(), expected);
        assert_eq!(images.take_nameless(), NamelessFiles::default());
        let region = images.get(own_key()).unwrap().region(here).unwrap();
        assert!(matches!(region.backing, Backing::Unopened), "{region:?}");
    }

    #[test]
    fn of_an_ended_process_what_was_touched_is_kept() {
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = sleeper.id();
        let proc_root = Path::new("/proc");
        // It is `sleep` as soon as that is mapped.
        let code = loop {
            let entries = maps::read(proc_root, pid).unwrap();
            let code = entries.iter().find(|entry| entry.path.ends_with("/sleep"));
            if let Some(code) = code
                && entries.len() > 3
            {
                break code.start;
            }
        };
        let image = maps::read_image(proc_root, pid).unwrap();
        let key = ImageKey { pid, image };
        let mut images = Images::new("/proc");
        images.observe(key, pid, &[code]);
        let regions = |images: &Images| images.get(key).unwrap().regions.len();
        let kept = HashSet::from([key]);
        images.retain(&kept);
        images.retain(&kept);
        let all = regions(&images);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        images.retain(&kept);
        assert_eq!(regions(&images), all);
        images.retain(&kept);
        assert!(regions(&images) < all, "{all}");
        let region = images.get(key).unwrap().region(code).unwrap();
        assert!(matches!(region.backing, Backing::File(_)));
    }

    #[test]
    fn looks_in_vain_become_rare() {
        let mut images = Images::new("/proc");
        let here = own_key as fn() -> ImageKey as usize as u64;
        let nowhere = u64::MAX - 1;
        images.observe(own_key(), own_key().pid, &[here]);
        let mut looks = 0;
        let mut last = images.get(own_key()).unwrap().looks.last;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(400) {
            images.observe(own_key(), own_key().pid, &[here, nowhere]);
            let now = images.get(own_key()).unwrap().looks.last;
            looks += u32::from(now != last);
            last = now;
        }
        // One at once, and after 50, 150 and 350 ms.
        assert!((2..=4).contains(&looks), "{looks} looks");
        assert!(images.get(own_key()).unwrap().region(here).is_some());
    }

    #[test]
    fn the_maps_of_another_image_are_not_taken() {
        let here = own_key as fn() -> ImageKey as usize as u64;
        let mut images = Images::new("/proc");
        let earlier = ImageKey {
            image: own_key().image + 1,
            ..own_key()
        };
        images.observe(earlier, earlier.pid, &[here]);
        assert!(images.get(earlier).unwrap().region(here).is_none());
    }
}
