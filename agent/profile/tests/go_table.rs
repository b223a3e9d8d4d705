//! Go's own table as read here, against Go's tools: names, files and lines of addresses all over a
//! program, with symbols and without, position-independent or not.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use object::read::elf::ElfFile64;
use profile::go::GoTable;
use profile::unwind::{MAX_PAGES, MAX_ROWS, UnwindSections, UnwindTable};
use proptest::prelude::*;

/// Addresses that are asked for.
const QUESTIONS: usize = 5000;

/// Builds the program of the workloads with `flags`.
fn build(folder: &Path, flags: &[&str]) -> PathBuf {
    let binary = folder.join("split");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/workloads/split.go");
    let mut command = Command::new("go");
    command
        .arg("build")
        .args(flags)
        .arg("-o")
        .arg(&binary)
        .arg(source);
    let output = command.output().expect("go is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    binary
}

/// Function and `FILE:LINE` of each address, by `go tool addr2line`.
fn expected(binary: &Path, addresses: &[u64]) -> Vec<(String, String)> {
    let mut command = Command::new("go");
    command.args(["tool", "addr2line"]).arg(binary);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("go runs");
    let mut input = child.stdin.take().expect("it is piped");
    let questions: String = addresses
        .iter()
        .map(|address| format!("{address:#x}\n"))
        .collect();
    let writer = std::thread::spawn(move || input.write_all(questions.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    let written = writer.join().expect("it does not panic");
    written.expect("all questions are read");
    let text = String::from_utf8(output.stdout).expect("names in UTF-8");
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let (pairs, _) = lines.as_chunks();
    pairs
        .iter()
        .map(|[name, place]| (name.clone(), place.clone()))
        .collect()
}

/// Function and `FILE:LINE` of an address, in the words of `go tool addr2line`.
fn found(table: &GoTable<'_>, address: u64) -> (String, String) {
    let function = table.find(address);
    let source = function.and_then(|function| function.source_at(address));
    (
        function
            .and_then(|function| function.name())
            .unwrap_or("?")
            .to_owned(),
        source.map_or("?:0".to_owned(), |(file, line)| format!("{file}:{line}")),
    )
}

#[test]
fn names_files_and_lines_are_those_of_go_itself() {
    for flags in [
        &[][..],
        &["-ldflags=-s -w"],
        &["-buildmode=pie"],
        &["-trimpath"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let binary = build(folder.path(), flags);
        let bytes = std::fs::read(&binary).unwrap();
        let elf = ElfFile64::parse(&*bytes).unwrap();
        let table = GoTable::of_elf(&elf).expect("a table");
        assert!(table.len() > 1000);
        let (first, last) = (table.get(0).unwrap(), table.get(table.len() - 1).unwrap());
        let step = usize::try_from(last.end - first.start).unwrap() / QUESTIONS;
        let addresses: Vec<_> = (first.start..last.end).step_by(step).collect();
        let expected = expected(&binary, &addresses);
        assert_eq!(expected.len(), addresses.len());
        let mut told = 0;
        for (address, expected) in addresses.iter().zip(expected) {
            // Padding belongs to no line.
            if expected.1.ends_with(":-1") || expected.0 == "?" {
                continue;
            }
            told += 1;
            assert_eq!(found(&table, *address), expected, "{flags:?} {address:#x}");
        }
        assert!(
            told * 10 > addresses.len() * 9,
            "{told} of {} addresses",
            addresses.len()
        );
    }
}

/// A stripped program, and where its table is.
static PROGRAM: LazyLock<(Vec<u8>, std::ops::Range<usize>)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = std::fs::read(build(folder.path(), &["-ldflags=-s -w"])).expect("a program");
    let elf = ElfFile64::<object::Endianness>::parse(&*bytes).expect("an ELF file");
    let table = GoTable::of_elf(&elf).expect("a table").bytes();
    let start = table.as_ptr() as usize - bytes.as_ptr() as usize;
    let range = start..start + table.len();
    (bytes, range)
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_tables_are_read_within_bounds(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..400),
        in_header in any::<bool>(),
    ) {
        let (bytes, range) = &*PROGRAM;
        let mut bytes = bytes.clone();
        let range = if in_header { range.start..range.start + 72 } else { range.clone() };
        for (index, byte) in damage {
            bytes[range.start + index.index(range.len())] = byte;
        }
        let begin = Instant::now();
        let sections = UnwindSections::of_elf(&*bytes).unwrap();
        let built = UnwindTable::build(&sections);
        prop_assert!(built.rows.len() <= MAX_ROWS && built.pages.len() <= MAX_PAGES);
        let elf = ElfFile64::<object::Endianness>::parse(&*bytes).unwrap();
        if let Some(table) = GoTable::of_elf(&elf) {
            for function in (0..table.len()).filter_map(|index| table.get(index)).take(2000) {
                let _ = (function.name(), function.source_at(function.start + 4));
            }
        }
        prop_assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
