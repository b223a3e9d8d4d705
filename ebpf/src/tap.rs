//! The taps: what a call moved through a stream socket.
//!
//! *Socket* (6.3 and later): `sock_send_length` and `sock_recv_length` fire inside the call with the
//! typed socket and the count of bytes, and the thread's saved registers still hold the call's
//! arguments, so that the buffer is found without a probe on system calls: those that are not
//! socket calls cost nothing at all.
//!
//! *Fentry*: the ends of the kernel's own functions (`fentry.rs`).
//!
//! *Walk*: one program on `sys_exit`, which goes from the descriptor to the socket
//! (`walk.rs`).

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_skc_to_tcp_sock,
        bpf_task_pt_regs,
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use ebpf_common::{
    connection::{CloseReason, ConnectionState, Direction, closed, family, protocol_state},
    loss::LossReason,
};

use crate::{
    buffer::{UserBuffer, buffer_of, direction_of},
    connection::{end, get_or_open, tell_closed},
    kernel::{RECEIVE_SHUTDOWN, SHUTDOWN_MASK, is_followed, load, shutdown},
    maps::{CONNECTIONS, Scratch, config, count_loss, scratch},
    messages::{buffer_of_message, end_call},
    rest::finish,
    segment::{Left, NOTHING, Segment, handle, is_of_interest},
    tcp::counts_otherwise,
    walk,
};

/// `MSG_PEEK | MSG_ERRQUEUE`: the bytes stay, or are not the stream's.
const NOT_CONSUMED: u32 = 0x2 | 0x2000;
/// `MSG_TRUNC`: TCP throws the bytes away without copying them.
const DISCARDED: u32 = 0x20;
/// `-ECONNRESET`
const RESET: i32 = -104;
/// `-ENOSYS`: what the result register holds from a call's entry to its end.
const UNDER_WAY: i64 = -38;

/// `sock_send_length(sk, ret, flags)`, since 6.3.
#[btf_tracepoint(function = "sock_send_length")]
pub fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    // The kernel passes 0 for the flags of a send.
    finish(moved(ctx.arg(0), ctx.arg(1), 0, Direction::Egress))
}

/// `sock_recv_length(sk, ret, flags)`, since 6.3.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    finish(moved(
        ctx.arg(0),
        ctx.arg(1),
        ctx.arg(2),
        Direction::Ingress,
    ))
}

/// The call that this thread is in moved `len` bytes through `sock`, or failed with `-errno`. A
/// function of its own, which the programs share: see [`handle`].
#[inline(never)]
fn moved(sock: u64, len: i32, flags: u32, direction: Direction) -> Left {
    let offsets = &config().offsets;
    // SAFETY: `sock` is the tracepoint's typed argument, the offsets are those of `struct sock`.
    let (family, socket_type) = unsafe {
        (
            load::<u16>(sock, offsets.sock_family),
            load::<u16>(sock, offsets.sock_type),
        )
    };
    if !is_followed(family, socket_type) || flags & NOT_CONSUMED != 0 {
        return NOTHING;
    }
    let thread = bpf_get_current_pid_tgid();
    if (thread >> 32) as u32 == config().agent_pid {
        return NOTHING;
    }
    if len <= 0 {
        end_messages(thread);
        if matches!(direction, Direction::Ingress) {
            receive_ended(sock, len);
        }
        return NOTHING;
    }
    let Some(scratch) = scratch(direction as u32) else {
        return NOTHING;
    };
    let Some(state) = get_or_open(sock, family, scratch) else {
        return NOTHING;
    };
    // Before all else: other protocols pay for no more than this.
    if !is_of_interest(state) {
        return NOTHING;
    }
    let buffer = if flags & DISCARDED != 0 {
        UserBuffer::NONE
    } else {
        buffer_of_call(sock, len as u64, thread, direction, scratch)
    };
    let buffer = buffer.forget(scratch);
    let read_past = if matches!(direction, Direction::Ingress) && family != family::UNIX {
        read_past(sock, state, len as u32)
    } else {
        0
    };
    let read_past = Scratch::forget(scratch, read_past);
    handle(&Segment {
        socket: sock,
        state,
        thread,
        direction,
        len: len as u64,
        read_past,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        buffer,
        scratch,
    })
}

/// The registers of the call that this thread is in, and its number.
#[inline(always)]
fn call() -> (u64, u32) {
    // SAFETY: the helpers give typed pointers, the offset is that of `pt_regs`.
    unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as u64;
        (
            regs,
            load::<u64>(regs, config().offsets.regs_syscall) as u32,
        )
    }
}

