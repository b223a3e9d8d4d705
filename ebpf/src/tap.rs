//! The syscall tap: one program on `sys_exit` reads what a call moved.
//!
//! At `sys_exit` the saved registers still hold the call's arguments, so that no `sys_enter` is
//! needed. From 6.3 on, `sock_send_length` and `sock_recv_length` fire inside the call with the
//! typed socket and mark the thread, so that `sys_exit` leaves after one look for every other
//! call. Before 6.3 it walks from the descriptor to the socket (`walk.rs`).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use ebpf_common::{
    connection::{CloseReason, Direction, closed},
    loss::LossReason,
};

use crate::{
    buffer::{UserBuffer, buffer_of, direction_of},
    connection::{end, get_or_open, tell_closed},
    kernel::{RECEIVE_SHUTDOWN, SHUTDOWN_MASK, is_followed, load, shutdown},
    maps::{CONNECTIONS, MARKS, config, count_loss, mark_of},
    segment::{Segment, handle},
    walk,
};

/// `MSG_PEEK | MSG_ERRQUEUE`: the bytes stay, or are not the stream's.
const NOT_CONSUMED: u32 = 0x2 | 0x2000;
/// `MSG_TRUNC`: TCP throws the bytes away without copying them.
const DISCARDED: u32 = 0x20;
/// `-ECONNRESET`
const RESET: i32 = -104;

/// `sock_send_length(sk, ret, flags)`, since 6.3.
#[btf_tracepoint(function = "sock_send_length")]
pub fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    // The kernel passes 0 for the flags of a send.
    mark(ctx.arg(0), ctx.arg(1), 0, Direction::Egress);
    0
}

/// `sock_recv_length(sk, ret, flags)`, since 6.3.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    mark(ctx.arg(0), ctx.arg(1), ctx.arg(2), Direction::Ingress);
    0
}

/// Notes on the thread that its call moved `moved` bytes through `sock`.
#[inline(always)]
fn mark(sock: u64, moved: i32, flags: u32, direction: Direction) {
    let offsets = &config().offsets;
    // SAFETY: `sock` is the tracepoint's typed argument, the offsets are those of `struct sock`.
    let (family, socket_type) = unsafe {
        (
            load::<u16>(sock, offsets.sock_family),
            load::<u16>(sock, offsets.sock_type),
        )
    };
    if !is_followed(family, socket_type) || flags & NOT_CONSUMED != 0 {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    if (thread >> 32) as u32 == config().agent_pid {
        return;
    }
    if moved <= 0 {
        if direction == Direction::Ingress {
            receive_ended(sock, moved);
        }
        return;
    }
    let Some(mark) = mark_of(thread as u32) else {
        count_loss(LossReason::MarksFull);
        return;
    };
    // SAFETY: the map's own element, which only this thread uses.
    let mark = unsafe { &mut *mark };
    // SAFETY: no arguments.
    mark.time_ns = unsafe { bpf_ktime_get_ns() };
    let direction = direction as u16;
    if mark.bytes != 0 {
        if mark.socket == sock && mark.direction == direction {
            // sendmmsg, sendfile and the like move bytes more than once a call.
            mark.bytes += moved as u64;
            return;
        }
        // io_uring and kernel users of sockets never reach a `sys_exit` that reads their buffers.
        count_loss(LossReason::NoSyscall);
    }
    mark.socket = sock;
    mark.bytes = moved as u64;
    mark.flags = flags;
    mark.direction = direction;
    mark.family = family;
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
        tell_closed(state, closed::BOTH, CloseReason::Reset);
        return;
    }
    let shutdown = shutdown(&config().offsets, sock);
    if shutdown & RECEIVE_SHUTDOWN == 0 {
        // A read into no room.
        return;
    }
    tell_closed(state, closed::INGRESS, CloseReason::Fin);
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
        tell_closed(state, closed::BOTH, CloseReason::Fin);
    }
}

/// `sys_exit(regs, ret)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let regs: u64 = ctx.arg(0);
    let config = config();
    // SAFETY: `regs` is the tracepoint's typed argument, the offset is that of `pt_regs`.
    let syscall = unsafe { load::<u64>(regs, config.offsets.regs_syscall) } as u32;
    let Some(direction) = direction_of(&config.syscalls, syscall) else {
        return 0;
    };
    if config.use_marks == 0 {
        walk::handle_exit(regs, syscall, ctx.arg(1));
        return 0;
    }
    let Some(slot) = MARKS.get_ptr_mut(bpf_get_current_pid_tgid() as u32) else {
        return 0;
    };
    // SAFETY: the map's own element, which only this thread uses.
    let mark = unsafe { *slot };
    if mark.bytes == 0 {
        return 0;
    }
    // SAFETY: as above.
    unsafe { (*slot).bytes = 0 };
    let buffer = if mark.flags & DISCARDED != 0 {
        UserBuffer::NONE
    } else if direction as u16 != mark.direction && syscall != config.syscalls.splice {
        count_loss(LossReason::UnknownSyscall);
        UserBuffer::NONE
    } else {
        buffer_of(regs, syscall)
    };
    let direction = if mark.direction == Direction::Egress as u16 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    if let Some(state) = get_or_open(mark.socket, mark.family) {
        handle(&Segment {
            socket: mark.socket,
            state,
            direction,
            len: mark.bytes,
            time_ns: mark.time_ns,
            buffer,
        });
    }
    0
}
