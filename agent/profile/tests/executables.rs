//! The unwind rows of the executables of this machine, checked against framehop, which reads the
//! same sections each time anew: same CFA, return address and `rbp`, for each row. Where the two
//! differ, binutils' readelf has to agree with the row (framehop divides every CFA's offset by 8,
//! and takes an empty description where there are two of an address).
//!
//! By default every thirtieth file; `TELLTALE_UNWIND_FILES=all` takes all.

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ebpf_common::unwind::{
    Machine, PAGE_BYTES, Registers, StackEnd, UnwindRule, caller, cfa_kind, fp_kind, row_low,
};
use framehop::x86_64::{CacheX86_64, Reg, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder as _};
use object::{Object as _, ObjectSection as _};
use profile::unwind::{UnwindSections, UnwindTable};

/// Where executables lie.
const FOLDERS: [&str; 7] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/libexec",
    "/usr/local",
    "/opt",
    "/root",
];

/// Of how many files one is checked unless all are asked for, and up to which length.
const ONE_OF: usize = 30;
const SHORT_BYTES: u64 = 4 << 20;

/// A memory whose every word is known: no two are alike.
struct Memory;

const STACK: u64 = 0x7ffd_0000_0000;

fn word(address: u64) -> u64 {
    STACK
        + (address ^ 0x5555).wrapping_mul(0x9E37_79B9_7F4A_7C15) % 0x1000_0000 / 8 * 8
        + 0x1000_0000
}

impl Machine for Memory {
    fn word(&self, address: u64) -> Option<u64> {
        Some(word(address))
    }

    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([word(address), word(address.wrapping_add(8))])
    }

    fn register(&self, _number: u8) -> Option<u64> {
        None
    }
}

#[derive(Debug, Default)]
struct Tally {
    files: usize,
    rows: usize,
    equal: usize,
    outermost: usize,
    /// Rules that are followed and that framehop has no answer for: CFA kept in memory.
    ours_alone: usize,
    /// Rules that need a register of the interrupted function.
    registers: usize,
    unsupported: usize,
    signals: usize,
    /// Go's functions that change stacks, of which `.debug_frame` says nothing true.
    other_stacks: usize,
    rules: HashSet<UnwindRule>,
    pages: usize,
    section_bytes: usize,
    differences: Vec<Difference>,
    /// Differences where readelf says what the row says.
    settled: usize,
    unreadable: usize,
}

#[derive(Debug)]
struct Difference {
    path: PathBuf,
    pc: u64,
    rule: UnwindRule,
    text: String,
}

#[test]
fn every_row_is_what_framehop_finds() {
    let all = std::env::var("TELLTALE_UNWIND_FILES").is_ok_and(|files| files == "all");
    let mut files = executables();
    files.sort();
    let mut seen = HashSet::new();
    let mut tally = Tally::default();
    if !all {
        files.retain(|(len, _)| *len < SHORT_BYTES);
        files = files.into_iter().step_by(ONE_OF).collect();
    }
    for (_, path) in files {
        let Ok(bytes) = fs::read(&path) else {
            continue;
        };
        let Ok(sections) = UnwindSections::of_elf(&*bytes) else {
            continue;
        };
        if sections.is_empty()
            || !seen.insert(sections.content().map(<[u8]>::to_vec).collect::<Vec<_>>())
        {
            continue;
        }
        check(&path, &bytes, &sections, &mut tally);
        settle(&path, &mut tally);
    }
    for difference in tally.differences.iter().take(20) {
        println!(
            "{} {:#x}: {}",
            difference.path.display(),
            difference.pc,
            difference.text
        );
    }
    println!(
        "{} files, {} rows ({} bytes, {} pages) of {} section bytes: {} equal, {} outermost, \
         {} signal frames, {} kept in memory, {} in other registers, {} by another stack, {} unsupported; {} different \
         rules; {} functions unreadable; {} settled by readelf; {} different",
        tally.files,
        tally.rows,
        tally.rows * 4,
        tally.pages,
        tally.section_bytes,
        tally.equal,
        tally.outermost,
        tally.signals,
        tally.ours_alone,
        tally.registers,
        tally.other_stacks,
        tally.unsupported,
        tally.rules.len(),
        tally.unreadable,
        tally.settled,
        tally.differences.len(),
    );
    assert!(tally.equal > 10_000, "too few rows to tell");
    assert!(
        tally.differences.is_empty(),
        "{} rows differ",
        tally.differences.len()
    );
}

/// ELF files with their lengths, each inode once.
fn executables() -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    let mut inodes = HashSet::new();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.is_file()
                && (metadata.mode() & 0o111 != 0 || entry.path().to_string_lossy().contains(".so"))
                && inodes.insert((metadata.dev(), metadata.ino()))
            {
                found.push((metadata.len(), entry.path()));
            }
        }
    }
    found
}

