//! Every map that more than one module uses, and the read-only configuration.

use core::cell::UnsafeCell;

use aya_ebpf::{
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use ebpf_common::{
    config::{Config, MAX_CAPTURE_BYTES},
    connection::{ConnectionOpened, ConnectionState, SocketData},
    loss::LossReason,
};

use crate::buffer::{MAX_VECTOR, UserBuffer};

/// Set by the agent before load; the verifier sees its fields as constants. Declared as what it is
/// for the compiler, a value that somebody else may set: a constant would be folded.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.config")]
static CONFIG: Foreign<Config> = Foreign(UnsafeCell::new(Config::EMPTY));

/// A global that is set outside of the program.
#[repr(transparent)]
struct Foreign<T>(UnsafeCell<T>);
// SAFETY: nothing writes it once programs run.
unsafe impl<T> Sync for Foreign<T> {}

/// Losses by [`LossReason`], a CPU each, so that counting takes no lock.
#[btf_map]
static LOSSES: PerCpuArray<u64, { LossReason::COUNT as usize }> = PerCpuArray::new();

/// Connections by the address of their `struct sock`. The agent sets the capacity before load, and has
/// kernels that can (6.1) take memory for them as they come, as for all hash maps that programs fill.
#[btf_map]
pub static CONNECTIONS: HashMap<u64, ConnectionState, 1> = HashMap::new();

/// What a CPU works with: far larger than the 512 bytes of stack. The small things come first and
/// share a page with the beginning of the record.
#[repr(C)]
pub struct Scratch {
    /// Connections that were opened from here.
    connections: u64,
    /// Number of this record.
    pub index: u32,
    pub cpu: u32,
    /// See [`Scratch::forget`].
    pub forgotten: u64,
    pub walk: VectorWalk,
    /// Where a message's bytes are.
    pub buffer: UserBuffer,
    /// What is left of a segment that takes several records.
    pub rest: Rest,
    /// The I/O vector of a call: base and length of each piece.
    pub vector: [[u64; 2]; MAX_VECTOR as usize],
    /// A connection that enters the map, and the record that tells of it.
    pub state: ConnectionState,
    pub opened: ConnectionOpened,
    /// A record under construction; its bytes follow.
    pub header: SocketData,
    /// Twice the capture limit, because the verifier bounds position and length each by itself.
    pub bytes: [u8; 2 * MAX_CAPTURE_BYTES as usize],
}

impl Scratch {
    /// Gives back `value` as one of which the verifier knows nothing. Where paths that set it
    /// differently meet, it then follows one path on instead of each: without this, `sys_exit`
    /// took it over 150,000 steps.
    #[inline(always)]
    pub fn forget(scratch: *mut Self, value: u64) -> u64 {
        // SAFETY: this CPU's scratch record, which nothing else uses meanwhile.
        unsafe {
            let slot = &raw mut (*scratch).forgotten;
            slot.write_volatile(value);
            slot.read_volatile()
        }
    }
}

/// How far a walk through an I/O vector has come.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VectorWalk {
    /// Bytes of the call not walked yet.
    pub left: u64,
    /// Bytes to pass over first.
    pub skip: u64,
    /// Address just past the last byte walked.
    pub end: u64,
    /// Bytes walked in the piece that it ends.
    pub last: u64,
    /// Bytes that may still be captured.
    pub room: u32,
    /// Bytes captured.
    pub copied: u32,
}

/// A segment that takes more than one record: see `rest.rs`. The header beside it is its own.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rest {
    /// The call's buffer, see `UserBuffer`.
    pub base: u64,
    /// As above.
    pub pieces: u64,
    /// See `Captured`.
    pub end: u64,
    /// As above.
    pub last: u64,
    /// Bytes of the segment.
    pub len: u64,
    /// Bytes of it that have records.
    pub position: u64,
    /// Bytes of it that shall have.
    pub until: u64,
    /// Offset of its first byte.
    pub offset_bytes: u64,
    /// `Content-Length` of the head that is looked at.
    pub content_bytes: u64,
    /// What its fields tell of its framing.
    pub framing: u32,
    /// Bytes that were to be captured.
    pub want: u32,
    /// What is left of the run's budget.
    pub budget: u32,
    /// 1: a message may begin with the segment.
    pub is_beginning: u32,
    /// Ring of its records.
    pub ring: u32,
    /// 1: they are of a cluster's body, see `cluster.rs`.
    pub is_beyond: u32,
}

/// [`Scratch`] records, `Config::scratches` a CPU: one for each program that moves segments. A
/// program may be preempted by another task's (those of tracepoints from 7.0 on, of trampolines from
/// 5.11 on); the kernel then skips the same program, not another one. A plain array: a per-CPU map's
/// values end at 32 KiB. The agent sets the capacity.
#[btf_map]
static SCRATCH: Array<Scratch, 2> = Array::new();

/// Records of processes that start and end. 256 KiB hold some 450 of the longest command lines.
#[btf_map]
pub static PROCESS_RING: RingBuf<[u8; 0], { 256 * 1024 }> = RingBuf::new();

macro_rules! socket_rings {
    ($($name:ident)*) => { $(
        /// Records of the connections whose id falls on this ring. The agent sets the capacity.
        #[btf_map]
        pub static $name: RingBuf<[u8; 0], 4096> = RingBuf::new();
    )* };
}
socket_rings!(SOCKET_RING_0 SOCKET_RING_1 SOCKET_RING_2 SOCKET_RING_3);
socket_rings!(SOCKET_RING_4 SOCKET_RING_5 SOCKET_RING_6 SOCKET_RING_7);

/// The configuration, as the verifier's constants.
#[inline(always)]
pub fn config() -> &'static Config {
    // SAFETY: nothing writes it once programs run.
    unsafe { &*CONFIG.0.get() }
}

/// Counts one loss.
#[inline(always)]
pub fn count_loss(reason: LossReason) {
    if let Some(count) = LOSSES.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; a program that interrupts another one between load and
        // store could hide one count, and the compiler has no atomic addition for this machine.
        unsafe { *count += 1 };
    }
}

/// The scratch record of that number, for functions that the verifier looks at by themselves.
#[inline(always)]
pub fn scratch_at(index: u32) -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(index)
}

/// This CPU's scratch record number `slot`, below `Config::scratches`, which one program uses.
#[inline(always)]
pub fn scratch(slot: u32) -> Option<*mut Scratch> {
    // SAFETY: no arguments.
    let cpu = unsafe { aya_ebpf::helpers::bpf_get_smp_processor_id() };
    let index = cpu * config().scratches + slot;
    let scratch = SCRATCH.get_ptr_mut(index)?;
    // SAFETY: this program's own.
    unsafe {
        (*scratch).index = index;
        (*scratch).cpu = cpu;
    };
    Some(scratch)
}

impl Scratch {
    /// A connection id that was never given out: the record's number above, a count of its own
    /// below.
    #[inline(always)]
    pub fn next_connection_id(&mut self) -> u64 {
        self.connections += 1;
        (u64::from(self.index) << 48) | self.connections
    }
}
