//! From the clocks' rate to a lower one.

/// Leaves out as many samples of fast clocks that what is left is as much as slower ones would have
/// given. The remainder is passed on from one sample to the next, so that the sum is right to one
/// sample; which ones are left out follows the order in which the kernel's hash map lists them,
/// which is that of a random hash.
#[derive(Clone, Debug)]
pub(super) struct Thin {
    hz: u32,
    /// Samples that are owed, below one.
    carry: f64,
}

impl Thin {
    /// Down to `hz` samples a second and CPU.
    pub(super) fn to(hz: u32) -> Self {
        Self { hz, carry: 0.5 }
    }

    /// How many are kept of `count` samples of clocks that run at `clock_hz`.
    pub(super) fn keep(&mut self, count: u64, clock_hz: u32) -> u64 {
        if clock_hz <= self.hz {
            return count;
        }
        let owed = self.carry + count as f64 * f64::from(self.hz) / f64::from(clock_hz);
        self.carry = owed.fract();
        owed as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_slower_clocks(
            counts in prop::collection::vec(0..50_u64, 0..200),
            hz in 1..998_u32,
            faster in 0..997_u32,
        ) {
            let mut thin = Thin::to(hz);
            let clock_hz = hz + faster;
            let kept: u64 = counts.iter().map(|count| thin.keep(*count, clock_hz)).sum();
            let total: u64 = counts.iter().sum();
            let expected = total as f64 * f64::from(hz) / f64::from(clock_hz);
            prop_assert!((kept as f64 - expected).abs() <= 0.5 + 1e-6, "{kept} of {expected}");
        }

        #[test]
        fn at_its_own_rate_every_sample_is_kept(count in 0..1_000_000_u64, hz in 1..998_u32) {
            prop_assert_eq!(Thin::to(hz).keep(count, hz), count);
        }
    }
}
