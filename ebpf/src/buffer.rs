//! Where in a process's memory the bytes of a system call are.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user};
use ebpf_common::{
    config::{MAX_CAPTURE_BYTES, Syscalls},
    connection::Direction,
};

use crate::{
    kernel::{Plain, load},
    maps::{Scratch, VectorWalk, config, scratch_at},
};

/// Most elements of an I/O vector that are looked at; the rest counts, but is not captured.
pub const MAX_VECTOR: u64 = 24;

/// `sizeof(struct iovec)`
const IOVEC_BYTES: u64 = 16;

/// A call's buffer: one piece, or a vector of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UserBuffer {
    /// Address of the only piece; 0 where the call has none (sendfile, splice).
    base: u64,
    /// Elements of the vector, which the scratch record holds; 0 for a single piece.
    pieces: u64,
}

/// What became of a capture.
#[derive(Clone, Copy)]
pub struct Captured {
    /// Bytes copied.
    pub len: u32,
    /// Address just past the call's last byte; 0 where it is not known.
    pub end: u64,
    /// Bytes of the call that lie in one piece before it.
    pub last: u64,
    /// Some of the process's memory could not be read.
    pub fault: bool,
}

impl UserBuffer {
    /// No buffer in user space.
    pub const NONE: Self = Self { base: 0, pieces: 0 };

    /// A buffer whose address could not be read: any use of it is a fault.
    pub const UNREADABLE: Self = Self {
        base: u64::MAX,
        pieces: 0,
    };

