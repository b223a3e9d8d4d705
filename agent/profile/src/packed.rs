//! Stacks in little room, for those that are kept for long.

use ebpf_common::unwind::StackEnd;
use integer_encoding::VarInt;

use crate::stack::StackTrace;

/// A stack, packed: equal ones have equal bytes.
///
/// A byte of flags, one for the stack's end, the number of the kernel's frames, then each word's
/// difference from the one before, as numbers of variable length. Callers mostly lie near by: a stack
/// takes half of what its words would.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PackedStack(Box<[u8]>);

const TRUNCATED: u8 = 1;
const BY_FRAME_POINTER: u8 = 2;
const INTERPRETER_MISSING: u8 = 4;
const PYTHON_READ: u8 = 8;
const SCRIPTS_READ: u8 = 16;

impl PackedStack {
    /// Packs a stack.
    pub(crate) fn new(stack: &StackTrace) -> Self {
        let mut flags = 0;
        for (is_set, flag) in [
            (stack.truncated, TRUNCATED),
            (stack.by_frame_pointer, BY_FRAME_POINTER),
            (stack.interpreter_missing, INTERPRETER_MISSING),
            (stack.python_read, PYTHON_READ),
            (stack.scripts_read, SCRIPTS_READ),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let mut bytes = vec![flags, stack.end as u8];
        bytes.extend((stack.kernel.len() as u64).encode_var_vec());
        let mut before = 0;
        for word in stack.kernel.iter().chain(&stack.user) {
            bytes.extend((word.wrapping_sub(before) as i64).encode_var_vec());
            before = *word;
        }
        Self(bytes.into())
    }

    /// The stack.
    pub(crate) fn unpack(&self) -> StackTrace {
        let (flags, end) = (self.0[0], self.0[1]);
        let (kernel_frames, len) = u64::decode_var(&self.0[2..]).unwrap_or_default();
        let mut rest = &self.0[2 + len..];
        let mut words = Vec::new();
        let mut word = 0_u64;
        while let Some((difference, len)) = i64::decode_var(rest) {
            word = word.wrapping_add(difference as u64);
            words.push(word);
            rest = &rest[len..];
        }
        let user = words.split_off((kernel_frames as usize).min(words.len()));
        StackTrace {
            kernel: words.into(),
            user: user.into(),
            truncated: flags & TRUNCATED != 0,
            end: StackEnd::of_flags(u32::from(end) << StackEnd::SHIFT),
            by_frame_pointer: flags & BY_FRAME_POINTER != 0,
            interpreter_missing: flags & INTERPRETER_MISSING != 0,
            python_read: flags & PYTHON_READ != 0,
            scripts_read: flags & SCRIPTS_READ != 0,
        }
    }

    /// Its length.
    pub(crate) fn len_bytes(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn callers_near_by_take_few_bytes() {
        let user = (0..40)
            .map(|frame| 0x5555_5555_0000 + frame * 300)
            .collect();
        let stack = StackTrace {
            user,
            ..StackTrace::default()
        };
        assert!(PackedStack::new(&stack).len_bytes() < 40 * 2 + 12);
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(
            kernel in prop::collection::vec(any::<u64>(), 0..40),
            user in prop::collection::vec(any::<u64>(), 0..60),
            end in 0..8_u32,
            flags in any::<[bool; 5]>(),
        ) {
            let stack = StackTrace {
                kernel: kernel.into(),
                user: user.into(),
                truncated: flags[0],
                end: StackEnd::of_flags(end << StackEnd::SHIFT),
                by_frame_pointer: flags[1],
                interpreter_missing: flags[2],
                python_read: flags[3],
                scripts_read: flags[4],
            };
            prop_assert_eq!(PackedStack::new(&stack).unpack(), stack);
        }
    }
}
