//! Bucket bounds of every histogram.

use std::collections::BTreeMap;

/// Buckets of the HTTP durations, seconds.
const HTTP_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Buckets of the queue time, seconds: an idle server reads within 100 µs.
const QUEUE_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];

/// Buckets of the database durations, seconds.
const DATABASE_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// Buckets of the body sizes, bytes: 128 B, then powers of ten from 1 KiB to 1 GiB.
const BODY_BYTES: &[f64] = &[
    128.0,
    1024.0,
    10_240.0,
    102_400.0,
    1_048_576.0,
    10_485_760.0,
    104_857_600.0,
    1_073_741_824.0,
];

pub(super) const SERVER_DURATION: &str = "http_server_request_duration_seconds";
pub(super) const SERVER_FIRST_BYTE: &str = "http_server_time_to_first_byte_seconds";
pub(super) const SERVER_QUEUE: &str = "http_server_queue_time_seconds";
pub(super) const SERVER_REQUEST_BODY: &str = "http_server_request_body_size_bytes";
pub(super) const SERVER_RESPONSE_BODY: &str = "http_server_response_body_size_bytes";
pub(super) const CLIENT_DURATION: &str = "http_client_request_duration_seconds";
pub(super) const CLIENT_FIRST_BYTE: &str = "http_client_time_to_first_byte_seconds";
pub(super) const CLIENT_REQUEST_BODY: &str = "http_client_request_body_size_bytes";
pub(super) const CLIENT_RESPONSE_BODY: &str = "http_client_response_body_size_bytes";
pub(super) const DB_DURATION: &str = "db_client_operation_duration_seconds";
pub(super) const ELASTICSEARCH_SERVER: &str = "elasticsearch_server_operation_duration_seconds";
pub(super) const ELASTICSEARCH_TOOK: &str = "elasticsearch_took_seconds";
pub(super) const ELASTICSEARCH_OVERHEAD: &str = "elasticsearch_overhead_seconds";

/// Every histogram and its buckets by default.
const DEFAULTS: &[(&str, &[f64])] = &[
    (SERVER_DURATION, HTTP_SECONDS),
    (SERVER_FIRST_BYTE, HTTP_SECONDS),
    (SERVER_QUEUE, QUEUE_SECONDS),
    (SERVER_REQUEST_BODY, BODY_BYTES),
    (SERVER_RESPONSE_BODY, BODY_BYTES),
    (CLIENT_DURATION, HTTP_SECONDS),
    (CLIENT_FIRST_BYTE, HTTP_SECONDS),
    (CLIENT_REQUEST_BODY, BODY_BYTES),
    (CLIENT_RESPONSE_BODY, BODY_BYTES),
    (DB_DURATION, DATABASE_SECONDS),
    (ELASTICSEARCH_SERVER, DATABASE_SECONDS),
    (ELASTICSEARCH_TOOK, DATABASE_SECONDS),
    (ELASTICSEARCH_OVERHEAD, DATABASE_SECONDS),
];

/// The upper bounds of each histogram's buckets, in the metric's unit, without `+Inf`.
pub(super) struct Buckets {
    by_metric: BTreeMap<&'static str, Vec<f64>>,
}

impl Buckets {
    /// The defaults, with `overrides` by the names of histograms. The configuration has checked
    /// them; a name that is not registered (yet) has no effect.
    pub(super) fn new(overrides: &BTreeMap<String, Vec<f64>>) -> Self {
        let bounds_of = |name: &str, default: &[f64]| {
            overrides
                .get(name)
                .map_or_else(|| default.to_vec(), Clone::clone)
        };
        let by_metric = DEFAULTS
            .iter()
            .map(|(name, default)| (*name, bounds_of(name, default)))
            .collect();
        Self { by_metric }
    }

    /// The bounds of one histogram.
    pub(super) fn of(&self, metric: &'static str) -> Vec<f64> {
        self.by_metric.get(metric).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_set_a_metric() {
        let overrides = BTreeMap::from([(DB_DURATION.to_owned(), vec![0.0001, 0.001])]);
        let buckets = Buckets::new(&overrides);
        assert_eq!(buckets.of(DB_DURATION), [0.0001, 0.001]);
        assert_eq!(buckets.of(ELASTICSEARCH_TOOK), DATABASE_SECONDS);
    }

    #[test]
    fn the_configuration_knows_every_histogram() {
        for (name, _) in DEFAULTS {
            assert!(crate::config::HISTOGRAMS.contains(name), "{name}");
        }
    }
}
