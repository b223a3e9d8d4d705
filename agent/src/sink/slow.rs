//! The slowest Elasticsearch calls of the last minutes, by who asked what of which index.
//!
//! Each worker keeps a table of its own, in two generations: a fresh one and the one before.

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::{Equivalent, HashMap};
use protocol::observation::{ElasticsearchCall, Role, SearchProduct};
use serde::Serialize;

use super::Sink;
use super::semantics;
use crate::clock::monotonic_ns;
use crate::observation::Observation;

/// Length of a generation: what is told covers one to two of these.
const GENERATION_SECONDS: u64 = 300;

const SECOND_NS: u64 = 1_000_000_000;

/// Kinds of calls in one generation of one worker; a slower one takes the place of the quickest.
const MAX_KINDS: usize = 256;

/// Kinds of calls that are told.
const MAX_TOLD: usize = 100;

/// The slowest kinds of calls, slowest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SlowReport {
    /// Most seconds that the report looks back.
    pub window_seconds: u64,
    /// At most 100.
    pub calls: Vec<SlowCall>,
    /// Calls of kinds that had no place in the tables: each quicker than those that had.
    pub left_out: u64,
}

/// Calls of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowCall {
    /// Who calls.
    pub service: String,
    /// `elasticsearch` or `opensearch`.
    pub system: &'static str,
    /// The operation; empty where it is not known.
    pub operation: &'static str,
    /// The index expression; empty where the call has none.
    pub collection: Box<str>,
    /// The query's shape, literals masked; `None` where it is not kept or there is none.
    pub query: Option<Box<str>>,
    /// How many.
    pub count: u64,
    /// The slowest one's time on the wire.
    pub max_seconds: f64,
    /// What the server says that the slowest one took.
    pub max_took_seconds: Option<f64>,
    /// Their mean time on the wire.
    pub mean_seconds: f64,
}

/// The tables of all workers. Clones share them.
#[derive(Clone, Default)]
pub struct SlowCalls {
    tables: Arc<Mutex<Vec<Arc<Mutex<Table>>>>>,
}

impl SlowCalls {
    /// A handle for one worker.
    #[must_use]
    pub fn worker(&self) -> SlowWorker {
        let table = Arc::new(Mutex::new(Table::default()));
        lock(&self.tables).push(Arc::clone(&table));
        SlowWorker { table }
    }

    /// What there is now.
    #[must_use]
    pub fn report(&self) -> SlowReport {
        self.report_at(monotonic_ns())
    }

    fn report_at(&self, now_ns: u64) -> SlowReport {
        let mut merged: HashMap<Key, Sums> = HashMap::new();
        let mut left_out = 0;
        for table in lock(&self.tables).iter() {
            for generation in lock(table).generations_at(now_ns) {
                left_out += generation.left_out;
                for (key, sums) in &generation.kinds {
                    merged.entry(key.clone()).or_default().add(sums);
                }
            }
        }
        let mut calls: Vec<_> = merged.into_iter().collect();
        calls.sort_by_key(|(_, sums)| Reverse(sums.max_ns));
        calls.truncate(MAX_TOLD);
        SlowReport {
            window_seconds: 2 * GENERATION_SECONDS,
            calls: calls
                .into_iter()
                .map(|(key, sums)| told(key, &sums))
                .collect(),
            left_out,
        }
    }
}

fn told(key: Key, sums: &Sums) -> SlowCall {
    let seconds = |ns: u64| ns as f64 / 1e9;
    SlowCall {
        service: key.service.to_string(),
        system: key.product.as_str(),
        operation: key.operation,
        collection: key.collection,
        query: key.query,
        count: sums.count,
        max_seconds: seconds(sums.max_ns),
        max_took_seconds: sums.took_ms.map(|took_ms| took_ms as f64 / 1e3),
        mean_seconds: seconds(sums.total_ns) / sums.count.max(1) as f64,
    }
}

/// One worker's handle.
pub struct SlowWorker {
    table: Arc<Mutex<Table>>,
}

impl Sink for SlowWorker {
    fn observe(&mut self, observation: &Observation) {
        let exchange = &observation.exchange;
        let Some(call) = &exchange.elasticsearch else {
            return;
        };
        if exchange.role != Role::Client || !semantics::is_observed(exchange.outcome) {
            return;
        }
        let wire_ns = semantics::duration_ns(exchange);
        let ended_ns = exchange.times.request_first_ns.saturating_add(wire_ns);
        let key = KeyRef::new(&observation.process.service, call);
        lock(&self.table).record(&key, ended_ns, wire_ns, call.took_ms);
    }
}

/// What tells kinds of calls apart.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    service: Arc<str>,
    product: SearchProduct,
    operation: &'static str,
    collection: Box<str>,
    query: Option<Box<str>>,
}

/// [`Key`], borrowed: hashes alike.
#[derive(Hash)]
struct KeyRef<'a> {
    service: &'a Arc<str>,
    product: SearchProduct,
    operation: &'static str,
    collection: &'a str,
    query: Option<&'a str>,
}

impl<'a> KeyRef<'a> {
    fn new(service: &'a Arc<str>, call: &'a ElasticsearchCall) -> Self {
        Self {
            service,
            product: call.product,
            operation: call.operation.unwrap_or(""),
            collection: &call.collection,
            query: call.query_text.as_deref(),
        }
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.service == key.service
            && self.product == key.product
            && self.operation == key.operation
            && *self.collection == *key.collection
            && self.query == key.query.as_deref()
    }
}

impl From<&KeyRef<'_>> for Key {
    fn from(key: &KeyRef<'_>) -> Self {
        Self {
            service: Arc::clone(key.service),
            product: key.product,
            operation: key.operation,
            collection: key.collection.into(),
            query: key.query.map(Into::into),
        }
    }
}

