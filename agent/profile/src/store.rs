//! Counts by thread and stack.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::stack::{StackTrace, Thread};

/// Sums samples of equal stacks of one thread. Bounded: beyond its capacity, samples of stacks
/// that it does not hold yet are counted as dropped.
#[derive(Debug)]
pub struct Store {
    counts: HashMap<(Thread, StackTrace), u64>,
    capacity: usize,
    dropped: u64,
}

/// A stack of a thread and how often it was sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Whose stack.
    pub thread: Thread,
    /// The stack.
    pub stack: StackTrace,
    /// Samples.
    pub count: u64,
}

impl Store {
    /// A store of at most `capacity` different stacks.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            counts: HashMap::new(),
            capacity,
            dropped: 0,
        }
    }

    /// Adds `count` samples of a stack.
    pub fn add(&mut self, thread: Thread, stack: StackTrace, count: u64) {
        let full = self.counts.len() >= self.capacity;
        match self.counts.entry((thread, stack)) {
            Entry::Occupied(mut entry) => *entry.get_mut() += count,
            Entry::Vacant(entry) if !full => {
                entry.insert(count);
            }
            Entry::Vacant(_) => self.dropped += count,
        }
    }

    /// Samples that found the store full.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Samples that it holds.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Threads of its samples, each once a stack.
    pub fn threads(&self) -> impl Iterator<Item = &Thread> {
        self.counts.keys().map(|(thread, _)| thread)
    }

    /// Everything counted, in the order of [`Counted::sort`].
    #[must_use]
    pub fn into_counted(self) -> Vec<Counted> {
        let mut all: Vec<_> = self
            .counts
            .into_iter()
            .map(|((thread, stack), count)| Counted {
                thread,
                stack,
                count,
            })
            .collect();
        Counted::sort(&mut all);
        all
    }
}

impl Counted {
    /// The most frequent first; equal counts by thread and stack, so that the order is the same
    /// each time.
    pub fn sort(all: &mut [Self]) {
        all.sort_by(|a, b| {
            (
                b.count,
                a.thread.pid,
                a.thread.tid,
                &a.stack.user,
                &a.stack.kernel,
                &a.thread.work,
            )
                .cmp(&(
                    a.count,
                    b.thread.pid,
                    b.thread.tid,
                    &b.stack.user,
                    &b.stack.kernel,
                    &b.thread.work,
                ))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Work;
    use proptest::prelude::*;

    fn thread(tid: u32) -> Thread {
        Thread {
            pid: 1,
            tid,
            image: 7,
            name: "t".into(),
            work: Work::default(),
        }
    }

    fn stack(addresses: &[u64]) -> StackTrace {
        StackTrace {
            kernel: Box::default(),
            user: addresses.into(),
            ..StackTrace::default()
        }
    }

    #[test]
    fn equal_stacks_of_one_thread_are_summed() {
        let mut store = Store::new(10);
        store.add(thread(1), stack(&[1, 2]), 3);
        store.add(thread(1), stack(&[1, 2]), 4);
        store.add(thread(2), stack(&[1, 2]), 1);
        store.add(thread(1), stack(&[2, 1]), 2);
        let counts: Vec<_> = store
            .into_counted()
            .iter()
            .map(|c| (c.thread.tid, c.count))
            .collect();
        assert_eq!(counts, [(1, 7), (1, 2), (2, 1)]);
    }

    proptest! {
        #[test]
        fn no_sample_goes_uncounted(
            samples in prop::collection::vec((0..4_u32, 0..6_u64, 1..9_u64), 0..60),
            capacity in 0..12_usize,
        ) {
            let mut store = Store::new(capacity);
            let total: u64 = samples.iter().map(|(_, _, count)| count).sum();
            for (tid, address, count) in samples {
                store.add(thread(tid), stack(&[address]), count);
            }
            prop_assert_eq!(store.samples() + store.dropped(), total);
            prop_assert!(store.into_counted().len() <= capacity);
        }
    }
}
