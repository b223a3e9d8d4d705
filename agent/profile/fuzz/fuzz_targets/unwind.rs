//! Any bytes as an executable, and any bytes as the call frame information or Go's table of one that
//! is well formed otherwise, give a table within its bounds, whose every page can be searched.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use profile::unwind::{MAX_PAGES, MAX_ROWS, UnwindSections, UnwindTable};

#[derive(Debug, arbitrary::Arbitrary)]
enum Input<'a> {
    File(&'a [u8]),
    EhFrame(&'a [u8]),
    DebugFrame(&'a [u8]),
    Go(&'a [u8]),
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::File(bytes) => build(bytes),
        Input::EhFrame(bytes) => build(&executable(b".eh_frame\0", bytes)),
        Input::DebugFrame(bytes) => build(&executable(b".debug_frame\0", bytes)),
        Input::Go(bytes) => build(&executable(b".gopclntab\0", bytes)),
    }
});

fn build(bytes: &[u8]) {
    let Ok(sections) = UnwindSections::of_elf(bytes) else {
        return;
    };
    let table = UnwindTable::build(&sections);
    assert!(table.rows.len() <= MAX_ROWS && table.pages.len() <= MAX_PAGES);
    for (index, page) in table.pages.iter().enumerate() {
        assert!((1..=1024).contains(&page.count));
        let rows = &table.rows[page.first as usize..][..page.count as usize];
        assert_eq!(rows[0] >> 16, 0);
        assert!(rows.iter().all(|row| ((row & 0xffff) as usize) < table.rules.len()));
        let _ = table.rule_at(table.start.wrapping_add(index as u64 * 1024 + 1023));
    }
}

/// How a function of Go's begins, again and again: its table is believed where it does.
const CODE_BYTES: [u8; 16] = [0x49, 0x3b, 0x66, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An ELF file with 64 MiB of code at 1 MiB, of which the first 4 KiB are there, and one section.
fn executable(name: &[u8], content: &[u8]) -> Vec<u8> {
    const CODE: u64 = 1 << 20;
    let names = [b"\0", name, b".shstrtab\0"].concat();
    let code_at = 64 + 56;
    let content_at = code_at + 4096;
    let names_at = content_at + content.len();
    let sections_at = names_at + names.len();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([CODE, 64, sections_at as u64].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0; 4]);
    let sizes: [u16; 6] = [64, 56, 1, 64, 3, 2];
    file.extend(sizes.iter().flat_map(|size| size.to_le_bytes()));
    // PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let segment = [code_at as u64, CODE, CODE, 64 << 20, 64 << 20, 1];
    file.extend(segment.iter().flat_map(|word: &u64| word.to_le_bytes()));
    file.extend(CODE_BYTES.repeat(4096 / 16));
    file.extend(content);
    file.extend(&names);
    let mut section = |name: u32, kind: u32, at: usize, len: usize| {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        let words = [0, at as u64, at as u64, len as u64, 0, 1, 0];
        file.extend(words.iter().flat_map(|word: &u64| word.to_le_bytes()));
    };
    section(0, 0, 0, 0);
    section(1, 1, content_at, content.len());
    section(1 + name.len() as u32, 3, names_at, names.len());
    file
}
