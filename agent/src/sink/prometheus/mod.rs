//! Observations as Prometheus metrics, named and labelled as OpenTelemetry's semantic conventions
//! have them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::{Equivalent, HashMap};
use prometheus::core::{Collector, Desc};
use prometheus::local::LocalHistogram;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, Registry};
use protocol::observation::{ElasticsearchCall, Role};

use buckets::Buckets;
use database::{DatabaseFamilies, DatabaseKey, DatabaseKeyRef, DatabaseSeries};
use http::{HttpFamilies, HttpKey, HttpKeyRef, HttpSeries};
use series::Family;

use super::Sink;
use super::semantics;
use crate::observation::Observation;
use crate::self_metrics::{Exchanges, SelfMetrics};

mod buckets;
mod database;
mod http;
mod series;

/// Series whose handles one worker keeps, a kind. Beyond it the worker forgets them all and looks
/// them up again as they come.
const MAX_CACHED_SERIES: usize = 20_000;

/// How long a series stays without a value.
const IDLE_AFTER: Duration = Duration::from_secs(3_600);

/// How long what a cluster said of itself is taken for true.
const CLUSTER_STALE_AFTER: Duration = Duration::from_secs(300);

/// How often idle series are looked for, at most.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// How the metrics are made.
#[derive(Clone, Debug)]
pub struct PrometheusOptions {
    /// Histogram → upper bounds of its buckets, ascending; one that is not named keeps its defaults.
    pub buckets: BTreeMap<String, Vec<f64>>,
    /// Most series that one metric family may have; beyond it every label reads `_overflow` and
    /// `telltale_losses_total{stage="prometheus",reason="series_limit"}` counts.
    pub max_series: usize,
}

impl Default for PrometheusOptions {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            max_series: 10_000,
        }
    }
}

/// The traffic metrics; makes one [`Sink`] a worker. Clones share the metrics.
#[derive(Clone)]
pub struct PrometheusSink {
    traffic: Traffic,
    exchanges: Exchanges,
}

impl PrometheusSink {
    /// Registers the metrics.
    ///
    /// # Errors
    ///
    /// When the registry has one of the names already.
    pub fn new(
        registry: &Registry,
        options: &PrometheusOptions,
        self_metrics: &SelfMetrics,
    ) -> Result<Self, prometheus::Error> {
        let refused = self_metrics.losses.counter("prometheus", "series_limit");
        let traffic = Traffic(Arc::new(Shared {
            families: Families::new(options, &refused)?,
            tables: Mutex::default(),
            forgot: Mutex::new(Instant::now()),
        }));
        registry.register(Box::new(traffic.clone()))?;
        Ok(Self {
            traffic,
            exchanges: self_metrics.exchanges.clone(),
        })
    }

    /// Shows what a cluster said of itself, at this server.
    pub fn set_cluster(&self, call: &ElasticsearchCall, host: &str, port: u16) {
        let database = &self.traffic.0.families.database;
        database.set_cluster(call, (host, Some(port)));
    }

    /// Shows no more what a cluster had said of itself.
    pub fn forget_cluster(&self, host: &str, port: u16, cluster: &str) {
        let database = &self.traffic.0.families.database;
        database.forget_cluster((host, Some(port)), cluster);
    }

    /// A handle for one worker.
    #[must_use]
    pub fn worker(&self) -> PrometheusWorker {
        let table = Arc::new(Mutex::new(Table::default()));
        lock(&self.traffic.0.tables).push(Arc::clone(&table));
        PrometheusWorker {
            traffic: self.traffic.clone(),
            table,
            exchanges: self.exchanges.clone(),
            address: String::new(),
        }
    }
}

/// One worker's handle. It sums into a table of its own, whose lock nobody else takes but a scrape:
/// an exchange with known labels waits for no other worker and allocates nothing.
pub struct PrometheusWorker {
    traffic: Traffic,
    table: Arc<Mutex<Table>>,
    exchanges: Exchanges,
    /// Scratch for the address of a peer that no `Host` names.
    address: String,
}

impl Sink for PrometheusWorker {
    fn observe(&mut self, observation: &Observation) {
        let exchange = &observation.exchange;
        self.exchanges.ended(exchange.role, exchange.outcome, 1);
        if !semantics::is_observed(exchange.outcome) {
            return;
        }
        let families = &self.traffic.0.families;
        let (http, is_client) = match exchange.role {
            Role::Server => (&families.server, false),
            Role::Client => (&families.client, true),
        };
        let call = exchange.elasticsearch.as_ref();
        let server = (is_client || call.is_some())
            .then(|| semantics::server_of(observation, &mut self.address));
        let asked = server.filter(|_| is_client);
        let mut table = lock(&self.table);
        let key = HttpKeyRef::new(observation, asked);
        with_series(&mut table.http, &key, |series| {
            series.observe(http, &key, exchange)
        });

        let (Some(call), Some(server)) = (call, server) else {
            return;
        };
        let database = &families.database;
        let key = DatabaseKeyRef::new(&observation.process.service, call, exchange, asked);
        with_series(&mut table.database, &key, |series| {
            series.observe(database, &key, call, exchange)
        });
        database.set_cluster(call, server);
    }
}

