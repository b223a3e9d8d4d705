//! From segments to events: what of a segment is new, and whether a message begins with it.

use ebpf_common::connection::Direction;

use super::Connection;
use crate::http1::body::Body;
use crate::http1::chunked;
use crate::http1::decoder::{Content, Decoder, Piece};
use crate::http1::method::Kind;
use crate::loss::LossReason;
use crate::segment::Segment;

impl Connection {
    pub(super) fn begins_response(&mut self, segment: &Segment<'_>) -> bool {
        let decoder = &self.stream(segment.direction).decoder;
        (decoder.is_out_of_step() || decoder.is_between_messages())
            && decoder.message_at(segment.captured) == Some(Kind::Response)
    }

    /// Reads what is new in a segment: what went unseen before it, what was captured of it, the
    /// rest, and its tail.
    pub(super) fn read_segment(&mut self, segment: &Segment<'_>, may_park: bool) {
        let direction = segment.direction;
        let previous_ns = match segment.previous_ns {
            0 => segment.time_ns,
            previous_ns => previous_ns,
        };
        let stream = self.stream(direction);
        for piece in stream.unseen_until(segment.offset_bytes, previous_ns) {
            self.read_piece(piece, direction, None);
        }
        let park_from = may_park.then_some(segment);
        if self.stream(direction).position_bytes() == segment.offset_bytes
            && !self.admit_head(segment, previous_ns, may_park)
        {
            return;
        }
        if let Some(arrived_ns) = segment.arrived_ns {
            self.stream(direction).note_arrival(segment, arrived_ns);
        }
        for (offset_bytes, bytes) in [
            (segment.offset_bytes, segment.captured),
            (
                segment
                    .end_bytes()
                    .saturating_sub(segment.tail.len() as u64),
                segment.tail,
            ),
        ] {
            let stream = self.stream(direction);
            for piece in stream.unseen_until(offset_bytes, segment.time_ns) {
                self.read_piece(piece, direction, None);
            }
            let position = self.stream(direction).position_bytes();
            let known = usize::try_from(position.saturating_sub(offset_bytes));
            let bytes = known.ok().and_then(|known| bytes.get(known..));
            let piece = Piece {
                content: Content::Captured(bytes.unwrap_or_default()),
                time_ns: segment.time_ns,
            };
            if !self.read_piece(piece, direction, park_from) {
                return;
            }
        }
        let stream = self.stream(direction);
        for piece in stream.unseen_until(segment.end_bytes(), segment.time_ns) {
            self.read_piece(piece, direction, None);
        }
        self.recognize_terminator(segment);
    }

    /// Decides whether a segment that looks like the beginning of a message is one, where framing
    /// does not tell. False when the segment was parked, for only later records can tell.
    fn admit_head(&mut self, segment: &Segment<'_>, previous_ns: u64, may_park: bool) -> bool {
        let direction = segment.direction;
        let awaited_ns = self.pairing.awaited_since_ns();
        let decoder = &self.stream(direction).decoder;
        let out_of_step = decoder.is_out_of_step();
        let unknown = decoder.body().is_some_and(Body::is_unknown);
        let message = decoder.message_at(segment.captured);
        let admitted = match message {
            Some(_) if out_of_step => true,
            // The answer under way has no end that could be seen. Another one begins only where
            // another request waits for it.
            Some(Kind::Response) if unknown && awaited_ns.is_none() && may_park => {
                self.parking.park(segment);
                return false;
            }
            Some(Kind::Response) if unknown => {
                awaited_ns.is_some_and(|awaited_ns| awaited_ns <= segment.time_ns)
            }
            Some(Kind::Request) => self.admit_request(direction, segment.time_ns),
            Some(Kind::Response) => false,
            // Too short to tell: what follows will.
            None if out_of_step && Decoder::may_begin_message(segment.captured) => true,
            None => return true,
        };
        if admitted {
            self.interrupt(direction, previous_ns);
        } else if unknown {
            self.losses.count(LossReason::AmbiguousHead, 0);
            if message == Some(Kind::Response)
                && let Some(oldest) = self.pairing.oldest_awaited()
            {
                oldest.doubtful = true;
            }
        }
        true
    }

