//! How the sampler finds callers: rules, rows, pages, mappings, and one step from a frame to its
//! caller. The step is here so that what the kernel runs is what the agent's tests check.
//!
//! ```text
//! pid ─▶ UnwindProcess ─▶ Mapping ─▶ page of 1 KiB ─▶ rows (low address bits, rule) ─▶ UnwindRule
//! ```
//!
//! x86-64 alone: three registers are followed, `rip`, `rsp` and `rbp`. Others keep a frame's
//! address only in prologues, where the interrupted function's own registers are at hand.

/// A page of code that has a range of rows of its own, as a power of two: with 1 KiB, rows of
/// usual code are found in seven steps, and the pages' index takes a sixteenth of what rows take.
pub const PAGE_SHIFT: u32 = 10;

/// Bytes of such a page.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;

/// Rows in an element of a chunk of `UNWIND_ROWS`: one page has no more.
pub const BLOCK_ROWS: usize = 1024;

/// Blocks of a chunk: 256 KiB, which the kernel has no memory for until a block of it is needed.
pub const CHUNK_BLOCKS: usize = 64;

/// Blocks of all chunks together: 32 MiB, 8 million rows.
pub const MAX_BLOCKS: usize = 128 * CHUNK_BLOCKS;

/// Pages of a chunk of `UNWIND_PAGES`: 128 KiB, for 16 MiB of code.
pub const CHUNK_PAGES: usize = 16 * 1024;

/// Pages of all chunks together: 8 MiB, for 1 GiB of code.
pub const MAX_PAGES: usize = 64 * CHUNK_PAGES;

/// Elements of `UNWIND_RULES`; a row has 16 bits for its rule.
pub const MAX_RULES: usize = 32 * 1024;

/// Elements of `UNWIND_MAPPINGS`.
pub const MAX_MAPPINGS: usize = 32 * 1024;

/// Elements of `UNWIND_PROCESSES`.
pub const MAX_PROCESSES: usize = 4096;

/// Most executable ranges of one process, so that the search ends after a known number of steps.
pub const MAX_PROCESS_MAPPINGS: usize = 4096;

/// Rules of addresses that each CPU remembers: a power of two.
pub const KNOWN_RULES: usize = 1024;

/// Rows of one block.
pub type RowBlock = [u32; BLOCK_ROWS];

/// How to find a frame's caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct UnwindRule {
    /// Offset of the canonical frame address (CFA), or of where it is kept; bytes.
    pub cfa_offset: i32,
    /// See [`fp_kind`].
    pub fp_offset: i16,
    /// A value of [`cfa_kind`] below, one of [`fp_kind`] in the upper four bits.
    pub kinds: u8,
    /// What the kind of CFA needs beside its offset.
    pub extra: u8,
}

/// How the CFA is found. The return address stands below it but for the kinds that say otherwise.
pub mod cfa_kind {
    /// Nothing is known about this code: frame pointers are tried.
    pub const NONE: u8 = 0;
    /// `rsp + cfa_offset`
    pub const SP: u8 = 1;
    /// `rbp + cfa_offset`
    pub const FP: u8 = 2;
    /// The word at `rsp + cfa_offset`, plus `extra` as a signed number.
    pub const SP_SLOT: u8 = 3;
    /// The word at `rbp + cfa_offset`, plus `extra` as a signed number.
    pub const FP_SLOT: u8 = 4;
    /// A lazily bound PLT: `rsp + cfa_offset`, and 8 more once `rip & 15` is at least `extra`.
    pub const PLT: u8 = 5;
    /// Register `extra` (DWARF's number) plus `cfa_offset`, in an interrupted function alone.
    pub const REGISTER: u8 = 6;
    /// The return from a signal handler: the interrupted registers are in the `ucontext` at `rsp`.
    pub const SIGNAL: u8 = 7;
    /// There is no caller: a thread begins here.
    pub const OUTERMOST: u8 = 8;
    /// There is one, found in a way that is not followed.
    pub const UNSUPPORTED: u8 = 9;
    /// `rbp` was left as it was while the stack was changed for another, which may lie anywhere:
    /// the caller is that of the frame that `rbp` belongs to.
    pub const OTHER_STACK: u8 = 10;
}

/// Where the caller's `rbp` is.
pub mod fp_kind {
    /// Still in the register.
    pub const SAME: u8 = 0;
    /// At CFA + `fp_offset`.
    pub const AT_CFA: u8 = 1;
    /// At `rbp` + `fp_offset`.
    pub const AT_FP: u8 = 2;
}

impl UnwindRule {
    /// A rule of the two kinds.
    #[must_use]
    pub const fn new(cfa: u8, cfa_offset: i32, fp: u8, fp_offset: i16, extra: u8) -> Self {
        Self {
            cfa_offset,
            fp_offset,
            kinds: cfa | fp << 4,
            extra,
        }
    }

