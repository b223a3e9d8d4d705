//! What continuous profiling keeps: counted stacks in a ring of time windows.

use std::collections::{HashMap, HashSet, VecDeque, hash_map};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::packed::PackedStack;
use crate::stack::Thread;
use crate::store::Counted;

/// The last windows, bounded by age and by memory. Equal stacks and threads of all windows are
/// kept once.
#[derive(Debug)]
pub struct History {
    windows: VecDeque<Window>,
    threads: HashSet<Arc<Thread>>,
    stacks: HashSet<Arc<PackedStack>>,
    /// Threads of each process image (pid and image).
    images: HashMap<(u32, u64), usize>,
    retention: Duration,
    max_bytes: usize,
    bytes: usize,
    dropped_samples: u64,
}

/// What was sampled in a span of time.
#[derive(Debug)]
struct Window {
    began: SystemTime,
    ended: SystemTime,
    lost_samples: u64,
    counts: Box<[Entry]>,
}

/// A stack of a thread and how often it was sampled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Entry {
    thread: Arc<Thread>,
    stack: Arc<PackedStack>,
    count: u64,
}

/// The sum of some windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Begin of the first of them.
    pub began: SystemTime,
    /// How long they last, gaps between them left out.
    pub duration: Duration,
    /// Stacks with their counts.
    pub counted: Vec<Counted>,
    /// Samples that were taken and are in none of `counted`.
    pub lost_samples: u64,
}

impl History {
    /// A history of windows that ended less than `retention` ago, in about `max_bytes` of memory.
    #[must_use]
    pub fn new(retention: Duration, max_bytes: usize) -> Self {
        Self {
            windows: VecDeque::new(),
            threads: HashSet::new(),
            stacks: HashSet::new(),
            images: HashMap::new(),
            retention,
            max_bytes,
            bytes: 0,
            dropped_samples: 0,
        }
    }

    /// Adds the newest window; windows that are too old go, and where there is no room the oldest.
    pub fn push(
        &mut self,
        began: SystemTime,
        ended: SystemTime,
        counted: Vec<Counted>,
        lost_samples: u64,
    ) {
        let counts: Box<[Entry]> = counted
            .into_iter()
            .map(|counted| Entry {
                thread: self.intern_thread(counted.thread),
                stack: intern(
                    &mut self.stacks,
                    PackedStack::new(&counted.stack),
                    &mut self.bytes,
                ),
                count: counted.count,
            })
            .collect();
        let window = Window {
            began,
            ended,
            lost_samples,
            counts,
        };
        self.bytes += window.bytes();
        self.windows.push_back(window);
        self.forget(ended);
    }

    /// Sums the windows whose middle lies from `from` on and before `to`: two ranges that touch
    /// share no sample. Threads that `wanted` refuses are left out. `None` where there is no such
    /// window.
    #[must_use]
    pub fn sum(
        &self,
        from: SystemTime,
        to: SystemTime,
        mut wanted: impl FnMut(&Thread) -> bool,
    ) -> Option<Span> {
        let mut span: Option<Span> = None;
        let mut wants: HashMap<*const Thread, bool> = HashMap::new();
        let mut counts: HashMap<(*const Thread, *const PackedStack), (&Entry, u64)> =
            HashMap::new();
        for window in &self.windows {
            let middle = window.began + window.duration() / 2;
            if middle < from || middle >= to {
                continue;
            }
            let span = span.get_or_insert(Span {
                began: window.began,
                duration: Duration::ZERO,
                counted: Vec::new(),
                lost_samples: 0,
            });
            span.duration += window.duration();
            span.lost_samples += window.lost_samples;
            for entry in &window.counts {
                // Equal ones are the same one, so that their addresses tell them apart.
                let thread = Arc::as_ptr(&entry.thread);
                if *wants.entry(thread).or_insert_with(|| wanted(&entry.thread)) {
                    let key = (thread, Arc::as_ptr(&entry.stack));
                    counts.entry(key).or_insert((entry, 0)).1 += entry.count;
                }
            }
        }
        let mut span = span?;
        span.counted = counts
            .into_values()
            .map(|(entry, count)| Counted {
                thread: Thread::clone(&entry.thread),
                stack: entry.stack.unpack(),
                count,
            })
            .collect();
        Counted::sort(&mut span.counted);
        Some(span)
    }

