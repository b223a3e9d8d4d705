//! A connection: segments in, exchanges out.

use std::collections::VecDeque;

use ebpf_common::connection::{CloseReason, Cursor, Direction};

use crate::http1::body::{Body, Framing};
use crate::http1::chunked;
use crate::http1::decoder::{Closed, Content, Decoder, Event, HeadBytes, Piece};
use crate::http1::head::{RequestHead, ResponseHead, complete};
use crate::http1::method::{Beginning, Kind, beginning};
use crate::in_flight::{Answer, InFlight};
use crate::loss::{Loss, LossReason, Losses};
use crate::observation::{Exchange, Outcome, Role, SearchProduct};
use crate::pairing::{AnswerGaps, Pairing, RequestGaps};
use crate::parking::Parking;
use crate::segment::{Limits, Segment};
use crate::stream::Stream;

/// What is known of one connection.
///
/// Feed it with the `handle_…` methods in the order in which the kernel side sends, then take out
/// what came of it with [`Self::poll_observation`] and [`Self::poll_loss`] until both are `None`.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    ingress: Stream,
    egress: Stream,
    /// Which way requests go; `None` until a head told.
    request_direction: Option<Direction>,
    pairing: Pairing,
    parking: Parking,
    /// The newest request is under way.
    request_open: bool,
    search_product: Option<SearchProduct>,
    observations: VecDeque<Exchange>,
    losses: Losses,
}