#[derive(Default)]
struct Table {
    fresh: Generation,
    before: Generation,
}

#[derive(Default)]
struct Generation {
    /// Time since boot in generations.
    number: u64,
    kinds: HashMap<Key, Sums>,
    left_out: u64,
}

impl Table {
    fn record(&mut self, key: &KeyRef<'_>, ended_ns: u64, wire_ns: u64, took_ms: Option<u64>) {
        let number = number_of(ended_ns);
        if number > self.fresh.number {
            let fresh = Generation {
                number,
                ..Generation::default()
            };
            self.before = std::mem::replace(&mut self.fresh, fresh);
        }
        let one = Sums {
            count: 1,
            total_ns: wire_ns,
            max_ns: wire_ns,
            took_ms,
        };
        self.fresh.record(key, &one);
    }

    /// Those that are not too old to be told.
    fn generations_at(&self, now_ns: u64) -> impl Iterator<Item = &Generation> {
        let oldest = number_of(now_ns).saturating_sub(1);
        let both = [&self.fresh, &self.before].into_iter();
        both.filter(move |generation| generation.number >= oldest)
    }
}

impl Generation {
    fn record(&mut self, key: &KeyRef<'_>, one: &Sums) {
        if let Some(sums) = self.kinds.get_mut(key) {
            sums.add(one);
            return;
        }
        if self.kinds.len() >= MAX_KINDS {
            let quickest = self.kinds.iter().min_by_key(|(_, sums)| sums.max_ns);
            let quickest = quickest.map(|(key, sums)| (key.clone(), *sums));
            match quickest {
                Some((key, sums)) if sums.max_ns < one.max_ns => {
                    self.kinds.remove(&key);
                    self.left_out += sums.count;
                }
                _ => {
                    self.left_out += 1;
                    return;
                }
            }
        }
        self.kinds.insert(key.into(), *one);
    }
}

const fn number_of(at_ns: u64) -> u64 {
    at_ns / (GENERATION_SECONDS * SECOND_NS)
}

#[derive(Clone, Copy, Default)]
struct Sums {
    count: u64,
    total_ns: u64,
    max_ns: u64,
    /// Of the slowest.
    took_ms: Option<u64>,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
        if other.max_ns >= self.max_ns {
            self.max_ns = other.max_ns;
            self.took_ms = other.took_ms;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts are valid after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::fixtures::{lasting, observation, search};

    fn now_ns(observation: &Observation) -> u64 {
        observation.exchange.times.request_first_ns
    }

    #[test]
    fn the_slowest_kind_comes_first() {
        let slow = SlowCalls::default();
        let (mut one, mut other) = (slow.worker(), slow.worker());
        one.observe(&lasting(search("shop"), 20));
        other.observe(&lasting(search("shop"), 40));
        one.observe(&lasting(search("blog"), 30));
        one.observe(&observation("shop", Role::Client, "/items/{id}"));
        let report = slow.report_at(now_ns(&search("shop")));
        let told: Vec<_> = report
            .calls
            .iter()
            .map(|call| {
                (
                    &*call.service,
                    call.count,
                    call.max_seconds,
                    call.mean_seconds,
                )
            })
            .collect();
        assert_eq!(told, [("shop", 2, 0.04, 0.03), ("blog", 1, 0.03, 0.03)]);
        assert_eq!(report.calls[0].max_took_seconds, Some(0.006));
        assert_eq!(report.calls[0].operation, "search");
        assert_eq!(&*report.calls[0].collection, "docs");
    }

    #[test]
    fn queries_of_one_shape_are_one_kind() {
        let slow = SlowCalls::default();
        let mut worker = slow.worker();
        for (query, milliseconds) in [("{a:?}", 10), ("{b:?}", 30), ("{a:?}", 20)] {
            let mut search = lasting(search("shop"), milliseconds);
            let call = search.exchange.elasticsearch.as_mut().unwrap();
            call.query_text = Some(query.into());
            worker.observe(&search);
        }
        let report = slow.report_at(now_ns(&search("shop")));
        let told: Vec<_> = report
            .calls
            .iter()
            .map(|call| (call.query.as_deref(), call.count))
            .collect();
        assert_eq!(told, [(Some("{b:?}"), 1), (Some("{a:?}"), 2)]);
    }

    #[test]
    fn kinds_beyond_the_bound_are_counted_and_the_slow_ones_stay() {
        let slow = SlowCalls::default();
        let mut worker = slow.worker();
        let kinds = MAX_KINDS as u64 + 50;
        for number in 0..kinds {
            let mut search = lasting(search("shop"), number + 1);
            let call = search.exchange.elasticsearch.as_mut().unwrap();
            call.collection = number.to_string().into();
            worker.observe(&search);
        }
        worker.observe(&lasting(search("shop"), 1));
        let report = slow.report_at(now_ns(&search("shop")));
        assert_eq!(report.calls.len(), MAX_TOLD);
        assert_eq!(report.left_out, 51);
        assert_eq!(report.calls[0].max_seconds, kinds as f64 / 1e3);
    }

    #[test]
    fn what_is_long_ago_is_not_told() {
        let slow = SlowCalls::default();
        let mut worker = slow.worker();
        let search = search("shop");
        worker.observe(&search);
        let later = now_ns(&search) + GENERATION_SECONDS * SECOND_NS;
        assert_eq!(slow.report_at(later).calls.len(), 1);
        let later = later + GENERATION_SECONDS * SECOND_NS;
        assert_eq!(slow.report_at(later).calls.len(), 0);
    }
}
