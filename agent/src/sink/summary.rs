//! The last minute of each service, for the page: rate, errors and percentiles.
//!
//! Each worker sums into a table of its own, whose lock is taken by nobody else but a reader of the
//! page; reading merges the tables.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::{Equivalent, HashMap};
use hdrhistogram::Histogram;
use protocol::observation::{Role, SearchProduct};

use super::Sink;
use super::semantics::{self, ErrorType};
use crate::clock::monotonic_ns;
use crate::observation::Observation;

/// Seconds that a summary looks back.
pub const WINDOW_SECONDS: usize = 60;

/// Seconds of one slot; percentiles forget a slot at a time.
const SLOT_SECONDS: u64 = 10;

const SLOTS: usize = WINDOW_SECONDS / SLOT_SECONDS as usize;

const SECOND_NS: u64 = 1_000_000_000;

/// Services and operations that one worker tells apart; what comes beyond is summed under
/// [`OVERFLOW`].
const MAX_KEYS: usize = 256;

/// Name of the service that stands for those beyond the bound.
pub const OVERFLOW: &str = "_overflow";

/// What happened in the last minute, or since the start where that was later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Seconds that are summed up.
    pub covered_seconds: f64,
    /// By service, then role (servers first).
    pub services: Vec<ServiceSummary>,
    /// Elasticsearch and OpenSearch calls, those that took most time in all first.
    pub calls: Vec<CallSummary>,
}

/// One service in one role.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceSummary {
    /// Its name.
    pub service: Arc<str>,
    /// Whether it answers or asks.
    pub role: Role,
    /// Its exchanges.
    pub traffic: Traffic,
    /// Exchanges in each of the last [`WINDOW_SECONDS`] whole seconds, oldest first.
    pub per_second: Vec<u32>,
}

/// One operation that a service calls.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSummary {
    /// Who calls.
    pub service: Arc<str>,
    /// Who answers.
    pub product: SearchProduct,
    /// The operation; empty where it is not known.
    pub operation: &'static str,
    /// The calls, on the wire.
    pub traffic: Traffic,
    /// What the server says that they took; `None` where it says nothing.
    pub took: Option<Percentiles>,
}

/// Exchanges summed up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// How many.
    pub count: u64,
    /// How many a second.
    pub rate: f64,
    /// Share with a 5xx status or a broken connection, 0 to 1.
    pub error_share: f64,
    /// Their durations.
    pub duration: Percentiles,
}

/// Percentiles in seconds, exact to 1 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 95 of 100 are not above it.
    pub p95: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
}

/// The tables of all workers. Clones share them.
#[derive(Clone)]
pub struct Summary {
    tables: Arc<Mutex<Vec<Arc<Mutex<Table>>>>>,
    started_ns: u64,
}

impl Summary {
    /// Begins now.
    #[must_use]
    pub fn new() -> Self {
        Self::starting_at(monotonic_ns())
    }

    fn starting_at(started_ns: u64) -> Self {
        Self {
            tables: Arc::default(),
            started_ns,
        }
    }

    /// A handle for one worker.
    #[must_use]
    pub fn worker(&self) -> SummaryWorker {
        let table = Arc::new(Mutex::new(Table::default()));
        lock(&self.tables).push(Arc::clone(&table));
        SummaryWorker { table }
    }

    /// The last minute before now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_at(monotonic_ns())
    }

    fn snapshot_at(&self, now_ns: u64) -> Snapshot {
        let slot_ns = SLOT_SECONDS * SECOND_NS;
        let oldest_slot = (now_ns / slot_ns).saturating_sub(SLOTS as u64 - 1);
        let covered_ns = now_ns.saturating_sub(self.started_ns.max(oldest_slot * slot_ns));
        // Rates of less than a second would be noise.
        let covered_seconds = (covered_ns as f64 / 1e9).max(1.0);

        let mut merged: BTreeMap<Key, Sums> = BTreeMap::new();
        for table in lock(&self.tables).iter() {
            for (key, window) in &lock(table).windows {
                window.add_to(merged.entry(key.clone()).or_default(), oldest_slot, now_ns);
            }
        }
        let mut snapshot = Snapshot {
            covered_seconds,
            ..Snapshot::default()
        };
        let mut calls = Vec::new();
        for (key, sums) in merged {
            let Some(durations) = &sums.duration else {
                continue;
            };
            let duration = Percentiles::of(durations);
            let traffic = Traffic {
                count: sums.count,
                rate: sums.count as f64 / covered_seconds,
                error_share: sums.errors as f64 / sums.count.max(1) as f64,
                duration,
            };
            match key.what {
                What::Exchanges { is_client } => snapshot.services.push(ServiceSummary {
                    service: key.service,
                    role: if is_client {
                        Role::Client
                    } else {
                        Role::Server
                    },
                    traffic,
                    per_second: sums.per_second,
                }),
                What::Calls { product, operation } => {
                    let call = CallSummary {
                        service: key.service,
                        product: product.into(),
                        operation,
                        traffic,
                        took: sums.took.as_ref().map(Percentiles::of),
                    };
                    calls.push((durations.mean() * durations.len() as f64, call));
                }
            }
        }
        // Those of equal time stay by their names.
        calls.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        snapshot.calls = calls.into_iter().map(|(_, call)| call).collect();
        snapshot
    }
}

