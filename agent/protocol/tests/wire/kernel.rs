//! The kernel side's choice of what to capture, as `ebpf/src/segment.rs` makes it.

use protocol::{CloseReason, Cursor, Direction};

use super::Wire;

/// Captures as the kernel side does, and writes records that may come late or never.
pub struct Kernel {
    pub wire: Wire,
    capture_bytes: usize,
    budget: [usize; 2],
    /// The last bytes of [responses, requests].
    ends: [Vec<u8>; 2],
    last: Option<bool>,
    /// Records that were not shown yet.
    held: Vec<Record>,
}

struct Record {
    is_request: bool,
    previous: Cursor,
    bytes: Vec<u8>,
    captured: usize,
    tail: Vec<u8>,
    time_ns: u64,
}

/// What becomes of a segment's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They come in order.
    Shown,
    /// They come after the next segment's.
    Late,
    /// The ring was full.
    Lost,
}

impl Kernel {
    pub fn new(requests: Direction, capture_bytes: usize) -> Self {
        Self {
            wire: Wire::new(requests, protocol::Limits::default()),
            capture_bytes,
            budget: [0; 2],
            ends: [const { Vec::new() }; 2],
            last: None,
            held: Vec::new(),
        }
    }

    /// Moves `bytes`. True when their beginning was captured and shown, or will be.
    pub fn send(&mut self, is_request: bool, bytes: &[u8], fate: Fate) -> bool {
        let previous = self.wire.advance(is_request, bytes.len() as u64);
        let time_ns = self.wire.now_ns;
        let budget = &mut self.budget[usize::from(is_request)];
        if self.last != Some(is_request) || *budget == 0 && begins_message(bytes) {
            *budget = self.capture_bytes;
        }
        self.last = Some(is_request);
        let captured = bytes.len().min(*budget);
        *budget -= captured;
        let left_out = &bytes[captured..];
        if !left_out.is_empty() {
            *budget = 0;
        }
        let mut records = Vec::new();
        let end = &mut self.ends[usize::from(is_request)];
        end.extend_from_slice(bytes);
        let is_end = !left_out.is_empty() && end.ends_with(b"\r\n\r\n");
        let is_bare = end.ends_with(b"0\r\n\r\n");
        let tail_len = match (bytes.len(), is_bare) {
            (8.., true) => 8,
            (8.., false) => bytes.len().min(128),
            (_, true) => 5,
            (_, false) => 4,
        };
        let tail = end[end.len().saturating_sub(tail_len)..].to_vec();
        end.drain(..end.len().saturating_sub(4));
        if captured > 0 {
            let len = if is_end { captured } else { bytes.len() };
            records.push(Record {
                is_request,
                previous,
                bytes: bytes[..len].to_vec(),
                captured,
                tail: Vec::new(),
                time_ns,
            });
        }
        if is_end {
            let previous = Cursor {
                offset_bytes: previous.offset_bytes + captured as u64,
                last_ns: if captured > 0 {
                    time_ns
                } else {
                    previous.last_ns
                },
            };
            records.push(Record {
                is_request,
                previous,
                bytes: left_out.to_vec(),
                captured: 0,
                tail,
                time_ns,
            });
        }
        let held = std::mem::take(&mut self.held);
        match fate {
            Fate::Shown => self.show(records),
            Fate::Late if held.is_empty() => self.held = records,
            Fate::Late => self.show(records),
            Fate::Lost => {}
        }
        self.show(held);
        captured > 0 && fate != Fate::Lost
    }

    pub fn close(&mut self, reason: CloseReason) {
        let held = std::mem::take(&mut self.held);
        self.show(held);
        self.wire.close(reason);
    }

    fn show(&mut self, records: Vec<Record>) {
        for record in records {
            self.wire.show(
                record.is_request,
                record.previous,
                &record.bytes,
                record.captured,
                &record.tail,
                record.time_ns,
            );
        }
    }
}

fn begins_message(bytes: &[u8]) -> bool {
    [&b"GET "[..], b"POST ", b"PUT ", b"HEAD ", b"HTTP/1."]
        .iter()
        .any(|beginning| bytes.starts_with(beginning))
}