impl Connection {
    /// A connection of which nothing was seen yet. Its first bytes may be the middle of a message.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ingress: Stream::new(Decoder::new(limits.head_bytes)),
            egress: Stream::new(Decoder::new(limits.head_bytes)),
            request_direction: None,
            pairing: Pairing::default(),
            parking: Parking::default(),
            request_open: false,
            search_product: None,
            observations: VecDeque::new(),
            losses: Losses::default(),
        }
    }

    /// Takes the next segment of a direction.
    pub fn handle_segment(&mut self, segment: &Segment<'_>) {
        let direction = segment.direction;
        self.stream(direction).see(Cursor {
            offset_bytes: segment.end_bytes(),
            last_ns: segment.time_ns,
        });
        if self.parking.holds(direction) {
            self.parking.park(segment);
            if self.parking.is_full(&self.limits) {
                self.replay_parked();
            }
            return;
        }
        if self.parking.holds(direction.opposite()) && self.begins_response(segment) {
            // Only one direction carries responses: what is parked is none, or to nothing.
            self.replay_parked();
        }
        self.read_segment(segment, true);
        if !self.parking.is_empty() && self.pairing.awaited() > 0 {
            self.replay_parked();
        }
    }

    /// Takes note that `direction` has come as far as `cursor`, whether captured or not.
    pub fn handle_progress(&mut self, direction: Direction, cursor: Cursor) {
        self.stream(direction).see(cursor);
        if self.parking.holds(direction) {
            return;
        }
        if let Some(piece) = self.stream(direction).unseen_body_end() {
            self.read_piece(piece, direction, None);
        }
    }

    /// Takes note that one or both directions have ended. A reset, a timeout and a replacement end
    /// both, whichever is named.
    pub fn handle_close(&mut self, ingress: bool, egress: bool, reason: CloseReason, time_ns: u64) {
        self.replay_parked();
        let outcome = match reason {
            CloseReason::Fin => Outcome::ClosedEarly,
            CloseReason::Reset => Outcome::Reset,
            CloseReason::Timeout => Outcome::TimedOut,
            CloseReason::Replaced => Outcome::Evicted,
        };
        let orderly = reason == CloseReason::Fin;
        let ingress = ingress || !orderly;
        let egress = egress || !orderly;
        // Requests first: one that the end cuts short has to be known before its answer ends.
        let first = self.request_direction.unwrap_or(Direction::Ingress);
        for direction in [first, first.opposite()] {
            let ends = match direction {
                Direction::Ingress => ingress,
                Direction::Egress => egress,
            };
            if ends {
                self.end_direction(direction, orderly);
            }
        }
        let answers_end = match self.request_direction {
            Some(Direction::Ingress) => egress,
            Some(Direction::Egress) => ingress,
            None => ingress && egress,
        };
        if answers_end {
            self.finish_all(outcome, time_ns);
        }
    }

    /// Takes note that the agent forgets the connection: whatever is in flight ends here.
    pub fn handle_evict(&mut self, time_ns: u64) {
        self.replay_parked();
        let first = self.request_direction.unwrap_or(Direction::Ingress);
        for direction in [first, first.opposite()] {
            self.end_direction(direction, false);
        }
        self.finish_all(Outcome::Evicted, time_ns);
    }

    /// The next exchange that has ended; `None` when there is none.
    pub fn poll_observation(&mut self) -> Option<Exchange> {
        self.observations.pop_front()
    }

    /// What was seen and is not reported, since the last call, one reason at a time; `None` when
    /// there is nothing more.
    pub fn poll_loss(&mut self) -> Option<Loss> {
        self.losses.poll()
    }

    /// Whether a body is under way whose end nothing but the kernel side's cursor may tell, so that
    /// [`Self::handle_progress`] should be called from time to time.
    #[must_use]
    pub fn awaits_progress(&self) -> bool {
        self.ingress.awaits_progress() || self.egress.awaits_progress()
    }

    /// Whether no exchange is under way, in part or as a whole.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pairing.len() == 0
            && self.parking.is_empty()
            && self.ingress.decoder.is_idle()
            && self.egress.decoder.is_idle()
    }

    /// Requests whose exchange has not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pairing.len()
    }

    /// The methods of the requests whose exchange has not ended, oldest first.
    pub fn methods_in_flight(&self) -> impl Iterator<Item = &'static str> {
        self.pairing.iter().map(InFlight::method)
    }

    /// The side that the observed process is on; `None` until a message was seen.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.request_direction.map(role)
    }

    /// Tells which search product the remote end is known to be.
    pub const fn set_search_product(&mut self, product: Option<SearchProduct>) {
        self.search_product = product;
    }

    /// The search product that the connection's answers told of, or that was set.
    #[must_use]
    pub const fn search_product(&self) -> Option<SearchProduct> {
        self.search_product
    }

    fn begins_response(&mut self, segment: &Segment<'_>) -> bool {
        let decoder = &self.stream(segment.direction).decoder;
        (decoder.is_out_of_step() || decoder.is_between_messages())
            && decoder.message_at(segment.captured) == Some(Kind::Response)
    }

    const fn stream(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }

    fn kind(&self, direction: Direction) -> Option<Kind> {
        self.request_direction.map(|requests| {
            if requests == direction {
                Kind::Request
            } else {
                Kind::Response
            }
        })
    }

    /// Reads what is new in a segment: what went unseen before it, what was captured of it, the
    /// rest, and its tail.
    fn read_segment(&mut self, segment: &Segment<'_>, may_park: bool) {
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
            Some(Kind::Request) => self.admit_request(direction),
            Some(Kind::Response) => false,
            // Too short to tell: what follows will.
            None if out_of_step && Decoder::may_begin_message(segment.captured) => true,
            None => return true,
        };
        if admitted {
            self.interrupt(direction, previous_ns);
        } else if unknown {
            self.losses.count(LossReason::AmbiguousHead, 0);
        }
        true
    }

    /// Whether a request may begin although the one before has not ended by its framing.
    fn admit_request(&mut self, direction: Direction) -> bool {
        let Some(body) = self.stream(direction).decoder.body() else {
            return false;
        };
        let (unknown, untouched) = (body.is_unknown(), body.content_bytes() == Some(0));
        let headless = body.is_behind_cut_head();
        let (true, Some(newest)) = (self.request_open, self.pairing.newest()) else {
            return unknown;
        };
        let answered = newest.answer != Answer::Awaited;
        // A body that was announced with `Expect: 100-continue` may be left out when the answer is
        // there (RFC 9110, section 10.1.1).
        unknown && (answered || headless && newest.is_bodiless())
            || untouched && answered && newest.expects_continue
    }

    /// Reads one piece. False when what is left of `park_from`, the segment it is part of, was
    /// parked: a response to no request that was seen.
    fn read_piece(
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
    fn replay_parked(&mut self) {
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
        if stream.position_bytes() == segment.end_bytes()
            && stream.decoder.body().is_some_and(Body::is_unknown)
            && chunked::ends_body(suffix, from_kernel)
        {
            self.interrupt(segment.direction, segment.time_ns);
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

    fn apply(&mut self, event: Event<'_>, direction: Direction) {
        let limit = self.limits.body_prefix_bytes;
        let is_request = self.kind(direction) == Some(Kind::Request);
        match event {
            Event::Head(head) => match beginning(&head.bytes) {
                Beginning::Message(Kind::Response) => self.begin_answer(&head, direction),
                Beginning::Message(Kind::Request) => self.begin_request(&head, direction),
                // Any method will do where a request is due, but only as part of a whole head.
                _ if is_request && head.complete => self.begin_request(&head, direction),
                _ => self.skip_head(&head, direction),
            },
            Event::Content(content) if is_request => self.keep_request(Some(content), limit),
            Event::ContentUnseen if is_request => self.keep_request(None, limit),
            Event::Content(content) => self.keep_answer(Some(content), limit),
            Event::ContentUnseen => self.keep_answer(None, limit),
            Event::End {
                last_ns,
                content_bytes,
            } if is_request => self.end_request(last_ns, content_bytes),
            Event::End {
                last_ns,
                content_bytes,
            } => self.end_answer(last_ns, content_bytes),
            Event::OutOfStep { reason, bytes } => {
                self.losses.count(reason, bytes);
                self.stream(direction).note_gap();
            }
            Event::StillOutOfStep { reason, bytes } => {
                self.losses.extend(reason, bytes);
                self.stream(direction).note_gap();
            }
            Event::ChunkInvalid => self.losses.count(LossReason::ChunkInvalid, 0),
        }
    }

    /// Lets go of what ended before it could be told whether it was a head.
    fn skip_head(&mut self, head: &HeadBytes<'_>, direction: Direction) {
        let len = head.bytes.len() as u64;
        self.losses.count(LossReason::Garbage, len);
        self.stream(direction).note_gap();
        self.stream(direction)
            .decoder
            .lose_step(LossReason::Garbage, true);
    }

    fn begin_request(&mut self, head: &HeadBytes<'_>, direction: Direction) {
        let completed = (!head.complete).then(|| complete(&head.bytes));
        if completed.is_some() {
            self.losses
                .count(LossReason::HeadCut, head.bytes.len() as u64);
        }
        let bytes = completed.as_deref().unwrap_or(&head.bytes);
        let parsed = RequestHead::parse(bytes);
        if parsed.is_some() && self.request_direction.is_none() {
            self.set_request_direction(direction);
        }
        let role = role(direction);
        let mut entry = match &parsed {
            Some(parsed) => InFlight::new(role, parsed, head.first_ns, head.last_ns),
            None => InFlight::unparsed(role, head.first_ns, head.last_ns),
        };
        let framing = match &parsed {
            Some(_) if !head.complete => Some(Framing::Unknown),
            Some(parsed) => parsed.framing,
            None => None,
        };
        if let Some(parsed) = &parsed {
            entry.watch_search(parsed, self.search_product.is_some());
        }
        let decoder = &mut self.stream(direction).decoder;
        match framing {
            Some(framing) => decoder.begin_body(framing),
            None => decoder.lose_step(LossReason::Garbage, false),
        }
        self.request_open = framing.is_some();
        entry.request_done = framing.is_none();
        if self.request_direction.is_none() {
            // Nothing says that this is HTTP at all, so that no answer need come.
            let ended = entry.finish(Outcome::NotParsed, None, None);
            self.observations.push_back(ended);
            return;
        }
        if self.pairing.len() >= self.limits.requests_in_flight {
            self.losses.count(LossReason::QueueFull, 0);
            let product = self.search_product;
            let evicted = self.pairing.overflow();
            self.observations
                .extend(evicted.map(|entry| entry.finish(Outcome::Evicted, None, product)));
        }
        let gap = self.stream(direction).take_gap();
        let answers = self.stream(direction.opposite());
        let gaps = RequestGaps {
            gap_ns: gap.map(|gap| gap.last_ns),
            unseen_answers: answers.hides_heads(),
            answered_ns: answers.seen().last_ns,
        };
        self.pairing.push(entry, gaps);
    }

    fn begin_answer(&mut self, head: &HeadBytes<'_>, direction: Direction) {
        let completed = (!head.complete).then(|| complete(&head.bytes));
        if completed.is_some() {
            self.losses
                .count(LossReason::HeadCut, head.bytes.len() as u64);
        }
        let bytes = completed.as_deref().unwrap_or(&head.bytes);
        let parsed = ResponseHead::parse(bytes);
        if parsed.is_some() && self.request_direction.is_none() {
            self.set_request_direction(direction.opposite());
        }
        if parsed.as_ref().is_some_and(ResponseHead::is_interim) {
            // Ends at once, and no answer is under way that it could end.
            self.stream(direction)
                .decoder
                .begin_body(Framing::Length(0));
            return;
        }
        let gap = self.stream(direction).take_gap();
        let requests = self.stream(direction.opposite());
        // What came after an answer that went unseen may be another request, where framing does
        // not tell.
        let unknown = requests.decoder.body().is_some_and(Body::is_unknown);
        let gaps = AnswerGaps {
            gap_ns: gap.map(|gap| gap.last_ns),
            unseen_requests: requests.may_hide_heads()
                || unknown && gap.is_some_and(|gap| requests.seen().last_ns > gap.first_ns),
        };
        let mut resynchronized = Vec::new();
        let answered = self
            .pairing
            .answer(head.first_ns, gaps, &mut resynchronized);
        let (answered, mut framing, mut tunnel) = (answered, None, false);
        let orphan = answered.is_none();
        if let Some(entry) = answered {
            match &parsed {
                Some(parsed) => {
                    entry.begin_answer(parsed, head.first_ns, head.last_ns);
                    tunnel = parsed.is_tunnel(entry.method());
                    framing = if head.complete {
                        parsed.framing(entry.method())
                    } else {
                        Some(Framing::Unknown)
                    };
                    if framing.is_none() {
                        entry.condemn();
                        entry.end_answer(head.last_ns, None);
                    }
                }
                None => entry.spoil_answer(head.first_ns, head.last_ns),
            }
        }
        if let Some(product) = parsed.and_then(|parsed| parsed.product) {
            self.search_product = Some(product);
        }
        self.resynchronize(resynchronized);
        if tunnel {
            self.leave_http(head.last_ns);
        } else if let Some(framing) = framing {
            self.stream(direction).decoder.begin_body(framing);
        } else {
            let reason = if orphan {
                let len = head.bytes.len() as u64;
                self.losses.count(LossReason::OrphanResponse, len);
                LossReason::OrphanResponse
            } else {
                LossReason::Garbage
            };
            // Answers to requests that were seen may follow in the bytes that are now skipped.
            self.stream(direction).note_gap();
            self.stream(direction).decoder.lose_step(reason, orphan);
            self.emit_done();
        }
    }

    fn set_request_direction(&mut self, direction: Direction) {
        self.request_direction = Some(direction);
        self.stream(direction).decoder.expect(Kind::Request);
        let answers = self.stream(direction.opposite());
        answers.decoder.expect(Kind::Response);
    }

    fn keep_request(&mut self, content: Option<&[u8]>, limit: usize) {
        if self.request_open
            && let Some(newest) = self.pairing.newest()
        {
            newest.keep_request_content(content, limit);
        }
    }

    fn keep_answer(&mut self, content: Option<&[u8]>, limit: usize) {
        if let Some(answering) = self.pairing.answering() {
            answering.keep_answer_content(content, limit);
        }
    }

    fn end_request(&mut self, last_ns: u64, content_bytes: Option<u64>) {
        self.end_open_request(last_ns, content_bytes);
        self.emit_done();
    }

    fn end_answer(&mut self, last_ns: u64, content_bytes: Option<u64>) {
        if let Some(answering) = self.pairing.answering() {
            answering.end_answer(last_ns, content_bytes);
        }
        self.give_up_request();
        self.emit_done();
    }

    /// Ends a request that was answered in full and whose own end can't be seen: it is over, or
    /// nobody reads on.
    fn give_up_request(&mut self) {
        let (Some(direction), true) = (self.request_direction, self.request_open) else {
            return;
        };
        let Some(answered_ns) = self.pairing.newest().and_then(|n| n.answered_ns()) else {
            return;
        };
        let stream = self.stream(direction);
        let seen = stream.seen();
        if !stream.awaits_progress() && seen.last_ns <= answered_ns {
            // Chunk framing that went unseen is lost, unless it all was one chunk's data.
            for piece in stream.unseen_until(seen.offset_bytes, seen.last_ns) {
                self.read_piece(piece, direction, None);
            }
        }
        let stream = self.stream(direction);
        if stream.decoder.body().is_some_and(Body::is_unknown) {
            let last_ns = stream.last_ns();
            self.end_open_request(last_ns, None);
        }
    }

    fn end_open_request(&mut self, last_ns: u64, content_bytes: Option<u64>) {
        if std::mem::take(&mut self.request_open)
            && let Some(newest) = self.pairing.newest()
        {
            newest.end_request(last_ns, content_bytes);
        }
    }

    /// The connection carries something else from here on.
    fn leave_http(&mut self, last_ns: u64) {
        self.ingress.decoder.become_opaque();
        self.egress.decoder.become_opaque();
        self.request_open = false;
        if let Some(answering) = self.pairing.answering() {
            answering.end_answer(last_ns, None);
        }
        let product = self.search_product;
        let ended: Vec<_> = self.pairing.drain().collect();
        for entry in ended {
            // What else was taken for a request was the new protocol's.
            let outcome = match entry.answer {
                Answer::Done => Outcome::Upgraded,
                Answer::Awaited | Answer::Begun => Outcome::Resynchronized,
            };
            self.observations
                .push_back(entry.finish(outcome, None, product));
        }
    }

    fn resynchronize(&mut self, entries: Vec<InFlight>) {
        let product = self.search_product;
        for entry in entries {
            if !entry.request_done {
                self.request_open = false;
            }
            let ended = entry.finish(Outcome::Resynchronized, None, product);
            self.observations.push_back(ended);
        }
    }

    fn emit_done(&mut self) {
        while let Some(entry) = self.pairing.pop_done() {
            let ended = entry.finish(Outcome::Matched, None, self.search_product);
            self.observations.push_back(ended);
        }
    }

    /// Reads a direction to its end, which may be that of a body.
    fn end_direction(&mut self, direction: Direction, orderly: bool) {
        let Cursor {
            offset_bytes,
            last_ns,
        } = self.stream(direction).seen();
        for piece in self.stream(direction).unseen_until(offset_bytes, last_ns) {
            self.read_piece(piece, direction, None);
        }
        let stream = self.stream(direction);
        if stream.decoder.body().is_some_and(Body::is_unknown) {
            stream.note_gap();
        }
        let closed = stream.decoder.close();
        match closed {
            Closed::Between => {}
            Closed::InHead(head) => {
                self.apply(Event::Head(head), direction);
                self.stream(direction).decoder.become_opaque();
            }
            Closed::InBody {
                last_ns,
                content_bytes,
                whole,
            } => {
                if whole && orderly {
                    self.apply(
                        Event::End {
                            last_ns,
                            content_bytes,
                        },
                        direction,
                    );
                }
            }
        }
        if self.kind(direction) == Some(Kind::Request) && self.request_open {
            // It stays incomplete; an answer may come all the same.
            let last_ns = self.stream(direction).last_ns();
            self.request_open = false;
            if let Some(newest) = self.pairing.newest() {
                newest.extend_request(last_ns);
                newest.request_done = true;
            }
            self.emit_done();
        }
    }

    fn finish_all(&mut self, outcome: Outcome, time_ns: u64) {
        self.request_open = false;
        let product = self.search_product;
        let ended: Vec<_> = self.pairing.drain().collect();
        self.observations.extend(
            ended
                .into_iter()
                .map(|entry| entry.finish(outcome, Some(time_ns), product)),
        );
    }
}

/// Who sends requests is the client.
const fn role(request_direction: Direction) -> Role {
    match request_direction {
        Direction::Ingress => Role::Server,
        Direction::Egress => Role::Client,
    }
}
