//! One worker: drains one ring into a [`Tracker`], and looks after what no record tells.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::probes::ring::Ring;
use crate::sink::Sink;
use crate::tracker::{Shared, Tracker};

/// How long a worker sleeps, by how many records it found when it last woke: the kernel side never
/// wakes it. A ring of the default size takes some 7,000 records of common exchanges.
const fn rest(records: usize) -> Duration {
    match records {
        0..128 => Duration::from_millis(10),
        128..1024 => Duration::from_millis(4),
        _ => SHORTEST_REST,
    }
}

/// A worker never sleeps for less.
const SHORTEST_REST: Duration = Duration::from_millis(1);

/// Records handled before timers are looked at again.
const BATCH: usize = 4096;

/// How often silent connections are compared with the kernel's map.
const SWEEP_NS: u64 = 10_000_000_000;

/// Silence after which a connection is compared.
const SILENT_NS: u64 = 30_000_000_000;

/// See the module's description.
pub struct Worker {
    ring: Ring,
    shared: Arc<Shared>,
    tracker: Tracker,
    next_sweep_ns: u64,
}

impl Worker {
    /// The worker `number` on `ring`, which follows at most `capacity` connections.
    #[must_use]
    pub fn new(
        number: usize,
        ring: Ring,
        shared: Arc<Shared>,
        sinks: Vec<Box<dyn Sink>>,
        capacity: usize,
    ) -> Self {
        let tracker = Tracker::new(Arc::clone(&shared), number, sinks, capacity);
        Self {
            ring,
            shared,
            tracker,
            next_sweep_ns: monotonic_ns() + SWEEP_NS,
        }
    }

    /// Works until the agent ends; what is still in flight then is counted as evicted.
    pub fn run(mut self) {
        let mut records = 0;
        while !self.shared.stop.load(Ordering::Acquire) {
            let is_awaited = self.shared.requests.is_awaited();
            std::thread::sleep(if is_awaited {
                SHORTEST_REST
            } else {
                rest(records)
            });
            let round_ns = monotonic_ns();
            self.shared.kernel.drain_process_events();
            // A cursor is only read before the ring is emptied: then every record of the bytes
            // below it has been handled when it is applied.
            let awaited: Vec<_> = self
                .tracker
                .awaited()
                .map(|(id, socket)| (id, self.shared.kernel.connection(socket, id)))
                .collect();
            records = self.drain();
            self.tracker.end_round();
            for (id, state) in awaited {
                match state {
                    Some(state) => self.tracker.handle_progress(id, state.cursors),
                    None => self.tracker.close_unseen(id),
                }
            }
            self.tracker.tell_stints(round_ns);
            self.sweep(monotonic_ns());
        }
        self.drain();
        self.tracker.evict_all(monotonic_ns());
    }

    /// Handles what is in the ring; returns how many records that were.
    fn drain(&mut self) -> usize {
        let mut records = 0;
        loop {
            let batch = self.ring.drain(BATCH, |record| self.tracker.handle(record));
            records += batch;
            if batch < BATCH || self.shared.stop.load(Ordering::Acquire) {
                return records;
            }
        }
    }

    /// Lets go of connections whose end was lost with a record.
    fn sweep(&mut self, now_ns: u64) {
        if now_ns < self.next_sweep_ns {
            return;
        }
        self.next_sweep_ns = now_ns + SWEEP_NS;
        for (id, socket) in self.tracker.silent_since(now_ns.saturating_sub(SILENT_NS)) {
            if self.shared.kernel.connection(socket, id).is_none() {
                self.tracker.close_unseen(id);
            }
        }
    }
}
