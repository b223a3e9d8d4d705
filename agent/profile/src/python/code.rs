//! What a code object says of itself.

use std::sync::Arc;

use ebpf_common::python::{
    PythonProcess, TEXT_HASH_OFFSET, TYPE_OFFSET, WINDOW_WORDS, kind, stamp,
};

use super::layout::Layout;
use super::lines::{LineFormat, line};
use crate::SymbolizedFrame;

/// Longest name that is read, characters.
const MAX_NAME_CHARS: u64 = 1024;

/// Longest path that is read, characters.
const MAX_PATH_CHARS: u64 = 4096;

/// Longest line table that is read: that of a function of some 100,000 lines.
const MAX_LINES_BYTES: u64 = 256 * 1024;

/// `PyTypeObject.tp_name`
pub(super) const TYPE_NAME_OFFSET: u64 = 24;

/// `PyVarObject.ob_size`, `PyASCIIObject.length`
pub(super) const LENGTH_OFFSET: u64 = 16;

/// `PyASCIIObject.state`
pub(super) const TEXT_STATE_OFFSET: u64 = 32;

/// `PyBytesObject.ob_sval`
const BYTES_OFFSET: u64 = 32;

/// A process's memory.
pub trait Memory {
    /// Fills `into` from `address` on; `None` where not all of it can be read.
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()>;
}

/// Why a code object was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Not in memory: the process is gone, or the object is.
    #[error("it could not be read")]
    Unreadable,
    /// Another object lies there by now.
    #[error("another one is there by now")]
    Replaced,
    /// It refers to something that is not what it should be.
    #[error("it is none")]
    Malformed,
}

/// A code object: a function, or what a module, a class or a comprehension runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    name: Arc<str>,
    file: Arc<str>,
    first_line: u32,
    lines: Box<[u8]>,
    format: LineFormat,
    /// Offset of the first instruction from the object's begin; 0 where places are numbers.
    start: u64,
}

impl Code {
    /// The function at a place, as the kernel side tells it.
    #[must_use]
    pub fn at(&self, place: u32) -> SymbolizedFrame {
        let place = i64::from(place as i32);
        let place = match self.format {
            LineFormat::ByteDeltas => place,
            // Counted in instructions.
            LineFormat::Ranges => place * 2,
            LineFormat::Locations => place.saturating_sub_unsigned(self.start),
        };
        SymbolizedFrame {
            name: Arc::clone(&self.name),
            file: Some(Arc::clone(&self.file)),
            line: line(self.format, &self.lines, self.first_line, place),
        }
    }

    /// Is it none that anybody wrote? Since 3.12 the interpreter has a code object of its own for
    /// constructors, which is called like them and says the same in place of a file.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.name == self.file
    }

    /// Memory that it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.name.len() + self.file.len() + self.lines.len()
    }
}

/// Reads the code object at `address`, provided that it is the one with that stamp.
///
/// # Errors
/// See [`CodeError`].
pub fn read_code(
    memory: &impl Memory,
    layout: &Layout,
    address: u64,
    wanted: u32,
) -> Result<Code, CodeError> {
    let is_same = || match stamp_of(memory, &layout.process, address) {
        Some(found) if found == wanted && is_alive(memory, address) => Ok(()),
        Some(_) => Err(CodeError::Replaced),
        None => Err(CodeError::Unreadable),
    };
    is_same()?;
    check_type(memory, address, "code")?;
    let (name, file) = names(memory, layout, address)?;
    let field = |offset: u64| address.wrapping_add(offset);
    let first_line = half_word(memory, field(layout.code_first_line));
    let lines = word(memory, field(layout.code_lines)).ok_or(CodeError::Unreadable)?;
    let lines = bytes(memory, lines)?;
    // What its pointers lead to lives as long as it does: if it is still there, all of that was its
    // own.
    is_same()?;
    Ok(Code {
        name: name.into(),
        file: file.into(),
        first_line: first_line.ok_or(CodeError::Unreadable)?,
        lines,
        format: layout.lines,
        start: layout.code_start,
    })
}

