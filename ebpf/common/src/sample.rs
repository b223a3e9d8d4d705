//! Stacks that the sampler captured.
//!
//! The kernel side counts samples by [`SampleKey`]. The first sample of a key in an epoch also
//! sends the stack itself through the sample ring: a [`StackHeader`] and then the addresses, the
//! kernel's first, each part leaf first. Of a function that a signal interrupted, and whose address
//! is thus no return address, one more is sent: so one less is the place for every caller.

use crate::unwind::StackEnd;

/// Deepest kernel stack that is captured (`perf_event_max_stack` of a stock kernel).
pub const MAX_KERNEL_FRAMES: usize = 127;

/// Deepest user stack that is captured.
pub const MAX_USER_FRAMES: usize = 1024;

/// What samples are counted by. Without implicit padding: the kernel hashes its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SampleKey {
    /// 128-bit hash of the stack, so that two stacks of one thread never share a count by chance.
    pub stack_hash: [u64; 2],
    /// Where the arguments of the process image begin (`mm_struct.arg_start`, in
    /// `/proc/PID/stat` field 48). An exec moves it, so it tells apart the images that one pid
    /// had; 0 for kernel threads.
    pub image: u64,
    /// Process (user-space sense: the kernel's tgid).
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Value of the epoch when the sample was taken. The agent raises it and then reads and
    /// removes the counts of earlier epochs, which nothing increments any more.
    pub epoch: u32,
    /// See [`stack_flags`]; bits 8 to 15 are a [`StackEnd`].
    pub flags: u32,
    /// The thread's `comm`, padded with NUL.
    pub comm: [u8; 16],
}

/// Bits of [`SampleKey::flags`].
pub mod stack_flags {
    /// The kernel stack has [`super::MAX_KERNEL_FRAMES`] frames; its callers were cut off.
    pub const KERNEL_TRUNCATED: u32 = 1;
    /// The kernel could not capture the kernel stack.
    pub const KERNEL_FAILED: u32 = 2;
    /// A caller was found by its frame pointer, for want of a rule.
    pub const BY_FRAME_POINTER: u32 = 4;
    /// All callers were: nothing was known of the process.
    pub const PROCESS_UNKNOWN: u32 = 8;
    /// Where a thread left the CPU to wait, not where it ran.
    pub const OFF_CPU: u32 = 16;
    /// The interpreter's frames end early: they could not be read, or are more than are captured.
    pub const PYTHON_CUT: u32 = 32;
    /// What CPython knows of the thread was found, so that there are no other frames of it.
    pub const PYTHON_READ: u32 = 64;
    /// Functions of V8 were looked for: where it keeps them is known.
    pub const SCRIPTS_READ: u32 = 128;
}

/// Each flag has a bit of its own, below those of a [`StackEnd`].
const _: () = {
    let flags = [
        stack_flags::KERNEL_TRUNCATED,
        stack_flags::KERNEL_FAILED,
        stack_flags::BY_FRAME_POINTER,
        stack_flags::PROCESS_UNKNOWN,
        stack_flags::OFF_CPU,
        stack_flags::PYTHON_CUT,
        stack_flags::PYTHON_READ,
        stack_flags::SCRIPTS_READ,
    ];
    let (mut index, mut seen) = (0, 0);
    while index < flags.len() {
        assert!(flags[index].is_power_of_two() && flags[index] < 1 << StackEnd::SHIFT);
        assert!(seen & flags[index] == 0);
        seen |= flags[index];
        index += 1;
    }
};

/// Start of a record in the sample ring; `kernel_frames + python_words + user_frames + script_words`
/// words follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct StackHeader {
    /// The key that the stack is counted by.
    pub key: SampleKey,
    /// Addresses of the kernel part.
    pub kernel_frames: u32,
    /// Addresses of the user part.
    pub user_frames: u32,
    /// Words of the interpreter's frames (see [`python`](crate::python)).
    pub python_words: u32,
    /// Words among the addresses of the user part that are none (see [`v8`](crate::v8)).
    pub script_words: u32,
}

/// When a thread was sampled, or how long one of its waits was: a record of the sample ring, told from a
/// [`StackHeader`] by its length. Sent where [`Config::sample_times`](crate::config::Config::sample_times)
/// says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes))]
#[repr(C)]
pub struct SampleTime {
    /// See [`SampleKey::stack_hash`].
    pub stack_hash: [u64; 2],
    /// When the sample was taken, or the wait began: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// How long the wait was, nanoseconds; 0 for a sample of the clock.
    pub waited_ns: u64,
    /// Thread.
    pub tid: u32,
    /// See [`SampleKey::epoch`].
    pub epoch: u32,
}

/// What is sampled: element 0 of the map `SAMPLER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SamplerState {
    /// See [`SampleKey::epoch`].
    pub epoch: u32,
    /// 1: every process. 0: those in the map `SAMPLE_TARGETS`.
    pub every_process: u32,
}

/// Which waits are measured: element 0 of the map `OFF_CPU`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OffCpuState {
    /// See [`SampleKey::epoch`]; each profile has one of its own.
    pub epoch: u32,
    /// The only process whose threads are watched; 0: every one but the agent.
    pub pid: u32,
    /// Shorter waits are left out: nanoseconds.
    pub min_ns: u64,
}

/// A thread that waits: value of the map `WAITING`, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Waiting {
    /// Where it left the CPU.
    pub key: SampleKey,
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub since_ns: u64,
}

/// Waits of one thread in one place: value of the map `WAITED`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Waited {
    /// How many.
    pub count: u64,
    /// How long, together: nanoseconds.
    pub ns: u64,
}

const _: () = {
    assert!(size_of::<SampleKey>() == 56);
    assert!(size_of::<StackHeader>() == 72);
    assert!(size_of::<SampleTime>() == 40);
    assert!(size_of::<SamplerState>() == 8);
    assert!(size_of::<OffCpuState>() == 16);
    assert!(size_of::<Waiting>() == 64);
    assert!(size_of::<Waited>() == 16);
};

// SAFETY: plain integers without padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SampleKey {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SamplerState {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for OffCpuState {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Waiting {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Waited {}
