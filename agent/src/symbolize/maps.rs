//! `/proc/PID/maps`, as far as code is concerned, and what tells one process image from another.

use std::fs;
use std::io;
use std::path::Path;

/// An executable range of a process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapsEntry {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Offset in the file, bytes.
    pub file_offset: u64,
    /// Inode number of the file; 0 where there is none.
    pub inode: u64,
    /// Path, name in brackets, or empty. What is not UTF-8 in it is replaced.
    pub path: String,
}

/// Most executable ranges that are taken of one process.
pub const MAX_ENTRIES: usize = 16_384;

/// The executable ranges of the process (or thread) `pid`, by address.
///
/// # Errors
/// When `maps` can't be read: the process ended, or it is not ours to read.
pub fn read(proc_root: &Path, pid: u32) -> io::Result<Vec<MapsEntry>> {
    let text = fs::read(proc_root.join(format!("{pid}/maps")))?;
    Ok(parse(&text))
}

/// Parses `maps`. Lines that are not understood are left out.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<MapsEntry> {
    let lines = text.split(|byte| *byte == b'\n');
    let mut entries: Vec<_> = lines.filter_map(parse_line).take(MAX_ENTRIES).collect();
    entries.sort_by_key(|entry| entry.start);
    entries
}

/// `start-end perms offset major:minor inode path` (proc(5)).
fn parse_line(line: &[u8]) -> Option<MapsEntry> {
    // Most lines are of data: no more is read of them.
    let permissions = line.iter().position(|byte| *byte == b' ')? + 1;
    if line.get(permissions + 2) != Some(&b'x') {
        return None;
    }
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let _permissions = fields.next()?;
    let file_offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let _device = fields.next()?;
    let inode = fields.next()?.parse().ok()?;
    let entry = MapsEntry {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        file_offset,
        inode,
        path: fields.next().unwrap_or_default().trim_start().to_owned(),
    };
    (entry.start < entry.end).then_some(entry)
}

/// Where the arguments of the process image begin (`/proc/PID/stat` field 48, since 3.5); the
/// kernel side reads the same value into each sample.
#[must_use]
pub fn read_image(proc_root: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read(proc_root.join(format!("{pid}/stat"))).ok()?;
    parse_image(&stat)
}

/// Field 48 of `stat`. The second field may hold anything, even spaces and parentheses.
fn parse_image(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(48 - 3)?.parse().ok()
}

/// The pid by which the process knows itself: the last of `NSpid` in `/proc/PID/status`.
#[must_use]
pub fn read_own_pid(proc_root: &Path, pid: u32) -> Option<u32> {
    let status = fs::read(proc_root.join(format!("{pid}/status"))).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn executable_ranges_are_read_with_their_paths() {
        let text = b"55d0-55d8 r--p 00000000 fe:01 77   /usr/bin/a b (deleted)\n\
            55d8-55e0 r-xp 00008000 fe:01 77                         /usr/bin/a b (deleted)\n\
            7f00-7f01 rwxp 00000000 00:00 0 \n\
            7ffd-7fff r-xp 00000000 00:00 0                          [vdso]\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0].path, "/usr/bin/a b (deleted)");
        assert_eq!(
            (entries[0].start, entries[0].file_offset, entries[0].inode),
            (0x55d8, 0x8000, 77)
        );
        assert_eq!(entries[1].path, "");
        assert_eq!(entries[2].path, "[vdso]");
    }

    #[test]
    fn the_image_is_found_behind_any_name() {
        let mut stat = b"7 (a) b (c)) S".to_vec();
        for field in 4..=52 {
            stat.extend(format!(" {field}").bytes());
        }
        assert_eq!(parse_image(&stat), Some(48));
    }

    #[test]
    fn this_process_reads_as_itself() {
        let root = Path::new("/proc");
        let own = std::process::id();
        let here = this_process_reads_as_itself as fn() as usize as u64;
        let entries = read(root, own).unwrap();
        assert!(
            entries
                .iter()
                .any(|entry| (entry.start..entry.end).contains(&here))
        );
        assert!(read_image(root, own).unwrap() > 0);
        assert!(read_own_pid(root, own).is_some());
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&text);
            let _ = parse_image(&text);
        }

        #[test]
        fn what_the_kernel_prints_is_read_back(
            start in 0..u64::MAX / 2,
            len in 1..1_u64 << 40,
            file_offset: u64,
            inode: u64,
            path in "[a-z/]{0,20}",
        ) {
            let end = start + len;
            let line = format!("{start:08x}-{end:08x} r-xp {file_offset:08x} fe:00 {inode}  {path}\n");
            let entry = MapsEntry { start, end, file_offset, inode, path };
            prop_assert_eq!(parse(line.as_bytes()), [entry]);
        }
    }
}
