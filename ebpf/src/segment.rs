//! Heads and tails: which of a connection's bytes go up to the agent.
//!
//! A *run* is what one side sends until the other one answers. The first bytes of each run are
//! captured, up to a budget, across as many segments as it takes; so is whatever begins with a
//! message head later in a run. Every other segment moves the cursor and costs no record, but for
//! one that ends as a chunked body does, which sends its last bytes.

use ebpf_common::{
    RecordKind,
    config::MAX_CAPTURE_BYTES,
    connection::{ConnectionState, Direction, SocketData, busy_ticks, data_flags, protocol_state},
    loss::LossReason,
};

use crate::{
    buffer::{UserBuffer, last_word},
    delivery::busy_ticks,
    detect::{self, Beginning},
    log,
    maps::{Scratch, config, count_loss},
    ring::send,
};

/// Runs that may begin with something else before a connection is taken for another protocol. A
/// connection older than the agent may be in the middle of a body.
const MAX_STRIKES: u8 = 4;

/// The last five bytes of a chunked body without trailers: `0 CRLF CRLF`.
const CHUNKED_END: u64 = 0x30_0d_0a_0d_0a;

/// One call's bytes.
pub struct Segment {
    pub socket: u64,
    pub state: *mut ConnectionState,
    /// Process above, thread below, as `bpf_get_current_pid_tgid` gives them.
    pub thread: u64,
    pub direction: Direction,
    pub len: u64,
    pub time_ns: u64,
    pub buffer: UserBuffer,
    /// Where the record is built; holds the buffer's vector.
    pub scratch: *mut Scratch,
}

/// Whether a connection's bytes are looked at, still.
#[inline(always)]
pub fn is_of_interest(state: *mut ConnectionState) -> bool {
    // SAFETY: the map's own element, which the caller looked up.
    let protocol = unsafe { (*state).protocol };
    !matches!(protocol, protocol_state::OTHER | protocol_state::TLS)
}

