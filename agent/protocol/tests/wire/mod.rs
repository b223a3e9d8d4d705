//! A connection as the kernel side would tell of it: bytes in, segments out.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test binary compiles this module and uses a part of it"
)]

pub mod kernel;

use protocol::observation::Exchange;
use protocol::{CloseReason, Connection, Cursor, Direction, Limits, Loss, Segment};

pub struct Wire {
    pub connection: Connection,
    /// Takes over whenever the other one rests: nothing may come from what it carried before.
    other: Connection,
    requests: Direction,
    /// How far [requests, responses] have come.
    cursors: [Cursor; 2],
    /// Moves on by ten with each segment.
    pub now_ns: u64,
    /// When the first byte of the next segment arrived.
    pub arrived_ns: Option<u64>,
    ended: Vec<Exchange>,
    losses: Vec<Loss>,
}

impl Wire {
    /// As seen by a server: requests are read.
    pub fn server() -> Self {
        Self::new(Direction::Ingress, Limits::default())
    }

    /// As seen by a client: requests are written.
    pub fn client() -> Self {
        Self::new(Direction::Egress, Limits::default())
    }

    pub fn new(requests: Direction, limits: Limits) -> Self {
        Self {
            connection: Connection::new(limits),
            other: Connection::new(limits),
            requests,
            cursors: [Cursor::default(); 2],
            now_ns: 0,
            arrived_ns: None,
            ended: Vec::new(),
            losses: Vec::new(),
        }
    }

    pub fn request(&mut self, bytes: &[u8]) {
        self.send(true, bytes, bytes.len(), 0);
    }

    pub fn response(&mut self, bytes: &[u8]) {
        self.send(false, bytes, bytes.len(), 0);
    }

    /// A segment of which the first `captured` bytes and the last `tail` are shown.
    pub fn send(&mut self, is_request: bool, bytes: &[u8], captured: usize, tail: usize) {
        let previous = self.advance(is_request, bytes.len() as u64);
        let end = &bytes[bytes.len() - tail.min(bytes.len())..];
        self.show(is_request, previous, bytes, captured, end, self.now_ns);
    }

    /// Bytes that pass without a record. Returns how far the direction had come before.
    pub fn advance(&mut self, is_request: bool, len_bytes: u64) -> Cursor {
        self.now_ns += 10;
        let cursor = &mut self.cursors[usize::from(!is_request)];
        let previous = *cursor;
        cursor.offset_bytes += len_bytes;
        cursor.last_ns = self.now_ns;
        previous
    }

    /// Shows a segment that passed when the direction was at `previous`.
    pub fn show(
        &mut self,
        is_request: bool,
        previous: Cursor,
        bytes: &[u8],
        captured: usize,
        tail: &[u8],
        time_ns: u64,
    ) {
        let direction = self.direction(is_request);
        let opposite = self.cursors[usize::from(is_request)];
        self.connection
            .handle_progress(direction.opposite(), opposite);
        self.connection.handle_segment(&Segment {
            direction,
            offset_bytes: previous.offset_bytes,
            len_bytes: bytes.len() as u64,
            captured: &bytes[..captured.min(bytes.len())],
            tail,
            time_ns,
            previous_ns: previous.last_ns,
            arrived_ns: self.arrived_ns.take(),
        });
        self.take_turns();
    }

    /// The agent asks the kernel side how far the connection has come.
    pub fn poll_progress(&mut self) {
        for is_request in [true, false] {
            let cursor = self.cursors[usize::from(!is_request)];
            let direction = self.direction(is_request);
            self.connection.handle_progress(direction, cursor);
        }
        self.take_turns();
    }

    pub fn close(&mut self, reason: CloseReason) {
        self.close_directions(true, true, reason);
    }

    pub fn close_directions(&mut self, requests: bool, responses: bool, reason: CloseReason) {
        self.now_ns += 10;
        self.poll_progress();
        let (ingress, egress) = match self.requests {
            Direction::Ingress => (requests, responses),
            Direction::Egress => (responses, requests),
        };
        self.connection
            .handle_close(ingress, egress, reason, self.now_ns);
        self.take_turns();
    }

    pub fn exchanges(&mut self) -> Vec<Exchange> {
        self.take_out();
        std::mem::take(&mut self.ended)
    }

    /// The one exchange that has ended.
    pub fn exchange(&mut self) -> Exchange {
        let mut exchanges = self.exchanges();
        assert_eq!(exchanges.len(), 1, "{exchanges:#?}");
        exchanges.remove(0)
    }

    pub fn losses(&mut self) -> Vec<Loss> {
        self.take_out();
        self.losses.clone()
    }

    pub fn assert_nothing_lost(&mut self) {
        assert_eq!(self.losses(), Vec::new());
    }

    /// As the agent does: what ended is taken out, and a connection with nothing under way rests.
    fn take_turns(&mut self) {
        self.take_out();
        if let Some(resting) = self.connection.rest() {
            std::mem::swap(&mut self.connection, &mut self.other);
            self.connection.resume(resting);
        }
    }

    fn take_out(&mut self) {
        while self.connection.poll_heads().is_some() {}
        while let Some(exchange) = self.connection.poll_observation() {
            self.connection.recycle(exchange.clone());
            self.ended.push(exchange);
        }
        while let Some(loss) = self.connection.poll_loss() {
            match self.losses.iter_mut().find(|it| it.reason == loss.reason) {
                Some(known) => {
                    known.count += loss.count;
                    known.bytes += loss.bytes;
                }
                None => self.losses.push(loss),
            }
        }
    }

    fn direction(&self, is_request: bool) -> Direction {
        if is_request {
            self.requests
        } else {
            self.requests.opposite()
        }
    }
}
