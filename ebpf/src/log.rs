//! What the kernel side logs through aya-log. The agent sets `AYA_LOG_LEVEL` before load; below
//! `debug` the verifier removes all of it.

use aya_log_ebpf::debug;
use ebpf_common::connection::protocol_state;

/// A connection's protocol is known from now on. Not inlined: formatting needs a stack of its own.
#[inline(never)]
pub fn protocol_found(connection_id: u64, pid: u32, protocol: u8) {
    let name = match protocol {
        protocol_state::HTTP1_SERVER | protocol_state::HTTP1_CLIENT => "HTTP/1",
        protocol_state::TLS => "TLS, left alone",
        _ => "neither HTTP nor TLS, left alone",
    };
    debug!(
        (),
        "connection {:x} of pid {}: {}", connection_id, pid, name
    );
}
