//! What a function of JavaScript says of itself: its name, its script and the line where it begins.

use ebpf_common::v8::{HEAP_TAG, SHARED_WORDS, TAG_MASK, stamp};

use super::file::V8;
use crate::SymbolizedFrame;
use crate::python::Memory;

/// Longest name, characters.
const MAX_NAME_CHARACTERS: usize = 512;

/// Longest part of a source that is read to count its lines, bytes.
const MAX_SOURCE_BYTES: u64 = 4 << 20;

/// How much of it is read at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Strings that a string may be made of.
const MAX_PARTS: usize = 64;

/// Local variables of a scope whose names stand in it, one by one; more are in a table
/// (`kScopeInfoMaxInlinedLocalNamesSize`).
const MAX_NAMED_LOCALS: u64 = 75;

/// No scope has more local variables.
const MAX_LOCALS: u64 = 1 << 20;

/// What a function without a name is called, as by V8's own profiler.
const ANONYMOUS: &str = "(anonymous)";

/// Why a function was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// Not in memory: the process is gone, or the object is.
    #[error("it could not be read")]
    Unreadable,
    /// Another object lies there by now.
    #[error("another one is there by now")]
    Replaced,
    /// What should be its name, its scope or its script is none.
    #[error("it does not look as this version keeps functions")]
    Unfit,
}

/// The function whose `SharedFunctionInfo` is at `shared`, a tagged address; `None` for one that V8
/// itself brings along, which has no script.
///
/// # Errors
/// See [`FunctionError`].
pub fn read_function(
    memory: &impl Memory,
    v8: &V8,
    shared: u64,
    expected_stamp: u64,
) -> Result<Option<SymbolizedFrame>, FunctionError> {
    let heap = Heap { memory, v8 };
    heap.check_stamp(shared, expected_stamp)?;
    let function = heap.function(shared);
    // Nothing that was read between is believed, if it is not the same one still.
    heap.check_stamp(shared, expected_stamp)?;
    function
}

/// A scope's part in what a function is called.
struct Scope {
    name: Option<String>,
    /// Of its first parameter's parenthesis, characters from the source's begin.
    position: Option<u64>,
}

struct Heap<'a, M> {
    memory: &'a M,
    v8: &'a V8,
}

