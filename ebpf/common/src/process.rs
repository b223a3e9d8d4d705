//! Processes that start and end.

/// A process image was replaced. The first `command_line_len` bytes of the new command line
/// (arguments separated by NUL) follow this header in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes))]
#[repr(C)]
pub struct ProcessExec {
    /// [`crate::RecordKind::ProcessExec`]
    pub kind: u8,
    /// Alignment only.
    pub padding: [u8; 3],
    /// Process (user-space sense: the kernel's tgid).
    pub pid: u32,
    /// Its parent.
    pub parent_pid: u32,
    /// Bytes that follow the header; at most [`MAX_COMMAND_LINE_BYTES`].
    pub command_line_len: u32,
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// `comm` of the new image, padded with NUL.
    pub comm: [u8; 16],
    /// Reserved.
    pub reserved: u64,
}

/// Most bytes of a command line that a [`ProcessExec`] carries.
pub const MAX_COMMAND_LINE_BYTES: usize = 512;

/// The last thread of a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes))]
#[repr(C)]
pub struct ProcessExit {
    /// [`crate::RecordKind::ProcessExit`]
    pub kind: u8,
    /// Alignment only.
    pub padding: [u8; 3],
    /// Process (user-space sense: the kernel's tgid).
    pub pid: u32,
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Exit code as `wait` gives it.
    pub exit_code: u32,
    /// Alignment only.
    pub padding2: u32,
}
