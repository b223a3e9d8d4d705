//! What a metric's labels are made of, and how many of them there may be.
//!
//! Label values come from the traffic: hosts, index names, routes. Each is bounded in length, and
//! each metric family in its number of series, so that no client can fill the agent's memory, or
//! Prometheus's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Every label of a series that stands for those beyond the bound.
const OVERFLOW: &str = "_overflow";

/// Longest label value; a longer one is cut and ends in `…`.
const MAX_LABEL_BYTES: usize = 200;

/// A metric whose series are told apart by label values.
pub(super) trait Labelled: Collector {
    /// One series.
    type Series;

    /// The series with these values, in the order of the labels.
    fn labelled(&self, values: &[&str]) -> Self::Series;

    /// Drops the series with these values.
    fn forget(&self, values: &[&str]);

    /// A number that changes when the series does, where the series itself can tell.
    fn changes(series: &Self::Series) -> u64;
}

impl Labelled for HistogramVec {
    type Series = Histogram;

    fn labelled(&self, values: &[&str]) -> Histogram {
        self.with_label_values(values)
    }

    fn forget(&self, values: &[&str]) {
        // An error says that there is none: nothing to drop.
        let _ = self.remove_label_values(values);
    }

    fn changes(series: &Histogram) -> u64 {
        series.get_sample_count()
    }
}

impl Labelled for IntGaugeVec {
    type Series = IntGauge;

    fn labelled(&self, values: &[&str]) -> IntGauge {
        self.with_label_values(values)
    }

    fn forget(&self, values: &[&str]) {
        let _ = self.remove_label_values(values);
    }

    /// A gauge that is set to what it was does not show it; its look-up does.
    fn changes(_series: &IntGauge) -> u64 {
        0
    }
}

impl Labelled for IntCounterVec {
    type Series = IntCounter;

    fn labelled(&self, values: &[&str]) -> IntCounter {
        self.with_label_values(values)
    }

    fn forget(&self, values: &[&str]) {
        let _ = self.remove_label_values(values);
    }

    fn changes(series: &IntCounter) -> u64 {
        series.get()
    }
}

/// A metric family with a bound on its series.
pub(super) struct Family<V> {
    metric: V,
    max_series: usize,
    /// By label values.
    admitted: Mutex<HashMap<Vec<String>, Activity>>,
    refused: IntCounter,
}

/// When a series was last in use.
struct Activity {
    changes: u64,
    seen: Instant,
}

impl<V: Labelled> Family<V> {
    /// `refused` counts what went to the overflow series.
    pub(super) fn new(metric: V, max_series: usize, refused: IntCounter) -> Self {
        Self {
            metric,
            max_series,
            admitted: Mutex::default(),
            refused,
        }
    }

    /// The series with these label values and `true`; or, where there are too many, the overflow
    /// series and `false`. Takes locks: keep what comes with `true`.
    pub(super) fn series(&self, values: &[&str]) -> (V::Series, bool) {
        let bounded: Vec<String> = values.iter().map(|value| bound_label(value)).collect();
        match self.admit(&bounded) {
            Some(series) => (series, true),
            None => {
                self.refused.inc();
                (self.metric.labelled(&vec![OVERFLOW; values.len()]), false)
            }
        }
    }

    /// The series with these values, if there is one or room for one.
    fn admit(&self, values: &[String]) -> Option<V::Series> {
        let mut admitted = self.lock();
        let now = Instant::now();
        if let Some(activity) = admitted.get_mut(values) {
            activity.seen = now;
        } else if admitted.len() < self.max_series {
            admitted.insert(
                values.to_vec(),
                Activity {
                    changes: 0,
                    seen: now,
                },
            );
        } else {
            return None;
        }
        Some(self.metric.labelled(&borrowed(values)))
    }

    /// Drops the series with these values, if there is one. No handle on it may be kept.
    pub(super) fn remove(&self, values: &[&str]) {
        let bounded: Vec<String> = values.iter().map(|value| bound_label(value)).collect();
        if self.lock().remove(&bounded).is_some() {
            self.metric.forget(&borrowed(&bounded));
        }
    }

    /// Drops the series that were not in use since `before`; tells how many. No handle on a series
    /// of this family may be kept across this call.
    pub(super) fn forget_idle(&self, before: Instant, now: Instant) -> usize {
        let mut admitted = self.lock();
        let had = admitted.len();
        admitted.retain(|values, activity| {
            let values = borrowed(values);
            let changes = V::changes(&self.metric.labelled(&values));
            if changes != activity.changes {
                *activity = Activity { changes, seen: now };
            }
            let is_in_use = activity.seen >= before;
            if !is_in_use {
                self.metric.forget(&values);
            }
            is_in_use
        });
        had - admitted.len()
    }

    /// For the registry.
    pub(super) fn collector(&self) -> &dyn Collector {
        &self.metric
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<String>, Activity>> {
        // Each entry is valid by itself after any panic.
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn borrowed(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}

fn bound_label(value: &str) -> String {
    if value.len() <= MAX_LABEL_BYTES {
        return value.to_owned();
    }
    const ELLIPSIS: &str = "…";
    let mut end = MAX_LABEL_BYTES - ELLIPSIS.len();
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ELLIPSIS}", &value[..end])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::HistogramOpts;
    use proptest::prelude::*;

    use super::*;

    fn family(max_series: usize) -> (HistogramVec, IntCounter, Family<HistogramVec>) {
        let refused = IntCounter::new("refused", "r").unwrap();
        let vec = HistogramVec::new(HistogramOpts::new("n", "n"), &["a", "b"]).unwrap();
        (
            vec.clone(),
            refused.clone(),
            Family::new(vec, max_series, refused),
        )
    }

    #[test]
    fn beyond_the_bound_everything_goes_to_one_series() {
        let (vec, refused, family) = family(2);
        for value in ["x", "y", "z", "x", "w"] {
            family.series(&[value, "same"]).0.observe(1.0);
        }
        assert_eq!(vec.with_label_values(&["x", "same"]).get_sample_count(), 2);
        assert_eq!(
            vec.with_label_values(&[OVERFLOW, OVERFLOW])
                .get_sample_count(),
            2
        );
        assert_eq!(refused.get(), 2);
        assert!(family.series(&["y", "same"]).1);
    }

    #[test]
    fn idle_series_make_room() {
        let (vec, _, family) = family(2);
        let idle_after = Duration::from_secs(3_600);
        let start = Instant::now();
        family.series(&["idle", ""]).0.observe(1.0);
        let busy = family.series(&["busy", ""]).0;
        busy.observe(1.0);
        assert!(!family.series(&["late", ""]).1);
        // Both had a value since the series was made.
        let half = start + idle_after / 2;
        assert_eq!(family.forget_idle(half - idle_after, half), 0);
        busy.observe(1.0);
        let later = half + idle_after + Duration::from_secs(1);
        assert_eq!(family.forget_idle(later - idle_after, later), 1);
        assert!(family.series(&["late", ""]).1);
        assert_eq!(vec.with_label_values(&["busy", ""]).get_sample_count(), 2);
        let text = format!("{:?}", vec.collect());
        assert!(!text.contains("idle"), "{text}");
    }

    proptest! {
        #[test]
        fn labels_are_bounded_and_keep_their_beginning(value in ".{0,400}") {
            let bounded = bound_label(&value);
            prop_assert!(bounded.len() <= MAX_LABEL_BYTES);
            prop_assert!(value.starts_with(bounded.trim_end_matches('…')));
            prop_assert!(value.len() > MAX_LABEL_BYTES || bounded == value.as_str());
        }
    }
}
