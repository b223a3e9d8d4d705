//! What an ELF file tells of the CPython in it.

use object::elf::{EM_X86_64, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, SectionType, Sym64};
use object::read::elf::{ElfFile64, FileHeader as _, SectionHeader as _, Sym as _};
use object::{Endianness, Object as _, ObjectSection as _, ReadRef};

use super::layout::Version;

/// Longest table of symbols or of their names that is looked through.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// An interpreter in a file: an executable, or `libpython3.x.so`. Addresses are the file's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonFile {
    /// Address of `_PyRuntime`.
    pub runtime: u64,
    /// Its version, where the file or its name tells.
    pub version: Option<Version>,
    /// First address and length of `_PyEval_EvalFrameDefault`, the interpreter's loop, and of the
    /// part that compilers split off it.
    pub loops: [(u64, u64); 2],
}

impl PythonFile {
    /// Finds the interpreter in an ELF file called `name`; `None` where there is none.
    pub fn of_elf<'data, R: ReadRef<'data>>(data: R, name: &str) -> Option<Self> {
        let elf = ElfFile64::<Endianness, R>::parse(data).ok()?;
        let endian = elf.endian();
        if elf.elf_header().e_machine(endian) != EM_X86_64 || endian != Endianness::Little {
            return None;
        }
        let mut found = Self {
            runtime: 0,
            version: Version::of_file_name(name),
            loops: [(0, 0); 2],
        };
        // From 3.10 on it has a section of its own, which a stripped file keeps.
        if let Some(section) = elf.section_by_name(".PyRuntime") {
            found.runtime = section.address();
        }
        found.read_symbols(&elf, SHT_DYNSYM);
        if found.runtime == 0 {
            return None;
        }
        // Only there are the parts that compilers split off.
        found.read_symbols(&elf, SHT_SYMTAB);
        Some(found)
    }

    /// Takes note of the symbols of a section of that type.
    fn read_symbols<'data, R: ReadRef<'data>>(
        &mut self,
        elf: &ElfFile64<'data, Endianness, R>,
        section_type: SectionType,
    ) -> Option<()> {
        let (endian, data) = (elf.endian(), elf.data());
        let sections = elf.elf_section_table();
        let section = sections
            .iter()
            .find(|section| section.sh_type(endian) == section_type)?;
        let names = sections.section(section.link(endian)).ok()?;
        if section.sh_size(endian).max(names.sh_size(endian)) > MAX_TABLE_BYTES {
            return None;
        }
        // Read whole: asking for one name at a time would copy a page for each.
        let names = names.data(endian, data).ok()?;
        let symbols: &[Sym64<Endianness>] = section.data_as_array(endian, data).ok()?;
        for symbol in symbols {
            if symbol.st_shndx(endian) == SHN_UNDEF {
                continue;
            }
            let name = names.get(symbol.st_name(endian) as usize..);
            let (address, len) = (symbol.st_value(endian), symbol.st_size(endian));
            self.note(elf, name.unwrap_or_default(), address, len);
        }
        Some(())
    }

    /// Takes note of a symbol. `name` goes on behind the zero that ends it.
    fn note<'data, R: ReadRef<'data>>(
        &mut self,
        elf: &ElfFile64<'data, Endianness, R>,
        name: &[u8],
        address: u64,
        len: u64,
    ) {
        if !name.starts_with(b"_Py") && !name.starts_with(b"Py") {
            return;
        }
        let is = |wanted: &[u8]| name.starts_with(wanted);
        if is(b"_PyRuntime\0") {
            self.runtime = address;
        } else if is(b"_PyEval_EvalFrameDefault\0") {
            self.loops[0] = (address, len);
        } else if is(b"_PyEval_EvalFrameDefault.cold\0") {
            self.loops[1] = (address, len);
        } else if is(b"Py_Version\0") {
            let hex = word_at(elf, address);
            self.version = hex.map(Version::of_hex).or(self.version);
        }
    }
}

/// The initialized word at an address.
fn word_at<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, Endianness, R>,
    address: u64,
) -> Option<u64> {
    elf.sections().find_map(|section| {
        let bytes = section.data_range(address, 8).ok()??;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_have_no_interpreter() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(PythonFile::of_elf(&*own, "python3.9"), None);
        assert_eq!(PythonFile::of_elf(&b"\x7fELF"[..], "python3.9"), None);
    }
}