    /// Whether there is nothing to capture.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.base == 0 && self.pieces == 0
    }

    /// One piece.
    pub const fn single(base: u64) -> Self {
        Self { base, pieces: 0 }
    }

    /// The buffer of an array of `count` times `struct iovec`, which is copied right away: its
    /// bytes take long to arrive, and nothing waits for them yet.
    #[inline(always)]
    fn of_vector(vector: u64, count: u64, scratch: *mut Scratch) -> Self {
        let pieces = if count < MAX_VECTOR {
            count
        } else {
            MAX_VECTOR
        };
        let bytes = core::hint::black_box(pieces * IOVEC_BYTES);
        if bytes > MAX_VECTOR * IOVEC_BYTES {
            return Self::UNREADABLE;
        }
        // SAFETY: this CPU's scratch record; at most the whole array.
        let result = unsafe {
            let to = &raw mut (*scratch).vector;
            bpf_probe_read_user(to.cast(), bytes as u32, vector as *const _)
        };
        if result == 0 {
            Self { base: 0, pieces }
        } else {
            Self::UNREADABLE
        }
    }

    /// The buffer of an array of `count` times `struct iovec` in the kernel's memory, without the
    /// first `skip` bytes of the first one.
    #[inline(always)]
    pub fn of_kernel_vector(vector: u64, count: u64, skip: u64, scratch: *mut Scratch) -> Self {
        let pieces = if count < MAX_VECTOR {
            count
        } else {
            MAX_VECTOR
        };
        if !Self::read_kernel_vector(vector, pieces, scratch) {
            return Self::UNREADABLE;
        }
        // SAFETY: this program's scratch record.
        let [base, len] = unsafe { &mut (*scratch).vector[0] };
        *base = base.wrapping_add(skip);
        *len = len.wrapping_sub(skip);
        Self { base: 0, pieces }
    }

    /// Copies `count` times `struct iovec` from the kernel's memory into the scratch record.
    #[inline(always)]
    pub fn read_kernel_vector(vector: u64, count: u64, scratch: *mut Scratch) -> bool {
        let bytes = core::hint::black_box(count * IOVEC_BYTES);
        if bytes > MAX_VECTOR * IOVEC_BYTES {
            return false;
        }
        // SAFETY: this program's scratch record; at most the whole array.
        unsafe {
            let to = &raw mut (*scratch).vector;
            bpf_probe_read_kernel(to.cast(), bytes as u32, vector as *const _) == 0
        }
    }

    /// The buffer of a `struct msghdr` (`msg_iov` at 16, `msg_iovlen` at 24 on 64-bit machines).
    #[inline(always)]
    pub fn of_message(message: u64, scratch: *mut Scratch) -> Self {
        let [vector, count]: [u64; 2] = read_user(message + 16);
        if count == 0 {
            // It moved bytes, so that it has room for some: the header is out of reach.
            return Self::UNREADABLE;
        }
        Self::of_vector(vector, count, scratch)
    }

    /// The first so many elements of the vector in the scratch.
    #[inline(always)]
    pub const fn of_pieces(pieces: u64) -> Self {
        Self { base: 0, pieces }
    }

    /// Address of the only piece, and elements of the vector in the scratch.
    #[inline(always)]
    pub const fn parts(&self) -> (u64, u64) {
        (self.base, self.pieces)
    }

    /// The same buffer, of which the verifier knows nothing; see [`Scratch::forget`].
    #[inline(always)]
    pub fn forget(&self, scratch: *mut Scratch) -> Self {
        Self {
            base: Scratch::forget(scratch, self.base),
            pieces: Scratch::forget(scratch, self.pieces),
        }
    }

    /// The first eight bytes, or zero.
    #[inline(always)]
    pub fn first_word(&self, scratch: *mut Scratch) -> u64 {
        let base = if self.pieces == 0 {
            self.base
        } else {
            // SAFETY: this CPU's scratch record.
            let [base, len] = unsafe { (*scratch).vector[0] };
            if len < 8 {
                return first_bytes(self.pieces, scratch);
            }
            base
        };
        // A fault costs more than all else that is done for a segment.
        if base == 0 { 0 } else { read_user(base) }
    }

    /// Copies the first `want` of the call's `total` bytes into the scratch record.
    #[inline(always)]
    pub fn capture(&self, total: u64, want: u32, scratch: *mut Scratch) -> Captured {
        if self.pieces != 0 {
            return self.capture_vector(total, want, scratch);
        }
        self.capture_piece(0, total, want, scratch)
    }

    #[inline(always)]
    fn capture_piece(&self, skip: u64, total: u64, want: u32, scratch: *mut Scratch) -> Captured {
        if self.base == 0 {
            return Captured {
                len: 0,
                end: 0,
                last: 0,
                fault: false,
            };
        }
        let fault = !copy(scratch, 0, want, self.base + skip);
        Captured {
            len: if fault { 0 } else { want },
            end: self.base + total,
            last: total,
            fault,
        }
    }

    /// Walks the vector from its beginning.
    #[inline(always)]
    fn capture_vector(&self, total: u64, want: u32, scratch: *mut Scratch) -> Captured {
        begin_walk(scratch, 0, total, want);
        let mut fault = false;
        let mut index = 0;
        while index < MAX_VECTOR {
            if index >= self.pieces {
                break;
            }
            let step = capture_next::<false>(scratch, index);
            if step != STEP {
                fault = step == FAULT;
                break;
            }
            index += 1;
        }
        walked(scratch, fault)
    }
}

/// What becomes of a step from one piece of a vector to the next.
const STEP: u32 = 0;
const LAST: u32 = 1;
const FAULT: u32 = 2;

/// Begins a walk through the vector in the scratch record. What one step hands to the next lives there
/// too: the verifier knows nothing of a map's contents, so that all steps look alike to it.
#[inline(always)]
fn begin_walk(scratch: *mut Scratch, skip: u64, total: u64, want: u32) {
    let walk = VectorWalk {
        left: total - skip,
        skip,
        end: 0,
        last: 0,
        room: want,
        copied: 0,
    };
    // SAFETY: this CPU's scratch record; see `Scratch`.
    unsafe { (&raw mut (*scratch).walk).write_volatile(walk) };
}

