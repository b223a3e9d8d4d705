//! Perf maps: functions that JIT compilers list as `START SIZE NAME`, numbers in hexadecimal
//! (Linux, `tools/perf/Documentation/jit-interface.txt`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use procfs::process::Process;
use profile::SymbolizedFrame;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::maps;
use super::names::Functions;

/// Most bytes that are read of one perf map: its last ones, since what is written later holds.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Most often that ranges may hold one of the addresses that are looked up: with ranges that all lie
/// over each other, every line would be compared with every address.
const MAX_MATCHES: usize = 4_000_000;

/// Most bytes of one line; longer ones are cut.
const MAX_LINE_BYTES: u64 = 4096;

/// How much earlier than its process a perf map may seem to have been written: the time of boot is
/// told in seconds, and files carry the time of the kernel's last tick.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// The list of functions that a JIT compiler writes: `/tmp/perf-PID.map`.
#[derive(Debug)]
pub struct PerfMapFile {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    /// Its length when it was found: what comes later was written while the profile was taken.
    len_when_found: u64,
    /// Bytes of it that were read: lines that could not be understood there are counted already.
    read_bytes: AtomicU64,
}

impl PerfMapFile {
    /// The perf map of a process: `/tmp/perf-PID.map` in its own file system, by its own pid.
    #[must_use]
    pub fn find(proc_root: &Path, pid: u32) -> Option<Self> {
        let own_pid = maps::read_own_pid(proc_root, pid)?;
        let folder = proc_root.join(pid.to_string());
        let file = open_in_root(&folder.join("root"), &format!("tmp/perf-{own_pid}.map")).ok()?;
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let owner = std::fs::metadata(&folder).ok()?.uid();
        let is_trusted = metadata.uid() == owner || metadata.uid() == 0;
        // One that an earlier process of this number left behind names other code.
        let is_its_own = metadata.modified().ok()? + CLOCK_SLACK >= start_time(&folder)?;
        (is_trusted && is_its_own).then(|| Self {
            file,
            identity: (metadata.dev(), metadata.ino()),
            len_when_found: metadata.len(),
            read_bytes: AtomicU64::new(0),
        })
    }

    /// Is it the very same file?
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

/// Opens a file below the root of a process. Anybody may write to `/tmp`: the last part of the path is
/// no link, the others lead nowhere outside that root, and no pipe is waited for (`openat2`, 5.6).
fn open_in_root(root: &Path, path: &str) -> rustix::io::Result<File> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, directory, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), within)?.into())
}

/// When the process of a folder in `/proc` began.
fn start_time(folder: &Path) -> Option<SystemTime> {
    let stat = Process::new_with_root(folder.to_owned())
        .ok()?
        .stat()
        .ok()?;
    let boot = Duration::from_secs(procfs::boot_time_secs().ok()?);
    let since_boot = Duration::from_millis(stat.starttime * 1000 / procfs::ticks_per_second());
    Some(SystemTime::UNIX_EPOCH + boot + since_boot)
}

/// What a perf map says.
#[derive(Debug, Default)]
pub struct Answer {
    /// Functions at each of the addresses.
    pub functions: Vec<Functions>,
    /// Lines that could not be understood, of those that were not read before.
    pub malformed_lines: u64,
    /// It is too long, or its ranges lie over each other too often: not all of it was used.
    pub is_cut: bool,
}

/// Functions at `addresses`, which are sorted. The list is read as it is now: its process adds to
/// it. An address that the list does not hold, or that got another name while the profile was
/// taken, has none: code may have moved in between, and which of the two was sampled cannot be told.
#[must_use]
pub fn functions(perf_map: &PerfMapFile, addresses: &[u64]) -> Answer {
    let mut file = &perf_map.file;
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let begin = len.saturating_sub(MAX_BYTES);
    let found = match file.seek(SeekFrom::Start(begin)) {
        Ok(_) => lookup(
            BufReader::new(file.take(MAX_BYTES)),
            begin,
            perf_map.len_when_found,
            perf_map.read_bytes.load(Relaxed),
            addresses,
        ),
        Err(_) => Found::default(),
    };
    perf_map.read_bytes.fetch_max(found.read_bytes, Relaxed);
    let function = |name: &Arc<str>| SymbolizedFrame {
        name: Arc::clone(name),
        file: None,
        line: None,
    };
    let named = addresses.iter().map(|address| found.names.get(address));
    Answer {
        functions: named
            .map(|name| name.map(function).into_iter().collect())
            .collect(),
        malformed_lines: found.malformed_lines,
        is_cut: found.is_cut,
    }
}

/// What was read of a list.
#[derive(Debug, Default)]
struct Found {
    /// Name of each address that has one.
    names: HashMap<u64, Arc<str>>,
    malformed_lines: u64,
    read_bytes: u64,
    is_cut: bool,
}

