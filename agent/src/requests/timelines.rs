//! Stints and moments in, whose work it was at each moment out.
//!
//! A moment belongs to a request where that is the only one that can be meant: its thread has read the
//! request, no other one was in flight on the thread at any time since then, and no other thread took
//! part in the exchange. A process that was seen to pass an exchange from one thread to another may
//! do so with any of them, there and back, so that nothing is told of it for some time.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use protocol::observation::Role;

use super::{Name, ProcessKey, Stint, StintKey};

/// How long a process is remembered that passes exchanges between its threads.
const REMEMBERED_NS: u64 = 600_000_000_000;

/// Most of them; beyond, all are forgotten that don't go on with it.
const MAX_MOVING: usize = 4096;

/// A thread at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Thread.
    pub tid: u32,
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub at_ns: u64,
    /// How long the thread did nothing else from then on, nanoseconds.
    pub lasts_ns: u64,
}

impl Moment {
    const fn end_ns(&self) -> u64 {
        self.at_ns.saturating_add(self.lasts_ns)
    }
}

/// What was in flight on a thread, by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// Nothing.
    Nothing,
    /// Several exchanges, of which each may be meant.
    Several,
    /// One.
    One(StintKey),
    /// It can't be told: records were lost.
    Doubtful,
}

/// What became of a stint that a moment belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// It can't be told yet.
    Awaited,
    /// It passed from thread to thread, or may have.
    Moved,
    /// Its name.
    Name(&'a Name),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Timelines {
    /// By thread: what is in flight or was, some time since `until_ns`.
    live: HashMap<u32, Stints>,
    /// Told before its time.
    early: Vec<Stint>,
    /// What moments were found to belong to.
    chosen: HashMap<StintKey, Chosen>,
    /// Processes that pass exchanges between threads, and when they last did.
    moving: HashMap<ProcessKey, u64>,
    /// Everything until then is known.
    until_ns: u64,
    /// Records were lost before then.
    doubtful_until_ns: u64,
    /// Stints may be missing that ended before then.
    since_ns: u64,
}

/// Those of one thread.
type Stints = BTreeMap<StintKey, Live>;

#[derive(Debug)]
struct Live {
    stint: Stint,
    /// It was not alone on its thread at some time before `until_ns`.
    shared: bool,
}

#[derive(Debug)]
struct Chosen {
    process: ProcessKey,
    moved: bool,
    name: Name,
}

impl Timelines {
    /// Forgets all but which processes pass exchanges between threads: what one does it does again.
    pub fn restart(&mut self) {
        let moving = std::mem::take(&mut self.moving);
        *self = Self {
            moving,
            ..Self::default()
        };
    }

    /// Takes note that records were lost before `ns`: nothing is told of moments up to then.
    pub const fn doubt(&mut self, ns: u64) {
        self.doubtful_until_ns = ns;
    }

    /// Takes note that stints may be missing that ended before `ns`: nothing is told of moments up to
    /// then.
    pub const fn begin(&mut self, ns: u64) {
        self.since_ns = ns;
    }

    /// Takes in `stints`, with which all is known that began or ended before `until_ns`. Decides the
    /// `moments` that have ended by then, takes them out, and tells each with what was in flight on a
    /// server's side and on a client's.
    pub fn advance<T>(
        &mut self,
        stints: Vec<Stint>,
        until_ns: u64,
        moments: &mut Vec<(Moment, T)>,
        mut tell: impl FnMut(T, InFlight, InFlight),
    ) {
        let until_ns = until_ns.max(self.until_ns);
        let since_ns = until_ns.saturating_sub(REMEMBERED_NS);
        self.moving.retain(|_, last_ns| *last_ns >= since_ns);
        let decided: Vec<_> = moments
            .extract_if(.., |(moment, _)| moment.end_ns() <= until_ns)
            .collect();
        let threads = decided.iter().map(|(moment, _)| moment.tid).collect();
        self.take_in(stints, until_ns, &threads);
        for (moment, whose) in decided {
            let [server, client] =
                [Role::Server, Role::Client].map(|role| self.choose(&moment, role));
            tell(whose, server, client);
        }
        self.until_ns = until_ns;
        let doubtful = self.doubtful_until_ns > until_ns;
        self.live.retain(|_, stints| {
            note_shared(stints, doubtful);
            stints.retain(|_, live| live.stint.to_ns > until_ns);
            !stints.is_empty()
        });
    }

