//! The connection map: how a socket enters it and leaves it.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
};
use ebpf_common::{
    RecordKind,
    config::MISSING,
    connection::{
        CloseReason, ConnectionClosed, ConnectionOpened, ConnectionState, Cursor, closed, family,
        protocol_state,
    },
    loss::LossReason,
};

use crate::{
    delivery::busy_ticks,
    kernel::{read, socket_inode},
    maps::{CONNECTIONS, Scratch, config, count_loss},
    queue,
    ring::send,
};

/// No segment yet: differs from both directions.
const NO_DIRECTION: u8 = 255;

/// The state of `sock`; a socket seen for the first time enters the map and is told to the agent.
/// `None` where the map is full.
#[inline(always)]
pub fn get_or_open(sock: u64, family: u16, scratch: *mut Scratch) -> Option<*mut ConnectionState> {
    if let Some(state) = CONNECTIONS.get_ptr_mut(sock) {
        if family != family::UNIX {
            return Some(state);
        }
        // No tracepoint tells the end of a Unix socket; its address may have a new owner.
        let inode = socket_inode(&config().offsets, sock);
        // SAFETY: the map's own element, checked for null above.
        if unsafe { (*state).inode } == inode {
            return Some(state);
        }
        end(sock, state, CloseReason::Replaced);
    }
    open(sock, family, scratch)
}

/// Puts a connection into the map and tells the agent. Not inlined: it runs once a connection and
/// would otherwise be verified at each place that may open one. Its records are built in the
/// scratch, since all frames of a program share 512 bytes of stack.
#[inline(never)]
fn open(sock: u64, family: u16, scratch: *mut Scratch) -> Option<*mut ConnectionState> {
    // SAFETY: this program's scratch.
    let connection_id = unsafe { (*scratch).next_connection_id() };
    // SAFETY: as above.
    let (state, opened) = unsafe { (&mut (*scratch).state, &mut (*scratch).opened) };
    let offsets = &config().offsets;
    let is_inet = family != family::UNIX;
    let net: u64 = read(sock, offsets.sock_net);

    opened.kind = RecordKind::ConnectionOpened as u8;
    opened.family = family;
    opened.local_port = if is_inet {
        read(sock, offsets.sock_local_port)
    } else {
        0
    };
    opened.remote_port = if is_inet {
        u16::from_be(read(sock, offsets.sock_remote_port))
    } else {
        0
    };
    opened.connection_id = connection_id;
    opened.socket = sock;
    opened.inode = socket_inode(offsets, sock);
    // SAFETY: no arguments.
    opened.time_ns = unsafe { bpf_ktime_get_ns() };
    opened.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    opened.network_namespace = read(net, offsets.net_inum);
    opened.local_address = address(sock, family, offsets.sock_local_v4, offsets.sock_local_v6);
    opened.remote_address = address(sock, family, offsets.sock_remote_v4, offsets.sock_remote_v6);

    state.connection_id = opened.connection_id;
    state.inode = opened.inode;
    state.cursors = [Cursor {
        offset_bytes: 0,
        last_ns: 0,
    }; 2];
    state.budget_bytes = [0; 2];
    state.pid = opened.pid;
    state.family = family as u8;
    state.kept = 0;
    // By the CPU that opened it: threads tend to stay where they are, and a ring that one CPU
    // writes costs half of one that all CPUs write.
    // SAFETY: as above.
    state.ring = (unsafe { (*scratch).cpu } % config().rings.max(1)) as u8;
    state.protocol = protocol_state::UNKNOWN;
    state.last_direction = NO_DIRECTION;
    state.strikes = 0;
    state.closed = 0;
    state.close_reason = CloseReason::Fin as u8;
    state.ports = [opened.local_port, opened.remote_port];
    state.addresses = [opened.local_address, opened.remote_address];
    state.network_namespace = opened.network_namespace;
    state.copied_seq = if is_inet {
        read(sock, offsets.tcp_copied_seq)
    } else {
        0
    };
    state.peer_socket = if is_inet || offsets.unix_peer == MISSING {
        0
    } else {
        read(sock, offsets.unix_peer)
    };
    state.opened_ns = opened.time_ns;
    state.arrived_ns = queue::take_first_arrival(sock);

    if CONNECTIONS
        .insert(sock, &*state, u64::from(BPF_NOEXIST))
        .is_err()
    {
        // Another thread of the process may have moved bytes at the same time, and been first.
        let others = CONNECTIONS.get_ptr_mut(sock);
        if others.is_none() {
            count_loss(LossReason::ConnectionsFull);
        }
        return others;
    }
    send(
        state.ring,
        core::ptr::from_ref(opened).cast(),
        size_of::<ConnectionOpened>(),
    );
    CONNECTIONS.get_ptr_mut(sock)
}

/// One address of a socket, as [`ConnectionOpened`] carries it.
#[inline(always)]
fn address(sock: u64, family: u16, v4: u32, v6: u32) -> [u8; 16] {
    // Whole words: the compiler's own loop over bytes would be verified byte by byte.
    let words: [u64; 2] = if family == family::INET6 && v6 != MISSING {
        read(sock, v6)
    } else if family == family::INET {
        [u64::from(read::<u32>(sock, v4)), 0]
    } else {
        [0, 0]
    };
    // SAFETY: two words are sixteen bytes, of which every pattern is a value.
    unsafe { core::mem::transmute(words) }
}

/// Tells the agent that `directions` of a connection have ended, once each.
#[inline(always)]
pub fn tell_closed(sock: u64, state: *mut ConnectionState, directions: u8, reason: CloseReason) {
    // SAFETY: a map element that the caller looked up.
    let state = unsafe { &mut *state };
    let news = directions & !state.closed;
    if news == 0 {
        return;
    }
    state.closed |= news;
    if matches!(state.protocol, protocol_state::OTHER | protocol_state::TLS) {
        return;
    }
    let record = ConnectionClosed {
        kind: RecordKind::ConnectionClosed as u8,
        directions: news,
        reason: reason as u8,
        padding: 0,
        busy_ticks: busy_ticks(sock, u16::from(state.family)),
        connection_id: state.connection_id,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cursors: state.cursors,
    };
    send(
        state.ring,
        core::ptr::from_ref(&record).cast(),
        size_of::<ConnectionClosed>(),
    );
}

/// Ends a connection: tells the agent what it has not been told and frees the map's slot.
#[inline(always)]
pub fn end(sock: u64, state: *mut ConnectionState, reason: CloseReason) {
    tell_closed(sock, state, closed::BOTH, reason);
    let _ = CONNECTIONS.remove(sock);
}
