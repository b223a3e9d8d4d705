use std::collections::BTreeMap;

use ebpf_common::v8::V8Layout;
use proptest::prelude::*;

use super::super::file::{ScopeLayout, Strings};
use super::*;

/// As Node 20 has it.
fn v8() -> V8 {
    V8 {
        version: (11, 3),
        layout: V8Layout {
            frame_function: -16,
            function_shared: 24,
            map_instance_type: 12,
            shared_type: SHARED,
            shared_words: [2, 4, 5, 6],
        },
        shared_name: 16,
        shared_script: 32,
        map_instance_type: 12,
        script_type: SCRIPT,
        script_name: 16,
        script_source: 8,
        scope_info_type: SCOPE,
        oddball_type: ODDBALL,
        scope: ScopeLayout {
            raw_flags: false,
            positions: None,
            first_local: 3,
            function_scope: 2,
        },
        strings: Strings {
            first_other_type: 128,
            representation_mask: 7,
            cons: 1,
            thin: 5,
            one_byte: 8,
            length: 12,
            characters: 16,
            cons_first: 16,
            cons_second: 24,
            thin_actual: 16,
        },
    }
}

const SHARED: u32 = 262;
const SCRIPT: u16 = 167;
const SCOPE: u16 = 261;
const ODDBALL: u16 = 131;
const ONE_BYTE: u16 = 8;
const TWO_BYTE: u16 = 0;
const CONS: u16 = 1;
const THIN: u16 = 5;

/// A name of its own, an inferred one, simple parameters, an outer scope.
const NAMED: u64 = 0b100_0001_0111_0001_1110_0010;

/// Objects of a heap, by their address.
#[derive(Default)]
struct Objects {
    bytes: BTreeMap<u64, u8>,
    next: u64,
}

impl Memory for Objects {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        for (offset, byte) in into.iter_mut().enumerate() {
            *byte = *self.bytes.get(&address.checked_add(offset as u64)?)?;
        }
        Some(())
    }
}

impl Objects {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            self.bytes.insert(address + offset as u64, *byte);
        }
    }

    /// A new object of this type; gives its tagged address.
    fn object(&mut self, kind: u16, words: &[u64]) -> u64 {
        let map = 0x10_0000 + u64::from(kind) * 64;
        self.put(map, &[0; 16]);
        self.put(map + 12, &kind.to_le_bytes());
        let object = 0x20_0000 + self.next;
        self.next += 8 * words.len() as u64 + 64;
        self.put(object, &(map + 1).to_le_bytes());
        for (index, word) in words.iter().enumerate() {
            self.put(object + 8 + 8 * index as u64, &word.to_le_bytes());
        }
        object + 1
    }

    fn string(&mut self, text: &str) -> u64 {
        let bytes = text.as_bytes();
        let string = self.object(ONE_BYTE, &vec![0; 2 + bytes.len() / 8]);
        self.put(string - 1 + 12, &(bytes.len() as u32).to_le_bytes());
        self.put(string - 1 + 16, bytes);
        string
    }

    fn wide_string(&mut self, text: &str) -> u64 {
        let units: Vec<_> = text.encode_utf16().collect();
        let string = self.object(TWO_BYTE, &vec![0; 2 + units.len() / 4]);
        self.put(string - 1 + 12, &(units.len() as u32).to_le_bytes());
        let bytes: Vec<_> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        self.put(string - 1 + 16, &bytes);
        string
    }

    /// A function that begins behind `position` characters of `source`.
    fn function(&mut self, flags: u64, locals: u64, name: u64, inferred: u64) -> u64 {
        let mut words = vec![small(flags), small(1), small(locals)];
        words.extend((0..locals.min(75)).map(|_| name));
        words.extend((0..locals).map(small));
        words.extend([name, small(3), inferred, small(10), small(20)]);
        let scope = self.object(SCOPE, &words);
        let source = self.string("//\r\n//\nf = () => { 1 }\n");
        let file = self.string("/srv/app.js");
        let script = self.object(SCRIPT, &[source, file]);
        self.object(SHARED as u16, &[0, scope, 0, script, 5, 6, 7])
    }

    fn stamp(&self, shared: u64) -> u64 {
        let mut words = [0; SHARED_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            self.read(shared - 1 + 8 * index as u64, &mut bytes);
            *word = u64::from_le_bytes(bytes);
        }
        stamp(&words, &v8().layout)
    }

    fn named(&self, shared: u64) -> Result<String, FunctionError> {
        let function = read_function(self, &v8(), shared, self.stamp(shared))?.unwrap();
        let (file, line) = (function.file.unwrap_or_default(), function.line);
        Ok(format!("{} {file}:{}", function.name, line.unwrap_or(0)))
    }
}

fn small(number: u64) -> u64 {
    number << 32
}

#[test]
fn a_function_has_its_own_name_file_and_line() {
    let mut heap = Objects::default();
    let (name, inferred) = (heap.string("area"), heap.string("Shape.area"));
    for locals in [0, 3, 74] {
        let function = heap.function(NAMED, locals, name, inferred);
        assert_eq!(heap.named(function).unwrap(), "area /srv/app.js:3");
    }
}