    /// Threads of which there are samples.
    pub fn threads(&self) -> impl Iterator<Item = &Thread> {
        self.threads.iter().map(|thread| &**thread)
    }

    /// Begin of the oldest window.
    #[must_use]
    pub fn began(&self) -> Option<SystemTime> {
        self.windows.front().map(|window| window.began)
    }

    /// Samples whose windows went before their time, for want of memory.
    #[must_use]
    pub const fn dropped_samples(&self) -> u64 {
        self.dropped_samples
    }

    /// Memory that the windows take, about.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    fn intern_thread(&mut self, thread: Thread) -> Arc<Thread> {
        let (threads, image) = (self.threads.len(), (thread.pid, thread.image));
        let thread = intern(&mut self.threads, thread, &mut self.bytes);
        if self.threads.len() > threads {
            let threads = self.images.entry(image).or_default();
            if *threads == 0 {
                self.bytes += PROCESS_BYTES;
            }
            *threads += 1;
        }
        thread
    }

    fn forget(&mut self, now: SystemTime) {
        let mut forgotten = false;
        while let Some(oldest) = self.windows.front() {
            let age = now.duration_since(oldest.ended).unwrap_or_default();
            let expired = age >= self.retention;
            if !expired && self.bytes <= self.max_bytes {
                break;
            }
            let samples = oldest.samples();
            self.bytes -= oldest.bytes();
            self.windows.pop_front();
            if !expired {
                self.dropped_samples += samples;
                self.release();
            }
            forgotten = true;
        }
        if forgotten {
            self.release();
        }
    }

    /// Lets go of threads and stacks that no window refers to any more.
    fn release(&mut self) {
        let (bytes, images) = (&mut self.bytes, &mut self.images);
        self.threads.retain(|thread| {
            let kept = keep(thread, bytes);
            let image = (thread.pid, thread.image);
            if !kept && let hash_map::Entry::Occupied(mut threads) = images.entry(image) {
                *threads.get_mut() -= 1;
                if *threads.get() == 0 {
                    threads.remove();
                    *bytes -= PROCESS_BYTES;
                }
            }
            kept
        });
        self.stacks.retain(|stack| keep(stack, bytes));
    }
}

impl Window {
    fn duration(&self) -> Duration {
        self.ended.duration_since(self.began).unwrap_or_default()
    }

    fn samples(&self) -> u64 {
        self.counts.iter().map(|entry| entry.count).sum()
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val::<[Entry]>(&self.counts)
    }
}

/// What a value takes that is kept once, with its place in the set and its two counters.
trait Kept {
    fn bytes(&self) -> usize;
}

const SET_AND_COUNTERS_BYTES: usize = 48;

/// What is kept elsewhere of a process that is sampled, so that its stacks can be resolved: its name,
/// its cgroups, and what it had mapped, as far as that was sampled.
const PROCESS_BYTES: usize = 2048;

impl Kept for Thread {
    fn bytes(&self) -> usize {
        SET_AND_COUNTERS_BYTES + size_of::<Self>() + self.name.len()
    }
}

impl Kept for PackedStack {
    fn bytes(&self) -> usize {
        SET_AND_COUNTERS_BYTES + size_of::<Self>() + self.len_bytes()
    }
}

/// The one that is equal to `value`.
fn intern<T: Kept + Eq + std::hash::Hash>(
    known: &mut HashSet<Arc<T>>,
    value: T,
    bytes: &mut usize,
) -> Arc<T> {
    if let Some(known) = known.get(&value) {
        return Arc::clone(known);
    }
    *bytes += value.bytes();
    let value = Arc::new(value);
    known.insert(Arc::clone(&value));
    value
}

