//! The metrics of Elasticsearch and OpenSearch calls.

use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};
use prometheus::local::LocalHistogram;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts};
use protocol::observation::{
    BulkAction, BulkItems, BulkOutcome, ClusterHealth, ClusterReport, ElasticsearchCall, Exchange,
    SearchProduct,
};

use super::buckets::{self, Buckets};
use super::series::Family;
use super::{histogram_vec, port_label, record};
use crate::sink::semantics::{self, ErrorType, Server};

/// The metrics of database calls: as the client saw them, but for one.
pub(super) struct DatabaseFamilies {
    duration: Family<HistogramVec>,
    /// What the cluster's own nodes saw, apart from what their clients did: a call of a client on this
    /// host to a node on this host is in both.
    served: Family<HistogramVec>,
    took: Family<HistogramVec>,
    overhead: Family<HistogramVec>,
    bulk_items: Family<IntCounterVec>,
    /// One a [`ClusterFact`].
    cluster: [Family<IntGaugeVec>; ClusterFact::ALL.len()],
}

/// What is told of a cluster, a gauge each.
#[derive(Clone, Copy)]
enum ClusterFact {
    Health,
    Nodes,
    ActiveShards,
    UnassignedShards,
    PendingTasks,
}

impl ClusterFact {
    const ALL: [Self; 5] = [
        Self::Health,
        Self::Nodes,
        Self::ActiveShards,
        Self::UnassignedShards,
        Self::PendingTasks,
    ];

    const fn metric(self) -> (&'static str, &'static str) {
        match self {
            Self::Health => (
                "elasticsearch_cluster_health",
                "Health of a cluster as it last told a client: 0 red, 1 yellow, 2 green.",
            ),
            Self::Nodes => (
                "elasticsearch_cluster_nodes",
                "Nodes of a cluster, as it last told a client.",
            ),
            Self::ActiveShards => (
                "elasticsearch_cluster_active_shards",
                "Active shards of a cluster, as it last told a client.",
            ),
            Self::UnassignedShards => (
                "elasticsearch_cluster_unassigned_shards",
                "Unassigned shards of a cluster, as it last told a client.",
            ),
            Self::PendingTasks => (
                "elasticsearch_cluster_pending_tasks",
                "Changes of a cluster's state that wait, as it last told a client.",
            ),
        }
    }

    /// The gauge's value; `None` where the cluster did not say.
    fn of(self, report: &ClusterReport) -> Option<i64> {
        let count = match self {
            Self::Health => {
                return report.health.map(|health| match health {
                    ClusterHealth::Red => 0,
                    ClusterHealth::Yellow => 1,
                    ClusterHealth::Green => 2,
                });
            }
            Self::Nodes => report.nodes,
            Self::ActiveShards => report.active_shards,
            Self::UnassignedShards => report.unassigned_shards,
            Self::PendingTasks => report.pending_tasks,
        };
        count.and_then(|count| i64::try_from(count).ok())
    }
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
        let gauge = |fact: ClusterFact| {
            let (name, help) = fact.metric();
            let labels = ["server_address", "server_port", "cluster"];
            IntGaugeVec::new(Opts::new(name, help), &labels)
                .map(|vec| Family::new(vec, max_series, refused.clone()))
        };
        let [
            health,
            nodes,
            active_shards,
            unassigned_shards,
            pending_tasks,
        ] = ClusterFact::ALL.map(gauge);
        let bulk_items = IntCounterVec::new(
            Opts::new(
                "elasticsearch_bulk_items_total",
                "Items of bulk requests by what they were to do and what became of them.",
            ),
            &["service_name", "db_collection_name", "action", "outcome"],
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
            served: histogram(
                buckets::ELASTICSEARCH_SERVER,
                "Duration of calls at the cluster's node, or the proxy before it, that answered them.",
                &[
                    "service_name",
                    "db_system_name",
                    "db_operation_name",
                    "db_collection_name",
                    "db_response_status_code",
                    "error_type",
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
            bulk_items: Family::new(bulk_items, max_series, refused.clone()),
            cluster: [
                health?,
                nodes?,
                active_shards?,
                unassigned_shards?,
                pending_tasks?,
            ],
        })
    }