impl<M: Memory> Heap<'_, M> {
    fn check_stamp(&self, shared: u64, expected: u64) -> Result<(), FunctionError> {
        let mut bytes = [0; SHARED_WORDS * 8];
        let start = address_of(shared)?;
        let read = self.memory.read(start, &mut bytes);
        read.ok_or(FunctionError::Unreadable)?;
        let mut words = [0; SHARED_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let is_shared = u32::from(self.instance_type(shared)?) == self.v8.layout.shared_type;
        if is_shared && stamp(&words, &self.v8.layout) == expected {
            Ok(())
        } else {
            Err(FunctionError::Replaced)
        }
    }

    fn function(&self, shared: u64) -> Result<Option<SymbolizedFrame>, FunctionError> {
        let script = self.member(shared, self.v8.shared_script)?;
        let script_type = self.instance_type(script)?;
        if script_type == self.v8.oddball_type {
            return Ok(None);
        }
        if script_type != self.v8.script_type {
            return Err(FunctionError::Unfit);
        }
        let named = self.member(shared, self.v8.shared_name)?;
        let scope = if is_small(named) {
            Scope {
                name: None,
                position: None,
            }
        } else if self.instance_type(named)? == self.v8.scope_info_type {
            self.scope(named)?
        } else {
            Scope {
                name: Some(self.text(named)?),
                position: None,
            }
        };
        let file = self.member(script, self.v8.script_name)?;
        let file = if is_small(file) || self.instance_type(file)? == self.v8.oddball_type {
            None
        } else {
            Some(self.text(file)?).filter(|file| !file.is_empty())
        };
        let source = self.member(script, self.v8.script_source)?;
        let line = match scope.position {
            Some(position) => self.line(source, position)?,
            None => None,
        };
        let name = scope.name.filter(|name| !name.is_empty());
        Ok(Some(SymbolizedFrame {
            name: name.unwrap_or_else(|| ANONYMOUS.to_owned()).into(),
            file: file.map(Into::into),
            line,
        }))
    }

    /// What a `ScopeInfo` tells. Which of its members are there is told by its flags; each is checked
    /// to be of the type that belongs there.
    fn scope(&self, scope: u64) -> Result<Scope, FunctionError> {
        let layout = &self.v8.scope;
        // Behind the map.
        let word = |index: u64| self.member(scope, 8 + index * 8);
        let small = |index: u64| small_of(word(index)?).ok_or(FunctionError::Unfit);
        let flags = if layout.raw_flags {
            word(0)? & 0xffff_ffff
        } else {
            small(0)?
        };
        if flags & 15 != layout.function_scope {
            // A script's or a module's own code.
            return Ok(Scope {
                name: None,
                position: None,
            });
        }
        let has_class_variable = flags >> 10 & 1 == 1;
        let locals = small(2)?;
        if has_class_variable || locals > MAX_LOCALS {
            return Err(FunctionError::Unfit);
        }
        let names = if locals < MAX_NAMED_LOCALS { locals } else { 1 };
        let mut next = layout.first_local + names + locals;
        let mut name = None;
        if flags >> 12 & 3 != 0 {
            // 0 where the name is computed (`kNoSharedNameSentinel`).
            name = match word(next)? {
                0 => None,
                text => Some(self.text(text)?),
            };
            // Where the function's own variable is: -1 where it has none.
            if !is_small(word(next + 1)?) {
                return Err(FunctionError::Unfit);
            }
            next += 2;
        }
        if flags >> 14 & 1 == 1 {
            let inferred = word(next)?;
            if self.instance_type(inferred)? != self.v8.oddball_type {
                let inferred = self.text(inferred)?;
                if name.as_ref().is_none_or(String::is_empty) {
                    name = Some(inferred);
                }
            }
            next += 1;
        }
        let positions = layout.positions.unwrap_or(next);
        let (start, end) = (small(positions)?, small(positions + 1)?);
        if start > end {
            return Err(FunctionError::Unfit);
        }
        Ok(Scope {
            name,
            position: Some(start),
        })
    }

    /// Line of a position in a source, from 1 on; `None` for a source that does not lie in one piece
    /// in the heap.
    fn line(&self, source: u64, position: u64) -> Result<Option<u32>, FunctionError> {
        let strings = &self.v8.strings;
        let mut source = source;
        let mut parts = 0;
        let kind = loop {
            parts += 1;
            if is_small(source) || parts > MAX_PARTS {
                return Ok(None);
            }
            let kind = self.instance_type(source)?;
            let representation = kind & strings.representation_mask;
            if kind >= strings.first_other_type {
                return Ok(None);
            } else if representation == strings.thin {
                source = self.member(source, strings.thin_actual)?;
            } else if representation == strings.cons {
                // One that was put together when it was compiled: all of it is in its first part.
                let second = self.member(source, strings.cons_second)?;
                if self.number(second, strings.length)? != 0 {
                    return Ok(None);
                }
                source = self.member(source, strings.cons_first)?;
            } else if representation == 0 {
                break kind;
            } else {
                return Ok(None);
            }
        };
        let width = if kind & strings.one_byte == 0 { 2 } else { 1 };
        let len = self.number(source, strings.length)?;
        if position > u64::from(len) {
            return Err(FunctionError::Unfit);
        }
        let bytes = position * width;
        if bytes > MAX_SOURCE_BYTES {
            return Ok(None);
        }
        let mut at = address_of(source)?.wrapping_add(strings.characters);
        let mut left = bytes as usize;
        let mut chunk = vec![0; CHUNK_BYTES.min(left)];
        let mut lines = Lines::default();
        while left > 0 {
            let part = &mut chunk[..left.min(CHUNK_BYTES)];
            let read = self.memory.read(at, part);
            read.ok_or(FunctionError::Unreadable)?;
            if width == 1 {
                part.iter().for_each(|byte| lines.pass(u16::from(*byte)));
            } else {
                let (units, _) = part.as_chunks::<2>();
                units
                    .iter()
                    .for_each(|unit| lines.pass(u16::from_le_bytes(*unit)));
            }
            left -= part.len();
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(Some(lines.ended + 1))
    }

    /// A string, of which no more than [`MAX_NAME_CHARACTERS`] are read.
    fn text(&self, string: u64) -> Result<String, FunctionError> {
        let strings = &self.v8.strings;
        let mut units = Vec::new();
        // What comes next is at the end.
        let mut parts = vec![string];
        for _ in 0..MAX_PARTS {
            let Some(part) = parts.pop() else {
                return Ok(String::from_utf16_lossy(&units));
            };
            let kind = self.instance_type(part)?;
            if kind >= strings.first_other_type {
                return Err(FunctionError::Unfit);
            }
            let representation = kind & strings.representation_mask;
            if representation == strings.cons {
                parts.push(self.member(part, strings.cons_second)?);
                parts.push(self.member(part, strings.cons_first)?);
            } else if representation == strings.thin {
                parts.push(self.member(part, strings.thin_actual)?);
            } else if representation == 0 {
                let len = self.number(part, strings.length)? as usize;
                let len = len.min(MAX_NAME_CHARACTERS - units.len());
                let width = if kind & strings.one_byte == 0 { 2 } else { 1 };
                let mut bytes = vec![0; len * width];
                let start = address_of(part)?.wrapping_add(strings.characters);
                let read = self.memory.read(start, &mut bytes);
                read.ok_or(FunctionError::Unreadable)?;
                if width == 1 {
                    units.extend(bytes.iter().map(|byte| u16::from(*byte)));
                } else {
                    let (pairs, _) = bytes.as_chunks::<2>();
                    units.extend(pairs.iter().map(|pair| u16::from_le_bytes(*pair)));
                }
            } else {
                // Outside of the heap, or a part of another one: no name is kept so.
                return Err(FunctionError::Unfit);
            }
        }
        Err(FunctionError::Unfit)
    }

    /// The type of an object: its map's.
    fn instance_type(&self, object: u64) -> Result<u16, FunctionError> {
        let map = self.member(object, 0)?;
        let mut bytes = [0; 2];
        let at = address_of(map)?.wrapping_add(self.v8.map_instance_type);
        let read = self.memory.read(at, &mut bytes);
        read.ok_or(FunctionError::Unreadable)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// The tagged word at an offset in an object.
    fn member(&self, object: u64, offset: u64) -> Result<u64, FunctionError> {
        let mut bytes = [0; 8];
        let at = address_of(object)?.wrapping_add(offset);
        let read = self.memory.read(at, &mut bytes);
        read.ok_or(FunctionError::Unreadable)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The number of 32 bits at an offset in an object.
    fn number(&self, object: u64, offset: u64) -> Result<u32, FunctionError> {
        let mut bytes = [0; 4];
        let at = address_of(object)?.wrapping_add(offset);
        let read = self.memory.read(at, &mut bytes);
        read.ok_or(FunctionError::Unreadable)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Counts the ends of lines, as the language has them (ECMA-262, LineTerminatorSequence).
#[derive(Default)]
struct Lines {
    ended: u32,
    after_return: bool,
}

impl Lines {
    fn pass(&mut self, unit: u16) {
        let (is_feed, is_return) = (unit == 0x0a, unit == 0x0d);
        let is_end = is_feed && !self.after_return || is_return || matches!(unit, 0x2028 | 0x2029);
        self.ended += u32::from(is_end);
        self.after_return = is_return;
    }
}

/// The first byte of the object that a tagged pointer leads to.
fn address_of(tagged: u64) -> Result<u64, FunctionError> {
    if tagged & TAG_MASK == HEAP_TAG {
        Ok(tagged - HEAP_TAG)
    } else {
        Err(FunctionError::Unfit)
    }
}

fn is_small(word: u64) -> bool {
    word & 1 == 0
}

/// A `Smi` that is not negative.
fn small_of(word: u64) -> Option<u64> {
    (word & 0xffff_ffff == 0 && word >> 63 == 0).then_some(word >> 32)
}

#[cfg(test)]
mod tests;