/// Reads a list from its byte `begin` on, of which `read_before` bytes were read once already.
fn lookup(
    mut list: impl BufRead,
    begin: u64,
    len_when_found: u64,
    read_before: u64,
    addresses: &[u64],
) -> Found {
    let mut names: HashMap<u64, Option<Arc<str>>> = HashMap::new();
    let mut offset = begin;
    let mut malformed_lines = 0;
    let mut line = Vec::new();
    let mut matches = 0;
    if begin > 0 {
        // The rest of a line.
        offset += read_line(&mut list, &mut line).unwrap_or_default();
    }
    // A line that is not ended yet is being written.
    while let Some(read) = read_line(&mut list, &mut line) {
        offset += read;
        let Some((start, size, name)) = parse_line(&line) else {
            malformed_lines += u64::from(offset > read_before);
            continue;
        };
        let first = addresses.partition_point(|address| *address < start);
        let last = addresses.partition_point(|address| *address < start.saturating_add(size));
        if first >= last {
            continue;
        }
        matches += last - first;
        if matches > MAX_MATCHES {
            // What comes later could give other names.
            return Found {
                malformed_lines,
                read_bytes: offset,
                is_cut: true,
                ..Found::default()
            };
        }
        let name: Arc<str> = name.into();
        for address in &addresses[first..last] {
            let known = names
                .entry(*address)
                .or_insert_with(|| Some(Arc::clone(&name)));
            let replaced = known.as_ref() != Some(&name);
            if replaced {
                let written_before = offset <= len_when_found;
                *known = written_before.then(|| Arc::clone(&name));
            }
        }
    }
    let names = names.into_iter();
    Found {
        names: names
            .filter_map(|(address, name)| Some((address, name?)))
            .collect(),
        malformed_lines,
        read_bytes: offset,
        is_cut: begin > 0,
    }
}

/// Reads a line, of which no more than [`MAX_LINE_BYTES`] are kept, without its end. Gives its
/// length; `None` where no whole line is left.
fn read_line(list: &mut impl BufRead, line: &mut Vec<u8>) -> Option<u64> {
    line.clear();
    let mut len = 0;
    let mut rest = Vec::new();
    loop {
        let part = if len == 0 { &mut *line } else { &mut rest };
        let limited = list.by_ref().take(MAX_LINE_BYTES);
        match { limited }.read_until(b'\n', part) {
            Ok(0) | Err(_) => return None,
            Ok(read) => len += read as u64,
        }
        if part.pop_if(|byte| *byte == b'\n').is_some() {
            return Some(len);
        }
        rest.clear();
    }
}

