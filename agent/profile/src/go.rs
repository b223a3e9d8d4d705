//! Go's own table of functions (`.gopclntab`; the runtime's `symtab.go`, the linker's `pcln.go`),
//! as Go 1.18 and later write it. The linker never leaves it out: the runtime needs it to grow
//! stacks and to collect garbage, so that it is in stripped programs as well.

use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, ReadRef};

use crate::unwind::MAX_SECTION_BYTES;

/// First word of the table since Go 1.18, and since Go 1.20, which added a word to each function.
const MAGIC_1_18: u32 = 0xffff_fff0;
const MAGIC_1_20: u32 = 0xffff_fff1;

/// Longest name or path that is read.
const MAX_TEXT_BYTES: usize = 4096;

/// Which word of `moduledata` is the address of the code: it follows the header's address, six
/// slices, the address of an index, and the range of all functions.
const MODULE_TEXT: usize = 1 + 6 * 3 + 1 + 2;

/// Functions that are looked at to tell whether the code begins where it seems to.
const PROBES: usize = 512;

/// How a function begins that can run out of stack: `cmp rsp, [r14+0x10]`, or `lea r12, [rsp-…]`
/// where its frame is large.
const PROLOGUES: [&[u8]; 3] = [
    &[0x49, 0x3b, 0x66, 0x10],
    &[0x4c, 0x8d, 0x64, 0x24],
    &[0x4c, 0x8d, 0xa4, 0x24],
];

/// A function's stack switches: how far its rows can be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoFlags(u8);

impl GoFlags {
    /// There is no caller: `abi.FuncFlagTopFrame`.
    #[must_use]
    pub const fn is_top(self) -> bool {
        self.0 & 1 != 0
    }

    /// It moves to another stack: `abi.FuncFlagSPWrite`.
    #[must_use]
    pub const fn switches_stack(self) -> bool {
        self.0 & 2 != 0
    }
}

/// The table of a program for x86-64.
#[derive(Clone, Copy, Debug)]
pub struct GoTable<'data> {
    /// The whole section.
    bytes: &'data [u8],
    /// Where code begins that functions' offsets count from.
    text: u64,
    count: usize,
    has_start_lines: bool,
    names: &'data [u8],
    units: &'data [u8],
    files: &'data [u8],
    values: &'data [u8],
    /// Offsets of functions' code and description, which count from here as well.
    functions: &'data [u8],
}

/// A function of the table.
#[derive(Clone, Copy, Debug)]
pub struct GoFunction<'data, 'table> {
    table: &'table GoTable<'data>,
    description: &'data [u8],
    /// First address, in the file's own terms.
    pub start: u64,
    /// Where the next one begins.
    pub end: u64,
}

impl<'data> GoTable<'data> {
    /// The table of a program; `None` where it has none, or one of another form, or where it is not
    /// certain what code it is about.
    #[must_use]
    pub fn of_elf<R: ReadRef<'data>>(elf: &ElfFile64<'data, Endianness, R>) -> Option<Self> {
        let names = [".gopclntab", ".data.rel.ro.gopclntab"];
        let section = names.iter().find_map(|name| elf.section_by_name(name))?;
        if section.size() > MAX_SECTION_BYTES {
            return None;
        }
        let mut table = Self::parse(section.data().ok()?)?;
        let endian = elf.endian();
        let code = |address: u64| -> Option<[u8; 4]> {
            let mut segments = elf.elf_program_headers().iter();
            let at = segments.find_map(|segment| {
                let inside = address.checked_sub(segment.p_vaddr(endian))?;
                (inside < segment.p_filesz(endian)).then(|| segment.p_offset(endian) + inside)
            })?;
            elf.data().read_bytes_at(at, 4).ok()?.try_into().ok()
        };
        // The table told it until Go 1.25, but not in position-independent programs. `.text` begins
        // with it unless C is linked in as well. Since Go 1.26 the runtime's `moduledata` has a
        // section, and the symbol tells where it was left.
        let section = || elf.section_by_name(".text").map(|text| text.address());
        let module = || {
            let module = elf.section_by_name(".go.module")?;
            long(module.data().ok()?, 8 * MODULE_TEXT)
        };
        let symbol = || {
            let mut symbols = elf.symbols();
            let text = symbols.find(|symbol| symbol.name_bytes() == Ok(b"runtime.text"))?;
            Some(text.address())
        };
        let recorded = || Some(table.text);
        let starts: [&dyn Fn() -> Option<u64>; 4] = [&recorded, &section, &module, &symbol];
        let text = starts.iter().find_map(|start| {
            let text = start().filter(|start| *start != 0)?;
            Self { text, ..table }
                .begins_functions(code)
                .then_some(text)
        })?;
        table.text = text;
        Some(table)
    }

    /// The table in a section, whose code begins where it says itself.
    fn parse(bytes: &'data [u8]) -> Option<Self> {
        let magic = word(bytes, 0)?;
        // Two zeros, the least length of an instruction, the length of a pointer.
        if !matches!(magic, MAGIC_1_18 | MAGIC_1_20) || bytes.get(4..8)? != [0, 0, 1, 8] {
            return None;
        }
        let field = |index: usize| long(bytes, 8 + 8 * index);
        let part = |index| bytes.get(usize::try_from(field(index)?).ok()?..);
        let table = Self {
            bytes,
            text: field(2)?,
            count: usize::try_from(field(0)?).ok()?,
            has_start_lines: magic == MAGIC_1_20,
            names: part(3)?,
            units: part(4)?,
            files: part(5)?,
            values: part(6)?,
            functions: part(7)?,
        };
        (table.count <= table.functions.len() / 8).then_some(table)
    }

    /// Does the code look like functions at the addresses that the table says?
    fn begins_functions(&self, code: impl Fn(u64) -> Option<[u8; 4]>) -> bool {
        let step = (self.count / PROBES).max(1);
        let (mut probed, mut alike) = (0, 0);
        for index in (0..self.count).step_by(step) {
            let Some(first) = self.get(index).and_then(|function| code(function.start)) else {
                return false;
            };
            probed += 1;
            alike += usize::from(PROLOGUES.contains(&first.as_slice()));
        }
        // Three quarters do; in other code, or between these, next to none.
        alike > 0 && alike * 4 >= probed
    }

    /// How many functions there are, in order of their addresses.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Is there none?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The section.
    #[must_use]
    pub const fn bytes(&self) -> &'data [u8] {
        self.bytes
    }

    /// Where code begins, in the file's own terms.
    #[must_use]
    pub const fn text_address(&self) -> u64 {
        self.text
    }

    /// One of the functions; `None` beyond the last, and where its description is damaged.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<GoFunction<'data, '_>> {
        if index >= self.count {
            return None;
        }
        let entry = self.functions.get(8 * index..)?;
        let start = self.text.checked_add(u64::from(word(entry, 0)?))?;
        let end = self.text.checked_add(u64::from(word(entry, 8)?))?;
        let description = self.functions.get(word(entry, 4)? as usize..)?;
        (start < end).then_some(GoFunction {
            table: self,
            description,
            start,
            end,
        })
    }

    /// The function at an address, in the file's own terms.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<GoFunction<'data, '_>> {
        let offset = u32::try_from(address.checked_sub(self.text)?).ok()?;
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if word(self.functions, 8 * middle)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let function = self.get(low.checked_sub(1)?)?;
        (address < function.end).then_some(function)
    }
}

