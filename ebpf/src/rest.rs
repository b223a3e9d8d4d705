//! Segments of which more than the first bytes matter.
//!
//! Where the end of a chunked body may lie behind what is captured, the last bytes go up as well: they
//! are kept from one segment to the next, so that they may be split anywhere.
//!
//! A client that does not wait for its answers sends many heads at a time, and reads many. Whether
//! a segment that is longer than what was captured of it holds more than one message, its first head
//! tells: by where it ends, and by the length of its body. Nothing
//! here runs for segments that are captured whole.

use ebpf_common::{
    config::{MAX_CAPTURE_BYTES, PIPELINED_CAPTURE_BYTES},
    connection::{ConnectionState, Cursor, Direction, data_flags, kept, protocol_state},
    loss::LossReason,
};

use crate::{
    buffer::{capture_from, last_bytes},
    cluster::{has_room, leads_to_cluster},
    detect,
    maps::{CONNECTIONS, Scratch, config, count_loss, scratch_at},
    segment::{BEYOND, CHUNKED_END, Left, MAX_HEAD_BYTES, NOTHING, advance, send_captured},
};

/// Longest head that is looked through, in words.
const MAX_WORDS: u32 = 256;

/// Most records of one segment behind the first: 4 MiB.
const MAX_RECORDS: u32 = 256;

/// Steps of a loop in a function of its own: the verifier follows a loop to its end, and a function once.
const STRIDE: u32 = 16;

/// What the fields of a head tell of the framing, bits of `Rest::framing`.
const LENGTH: u32 = 1;
const CODING: u32 = 2;

/// The last four bytes of any chunked body.
const BLANK_LINE: u64 = 0x0d_0a_0d_0a;

/// Most bytes of a segment's end: trailer fields may stand there.
const MAX_TAIL_BYTES: u64 = 128;

/// What follows the first bytes of a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// The rest of a body, or nobody knows.
    Body,
    /// The rest of the head.
    Head,
    /// Another message.
    Message,
}

/// Does what `segment::handle` has left to do. For a program's outermost function, whose stack is all
/// but empty.
#[inline(always)]
pub fn finish(left: Left) -> i32 {
    if left != NOTHING {
        send_beyond(left - 1);
    }
    0
}

/// Sends the record of the segment in the scratch, of which not all is captured or with which the
/// run's budget is all but spent; more records where it holds more messages; and one of its end where
/// a chunked body may end with it. Moves the cursor over the segment then. A function that the
/// verifier looks at by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_beyond(index: u32) -> u32 {
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    // SAFETY: this CPU's scratch record, as for all that follows.
    let (header, rest) = unsafe { (&mut (*scratch).header, &mut (*scratch).rest) };
    let Some(state) = CONNECTIONS.get_ptr_mut(header.socket) else {
        return 0;
    };
    // SAFETY: the map's own element, checked for null above.
    let state = unsafe { &mut *state };
    rest.is_beyond = 0;
    if rest.want > 0 {
        plan(index);
    }
    // SAFETY: this CPU's scratch record; volatile reads, for another function wrote them.
    let (want, mut budget) = unsafe {
        (
            (&raw const (*scratch).rest.want).read_volatile(),
            (&raw const (*scratch).rest.budget).read_volatile(),
        )
    };
    let (len, captured) = (rest.len, header.captured_len);
    let is_whole = u64::from(want) == len;
    rest.offset_bytes = header.offset_bytes;
    rest.ring = u32::from(state.ring);
    rest.position = u64::from(want);
    rest.until = if len < rest.position + u64::from(budget) {
        len
    } else {
        rest.position + u64::from(budget)
    };
    let goes_on = rest.until > rest.position;
    let ingress = header.direction == Direction::Ingress as u8;
    let shift = if ingress { 0 } else { 4 };
    let old_tail = kept::unpack(state.kept >> shift);
    // Its last bytes, if they lie in one piece.
    let in_piece = rest.last >= 8 || rest.last == len;
    let mut tail = 0;
    if rest.end != 0 && in_piece {
        tail = joined(old_tail, last_bytes(rest.end, rest.last), len);
    }
    tail = Scratch::forget(scratch, tail);
    if want > 0 {
        if !is_whole && (goes_on || !in_piece || may_end_body(tail)) {
            header.len_bytes = u64::from(want);
        }
        send_record(index, captured);
        if !is_whole {
            header.previous_ns = header.time_ns;
        }
    }
    let mut position = u64::from(want);
    if goes_on {
        position = send_rest(index);
        budget -= (position - u64::from(want)) as u32;
    }
    if rest.end != 0 && !in_piece {
        let bytes = if len < 8 { len as u32 } else { 8 };
        capture_tail(index, len, bytes);
        // SAFETY: the record's first bytes, which another function wrote.
        let word = unsafe { (&raw const (*scratch).bytes).cast::<u64>().read_volatile() };
        tail = joined(old_tail, word.swap_bytes() >> (64 - 8 * bytes), len);
    }
    state.kept = state.kept & !(7 << shift) | kept::pack(tail as u32) << shift;
    // SAFETY: this CPU's scratch record; a volatile read, so that the verifier forgets as well.
    if unsafe { (&raw const rest.is_beyond).read_volatile() } != 0 {
        budget = if budget < MAX_CAPTURE_BYTES {
            0
        } else {
            budget | BEYOND
        };
    }
    if position < len {
        budget = 0;
        if may_end_body(tail) {
            header.offset_bytes = rest.offset_bytes + position;
            header.len_bytes = len - position;
            send_tail(index, tail, len);
        }
    }
    let cursor = Cursor {
        offset_bytes: rest.offset_bytes + len,
        last_ns: header.time_ns,
    };
    advance(state, ingress, cursor, budget);
    0
}

