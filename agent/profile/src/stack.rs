//! Stacks as they were captured.

use std::fmt;
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
    /// What it worked on then.
    pub work: Work,
}

/// What a thread worked on when it was sampled, as far as that is proven.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    /// The request that it served: the only one in flight on it.
    pub request: Option<Request>,
    /// The Elasticsearch operation that it waited for: endpoint id of the REST specification.
    pub operation: Option<&'static str>,
}

impl Work {
    /// Whether nothing is known of it.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        self.request.is_none() && self.operation.is_none()
    }
}

/// What a person reads: `GET /users/{id}, awaiting search`; empty where nothing is known.
impl fmt::Display for Work {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Request { route, method }) = &self.request {
            write!(formatter, "{method} {route}")?;
        }
        match self.operation {
            Some(operation) if self.request.is_some() => {
                write!(formatter, ", awaiting {operation}")
            }
            Some(operation) => write!(formatter, "awaiting {operation}"),
            None => Ok(()),
        }
    }
}

/// A request by what its kind is called, which is bounded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Route template, never a raw path.
    pub route: Arc<str>,
    /// Method; `_OTHER` for one that no RFC knows.
    pub method: &'static str,
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
    /// CPython's frames were looked for: where the thread ran it all the same, they are missing.
    pub python_read: bool,
    /// V8's functions were, likewise.
    pub scripts_read: bool,
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
    /// To the thread's entry, but without all frames of the interpreter that it runs, or without the
    /// functions of all of them.
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