/// `START SIZE NAME`; the name may hold spaces.
fn parse_line(line: &[u8]) -> Option<(u64, u64, &str)> {
    let mut fields = std::str::from_utf8(line).ok()?.splitn(3, ' ');
    let start = parse_hex(fields.next()?)?;
    let size = parse_hex(fields.next()?)?;
    let name = fields.next()?.trim_end();
    (!name.is_empty()).then_some((start, size, name))
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(list: &str, len_when_found: usize, addresses: &[u64]) -> Vec<(u64, String)> {
        let found = lookup(list.as_bytes(), 0, len_when_found as u64, 0, addresses);
        let mut names: Vec<_> = found
            .names
            .into_iter()
            .map(|(a, name)| (a, name.to_string()))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_list_that_is_older_than_its_process_is_another_ones() {
        let own = std::process::id();
        let path = format!("/tmp/perf-{own}.map");
        let file = File::create_new(&path).expect("no such file yet");
        let find = || PerfMapFile::find(Path::new("/proc"), own).is_some();
        let fresh = find();
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        file.set_modified(hour_ago).unwrap();
        let stale = find();
        std::fs::remove_file(&path).unwrap();
        assert!(fresh);
        assert!(!stale);
        assert!(!find());
    }

    #[test]
    fn an_address_has_the_name_of_its_range() {
        let list = "1000 10 f one\n0x2000 20 g\nnonsense\n3000 10 h";
        assert_eq!(
            names(
                list,
                list.len(),
                &[0xfff, 0x1000, 0x100f, 0x1010, 0x2010, 0x3001]
            ),
            [
                (0x1000, "f one".into()),
                (0x100f, "f one".into()),
                (0x2010, "g".into())
            ]
        );
    }

    #[test]
    fn code_that_was_replaced_before_the_profile_has_its_last_name() {
        let list = "1000 10 old\n1000 10 new\n";
        assert_eq!(names(list, list.len(), &[0x1001]), [(0x1001, "new".into())]);
    }

    #[test]
    fn code_that_was_replaced_during_the_profile_has_no_name() {
        let list = "1000 10 old\n1000 10 new\n";
        assert_eq!(names(list, 12, &[0x1001]), []);
        // Written again under the same name, it is still itself.
        let list = "1000 10 same\n1000 10 same\n";
        assert_eq!(names(list, 13, &[0x1001]), [(0x1001, "same".into())]);
    }

    #[test]
    fn of_ranges_that_overlap_the_last_one_holds() {
        let list = "1000 100 outer\n1040 10 inner\n1048 40 later\n";
        let expected = [
            (0x103f, "outer".into()),
            (0x1047, "inner".into()),
            (0x1048, "later".into()),
            (0x1088, "outer".into()),
        ];
        assert_eq!(
            names(list, list.len(), &[0x103f, 0x1047, 0x1048, 0x1088]),
            expected
        );
    }

    #[test]
    fn lines_that_say_nothing_are_counted_once() {
        let list = "1000 10 f\nnonsense\n1010 f\nzz 10 f\n1020 10 \n1030 10 half";
        let whole = lookup(list.as_bytes(), 0, 0, 0, &[]);
        assert_eq!(whole.malformed_lines, 4);
        // The last line may be written on.
        assert_eq!(whole.read_bytes as usize, list.rfind('\n').unwrap() + 1);
        let again = lookup(list.as_bytes(), 0, 0, whole.read_bytes, &[]);
        assert_eq!(again.malformed_lines, 0);
        let more = format!("{list}-written\nnonsense\n");
        let more = lookup(more.as_bytes(), 0, 0, whole.read_bytes, &[0x1030]);
        assert_eq!(more.malformed_lines, 1);
        assert_eq!(&*more.names[&0x1030], "half-written");
    }

    #[test]
    fn of_a_long_list_the_end_is_read() {
        let list = "1000 10 f\n2000 10 g\n";
        let begin = 3;
        let found = lookup(
            &list.as_bytes()[begin..],
            begin as u64,
            0,
            0,
            &[0x1000, 0x2000],
        );
        assert!(found.is_cut);
        assert_eq!(found.malformed_lines, 0);
        assert_eq!(found.read_bytes as usize, list.len());
        assert_eq!(found.names.len(), 1);
        assert_eq!(&*found.names[&0x2000], "g");
    }

    #[test]
    fn ranges_that_all_lie_over_each_other_are_given_up() {
        let addresses: Vec<_> = (0..10_000).collect();
        let list = "0 ffffffffffffffff f\n".repeat(1000);
        let before = std::time::Instant::now();
        let found = lookup(list.as_bytes(), 0, 0, 0, &addresses);
        assert!(found.is_cut && found.names.is_empty());
        assert!(before.elapsed() < Duration::from_secs(20), "{before:?}");
        let few = lookup(list.as_bytes(), 0, 0, 0, &addresses[..10]);
        assert!(!few.is_cut);
        assert_eq!(few.names.len(), 10);
    }

    #[test]
    fn what_is_no_file_of_the_process_is_no_list() {
        let root = tempfile::tempdir().unwrap();
        let within = |path: &str| root.path().join(path);
        std::fs::create_dir(within("var")).unwrap();
        std::fs::write(within("var/perf-1.map"), "list").unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("perf-1.map"), "other").unwrap();
        let read = || {
            let mut file = open_in_root(root.path(), "tmp/perf-1.map").ok()?;
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            Some(text)
        };
        let link = |to: &str, from: &str| {
            let _ = std::fs::remove_file(within(from));
            std::os::unix::fs::symlink(to, within(from)).unwrap();
        };
        assert_eq!(read(), None);
        // As the process itself would follow it.
        link("/var", "tmp");
        assert_eq!(read().as_deref(), Some("list"));
        link(outside.path().to_str().unwrap(), "tmp");
        assert_eq!(read(), None);
        link("../../../../../../var", "tmp");
        assert_eq!(read().as_deref(), Some("list"));
        std::fs::remove_file(within("tmp")).unwrap();
        std::fs::create_dir(within("tmp")).unwrap();
        link("/var/perf-1.map", "tmp/perf-1.map");
        assert_eq!(read(), None);
    }

    #[test]
    fn the_rest_of_a_long_line_is_no_line() {
        let padding = "x".repeat(MAX_LINE_BYTES as usize - 10);
        for filler in [padding.clone(), padding.repeat(3)] {
            let list = format!("1000 10 f{filler} 2000 10 g\n3000 10 h\n");
            let found = lookup(list.as_bytes(), 0, 0, 0, &[0x1000, 0x2000, 0x3000]);
            assert!(found.names[&0x1000].starts_with("fxx"));
            assert_eq!(found.names.get(&0x2000), None);
            assert_eq!(&*found.names[&0x3000], "h");
            assert_eq!(found.malformed_lines, 0);
            assert_eq!(found.read_bytes as usize, list.len());
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = lookup(text.as_slice(), 0, 100, 0, &[0, 1, u64::MAX]);
        }
    }
}