    /// Whether a request may begin although the one before has not ended by its framing.
    fn admit_request(&mut self, direction: Direction, time_ns: u64) -> bool {
        let Some(body) = self.stream(direction).decoder.body() else {
            return false;
        };
        let (unknown, untouched) = (body.is_unknown(), body.content_bytes() == Some(0));
        let headless = body.is_behind_cut_head();
        let (true, Some(newest)) = (self.request_open, self.pairing.newest()) else {
            return unknown;
        };
        // Records of two threads may come in another order than that of their calls.
        let answered = newest.is_answered_at(time_ns);
        // A body that was announced with `Expect: 100-continue` may be left out when the answer is
        // there (RFC 9110, section 10.1.1).
        unknown && (answered || headless && newest.is_bodiless())
            || untouched && answered && newest.expects_continue
    }

    /// Reads one piece. False when what is left of `park_from`, the segment it is part of, was
    /// parked: a response to no request that was seen.
    pub(super) fn read_piece(
        &mut self,
        mut piece: Piece<'_>,
        direction: Direction,
        park_from: Option<&Segment<'_>>,
    ) -> bool {
        loop {
            if let Some(segment) = park_from
                && self.is_early_answer(&piece, direction)
            {
                let offset_bytes = self.stream(direction).position_bytes();
                let known = usize::try_from(offset_bytes.saturating_sub(segment.offset_bytes));
                let captured = known.ok().and_then(|known| segment.captured.get(known..));
                self.parking.park(&Segment {
                    offset_bytes,
                    len_bytes: segment.end_bytes().saturating_sub(offset_bytes),
                    captured: captured.unwrap_or_default(),
                    ..*segment
                });
                return false;
            }
            let Some(event) = self.stream(direction).next(&mut piece) else {
                return true;
            };
            self.apply(event, direction);
        }
    }

    /// Whether a response begins here that no request waits for.
    fn is_early_answer(&mut self, piece: &Piece<'_>, direction: Direction) -> bool {
        let decoder = &self.stream(direction).decoder;
        let Content::Captured(bytes) = piece.content else {
            return false;
        };
        decoder.is_between_messages()
            && decoder.message_at(bytes) == Some(Kind::Response)
            && self.pairing.awaited() == 0
    }

    /// Reads what was parked, now as it comes.
    pub(super) fn replay_parked(&mut self) {
        for parked in self.parking.take() {
            self.read_segment(&parked.segment(), false);
        }
    }

    /// Ends a chunked body whose framing was lost, at a segment that ends like one.
    fn recognize_terminator(&mut self, segment: &Segment<'_>) {
        let from_kernel = !segment.tail.is_empty();
        let whole = segment.captured.len() as u64 == segment.len_bytes;
        let suffix = match (from_kernel, whole) {
            (true, _) => segment.tail,
            (false, true) => segment.captured,
            (false, false) => return,
        };
        let stream = self.stream(segment.direction);
        if stream.position_bytes() != segment.end_bytes()
            || !stream.decoder.body().is_some_and(Body::is_unknown)
        {
            return;
        }
        if chunked::ends_body(suffix) {
            self.interrupt(segment.direction, segment.time_ns);
        } else if chunked::ends_line(suffix) {
            stream.decoder.note_empty_line();
        }
    }

    /// Ends whatever is under way, and whose last byte moved at `last_ns`: a message begins next.
    fn interrupt(&mut self, direction: Direction, last_ns: u64) {
        let decoder = &mut self.stream(direction).decoder;
        let unknown = decoder.body().is_some_and(Body::is_unknown);
        let event = decoder.interrupt(last_ns);
        if unknown {
            // Where a body's end was not seen, whole messages may have followed it.
            self.stream(direction).note_gap();
        }
        if let Some(event) = event {
            self.apply(event, direction);
        }
    }
}
