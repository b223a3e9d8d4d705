//! Stacks as they were captured.

use std::sync::Arc;

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
    /// The process's part, which called into the kernel's; empty for kernel threads.
    pub user: Box<[u64]>,
    /// One of the parts has callers that were cut off.
    pub truncated: bool,
}

/// How far a stack could be followed: the label `unwind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unwind {
    /// To the thread's entry.
    Complete,
    /// To a function that is not known as a thread's entry: code without frame pointers may have
    /// ended the walk early.
    Unverified,
    /// As many frames as are captured; the outer callers are missing.
    Truncated,
    /// The process's part is missing.
    NoUserStack,
}

impl Unwind {
    /// Every outcome.
    pub const ALL: [Self; 4] = [
        Self::Complete,
        Self::Unverified,
        Self::Truncated,
        Self::NoUserStack,
    ];

    /// Value of the label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Unverified => "unverified",
            Self::Truncated => "truncated",
            Self::NoUserStack => "no_user_stack",
        }
    }
}
