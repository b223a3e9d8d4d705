//! An ELF file that code was sampled in.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::read::ReadCache;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSection, ObjectSegment, SectionKind};
use profile::go::GoTable;
use profile::python::PythonFile;
use profile::unwind::UnwindSections;
use profile::v8::{V8, V8Error};
use profile::{BuildId, Mapping};

use super::jit;

/// Tells files apart, whatever their path, and a file from what it was before it was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    /// Length of the file, bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

/// A file that a process has mapped, kept open, so that it can be read when the process is gone
/// or the file was replaced by a newer one.
#[derive(Debug)]
pub struct Executable {
    file: File,
    identity: FileIdentity,
    path: Arc<str>,
}

impl Executable {
    /// Opens a file that a process has mapped at `path`, which it knows as `name`.
    ///
    /// # Errors
    /// When it can't be opened, or is no regular file.
    pub fn open(path: &Path, name: &str) -> io::Result<Self> {
        // A mapped device or pipe must not be waited for.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        let path = name.strip_suffix(" (deleted)").unwrap_or(name).into();
        Ok(Self {
            file,
            identity,
            path,
        })
    }

    /// What tells this file from others.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Inode number.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.identity.inode
    }

    /// Path by which a process knows the file.
    #[must_use]
    pub fn path(&self) -> &Arc<str> {
        &self.path
    }

    /// A path by which this very file can be opened again, as long as `self` lives.
    #[must_use]
    pub fn reopen_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Hands over what the file holds for unwinding; `None` for a file that has nothing of the kind.
    pub fn with_unwind_sections<T>(
        &self,
        read: impl FnOnce(&UnwindSections<'_>) -> T,
    ) -> Option<T> {
        let cache = ReadCache::new(&self.file);
        let sections = UnwindSections::of_elf(&cache).ok()?;
        Some(read(&sections))
    }

    /// Hands over Go's own table of functions; `None` for a file that has none.
    pub fn with_go_table<T>(&self, read: impl FnOnce(&GoTable<'_>) -> T) -> Option<T> {
        let cache = ReadCache::new(&self.file);
        let elf = ElfFile64::parse(&cache).ok()?;
        Some(read(&GoTable::of_elf(&elf)?))
    }

    /// The CPython in the file, where there is one.
    #[must_use]
    pub fn python(&self) -> Option<PythonFile> {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        PythonFile::of_elf(&ReadCache::new(&self.file), name)
    }

    /// The V8 in the file, where there is one, or why its functions are not read. Only Node's files
    /// are looked at.
    #[must_use]
    pub fn v8(&self) -> Option<Result<V8, V8Error>> {
        if !jit::is_node(&self.path) {
            return None;
        }
        V8::of_elf(&ReadCache::new(&self.file))
    }

    /// Where the file places its code; `None` for a file that is not ELF.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        let cache = ReadCache::new(&self.file);
        let elf = object::File::parse(&cache).ok()?;
        let build_id = elf.build_id().ok().flatten().and_then(BuildId::new);
        let segments = elf
            .segments()
            .map(|segment| {
                let (file_offset, len) = segment.file_range();
                Segment {
                    address: segment.address(),
                    file_offset,
                    len,
                }
            })
            .collect();
        let code_sections = elf
            .sections()
            .filter(|section| section.kind() == SectionKind::Text)
            .map(|section| {
                (
                    section.address(),
                    section.address().saturating_add(section.size()),
                )
            })
            .collect();
        Some(Layout {
            holds_python: self.python().is_some(),
            path: Arc::clone(&self.path),
            build_id,
            segments,
            code_sections,
        })
    }
}

/// Where an ELF file places its code.
#[derive(Debug)]
pub struct Layout {
    path: Arc<str>,
    build_id: Option<BuildId>,
    segments: Vec<Segment>,
    code_sections: Vec<(u64, u64)>,
    holds_python: bool,
}

/// A `PT_LOAD` program header.
#[derive(Debug)]
struct Segment {
    /// `p_vaddr`
    address: u64,
    /// `p_offset`
    file_offset: u64,
    /// `p_filesz`
    len: u64,
}

impl Layout {
    /// The address that the file gives to the byte at `file_offset`, and the mapping it lies in.
    /// `None` outside of what the file says is to be loaded.
    ///
    /// `p_vaddr` and `p_offset` differ in most executables, so one can't stand for the other.
    #[must_use]
    pub fn place(&self, file_offset: u64) -> Option<(u64, Mapping)> {
        let segment = self.segments.iter().find(|segment| {
            file_offset
                .checked_sub(segment.file_offset)
                .is_some_and(|inside| inside < segment.len)
        })?;
        let address = segment
            .address
            .checked_add(file_offset - segment.file_offset)?;
        let mapping = Mapping {
            start: segment.address,
            end: segment.address.saturating_add(segment.len),
            file_offset: segment.file_offset,
            path: Arc::clone(&self.path),
            build_id: self.build_id.clone(),
        };
        Some((address, mapping))
    }

    /// Is there CPython in the file?
    #[must_use]
    pub const fn holds_python(&self) -> bool {
        self.holds_python
    }

    /// Do both addresses lie in one code section? A symbol without a size must not give its name
    /// to another section's code: `_init` would name every PLT stub.
    #[must_use]
    pub fn same_section(&self, one: u64, other: u64) -> bool {
        self.code_sections
            .iter()
            .any(|(start, end)| (*start..*end).contains(&one) && (*start..*end).contains(&other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::maps;

    #[test]
    fn this_executable_is_placed_as_it_is_mapped() {
        let executable = Executable::open(Path::new("/proc/self/exe"), "/x (deleted)").unwrap();
        assert_eq!(&**executable.path(), "/x");
        let layout = executable.layout().unwrap();
        let here = this_executable_is_placed_as_it_is_mapped as fn() as usize as u64;
        let entries = maps::read(Path::new("/proc"), std::process::id()).unwrap();
        let entry = entries
            .iter()
            .find(|e| (e.start..e.end).contains(&here))
            .unwrap();
        let (address, mapping) = layout
            .place(here - entry.start + entry.file_offset)
            .unwrap();
        assert!((mapping.start..mapping.end).contains(&address));
        assert!(layout.same_section(address, address + 1));
        // The executable is position independent: loading moves everything by whole pages.
        assert_eq!((here - address) % 4096, 0);
    }

    #[test]
    fn other_files_have_no_layout() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\x7fELF and then nonsense").unwrap();
        let executable = Executable::open(file.path(), "x").unwrap();
        assert!(executable.layout().is_none());
        assert!(Executable::open(Path::new("/dev/null"), "null").is_err());
    }
}