/// Does anybody refer to the object? Its memory keeps what it was for a while after it is gone, but
/// what its pointers led to may be something else by then. In place of the count of references,
/// CPython's allocator leaves a pointer, the C library's one, or nothing: neither is a count, which
/// has at most 32 bits. (From 3.14 on, flags stand in the upper 16.)
fn is_alive(memory: &impl Memory, address: u64) -> bool {
    word(memory, address).is_some_and(|count| count as u32 != 0 && count >> 32 & 0xffff == 0)
}

/// The stamp of what is at `address`, by the steps that the kernel side takes.
fn stamp_of(memory: &impl Memory, process: &PythonProcess, address: u64) -> Option<u32> {
    let mut window = [0; WINDOW_WORDS];
    let begin = address.wrapping_add(u64::from(process.code_stamp));
    let mut bytes = [0; WINDOW_WORDS * 8];
    memory.read(
        begin,
        bytes.get_mut(..8 * process.code_stamp_words as usize)?,
    )?;
    for (into, bytes) in window.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *into = u64::from_le_bytes(*bytes);
    }
    let mut name_hash = 0;
    if process.kind & kind::NAME_HASH != 0 {
        let name = window.get(process.code_name as usize)?;
        name_hash = word(memory, name.wrapping_add(TEXT_HASH_OFFSET)).unwrap_or_default();
    }
    Some(stamp(&window, process.code_stamp_words, name_hash))
}

/// The name and the path in the object at `address`.
pub(super) fn names(
    memory: &impl Memory,
    layout: &Layout,
    address: u64,
) -> Result<(String, String), CodeError> {
    let read = |offset: u64, longest: u64| {
        let object = word(memory, address.wrapping_add(offset)).ok_or(CodeError::Unreadable)?;
        text(memory, layout, object, longest)
    };
    let name = read(layout.code_name, MAX_NAME_CHARS)?;
    let file = read(layout.code_file, MAX_PATH_CHARS)?;
    if name.is_empty() {
        return Err(CodeError::Malformed);
    }
    Ok((name, file))
}

/// Checks the name of an object's type, and gives the type's address.
pub(super) fn check_type(
    memory: &impl Memory,
    object: u64,
    expected: &str,
) -> Result<u64, CodeError> {
    let class = word(memory, object.wrapping_add(TYPE_OFFSET)).ok_or(CodeError::Unreadable)?;
    let name = word(memory, class.wrapping_add(TYPE_NAME_OFFSET)).ok_or(CodeError::Malformed)?;
    let mut found = [0; 8];
    let found = &mut found[..=expected.len().min(7)];
    memory.read(name, found).ok_or(CodeError::Malformed)?;
    if found.strip_suffix(b"\0") == Some(expected.as_bytes()) {
        Ok(class)
    } else {
        Err(CodeError::Malformed)
    }
}

/// The text in a `str`.
fn text(
    memory: &impl Memory,
    layout: &Layout,
    object: u64,
    longest: u64,
) -> Result<String, CodeError> {
    check_type(memory, object, "str")?;
    let len = word(memory, object.wrapping_add(LENGTH_OFFSET)).ok_or(CodeError::Unreadable)?;
    let state = half_word(memory, object.wrapping_add(TEXT_STATE_OFFSET));
    let state = TextState::of(state.ok_or(CodeError::Unreadable)?).ok_or(CodeError::Malformed)?;
    let len = len.min(longest);
    let begin = if state.is_ascii {
        layout.text_ascii
    } else {
        layout.text_other
    };
    let mut bytes = vec![0; len as usize * state.char_bytes];
    memory
        .read(object.wrapping_add(begin), &mut bytes)
        .ok_or(CodeError::Unreadable)?;
    let chars = bytes.chunks_exact(state.char_bytes).map(|bytes| {
        let mut code = [0; 4];
        code[..bytes.len()].copy_from_slice(bytes);
        char::from_u32(u32::from_le_bytes(code)).unwrap_or(char::REPLACEMENT_CHARACTER)
    });
    Ok(chars.collect())
}

