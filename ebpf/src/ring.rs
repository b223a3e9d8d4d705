//! Sending records to the ring that a connection belongs to.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_ringbuf_output, bpf_ringbuf_query},
};
use ebpf_common::loss::LossReason;

use crate::maps::{
    SOCKET_RING_0, SOCKET_RING_1, SOCKET_RING_2, SOCKET_RING_3, SOCKET_RING_4, SOCKET_RING_5,
    SOCKET_RING_6, SOCKET_RING_7, config, count_loss,
};

/// Records of this many bytes wake the worker; more than two of the largest, so that none jumps
/// over the window.
const WAKEUP_WINDOW: u64 = 40 * 1024;

/// Copies `len` bytes at `record` into ring number `ring`; a full ring is a counted loss.
///
/// Workers poll on a timer. Records wake their worker only while the ring fills past
/// `wakeup_bytes`: a wake-up costs the observed thread more than the record itself, and a worker
/// that is behind is awake.
#[inline(always)]
pub fn send(ring: u8, record: *const u8, len: usize) {
    macro_rules! output {
        ($map:ident) => {
            // SAFETY: the map is a ring buffer, and `len` bytes at `record` are the caller's own.
            unsafe {
                let map = (&raw const $map).cast_mut().cast();
                let filled = bpf_ringbuf_query(map, u64::from(BPF_RB_AVAIL_DATA));
                let wakeup = u64::from(config().wakeup_bytes);
                let flags = if filled >= wakeup && filled < wakeup + WAKEUP_WINDOW {
                    BPF_RB_FORCE_WAKEUP
                } else {
                    BPF_RB_NO_WAKEUP
                };
                bpf_ringbuf_output(map, record.cast_mut().cast(), len as u64, u64::from(flags))
            }
        };
    }
    let sent = match ring {
        0 => output!(SOCKET_RING_0),
        1 => output!(SOCKET_RING_1),
        2 => output!(SOCKET_RING_2),
        3 => output!(SOCKET_RING_3),
        4 => output!(SOCKET_RING_4),
        5 => output!(SOCKET_RING_5),
        6 => output!(SOCKET_RING_6),
        _ => output!(SOCKET_RING_7),
    };
    if sent != 0 {
        count_loss(LossReason::RingFull);
    }
}