    /// What is known by now of a stint that [`Self::advance`] told of.
    #[must_use]
    pub fn told(&self, key: StintKey) -> Told<'_> {
        match self.chosen.get(&key) {
            None => Told::Awaited,
            Some(chosen) if chosen.moved || self.moving.contains_key(&chosen.process) => {
                Told::Moved
            }
            Some(Chosen {
                name: Name::Awaited,
                ..
            }) => Told::Awaited,
            Some(chosen) => Told::Name(&chosen.name),
        }
    }

    /// Lets go of what moments belong to but those that `is_needed`.
    pub fn forget_chosen(&mut self, mut is_needed: impl FnMut(StintKey) -> bool) {
        self.chosen.retain(|key, _| is_needed(*key));
    }

    fn take_in(&mut self, stints: Vec<Stint>, until_ns: u64, threads: &HashSet<u32>) {
        let mut all = std::mem::take(&mut self.early);
        all.extend(stints);
        let mut ended = Vec::new();
        for stint in all {
            if let Some(chosen) = self.chosen.get_mut(&stint.key) {
                chosen.moved |= stint.moved;
                if stint.name != Name::Awaited {
                    chosen.name = stint.name.clone();
                }
            }
            if stint.moved && stint.role == Role::Server {
                self.note_moving(stint.process, until_ns);
            }
            if stint.from_ns() > until_ns {
                self.early.push(stint);
            } else if stint.to_ns > until_ns {
                self.insert(stint);
            } else {
                ended.push(stint);
            }
        }
        // Most threads have nothing in flight for long and are not asked for.
        for stint in ended {
            if threads.contains(&stint.tid) || self.live.contains_key(&stint.tid) {
                self.insert(stint);
            }
        }
    }

    /// Adds a stint, or what is new of it.
    fn insert(&mut self, stint: Stint) {
        let stints = self.live.entry(stint.tid).or_default();
        match stints.entry(stint.key) {
            Entry::Vacant(entry) => {
                entry.insert(Live {
                    stint,
                    shared: false,
                });
            }
            // A worker tells of a stint in order: nothing follows its end.
            Entry::Occupied(mut entry) => entry.get_mut().stint = stint,
        }
    }

    fn note_moving(&mut self, process: ProcessKey, now_ns: u64) {
        if self.moving.len() >= MAX_MOVING && !self.moving.contains_key(&process) {
            self.moving.clear();
        }
        self.moving.insert(process, now_ns);
    }

    fn choose(&mut self, moment: &Moment, role: Role) -> InFlight {
        if moment.at_ns < self.doubtful_until_ns.max(self.since_ns) {
            return InFlight::Doubtful;
        }
        let Some(stints) = self.live.get(&moment.tid) else {
            return InFlight::Nothing;
        };
        let is_open = |live: &Live| {
            live.stint.role == role
                && live.stint.from_ns() <= moment.at_ns
                && live.stint.to_ns >= moment.at_ns
        };
        let Some(found) = stints.values().find(|live| is_open(live)) else {
            return InFlight::Nothing;
        };
        let since_ns = found.stint.from_ns();
        let is_other = |other: &Live| {
            other.stint.key != found.stint.key
                && other.stint.role == role
                && other.stint.from_ns() <= moment.at_ns
                && other.stint.to_ns >= since_ns
        };
        if found.shared || stints.values().any(is_other) {
            return InFlight::Several;
        }
        let Stint {
            key,
            process,
            moved,
            name,
            ..
        } = &found.stint;
        self.chosen.entry(*key).or_insert_with(|| Chosen {
            process: *process,
            moved: *moved,
            name: name.clone(),
        });
        InFlight::One(*key)
    }
}

/// Notes which stints of a thread were not alone: those that another one of the same role has outlasted
/// the beginning of. All of them have begun.
fn note_shared(stints: &mut Stints, doubtful: bool) {
    for role in [Role::Server, Role::Client] {
        // The two latest ends: of every stint, one of them is another's.
        let mut latest = [None::<(u64, StintKey)>; 2];
        for live in stints.values().filter(|live| live.stint.role == role) {
            let end = Some((live.stint.to_ns, live.stint.key));
            if end > latest[0] {
                latest = [end, latest[0]];
            } else if end > latest[1] {
                latest[1] = end;
            }
        }
        for live in stints.values_mut().filter(|live| live.stint.role == role) {
            let mut others = latest.iter().flatten();
            let other = others.find(|(_, key)| *key != live.stint.key);
            let is_shared = other.is_some_and(|(to_ns, _)| *to_ns >= live.stint.from_ns());
            live.shared |= doubtful || is_shared;
        }
    }
}

#[cfg(test)]
#[path = "timelines_tests.rs"]
mod tests;