/// The buffer of the call that this thread is in, which moves `len` bytes; none, counted, where it
/// is no call that moves bytes this way through the thread's own memory.
#[inline(always)]
fn buffer_of_call(
    sock: u64,
    len: u64,
    thread: u64,
    direction: Direction,
    scratch: *mut Scratch,
) -> UserBuffer {
    let config = config();
    let (offsets, syscalls) = (&config.offsets, &config.syscalls);
    let (regs, syscall) = call();
    // SAFETY: a typed pointer, the offset is that of `pt_regs`.
    let result = unsafe { load::<i64>(regs, offsets.regs_result) };
    // io_uring moves bytes on threads of its own, or on the way out of any other call, which has
    // its result by then. 32-bit programs have other numbers.
    if result != UNDER_WAY {
        count_loss(LossReason::NoSyscall);
        return UserBuffer::NONE;
    }
    if syscall == syscalls.sendfile || syscall == syscalls.splice {
        return UserBuffer::NONE;
    }
    if direction_of(syscalls, syscall) != Some(direction) {
        count_loss(LossReason::UnknownSyscall);
        return UserBuffer::NONE;
    }
    if syscall == syscalls.sendmmsg || syscall == syscalls.recvmmsg {
        // SAFETY: as above.
        let [messages, count]: [u64; 2] = unsafe {
            [
                load(regs, offsets.regs_args[1]),
                load(regs, offsets.regs_args[2]),
            ]
        };
        let count = count & 0xffff_ffff;
        if count != 1 {
            let is_sent = syscall == syscalls.sendmmsg;
            return buffer_of_message(thread, sock, [messages, count], len, is_sent, scratch);
        }
    }
    buffer_of(regs, syscall, scratch)
}

/// The call that this thread is in has failed, and with it one of several messages.
#[inline(always)]
fn end_messages(thread: u64) {
    let (_, syscall) = call();
    let syscalls = &config().syscalls;
    if syscall == syscalls.sendmmsg || syscall == syscalls.recvmmsg {
        end_call(thread);
    }
}

/// How many bytes were read since the last call that the tap saw, before the `len` of this one:
/// `tcp_splice_read` fires no tracepoint, nor do io_uring's and TCP's own ways of reading without a
/// copy.
#[inline(always)]
fn read_past(sock: u64, state: *mut ConnectionState, len: u32) -> u64 {
    let offsets = &config().offsets;
    // SAFETY: the tracepoint's typed argument.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sock as *mut _) } as u64;
    if tcp == 0 {
        return 0;
    }
    // SAFETY: typed by the helper; the offset is that of `struct tcp_sock`.
    let copied_seq: u32 = unsafe { load(tcp, offsets.tcp_copied_seq) };
    // SAFETY: the map's own element, which the caller looked up.
    let state = unsafe { &mut *state };
    let past = copied_seq.wrapping_sub(len).wrapping_sub(state.copied_seq);
    state.copied_seq = copied_seq;
    // The end of the stream and urgent data count one each, and are no bytes of it. Less than what
    // was read is the rule at the connection's first read.
    if !(2..=u32::MAX / 2).contains(&past) {
        return 0;
    }
    if counts_otherwise(sock) {
        return 0;
    }
    if protocol_state::is_http(state.protocol) {
        count_loss(LossReason::ReadPast);
    }
    u64::from(past)
}

/// A read came back without bytes: the end of the stream, or of the connection.
#[inline(always)]
pub fn receive_ended(sock: u64, result: i32) {
    if result != 0 && result != RESET {
        return;
    }
    let Some(state) = CONNECTIONS.get_ptr_mut(sock) else {
        return;
    };
    if result == RESET {
        tell_closed(sock, state, closed::BOTH, CloseReason::Reset);
        return;
    }
    let shutdown = shutdown(&config().offsets, sock);
    if shutdown & RECEIVE_SHUTDOWN == 0 {
        // A read into no room.
        return;
    }
    tell_closed(sock, state, closed::INGRESS, CloseReason::Fin);
    // SAFETY: the map's own element, checked for null above.
    let peer = unsafe { (*state).peer_socket };
    if peer != 0
        && shutdown & SHUTDOWN_MASK == SHUTDOWN_MASK
        && let Some(peer_state) = CONNECTIONS.get_ptr_mut(peer)
        // SAFETY: as above. The address may have a new owner; that one's peer is another socket.
        && unsafe { (*peer_state).peer_socket } == sock
    {
        // The peer of a Unix socket is gone; nothing else tells it.
        end(peer, peer_state, CloseReason::Fin);
        tell_closed(sock, state, closed::BOTH, CloseReason::Fin);
    }
}

/// `sys_exit(regs, ret)`, attached before 6.3 alone.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let regs: u64 = ctx.arg(0);
    let config = config();
    // SAFETY: `regs` is the tracepoint's typed argument, the offset is that of `pt_regs`.
    let syscall = unsafe { load::<u64>(regs, config.offsets.regs_syscall) } as u32;
    if let Some(direction) = direction_of(&config.syscalls, syscall) {
        return finish(walk::handle_exit(regs, syscall, direction, ctx.arg(1)));
    }
    0
}
