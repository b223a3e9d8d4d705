//! Runs with the agent and without, in turn, and what their ratios say.

use std::fmt::{self, Display, Formatter};
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// A run without the agent and one with it.
pub(super) struct Pair<Without, With> {
    pub(super) without: Without,
    pub(super) with: With,
}

/// Runs both, so many times. The order alternates, so that a machine that gets slower favours
/// neither.
///
/// # Errors
/// The first run that fails ends it.
pub(super) fn in_turn<A, B>(
    pairs: u32,
    mut without: impl FnMut() -> Result<A>,
    mut with: impl FnMut() -> Result<B>,
) -> Result<Vec<Pair<A, B>>> {
    let mut measured = Vec::new();
    for number in 0..pairs {
        measured.push(if number % 2 == 0 {
            let without = without()?;
            let with = with()?;
            Pair { without, with }
        } else {
            let with = with()?;
            let without = without()?;
            Pair { without, with }
        });
        // The ports of closed connections come free, the kernel frees what the agent held.
        thread::sleep(Duration::from_millis(100));
    }
    Ok(measured)
}

/// Ratios of pairs: their median, and their extremes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratios {
    pub(super) median: f64,
    low: f64,
    high: f64,
}

impl Ratios {
    /// Of `with` to `without`, a pair at a time.
    pub(super) fn of(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> Self {
        let ratios = pairs.map(|(without, with)| with / without);
        Self {
            median: median(ratios.clone()),
            low: ratios.clone().fold(f64::MAX, f64::min),
            high: ratios.fold(f64::MIN, f64::max),
        }
    }
}

impl Display for Ratios {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.3} – {:.3})", self.median, self.low, self.high)
    }
}

/// The middle value; the mean of the middle two; 0 of none.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len(), values.get(middle)) {
        (length, Some(high)) if length % 2 == 0 => (values[middle - 1] + high) / 2.0,
        (_, Some(value)) => *value,
        (_, None) => 0.0,
    }
}

/// The smallest of the values that `share` of them do not exceed; `None` of none.
pub(super) fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_few_values_is_exact() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut values, 0.99), Some(99.0));
        assert_eq!(quantile(&mut values, 1.0), Some(100.0));
        assert_eq!(quantile(&mut values, 0.0), Some(1.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn pairs_alternate() {
        let order = std::cell::RefCell::new(String::new());
        let run = |name: char| {
            order.borrow_mut().push(name);
            Ok(name)
        };
        let pairs = in_turn(3, || run('o'), || run('w')).unwrap();
        assert_eq!(*order.borrow(), "owwoow");
        assert!(
            pairs
                .iter()
                .all(|pair| (pair.without, pair.with) == ('o', 'w'))
        );
    }

    #[test]
    fn ratios_are_taken_a_pair_at_a_time() {
        let ratios = Ratios::of([(100.0, 90.0), (50.0, 50.0), (10.0, 8.0)].into_iter());
        assert_eq!(ratios.to_string(), "0.900 (0.800 – 1.000)");
    }
}