/// Captures of piece `index` what is wanted of it. `SKIPS`: some pieces may be passed over first.
#[inline(always)]
fn capture_next<const SKIPS: bool>(scratch: *mut Scratch, index: u64) -> u32 {
    // SAFETY: this CPU's scratch record; the callers check the index.
    let ([mut base, mut len], walk) =
        unsafe { ((*scratch).vector[index as usize], &raw mut (*scratch).walk) };
    // A member at a time: the whole of it would be kept on the stack.
    // SAFETY: as above, for every access to them.
    let (left_at, room_at, copied_at) = unsafe {
        (
            &raw mut (*walk).left,
            &raw mut (*walk).room,
            &raw mut (*walk).copied,
        )
    };
    if SKIPS {
        // SAFETY: as above.
        let skip_at = unsafe { &raw mut (*walk).skip };
        // SAFETY: as above.
        let skip = unsafe { skip_at.read_volatile() };
        let skipped = if len < skip { len } else { skip };
        // SAFETY: as above.
        unsafe { skip_at.write_volatile(skip - skipped) };
        base += skipped;
        len -= skipped;
    }
    // SAFETY: as above.
    let (left, room, copied) = unsafe {
        (
            left_at.read_volatile(),
            room_at.read_volatile(),
            copied_at.read_volatile(),
        )
    };
    let used = if len < left { len } else { left };
    let piece = if used < u64::from(room) {
        used as u32
    } else {
        room
    };
    if piece > 0 && !copy(scratch, copied, piece, base) {
        return FAULT;
    }
    // SAFETY: as above.
    unsafe {
        copied_at.write_volatile(copied + piece);
        room_at.write_volatile(room - piece);
        left_at.write_volatile(left - used);
        if used > 0 {
            (&raw mut (*walk).end).write_volatile(base + used);
            (&raw mut (*walk).last).write_volatile(used);
        }
    }
    if left == used { LAST } else { STEP }
}

/// What a walk has captured.
#[inline(always)]
fn walked(scratch: *mut Scratch, fault: bool) -> Captured {
    // SAFETY: this CPU's scratch record.
    let at = unsafe { (&raw const (*scratch).walk).read_volatile() };
    Captured {
        len: at.copied,
        end: if at.left == 0 { at.end } else { 0 },
        last: at.last,
        fault,
    }
}

/// Copies `want` bytes from byte `skip` of a call's `total` on, whose buffer `Scratch::rest` has;
/// returns how many it copied. A function that the verifier looks at by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn capture_from(index: u32, skip: u64, total: u64, want: u32) -> u32 {
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    if want > MAX_CAPTURE_BYTES {
        return 0;
    }
    // SAFETY: this CPU's scratch record.
    let (base, pieces) = unsafe { ((*scratch).rest.base, (*scratch).rest.pieces) };
    if pieces == 0 {
        let buffer = UserBuffer { base, pieces };
        return buffer.capture_piece(skip, total, want, scratch).len;
    }
    begin_walk(scratch, skip, total, want);
    let mut piece = 0;
    while piece < MAX_VECTOR as u32 {
        if u64::from(piece) >= pieces {
            break;
        }
        let step = capture_next_of(index, piece);
        if step == FAULT {
            return 0;
        }
        if step == LAST {
            break;
        }
        piece += 1;
    }
    walked(scratch, false).len
}

/// A step of [`capture_from`], which the verifier looks at once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn capture_next_of(index: u32, piece: u32) -> u32 {
    let piece = core::hint::black_box(u64::from(piece));
    match scratch_at(index) {
        Some(scratch) if piece < MAX_VECTOR => capture_next::<true>(scratch, piece),
        _ => FAULT,
    }
}

/// The first eight bytes of the vector in a scratch record, of which the first piece has fewer.
#[inline(always)]
fn first_bytes(pieces: u64, scratch: *mut Scratch) -> u64 {
    // SAFETY: this CPU's scratch record; nothing has been captured into its bytes yet.
    let (first, index) = unsafe {
        (*scratch).rest.base = 0;
        (*scratch).rest.pieces = pieces;
        ((&raw mut (*scratch).bytes).cast::<u64>(), (*scratch).index)
    };
    // SAFETY: as above.
    unsafe { first.write_volatile(0) };
    capture_from(index, 0, 8, 8);
    // SAFETY: as above.
    unsafe { first.read_volatile() }
}