impl Default for Summary {
    fn default() -> Self {
        Self::new()
    }
}

impl Percentiles {
    fn of(microseconds: &Histogram<u32>) -> Self {
        let seconds = |quantile| microseconds.value_at_quantile(quantile) as f64 / 1e6;
        Self {
            p50: seconds(0.5),
            p95: seconds(0.95),
            p99: seconds(0.99),
        }
    }
}

/// One worker's handle.
pub struct SummaryWorker {
    table: Arc<Mutex<Table>>,
}

impl Sink for SummaryWorker {
    fn observe(&mut self, observation: &Observation) {
        let exchange = &observation.exchange;
        if !semantics::is_observed(exchange.outcome) {
            return;
        }
        let duration_ns = semantics::duration_ns(exchange);
        let mut value = Value {
            ended_ns: exchange.times.request_first_ns.saturating_add(duration_ns),
            duration_us: duration_ns / 1_000,
            is_error: ErrorType::of(exchange) != ErrorType::None,
            took_us: None,
        };
        let service = &observation.process.service;
        let mut table = lock(&self.table);
        let is_client = exchange.role == Role::Client;
        table.record(service, What::Exchanges { is_client }, value);
        if let (true, Some(call)) = (is_client, &exchange.elasticsearch) {
            value.took_us = call.took_ms.map(|took_ms| took_ms.saturating_mul(1_000));
            let operation = call.operation.unwrap_or("");
            table.record(
                service,
                What::Calls {
                    product: call.product.into(),
                    operation,
                },
                value,
            );
        }
    }
}

/// What a window sums up. The order is the order on the page.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    service: Arc<str>,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum What {
    Exchanges {
        is_client: bool,
    },
    Calls {
        product: Product,
        operation: &'static str,
    },
}

/// [`SearchProduct`], ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Product {
    Elasticsearch,
    OpenSearch,
}

impl From<SearchProduct> for Product {
    fn from(product: SearchProduct) -> Self {
        match product {
            SearchProduct::Elasticsearch => Self::Elasticsearch,
            SearchProduct::OpenSearch => Self::OpenSearch,
        }
    }
}

impl From<Product> for SearchProduct {
    fn from(product: Product) -> Self {
        match product {
            Product::Elasticsearch => Self::Elasticsearch,
            Product::OpenSearch => Self::OpenSearch,
        }
    }
}

/// [`Key`], borrowed: hashes alike.
#[derive(Hash)]
struct KeyRef<'a> {
    service: &'a Arc<str>,
    what: What,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.what == key.what && *self.service == key.service
    }
}

#[derive(Default)]
struct Table {
    /// Boxed: a table has twice the places that it needs at times, and a window is large.
    windows: HashMap<Key, Box<Window>>,
}

impl Table {
    fn record(&mut self, service: &Arc<str>, what: What, value: Value) {
        if let Some(window) = self.windows.get_mut(&KeyRef { service, what }) {
            window.record(value);
            return;
        }
        if self.windows.len() >= MAX_KEYS {
            let oldest_slot =
                (value.ended_ns / (SLOT_SECONDS * SECOND_NS)).saturating_sub(SLOTS as u64 - 1);
            self.windows
                .retain(|_, window| !window.is_idle(oldest_slot));
        }
        // An operation beyond the bound joins its kind under the overflow's name; kinds are few.
        let key = if self.windows.len() >= MAX_KEYS {
            let what = match what {
                What::Exchanges { .. } => what,
                What::Calls { product, .. } => What::Calls {
                    product,
                    operation: "",
                },
            };
            Key {
                service: Arc::from(OVERFLOW),
                what,
            }
        } else {
            Key {
                service: Arc::clone(service),
                what,
            }
        };
        self.windows.entry(key).or_default().record(value);
    }
}

