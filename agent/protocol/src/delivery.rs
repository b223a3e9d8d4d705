//! How long an answer took to reach its peer, by what the kernel says of acknowledgements.
//!
//! The kernel sums up for how long a connection had bytes that the peer had not acknowledged. Where
//! a request begins and where the connection ends, the sum is read: what it grew by is the time of
//! the answer in between, if there was but one.

use std::num::NonZeroU64;

/// Between two readings of the kernel's sum.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivery {
    /// The last reading and when it was taken; `None` where the sum was not final then.
    from: Option<Reading>,
    answered: Answered,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    busy_ns: u64,
    /// Never 0, so that there being none takes no room: connections that are idle keep this.
    time_ns: NonZeroU64,
}

/// Answers since the last reading.
#[derive(Clone, Copy, Debug, Default)]
enum Answered {
    #[default]
    None,
    /// One, which ended at this offset.
    Once { end_bytes: u64 },
    /// Bytes whose time can't be told from that of others.
    Mixed,
}

impl Delivery {
    /// Notes an answer that is complete, began at `first_ns` and ends at `end_bytes`.
    pub(crate) fn note_answer(&mut self, first_ns: u64, end_bytes: u64) {
        let since = self.from.is_some_and(|from| from.time_ns.get() <= first_ns);
        self.answered = match self.answered {
            Answered::None if since => Answered::Once { end_bytes },
            _ => Answered::Mixed,
        };
    }

    /// Notes an answer that is not complete.
    pub(crate) fn note_other(&mut self) {
        self.answered = Answered::Mixed;
    }

    /// A request begins, by which time the answers' stream has come to `answers_bytes`; gives what
    /// the answer before took.
    pub(crate) fn begin(
        &mut self,
        busy_ns: Option<u64>,
        time_ns: u64,
        answers_bytes: u64,
    ) -> Option<u64> {
        let took_ns = busy_ns.and_then(|busy_ns| self.take(busy_ns, answers_bytes));
        let reading = busy_ns.zip(NonZeroU64::new(time_ns));
        self.from = reading.map(|(busy_ns, time_ns)| Reading { busy_ns, time_ns });
        self.answered = Answered::None;
        took_ns
    }

    /// The connection ends, or half of it; gives what the last answer took, once.
    pub(crate) fn take(&mut self, busy_ns: u64, answers_bytes: u64) -> Option<u64> {
        match (self.from, self.answered) {
            (Some(from), Answered::Once { end_bytes }) if end_bytes == answers_bytes => {
                self.answered = Answered::Mixed;
                busy_ns.checked_sub(from.busy_ns)
            }
            _ => None,
        }
    }
}