#[test]
fn a_function_without_one_has_the_inferred_name() {
    let mut heap = Objects::default();
    let (none, begin, end) = (
        heap.string(""),
        heap.string("Module."),
        heap.wide_string("läd"),
    );
    let thin = heap.object(THIN, &[0, end]);
    let inferred = heap.object(CONS, &[0, begin, thin]);
    let function = heap.function(NAMED, 2, none, inferred);
    assert_eq!(heap.named(function).unwrap(), "Module.läd /srv/app.js:3");
    let undefined = heap.object(ODDBALL, &[]);
    for none in [none, small(0)] {
        let function = heap.function(NAMED, 2, none, undefined);
        assert_eq!(heap.named(function).unwrap(), "(anonymous) /srv/app.js:3");
    }
    let function = heap.function(NAMED, 2, small(1), undefined);
    assert_eq!(heap.named(function), Err(FunctionError::Unfit));
}

#[test]
fn a_source_that_was_put_together_has_lines() {
    let mut heap = Objects::default();
    let name = heap.string("area");
    let function = heap.function(NAMED, 0, name, name);
    let mut script = [0; 8];
    heap.read(function - 1 + 32, &mut script);
    let script = u64::from_le_bytes(script);
    let (whole, empty, more) = (
        heap.wide_string("\n\n\n\n() => 1;;;;;;;;"),
        heap.string(""),
        heap.string("x"),
    );
    for (second, line) in [(empty, 5), (more, 0)] {
        let source = heap.object(CONS, &[0, whole, second]);
        heap.put(script - 1 + 8, &source.to_le_bytes());
        let expected = format!("area /srv/app.js:{line}");
        // Its line is not known where it lies in several pieces; pprof has no line 0.
        assert_eq!(heap.named(function).unwrap(), expected);
    }
}

#[test]
fn what_is_no_longer_there_has_no_name() {
    let mut heap = Objects::default();
    let name = heap.string("area");
    let function = heap.function(NAMED, 0, name, name);
    let stamp = heap.stamp(function);
    let read = |heap: &Objects| read_function(heap, &v8(), function, stamp);
    assert!(read(&heap).is_ok());
    // Another function of the same script.
    heap.put(function - 1 + 48, &[1]);
    assert_eq!(read(&heap), Err(FunctionError::Replaced));
    heap.put(function - 1 + 48, &[6]);
    assert!(read(&heap).is_ok());
    let other = heap.object(SCOPE, &[]);
    let mut map = [0; 8];
    heap.read(other - 1, &mut map);
    heap.put(function - 1, &map);
    assert_eq!(read(&heap), Err(FunctionError::Replaced));
}

#[test]
fn flags_that_do_not_fit_give_no_name() {
    let mut heap = Objects::default();
    let (name, undefined) = (heap.string("area"), heap.object(ODDBALL, &[]));
    // Each bit that says what a scope holds: the words behind are of other types then.
    for bit in [10, 12, 14] {
        let flags = if bit == 12 {
            NAMED & !(3 << 12)
        } else {
            NAMED ^ 1 << bit
        };
        let function = heap.function(flags, 0, name, undefined);
        assert_eq!(heap.named(function), Err(FunctionError::Unfit), "bit {bit}");
    }
    // A position beyond the source.
    let script = heap.string("x");
    let function = heap.function(NAMED, 0, name, undefined);
    let mut bytes = [0; 8];
    heap.read(function - 1 + 32, &mut bytes);
    heap.put(u64::from_le_bytes(bytes) - 1 + 8, &script.to_le_bytes());
    assert_eq!(heap.named(function), Err(FunctionError::Unfit));
}

#[test]
fn functions_of_v8_itself_are_told_apart() {
    let mut heap = Objects::default();
    let (name, undefined) = (heap.string("map"), heap.object(ODDBALL, &[]));
    let shared = heap.object(SHARED as u16, &[0, name, 0, undefined, 5, 6, 7]);
    let stamp = heap.stamp(shared);
    assert_eq!(read_function(&heap, &v8(), shared, stamp), Ok(None));
}

#[test]
fn a_string_that_holds_itself_ends() {
    let mut heap = Objects::default();
    let cons = heap.object(CONS, &[0, 0, 0]);
    heap.put(cons - 1 + 16, &cons.to_le_bytes());
    heap.put(cons - 1 + 24, &cons.to_le_bytes());
    let function = heap.function(NAMED, 0, cons, cons);
    assert_eq!(heap.named(function), Err(FunctionError::Unfit));
}

#[test]
fn lines_end_as_the_language_says() {
    let mut lines = Lines::default();
    for unit in "a\nb\r\nc\rd\u{2028}e\n\n".encode_utf16() {
        lines.pass(unit);
    }
    assert_eq!(lines.ended, 6);
}

proptest! {
    #[test]
    fn no_memory_makes_reading_panic(
        words in prop::collection::vec(
            prop_oneof![any::<u64>(), (0..64_u64).prop_map(|word| word * 8 + 1)],
            64,
        ),
        kinds in prop::collection::vec((0..64_u64, prop::sample::select(
            vec![SHARED as u16, SCRIPT, SCOPE, ODDBALL, ONE_BYTE, TWO_BYTE, CONS, THIN],
        )), 0..16),
        shared: u8,
    ) {
        let mut heap = Objects::default();
        for (index, word) in words.iter().enumerate() {
            heap.put(8 * index as u64, &word.to_le_bytes());
        }
        for (word, kind) in kinds {
            heap.put(8 * word + 12, &kind.to_le_bytes());
        }
        let shared = u64::from(shared) * 8 + 1;
        let stamp = heap.stamp(shared);
        if let Ok(Some(function)) = read_function(&heap, &v8(), shared, stamp) {
            prop_assert!(function.name.chars().count() <= MAX_NAME_CHARACTERS);
        }
    }
}