    /// A value of [`cfa_kind`].
    #[must_use]
    pub const fn cfa_kind(self) -> u8 {
        self.kinds & 15
    }

    /// A value of [`fp_kind`].
    #[must_use]
    pub const fn fp_kind(self) -> u8 {
        self.kinds >> 4
    }
}

/// A row: from this address of its page on, this rule holds.
#[must_use]
pub const fn row(low: u16, rule: u16) -> u32 {
    (low as u32) << 16 | rule as u32
}

/// Index into `UNWIND_RULES` of a row's rule.
#[must_use]
pub const fn row_rule(row: u32) -> u32 {
    row & 0xffff
}

/// The low bits of a row's first address.
#[must_use]
pub const fn row_low(row: u32) -> u32 {
    row >> 16
}

/// An element of a chunk of `UNWIND_PAGES`: the first row, counted over all blocks, and how many
/// there are (1 to [`BLOCK_ROWS`]). All of them lie in one block.
#[must_use]
pub const fn page(first_row: u32, rows: u32) -> u64 {
    (first_row as u64) << 10 | ((rows - 1) & 1023) as u64
}

/// Index of a page's block.
#[must_use]
pub const fn page_block(page: u64) -> u32 {
    (page >> 20) as u32
}

/// Index of a page's first row in its block.
#[must_use]
pub const fn page_first(page: u64) -> u32 {
    (page >> 10) as u32 & 1023
}

/// Index of a page's last row, counted from its first.
#[must_use]
pub const fn page_last(page: u64) -> u32 {
    page as u32 & 1023
}

/// An executable range of a process. A process's ranges stand in order of their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UnwindMapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// What to subtract from an address to count from the first byte of the file's first page.
    pub bias: u64,
    /// The file's first page in `UNWIND_PAGES`.
    pub first_page: u32,
    /// Its pages; 0 where it has no rows: frame pointers are tried.
    pub pages: u32,
}

/// What is known of a process, by its pid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UnwindProcess {
    /// Tells an exec: see `SampleKey::image`.
    pub image: u64,
    /// Its first range in `UNWIND_MAPPINGS`.
    pub first_mapping: u32,
    /// Its ranges.
    pub mappings: u32,
    /// Its element in `PYTHON_PROCESSES`; 0 where it does not run CPython, or of a kind that is not
    /// known.
    pub python: u32,
    /// Its element in `V8_LAYOUTS`; 0 where it does not run V8, or of a kind that is not known.
    pub v8: u32,
    /// Another one for other ranges, so that what was found for an address can be remembered by it; not
    /// 0.
    pub version: u32,
    /// Without a meaning.
    pub padding: u32,
}

/// Why the walk over a user stack ended: bits 8 to 15 of `SampleKey::flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum StackEnd {
    /// There was none to walk.
    #[default]
    NoUserStack = 0,
    /// The rules say that there is no caller.
    Outermost = 1,
    /// A frame pointer or return address of zero.
    Zero = 2,
    /// The return address lies in no executable range that is known.
    NoCode = 3,
    /// The stack could not be read: not in memory at that moment, or not a stack.
    ReadFault = 4,
    /// The rule is none that is followed.
    Unsupported = 5,
    /// The caller's stack pointer would not be above the callee's.
    NoProgress = 6,
    /// As many frames as are captured.
    Depth = 7,
}

/// No user address is at or above this: 56 bits with five levels of page tables, 47 with four
/// (Documentation/arch/x86/x86_64/mm.rst).
pub const USER_END: u64 = 1 << 56;

impl StackEnd {
    /// Where the end stands in the flags.
    pub const SHIFT: u32 = 8;

    /// The end that flags hold; one that no program writes reads as [`Self::NoProgress`].
    #[must_use]
    pub const fn of_flags(flags: u32) -> Self {
        match (flags >> Self::SHIFT) & 0xff {
            0 => Self::NoUserStack,
            1 => Self::Outermost,
            2 => Self::Zero,
            3 => Self::NoCode,
            4 => Self::ReadFault,
            5 => Self::Unsupported,
            7 => Self::Depth,
            _ => Self::NoProgress,
        }
    }
}

/// The registers of a frame that are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// `rip`: the interrupted instruction of a leaf, the return address of a caller.
    pub pc: u64,
    /// `rsp`
    pub sp: u64,
    /// `rbp`
    pub fp: u64,
}

/// A process's memory and the registers of its interrupted function.
pub trait Machine {
    /// The word at `address`.
    fn word(&self, address: u64) -> Option<u64>;
    /// The words at `address` and behind it.
    fn pair(&self, address: u64) -> Option<[u64; 2]>;
    /// A register by DWARF's number, while the interrupted function is looked at.
    fn register(&self, number: u8) -> Option<u64>;
}