/// Decides how much of the segment, of which some is captured, is wanted beyond that: leaves in
/// `Scratch::rest` what is left of the budget, and whether it is a cluster's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn plan(index: u32) -> u32 {
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    // SAFETY: this CPU's scratch record.
    let (header, rest) = unsafe { (&(*scratch).header, &mut (*scratch).rest) };
    let Some(state) = CONNECTIONS.get_ptr_mut(header.socket) else {
        return 0;
    };
    // SAFETY: the map's own element, checked for null above.
    let state = unsafe { &mut *state };
    let (want, captured) = (rest.want, header.captured_len);
    if rest.budget >= BEYOND {
        if has_room(state.ring.into()) == 0 {
            count_loss(LossReason::BodySkipped);
            (rest.want, rest.budget) = (0, 0);
        } else {
            rest.budget -= BEYOND;
            rest.is_beyond = 1;
        }
        return 0;
    }
    if u64::from(want) != rest.len
        && rest.is_beginning != 0
        && captured == want
        && state.protocol != protocol_state::UNKNOWN
    {
        match follows(state, index, captured, rest.len) {
            Follows::Message => {
                state.kept |= kept::PIPELINED;
                rest.budget = PIPELINED_CAPTURE_BYTES - want;
            }
            // What else comes behind `GET` is the same head, or others.
            Follows::Head if starts_with_get(scratch) => {
                rest.budget = PIPELINED_CAPTURE_BYTES - want;
            }
            Follows::Head => rest.budget = MAX_HEAD_BYTES - want,
            Follows::Body => {}
        }
    }
    if config().body_bytes != 0 && rest.budget == 0 && leads_to_cluster(state) {
        rest.budget = config().body_bytes;
        rest.is_beyond = 1;
    }
    0
}

/// Sends the record in the scratch with its first `len` bytes to the ring that `Scratch::rest` names.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_record(index: u32, len: u32) -> u32 {
    if let Some(scratch) = scratch_at(index) {
        // SAFETY: this CPU's scratch record.
        send_captured(unsafe { (*scratch).rest.ring } as u8, scratch, len);
    }
    0
}

/// Captures the last `want` bytes of a segment of `len` bytes; returns how many those are.
#[inline(always)]
fn capture_tail(index: u32, len: u64, want: u32) -> u32 {
    capture_from(index, len - u64::from(want), len, want)
}

/// Whether the captured bytes begin with a method that has no body.
#[inline(always)]
fn starts_with_get(scratch: *mut Scratch) -> bool {
    bytes_at::<u32>(scratch, 0) == u32::from_le_bytes(*b"GET ")
}

