//! Which thread serves which request: told by the workers, which follow connections, to the profiler,
//! which labels samples.
//!
//! A *stint* is the time from a request's first byte to the last one of its answer, on the thread that
//! reads the one and writes the other; a client's thread writes and reads.

pub mod log;
pub mod timelines;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use profile::Request;
use protocol::observation::Role;

pub use log::{OpenStint, StintLog};
pub use timelines::{Moment, Timelines};

/// Most stints of one worker that wait for the profiler, which comes ten times a second: what 500,000
/// exchanges a second leave in that time.
const MAX_WAITING: usize = 1 << 16;

/// End of a stint whose exchange is in flight.
pub const IN_FLIGHT: u64 = u64::MAX;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stint {
    /// The connection, and when the request's first byte passed: no two stints share both.
    pub key: StintKey,
    /// Whose thread it is.
    pub process: ProcessKey,
    /// The thread that moved the end of the request's head.
    pub tid: u32,
    /// The process's side.
    pub role: Role,
    /// When the answer's last byte passed, `CLOCK_MONOTONIC`, nanoseconds, or [`IN_FLIGHT`].
    pub to_ns: u64,
    /// Another thread took part, or may have.
    pub moved: bool,
    /// What its work is called.
    pub name: Name,
}

impl Stint {
    /// When the request's first byte passed: `CLOCK_MONOTONIC`, nanoseconds.
    #[must_use]
    pub const fn from_ns(&self) -> u64 {
        self.key.1
    }
}

/// Connection, and begin of the stint in nanoseconds.
pub type StintKey = (u64, u64);

/// Pid, and when the process started in ticks since boot.
pub type ProcessKey = (u32, u64);

/// What the work of a stint is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Name {
    /// Not known before more of the exchange has passed.
    #[default]
    Awaited,
    /// Nothing: several requests that can't be told apart, or one that labels don't name.
    None,
    /// A server's request.
    Request(Request),
    /// A client's call of Elasticsearch: endpoint id of the REST specification.
    Operation(&'static str),
}

/// Where workers leave stints for the profiler. While nobody takes a profile, nothing is left.
#[derive(Debug)]
pub struct Requests {
    /// Number of the present want, or 0 while there is none.
    want: AtomicU64,
    /// Wants so far.
    wants: AtomicU64,
    awaited: AtomicBool,
    slots: Box<[Slot]>,
}

/// What one worker tells.
#[derive(Debug, Default)]
struct Slot {
    stints: Mutex<Vec<Stint>>,
    /// Every exchange that began or ended before then was told: `CLOCK_MONOTONIC`, nanoseconds.
    handled_ns: AtomicU64,
    /// Number of the last want that it began to tell stints for, and since when it leaves none out:
    /// `CLOCK_MONOTONIC`, nanoseconds.
    begun: Mutex<(u64, u64)>,
    dropped: AtomicU64,
}

impl Requests {
    /// For so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            want: AtomicU64::new(0),
            wants: AtomicU64::new(0),
            awaited: AtomicBool::new(false),
            slots: (0..workers).map(|_| Slot::default()).collect(),
        }
    }

    /// Has workers tell stints from their next round on, those in flight then among them; or no more.
    pub fn want(&self, wanted: bool) {
        let want = if wanted {
            self.wants.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            0
        };
        self.want.store(want, Ordering::Release);
        if !wanted {
            drop(self.take());
        }
    }

    /// Since when no worker has left out a stint that ended later: `CLOCK_MONOTONIC`, nanoseconds.
    /// `None` before all of them know that stints are wanted.
    #[must_use]
    pub fn told_since_ns(&self) -> Option<u64> {
        let want = self.wanted();
        let begun = self.slots.iter().map(|slot| {
            let (of, since_ns) = *slot.begun.lock().unwrap_or_else(PoisonError::into_inner);
            (want != 0 && of == want).then_some(since_ns)
        });
        begun.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Says whether somebody waits for what workers tell: they rest no longer than they have to then.
    pub fn await_now(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Release);
    }

    /// Whether somebody does.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// Whatever began or ended before then was told by every worker: `CLOCK_MONOTONIC`, nanoseconds.
    #[must_use]
    pub fn handled_ns(&self) -> u64 {
        let slots = self.slots.iter();
        let handled = slots.map(|slot| slot.handled_ns.load(Ordering::Acquire));
        handled.min().unwrap_or(0)
    }

    /// Takes out what the workers told since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<Stint> {
        let mut all = Vec::new();
        for slot in &self.slots {
            all.append(&mut slot.stints.lock().unwrap_or_else(PoisonError::into_inner));
        }
        all
    }

    /// Stints that found no room since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let slots = self.slots.iter();
        slots.map(|slot| slot.dropped.load(Ordering::Relaxed)).sum()
    }

    /// Number of the present want, or 0.
    fn wanted(&self) -> u64 {
        self.want.load(Ordering::Acquire)
    }

    /// From now on `worker` tells all stints that end, for `want`.
    fn begin(&self, worker: usize, want: u64, now_ns: u64) {
        if let Some(slot) = self.slots.get(worker) {
            *slot.begun.lock().unwrap_or_else(PoisonError::into_inner) = (want, now_ns);
        }
    }

    /// Takes in what `worker` tells: all of it up to `handled_ns`.
    fn tell(&self, worker: usize, batch: &mut Vec<Stint>, handled_ns: u64) {
        let Some(slot) = self.slots.get(worker) else {
            return;
        };
        if !batch.is_empty() {
            let mut stints = slot.stints.lock().unwrap_or_else(PoisonError::into_inner);
            let room = MAX_WAITING - stints.len().min(MAX_WAITING);
            let dropped = batch.len().saturating_sub(room) as u64;
            slot.dropped.fetch_add(dropped, Ordering::Relaxed);
            stints.extend(batch.drain(..).take(room));
        }
        slot.handled_ns.store(handled_ns, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stint(connection: u64) -> Stint {
        Stint {
            key: (connection, 1),
            process: (1, 1),
            tid: 1,
            role: Role::Server,
            to_ns: 2,
            moved: false,
            name: Name::None,
        }
    }

    #[test]
    fn all_is_handled_that_every_worker_has_handled() {
        let requests = Requests::new(2);
        requests.tell(0, &mut vec![stint(1)], 20);
        assert_eq!(requests.handled_ns(), 0);
        requests.tell(1, &mut vec![stint(2)], 10);
        assert_eq!(requests.handled_ns(), 10);
        assert_eq!(requests.take(), [stint(1), stint(2)]);
        assert!(requests.take().is_empty());
    }

    #[test]
    fn all_is_told_since_the_last_worker_knew_of_the_want() {
        let requests = Requests::new(2);
        assert_eq!(requests.told_since_ns(), None);
        requests.want(true);
        requests.begin(0, requests.wanted(), 10);
        assert_eq!(requests.told_since_ns(), None);
        requests.begin(1, requests.wanted(), 30);
        assert_eq!(requests.told_since_ns(), Some(30));
        // What they began for an earlier want does not count.
        requests.want(false);
        requests.want(true);
        assert_eq!(requests.told_since_ns(), None);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let requests = Requests::new(1);
        requests.tell(0, &mut vec![stint(1); MAX_WAITING - 1], 1);
        requests.tell(0, &mut vec![stint(2); 3], 2);
        assert_eq!(requests.dropped(), 2);
        assert_eq!(requests.take().len(), MAX_WAITING);
    }
}
