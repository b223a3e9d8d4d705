//! Stacks as they were captured.

use std::sync::Arc;

use ebpf_common::unwind::StackEnd;

/// Whose stack it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Thread {
    /// Process (user-space sense: the kernel's tgid).
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Tells apart the images that one pid had (an exec makes a new one); 0 for kernel threads.
    pub image: u64,
    /// The thread's name when it was sampled.
    pub name: Arc<str>,
}

/// A captured stack: absolute addresses, leaf first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StackTrace {
    /// The kernel's part; empty when user code ran.
    pub kernel: Box<[u64]>,
    /// The process's part, which called into the kernel's; empty for kernel threads. Those with
    /// [`PYTHON_FRAME`](crate::python::PYTHON_FRAME) are no addresses.
    pub user: Box<[u64]>,
    /// The kernel's part has callers that were cut off.
    pub truncated: bool,
    /// Why the process's part ends where it does.
    pub end: StackEnd,
    /// A caller in it was found by a frame pointer, which code may use for something else.
    pub by_frame_pointer: bool,
    /// Frames of an interpreter are missing, or could not be told from its native ones.
    pub interpreter_missing: bool,
}

/// How far a stack could be followed: the label `unwind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unwind {
    /// To the thread's entry.
    Complete,
    /// By frame pointers, to a function that is not known as a thread's entry: code without them
    /// may have ended the walk early.
    Unverified,
    /// As many frames as are captured; the outer callers are missing.
    Truncated,
    /// The process's part is missing.
    NoUserStack,
    /// To a return address in no code that is known: a library that was mapped a moment ago.
    NoCode,
    /// To a part of the stack that was not in memory, or is none.
    ReadFault,
    /// To code whose unwind rule is not followed.
    UnsupportedRule,
    /// To a caller that would lie below its callee.
    NoProgress,
    /// To the thread's entry, but without all frames of the interpreter that it runs.
    Interpreter,
}

impl Unwind {
    /// Every outcome.
    pub const ALL: [Self; 9] = [
        Self::Complete,
        Self::Unverified,
        Self::Truncated,
        Self::NoUserStack,
        Self::NoCode,
        Self::ReadFault,
        Self::UnsupportedRule,
        Self::NoProgress,
        Self::Interpreter,
    ];

    /// Value of the label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Unverified => "unverified",
            Self::Truncated => "truncated",
            Self::NoUserStack => "no_user_stack",
            Self::NoCode => "no_code",
            Self::ReadFault => "read_fault",
            Self::UnsupportedRule => "unsupported_rule",
            Self::NoProgress => "no_progress",
            Self::Interpreter => "interpreter",
        }
    }
}
