//! Which answer belongs to which request.
//!
//! Answers come in the order of their requests (RFC 9112, section 9.3.2), so a queue pairs them as
//! long as no head went unseen. Where one may have, an exchange that can't be told from another
//! ends as [`Outcome::Resynchronized`]: no answer is given to a request that may not be its own.

use std::collections::VecDeque;

use crate::in_flight::{Answer, InFlight};

/// By how much the clock may have a response before its request. A client's call returns after its
/// bytes have left; the answer may come to another thread before that.
const RACE_NS: u64 = 50_000_000;

/// Requests in flight, oldest first. Only the newest can have an answer that is done: it waits for
/// the rest of its own request.
#[derive(Debug, Default)]
pub(crate) struct Pairing {
    queue: VecDeque<InFlight>,
    past: Past,
}

/// What is known of a connection's requests and answers when none is in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Past {
    /// A request began before an earlier one was answered.
    pipelined: bool,
    /// The same, and some answers had come in between: there is no moment at which all is answered.
    windowed: bool,
    /// An answer began since the last request did.
    answered_since_request: bool,
    /// Answers can't be counted any longer.
    lost: bool,
    /// A request was seen, or else there was none.
    began: bool,
    /// No request can have gone before those that were seen.
    whole: bool,
}

impl Past {
    /// No request went before the first one.
    pub(crate) const WHOLE: Self = Self {
        pipelined: false,
        windowed: false,
        answered_since_request: false,
        lost: false,
        began: true,
        whole: true,
    };
}

/// What went unseen when a request begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestGaps {
    /// When the last byte moved of those in which requests may have gone unseen.
    pub(crate) gap_ns: Option<u64>,
    /// Whether bytes of answers passed that were not seen.
    pub(crate) unseen_answers: bool,
    /// When the last byte of an answer moved.
    pub(crate) answered_ns: u64,
}

/// What went unseen when an answer begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerGaps {
    /// When the last byte moved of those in which answers may have gone unseen.
    pub(crate) gap_ns: Option<u64>,
    /// Whether requests may have gone unseen since the newest one.
    pub(crate) unseen_requests: bool,
}

impl Pairing {
    /// Notes that no request went before the first one.
    pub(crate) const fn begin(&mut self) {
        self.past = Past::WHOLE;
    }

    /// What to remember of the connection; `None` where requests are in flight.
    pub(crate) fn past(&self) -> Option<Past> {
        self.queue.is_empty().then_some(self.past)
    }

    /// Goes on where a connection rested.
    pub(crate) const fn resume(&mut self, past: Past) {
        self.past = past;
    }

    /// Whether [`Self::begin`] was called.
    pub(crate) const fn is_whole(&self) -> bool {
        self.past.whole
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.queue.iter()
    }

    /// Requests whose answer has not begun.
    pub(crate) fn awaited(&self) -> usize {
        self.queue
            .iter()
            .rev()
            .take_while(|entry| entry.answer == Answer::Awaited)
            .count()
    }

    /// When the oldest request began that has no answer yet.
    pub(crate) fn awaited_since_ns(&self) -> Option<u64> {
        let first = self.queue.len() - self.awaited();
        self.queue.get(first).map(InFlight::request_first_ns)
    }

    /// The oldest request whose answer has not begun.
    pub(crate) fn oldest_awaited(&mut self) -> Option<&mut InFlight> {
        let first = self.queue.len() - self.awaited();
        self.queue.get_mut(first)
    }

    /// The newest request.
    pub(crate) fn newest(&mut self) -> Option<&mut InFlight> {
        self.queue.back_mut()
    }

    /// The request whose answer is under way.
    pub(crate) fn answering(&mut self) -> Option<&mut InFlight> {
        self.queue
            .iter_mut()
            .find(|entry| entry.answer == Answer::Begun)
    }

