//! The metrics of Elasticsearch and OpenSearch calls.

use std::sync::Arc;

use hashbrown::Equivalent;
use prometheus::local::LocalHistogram;
use prometheus::{HistogramVec, IntCounter, IntGaugeVec, Opts};
use protocol::observation::{ClusterHealth, ElasticsearchCall, Exchange, SearchProduct};

use super::buckets::{self, Buckets};
use super::series::Family;
use super::{histogram_vec, port_label, record};
use crate::sink::semantics::{self, ErrorType, Server};

/// The metrics of database calls, all seen at the client.
pub(super) struct DatabaseFamilies {
    duration: Family<HistogramVec>,
    took: Family<HistogramVec>,
    overhead: Family<HistogramVec>,
    cluster_health: Family<IntGaugeVec>,
}

impl DatabaseFamilies {
    pub(super) fn new(
        buckets: &Buckets,
        max_series: usize,
        refused: &IntCounter,
    ) -> Result<Self, prometheus::Error> {
        let histogram = |name, help, labels: &[&str]| {
            histogram_vec(buckets, name, help, labels)
                .map(|vec| Family::new(vec, max_series, refused.clone()))
        };
        let by_operation = ["service_name", "db_operation_name", "db_collection_name"];
        let cluster_health = IntGaugeVec::new(
            Opts::new(
                "elasticsearch_cluster_health",
                "Health of a cluster as it last told a client: 0 red, 1 yellow, 2 green.",
            ),
            &["server_address", "server_port", "cluster"],
        )?;
        Ok(Self {
            duration: histogram(
                buckets::DB_DURATION,
                "Duration of database calls at the client, on the wire.",
                &[
                    "service_name",
                    "db_system_name",
                    "db_operation_name",
                    "db_collection_name",
                    "db_response_status_code",
                    "error_type",
                    "server_address",
                    "server_port",
                ],
            )?,
            took: histogram(
                buckets::ELASTICSEARCH_TOOK,
                "What the server says that a call took.",
                &by_operation,
            )?,
            overhead: histogram(
                buckets::ELASTICSEARCH_OVERHEAD,
                "Duration on the wire minus what the server says that the call took.",
                &by_operation,
            )?,
            cluster_health: Family::new(cluster_health, max_series, refused.clone()),
        })
    }

    /// Every histogram, for the registry and for forgetting.
    pub(super) fn histograms(&self) -> [&Family<HistogramVec>; 3] {
        [&self.duration, &self.took, &self.overhead]
    }

    /// The one gauge, likewise.
    pub(super) fn cluster_health(&self) -> &Family<IntGaugeVec> {
        &self.cluster_health
    }

    /// Takes in the answer to `_cluster/health`, where the call was one.
    pub(super) fn set_cluster_health(&self, call: &ElasticsearchCall, server: Server<'_>) {
        let Some(health) = call.cluster_health else {
            return;
        };
        let value = match health {
            ClusterHealth::Red => 0,
            ClusterHealth::Yellow => 1,
            ClusterHealth::Green => 2,
        };
        let cluster = call.cluster_name.as_deref().unwrap_or("");
        let (gauge, within) =
            self.cluster_health
                .series(&[server.0, &port_label(server.1), cluster]);
        // Many clusters have no common health: the overflow series stays absent.
        if within {
            gauge.set(value);
        }
    }
}

/// What tells the series of calls apart. [`DatabaseKeyRef`] has to hash alike: the same fields in
/// the same order.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct DatabaseKey {
    service: Arc<str>,
    product: SearchProduct,
    operation: Option<&'static str>,
    collection: Box<str>,
    status: Option<u16>,
    error: ErrorType,
    server: (Box<str>, Option<u16>),
}

/// [`DatabaseKey`], borrowed from an observation.
#[derive(Hash)]
pub(super) struct DatabaseKeyRef<'a> {
    service: &'a Arc<str>,
    product: SearchProduct,
    operation: Option<&'static str>,
    collection: &'a str,
    status: Option<u16>,
    error: ErrorType,
    server: Server<'a>,
}

impl<'a> DatabaseKeyRef<'a> {
    pub(super) fn new(
        service: &'a Arc<str>,
        call: &'a ElasticsearchCall,
        exchange: &Exchange,
        server: Server<'a>,
    ) -> Self {
        Self {
            service,
            product: call.product,
            operation: call.operation,
            collection: &call.collection,
            status: exchange.status,
            error: ErrorType::of(exchange),
            server,
        }
    }

    /// An operation that is not known is the empty string.
    fn operation(&self) -> &'static str {
        self.operation.unwrap_or("")
    }
}

impl Equivalent<DatabaseKey> for DatabaseKeyRef<'_> {
    fn equivalent(&self, key: &DatabaseKey) -> bool {
        *self.service == key.service
            && self.product == key.product
            && self.operation == key.operation
            && *self.collection == *key.collection
            && self.status == key.status
            && self.error == key.error
            && self.server == (&*key.server.0, key.server.1)
    }
}

impl From<&DatabaseKeyRef<'_>> for DatabaseKey {
    fn from(key: &DatabaseKeyRef<'_>) -> Self {
        Self {
            service: Arc::clone(key.service),
            product: key.product,
            operation: key.operation,
            collection: key.collection.into(),
            status: key.status,
            error: key.error,
            server: (key.server.0.into(), key.server.1),
        }
    }
}

/// Handles on the histograms of one set of labels; each is made when there is a first value for it.
#[derive(Default)]
pub(super) struct DatabaseSeries {
    duration: Option<LocalHistogram>,
    took: Option<LocalHistogram>,
    overhead: Option<LocalHistogram>,
}

impl DatabaseSeries {
    /// Adds what was recorded to the histograms that are scraped.
    pub(super) fn flush(&self) {
        let handles = [&self.duration, &self.took, &self.overhead];
        handles
            .into_iter()
            .flatten()
            .for_each(LocalHistogram::flush);
    }

    /// `false` when one of the families is full.
    pub(super) fn observe(
        &mut self,
        families: &DatabaseFamilies,
        key: &DatabaseKeyRef<'_>,
        call: &ElasticsearchCall,
        exchange: &Exchange,
    ) -> bool {
        let seconds = semantics::duration_ns(exchange) as f64 / 1e9;
        let mut within = record(&mut self.duration, seconds, || {
            let status = semantics::status_label(key.status);
            families.duration.series(&[
                key.service,
                key.product.as_str(),
                key.operation(),
                key.collection,
                &status,
                key.error.as_label(&status),
                key.server.0,
                &port_label(key.server.1),
            ])
        });
        let Some(took_ms) = call.took_ms else {
            return within;
        };
        let took_seconds = took_ms as f64 / 1e3;
        // `took` counts whole milliseconds, so that a quick call can seem to take less than that.
        let overhead_seconds = (seconds - took_seconds).max(0.0);
        let labels = [&**key.service, key.operation(), key.collection];
        within &= record(&mut self.took, took_seconds, || {
            families.took.series(&labels)
        });
        within
            & record(&mut self.overhead, overhead_seconds, || {
                families.overhead.series(&labels)
            })
    }
}
