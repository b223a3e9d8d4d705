//! Sending records to the ring that a connection belongs to.

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, helpers::bpf_ringbuf_output};
use ebpf_common::loss::LossReason;

use crate::maps::{
    SOCKET_RING_0, SOCKET_RING_1, SOCKET_RING_2, SOCKET_RING_3, SOCKET_RING_4, SOCKET_RING_5,
    SOCKET_RING_6, SOCKET_RING_7, count_loss,
};

/// Copies `len` bytes at `record` into ring number `ring`; a full ring is a counted loss.
///
/// No record wakes its worker: workers poll, more often the more there is. To ask how full the ring
/// is cost the observed thread as much as to copy the record, a wake-up several times that.
#[inline(always)]
pub fn send(ring: u8, record: *const u8, len: usize) {
    macro_rules! output {
        ($map:ident) => {
            // SAFETY: the map is a ring buffer, and `len` bytes at `record` are the caller's own.
            unsafe {
                bpf_ringbuf_output(
                    (&raw const $map).cast_mut().cast(),
                    record.cast_mut().cast(),
                    len as u64,
                    u64::from(BPF_RB_NO_WAKEUP),
                )
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