/// Offsets in x86-64's `ucontext_t` (`arch/x86/include/uapi/asm/sigcontext.h`).
const UCONTEXT_RBP: u64 = 120;
const UCONTEXT_RSP: u64 = 160;
const UCONTEXT_RIP: u64 = 168;

/// The caller's registers, by the frame's rule.
///
/// # Errors
/// Why there are none.
#[inline(always)]
pub fn caller(
    rule: UnwindRule,
    frame: Registers,
    machine: &impl Machine,
) -> Result<Registers, StackEnd> {
    let offset = rule.cfa_offset as i64 as u64;
    let kind = rule.cfa_kind();
    if kind == cfa_kind::SIGNAL {
        return interrupted(frame, machine);
    }
    if kind == cfa_kind::OTHER_STACK {
        return caller_by_frame_pointer(frame, machine);
    }
    let cfa = match kind {
        cfa_kind::SP => frame.sp.wrapping_add(offset),
        cfa_kind::FP => frame.fp.wrapping_add(offset),
        cfa_kind::SP_SLOT | cfa_kind::FP_SLOT => {
            let base = if kind == cfa_kind::SP_SLOT {
                frame.sp
            } else {
                frame.fp
            };
            let word = machine.word(base.wrapping_add(offset));
            word.ok_or(StackEnd::ReadFault)?
                .wrapping_add(rule.extra as i8 as i64 as u64)
        }
        cfa_kind::PLT => {
            let pushed = frame.pc & 15 >= u64::from(rule.extra);
            frame
                .sp
                .wrapping_add(offset)
                .wrapping_add(u64::from(pushed) * 8)
        }
        cfa_kind::REGISTER => {
            let register = machine.register(rule.extra);
            register.ok_or(StackEnd::Unsupported)?.wrapping_add(offset)
        }
        cfa_kind::OUTERMOST => return Err(StackEnd::Outermost),
        _ => return Err(StackEnd::Unsupported),
    };
    if cfa <= frame.sp {
        return Err(StackEnd::NoProgress);
    }
    // Where `rbp` is saved at all, it is usually just below the return address.
    let below = machine
        .pair(cfa.wrapping_sub(16))
        .ok_or(StackEnd::ReadFault)?;
    let fp_offset = rule.fp_offset as i64 as u64;
    let fp = match rule.fp_kind() {
        fp_kind::SAME => frame.fp,
        fp_kind::AT_CFA if rule.fp_offset == -16 => below[0],
        fp_kind::AT_CFA => machine
            .word(cfa.wrapping_add(fp_offset))
            .ok_or(StackEnd::ReadFault)?,
        _ => machine
            .word(frame.fp.wrapping_add(fp_offset))
            .ok_or(StackEnd::ReadFault)?,
    };
    Ok(Registers {
        pc: below[1],
        sp: cfa,
        fp,
    })
}

/// The registers that a signal interrupted, from what the kernel left on the stack.
///
/// # Errors
/// Where that cannot be read.
#[inline(always)]
pub fn interrupted(frame: Registers, machine: &impl Machine) -> Result<Registers, StackEnd> {
    let read = |offset: u64| {
        machine
            .word(frame.sp.wrapping_add(offset))
            .ok_or(StackEnd::ReadFault)
    };
    Ok(Registers {
        fp: read(UCONTEXT_RBP)?,
        sp: read(UCONTEXT_RSP)?,
        pc: read(UCONTEXT_RIP)?,
    })
}

/// The caller's registers, by the frame pointer: what a compiler that keeps it pushes first.
///
/// # Errors
/// Why there are none.
#[inline(always)]
pub fn caller_by_frame_pointer(
    frame: Registers,
    machine: &impl Machine,
) -> Result<Registers, StackEnd> {
    if frame.fp == 0 {
        return Err(StackEnd::Zero);
    }
    let [fp, pc] = machine.pair(frame.fp).ok_or(StackEnd::ReadFault)?;
    if fp == frame.fp {
        return Err(StackEnd::NoProgress);
    }
    Ok(Registers {
        pc,
        sp: frame.fp.wrapping_add(16),
        fp,
    })
}

const _: () = {
    assert!(size_of::<UnwindRule>() == 8);
    assert!(size_of::<UnwindMapping>() == 32);
    assert!(size_of::<UnwindProcess>() == 32);
    assert!(MAX_BLOCKS * BLOCK_ROWS == 1 << 23);
    assert!(BLOCK_ROWS as u64 >= PAGE_BYTES);
    assert!(KNOWN_RULES.is_power_of_two());
};

// SAFETY: plain integers without padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for UnwindRule {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for UnwindMapping {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for UnwindProcess {}
