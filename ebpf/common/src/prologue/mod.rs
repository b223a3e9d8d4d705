//! Code that keeps frame pointers, where it has no frame: from its entry to `mov %rsp,%rbp`, and from
//! `pop %rbp` to its return.
//!
//! Rows tell of this exactly. What a runtime compiles has none, and by the frame pointer alone the
//! function's caller would be left out. So the instructions at an interrupted address are looked at: those of
//! V8 (10.2 to 13.6), of HotSpot (17) and of compilers of C.

use crate::unwind::{Machine, Registers, StackEnd};

/// Words of [`Setup::at`]'s code.
pub const CODE_WORDS: usize = 9;

/// How many bytes of them lie before the address.
pub const BYTES_BEFORE: u64 = 16;

/// Index of the word at the address.
const HERE: usize = BYTES_BEFORE as usize / 8;

/// How far before `push %rbp` a function may be entered, in words. V8 first asks in 14 bytes whether its code
/// is still wanted, and counts calls of its baseline code in 40; HotSpot touches the stack in 7.
const ENTRY_WORDS: usize = 6;

/// Where the return address is, and whose frame pointer is in `rbp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// Above the frame pointer, which is the function's own.
    Done,
    /// As [`Self::Done`]; all that the function had on the stack is below the stack pointer, and nothing
    /// was written there since.
    Leaving,
    /// On top of the stack; the caller's.
    Bare,
    /// As [`Self::Bare`]; the function's frame is right below, where nothing was written since.
    Left,
    /// As [`Self::Bare`] if that is an address of code: a function seems to begin here.
    Entry,
    /// As [`Self::Entry`], and the same for the caller, whose frame this sets up: V8's baseline code calls
    /// for it.
    ForCaller,
    /// Above the caller's frame pointer, so many bytes above the stack pointer. `rbp` is the caller's still,
    /// or the stack pointer.
    Saved(u8),
    /// In a register, by DWARF's number; the caller's.
    InRegister(u8),
}

impl Setup {
    /// What the instructions tell, from [`BYTES_BEFORE`] bytes before the interrupted one on.
    #[inline(always)]
    #[must_use]
    pub fn at(code: &[u64; CODE_WORDS]) -> Self {
        macro_rules! is {
            ($($pattern:literal),+) => {
                $({ const PATTERN: Pattern = Pattern::new($pattern); PATTERN.is_at(code) })||+
            };
        }
        let byte = |index: usize| (code[HERE] >> (8 * index)) as u8;

        // push %rbp | mov %rsp,%rbp
        if is!("55 | 48 89 e5", "55 | 48 8b ec") {
            return Self::Saved(0);
        }
        // HotSpot's small functions: sub $N,%rsp | mov %rbp,M(%rsp) | mov %rsp,%rbp | add $M,%rbp
        if is!("| 48 81 ec .. .. .. .. 48 89 6c 24") {
            return Self::Bare;
        }
        if is!("| 48 89 6c 24 .. 48 8b ec") {
            return Self::Saved(byte(4));
        }
        if is!("| 48 8b ec 48 83 c5 ..") {
            return Self::Saved(byte(6));
        }
        if is!("48 8b ec | 48 83 c5 ..") {
            return Self::Saved(byte(3));
        }
        // V8: pop %rbp | cmp $N,%rcx | jg 1f | ret $M, and the same of Maglev, by %r8
        if is!(
            "| 5d 48 83 f9 .. 7f 03 c2",
            "| 5d 49 83 f8 .. 0f 8f 03 00 00 00 c2"
        ) {
            return Self::Leaving;
        }
        if is!("| 48 83 f9 .. 7f 03 c2", "| 7f 03 c2", "7f 03 | c2") {
            return Self::Left;
        }
        if is!(
            "| 49 83 f8 .. 0f 8f 03 00 00 00 c2",
            "| 0f 8f 03 00 00 00 c2",
            "0f 8f 03 00 00 00 | c2"
        ) {
            return Self::Left;
        }
        // 1: pop %r10 | lea (%rsp,%rcx,8),%rsp | push %r10 | ret
        if is!(
            "| 41 5a 48 8d 24 cc 41 52 c3",
            "| 41 59 4a 8d 24 c4 41 51 c3"
        ) {
            return Self::Left;
        }
        if is!("| 48 8d 24 cc 41 52 c3", "| 41 52 c3") {
            return Self::InRegister(10);
        }
        if is!("| 4a 8d 24 c4 41 51 c3", "| 41 51 c3") {
            return Self::InRegister(9);
        }
        // ret, and as branch predictors like it
        if is!("| c3", "| c2", "| f2 c3", "| f3 c3") {
            return Self::Bare;
        }
        // V8's baseline code: mov $N,%ebx | movabs $BYTECODE,%r12 | call, for a frame
        if is!(
            "| bb .. .. .. .. 49 bc .. .. .. .. .. .. .. .. e8",
            "bb .. .. .. .. | 49 bc .. .. .. .. .. .. .. .. e8",
            "bb .. .. .. .. 49 bc .. .. .. .. .. .. .. .. | e8"
        ) {
            return Self::Entry;
        }
        // V8: mov N(%r13),%rax | ret
        // HotSpot: cmp N(%r15),%rsp | ja 1f | ret
        if is!(
            "| 49 8b 85 .. .. .. .. c3",
            "| 49 3b a7 .. .. .. .. 0f 87 .. .. .. .. c3",
            "| 0f 87 .. .. .. .. c3"
        ) {
            return Self::Bare;
        }
        Self::entry(code)
    }

