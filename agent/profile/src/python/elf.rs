//! What an ELF file tells of the CPython in it.

use object::elf::EM_X86_64;
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, ReadRef};

use super::layout::Version;

/// Longest table of names that is looked through.
const MAX_NAMES_BYTES: u64 = 64 << 20;

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
        } else if !mentions_runtime(&elf) {
            return None;
        }
        for symbol in elf.dynamic_symbols().chain(elf.symbols()) {
            if symbol.is_undefined() {
                continue;
            }
            match symbol.name_bytes().unwrap_or_default() {
                b"_PyRuntime" => found.runtime = symbol.address(),
                b"_PyEval_EvalFrameDefault" => found.loops[0] = (symbol.address(), symbol.size()),
                b"_PyEval_EvalFrameDefault.cold" => {
                    found.loops[1] = (symbol.address(), symbol.size());
                }
                b"Py_Version" => {
                    let hex = word_at(&elf, symbol.address());
                    found.version = hex.map(Version::of_hex).or(found.version);
                }
                _ => {}
            }
        }
        (found.runtime != 0).then_some(found)
    }
}

/// Is `_PyRuntime` among the names of dynamic linking? To look through all symbols of every file
/// would take longer than all else that is done for it.
fn mentions_runtime<'data, R: ReadRef<'data>>(elf: &ElfFile64<'data, Endianness, R>) -> bool {
    let Some(names) = elf.section_by_name(".dynstr") else {
        return false;
    };
    if names.size() > MAX_NAMES_BYTES {
        return false;
    }
    let names = names.data().unwrap_or_default();
    names
        .split(|byte| *byte == 0)
        .any(|name| name == b"_PyRuntime")
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