/// Copies `len` bytes of the process's memory to `position` in the scratch record.
#[inline(always)]
fn copy(scratch: *mut Scratch, position: u32, len: u32, from: u64) -> bool {
    // The opaque values keep the compiler from dropping the bounds that the verifier asks for.
    let position = core::hint::black_box(position);
    let len = core::hint::black_box(len);
    if position > MAX_CAPTURE_BYTES || len > MAX_CAPTURE_BYTES {
        return false;
    }
    // SAFETY: `position` and `len` are at most half of the buffer each.
    unsafe {
        let to = (&raw mut (*scratch).bytes)
            .cast::<u8>()
            .add(position as usize);
        bpf_probe_read_user(to.cast(), len, from as *const _) == 0
    }
}

/// Reads a `T` of the process's memory; zero where that fails.
#[inline(always)]
pub fn read_user<T: Plain>(address: u64) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: as in `kernel::read`.
    unsafe {
        bpf_probe_read_user(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
        value.assume_init()
    }
}

/// As [`read_user`], for what is too large for the stack.
#[inline(always)]
pub fn read_user_into<T: Plain>(value: &mut T, address: u64) {
    // SAFETY: the helper checks the address and writes all of the value, zeroes where it cannot
    // read.
    unsafe {
        bpf_probe_read_user(
            core::ptr::from_mut(value).cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
    }
}

/// The last bytes before `end`, at most eight and at most `len`, the last one in the least
/// significant byte and zeroes above; zero where they cannot be read.
#[inline(always)]
pub fn last_bytes(end: u64, len: u64) -> u64 {
    if len >= 8 {
        return read_user::<u64>(end - 8).swap_bytes();
    }
    let len = core::hint::black_box(len);
    if len == 0 || len >= 8 {
        return 0;
    }
    let mut word = 0u64;
    // SAFETY: less than the word's eight bytes.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), len as u32, (end - len) as *const _) };
    word.swap_bytes() >> (64 - 8 * len)
}

/// Which way a system call moves bytes; `None` for calls that move none. `splice` counts as
/// egress here and is looked at more closely by whoever needs it.
#[inline(always)]
pub fn direction_of(syscalls: &Syscalls, number: u32) -> Option<Direction> {
    if number == syscalls.read
        || number == syscalls.recvfrom
        || number == syscalls.recvmsg
        || number == syscalls.readv
        || number == syscalls.recvmmsg
    {
        return Some(Direction::Ingress);
    }
    if number == syscalls.write
        || number == syscalls.sendto
        || number == syscalls.sendmsg
        || number == syscalls.writev
        || number == syscalls.sendfile
        || number == syscalls.sendmmsg
        || number == syscalls.splice
    {
        return Some(Direction::Egress);
    }
    None
}

/// The buffer of a call, by the arguments that its registers still hold.
#[inline(always)]
pub fn buffer_of(regs: u64, number: u32, scratch: *mut Scratch) -> UserBuffer {
    let config = config();
    let syscalls = &config.syscalls;
    // SAFETY: `regs` is the tracepoint's typed argument, the offset is that of `pt_regs`.
    let second: u64 = unsafe { load(regs, config.offsets.regs_args[1]) };
    if number == syscalls.read
        || number == syscalls.write
        || number == syscalls.sendto
        || number == syscalls.recvfrom
    {
        return UserBuffer::single(second);
    }
    if number == syscalls.readv || number == syscalls.writev {
        // SAFETY: as above.
        let count = unsafe { load(regs, config.offsets.regs_args[2]) };
        return UserBuffer::of_vector(second, count, scratch);
    }
    if number == syscalls.sendfile || number == syscalls.splice {
        return UserBuffer::NONE;
    }
    // A `struct mmsghdr` begins with its `struct msghdr`.
    UserBuffer::of_message(second, scratch)
}