    /// [`Self::Entry`] or [`Self::ForCaller`] where a function seems to begin. Eight bytes at a time, without
    /// branches, of which the verifier would follow both sides, of each.
    #[inline(always)]
    fn entry(code: &[u64; CODE_WORDS]) -> Self {
        let (mut entries, mut for_callers) = (0, 0);
        let mut index = HERE;
        while index < HERE + ENTRY_WORDS {
            let [last, this, next] = [index - 1, index, index + 1].map(|at| word(code, at));
            let behind = |bytes: u32| (this >> (8 * bytes)) | (next << (64 - 8 * bytes));
            let [second, third, fourth] = [1, 2, 3].map(behind);
            // push %rbp | mov %rsp,%rbp
            let mov = (bytes_like(third, 0x89) & bytes_like(fourth, 0xe5))
                | (bytes_like(third, 0x8b) & bytes_like(fourth, 0xec));
            let prologues = bytes_like(this, 0x55) & bytes_like(second, 0x48) & mov;
            // What functions end with (ret), and what is between two (nop, int3, hlt): there begins another.
            let before = (this << 8) | (last >> 56);
            let ends = bytes_like(before, 0xc3)
                | bytes_like(before, 0x90)
                | bytes_like(before, 0xcc)
                | bytes_like(before, 0xf4);
            let is_first = if index == HERE { 0xff } else { 0 };
            entries |= prologues & (!ends | is_first);
            // pop %r8 to %r15 | push %rbp | what `mov` begins with
            for_callers |= bytes_like(this, 0x41)
                & bytes_like(second & in_each_byte(0xf8), 0x58)
                & bytes_like(third, 0x55)
                & bytes_like(fourth, 0x48);
            index += 1;
        }
        if for_callers != 0 {
            Self::ForCaller
        } else if entries != 0 {
            Self::Entry
        } else {
            Self::Done
        }
    }

    /// Is it to be believed only of a return address that is one of code?
    #[inline(always)]
    #[must_use]
    pub const fn is_guess(self) -> bool {
        matches!(self, Self::Entry | Self::ForCaller)
    }

    /// Is the caller found by the frame pointer?
    #[inline(always)]
    #[must_use]
    pub const fn has_frame(self) -> bool {
        matches!(self, Self::Done | Self::Leaving)
    }

    /// The caller's registers where the function has no frame.
    ///
    /// # Errors
    /// Why there are none.
    #[inline(always)]
    pub fn caller(self, frame: Registers, machine: &impl Machine) -> Result<Registers, StackEnd> {
        if let Self::InRegister(number) = self {
            let pc = machine.register(number).ok_or(StackEnd::Unsupported)?;
            return Ok(Registers { pc, ..frame });
        }
        let slot = match self {
            Self::Saved(above) => frame.sp.wrapping_add(u64::from(above)),
            _ => frame.sp,
        };
        let [first, second] = machine.pair(slot).ok_or(StackEnd::ReadFault)?;
        Ok(if matches!(self, Self::Saved(_)) {
            let is_lost = frame.fp == frame.sp;
            Registers {
                pc: second,
                sp: slot.wrapping_add(16),
                fp: if is_lost { first } else { frame.fp },
            }
        } else {
            Registers {
                pc: first,
                sp: slot.wrapping_add(8),
                fp: frame.fp,
            }
        })
    }
}

/// Bytes at and before an address.
struct Pattern {
    /// Words as those of [`Setup::at`]: the bits that count, and what they are.
    masks: [u64; PATTERN_WORDS],
    values: [u64; PATTERN_WORDS],
}

const PATTERN_WORDS: usize = 4;

impl Pattern {
    /// Bytes in hexadecimal, `..` for any, with a bar before the first one at the address.
    const fn new(text: &str) -> Self {
        let text = text.as_bytes();
        let mut pattern = Self {
            masks: [0; PATTERN_WORDS],
            values: [0; PATTERN_WORDS],
        };
        let mut bar = 0;
        while text[bar] != b'|' {
            bar += 1;
        }
        let mut place = BYTES_BEFORE as usize - bar / "55 ".len();
        let mut at = 0;
        while at < text.len() {
            if matches!(text[at], b' ' | b'|') {
                at += 1;
                continue;
            }
            if text[at] != b'.' {
                let byte = digit(text[at]) << 4 | digit(text[at + 1]);
                pattern.masks[place / 8] |= 0xff << (place % 8 * 8);
                pattern.values[place / 8] |= byte << (place % 8 * 8);
            }
            place += 1;
            at += 2;
        }
        pattern
    }

    #[inline(always)]
    const fn is_at(&self, code: &[u64; CODE_WORDS]) -> bool {
        code[0] & self.masks[0] == self.values[0]
            && code[1] & self.masks[1] == self.values[1]
            && code[2] & self.masks[2] == self.values[2]
            && code[3] & self.masks[3] == self.values[3]
    }
}

const fn digit(letter: u8) -> u64 {
    match letter {
        b'0'..=b'9' => (letter - b'0') as u64,
        _ => (letter - b'a') as u64 + 10,
    }
}

const fn in_each_byte(byte: u64) -> u64 {
    byte * 0x0101_0101_0101_0101
}

/// The highest bit of each byte that is `byte`.
#[inline(always)]
const fn bytes_like(word: u64, byte: u64) -> u64 {
    let difference = word ^ in_each_byte(byte);
    let low_bits = in_each_byte(0x7f);
    !(((difference & low_bits) + low_bits) | difference | low_bits)
}

/// One word; without a panic, which no kernel program can have.
#[inline(always)]
fn word(code: &[u64; CODE_WORDS], index: usize) -> u64 {
    code.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
