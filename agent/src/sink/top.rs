//! Functions by the samples that they have: the table beside a flamegraph.

use std::collections::HashMap;
use std::sync::Arc;

use profile::{Kind, Profile};

use super::flamegraph::{KERNEL_SUFFIX, names};

/// A function's samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name, as flamegraphs write it.
    pub name: Arc<str>,
    /// Samples in which it ran itself.
    pub own: u64,
    /// Samples in which it, or what it called, ran; one of a recursion counts once.
    pub total: u64,
}

/// Every function of the profile, the busiest first. All waits end in the scheduler: of those, what the
/// kernel does for a program's function is that function's own, and no function for itself.
#[must_use]
pub fn rows(profile: &Profile) -> Vec<Row> {
    let names: Vec<Vec<Arc<str>>> = profile
        .frames
        .iter()
        .map(|frame| names(profile, frame).into_iter().map(Arc::from).collect())
        .collect();
    let mut rows: HashMap<&Arc<str>, (u64, u64)> = HashMap::new();
    let mut met: Vec<&Arc<str>> = Vec::new();
    for sample in &profile.samples {
        met.clear();
        met.extend(
            sample
                .frames
                .iter()
                .filter_map(|at| names.get(*at))
                .flatten(),
        );
        if profile.kind == Kind::OffCpu
            && let Some(user) = met.iter().position(|name| !name.ends_with(KERNEL_SUFFIX))
        {
            met.drain(..user);
        }
        if let Some(leaf) = met.first() {
            rows.entry(leaf).or_default().0 += sample.count;
        }
        met.sort_unstable();
        met.dedup();
        for name in &met {
            rows.entry(name).or_default().1 += sample.count;
        }
    }
    let mut rows: Vec<Row> = rows
        .into_iter()
        .map(|(name, (own, total))| Row {
            name: Arc::clone(name),
            own,
            total,
        })
        .collect();
    rows.sort_by(|a, b| (b.own, b.total, &a.name).cmp(&(a.own, a.total, &b.name)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::profile_fixture::profile;

    #[test]
    fn waits_belong_to_the_function_that_called_the_kernel() {
        let mut profile = profile();
        profile.kind = Kind::OffCpu;
        let rows = rows(&profile);
        let own = |name: &str| {
            rows.iter()
                .find(|row| *row.name == *name)
                .map(|row| row.own)
        };
        assert_eq!(own("inlined"), Some(3));
        assert_eq!(own("vfs_read_[k]"), None);
        // A thread of the kernel has no function of a program.
        let kernel_only = profile.samples[0].frames[..1].to_vec();
        profile.samples[0].frames = kernel_only;
        assert_eq!(&*super::rows(&profile)[0].name, "vfs_read_[k]");
    }

    #[test]
    fn own_samples_are_the_leafs_and_totals_count_a_recursion_once() {
        let mut profile = profile();
        // `main` calls itself.
        profile.samples[0].frames.push(2);
        let rows = rows(&profile);
        let row = |name: &str| {
            let row = rows.iter().find(|row| *row.name == *name).unwrap();
            (row.own, row.total)
        };
        assert_eq!(row("vfs_read_[k]"), (3, 3));
        assert_eq!(row("inlined"), (0, 3));
        assert_eq!(row("main <&>; x"), (0, 4));
        assert_eq!(row("[shop;1]"), (1, 1));
        assert_eq!(&*rows[0].name, "vfs_read_[k]");
        assert_eq!(rows.iter().map(|row| row.own).sum::<u64>(), 4);
    }
}