/// What one worker has met since the last scrape, by series.
#[derive(Default)]
struct Table {
    http: HashMap<HttpKey, HttpSeries>,
    database: HashMap<DatabaseKey, DatabaseSeries>,
}

impl Table {
    fn flush(&self) {
        self.http.values().for_each(HttpSeries::flush);
        self.database.values().for_each(DatabaseSeries::flush);
    }

    /// Lets go of every handle; what was recorded is flushed.
    fn clear(&mut self) {
        self.http.clear();
        self.database.clear();
    }
}

/// What the registry scrapes: all families, brought up to date from all workers.
#[derive(Clone)]
struct Traffic(Arc<Shared>);

struct Shared {
    families: Families,
    tables: Mutex<Vec<Arc<Mutex<Table>>>>,
    /// When idle series were last looked for.
    forgot: Mutex<Instant>,
}

impl Traffic {
    fn flush(&self) {
        for table in lock(&self.0.tables).iter() {
            lock(table).flush();
        }
    }

    /// Drops series that had no value for [`IDLE_AFTER`]: services come and go, and those that went
    /// must not keep the places of those that come.
    fn forget_idle(&self, now: Instant) {
        let mut forgot = lock(&self.0.forgot);
        if now.saturating_duration_since(*forgot) < FORGET_EVERY {
            return;
        }
        *forgot = now;
        let Some(before) = now.checked_sub(IDLE_AFTER) else {
            return;
        };
        let tables = lock(&self.0.tables);
        // All of them at once: no worker can record into a series while it is dropped.
        let mut tables: Vec<_> = tables.iter().map(|table| lock(table)).collect();
        tables.iter().for_each(|table| table.flush());
        if self.0.families.forget_idle(before, now) > 0 {
            tables.iter_mut().for_each(|table| table.clear());
        }
    }
}

impl Collector for Traffic {
    fn desc(&self) -> Vec<&Desc> {
        self.0
            .families
            .collectors()
            .flat_map(Collector::desc)
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.forget_idle(Instant::now());
        self.flush();
        self.0
            .families
            .collectors()
            .flat_map(Collector::collect)
            .collect()
    }
}

struct Families {
    server: HttpFamilies,
    client: HttpFamilies,
    database: DatabaseFamilies,
}

impl Families {
    fn new(options: &PrometheusOptions, refused: &IntCounter) -> Result<Self, prometheus::Error> {
        let buckets = &Buckets::new(&options.buckets);
        Ok(Self {
            server: HttpFamilies::server(buckets, options.max_series, refused)?,
            client: HttpFamilies::client(buckets, options.max_series, refused)?,
            database: DatabaseFamilies::new(buckets, options.max_series, refused)?,
        })
    }

    fn histograms(&self) -> impl Iterator<Item = &Family<HistogramVec>> {
        let http = self.server.families().chain(self.client.families());
        http.chain(self.database.histograms())
    }

    fn collectors(&self) -> impl Iterator<Item = &dyn Collector> {
        let gauges = self.database.cluster().iter().map(Family::collector);
        let counter = self.database.bulk_items().collector();
        let histograms = self.histograms().map(Family::collector);
        histograms.chain(gauges).chain([counter])
    }

    fn forget_idle(&self, before: Instant, now: Instant) -> usize {
        let histograms = self
            .histograms()
            .map(|family| family.forget_idle(before, now));
        let forgot =
            histograms.sum::<usize>() + self.database.bulk_items().forget_idle(before, now);
        let before = now.checked_sub(CLUSTER_STALE_AFTER).unwrap_or(before);
        for family in self.database.cluster() {
            // No worker keeps a handle on these.
            family.forget_idle(before, now);
        }
        forgot
    }
}

/// Runs `observe` on the series of `key`. It answers whether the series is within the bounds of its
/// families: one that is not is not kept, so that what overflows cannot fill the cache.
fn with_series<'q, K, Q, S>(
    cache: &mut HashMap<K, S>,
    key: &'q Q,
    observe: impl FnOnce(&mut S) -> bool,
) where
    K: Eq + std::hash::Hash + From<&'q Q>,
    Q: std::hash::Hash + Equivalent<K>,
    S: Default,
{
    if let Some(series) = cache.get_mut(key) {
        if !observe(series) {
            cache.remove(key);
        }
        return;
    }
    let mut series = S::default();
    if observe(&mut series) {
        if cache.len() >= MAX_CACHED_SERIES {
            cache.clear();
        }
        cache.insert(K::from(key), series);
    }
}

/// Records `value` in the histogram that `handle` keeps; `find` gets it the first time. `false`
/// when its family is full.
fn record(
    handle: &mut Option<LocalHistogram>,
    value: f64,
    find: impl FnOnce() -> (Histogram, bool),
) -> bool {
    if let Some(histogram) = handle {
        histogram.observe(value);
        return true;
    }
    let (histogram, within) = find();
    histogram.observe(value);
    if within {
        *handle = Some(histogram.local());
    }
    within
}

fn histogram_vec(
    buckets: &Buckets,
    name: &'static str,
    help: &'static str,
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    HistogramVec::new(
        HistogramOpts::new(name, help).buckets(buckets.of(name)),
        labels,
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts are valid after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn port_label(port: Option<u16>) -> String {
    port.map(|port| port.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
