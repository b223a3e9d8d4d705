//! From events to exchanges: heads begin them, ends end them.

use ebpf_common::connection::{Cursor, Direction};

use super::{Connection, role};
use crate::http1::body::{Body, Framing};
use crate::http1::decoder::{Closed, Event, HeadBytes};
use crate::http1::head::{RequestHead, ResponseHead, complete};
use crate::http1::method::{Beginning, Kind, beginning};
use crate::in_flight::{Answer, InFlight};
use crate::loss::LossReason;
use crate::observation::{Outcome, Role};
use crate::pairing::{AnswerGaps, RequestGaps};

/// How a stream goes on behind the head of an answer.
enum Next {
    Body(Framing),
    /// The connection is no longer HTTP.
    Tunnel,
    /// Nothing tells where the answer ends.
    Unframed,
    /// It is no answer to any request that was seen; if its request was like most, it is framed so.
    Orphan(Option<Framing>),
}

impl Connection {
    pub(super) fn apply(&mut self, event: Event<'_>, direction: Direction) {
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
        self.heads[role as usize] += 1;
        let mut entry = match &parsed {
            Some(parsed) => {
                let spare = self.spare.take();
                InFlight::new(role, parsed, head.first_ns, head.last_ns, spare)
            }
            None => InFlight::unparsed(role, head.first_ns, head.last_ns),
        };
        let framing = match &parsed {
            Some(_) if !head.complete => Some(Framing::Unknown),
            Some(parsed) => parsed.framing,
            None => None,
        };
        if role == Role::Server {
            entry.set_arrival(self.stream(direction).take_arrival_ns(head.first_ns));
        }
        if let Some(parsed) = &parsed {
            entry.watch_search(parsed, self.search_cluster.is_some());
        }
        let decoder = &mut self.stream(direction).decoder;
        match framing {
            Some(framing) => decoder.begin_body(framing),
            None => decoder.lose_step(LossReason::Garbage, false),
        }
        entry.request_done = framing.is_none();
        if self.request_direction.is_none() {
            // Nothing says that this is HTTP at all, so that no answer need come.
            let ended = entry.finish(Outcome::NotParsed, None, None, &self.limits);
            self.observations.push_back(ended);
            return;
        }
        if self.pairing.len() >= self.limits.requests_in_flight {
            self.losses.count(LossReason::QueueFull, 0);
            let evicted = self.pairing.overflow().collect();
            self.finish_each(evicted, Outcome::Evicted, None);
        }
        let gap_ns = self.stream(direction).take_gap_ns();
        let answers = self.stream(direction.opposite());
        let gaps = RequestGaps {
            gap_ns,
            unseen_answers: answers.hides_heads(),
            answered_ns: answers.seen().last_ns,
        };
        let mut resynchronized = Vec::new();
        self.pairing.push(entry, gaps, &mut resynchronized);
        self.finish_each(resynchronized, Outcome::Resynchronized, None);
        self.request_open = framing.is_some();
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
        let gap_ns = self.stream(direction).take_gap_ns();
        let is_whole = self.pairing.is_whole();
        let requests = self.stream(direction.opposite());
        let is_older = !is_whole && requests.is_older_at(head.first_ns);
        let gaps = AnswerGaps {
            gap_ns,
            // Where a request's framing is lost, its body may be the next request.
            unseen_requests: requests.may_hide_heads()
                || requests.decoder.body().is_some_and(Body::is_unknown),
        };
        let mut resynchronized = Vec::new();
        let answered = self
            .pairing
            .answer(head.first_ns, gaps, &mut resynchronized);
        let next = match (answered, &parsed) {
            (None, parsed) => Next::Orphan(
                parsed
                    .as_ref()
                    .filter(|_| head.complete)
                    .and_then(|parsed| parsed.framing("GET")),
            ),
            (Some(entry), None) => {
                entry.spoil_answer(head.first_ns, head.last_ns);
                Next::Unframed
            }
            (Some(entry), Some(parsed)) => {
                entry.begin_answer(parsed, head.first_ns, head.last_ns);
                if parsed.is_tunnel(entry.method()) {
                    Next::Tunnel
                } else if !head.complete {
                    Next::Body(Framing::Unknown)
                } else if let Some(framing) = parsed.framing(entry.method()) {
                    Next::Body(framing)
                } else {
                    entry.spoil_answer(head.first_ns, head.last_ns);
                    Next::Unframed
                }
            }
        };
        if let Some(product) = parsed.and_then(|parsed| parsed.product) {
            self.note_search_product(product);
        }
        self.finish_each(resynchronized, Outcome::Resynchronized, None);
        self.extend_request(head.first_ns);
        let stream = self.stream(direction);
        match next {
            Next::Body(framing) => stream.decoder.begin_body(framing),
            Next::Tunnel => self.leave_http(head.last_ns),
            // Answers to requests that were seen may follow in the bytes that are now skipped.
            Next::Unframed => {
                stream.note_gap();
                stream.decoder.lose_step(LossReason::Garbage, false);
                self.emit_done();
            }
            Next::Orphan(framing) => {
                let reason = if is_older {
                    LossReason::BeforeAgent
                } else {
                    LossReason::OrphanResponse
                };
                stream.note_gap();
                stream.decoder.lose_step_behind(reason, framing);
                self.losses.count(reason, head.bytes.len() as u64);
            }
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

    /// Notes how far the open request had come when its answer began, for its end may go unseen.
    fn extend_request(&mut self, answer_ns: u64) {
        let (Some(direction), true) = (self.request_direction, self.request_open) else {
            return;
        };
        let last_ns = self.stream(direction).seen().last_ns;
        if last_ns <= answer_ns
            && let Some(newest) = self.pairing.newest()
        {
            newest.extend_request(last_ns);
        }
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
            if let Some(newest) = self.pairing.newest() {
                newest.extend_request(last_ns);
                newest.end_cut_request();
            }
            self.request_open = false;
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
        let (done, others): (Vec<_>, _) = self
            .pairing
            .drain()
            .partition(|entry| entry.answer == Answer::Done);
        self.finish_each(done, Outcome::Upgraded, None);
        // What else was taken for a request was the new protocol's.
        self.finish_each(others, Outcome::Resynchronized, None);
    }

    /// Ends exchanges that will not be complete. `ended_ns`: when the connection ended, if it did.
    fn finish_each(&mut self, entries: Vec<InFlight>, outcome: Outcome, ended_ns: Option<u64>) {
        if !entries.is_empty() {
            self.delivery.note_other();
        }
        let cluster = self.search_cluster.as_ref();
        if entries.iter().any(|entry| !entry.request_done) {
            self.request_open = false;
        }
        self.observations.extend(
            entries
                .into_iter()
                .map(|entry| entry.finish(outcome, ended_ns, cluster, &self.limits)),
        );
    }

    fn emit_done(&mut self) {
        while let Some(entry) = self.pairing.pop_done() {
            if let Some(first_ns) = entry.answer_first_ns() {
                let end_bytes = self.egress.position_bytes();
                self.delivery.note_answer(first_ns, end_bytes);
            }
            let known = self.search_cluster.as_ref();
            let ended = entry.finish(Outcome::Matched, None, known, &self.limits);
            self.observations.push_back(ended);
        }
    }

    /// Reads a direction to its end, which may be that of a body.
    pub(super) fn end_direction(&mut self, direction: Direction, orderly: bool) {
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
                newest.end_cut_request();
            }
            self.emit_done();
        }
    }

    pub(super) fn finish_all(&mut self, outcome: Outcome, time_ns: u64) {
        self.request_open = false;
        let entries = self.pairing.drain().collect();
        self.finish_each(entries, outcome, Some(time_ns));
    }
}