/// What lies behind the captured bytes of a segment that begins with a message.
#[inline(always)]
fn follows(state: &ConnectionState, index: u32, captured: u32, len: u64) -> Follows {
    if state.kept & kept::PIPELINED != 0 {
        return Follows::Message;
    }
    match what_follows(index, captured, len) {
        1 => Follows::Head,
        2 => Follows::Message,
        _ => Follows::Body,
    }
}

/// The stream's last eight bytes behind a segment of `len` bytes that ends with `word`.
#[inline(always)]
fn joined(old_tail: u32, word: u64, len: u64) -> u64 {
    if len >= 8 {
        word
    } else {
        u64::from(old_tail) << (8 * len) | word
    }
}

/// Whether a chunked body may end with these bytes: with its last chunk, or with trailer fields.
#[inline(always)]
const fn may_end_body(tail: u64) -> bool {
    tail & 0xffff_ffff == BLANK_LINE
}

/// Sends the last bytes of a segment of `len` bytes: as many as tell a terminator from data, and of
/// what may be trailer fields more.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_tail(index: u32, tail: u64, len: u64) -> u32 {
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    let is_end = tail & 0xff_ffff_ffff == CHUNKED_END;
    let most = if is_end { 8 } else { MAX_TAIL_BYTES };
    // SAFETY: this program's scratch.
    let header = unsafe { &mut (*scratch).header };
    header.flags = data_flags::TAIL;
    header.captured_len = if len >= 8 {
        capture_tail(index, len, if len < most { len } else { most } as u32)
    } else {
        // Some of these are older than the segment.
        let known = if is_end { 5 } else { 4 };
        let bytes = (tail << (64 - 8 * known)).to_be_bytes();
        // SAFETY: the first eight bytes of the scratch buffer.
        unsafe { (&raw mut (*scratch).bytes).cast::<[u8; 8]>().write(bytes) };
        known
    };
    send_record(index, header.captured_len);
    0
}

/// Looks through the captured bytes, which begin with a message, of a segment of `len` bytes: 1 where
/// the head does not end in them, 2 where another message begins in the segment.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn what_follows(index: u32, captured: u32, len: u64) -> u32 {
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    // SAFETY: this CPU's scratch record.
    let rest = unsafe { &mut (*scratch).rest };
    rest.framing = 0;
    rest.content_bytes = 0;
    let mut word = 0;
    let mut end = 0;
    while word < MAX_WORDS {
        if word * 8 >= captured {
            break;
        }
        end = head_end_from(index, word, captured);
        if end != 0 {
            break;
        }
        word += STRIDE;
    }
    if end == 0 || end > captured {
        return 1;
    }
    // SAFETY: as above; a volatile read, for another function wrote them.
    let (framing, content_bytes) = unsafe {
        (
            (&raw const (*scratch).rest.framing).read_volatile(),
            (&raw const (*scratch).rest.content_bytes).read_volatile(),
        )
    };
    // SAFETY: the record's bytes are more than two words.
    let [first, second] = unsafe { (&raw const (*scratch).bytes).cast::<[u64; 2]>().read() };
    let has_no_body = if detect::is_response(first) {
        // The status follows `HTTP/1.1 `.
        matches!(
            second.swap_bytes() >> 32 & 0x00ff_ffff,
            0x00_323034 | 0x00_333034
        )
    } else {
        framing == 0
    };
    if has_no_body || framing == LENGTH {
        let message = if has_no_body { 0 } else { content_bytes };
        let end = u64::from(end).saturating_add(message);
        return if end < len { 2 } else { 0 };
    }
    0
}

/// The same from a word on, in `STRIDE` of them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn head_end_from(index: u32, word: u32, captured: u32) -> u32 {
    let mut end = 0;
    let mut step = 0;
    while step < STRIDE {
        if (word + step) * 8 >= captured {
            break;
        }
        end = head_end(index, word + step);
        if end != 0 {
            break;
        }
        step += 1;
    }
    end
}

