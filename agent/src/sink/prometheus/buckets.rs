//! Bucket bounds of every histogram.

use std::collections::BTreeMap;

use thiserror::Error;

/// Buckets of the HTTP durations, seconds.
const HTTP_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
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

/// Most bounds that one histogram may have: each costs a counter in every series.
const MAX_BOUNDS: usize = 64;

pub(super) const SERVER_DURATION: &str = "http_server_request_duration_seconds";
pub(super) const SERVER_FIRST_BYTE: &str = "http_server_time_to_first_byte_seconds";
pub(super) const SERVER_REQUEST_BODY: &str = "http_server_request_body_size_bytes";
pub(super) const SERVER_RESPONSE_BODY: &str = "http_server_response_body_size_bytes";
pub(super) const CLIENT_DURATION: &str = "http_client_request_duration_seconds";
pub(super) const CLIENT_FIRST_BYTE: &str = "http_client_time_to_first_byte_seconds";
pub(super) const CLIENT_REQUEST_BODY: &str = "http_client_request_body_size_bytes";
pub(super) const CLIENT_RESPONSE_BODY: &str = "http_client_response_body_size_bytes";
pub(super) const DB_DURATION: &str = "db_client_operation_duration_seconds";
pub(super) const ELASTICSEARCH_TOOK: &str = "elasticsearch_took_seconds";
pub(super) const ELASTICSEARCH_OVERHEAD: &str = "elasticsearch_overhead_seconds";

/// Every histogram and its buckets by default.
const DEFAULTS: [(&str, &[f64]); 11] = [
    (SERVER_DURATION, HTTP_SECONDS),
    (SERVER_FIRST_BYTE, HTTP_SECONDS),
    (SERVER_REQUEST_BODY, BODY_BYTES),
    (SERVER_RESPONSE_BODY, BODY_BYTES),
    (CLIENT_DURATION, HTTP_SECONDS),
    (CLIENT_FIRST_BYTE, HTTP_SECONDS),
    (CLIENT_REQUEST_BODY, BODY_BYTES),
    (CLIENT_RESPONSE_BODY, BODY_BYTES),
    (DB_DURATION, DATABASE_SECONDS),
    (ELASTICSEARCH_TOOK, DATABASE_SECONDS),
    (ELASTICSEARCH_OVERHEAD, DATABASE_SECONDS),
];

/// The upper bounds of each histogram's buckets, in the metric's unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Buckets {
    by_metric: BTreeMap<&'static str, Vec<f64>>,
}

/// Why bounds cannot be taken.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum BucketsError {
    /// No histogram has this name.
    #[error("`{name}` is no histogram; histograms are {}", Buckets::metrics().collect::<Vec<_>>().join(", "))]
    UnknownMetric {
        /// The name that was given.
        name: String,
    },
    /// The bounds are none, or too many.
    #[error("`{name}` has {count} bucket bounds; 1 to {MAX_BOUNDS} are allowed")]
    BadCount {
        /// The metric.
        name: String,
        /// How many bounds were given.
        count: usize,
    },
    /// A bound is not a positive number, or not above the one before it.
    #[error(
        "`{name}` has the bucket bound {bound}; bounds have to be positive, finite and ascending"
    )]
    BadBound {
        /// The metric.
        name: String,
        /// The first bound that is wrong.
        bound: f64,
    },
}

impl Buckets {
    /// The names of all histograms.
    pub fn metrics() -> impl Iterator<Item = &'static str> {
        DEFAULTS.iter().map(|(name, _)| *name)
    }

    /// Sets the bounds of one histogram; `+Inf` is added by itself.
    ///
    /// # Errors
    ///
    /// When there is no such histogram, or the bounds are none, too many, not positive and finite,
    /// or not ascending.
    pub fn set(&mut self, metric: &str, bounds: Vec<f64>) -> Result<(), BucketsError> {
        let name = || metric.to_owned();
        let Some((key, _)) = DEFAULTS.iter().find(|(known, _)| *known == metric) else {
            return Err(BucketsError::UnknownMetric { name: name() });
        };
        if !(1..=MAX_BOUNDS).contains(&bounds.len()) {
            return Err(BucketsError::BadCount {
                name: name(),
                count: bounds.len(),
            });
        }
        let mut last = 0.0;
        for &bound in &bounds {
            // Written so that NaN, which compares with nothing, is refused.
            if !(bound > last && bound.is_finite()) {
                return Err(BucketsError::BadBound {
                    name: name(),
                    bound,
                });
            }
            last = bound;
        }
        self.by_metric.insert(key, bounds);
        Ok(())
    }

    /// The bounds of one of [`Self::metrics`]; none for another name.
    #[must_use]
    pub fn of(&self, metric: &str) -> &[f64] {
        self.by_metric.get(metric).map_or(&[], Vec::as_slice)
    }
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            by_metric: DEFAULTS
                .iter()
                .map(|(name, bounds)| (*name, bounds.to_vec()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_set_a_metric() {
        let mut buckets = Buckets::default();
        buckets.set(DB_DURATION, vec![0.0001, 0.001]).unwrap();
        assert_eq!(buckets.of(DB_DURATION), [0.0001, 0.001]);
        assert_eq!(buckets.of(ELASTICSEARCH_TOOK), DATABASE_SECONDS);
    }

    #[test]
    fn nonsense_is_refused_with_what_is_wrong() {
        let mut buckets = Buckets::default();
        let error = buckets
            .set("http_durations", vec![1.0])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("http_durations") && error.contains(SERVER_DURATION),
            "{error}"
        );
        for bounds in [
            vec![1.0, 1.0],
            vec![2.0, 1.0],
            vec![0.0],
            vec![-1.0],
            vec![f64::INFINITY],
            vec![f64::NAN],
        ] {
            assert!(
                matches!(
                    buckets.set(DB_DURATION, bounds.clone()),
                    Err(BucketsError::BadBound { .. })
                ),
                "{bounds:?}"
            );
        }
        assert!(matches!(
            buckets.set(DB_DURATION, vec![]),
            Err(BucketsError::BadCount { count: 0, .. })
        ));
        let many = (1..=65).map(f64::from).collect();
        assert!(matches!(
            buckets.set(DB_DURATION, many),
            Err(BucketsError::BadCount { count: 65, .. })
        ));
        assert_eq!(buckets, Buckets::default());
    }
}