#[derive(Clone, Copy)]
struct Value {
    ended_ns: u64,
    duration_us: u64,
    is_error: bool,
    took_us: Option<u64>,
}

/// A minute, as a ring of slots and a finer ring of counts.
struct Window {
    slots: [Slot; SLOTS],
    seconds: [SecondCount; WINDOW_SECONDS],
}

#[derive(Default)]
struct Slot {
    /// Time since boot in slots.
    number: u64,
    count: u64,
    errors: u64,
    duration: Option<Histogram<u32>>,
    took: Option<Histogram<u32>>,
}

#[derive(Clone, Copy, Default)]
struct SecondCount {
    /// Time since boot in seconds.
    number: u64,
    count: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            seconds: [SecondCount::default(); WINDOW_SECONDS],
        }
    }
}

impl Window {
    fn record(&mut self, value: Value) {
        let number = value.ended_ns / SECOND_NS;
        let second = &mut self.seconds[number as usize % WINDOW_SECONDS];
        if number > second.number {
            *second = SecondCount { number, count: 0 };
        }
        if number == second.number {
            second.count = second.count.saturating_add(1);
        }

        let number = number / SLOT_SECONDS;
        let slot = &mut self.slots[number as usize % SLOTS];
        if number > slot.number {
            slot.restart(number);
        }
        // An exchange that ended more than a window ago comes too late for the page.
        if number == slot.number {
            slot.record(value);
        }
    }

    fn is_idle(&self, oldest_slot: u64) -> bool {
        self.slots
            .iter()
            .all(|slot| slot.count == 0 || slot.number < oldest_slot)
    }

    fn add_to(&self, sums: &mut Sums, oldest_slot: u64, now_ns: u64) {
        for slot in self
            .slots
            .iter()
            .filter(|slot| slot.count > 0 && slot.number >= oldest_slot)
        {
            sums.count += slot.count;
            sums.errors += slot.errors;
            merge(&mut sums.duration, slot.duration.as_ref());
            merge(&mut sums.took, slot.took.as_ref());
        }
        sums.per_second.resize(WINDOW_SECONDS, 0);
        // The running second is not whole, and would draw as a fall.
        let end = now_ns / SECOND_NS;
        let start = end.saturating_sub(WINDOW_SECONDS as u64);
        for second in self
            .seconds
            .iter()
            .filter(|second| (start..end).contains(&second.number))
        {
            let at = (second.number - start) as usize;
            sums.per_second[at] = sums.per_second[at].saturating_add(second.count);
        }
    }
}

impl Slot {
    /// Empties the slot and keeps its memory.
    fn restart(&mut self, number: u64) {
        self.number = number;
        self.count = 0;
        self.errors = 0;
        for histogram in [&mut self.duration, &mut self.took].into_iter().flatten() {
            histogram.reset();
        }
    }

    fn record(&mut self, value: Value) {
        self.count += 1;
        self.errors += u64::from(value.is_error);
        record(&mut self.duration, value.duration_us);
        if let Some(took_us) = value.took_us {
            record(&mut self.took, took_us);
        }
    }
}

/// Slots of all workers, added up.
#[derive(Default)]
struct Sums {
    count: u64,
    errors: u64,
    duration: Option<Histogram<u32>>,
    took: Option<Histogram<u32>>,
    per_second: Vec<u32>,
}

/// Longest duration that is told apart, an hour; it bounds a histogram's memory.
const MAX_US: u64 = 3_600_000_000;

fn empty() -> Histogram<u32> {
    // Two digits are 1 %. It grows with the values, so that a quick service costs little memory.
    Histogram::new(2).expect("two significant digits are within the crate's 0 to 5")
}

fn record(histogram: &mut Option<Histogram<u32>>, value_us: u64) {
    // The histogram resizes itself up to any u64, so that no value is an error.
    let _ = histogram
        .get_or_insert_with(empty)
        .record(value_us.clamp(1, MAX_US));
}

fn merge(sum: &mut Option<Histogram<u32>>, part: Option<&Histogram<u32>>) {
    if let Some(part) = part.filter(|part| !part.is_empty()) {
        let _ = sum.get_or_insert_with(empty).add(part);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts are valid after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
