//! What the agent hands to a [`Connection`](crate::Connection).

use ebpf_common::connection::Direction;

/// The bytes that one call moved through a connection, as far as the kernel side captured them.
///
/// The segments of one direction come in order. Bytes between two segments that were not sent show
/// as a jump of `offset_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Which way the bytes moved.
    pub direction: Direction,
    /// Offset of the first byte in its direction's stream.
    pub offset_bytes: u64,
    /// Bytes that moved.
    pub len_bytes: u64,
    /// Beginning of the segment; may be shorter than `len_bytes`, may be empty.
    pub captured: &'a [u8],
    /// End of the segment, where the kernel side sent a tail; else empty.
    pub tail: &'a [u8],
    /// When the bytes moved: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// When the last byte before `offset_bytes` moved; 0 when there was none.
    pub previous_ns: u64,
    /// When the first byte arrived of those that the process had not read before; `None` where the
    /// kernel side does not tell.
    pub arrived_ns: Option<u64>,
}

impl Segment<'_> {
    /// Offset of the first byte behind the segment.
    pub(crate) const fn end_bytes(&self) -> u64 {
        self.offset_bytes.saturating_add(self.len_bytes)
    }
}

/// Bounds of what one connection may keep in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight. One more, and none of them can be told apart any longer: all end as
    /// [`Outcome::Evicted`](crate::observation::Outcome::Evicted).
    pub requests_in_flight: usize,
    /// Bytes of a head that is not complete yet, a direction.
    pub head_bytes: usize,
    /// Bytes kept from the beginning of a body that may be of interest, a message.
    pub body_prefix_bytes: usize,
    /// Bytes of a query's masked text that are kept; 0 for none.
    pub query_text_bytes: usize,
    /// Captured bytes of responses that came before their request did.
    pub parked_bytes: usize,
    /// Segments of such responses.
    pub parked_segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_in_flight: 256,
            head_bytes: 64 * 1024,
            body_prefix_bytes: 16 * 1024,
            query_text_bytes: 0,
            parked_bytes: 32 * 1024,
            parked_segments: 8,
        }
    }
}