/// Takes a segment in: captures what is wanted of it, and moves the cursor.
#[inline(always)]
pub fn handle(segment: &Segment) {
    // SAFETY: the map's own element, which the caller looked up.
    let state = unsafe { &mut *segment.state };
    let scratch = segment.scratch;
    let buffer = segment.buffer.forget(scratch);
    let len = Scratch::forget(scratch, segment.len);
    let direction = Scratch::forget(scratch, segment.direction as u64) as u8;
    let ingress = direction == Direction::Ingress as u8;
    let (mut cursor, opposite, mut budget) = if ingress {
        (state.cursors[0], state.cursors[1], state.budget_bytes[0])
    } else {
        (state.cursors[1], state.cursors[0], state.budget_bytes[1])
    };
    let turned = state.last_direction != direction;
    // Within a run, only a look at the first bytes tells whether another message begins.
    if turned || detect::beginning(buffer.first_word(scratch)) == Beginning::Message {
        budget = config().capture_bytes;
    } else if buffer.is_none() {
        // The rest of a message that sendfile or splice moves: the cursor says all.
        budget = 0;
    }
    budget = Scratch::forget(scratch, u64::from(budget)) as u32;
    let mut want = MAX_CAPTURE_BYTES;
    if budget < want {
        want = budget;
    }
    if len < u64::from(want) {
        want = len as u32;
    }
    let want = Scratch::forget(scratch, u64::from(want)) as u32;
    if turned {
        state.last_direction = direction;
        // Not read from the capture: to wait for its bytes to arrive costs more than all the rest.
        if state.protocol == protocol_state::UNKNOWN
            && !note_beginning(state, buffer.first_word(scratch), ingress)
        {
            return;
        }
    }
    let mut arrived_ns = 0;
    if ingress && config().queue_time != 0 {
        arrived_ns = state.arrived_ns;
        // Of a client's socket it is none: its line stays with the processors that look at it.
        if arrived_ns != 0 {
            state.arrived_ns = 0;
        }
    }
    arrived_ns = Scratch::forget(scratch, arrived_ns);
    // Where a request begins, the answer before it has been acknowledged.
    let busy_ticks = if turned && ingress && state.protocol != protocol_state::HTTP1_CLIENT {
        Scratch::forget(scratch, u64::from(busy_ticks(segment.socket, state.family))) as u32
    } else {
        busy_ticks::UNASKED
    };
    let captured = buffer.capture(len, want, scratch);
    // SAFETY: this program's scratch.
    let header = unsafe { &mut (*scratch).header };
    *header = SocketData {
        kind: RecordKind::SocketData as u8,
        direction,
        flags: if captured.fault { data_flags::FAULT } else { 0 },
        padding: 0,
        captured_len: captured.len,
        connection_id: state.connection_id,
        pid: (segment.thread >> 32) as u32,
        tid: segment.thread as u32,
        offset_bytes: cursor.offset_bytes,
        len_bytes: len,
        time_ns: segment.time_ns,
        previous_ns: cursor.last_ns,
        opposite,
        socket: segment.socket,
        arrived_ns,
        busy_ticks,
        padding2: 0,
    };
    state.pid = header.pid;
    if captured.fault {
        count_loss(LossReason::ReadFault);
    }
    // Where bytes are left out, only their end can tell that a chunked body is complete.
    let left_out = len - u64::from(want);
    let tail = if left_out > 0 && captured.end != 0 {
        last_word(captured.end)
    } else {
        0
    };
    let is_end = tail & 0xff_ffff_ffff == CHUNKED_END;
    if want > 0 {
        if is_end {
            header.len_bytes = u64::from(want);
        }
        send_captured(state.ring, scratch, captured.len);
    }
    if is_end {
        header.flags = data_flags::TAIL;
        header.captured_len = 8;
        header.offset_bytes += u64::from(want);
        header.len_bytes = left_out;
        if want > 0 {
            header.previous_ns = segment.time_ns;
        }
        // SAFETY: the first eight bytes of the scratch buffer.
        unsafe {
            (&raw mut (*scratch).bytes)
                .cast::<[u8; 8]>()
                .write(tail.to_be_bytes())
        };
        send_captured(state.ring, scratch, 8);
    }

    cursor.offset_bytes += len;
    cursor.last_ns = segment.time_ns;
    budget -= want;
    if left_out > 0 {
        budget = 0;
    }
    if ingress {
        state.cursors[0] = cursor;
        state.budget_bytes[0] = budget;
    } else {
        state.cursors[1] = cursor;
        state.budget_bytes[1] = budget;
    }
}

/// Learns the connection's protocol from how a run begins; `false` when it is of no interest.
#[inline(always)]
fn note_beginning(state: &mut ConnectionState, first_word: u64, ingress: bool) -> bool {
    let beginning = detect::beginning(first_word);
    if beginning != Beginning::Message {
        state.strikes += 1;
    }
    state.protocol = match beginning {
        Beginning::Message if detect::is_response(first_word) == ingress => {
            protocol_state::HTTP1_CLIENT
        }
        Beginning::Message => protocol_state::HTTP1_SERVER,
        Beginning::Tls => protocol_state::TLS,
        Beginning::Other if state.strikes >= MAX_STRIKES => protocol_state::OTHER,
        Beginning::Other => return true,
    };
    state.awaits_requests = (state.protocol == protocol_state::HTTP1_SERVER).into();
    log::protocol_found(state.connection_id, state.protocol);
    if state.protocol == protocol_state::TLS {
        count_loss(LossReason::Tls);
    }
    beginning == Beginning::Message
}

/// Sends the scratch record with its first `len` bytes.
#[inline(always)]
fn send_captured(ring: u8, scratch: *mut Scratch, len: u32) {
    let len = core::hint::black_box(len);
    if len > MAX_CAPTURE_BYTES {
        return;
    }
    send(
        ring,
        // SAFETY: this CPU's scratch; the record's bytes follow its header.
        unsafe { (&raw const (*scratch).header).cast() },
        size_of::<SocketData>() + len as usize,
    );
}