/// How a `str` keeps its text.
struct TextState {
    is_ascii: bool,
    char_bytes: usize,
}

impl TextState {
    /// Of `PyASCIIObject.state`: two bits of `interned`, three of `kind`, `compact`, `ascii`. Some
    /// versions give `interned` the lower half.
    fn of(state: u32) -> Option<Self> {
        [state >> 2, state >> 16].into_iter().find_map(|state| {
            let (kind, is_compact, is_ascii) = (state & 7, state & 8 != 0, state & 16 != 0);
            let is_valid = is_compact && matches!(kind, 1 | 2 | 4) && (!is_ascii || kind == 1);
            is_valid.then_some(Self {
                is_ascii,
                char_bytes: kind as usize,
            })
        })
    }
}

/// The content of a `bytes`; nothing of one that is too long.
fn bytes(memory: &impl Memory, object: u64) -> Result<Box<[u8]>, CodeError> {
    check_type(memory, object, "bytes")?;
    let len = word(memory, object.wrapping_add(LENGTH_OFFSET)).ok_or(CodeError::Unreadable)?;
    if len > MAX_LINES_BYTES {
        return Ok(Box::default());
    }
    let mut bytes = vec![0; len as usize];
    memory
        .read(object.wrapping_add(BYTES_OFFSET), &mut bytes)
        .ok_or(CodeError::Unreadable)?;
    Ok(bytes.into())
}

/// The word at an address.
pub(super) fn word(memory: &impl Memory, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(address, &mut bytes)?;
    Some(u64::from_le_bytes(bytes))
}

