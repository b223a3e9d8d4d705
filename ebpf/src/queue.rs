//! When bytes arrived that the process has not read yet: where a request's queue time begins.
//!
//! `sk_data_ready` (6.3 and later) fires for each arrival at a socket of any family, `tcp_probe`
//! (before 6.3) for each segment of an established TCP connection, bare acknowledgements included.
//! One of them is attached. Only the first of the bytes that wait is noted; each read takes it.

use aya_ebpf::{
    btf_maps::LruHashMap,
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use ebpf_common::connection::{FirstArrival, NOT_AWAITED, family};

use crate::{
    kernel::{is_followed, load, read},
    maps::{CONNECTIONS, config},
};

/// `BPF_NOEXIST`
const IF_ABSENT: u64 = 1;

/// Sockets that are ready or have bytes, and of which nobody has read a first one. An older one
/// goes where there is no room: its first request has no queue time then.
#[btf_map]
static FIRST_ARRIVALS: LruHashMap<u64, FirstArrival, 8192> = LruHashMap::new();

/// `sk_data_ready(sk)`, since 6.3: the bytes lie in the socket's queue, and readers are about to be
/// woken.
#[btf_tracepoint(function = "sk_data_ready")]
pub fn sk_data_ready(ctx: BtfTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    let offsets = &config().offsets;
    // SAFETY: `sock` is the tracepoint's typed argument, the offsets are those of `struct sock`.
    let (family, socket_type, unread) = unsafe {
        (
            load::<u16>(sock, offsets.sock_family),
            load::<u16>(sock, offsets.sock_type),
            load::<u32>(sock, offsets.sock_unread),
        )
    };
    // Nothing to read: a listener has a connection, or a reader of a Unix socket, which shares no
    // lock with the writer, has been faster.
    if !is_followed(family, socket_type) || unread == 0 {
        return 0;
    }
    // A Unix socket has a buffer a write, and no tracepoint tells its end: what is noted here may
    // be of another socket that had the address.
    if family == family::UNIX && unread > 1 {
        return 0;
    }
    note_arrival(sock, family == family::UNIX);
    0
}

/// `tcp_probe(sk, skb)`: a segment comes in.
#[btf_tracepoint(function = "tcp_probe")]
pub fn tcp_probe(ctx: BtfTracePointContext) -> i32 {
    let (sock, skb): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    // `tcp_skb_cb` begins with the numbers of its first byte and of the one behind its last, as it
    // has since 2.6.
    let [first, end]: [u32; 2] = read(skb, config().offsets.skb_control);
    if first != end {
        note_arrival(sock, false);
    }
    0
}

/// Notes that bytes have arrived, unless others wait already. `is_first`: none do, whatever was
/// noted.
#[inline(always)]
fn note_arrival(sock: u64, is_first: bool) {
    let Some(state) = CONNECTIONS.get_ptr_mut(sock) else {
        note_first_arrival(sock, is_first);
        return;
    };
    // SAFETY: the map's own element, checked for null above.
    let state = unsafe { &mut *state };
    if state.arrived_ns == 0 || is_first && state.arrived_ns != NOT_AWAITED {
        // SAFETY: no arguments.
        state.arrived_ns = unsafe { bpf_ktime_get_ns() };
    }
}

/// The same for a socket that nobody has read.
#[inline(always)]
fn note_first_arrival(sock: u64, is_first: bool) {
    // SAFETY: no arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let Some(noted) = FIRST_ARRIVALS.get_ptr_mut(sock) else {
        let first = FirstArrival {
            ready_ns: 0,
            arrived_ns: now_ns,
        };
        let _ = FIRST_ARRIVALS.insert(sock, first, IF_ABSENT);
        return;
    };
    // SAFETY: the map's own element, checked for null above.
    let noted = unsafe { &mut *noted };
    if noted.arrived_ns != 0 && !is_first {
        return;
    }
    // Who asks before the server has accepted waits for that too. Who connects ahead of time, as
    // browsers do, and asks later does not.
    let accepted = read::<u64>(sock, config().offsets.sock_socket) != 0;
    noted.arrived_ns = if accepted || noted.ready_ns == 0 {
        now_ns
    } else {
        noted.ready_ns
    };
}

/// A connection can be accepted.
#[inline(always)]
pub fn note_ready(sock: u64) {
    if config().queue_time == 0 {
        return;
    }
    let ready = FirstArrival {
        // SAFETY: no arguments.
        ready_ns: unsafe { bpf_ktime_get_ns() },
        arrived_ns: 0,
    };
    let _ = FIRST_ARRIVALS.insert(sock, ready, 0);
}

/// Where the queue time of a socket's first bytes begins, which are read now; 0 where nothing was
/// noted.
#[inline(always)]
pub fn take_first_arrival(sock: u64) -> u64 {
    if config().queue_time == 0 {
        return 0;
    }
    let Some(noted) = FIRST_ARRIVALS.get_ptr_mut(sock) else {
        return 0;
    };
    // SAFETY: the map's own element, checked for null above.
    let arrived_ns = unsafe { (*noted).arrived_ns };
    let _ = FIRST_ARRIVALS.remove(sock);
    arrived_ns
}

/// A socket is gone that nobody has read.
#[inline(always)]
pub fn forget(sock: u64) {
    if config().queue_time != 0 {
        let _ = FIRST_ARRIVALS.remove(sock);
    }
}
