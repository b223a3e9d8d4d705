//! Heads and tails: which of a connection's bytes go up to the agent.
//!
//! A *run* is what one side sends until the other one answers. The first bytes of each run are
//! captured, up to a budget, across as many segments as it takes; so is whatever begins with a
//! message head later in a run. Every other segment moves the cursor and costs no record, but for
//! one that ends as a chunked body does, which sends its last bytes.

use ebpf_common::{
    RecordKind,
    config::{MAX_CAPTURE_BYTES, PIPELINED_CAPTURE_BYTES},
    connection::{
        ConnectionState, Cursor, Direction, NOT_AWAITED, SocketData, busy_ticks, data_flags, kept,
        protocol_state,
    },
    loss::LossReason,
};

use crate::{
    buffer::{Captured, UserBuffer},
    delivery::busy_ticks,
    detect::{self, Beginning},
    log,
    maps::{Scratch, config, count_loss},
    ring::send,
};

/// Runs that may begin with something else before a connection is taken for another protocol. A
/// connection older than the agent may be in the middle of a body.
const MAX_STRIKES: u8 = 4;

/// Longest head that is captured where it is known to be one.
pub const MAX_HEAD_BYTES: u32 = 64 * 1024;

/// A run's budget from which on the last bytes are kept: what comes next may not be captured.
const NEARLY_SPENT: u32 = 64;

/// Beside a run's budget: it is that of a cluster's body (`cluster.rs`), and no less than what one record
/// captures.
pub const BEYOND: u32 = 1 << 31;

/// The last five bytes of a chunked body without trailers: `0 CRLF CRLF`.
pub const CHUNKED_END: u64 = 0x30_0d_0a_0d_0a;

