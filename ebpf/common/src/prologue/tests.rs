//! Functions as compilers made them, instruction by instruction.

extern crate std;

use std::format;
use std::vec::Vec;

use super::{BYTES_BEFORE, CODE_WORDS, Setup, bytes_like};
use crate::unwind::{Machine, Registers, StackEnd};

/// An instruction's bytes, and what they tell where it is the next one.
type Instruction = (&'static str, Setup);

/// V8 11.3, TurboFan.
const OPTIMIZED: [Instruction; 22] = [
    ("48 8b 59 f8", Setup::Entry),          // mov -0x8(%rcx),%rbx
    ("f6 43 35 01", Setup::Entry),          // testb $0x1,0x35(%rbx)
    ("0f 85 32 5f e4 1f", Setup::Entry),    // jne
    ("55", Setup::Entry),                   // push %rbp
    ("48 89 e5", Setup::Saved(0)),          // mov %rsp,%rbp
    ("56", Setup::Done),                    // push %rsi
    ("57", Setup::Done),                    // push %rdi
    ("50", Setup::Done),                    // push %rax
    ("48 83 ec 08", Setup::Done),           // sub $0x8,%rsp
    ("48 89 75 e0", Setup::Done),           // mov %rsi,-0x20(%rbp)
    ("ff d1", Setup::Done),                 // call *%rcx
    ("48 8b 4d e8", Setup::Done),           // mov -0x18(%rbp),%rcx
    ("48 8b e5", Setup::Done),              // mov %rbp,%rsp
    ("5d", Setup::Leaving),                 // pop %rbp
    ("48 83 f9 02", Setup::Left),           // cmp $0x2,%rcx
    ("7f 03", Setup::Left),                 // jg
    ("c2 10 00", Setup::Left),              // ret $0x10
    ("41 5a", Setup::Left),                 // pop %r10
    ("48 8d 24 cc", Setup::InRegister(10)), // lea (%rsp,%rcx,8),%rsp
    ("41 52", Setup::InRegister(10)),       // push %r10
    ("c3", Setup::Bare),                    // ret
    ("33 c0", Setup::Done),                 // xor %eax,%eax
];

/// V8 11.3, what sets up frames for baseline code.
const BASELINE_PROLOGUE: [Instruction; 25] = [
    ("4c 8b 47 27", Setup::ForCaller),        // mov 0x27(%rdi),%r8
    ("4d 8b 40 07", Setup::ForCaller),        // mov 0x7(%r8),%r8
    ("41 0f b7 48 15", Setup::ForCaller),     // movzwl 0x15(%r8),%ecx
    ("f6 c1 3e", Setup::ForCaller),           // test $0x3e,%cl
    ("0f 85 3f 00 00 00", Setup::ForCaller),  // jne
    ("45 8a 50 14", Setup::ForCaller),        // mov 0x14(%r8),%r10b
    ("41 80 e2 08", Setup::ForCaller),        // and $0x8,%r10b
    ("45 88 50 14", Setup::ForCaller),        // mov %r10b,0x14(%r8)
    ("41 ff 40 0b", Setup::ForCaller),        // incl 0xb(%r8)
    ("41 5f", Setup::ForCaller),              // pop %r15
    ("55", Setup::Entry),                     // push %rbp
    ("48 89 e5", Setup::Saved(0)),            // mov %rsp,%rbp
    ("56", Setup::Done),                      // push %rsi
    ("57", Setup::Done),                      // push %rdi
    ("50", Setup::Done),                      // push %rax
    ("66 41 c7 44 24 33 00 00", Setup::Done), // movw $0x0,0x33(%r12)
    ("41 54", Setup::Done),                   // push %r12
    ("41 50", Setup::Done),                   // push %r8
    ("49 89 e2", Setup::Done),                // mov %rsp,%r10
    ("4c 2b d3", Setup::Done),                // sub %rbx,%r10
    ("4d 3b 55 a0", Setup::Done),             // cmp -0x60(%r13),%r10
    ("0f 82 0a 01 00 00", Setup::Done),       // jb
    ("41 57", Setup::Done),                   // push %r15
    ("49 8b 85 90 01 00 00", Setup::Bare),    // mov 0x190(%r13),%rax
    ("c3", Setup::Bare),                      // ret
];

/// V8 13.6, Maglev.
const MAGLEV: [Instruction; 9] = [
    ("48 8b e5", Setup::Done),             // mov %rbp,%rsp
    ("5d", Setup::Leaving),                // pop %rbp
    ("49 83 f8 02", Setup::Left),          // cmp $0x2,%r8
    ("0f 8f 03 00 00 00", Setup::Left),    // jg
    ("c2 10 00", Setup::Left),             // ret $0x10
    ("41 59", Setup::Left),                // pop %r9
    ("4a 8d 24 c4", Setup::InRegister(9)), // lea (%rsp,%r8,8),%rsp
    ("41 51", Setup::InRegister(9)),       // push %r9
    ("c3", Setup::Bare),                   // ret
];

/// V8 13.6, what sets up frames for baseline code.
const BASELINE_PROLOGUE_13: [Instruction; 10] = [
    ("4c 8b 47 2f", Setup::ForCaller), // mov 0x2f(%rdi),%r8
    ("4d 8b 48 07", Setup::ForCaller), // mov 0x7(%r8),%r9
    ("45 8a 51 14", Setup::ForCaller), // mov 0x14(%r9),%r10b
    ("41 80 e2 f8", Setup::ForCaller), // and $0xf8,%r10b
    ("45 88 51 14", Setup::ForCaller), // mov %r10b,0x14(%r9)
    ("41 ff 41 0b", Setup::ForCaller), // incl 0xb(%r9)
    ("41 5b", Setup::ForCaller),       // pop %r11
    ("55", Setup::Entry),              // push %rbp
    ("48 89 e5", Setup::Saved(0)),     // mov %rsp,%rbp
    ("56", Setup::Done),               // push %rsi
];

/// V8 11.3, baseline code.
const BASELINE: [Instruction; 4] = [
    ("bb 20 00 00 00", Setup::Entry),                // mov $0x20,%ebx
    ("49 bc 59 a7 7c 5b 34 1e 00 00", Setup::Entry), // movabs $0x1e345b7ca759,%r12
    ("e8 ac 57 e4 1f", Setup::Entry),                // call
    ("50", Setup::Done),                             // push %rax
];

/// HotSpot 17, both compilers.
const HOTSPOT: [Instruction; 12] = [
    ("89 84 24 00 c0 fe ff", Setup::Entry), // mov %eax,-0x14000(%rsp)
    ("55", Setup::Entry),                   // push %rbp
    ("48 8b ec", Setup::Saved(0)),          // mov %rsp,%rbp
    ("48 83 ec 20", Setup::Done),           // sub $0x20,%rsp
    ("89 34 24", Setup::Done),              // mov %esi,(%rsp)
    ("e8 c8 fc ff ff", Setup::Done),        // call
    ("48 83 c4 20", Setup::Done),           // add $0x20,%rsp
    ("5d", Setup::Done),                    // pop %rbp
    ("49 3b a7 40 03 00 00", Setup::Bare),  // cmp 0x340(%r15),%rsp
    ("0f 87 13 00 00 00", Setup::Bare),     // ja
    ("c3", Setup::Bare),                    // ret
    ("48 8b f0", Setup::Done),              // mov %rax,%rsi
];

/// HotSpot 17, C2, a function that calls none.
const HOTSPOT_SMALL: [Instruction; 10] = [
    ("48 81 ec 18 00 00 00", Setup::Bare),  // sub $0x18,%rsp
    ("48 89 6c 24 10", Setup::Saved(0x10)), // mov %rbp,0x10(%rsp)
    ("48 8b ec", Setup::Saved(0x10)),       // mov %rsp,%rbp
    ("48 83 c5 10", Setup::Saved(0x10)),    // add $0x10,%rbp
    ("8b c6", Setup::Done),                 // mov %esi,%eax
    ("48 83 c4 10", Setup::Done),           // add $0x10,%rsp
    ("5d", Setup::Done),                    // pop %rbp
    ("49 3b a7 40 03 00 00", Setup::Bare),  // cmp 0x340(%r15),%rsp
    ("0f 87 01 00 00 00", Setup::Bare),     // ja
    ("c3", Setup::Bare),                    // ret
];

/// GCC 12, without rows, in front of the next function.
const C: [Instruction; 11] = [
    ("f3 0f 1e fa", Setup::Entry),   // endbr64
    ("55", Setup::Entry),            // push %rbp
    ("48 89 e5", Setup::Saved(0)),   // mov %rsp,%rbp
    ("e8 00 00 00 00", Setup::Done), // call
    ("83 c0 01", Setup::Done),       // add $0x1,%eax
    ("5d", Setup::Done),             // pop %rbp
    ("c3", Setup::Bare),             // ret
    ("90", Setup::Done),             // nop
    ("55", Setup::Entry),            // push %rbp
    ("48 89 e5", Setup::Saved(0)),   // mov %rsp,%rbp
    ("f3 c3", Setup::Bare),          // repz ret
];

fn bytes(text: &str) -> impl Iterator<Item = u8> {
    text.split(' ')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
}

fn check(name: &str, function: &[Instruction]) {
    let all: Vec<u8> = function.iter().flat_map(|(text, _)| bytes(text)).collect();
    let mut address = 0_usize;
    for (text, expected) in function {
        let mut code = [0_u64; CODE_WORDS];
        for (index, word) in code.iter_mut().enumerate() {
            let byte = |at: usize| {
                let place = (address + index * 8 + at).checked_sub(BYTES_BEFORE as usize);
                place.and_then(|place| all.get(place)).copied()
            };
            *word = u64::from_le_bytes(core::array::from_fn(|at| byte(at).unwrap_or(0xcc)));
        }
        assert_eq!(Setup::at(&code), *expected, "{name}+{address:x}: {text}");
        address += bytes(text).count();
    }
}

#[test]
fn each_instruction_tells_where_the_return_address_is() {
    check("V8, optimized", &OPTIMIZED);
    check("V8, prologue of baseline code", &BASELINE_PROLOGUE);
    check("V8, Maglev", &MAGLEV);
    check("V8 13.6, prologue of baseline code", &BASELINE_PROLOGUE_13);
    check("V8, baseline code", &BASELINE);
    check("HotSpot", &HOTSPOT);
    check("HotSpot, small", &HOTSPOT_SMALL);
    check("C", &C);
}

#[test]
fn bytes_are_compared_each_by_itself() {
    for byte in 0..=u8::MAX {
        for neighbour in [0, 1, 0x7f, 0x80, 0xff, byte.wrapping_add(1), byte] {
            let bytes = [
                neighbour, byte, neighbour, byte, byte, neighbour, byte, 0x80,
            ];
            let expected = bytes.map(|other| if other == byte { 0x80 } else { 0 });
            let found = bytes_like(u64::from_le_bytes(bytes), byte.into());
            assert_eq!(found.to_le_bytes(), expected, "{byte:x} in {bytes:x?}");
        }
    }
}

#[test]
fn another_functions_beginning_is_not_this_ones() {
    for padding in ["c3", "90", "cc", "f4"] {
        let text = format!("48 89 c7 {padding} 55 48 89 e5 00 00 00 00 00 00 00 00");
        let rest: Vec<u8> = bytes(&text).collect();
        let mut code = [0; CODE_WORDS];
        code[2] = u64::from_le_bytes(rest[..8].try_into().unwrap());
        assert_eq!(Setup::at(&code), Setup::Done, "{padding}");
        code[2] &= !0xff00_0000;
        assert_eq!(Setup::at(&code), Setup::Entry);
    }
}

/// Where the stack pointer is below.
const TOP: u64 = 0x7000;

/// A stack whose words are their own addresses, and `r10`.
struct Stack;

impl Machine for Stack {
    fn word(&self, address: u64) -> Option<u64> {
        (address >= TOP).then_some(address)
    }

    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        Some([self.word(address)?, self.word(address + 8)?])
    }

    fn register(&self, number: u8) -> Option<u64> {
        (number == 10).then_some(0x1010)
    }
}

