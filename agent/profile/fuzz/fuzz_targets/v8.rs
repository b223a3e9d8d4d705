//! Any bytes as the memory of a process that runs V8, or as the file that V8 is in: reading ends,
//! within its bounds, and gives names that are as long as they may be.
//!
//! The first byte tells which: one of the versions that are known for memory from address 0 on, whose
//! function is at the address in the next two bytes; else a file.
#![no_main]

use std::sync::LazyLock;

use ebpf_common::v8::{SHARED_WORDS, TAG_MASK, stamp};
use libfuzzer_sys::fuzz_target;
use profile::python::Memory;
use profile::v8::{V8, read_function};

const VERSIONS: [(i32, i32); 4] = [(10, 2), (11, 3), (12, 4), (13, 6)];

/// What Node 20 exports, as far as it is asked for.
const CONSTANTS: [(&str, i32); 32] = [
    ("TaggedSize", 8),
    ("SmiTag", 0),
    ("SmiShiftSize", 31),
    ("HeapObjectTag", 1),
    ("HeapObjectTagMask", 3),
    ("class_HeapObject__map__Map", 0),
    ("SeqStringTag", 0),
    ("scopeinfo_idx_ncontextlocals", 2),
    ("off_fp_function", -16),
    ("off_fp_context", -8),
    ("class_SharedFunctionInfo__name_or_scope_info__Object", 16),
    (
        "class_SharedFunctionInfo__script_or_debug_info__HeapObject",
        32,
    ),
    ("class_SharedFunctionInfo__length__int16_t", 40),
    ("class_SharedFunctionInfo__flags__int", 48),
    ("class_JSFunction__shared__SharedFunctionInfo", 24),
    ("class_Map__instance_type__uint16_t", 12),
    ("type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE", 262),
    ("type_Script__SCRIPT_TYPE", 167),
    ("class_Script__name__Object", 16),
    ("class_Script__source__Object", 8),
    ("type_ScopeInfo__SCOPE_INFO_TYPE", 261),
    ("type_Oddball__ODDBALL_TYPE", 131),
    ("IsNotStringMask", -128),
    ("StringRepresentationMask", 7),
    ("ConsStringTag", 1),
    ("ThinStringTag", 5),
    ("OneByteStringTag", 8),
    ("class_String__length__int32_t", 12),
    ("class_SeqOneByteString__chars__char", 16),
    ("class_ConsString__first__String", 16),
    ("class_ConsString__second__String", 24),
    ("class_ThinString__actual__String", 16),
];

static KNOWN: LazyLock<[V8; 4]> = LazyLock::new(|| {
    VERSIONS.map(|version| {
        let file = file(version);
        let v8 = V8::of_elf(&*file).expect("it has constants");
        v8.expect("its version is known")
    })
});

/// Memory from address 0 on.
struct Bytes<'a>(&'a [u8]);

impl Memory for Bytes<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let begin = usize::try_from(address).ok()?;
        into.copy_from_slice(self.0.get(begin..begin.checked_add(into.len())?)?);
        Some(())
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((which, rest)) = input.split_first() else {
        return;
    };
    let Some(v8) = KNOWN.get(usize::from(*which)) else {
        let _ = V8::of_elf(rest);
        return;
    };
    let Some((shared, memory)) = rest.split_first_chunk() else {
        return;
    };
    let shared = u64::from(u16::from_le_bytes(*shared));
    let memory = Bytes(memory);
    // Its own stamp: another one is refused at once.
    let mut bytes = [0; SHARED_WORDS * 8];
    if memory.read(shared & !TAG_MASK, &mut bytes).is_none() {
        let _ = read_function(&memory, v8, shared, 0);
        return;
    }
    let mut words = [0; SHARED_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    let expected = stamp(&words, &v8.layout);
    if let Ok(Some(function)) = read_function(&memory, v8, shared, expected) {
        assert!(function.name.chars().count() <= 512);
        assert!(function.file.is_none_or(|file| file.chars().count() <= 512));
    }
});

/// An ELF file with these constants and this version: a header, symbols, their names and values, and
/// the sections that say where these are.
fn file((major, minor): (i32, i32)) -> Vec<u8> {
    let first_local = if major == 13 { 5 } else { 3 };
    let named = CONSTANTS.map(|(name, value)| (format!("v8dbg_{name}"), value));
    let further = [
        ("v8dbg_scopeinfo_idx_first_vars".to_owned(), first_local),
        ("_ZN2v88internal7Version6major_E".to_owned(), major),
        ("_ZN2v88internal7Version6minor_E".to_owned(), minor),
    ];
    const VALUES_ADDRESS: u64 = 0x1000;
    let (mut symbols, mut names, mut values) = (vec![0; 24], vec![0], Vec::new());
    for (name, value) in named.into_iter().chain(further) {
        symbols.extend((names.len() as u32).to_le_bytes());
        // A global object in section 3.
        symbols.extend([0x11, 0, 3, 0]);
        symbols.extend((VALUES_ADDRESS + values.len() as u64).to_le_bytes());
        symbols.extend(4_u64.to_le_bytes());
        names.extend(name.bytes().chain([0]));
        values.extend(value.to_le_bytes());
    }
    const HEADER_BYTES: u64 = 64;
    let mut at = HEADER_BYTES;
    // Name, type, flags, address, offset, bytes, link, info, alignment, bytes of an entry.
    let mut section = |kind: u32, address: u64, bytes: &[u8], link: u32, entry: u64| {
        let mut header = Vec::new();
        header.extend(0_u32.to_le_bytes());
        header.extend(kind.to_le_bytes());
        for word in [0, address, at, bytes.len() as u64] {
            header.extend(word.to_le_bytes());
        }
        header.extend(link.to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        header.extend(1_u64.to_le_bytes());
        header.extend(entry.to_le_bytes());
        at += bytes.len() as u64;
        header
    };
    const DYNSYM: u32 = 11;
    const STRTAB: u32 = 3;
    const PROGBITS: u32 = 1;
    let headers = [
        vec![0; 64],
        section(DYNSYM, 0, &symbols, 2, 24),
        section(STRTAB, 0, &names, 0, 0),
        section(PROGBITS, VALUES_ADDRESS, &values, 0, 0),
    ];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // A shared library for x86-64.
    file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0, 0, at] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    // Bytes of this header; of a segment's, of which there are none; of a section's, of which there
    // are four; names are in the third, not that any section had one.
    for half in [HEADER_BYTES as u16, 56, 0, 64, 4, 2] {
        file.extend(half.to_le_bytes());
    }
    for part in [symbols, names, values].into_iter().chain(headers) {
        file.extend(part);
    }
    file
}
