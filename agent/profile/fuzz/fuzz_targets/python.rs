//! Any bytes as the memory of a process that runs CPython, or as the file of the interpreter: reading
//! ends, within its bounds, and gives names that are as long as they may be.
#![no_main]

use ebpf_common::python::PythonProcess;
use libfuzzer_sys::{arbitrary, fuzz_target};
use profile::python::{
    DEBUG_OFFSETS_BYTES, Layout, Memory, PythonFile, Version, check, merge, read_code,
};

#[derive(Debug, arbitrary::Arbitrary)]
enum Input<'a> {
    File(&'a [u8]),
    /// What an interpreter says of itself, and its memory.
    Told(&'a [u8], &'a [u8]),
    /// Version, stamp and memory.
    Memory(u8, u32, &'a [u8]),
    /// Native words, those of frames, kind.
    Stack(Vec<u64>, Vec<u64>, u32, bool),
}

/// Memory from address 0 on.
struct Bytes<'a>(&'a [u8]);

impl Memory for Bytes<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        let begin = usize::try_from(address).ok()?;
        into.copy_from_slice(self.0.get(begin..begin.checked_add(into.len())?)?);
        Some(())
    }
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::File(bytes) => {
            let _ = PythonFile::of_elf(bytes, "python3.9");
        }
        Input::Told(told, memory) => {
            let told = &told[..told.len().min(DEBUG_OFFSETS_BYTES)];
            if let Some(Ok(layout)) = Layout::of_debug_offsets(told) {
                read(&layout, layout.process, 0, memory);
            }
        }
        Input::Memory(minor, stamp, memory) => {
            if let Ok(layout) = Layout::of_version(Version { major: 3, minor }) {
                read(&layout, layout.process, stamp, memory);
            }
        }
        Input::Stack(native, words, kind, reached_end) => {
            let merged = merge(&native, &words, kind, reached_end, |code, _| Some(code));
            assert!(merged.user.len() <= native.len() + words.len());
        }
    }
});

fn read(layout: &Layout, process: PythonProcess, stamp: u32, memory: &[u8]) {
    let memory = Bytes(memory);
    let _ = check(&memory, layout, &process);
    if let Ok(code) = read_code(&memory, layout, 8, stamp) {
        assert!(code.at(stamp).name.chars().count() <= 1024);
    }
}