    /// Every histogram, for the registry and for forgetting.
    pub(super) fn histograms(&self) -> [&Family<HistogramVec>; 4] {
        [&self.duration, &self.served, &self.took, &self.overhead]
    }

    /// The one counter, likewise.
    pub(super) fn bulk_items(&self) -> &Family<IntCounterVec> {
        &self.bulk_items
    }

    /// Every gauge, likewise.
    pub(super) fn cluster(&self) -> &[Family<IntGaugeVec>] {
        &self.cluster
    }

    /// Drops what was told of a cluster.
    pub(super) fn forget_cluster(&self, server: Server<'_>, cluster: &str) {
        for family in &self.cluster {
            family.remove(&[server.0, &port_label(server.1), cluster]);
        }
    }

    /// Takes in the answer to `_cluster/health`, where the call was one.
    pub(super) fn set_cluster(&self, call: &ElasticsearchCall, server: Server<'_>) {
        let Some(report) = &call.cluster else {
            return;
        };
        let cluster = report.name.as_deref().unwrap_or("");
        let labels = [server.0, &port_label(server.1), cluster];
        for (fact, family) in ClusterFact::ALL.into_iter().zip(&self.cluster) {
            let Some(value) = fact.of(report) else {
                continue;
            };
            let (gauge, within) = family.series(&labels);
            // Many clusters have no common health: the overflow series stays absent.
            if within {
                gauge.set(value);
            }
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
    exception: Option<Box<str>>,
    /// `None` of the server itself.
    server: Option<(Box<str>, Option<u16>)>,
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
    exception: Option<&'a str>,
    server: Option<Server<'a>>,
}

impl<'a> DatabaseKeyRef<'a> {
    pub(super) fn new(
        service: &'a Arc<str>,
        call: &'a ElasticsearchCall,
        exchange: &Exchange,
        server: Option<Server<'a>>,
    ) -> Self {
        Self {
            service,
            product: call.product,
            operation: call.operation,
            collection: &call.collection,
            status: exchange.status,
            error: ErrorType::of(exchange),
            exception: call.error_type.as_deref(),
            server,
        }
    }

    /// `error_type`: what happened on the connection, else what the cluster calls it, else a 5xx
    /// status.
    fn error<'s>(&'s self, status: &'s str) -> &'s str {
        match (self.error, self.exception) {
            (ErrorType::None | ErrorType::Status, Some(exception)) => exception,
            (error, _) => error.as_label(status),
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
            && self.exception == key.exception.as_deref()
            && self.server == key.server.as_ref().map(|(name, port)| (&**name, *port))
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
            exception: key.exception.map(Into::into),
            server: key.server.map(|(name, port)| (name.into(), port)),
        }
    }
}

/// Handles on the histograms of one set of labels; each is made when there is a first value for it.
#[derive(Default)]
pub(super) struct DatabaseSeries {
    /// At the client or at the server.
    duration: Option<LocalHistogram>,
    took: Option<LocalHistogram>,
    overhead: Option<LocalHistogram>,
    bulk_items: HashMap<(BulkAction, BulkOutcome), IntCounter>,
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
            let labels = [
                key.service,
                key.product.as_str(),
                key.operation(),
                key.collection,
                &status,
                key.error(&status),
            ];
            let Some((name, port)) = key.server else {
                return families.served.series(&labels);
            };
            let [service, product, operation, collection, status, error] = labels;
            families.duration.series(&[
                service,
                product,
                operation,
                collection,
                status,
                error,
                name,
                &port_label(port),
            ])
        });
        if key.server.is_none() {
            // The rest is the client's to tell.
            return within;
        }
        for items in &call.bulk_items {
            within &= self.count_items(families, key, items);
        }
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

    fn count_items(
        &mut self,
        families: &DatabaseFamilies,
        key: &DatabaseKeyRef<'_>,
        items: &BulkItems,
    ) -> bool {
        let kind = (items.action, items.outcome);
        if let Some(counter) = self.bulk_items.get(&kind) {
            counter.inc_by(items.count);
            return true;
        }
        let (action, outcome) = (items.action.as_str(), items.outcome.as_str());
        let labels = [&**key.service, key.collection, action, outcome];
        let (counter, within) = families.bulk_items.series(&labels);
        counter.inc_by(items.count);
        if within {
            self.bulk_items.insert(kind, counter);
        }
        within
    }
}
