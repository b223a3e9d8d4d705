//! The attached programs: their run-time statistics, and their end.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::ProgramError;
use aya::sys::{Stats, enable_stats};

use super::arrivals::ArrivalWindows;
use super::load::ArrivalVariant;
use crate::config::Sampling;

/// How long the statistics are on at a time, and how often, where they are sampled.
const WINDOW: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_secs(10);

/// Owns the attached programs. Dropping it detaches them, also where somebody still holds a
/// [`RunStatistics`].
pub struct Programs {
    ebpf: Arc<Mutex<Option<Ebpf>>>,
}

/// How often each program ran and for how long, by the kernel's own measure.
///
/// The measure takes as long as a fifth of what it measures, so that it is on a tenth of the time,
/// unless it is wanted always: what is told then is what was measured times ten.
#[derive(Clone)]
pub struct RunStatistics {
    ebpf: Arc<Mutex<Option<Ebpf>>>,
    estimate: Arc<Mutex<Estimate>>,
    mode: Sampling,
    /// Keeps the measure on, where it is wanted always and the agent may turn it on.
    _always: Option<Arc<OwnedFd>>,
}

/// What is known so far.
#[derive(Default)]
struct Estimate {
    /// What the kernel said when the window began: somebody else may have it measure as well.
    at_start: HashMap<String, (u64, u64)>,
    /// What we say: runs and nanoseconds.
    totals: HashMap<String, (f64, f64)>,
    /// When the last window ended.
    until: Option<Instant>,
    /// The agent may not turn the measure on; the node may have it on all the time
    /// (`kernel.bpf_stats_enabled`).
    is_refused: bool,
}

impl Programs {
    /// Takes over an object whose programs are attached.
    #[must_use]
    pub fn new(ebpf: Ebpf) -> Self {
        Self {
            ebpf: Arc::new(Mutex::new(Some(ebpf))),
        }
    }

    /// Begins to watch arrivals by the verified program of that name; goes on as long as
    /// [`ArrivalWindows::run`] is polled.
    ///
    /// # Errors
    /// Where it cannot be attached.
    pub fn watch_arrivals(
        &self,
        program: ArrivalVariant,
        mode: Sampling,
    ) -> Result<ArrivalWindows, ProgramError> {
        ArrivalWindows::begin(Arc::clone(&self.ebpf), program, mode)
    }

    /// The kernel's own statistics of these programs: on from now on where they are wanted always,
    /// else as long as [`RunStatistics::run`] is polled.
    #[must_use]
    pub fn run_statistics(&self, mode: Sampling) -> RunStatistics {
        RunStatistics {
            ebpf: Arc::clone(&self.ebpf),
            estimate: Arc::default(),
            mode,
            _always: (mode == Sampling::Always)
                .then(enable)
                .flatten()
                .map(Arc::new),
        }
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.ebpf
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

impl RunStatistics {
    /// Turns the kernel's statistics on and off where they are sampled, for as long as it is polled.
    pub async fn run(self) {
        if self.mode != Sampling::Sampled {
            return;
        }
        let mut next = tokio::time::interval(PERIOD);
        loop {
            next.tick().await;
            let Some(enabled) = enable() else {
                let mut estimate = self.estimate.lock().unwrap_or_else(PoisonError::into_inner);
                estimate.is_refused = true;
                return;
            };
            self.begin_window();
            tokio::time::sleep(WINDOW).await;
            drop(enabled);
            self.end_window();
        }
    }

    /// Name, runs and run time in nanoseconds of each loaded program. Zero where the statistics
    /// are off; empty after the end.
    #[must_use]
    pub fn read(&self) -> Vec<(String, u64, u64)> {
        let mut programs = self.of_kernel();
        let estimate = self.estimate.lock().unwrap_or_else(PoisonError::into_inner);
        if self.mode == Sampling::Sampled && !estimate.is_refused {
            for (name, runs, ns) in &mut programs {
                let (known_runs, known_ns) = estimate.totals.get(name).copied().unwrap_or_default();
                (*runs, *ns) = (known_runs as u64, known_ns as u64);
            }
        }
        programs
    }

    /// Runs that the kernel left out since the programs were loaded, because the same program was
    /// under way on that CPU: from 7.0 on a task may be preempted in the middle of one.
    #[must_use]
    pub fn missed_runs(&self) -> u64 {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = ebpf.iter().flat_map(Ebpf::programs);
        programs
            .filter_map(|(_, program)| {
                let descriptor = program.fd().ok()?.as_fd().as_raw_fd();
                let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"));
                recursion_misses(&info.ok()?)
            })
            .sum()
    }

    fn begin_window(&self) {
        let programs = self.of_kernel().into_iter();
        let mut estimate = self.estimate.lock().unwrap_or_else(PoisonError::into_inner);
        estimate.at_start = programs
            .map(|(name, runs, ns)| (name, (runs, ns)))
            .collect();
    }

    /// Takes in what one window showed, for all the time since the one before.
    fn end_window(&self) {
        let programs = self.of_kernel();
        let mut estimate = self.estimate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let elapsed = estimate.until.map_or(WINDOW, |until| now - until);
        estimate.until = Some(now);
        estimate.take(programs, elapsed.as_secs_f64() / WINDOW.as_secs_f64());
    }

    fn of_kernel(&self) -> Vec<(String, u64, u64)> {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = ebpf.iter().flat_map(Ebpf::programs);
        programs
            .filter_map(|(name, program)| {
                // A program that this kernel did not take has no information.
                let info = program.info().ok()?;
                let run_ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                Some((name.to_owned(), info.run_count(), run_ns))
            })
            .collect()
    }
}

impl Estimate {
    /// What the kernel says at the end of a window, of which the part that is new stands for
    /// `scale` times as much.
    fn take(&mut self, programs: Vec<(String, u64, u64)>, scale: f64) {
        for (name, runs, ns) in programs {
            let (runs_before, ns_before) = self.at_start.get(&name).copied().unwrap_or_default();
            let total = self.totals.entry(name).or_default();
            total.0 += runs.saturating_sub(runs_before) as f64 * scale;
            total.1 += ns.saturating_sub(ns_before) as f64 * scale;
        }
    }
}

/// `recursion_misses` of a program's `/proc/PID/fdinfo` (5.12 and newer).
fn recursion_misses(info: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))?;
    line.trim().parse().ok()
}

/// Turns the kernel's statistics on until the descriptor is dropped.
fn enable() -> Option<OwnedFd> {
    enable_stats(Stats::RunTime)
        .inspect_err(|error| tracing::warn!(%error, "no run-time statistics of kernel programs"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_runs_are_read_from_the_descriptor() {
        let info = "pos:\t0\nprog_type:\t26\nrecursion_misses:\t17\nverified_insns:\t5\n";
        assert_eq!(recursion_misses(info), Some(17));
        assert_eq!(recursion_misses("pos:\t0\n"), None);
    }

    #[test]
    fn a_window_stands_for_the_time_since_the_last_one() {
        let mut estimate = Estimate::default();
        estimate.take(vec![("tap".into(), 100, 5_000)], 1.0);
        estimate.at_start.insert("tap".into(), (120, 6_000));
        estimate.take(
            vec![("tap".into(), 170, 8_000), ("late".into(), 2, 10)],
            10.0,
        );
        assert_eq!(estimate.totals["tap"], (600.0, 25_000.0));
        assert_eq!(estimate.totals["late"], (20.0, 100.0));
    }
}