/// One call's bytes.
pub struct Segment {
    pub socket: u64,
    pub state: *mut ConnectionState,
    /// Process above, thread below, as `bpf_get_current_pid_tgid` gives them.
    pub thread: u64,
    pub direction: Direction,
    pub len: u64,
    /// Bytes that moved before it without a call that the tap saw.
    pub read_past: u64,
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

/// What is left to do for a segment when [`handle`] has returned: nothing, or one more than the number
/// of the scratch record that `rest::send_beyond` needs. A number, as functions of BPF return.
pub type Left = u32;

/// Nothing.
pub const NOTHING: Left = 0;

/// Takes a segment in: captures what is wanted of it, sends it and moves the cursor. What may take
/// more than one record is left to the program's outermost function: up to some kernel after 6.12 all
/// functions that are under way share 512 bytes of stack, of which this one needs most.
#[inline(always)]
#[must_use]
pub fn handle(segment: &Segment) -> Left {
    // SAFETY: the map's own element, which the caller looked up.
    let state = unsafe { &mut *segment.state };
    let scratch = segment.scratch;
    let buffer = segment.buffer;
    let len = Scratch::forget(scratch, segment.len);
    let direction = Scratch::forget(scratch, segment.direction as u64) as u8;
    let ingress = direction == Direction::Ingress as u8;
    let (cursor, opposite, mut budget) = if ingress {
        (state.cursors[0], state.cursors[1], state.budget_bytes[0])
    } else {
        (state.cursors[1], state.cursors[0], state.budget_bytes[1])
    };
    // All that is known by now, so that none of it waits on the stack.
    // SAFETY: this program's scratch.
    let header = unsafe { &mut (*scratch).header };
    header.kind = RecordKind::SocketData as u8;
    header.direction = direction;
    header.connection_id = state.connection_id;
    header.pid = (segment.thread >> 32) as u32;
    header.tid = segment.thread as u32;
    header.offset_bytes = cursor.offset_bytes + segment.read_past;
    header.len_bytes = len;
    header.time_ns = segment.time_ns;
    header.previous_ns = cursor.last_ns;
    header.opposite = opposite;
    header.socket = segment.socket;
    let turned = state.last_direction != direction;
    let mut may_begin = turned;
    if !turned {
        // Within a run, only a look at the first bytes tells whether another message begins.
        let first_word = buffer.first_word(scratch);
        if detect::beginning(first_word) == Beginning::Message {
            may_begin = true;
            if !detect::is_response(first_word) {
                state.kept |= kept::PIPELINED;
            }
        } else if buffer.is_none() {
            // The rest of a message that sendfile or splice moves: the cursor says all.
            budget = 0;
        }
    }
    if may_begin {
        budget = if state.kept & kept::PIPELINED != 0 {
            PIPELINED_CAPTURE_BYTES
        } else {
            config().capture_bytes
        };
    }
    budget = Scratch::forget(scratch, u64::from(budget)) as u32;
    let begins = Scratch::forget(scratch, u64::from(turned) | u64::from(may_begin) << 1);
    let turned = begins & 1 != 0;
    let mut want = MAX_CAPTURE_BYTES;
    if budget < want {
        want = budget;
    }
    if len < u64::from(want) {
        want = len as u32;
    }
    let want = Scratch::forget(scratch, u64::from(want)) as u32;
    let captured = buffer.capture(len, want, scratch);
    if turned {
        state.last_direction = direction;
        if state.protocol == protocol_state::UNKNOWN
            && !note_beginning(state, captured, ingress, scratch)
        {
            return NOTHING;
        }
    }
    let mut arrived_ns = 0;
    if ingress && config().queue_time != 0 && state.arrived_ns != NOT_AWAITED {
        arrived_ns = state.arrived_ns;
        // Of a client's socket it is none: its line stays with the processors that look at it.
        if arrived_ns != 0 {
            state.arrived_ns = 0;
        }
    }
    header.arrived_ns = arrived_ns;
    // Where a request begins, the answer before it has been acknowledged.
    header.busy_ticks = busy_ticks::UNASKED;
    if turned && ingress && state.protocol != protocol_state::HTTP1_CLIENT {
        header.busy_ticks = busy_ticks(header.socket, u16::from(state.family));
    }
    header.flags = if captured.fault { data_flags::FAULT } else { 0 };
    header.captured_len = captured.len;
    state.pid = header.pid;
    if captured.fault {
        count_loss(LossReason::ReadFault);
    }
    let whole = u64::from(want) == len;
    budget -= want;
    if !whole || !(NEARLY_SPENT..BEYOND).contains(&budget) {
        // SAFETY: this program's scratch.
        let (index, rest) = unsafe { ((*scratch).index, &mut (*scratch).rest) };
        (rest.base, rest.pieces) = buffer.parts();
        rest.end = captured.end;
        rest.last = captured.last;
        rest.len = len;
        rest.want = want;
        rest.budget = budget;
        rest.is_beginning = (begins >> 1) as u32;
        return index + 1;
    }
    // Common traffic ends here.
    if want > 0 {
        send_captured(state.ring, scratch, captured.len);
        // SAFETY: the record's first bytes. They have arrived by now.
        let first = unsafe { (&raw const (*scratch).bytes).cast::<u32>().read_volatile() };
        if turned && first == u32::from_le_bytes(*b"GET ") {
            // What else comes is the same head, or others.
            budget = MAX_HEAD_BYTES;
        }
    }
    let cursor = Cursor {
        offset_bytes: header.offset_bytes + len,
        last_ns: header.time_ns,
    };
    advance(state, ingress, cursor, budget);
    NOTHING
}

/// Moves the cursor of one direction, and keeps what is left of its budget.
#[inline(always)]
pub fn advance(state: &mut ConnectionState, ingress: bool, cursor: Cursor, budget_bytes: u32) {
    // Two constant places, for a variable one would have to be bounded.
    if ingress {
        state.cursors[0] = cursor;
        state.budget_bytes[0] = budget_bytes;
    } else {
        state.cursors[1] = cursor;
        state.budget_bytes[1] = budget_bytes;
    }
}

/// Learns the connection's protocol from how a run begins; `false` when it is of no interest.
#[inline(always)]
fn note_beginning(
    state: &mut ConnectionState,
    captured: Captured,
    ingress: bool,
    scratch: *mut Scratch,
) -> bool {
    // From the capture, for which this has to wait: a call may have its first bytes in any pieces.
    let known = if captured.len < 8 { captured.len } else { 8 };
    // SAFETY: the record's first bytes.
    let word = unsafe { (&raw const (*scratch).bytes).cast::<u64>().read_volatile() };
    let word = if known == 0 {
        0
    } else {
        word & (u64::MAX >> (64 - 8 * known))
    };
    let beginning = detect::beginning(word);
    if beginning != Beginning::Message && !detect::is_undecided(word, known) {
        state.strikes += 1;
    }
    state.protocol = match beginning {
        Beginning::Message if detect::is_response(word) == ingress => protocol_state::HTTP1_CLIENT,
        Beginning::Message => protocol_state::HTTP1_SERVER,
        Beginning::Tls => protocol_state::TLS,
        Beginning::Other if state.strikes >= MAX_STRIKES => protocol_state::OTHER,
        Beginning::Other => return true,
    };
    if state.protocol != protocol_state::HTTP1_SERVER {
        state.arrived_ns = NOT_AWAITED;
    }
    log::protocol_found(state.connection_id, state.protocol);
    if state.protocol == protocol_state::TLS {
        count_loss(LossReason::Tls);
    }
    beginning == Beginning::Message
}

/// Sends the scratch record with its first `len` bytes.
#[inline(always)]
pub fn send_captured(ring: u8, scratch: *mut Scratch, len: u32) {
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