fn check(path: &Path, bytes: &[u8], sections: &UnwindSections<'_>, tally: &mut Tally) {
    let table = UnwindTable::build(sections);
    let Ok(elf) = object::File::parse(bytes) else {
        return;
    };
    let section = |name: &str| {
        let section = elf.section_by_name(name)?;
        let range = section.address()..section.address() + section.size();
        Some((range, content(&section)?))
    };
    // Of Go's programs, what Go wrote: it is in `.debug_frame`, which framehop takes alone.
    let is_go = elf.section_by_name(".gopclntab").is_some();
    let (eh_frame_svma, eh_frame) = section(".eh_frame").filter(|_| !is_go).unzip();
    let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr").filter(|_| !is_go).unzip();
    // framehop takes the index where there is one, and none looks beyond it.
    let debug_frame = section(".debug_frame").map(|(_, bytes)| bytes);
    let info = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: section(".text").map(|(range, _)| range),
        got_svma: section(".got").map(|(range, _)| range),
        eh_frame_svma,
        eh_frame,
        eh_frame_hdr_svma,
        eh_frame_hdr,
        debug_frame,
        ..ExplicitModuleSectionInfo::default()
    };
    let module = Module::new(path.display().to_string(), 0..1 << 46, 0, info);
    let mut unwinder = UnwinderX86_64::new();
    unwinder.add_module(module);
    let functions = functions(&elf, is_go);
    let mut cache = CacheX86_64::<_>::new();

    tally.files += 1;
    tally.pages += table.pages.len();
    tally.section_bytes += sections.content().map(<[u8]>::len).sum::<usize>();
    tally.unreadable += table.statistics.unreadable;
    tally.rules.extend(&table.rules);
    for (index, page) in table.pages.iter().enumerate() {
        let start = table.start + index as u64 * PAGE_BYTES;
        let rows = &table.rows[page.first as usize..][..page.count as usize];
        for (at, row) in rows.iter().enumerate() {
            // The first and the last address that a row holds for.
            let first = start + u64::from(row_low(*row));
            let next = rows
                .get(at + 1)
                .map_or(PAGE_BYTES, |row| u64::from(row_low(*row)));
            for pc in [first, start + next - 1] {
                // Padding between functions belongs to the one before.
                let after = functions.partition_point(|(begin, _)| *begin <= pc);
                if after == 0 || functions[after - 1].1 <= pc {
                    continue;
                }
                compare(path, pc, is_go, &table, &unwinder, &mut cache, tally);
            }
        }
    }
}

/// What a section holds, taken apart where it is compressed (as Go's `.debug_frame` is).
fn content(section: &object::Section<'_, '_>) -> Option<Vec<u8>> {
    let data = section.data().ok()?;
    let compressed = section.compressed_file_range().ok()?;
    match compressed.format {
        object::CompressionFormat::None => Some(data.to_vec()),
        object::CompressionFormat::Zlib => {
            // Behind the header, `Elf64_Chdr`.
            let mut bytes = Vec::new();
            let mut decoder = flate2::read::ZlibDecoder::new(data.get(24..)?);
            decoder.read_to_end(&mut bytes).ok()?;
            Some(bytes)
        }
        _ => None,
    }
}

/// What `.eh_frame` and `.debug_frame` say that functions are.
fn functions(elf: &object::File<'_>, is_go: bool) -> Vec<(u64, u64)> {
    let mut functions = Vec::new();
    let section = |name: &str| {
        let section = elf.section_by_name(name)?;
        Some((section.address(), content(&section)?))
    };
    if let Some((address, bytes)) = section(".eh_frame").filter(|_| !is_go) {
        let bases = gimli::BaseAddresses::default().set_eh_frame(address);
        let eh_frame = gimli::EhFrame::new(&bytes, gimli::LittleEndian);
        list(&eh_frame, &bases, &mut functions);
    }
    if let Some((_, bytes)) = section(".debug_frame") {
        let mut debug_frame = gimli::DebugFrame::new(&bytes, gimli::LittleEndian);
        debug_frame.set_address_size(8);
        list(
            &debug_frame,
            &gimli::BaseAddresses::default(),
            &mut functions,
        );
    }
    functions.sort_unstable();
    functions
}

fn list<'data, S>(section: &S, bases: &gimli::BaseAddresses, functions: &mut Vec<(u64, u64)>)
where
    S: gimli::UnwindSection<gimli::EndianSlice<'data, gimli::LittleEndian>>,
{
    let mut entries = section.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        let gimli::CieOrFde::Fde(partial) = entry else {
            continue;
        };
        if let Ok(entry) = partial.parse(S::cie_from_offset) {
            functions.push((entry.initial_address(), entry.end_address()));
        }
    }
}