/// Looks for the end of a head in a word of the captured bytes: the offset behind it, or 0. Notes
/// what the fields that begin in the word tell of the body.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn head_end(index: u32, word: u32) -> u32 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const LINE_FEEDS: u64 = ONES * b'\n' as u64;
    if word >= MAX_WORDS {
        return 0;
    }
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    let start = word * 8;
    let differ = bytes_at::<u64>(scratch, start) ^ LINE_FEEDS;
    // The high bit of each byte that is a line feed (and perhaps of some behind it).
    let mut found = differ.wrapping_sub(ONES) & !differ & HIGH;
    let mut round = 0;
    while round < 3 {
        if found == 0 {
            return 0;
        }
        let lowest = found & found.wrapping_neg();
        // One for each byte up to the line feed.
        let passed = ((lowest - 1) & ONES).wrapping_mul(ONES) >> 56;
        let line = start + passed as u32;
        let next = bytes_at::<u16>(scratch, line);
        if next == u16::from_le_bytes(*b"\r\n") {
            return line + 2;
        }
        if next as u8 == b'\n' {
            return line + 1;
        }
        note_field(scratch, line);
        found &= found - 1;
        round += 1;
    }
    0
}

/// Notes what the field that begins at `line` tells of the body.
#[inline(always)]
fn note_field(scratch: *mut Scratch, line: u32) {
    const LOWER: u64 = 0x2020_2020_2020_2020;
    let name = bytes_at::<u64>(scratch, line) | LOWER;
    // SAFETY: this CPU's scratch record.
    let rest = unsafe { &mut (*scratch).rest };
    if name == u64::from_le_bytes(*b"transfer") {
        rest.framing |= CODING;
        return;
    }
    let more = bytes_at::<u64>(scratch, line + 8) | LOWER;
    if name != u64::from_le_bytes(*b"content-")
        || more << 8 != u64::from_le_bytes(*b"length: ") << 8
    {
        return;
    }
    rest.framing |= LENGTH;
    let mut length = 0u64;
    let mut at = 0;
    while at < 16 {
        let digit = bytes_at::<u8>(scratch, line + 15 + at);
        if digit.is_ascii_digit() {
            length = length
                .wrapping_mul(10)
                .wrapping_add(u64::from(digit - b'0'));
        } else if digit != b' ' {
            break;
        }
        at += 1;
    }
    rest.content_bytes = length;
}

/// A value of the captured bytes; `at` is no more than `MAX_WORDS` words and a line's beginning.
#[inline(always)]
fn bytes_at<T: Copy>(scratch: *mut Scratch, at: u32) -> T {
    let at = core::hint::black_box(at) & (MAX_CAPTURE_BYTES - 1);
    // SAFETY: within the first half of the buffer, and a value of a few bytes behind it.
    unsafe {
        (&raw const (*scratch).bytes)
            .cast::<u8>()
            .add(at as usize)
            .cast::<T>()
            .read_unaligned()
    }
}

/// Sends what `Scratch::rest` asks for, a record a piece; returns the position that it came to.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_rest(index: u32) -> u64 {
    let mut record = 0;
    while record < MAX_RECORDS {
        if send_pieces(index) == 0 {
            break;
        }
        record += STRIDE;
    }
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    // SAFETY: this CPU's scratch record; a volatile read, for another function wrote it.
    unsafe { (&raw const (*scratch).rest.position).read_volatile() }
}

/// Sends the next `STRIDE` pieces; 0 when there are no more.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_pieces(index: u32) -> u32 {
    let mut record = 0;
    while record < STRIDE {
        if send_piece(index) == 0 {
            return 0;
        }
        record += 1;
    }
    1
}

/// Sends the next piece; 0 when there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_piece(index: u32) -> u32 {
    let Some(scratch) = scratch_at(index) else {
        return 0;
    };
    // SAFETY: this CPU's scratch record.
    let (rest, header) = unsafe { (&mut (*scratch).rest, &mut (*scratch).header) };
    if rest.position >= rest.until {
        return 0;
    }
    if rest.is_beyond != 0 && has_room(rest.ring) == 0 {
        count_loss(LossReason::BodySkipped);
        return 0;
    }
    let left = rest.until - rest.position;
    let want = if left < u64::from(MAX_CAPTURE_BYTES) {
        left as u32
    } else {
        MAX_CAPTURE_BYTES
    };
    let captured = capture_from(index, rest.position, rest.until, want);
    if captured == 0 {
        return 0;
    }
    header.captured_len = captured;
    header.offset_bytes = rest.offset_bytes + rest.position;
    header.len_bytes = u64::from(captured);
    header.previous_ns = header.time_ns;
    rest.position += u64::from(captured);
    send_record(index, captured);
    1
}