fn half_word(memory: &impl Memory, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory.read(address, &mut bytes)?;
    Some(u32::from_le_bytes(bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::layout::Version;
    use super::*;
    use proptest::prelude::*;

    /// Memory from [`BEGIN`] on.
    pub(in super::super) struct Bytes(pub(in super::super) Vec<u8>);

    pub(in super::super) const BEGIN: u64 = 0x7000_0000_0000;

    impl Memory for Bytes {
        fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
            let begin = usize::try_from(address.checked_sub(BEGIN)?).ok()?;
            let bytes = self.0.get(begin..begin.checked_add(into.len())?)?;
            into.copy_from_slice(bytes);
            Some(())
        }
    }

    impl Bytes {
        fn set(&mut self, at: u64, bytes: &[u8]) {
            let at = at as usize;
            if self.0.len() < at + bytes.len() {
                self.0.resize(at + bytes.len(), 0);
            }
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn set_word(&mut self, at: u64, word: u64) {
            self.set(at, &word.to_le_bytes());
        }

        /// A type whose name lies behind it.
        fn set_type(&mut self, at: u64, name: &str) {
            self.set_word(at + TYPE_NAME_OFFSET, BEGIN + at + 64);
            self.set(at + 64, name.as_bytes());
        }

        fn set_text(&mut self, at: u64, state: u32, data: u64, text: &[u8], chars: u64) {
            self.set_word(at + TYPE_OFFSET, BEGIN + STR);
            self.set_word(at + LENGTH_OFFSET, chars);
            self.set_word(at + TEXT_HASH_OFFSET, chars * 7919);
            self.set(at + TEXT_STATE_OFFSET, &state.to_le_bytes());
            self.set(at + data, text);
        }
    }

    const CODE_TYPE: u64 = 0x100;
    const STR: u64 = 0x200;
    const BYTES: u64 = 0x300;
    const CODE: u64 = 0x1000;
    const NAME: u64 = 0x2000;
    const FILE: u64 = 0x3000;
    const LINES: u64 = 0x4000;

    fn layout() -> Layout {
        Layout::of_version(Version {
            major: 3,
            minor: 11,
        })
        .unwrap()
    }

    /// A code object of 3.11 and what belongs to it.
    fn memory() -> Bytes {
        let mut memory = Bytes(vec![0; 0x5000]);
        memory.set_type(CODE_TYPE, "code");
        memory.set_type(STR, "str");
        memory.set_type(BYTES, "bytes");
        memory.set_word(CODE, 3);
        memory.set_word(CODE + TYPE_OFFSET, BEGIN + CODE_TYPE);
        memory.set(CODE + 72, &10_u32.to_le_bytes());
        memory.set_word(CODE + 112, BEGIN + FILE);
        memory.set_word(CODE + 120, BEGIN + NAME);
        memory.set_word(CODE + 128, BEGIN + NAME);
        memory.set_word(CODE + 136, BEGIN + LINES);
        let compact = 1 << 5;
        memory.set_text(NAME, 1 | 2 << 2 | compact, 72, b"\xe9\x00\x16\x20", 2);
        memory.set_text(FILE, 1 << 2 | compact | 1 << 6, 48, b"/a.py", 5);
        memory.set_word(LINES + TYPE_OFFSET, BEGIN + BYTES);
        memory.set_word(LINES + LENGTH_OFFSET, 3);
        memory.set(LINES + BYTES_OFFSET, b"\x80\x00\x00");
        memory
    }

    fn stamp(memory: &Bytes) -> u32 {
        stamp_of(memory, &layout().process, BEGIN + CODE).unwrap()
    }

    #[test]
    fn a_code_object_tells_its_name_file_and_line() {
        let memory = memory();
        let code = read_code(&memory, &layout(), BEGIN + CODE, stamp(&memory)).unwrap();
        let function = code.at(184);
        assert_eq!((&*function.name, function.line), ("é‖", Some(10)));
        assert_eq!(function.file.as_deref(), Some("/a.py"));
    }

    #[test]
    fn another_object_at_its_address_is_not_taken_for_it() {
        let layout = layout();
        let read = |memory: &Bytes, stamp| read_code(memory, &layout, BEGIN + CODE, stamp);
        let first = stamp(&memory());
        // Another line; then the same, but for the content of the name.
        for (at, byte) in [(CODE + 72, 11), (NAME + TEXT_HASH_OFFSET, 1)] {
            let mut memory = memory();
            memory.set(at, &[byte]);
            assert_eq!(read(&memory, first), Err(CodeError::Replaced));
            assert!(read(&memory, stamp(&memory)).is_ok());
        }
        // Gone: the allocator's pointer to the next free piece of memory, or none.
        for count in [0x7fab_cdef_0120, 0] {
            let mut memory = memory();
            memory.set_word(CODE, count);
            assert_eq!(read(&memory, first), Err(CodeError::Replaced));
        }
        let mut memory = memory();
        memory.set_word(CODE + TYPE_OFFSET, BEGIN + STR);
        assert_eq!(read(&memory, stamp(&memory)), Err(CodeError::Malformed));
    }

    proptest! {
        #[test]
        fn no_memory_makes_reading_panic(
            changes in prop::collection::vec((0..0x5000_u64, any::<u8>()), 0..40),
            words in prop::collection::vec((0..0x240_u64, 0..0x5000_u64), 0..6),
        ) {
            let mut memory = memory();
            for (at, byte) in changes {
                memory.set(at, &[byte]);
            }
            for (at, to) in words {
                memory.set_word(CODE + at / 8 * 8, BEGIN + to);
            }
            let stamp = stamp(&memory);
            if let Ok(code) = read_code(&memory, &layout(), BEGIN + CODE, stamp) {
                let _ = code.at(184);
                prop_assert!(code.bytes() < 600_000);
            }
        }
    }
}
