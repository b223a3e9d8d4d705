//! The fentry tap: programs at the end of the kernel functions that move a socket's bytes
//! (BPF trampolines, 5.5 and later, where the kernel lets functions be traced).
//!
//! Nothing but a call on a socket runs them, and they need no system call's registers: where the
//! bytes are, the message's own iterator says. It has advanced by then, and how far is known, so
//! that it can be followed back. What io_uring moves, each message of a sendmmsg, and programs of
//! 32 bits look like all others here.
//!
//! `inet_sendmsg` rather than `tcp_sendmsg`: Multipath TCP and sockets with a BPF message parser
//! (sockmap) go through it as well. sendfile and splice come this way from 6.5 on, through
//! `sock_sendpage` before; splice from a socket through `sock_splice_read`.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::fexit,
    programs::FExitContext,
};
use ebpf_common::{
    connection::{Direction, family},
    loss::LossReason,
};

use crate::{
    buffer::{MAX_VECTOR, UserBuffer},
    connection::get_or_open,
    kernel::{is_followed, load, read},
    maps::{Scratch, config, count_loss, scratch},
    rest::finish,
    segment::{Left, NOTHING, Segment, handle, is_of_interest},
    tap::receive_ended,
};

/// `MSG_PEEK | MSG_ERRQUEUE`: the bytes stay, or are not the stream's.
const NOT_CONSUMED: u32 = 0x2 | 0x2000;

/// `IPPROTO_TCP`
const TCP: u16 = 6;

/// `MSG_SPLICE_PAGES` of `msg_flags` (6.5): the pages of a file or a pipe.
const SPLICE_PAGES: u32 = 0x0800_0000;

/// `sizeof(struct iovec)`
const IOVEC_BYTES: u64 = 16;

/// How far back the beginning of a vector may be: so many times what the scratch record holds, 264
/// pieces. The kernel takes 1,024 at a time, but each step is the verifier's as well.
const MAX_STEPS: u64 = 11;

// Each program reads its function's result and flags itself: shared code would have to calculate
// where they are, which the verifier forbids.
macro_rules! programs {
    ($($name:ident = $slot:literal, $result:literal, $flags:expr, $what:literal;)*) => { $(
        #[doc = concat!("The end of `", stringify!($name), $what, "`.")]
        #[fexit]
        pub fn $name(ctx: FExitContext) -> i32 {
            let flags: fn(&FExitContext) -> u32 = $flags;
            finish(returned(ctx.as_ptr(), $slot, ctx.arg($result), flags(&ctx)))
        }
    )* };
}
// A task may be preempted in the middle of a program by one that runs another, so that each has a
// scratch record of its own. Odd numbers are egress.
programs! {
    inet_recvmsg = 0, 4, |ctx| ctx.arg(3), "(struct socket *, struct msghdr *, size_t, int flags)";
    inet_sendmsg = 1, 3, |_| 0, "(struct socket *, struct msghdr *, size_t)";
    inet6_recvmsg = 2, 4, |ctx| ctx.arg(3), ", as of inet_recvmsg";
    inet6_sendmsg = 3, 3, |_| 0, ", as of inet_sendmsg";
    unix_stream_recvmsg = 4, 4, |ctx| ctx.arg(3), ", as of inet_recvmsg";
    unix_stream_sendmsg = 5, 3, |_| 0, ", as of inet_sendmsg";
    sock_splice_read = 6, 5, |_| 0, "(struct file *, loff_t *, struct pipe_inode_info *, size_t, int)";
    sock_sendpage = 7, 6, |_| 0, "(struct file *, struct page *, int, size_t, loff_t *, int)";
}
const SPLICE_READ: u32 = 6;

/// What a function worked on.
struct Call {
    sock: u64,
    family: u16,
    socket_type: u16,
    /// The `struct msghdr`, of `size` bytes or with room for so many; zeroes where it has none.
    message: u64,
    size: u64,
}

