//! Which elements of a map are in use.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges of a map's elements that are free.
#[derive(Debug)]
pub(super) struct Pool {
    /// Start → end; none touches another.
    free: BTreeMap<u32, u32>,
}

impl Pool {
    /// Elements 0 to `len`, all free.
    pub(super) fn new(len: usize) -> Self {
        let end = u32::try_from(len).unwrap_or(u32::MAX);
        Self {
            free: BTreeMap::from([(0, end)]),
        }
    }

    /// Takes the first range of `len` elements that is free.
    pub(super) fn take(&mut self, len: u32) -> Option<Range<u32>> {
        let (start, end) = self
            .free
            .iter()
            .map(|(start, end)| (*start, *end))
            .find(|(start, end)| end - start >= len)?;
        self.free.remove(&start);
        if start + len < end {
            self.free.insert(start + len, end);
        }
        Some(start..start + len)
    }

    /// Elements that are free.
    pub(super) fn available(&self) -> u32 {
        self.free.iter().map(|(start, end)| end - start).sum()
    }

    /// Gives a range back that was taken.
    pub(super) fn give_back(&mut self, range: Range<u32>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((before, before_end)) = self.free.range(..start).next_back()
            && *before_end == start
        {
            start = *before;
        }
        if let Some(after_end) = self.free.remove(&end) {
            end = after_end;
        }
        self.free.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_taken_is_taken_once_and_comes_back(
            steps in prop::collection::vec((0..2_u8, 1..20_u32), 0..60),
        ) {
            let mut pool = Pool::new(100);
            let mut taken: Vec<Range<u32>> = Vec::new();
            for (step, len) in steps {
                if step == 0 || taken.is_empty() {
                    if let Some(range) = pool.take(len) {
                        prop_assert!(taken.iter().all(|t| range.end <= t.start || t.end <= range.start));
                        prop_assert!(range.end <= 100 && range.len() == len as usize);
                        taken.push(range);
                    }
                } else {
                    let at = len as usize % taken.len();
                    pool.give_back(taken.swap_remove(at));
                }
                let held: u32 = taken.iter().map(|range| range.end - range.start).sum();
                prop_assert_eq!(pool.available(), 100 - held);
            }
            for range in taken {
                pool.give_back(range);
            }
            prop_assert_eq!(pool.take(100), Some(0..100));
        }
    }
}
