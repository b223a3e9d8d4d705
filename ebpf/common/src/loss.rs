//! Losses on the kernel side: whatever was seen and could not be passed on, with its reason.

/// Index into the per-CPU loss counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LossReason {
    /// A socket record found its ring full.
    RingFull = 0,
    /// The connection map was full: the bytes of that connection go unseen.
    ConnectionsFull = 1,
    /// The process's memory could not be read, so that a segment has no captured bytes.
    ReadFault = 2,
    /// Bytes moved outside of a system call of their own (io_uring, kernel threads): segments
    /// without captured bytes.
    NoSyscall = 3,
    /// Bytes moved by a call that the tap cannot read: segments without captured bytes.
    UnknownSyscall = 4,
    /// A process record found its ring full.
    ProcessRingFull = 5,
    /// A connection that turned out to be TLS: connections.
    Tls = 6,
    /// The stack counts were full: samples.
    StacksFull = 7,
    /// Too many waits on one CPU in a tenth of a second, or in all: waits that were not measured.
    WaitsSkipped = 8,
    /// Bytes were read past the tap (`splice` from a socket, since 6.3): calls that noticed it. The
    /// stream's offset is right all the same; when those bytes moved is not known.
    ReadPast = 9,
    /// A body of a cluster's was not captured as far as it should have been, for that would have
    /// filled the ring: bodies.
    BodySkipped = 10,
}

impl LossReason {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 11] = [
        Self::RingFull,
        Self::ConnectionsFull,
        Self::ReadFault,
        Self::NoSyscall,
        Self::UnknownSyscall,
        Self::ProcessRingFull,
        Self::Tls,
        Self::StacksFull,
        Self::WaitsSkipped,
        Self::ReadPast,
        Self::BodySkipped,
    ];

    /// Number of reasons, and of slots in the counter map.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The `stage` and `reason` labels of `telltale_losses_total`.
    #[must_use]
    pub const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::RingFull => ("tap", "ring_full"),
            Self::ConnectionsFull => ("tap", "connections_full"),
            Self::ReadFault => ("tap", "read_fault"),
            Self::NoSyscall => ("tap", "no_syscall"),
            Self::UnknownSyscall => ("tap", "unknown_syscall"),
            Self::ProcessRingFull => ("process", "ring_full"),
            Self::Tls => ("tap", "tls"),
            Self::StacksFull => ("sampler", "stacks_full"),
            Self::WaitsSkipped => ("sampler", "waits_skipped"),
            Self::ReadPast => ("tap", "read_past"),
            Self::BodySkipped => ("tap", "body_skipped"),
        }
    }
}
