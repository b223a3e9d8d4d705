//! Mapped files and what identifies them.

use std::fmt;
use std::sync::Arc;

/// The note by which tools find an executable's symbols: GNU (usually 20 bytes) or Go.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BuildId(Box<[u8]>);

impl BuildId {
    /// A build id of these bytes; `None` for an empty note.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (!bytes.is_empty()).then(|| Self(bytes.into()))
    }
}

/// Lower-case hexadecimal, as `readelf -n` and `file` print it.
impl fmt::Display for BuildId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BuildId({self})")
    }
}

/// An executable part of a file, as the file itself places it.
///
/// Addresses are the ELF file's own (`p_vaddr`), not those of one process, so that all processes
/// that run a file share its mappings and a reader can look the addresses up in the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Offset in the file of `start`, bytes.
    pub file_offset: u64,
    /// Path as the process names it, or a name in brackets (`[kernel.kallsyms]`, `[vdso]`).
    pub path: Arc<str>,
    /// Build id, where the file has one.
    pub build_id: Option<BuildId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_reads_as_hexadecimal() {
        assert_eq!(
            BuildId::new(&[0x00, 0xab, 0x9]).unwrap().to_string(),
            "00ab09"
        );
        assert_eq!(BuildId::new(&[]), None);
    }
}