impl<'data> GoFunction<'data, '_> {
    /// Name with package path, `main.(*server).handle`.
    #[must_use]
    pub fn name(&self) -> Option<&'data str> {
        text(self.table.names, word(self.description, 4)?)
    }

    /// What the runtime has to know of its stack.
    #[must_use]
    pub fn flags(&self) -> GoFlags {
        let at = if self.table.has_start_lines { 41 } else { 37 };
        GoFlags(self.description.get(at).copied().unwrap_or_default())
    }

    /// By how many bytes the stack has grown since the function was entered, each with the address
    /// from which on this holds.
    pub fn stack_depths(&self) -> impl Iterator<Item = (u64, i32)> + use<'data> {
        self.values_at(16)
            .map(|(range, depth)| (range.start, depth))
    }

    /// Source file and line of an address in it.
    #[must_use]
    pub fn source_at(&self, address: u64) -> Option<(&'data str, u32)> {
        let at = |field| {
            let mut values = self.values_at(field);
            values.find_map(|(range, value)| range.contains(&address).then_some(value))
        };
        let file = u32::try_from(at(20)?).ok()?;
        let unit = word(self.description, 32)?;
        let file = word(self.table.units, 4 * unit.checked_add(file)? as usize)?;
        Some((text(self.table.files, file)?, u32::try_from(at(24)?).ok()?))
    }

    /// The pairs of addresses and values that a field of the description leads to.
    fn values_at(&self, field: usize) -> Values<'data> {
        let offset = word(self.description, field).filter(|offset| *offset != 0);
        let bytes = offset.and_then(|offset| self.table.values.get(offset as usize..));
        Values {
            bytes: bytes.unwrap_or_default(),
            at: self.start,
            end: self.end,
            value: -1,
            is_first: true,
        }
    }
}

/// A sequence of values, each for a range of addresses: pairs of differences, as varints.
#[derive(Clone)]
struct Values<'data> {
    bytes: &'data [u8],
    at: u64,
    /// Of the function.
    end: u64,
    value: i32,
    is_first: bool,
}

impl Iterator for Values<'_> {
    type Item = (std::ops::Range<u64>, i32);

    fn next(&mut self) -> Option<Self::Item> {
        let value = varint(&mut self.bytes)?;
        if (value == 0 && !self.is_first) || self.at >= self.end {
            return None;
        }
        self.is_first = false;
        // The lowest bit is the sign.
        let difference = (value >> 1) as i32 ^ -((value & 1) as i32);
        self.value = self.value.wrapping_add(difference);
        let start = self.at;
        let len = u64::from(varint(&mut self.bytes)?);
        self.at = start.saturating_add(len).min(self.end);
        Some((start..self.at, self.value))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    for shift in (0..32).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The word of 32 bits at an offset.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The word of 64 bits at an offset.
fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// The text at an offset, which ends with a byte of zero.
fn text(bytes: &[u8], at: u32) -> Option<&str> {
    let bytes = bytes.get(at as usize..)?;
    let end = bytes
        .iter()
        .take(MAX_TEXT_BYTES)
        .position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}