#[test]
fn the_caller_is_where_the_setup_says() {
    let frame = |fp| Registers {
        pc: 0x1234,
        sp: TOP,
        fp,
    };
    let caller = |pc, sp, fp| Ok(Registers { pc, sp, fp });
    for setup in [Setup::Bare, Setup::Left, Setup::Entry, Setup::ForCaller] {
        let found = setup.caller(frame(0x9000), &Stack);
        assert_eq!(found, caller(TOP, TOP + 8, 0x9000), "{setup:?}");
    }
    let saved = |above, fp| Setup::Saved(above).caller(frame(fp), &Stack);
    assert_eq!(saved(0, 0x9000), caller(TOP + 8, TOP + 16, 0x9000));
    assert_eq!(saved(0x18, 0x9000), caller(TOP + 0x20, TOP + 0x28, 0x9000));
    assert_eq!(saved(0x18, TOP), caller(TOP + 0x20, TOP + 0x28, TOP + 0x18));
    let in_register = Setup::InRegister(10).caller(frame(0x9000), &Stack);
    assert_eq!(in_register, caller(0x1010, TOP, 0x9000));
    let nowhere = Registers {
        sp: 0x10,
        ..frame(0x9000)
    };
    let unread = Setup::Bare.caller(nowhere, &Stack);
    assert_eq!(unread, Err(StackEnd::ReadFault));
}