/// The function of program number `slot` has returned bytes or `-errno`; `flags` are `MSG_*`. A
/// function of its own, which the programs share: see [`handle`].
#[inline(never)]
fn returned(context: *mut c_void, slot: u32, result: i32, flags: u32) -> Left {
    let ctx = FExitContext::new(context);
    let is_egress = slot & 1 == Direction::Egress as u32;
    let call = if slot < SPLICE_READ {
        message_moved(ctx.arg(0), ctx.arg(1), ctx.arg(2))
    } else {
        pages_moved(ctx.arg(0))
    };
    if !is_followed(call.family, call.socket_type) || flags & NOT_CONSUMED != 0 {
        return NOTHING;
    }
    if (bpf_get_current_pid_tgid() >> 32) as u32 == config().agent_pid {
        return NOTHING;
    }
    if result <= 0 {
        if !is_egress {
            receive_ended(call.sock, result);
        }
        return NOTHING;
    }
    let Some(scratch) = scratch(slot) else {
        return NOTHING;
    };
    // SAFETY: this program's scratch, for every access to `buffer`.
    let buffer = unsafe { &raw mut (*scratch).buffer };
    // SAFETY: as above.
    unsafe { buffer.write_volatile(UserBuffer::NONE) };
    if slot < SPLICE_READ {
        find_buffer(call.message, call.size, scratch);
    }
    if let Some(state) = get_or_open(call.sock, call.family, scratch)
        && is_of_interest(state)
    {
        if !is_egress {
            // What `splice` reads is seen here: nothing is read past this tap.
            // SAFETY: the map's own element, which was looked up just now.
            unsafe { (*state).copied_seq = read(call.sock, config().offsets.tcp_copied_seq) };
        }
        return handle(&Segment {
            socket: call.sock,
            state,
            // Asked for again rather than kept: stack is scarce.
            thread: bpf_get_current_pid_tgid(),
            direction: if is_egress {
                Direction::Egress
            } else {
                Direction::Ingress
            },
            len: result as u64,
            read_past: 0,
            // SAFETY: no arguments.
            time_ns: unsafe { bpf_ktime_get_ns() },
            // SAFETY: as above.
            buffer: unsafe { buffer.read_volatile() },
            scratch,
        });
    }
    NOTHING
}

/// A message went through a socket.
#[inline(always)]
fn message_moved(socket: u64, message: u64, size: u64) -> Call {
    let offsets = &config().offsets;
    // SAFETY: `socket` is a typed argument, and the verifier knows the type of its `sk`.
    unsafe {
        let sock = load::<u64>(socket, offsets.socket_sk);
        Call {
            sock,
            family: load(sock, offsets.sock_family),
            socket_type: load(sock, offsets.sock_type),
            message,
            size,
        }
    }
}

/// Bytes of a file or a pipe went into the socket of `file`, or the other way, and never were in
/// the process's memory.
#[inline(always)]
fn pages_moved(file: u64) -> Call {
    let offsets = &config().offsets;
    let socket: u64 = read(file, offsets.file_private_data);
    let sock: u64 = read(socket, offsets.socket_sk);
    let family = read(sock, offsets.sock_family);
    // What has no splice of its own (Multipath TCP) is sent and read as messages underneath.
    let is_seen_elsewhere =
        family != family::UNIX && read::<u16>(sock, offsets.sock_protocol) != TCP;
    Call {
        sock,
        family: if is_seen_elsewhere { 0 } else { family },
        socket_type: read(sock, offsets.sock_type),
        message: 0,
        size: 0,
    }
}

/// Leaves in the scratch record where the bytes are that a message of `size` bytes has moved. A
/// function of its own, with a part of the 512 bytes of stack for itself alone.
#[inline(never)]
fn find_buffer(message: u64, size: u64, scratch: *mut Scratch) {
    let buffer = buffer_of_message(message, size, scratch);
    // SAFETY: this program's scratch.
    unsafe { (&raw mut (*scratch).buffer).write_volatile(buffer) };
}

#[inline(always)]
fn buffer_of_message(message: u64, size: u64, scratch: *mut Scratch) -> UserBuffer {
    let (offsets, iterators) = (&config().offsets, &config().iterators);
    // SAFETY: a typed argument, and offsets of `struct msghdr`.
    let (kind, offset, count) = unsafe {
        (
            load::<u8>(message, offsets.msg_iter_type) & iterators.type_mask as u8,
            load::<u64>(message, offsets.msg_iter_offset),
            load::<u64>(message, offsets.msg_iter_count),
        )
    };
    // Thrown away rather than copied (`MSG_TRUNC`) where it is zero.
    let advanced = size.wrapping_sub(count);
    if advanced == 0 || advanced > size {
        return UserBuffer::NONE;
    }
    // As a number: the verifier lets nobody calculate with a pointer to a type that it knows.
    // SAFETY: as above.
    let memory = Scratch::forget(scratch, unsafe { load(message, offsets.msg_iter_memory) });
    if u32::from(kind) == iterators.ubuf {
        return UserBuffer::single(memory.wrapping_add(offset).wrapping_sub(advanced));
    }
    if u32::from(kind) == iterators.iovec {
        return buffer_of_vector(memory, offset, advanced, scratch);
    }
    // SAFETY: as above.
    if unsafe { load::<u32>(message, offsets.msg_flags) } & SPLICE_PAGES == 0 {
        // The kernel's own memory, or buffers that were registered with io_uring.
        count_loss(LossReason::NoSyscall);
    }
    UserBuffer::NONE
}

