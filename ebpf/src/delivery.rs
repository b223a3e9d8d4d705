//! How long a connection has had bytes that its peer had not acknowledged: the kernel keeps that
//! itself, in ticks (1 to 10 ms), and no program has to watch acknowledgements come in.

use ebpf_common::connection::{busy_ticks, family};

use crate::{kernel::read, maps::config};

/// See [`busy_ticks`]; those of a Unix socket, where writing is delivering, nobody asks for.
#[inline(always)]
pub fn busy_ticks(sock: u64, family: u16) -> u32 {
    let config = config();
    if config.delivery_time == 0 || family == family::UNIX {
        return busy_ticks::UNASKED;
    }
    // While there are such bytes, the present stretch of time is not part of the sums
    // (net/ipv4/tcp_output.c, tcp_chrono_set).
    if read::<u32>(sock, config.offsets.sock_write_queued) != 0 {
        return busy_ticks::STILL_BUSY;
    }
    // What they waited for: nothing but the way there and back, the peer's window, the buffer.
    let [way, window, buffer]: [u32; 3] = read(sock, config.offsets.tcp_chrono_stat);
    way.wrapping_add(window).wrapping_add(buffer)
}
