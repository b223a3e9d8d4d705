//! How to find callers in code without frame pointers: unwind rows from `.eh_frame` and
//! `.debug_frame` (DWARF 5 §6.4, and the LSB's "Exception Frames"), and from Go's own table, as the
//! kernel side walks them.
//!
//! A file is input from outside: whatever it holds, reading it takes time and memory in proportion
//! to its length, within the limits below.

mod cfi;
mod elf;
mod go;
mod rule;
mod table;

pub use elf::{CodeSegment, UnwindSections};
pub use table::{PageRows, UnwindTable};

/// Longest section that is read.
pub const MAX_SECTION_BYTES: u64 = 64 << 20;

/// Most rows of one file: half of what the kernel side holds of all.
pub const MAX_ROWS: usize = ebpf_common::unwind::MAX_BLOCKS * ebpf_common::unwind::BLOCK_ROWS / 2;

/// Most pages of one file: half of what the kernel side holds of all.
pub const MAX_PAGES: usize = ebpf_common::unwind::MAX_PAGES / 2;

/// Why a file has no rows.
#[derive(Debug, thiserror::Error)]
pub enum UnwindError {
    /// It is no ELF file that can be read.
    #[error("not an ELF file: {0}")]
    Elf(#[from] object::Error),
    /// It is an ELF file for another machine.
    #[error("not for x86-64")]
    Machine,
    /// A section is longer than anything that a linker has produced so far.
    #[error("a section of {0} bytes")]
    TooLong(u64),
}

/// What was met while rows were built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Functions described.
    pub functions: usize,
    /// Functions whose description could not be read to its end.
    pub unreadable: usize,
    /// Ranges whose caller is found in a way that is not followed.
    pub unsupported: usize,
    /// A limit cut the table off.
    pub truncated: bool,
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use proptest::prelude::*;

    fn own_executable() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    fn build(bytes: &[u8]) -> Result<UnwindTable, UnwindError> {
        UnwindSections::of_elf(bytes).map(|sections| UnwindTable::build(&sections))
    }

    #[test]
    fn a_file_without_section_headers_has_the_same_rows() {
        let mut bytes = own_executable();
        let with = build(&bytes).unwrap();
        assert!(with.rows.len() > 1000 && with.statistics.unreadable == 0);
        // `e_shoff`, `e_shnum` and `e_shstrndx`.
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
        let without = build(&bytes).unwrap();
        assert_eq!(with.rows, without.rows);
        assert_eq!(with.rules, without.rules);
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(build(b"#!/bin/sh\n"), Err(UnwindError::Elf(_))));
        let mut bytes = own_executable();
        // `e_machine`: AArch64.
        bytes[18..20].copy_from_slice(&183_u16.to_le_bytes());
        assert!(matches!(build(&bytes), Err(UnwindError::Machine)));
    }

    #[test]
    fn a_segment_is_found_by_the_page_that_its_mapping_begins_with() {
        let segment = CodeSegment {
            address: 0x3_1234,
            end: 0x4_0000,
            file_offset: 0x1_1234,
            len: 0x8000,
        };
        assert!(segment.is_mapped_at(0x1_1000) && segment.is_mapped_at(0x1_9233));
        assert!(!segment.is_mapped_at(0x1_0fff) && !segment.is_mapped_at(0x1_9234));
        assert_eq!(segment.address_at(0x1_1000), 0x3_1000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn damaged_files_are_read_within_bounds(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..400),
            in_headers in any::<bool>(),
        ) {
            let mut bytes = own_executable();
            let sections = UnwindSections::of_elf(&*bytes).unwrap();
            let eh_frame = sections.eh_frame.bytes;
            let start = eh_frame.as_ptr() as usize - bytes.as_ptr() as usize;
            let range = if in_headers { 0..4096 } else { start..start + eh_frame.len() };
            for (index, byte) in damage {
                let at = range.start + index.index(range.len());
                bytes[at] = byte;
            }
            let begin = Instant::now();
            if let Ok(table) = build(&bytes) {
                prop_assert!(table.rows.len() <= MAX_ROWS && table.pages.len() <= MAX_PAGES);
            }
            prop_assert!(begin.elapsed() < Duration::from_secs(20));
        }
    }
}
