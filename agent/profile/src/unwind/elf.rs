//! The parts of an ELF file that tell how to unwind its code.

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian};
use object::elf::{EM_X86_64, PF_X, PT_GNU_EH_FRAME, PT_LOAD};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSection as _, ReadRef};

use super::{MAX_SECTION_BYTES, UnwindError};
use crate::go::GoTable;

/// A section's bytes and the address that the file gives to the first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Section<'data> {
    /// Address in the file's own terms.
    pub(super) address: u64,
    /// Content.
    pub(super) bytes: &'data [u8],
}

/// An executable segment (`PT_LOAD` with `PF_X`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodeSegment {
    /// `p_vaddr`
    pub address: u64,
    /// Address after the last byte in memory.
    pub end: u64,
    /// `p_offset`
    pub file_offset: u64,
    /// `p_filesz`
    pub len: u64,
}

impl CodeSegment {
    /// Does a mapping that begins at `file_offset` show this segment? Loaders map whole pages, so
    /// that a mapping may begin before the segment does.
    #[must_use]
    pub const fn is_mapped_at(&self, file_offset: u64) -> bool {
        let first = self.file_offset & !(MEMORY_PAGE_BYTES - 1);
        first <= file_offset && file_offset < self.file_offset.saturating_add(self.len)
    }

    /// The address that the file gives to the byte at `file_offset`.
    #[must_use]
    pub const fn address_at(&self, file_offset: u64) -> u64 {
        self.address
            .wrapping_add(file_offset)
            .wrapping_sub(self.file_offset)
    }
}

/// A page of memory on x86-64.
const MEMORY_PAGE_BYTES: u64 = 4096;

/// What a file holds for unwinding.
#[derive(Clone, Debug, Default)]
pub struct UnwindSections<'data> {
    pub(super) eh_frame: Section<'data>,
    pub(super) debug_frame: Section<'data>,
    pub(super) go: Option<GoTable<'data>>,
    /// Executable segments by address.
    code: Vec<CodeSegment>,
    pub(super) text_address: u64,
    pub(super) got_address: u64,
}

impl<'data> UnwindSections<'data> {
    /// Finds them in an ELF file for x86-64. A file without any is none that fails.
    ///
    /// # Errors
    /// See [`UnwindError`].
    pub fn of_elf<R: ReadRef<'data>>(data: R) -> Result<Self, UnwindError> {
        let elf = ElfFile64::<Endianness, R>::parse(data)?;
        let endian = elf.endian();
        if elf.elf_header().e_machine(endian) != EM_X86_64 || endian != Endianness::Little {
            return Err(UnwindError::Machine);
        }
        let mut sections = Self::default();
        for segment in elf.elf_program_headers() {
            if segment.p_type(endian) == PT_LOAD && segment.p_flags(endian).contains(PF_X) {
                let address = segment.p_vaddr(endian);
                sections.code.push(CodeSegment {
                    address,
                    end: address.saturating_add(segment.p_memsz(endian)),
                    file_offset: segment.p_offset(endian),
                    len: segment.p_filesz(endian),
                });
            }
        }
        sections.code.sort_unstable();
        for section in elf.sections() {
            let target = match section.name_bytes() {
                Ok(b".eh_frame") => &mut sections.eh_frame,
                Ok(b".debug_frame") => &mut sections.debug_frame,
                Ok(b".text") => {
                    sections.text_address = section.address();
                    continue;
                }
                Ok(b".got") => {
                    sections.got_address = section.address();
                    continue;
                }
                _ => continue,
            };
            let (_, len) = section.file_range().unwrap_or_default();
            if len > MAX_SECTION_BYTES {
                return Err(UnwindError::TooLong(len));
            }
            // A section that cannot be read is treated as absent, and so is a compressed one
            // (`.debug_frame` alone is ever compressed, by Go, whose own table says more).
            let format = section.compressed_file_range().map(|range| range.format);
            if format.ok() == Some(object::CompressionFormat::None) {
                *target = Section {
                    address: section.address(),
                    bytes: section.data().unwrap_or_default(),
                };
            }
        }
        if sections.eh_frame.bytes.is_empty() {
            sections.eh_frame = eh_frame_by_header(&elf).unwrap_or_default();
        }
        sections.go = GoTable::of_elf(&elf);
        Ok(sections)
    }

    /// Executable segments by address.
    #[must_use]
    pub fn code(&self) -> &[CodeSegment] {
        &self.code
    }

    /// Is there anything to build rows from?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.content().all(<[u8]>::is_empty)
    }

    /// The bytes that decide what the rows will be: for telling equal files.
    pub fn content(&self) -> impl Iterator<Item = &'data [u8]> {
        let go = self.go.map_or(&[] as &[u8], |table| table.bytes());
        [self.eh_frame.bytes, self.debug_frame.bytes, go].into_iter()
    }

    /// Where sections and code lie: the rest of what decides.
    pub fn layout(&self) -> impl Iterator<Item = u64> + '_ {
        let addresses = [
            self.eh_frame.address,
            self.debug_frame.address,
            self.text_address,
            self.got_address,
            self.go.map_or(0, |table| table.text_address()),
        ];
        let code = self.code.iter().flat_map(|code| [code.address, code.end]);
        addresses.into_iter().chain(code)
    }

    /// Addresses that encoded pointers may count from.
    pub(super) fn bases(&self) -> BaseAddresses {
        BaseAddresses::default()
            .set_eh_frame(self.eh_frame.address)
            .set_text(self.text_address)
            .set_got(self.got_address)
    }
}

/// `.eh_frame` of a file without section headers: the program header `PT_GNU_EH_FRAME` leads to
/// it. Its length is not told, but it ends with a word of zero.
fn eh_frame_by_header<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, Endianness, R>,
) -> Option<Section<'data>> {
    let endian = elf.endian();
    let headers = elf.elf_program_headers();
    let header = headers
        .iter()
        .find(|segment| segment.p_type(endian) == PT_GNU_EH_FRAME)?;
    let bytes = header.data(endian, elf.data()).ok()?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.p_vaddr(endian));
    let parsed = EhFrameHdr::new(bytes, LittleEndian).parse(&bases, 8).ok()?;
    let address = parsed.eh_frame_ptr().direct().ok()?;
    let segment = headers.iter().find(|segment| {
        let inside = address.checked_sub(segment.p_vaddr(endian));
        segment.p_type(endian) == PT_LOAD
            && inside.is_some_and(|inside| inside < segment.p_filesz(endian))
    })?;
    if segment.p_filesz(endian) > 4 * MAX_SECTION_BYTES {
        return None;
    }
    let skip = usize::try_from(address - segment.p_vaddr(endian)).ok()?;
    let bytes = segment.data(endian, elf.data()).ok()?.get(skip..)?;
    let len = bytes.len().min(MAX_SECTION_BYTES as usize);
    Some(Section {
        address,
        bytes: &bytes[..len],
    })
}