/// Does anybody but the set refer to it? What it took is given back where not.
fn keep<T: Kept>(value: &Arc<T>, bytes: &mut usize) -> bool {
    let kept = Arc::strong_count(value) > 1;
    if !kept {
        *bytes -= value.bytes();
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stack::{StackTrace, Work};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn counted(tid: u32, addresses: &[u64], count: u64) -> Counted {
        Counted {
            thread: Thread {
                // Two threads a process.
                pid: tid / 2,
                tid,
                image: 7,
                name: "t".into(),
                work: Work::default(),
            },
            stack: StackTrace {
                user: addresses.into(),
                ..StackTrace::default()
            },
            count,
        }
    }

    /// A window of ten seconds.
    fn push(history: &mut History, number: u64, counted: Vec<Counted>) {
        history.push(at(number * 10), at(number * 10 + 10), counted, number);
    }

    fn samples(span: &Span) -> u64 {
        span.counted.iter().map(|counted| counted.count).sum()
    }

    #[test]
    fn a_range_sums_its_windows_and_no_other() {
        let mut history = History::new(Duration::from_secs(3600), 1 << 20);
        for number in 0..6 {
            push(
                &mut history,
                number,
                vec![
                    counted(1, &[1, 2], 10_u64.pow(number as u32)),
                    counted(2, &[1], 1),
                ],
            );
        }
        let span = history.sum(at(10), at(40), |_| true).unwrap();
        assert_eq!(
            (span.began, span.duration),
            (at(10), Duration::from_secs(30))
        );
        assert_eq!(span.lost_samples, 1 + 2 + 3);
        assert_eq!(
            span.counted,
            [counted(1, &[1, 2], 1110), counted(2, &[1], 3)]
        );
        let other = history.sum(at(10), at(40), |thread| thread.tid == 2);
        assert_eq!(other.unwrap().counted, [counted(2, &[1], 3)]);
        assert_eq!(history.sum(at(60), at(90), |_| true), None);
    }

    #[test]
    fn what_is_too_old_goes_without_being_a_loss() {
        let mut history = History::new(Duration::from_secs(30), 1 << 20);
        for number in 0..20 {
            push(&mut history, number, vec![counted(1, &[number], 5)]);
        }
        assert_eq!(history.began(), Some(at(170)));
        assert_eq!((history.windows.len(), history.stacks.len()), (3, 3));
        assert_eq!(history.dropped_samples(), 0);
    }

    #[test]
    fn where_there_is_no_room_the_oldest_goes_and_is_counted() {
        let mut history = History::new(Duration::from_secs(3600), 4096);
        for number in 0..100 {
            push(&mut history, number, vec![counted(1, &[number; 32], 5)]);
            assert!(history.bytes() <= 4096, "{}", history.bytes());
        }
        assert!(history.began() > Some(at(800)));
        let span = history.sum(at(0), at(1000), |_| true).unwrap();
        assert_eq!(samples(&span) + history.dropped_samples(), 500);
    }

    proptest! {
        #[test]
        fn every_sample_is_in_one_of_two_ranges_that_touch(
            windows in prop::collection::vec((1..20_u64, 0..3_u32, 0..4_u64, 1..9_u64), 1..30),
            cut in 0..400_u64,
        ) {
            let mut history = History::new(Duration::from_secs(100_000), 1 << 20);
            let (mut now, mut total) = (0, 0);
            for (seconds, tid, address, count) in windows {
                history.push(at(now), at(now + seconds), vec![counted(tid, &[address], count)], 0);
                now += seconds;
                total += count;
            }
            let of = |from, to| history.sum(from, to, |_| true).map_or(0, |span| samples(&span));
            prop_assert_eq!(of(at(0), at(cut)) + of(at(cut), at(10_000)), total);
        }

        #[test]
        fn the_bytes_are_those_of_what_is_kept(
            windows in prop::collection::vec((0..6_u32, 0..40_u64), 0..60),
            max_bytes in 0..20_000_usize,
        ) {
            let mut history = History::new(Duration::from_secs(200), max_bytes);
            for (number, (tid, address)) in windows.into_iter().enumerate() {
                let stack: Vec<_> = (0..address).collect();
                push(&mut history, number as u64, vec![counted(tid, &stack, 1)]);
                let windows: usize = history.windows.iter().map(Window::bytes).sum();
                let threads: usize = history.threads.iter().map(|thread| thread.bytes()).sum();
                let stacks: usize = history.stacks.iter().map(|stack| stack.bytes()).sum();
                let pids: HashSet<_> = history.threads.iter().map(|thread| thread.pid).collect();
                let processes = pids.len() * PROCESS_BYTES;
                prop_assert_eq!(history.bytes(), windows + threads + stacks + processes);
                prop_assert!(history.bytes() <= max_bytes);
            }
        }
    }
}