fn compare(
    path: &Path,
    pc: u64,
    is_go: bool,
    table: &UnwindTable,
    unwinder: &UnwinderX86_64<Vec<u8>>,
    cache: &mut CacheX86_64<framehop::MayAllocateDuringUnwind>,
    tally: &mut Tally,
) {
    let rule = table.rule_at(pc);
    let frame = Registers {
        pc,
        sp: STACK,
        fp: STACK + 0x8000,
    };
    // Code without rows: framehop guesses in ways of its own.
    if rule.cfa_kind() == cfa_kind::NONE {
        return;
    }
    tally.rows += 1;
    let ours = caller(rule, frame, &Memory);
    let mut registers = UnwindRegsX86_64::new(pc, frame.sp, frame.fp);
    let theirs = unwinder.unwind_frame(
        FrameAddress::from_instruction_pointer(pc),
        &mut registers,
        cache,
        &mut |address| Ok(word(address)),
    );
    match (rule.cfa_kind(), ours, theirs) {
        (cfa_kind::OUTERMOST, Err(StackEnd::Outermost), Ok(None)) => tally.outermost += 1,
        (cfa_kind::SIGNAL, Ok(_), _) => tally.signals += 1,
        (cfa_kind::OTHER_STACK, ..) => tally.other_stacks += 1,
        // Go's `.debug_frame` does not say where `rbp` is, and knows of no stack's end.
        (_, Ok(caller), Ok(Some(pc)))
            if is_go && (caller.pc, caller.sp) == (pc, registers.sp()) =>
        {
            tally.equal += 1;
        }
        (cfa_kind::OUTERMOST, Err(StackEnd::Outermost), _) if is_go => tally.outermost += 1,
        (cfa_kind::SP_SLOT | cfa_kind::FP_SLOT, Ok(_), _) => tally.ours_alone += 1,
        (cfa_kind::REGISTER, Err(_), _) => tally.registers += 1,
        (cfa_kind::UNSUPPORTED, ..) => tally.unsupported += 1,
        (_, Ok(caller), Ok(Some(pc)))
            if caller
                == (Registers {
                    pc,
                    sp: registers.sp(),
                    fp: registers.get(Reg::RBP),
                }) =>
        {
            tally.equal += 1;
        }
        (_, ours, theirs) => tally.differences.push(Difference {
            path: path.to_owned(),
            pc,
            rule,
            text: format!("{rule:?} gives {ours:x?}, framehop {theirs:x?} {registers:?}"),
        }),
    }
}

/// Takes out the differences of a file of which readelf says the same as the row.
fn settle(path: &Path, tally: &mut Tally) {
    let (mut open, rest): (Vec<_>, Vec<_>) = tally
        .differences
        .drain(..)
        .partition(|difference| difference.path == path);
    tally.differences = rest;
    if open.is_empty() {
        return;
    }
    let Ok(output) = Command::new("readelf").arg("-wF").arg(path).output() else {
        tally.differences.extend(open);
        return;
    };
    // `LOC CFA rbx rbp … ra`: columns that a function does not need are left out.
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rows: Vec<(u64, String, String)> = Vec::new();
    let mut rbp = None;
    for line in text.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields.as_slice() {
            ["LOC", columns @ ..] => rbp = columns.iter().position(|column| *column == "rbp"),
            [location, cfa, ..] if location.len() == 16 && !line.contains('=') => {
                let Ok(location) = u64::from_str_radix(location, 16) else {
                    continue;
                };
                let saved = rbp.and_then(|at| fields.get(at + 1)).unwrap_or(&"u");
                rows.push((location, (*cfa).to_owned(), (*saved).to_owned()));
            }
            _ => {}
        }
    }
    rows.sort();
    let before = open.len();
    open.retain(|difference| {
        let after = rows.partition_point(|(location, ..)| *location <= difference.pc);
        let Some((location, ..)) = after.checked_sub(1).map(|at| &rows[at]) else {
            return true;
        };
        let expected = in_words(difference.rule);
        let mut same = rows[..after]
            .iter()
            .rev()
            .take_while(|row| row.0 == *location);
        !same.any(|(_, cfa, saved)| (cfa.clone(), saved.clone()) == expected)
    });
    tally.settled += before - open.len();
    tally.differences.extend(open);
}

/// A rule as readelf writes it.
fn in_words(rule: UnwindRule) -> (String, String) {
    let cfa = match rule.cfa_kind() {
        cfa_kind::SP => format!("rsp{:+}", rule.cfa_offset),
        cfa_kind::FP => format!("rbp{:+}", rule.cfa_offset),
        _ => "exp".to_owned(),
    };
    let saved = match rule.fp_kind() {
        fp_kind::SAME => "u".to_owned(),
        fp_kind::AT_CFA => format!("c{:+}", rule.fp_offset),
        _ => "exp".to_owned(),
    };
    (cfa, saved)
}