    /// Adds a request whose head was seen. Requests that can't be told apart any longer go to
    /// `resynchronized`.
    pub(crate) fn push(
        &mut self,
        mut entry: InFlight,
        gaps: RequestGaps,
        resynchronized: &mut Vec<InFlight>,
    ) {
        let doubtful = self.awaited() > 0 && self.queue.back().is_some_and(|last| last.doubtful);
        if doubtful {
            // It was answered by the response in doubt, or else this one was sent too early.
            resynchronized.extend(self.drain_awaited());
        }
        let awaited = self.awaited() > 0;
        if awaited && !gaps.unseen_answers {
            self.past.pipelined = true;
            self.past.windowed |= self.past.answered_since_request;
        }
        self.past.answered_since_request = false;
        let gap = gaps.gap_ns.is_some_and(|gap_ns| {
            // A client that never pipelined has its answers before it asks again, and times tell
            // those apart. One that did has had them if some came after the requests that went
            // unseen, unless it never pauses.
            self.past.windowed || self.past.pipelined && (awaited || gaps.answered_ns <= gap_ns)
        });
        self.past.lost |= gap && self.past.windowed;
        entry.ambiguous = gap || self.past.lost || doubtful;
        entry.follows_unseen = gaps.gap_ns.is_some() || !self.past.began;
        self.past.began = true;
        self.queue.push_back(entry);
    }

    /// The request that a final response belongs to whose first byte moved at `first_ns`; `None`
    /// when it is to no request that was seen. Requests that can't be told apart any longer go to
    /// `resynchronized`.
    pub(crate) fn answer(
        &mut self,
        first_ns: u64,
        gaps: AnswerGaps,
        resynchronized: &mut Vec<InFlight>,
    ) -> Option<&mut InFlight> {
        self.past.answered_since_request = true;
        if let Some(gap_ns) = gaps.gap_ns {
            self.bridge_answer_gap(gap_ns, gaps.unseen_requests, resynchronized);
        }
        let index = self.queue.len() - self.awaited();
        let oldest = self.queue.get_mut(index)?;
        if let Some(early_ns @ 1..) = oldest.request_first_ns().checked_sub(first_ns) {
            let raced = !oldest.follows_unseen && gaps.gap_ns.is_none() && early_ns <= RACE_NS;
            if !raced {
                // It was under way before the request was: an answer to one that went unseen.
                oldest.doubtful = true;
                return None;
            }
        }
        if oldest.ambiguous {
            resynchronized.extend(self.drain_awaited());
            return None;
        }
        self.queue.get_mut(index)
    }

    /// Takes the oldest exchange out, if it is complete.
    pub(crate) fn pop_done(&mut self) -> Option<InFlight> {
        let oldest = self.queue.front()?;
        if !oldest.request_done || oldest.answer != Answer::Done {
            return None;
        }
        self.queue.pop_front()
    }

    /// Takes all exchanges out, for the queue is at its bound: the answers to come can't be counted.
    pub(crate) fn overflow(&mut self) -> impl Iterator<Item = InFlight> {
        self.past.lost = true;
        self.queue.drain(..)
    }

    /// Takes all exchanges out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = InFlight> {
        self.queue.drain(..)
    }

    /// Answers may have gone unseen until `gap_ns`. Lets those requests go that they may have been
    /// for.
    fn bridge_answer_gap(
        &mut self,
        gap_ns: u64,
        unseen_requests: bool,
        resynchronized: &mut Vec<InFlight>,
    ) {
        let first = self.queue.len() - self.awaited();
        let is_before = |entry: &&InFlight| entry.request_first_ns() <= gap_ns;
        let before = self.queue.range(first..).take_while(is_before).count();
        let asked_since = first + before < self.queue.len();
        if before == 0 || before == 1 && !asked_since && !unseen_requests {
            // One request and one answer belong together: an interim response went unseen.
            return;
        }
        // A client asks again when it has been answered, unless it never pauses.
        let answered = if asked_since && !self.past.windowed {
            first + before
        } else {
            self.queue.len()
        };
        resynchronized.extend(self.queue.drain(first..answered));
        self.past.lost |= self.past.windowed;
    }

    fn drain_awaited(&mut self) -> impl Iterator<Item = InFlight> {
        let first = self.queue.len() - self.awaited();
        self.queue.drain(first..)
    }
}
