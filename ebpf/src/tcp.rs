//! What becomes of TCP connections: `inet_sock_set_state`, `tcp_destroy_sock`.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use ebpf_common::{
    connection::{CloseReason, ConnectionState, closed, protocol_state},
    loss::LossReason,
};

use crate::{
    connection::{end, tell_closed},
    kernel::read,
    maps::{CONNECTIONS, config, count_loss},
    queue,
};

// `include/net/tcp_states.h`
const ESTABLISHED: i32 = 1;
const SYN_RECV: i32 = 3;
const FIN_WAIT1: i32 = 4;
const CLOSE: i32 = 7;
const LAST_ACK: i32 = 9;

/// `SOCK_DONE` of `sk_flags`: the peer has ended its stream.
const DONE: u64 = 1 << 1;

// `include/uapi/asm-generic/errno*.h`
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;

/// `inet_sock_set_state(sk, oldstate, newstate)`: the connection can be accepted, the process will write no more, or the
/// connection broke, and `sk_err` still says why.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    let (old_state, new_state): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if new_state == ESTABLISHED && old_state == SYN_RECV {
        queue::note_ready(sock);
        return 0;
    }
    if !matches!(new_state, FIN_WAIT1 | CLOSE | LAST_ACK) {
        return 0;
    }
    let Some(state) = CONNECTIONS.get_ptr_mut(sock) else {
        return 0;
    };
    if new_state != CLOSE {
        tell_closed(sock, state, closed::EGRESS, CloseReason::Fin);
        return 0;
    }
    // Bytes that arrived before the end may still be read: the end itself is told by
    // `tcp_destroy_sock`, or by the read that fails.
    let reason = match read::<i32>(sock, config().offsets.sock_err) {
        ECONNRESET | EPIPE => CloseReason::Reset,
        ETIMEDOUT => CloseReason::Timeout,
        _ => return 0,
    };
    // SAFETY: the map's own element, checked for null above.
    unsafe { (*state).close_reason = reason as u8 };
    0
}

/// `tcp_destroy_sock(sk)`: nobody will read or write this socket again.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    let sock: u64 = ctx.arg(0);
    let Some(state) = CONNECTIONS.get_ptr_mut(sock) else {
        queue::forget(sock);
        return 0;
    };
    note_read_past(sock, state);
    // SAFETY: the map's own element, checked for null above.
    let raw = unsafe { (*state).close_reason };
    end(
        sock,
        state,
        CloseReason::from_raw(raw).unwrap_or(CloseReason::Fin),
    );
    0
}

/// Moves the cursor over bytes that were read past the tap and that no later read told of.
#[inline(always)]
fn note_read_past(sock: u64, state: *mut ConnectionState) {
    // SAFETY: the map's own element, which the caller looked up.
    let state = unsafe { &mut *state };
    if !protocol_state::is_http(state.protocol) {
        // Nobody follows how far it has come.
        return;
    }
    let offsets = &config().offsets;
    let copied_seq: u32 = read(sock, offsets.tcp_copied_seq);
    let mut past = copied_seq.wrapping_sub(state.copied_seq);
    if !(2..=u32::MAX / 2).contains(&past) || counts_otherwise(sock) {
        return;
    }
    let has_ended = read::<u64>(sock, offsets.sock_flags) & DONE != 0;
    if has_ended && copied_seq == read::<u32>(sock, offsets.tcp_rcv_nxt) {
        // The end itself was read.
        past -= 1;
    }
    state.cursors[0].offset_bytes += u64::from(past);
    count_loss(LossReason::ReadPast);
}

/// Whether `copied_seq` is something else than what was read: kernel TLS counts what is encrypted, a
/// socket map what it has taken in and not passed on yet.
#[inline(always)]
pub fn counts_otherwise(sock: u64) -> bool {
    let offsets = &config().offsets;
    read::<u64>(sock, offsets.tcp_ulp_ops) != 0 || read::<u64>(sock, offsets.sock_user_data) != 0
}
