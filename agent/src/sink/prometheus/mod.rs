//! Observations as Prometheus metrics, named and labelled as OpenTelemetry's semantic conventions
//! have them.
//!
//! `http_server_queue_time_seconds` and `elasticsearch_bulk_items_total` are not registered: an
//! exchange carries neither the arrival of its bytes nor the outcomes of its bulk items yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};
use prometheus::{Histogram, HistogramOpts, HistogramVec, Registry};
use protocol::observation::Role;

use buckets::Buckets;
use database::{DatabaseFamilies, DatabaseKey, DatabaseKeyRef, DatabaseSeries};
use http::{HttpFamilies, HttpKey, HttpKeyRef, HttpSeries};

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
    families: Arc<Families>,
    exchanges: Exchanges,
}

struct Families {
    server: HttpFamilies,
    client: HttpFamilies,
    database: DatabaseFamilies,
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
        let buckets = &Buckets::new(&options.buckets);
        let max_series = options.max_series;
        let refused = self_metrics.losses.counter("prometheus", "series_limit");
        let families = Families {
            server: HttpFamilies::server(registry, buckets, max_series, &refused)?,
            client: HttpFamilies::client(registry, buckets, max_series, &refused)?,
            database: DatabaseFamilies::new(registry, buckets, max_series, &refused)?,
        };
        Ok(Self {
            families: Arc::new(families),
            exchanges: self_metrics.exchanges.clone(),
        })
    }

    /// A handle for one worker.
    #[must_use]
    pub fn worker(&self) -> PrometheusWorker {
        PrometheusWorker {
            families: Arc::clone(&self.families),
            exchanges: self.exchanges.clone(),
            http: HashMap::new(),
            database: HashMap::new(),
            address: String::new(),
        }
    }
}

/// One worker's handle. It remembers the series that it has met, so that an exchange with known
/// labels takes no lock and allocates nothing.
pub struct PrometheusWorker {
    families: Arc<Families>,
    exchanges: Exchanges,
    http: HashMap<HttpKey, HttpSeries>,
    database: HashMap<DatabaseKey, DatabaseSeries>,
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
        let (families, server) = match exchange.role {
            Role::Server => (&self.families.server, None),
            Role::Client => (
                &self.families.client,
                Some(semantics::server_of(observation, &mut self.address)),
            ),
        };
        let key = HttpKeyRef::new(observation, server);
        with_series(&mut self.http, &key, |series| {
            series.observe(families, &key, exchange)
        });

        let (Some(call), Some(server)) = (&exchange.elasticsearch, server) else {
            return;
        };
        let families = &self.families.database;
        let key = DatabaseKeyRef::new(&observation.process.service, call, exchange, server);
        with_series(&mut self.database, &key, |series| {
            series.observe(families, &key, call, exchange)
        });
        families.set_cluster_health(call, server);
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
    handle: &mut Option<Histogram>,
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
        *handle = Some(histogram);
    }
    within
}

fn register_histogram(
    registry: &Registry,
    buckets: &Buckets,
    name: &'static str,
    help: &'static str,
    labels: &[&str],
) -> Result<HistogramVec, prometheus::Error> {
    let options = HistogramOpts::new(name, help).buckets(buckets.of(name));
    let histogram = HistogramVec::new(options, labels)?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}

fn port_label(port: Option<u16>) -> String {
    port.map(|port| port.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