/// The buffer of a vector of which the iterator has come to `offset` in the piece at `vector`,
/// `advanced` bytes past its start. The pieces before it are still there.
#[inline(always)]
fn buffer_of_vector(vector: u64, offset: u64, advanced: u64, scratch: *mut Scratch) -> UserBuffer {
    // Most calls have one piece, or end in the one that they began in.
    if !UserBuffer::read_kernel_vector(vector.wrapping_sub(IOVEC_BYTES), 2, scratch) {
        return UserBuffer::UNREADABLE;
    }
    // SAFETY: this program's scratch record.
    let ([previous, previous_len], [current, _]) =
        unsafe { ((*scratch).vector[0], (*scratch).vector[1]) };
    if advanced <= offset {
        return UserBuffer::single(current.wrapping_add(offset - advanced));
    }
    let before = advanced - offset;
    if offset == 0 && before <= previous_len {
        return UserBuffer::single(previous.wrapping_add(previous_len - before));
    }
    let (start, skip) = rewind(vector, before, scratch);
    if start == 0 {
        return UserBuffer::UNREADABLE;
    }
    let pieces = (vector - start) / IOVEC_BYTES + u64::from(offset > 0);
    UserBuffer::of_kernel_vector(start, pieces, skip, scratch)
}

/// Goes back `left` bytes from the beginning of the piece at `vector`: the address of the piece
/// where that is, or 0, and how far into it.
#[inline(always)]
fn rewind(vector: u64, left: u64, scratch: *mut Scratch) -> (u64, u64) {
    // SAFETY: this program's scratch record. See `UserBuffer::capture_vector` for why.
    let walk = unsafe { &raw mut (*scratch).walk };
    let (mut left, mut end) = (left, vector);
    // A window at a time, and then a piece at a time within the last one: a loop through all that
    // there may be would take the verifier 60,000 steps.
    let mut step = 0;
    while step < MAX_STEPS {
        let window = end.wrapping_sub(MAX_VECTOR * IOVEC_BYTES);
        if !UserBuffer::read_kernel_vector(window, MAX_VECTOR, scratch) {
            return (0, 0);
        }
        // What lies before the first piece is not one: a length that cannot be marks it.
        let (mut sum, mut any, mut index) = (0u64, 0u64, 0);
        while index < MAX_VECTOR {
            let len = length_of(scratch, index);
            sum = sum.wrapping_add(len);
            any |= len;
            index += 1;
        }
        if any >> 32 != 0 || sum >= left {
            break;
        }
        left = Scratch::forget(scratch, left - sum);
        end = Scratch::forget(scratch, window);
        step += 1;
    }
    // A member at a time: the whole of it would be kept on the stack.
    // SAFETY: as above, for every access to them.
    let (left_at, end_at) = unsafe { (&raw mut (*walk).left, &raw mut (*walk).end) };
    // SAFETY: as above.
    unsafe {
        left_at.write_volatile(left);
        end_at.write_volatile(end);
    }
    let mut index = MAX_VECTOR;
    while index > 0 {
        index -= 1;
        let len = length_of(scratch, index);
        // SAFETY: as above.
        let (left, end) = unsafe {
            (
                left_at.read_volatile(),
                end_at.read_volatile().wrapping_sub(IOVEC_BYTES),
            )
        };
        if left <= len {
            return (end, len - left);
        }
        // SAFETY: as above.
        unsafe {
            left_at.write_volatile(left - len);
            end_at.write_volatile(end);
        }
    }
    (0, 0)
}

/// Length of a piece that the scratch record holds. Opaque to the compiler, which would keep all
/// lengths or their addresses on the stack.
#[inline(always)]
fn length_of(scratch: *mut Scratch, index: u64) -> u64 {
    let index = core::hint::black_box(index);
    if index >= MAX_VECTOR {
        return 0;
    }
    // SAFETY: this program's scratch record, and an index that is checked.
    unsafe { (&raw const (*scratch).vector[index as usize][1]).read_volatile() }
}
