//! What a metric's labels are made of, and how many of them there may be.
//!
//! Label values come from the traffic: hosts, index names, routes. Each is bounded in length, and
//! each metric family in its number of series, so that no client can fill the agent's memory, or
//! Prometheus's.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use prometheus::IntCounter;
use prometheus::core::{MetricVec, MetricVecBuilder};

/// Every label of a series that stands for those beyond the bound.
const OVERFLOW: &str = "_overflow";

/// Longest label value; a longer one is cut and ends in `…`.
const MAX_LABEL_BYTES: usize = 200;

/// A metric whose series are told apart by label values.
pub(super) trait Labelled {
    /// One series.
    type Series;

    /// The series with these values, in the order of the labels.
    fn labelled(&self, values: &[&str]) -> Self::Series;
}

impl<B: MetricVecBuilder> Labelled for MetricVec<B> {
    type Series = B::M;

    fn labelled(&self, values: &[&str]) -> B::M {
        self.with_label_values(values)
    }
}

/// A metric family with a bound on its series.
pub(super) struct Family<V> {
    metric: V,
    max_series: usize,
    /// Hashes of the label values that were let in. A collision would let one series too many in,
    /// nothing worse; the keys are random so that nobody can make one.
    admitted: Mutex<HashSet<u64>>,
    hasher: RandomState,
    refused: IntCounter,
}

impl<V: Labelled> Family<V> {
    /// `refused` counts what went to the overflow series.
    pub(super) fn new(metric: V, max_series: usize, refused: IntCounter) -> Self {
        Self {
            metric,
            max_series,
            admitted: Mutex::default(),
            hasher: RandomState::new(),
            refused,
        }
    }

    /// The series with these label values and `true`; or, where there are too many, the overflow
    /// series and `false`. Takes locks: keep what comes with `true`.
    pub(super) fn series(&self, values: &[&str]) -> (V::Series, bool) {
        let bounded: Vec<Cow<'_, str>> = values.iter().map(|value| bound_label(value)).collect();
        let hash = self.hasher.hash_one(&bounded);
        let is_admitted = {
            let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
            admitted.contains(&hash) || (admitted.len() < self.max_series && admitted.insert(hash))
        };
        if is_admitted {
            let values: Vec<&str> = bounded.iter().map(AsRef::as_ref).collect();
            (self.metric.labelled(&values), true)
        } else {
            self.refused.inc();
            (self.metric.labelled(&vec![OVERFLOW; values.len()]), false)
        }
    }
}

fn bound_label(value: &str) -> Cow<'_, str> {
    if value.len() <= MAX_LABEL_BYTES {
        return Cow::Borrowed(value);
    }
    const ELLIPSIS: &str = "…";
    let mut end = MAX_LABEL_BYTES - ELLIPSIS.len();
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}{ELLIPSIS}", &value[..end]))
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn beyond_the_bound_everything_goes_to_one_series() {
        let refused = IntCounter::new("refused", "r").unwrap();
        let vec = IntCounterVec::new(Opts::new("n", "n"), &["a", "b"]).unwrap();
        let family = Family::new(vec.clone(), 2, refused.clone());
        for value in ["x", "y", "z", "x", "w"] {
            family.series(&[value, "same"]).0.inc();
        }
        assert_eq!(vec.with_label_values(&["x", "same"]).get(), 2);
        assert_eq!(vec.with_label_values(&[OVERFLOW, OVERFLOW]).get(), 2);
        assert_eq!(refused.get(), 2);
        assert!(family.series(&["y", "same"]).1);
    }

    proptest! {
        #[test]
        fn labels_are_bounded_and_keep_their_beginning(value in ".{0,400}") {
            let bounded = bound_label(&value);
            prop_assert!(bounded.len() <= MAX_LABEL_BYTES);
            prop_assert!(value.starts_with(bounded.trim_end_matches('…')));
            prop_assert!(value.len() > MAX_LABEL_BYTES || bounded == value);
        }
    }
}
