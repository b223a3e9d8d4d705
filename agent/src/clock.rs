//! From the kernel's clock to the calendar.
//!
//! The kernel programs stamp events with `bpf_ktime_get_ns`, which is `CLOCK_MONOTONIC`: it knows
//! no date, and it stands still while the machine sleeps. Spans need wall-clock times, so the
//! difference between the two clocks is measured, and measured again each second, because NTP and
//! administrators step the one and suspends stop the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ebpf_common::connection::busy_ticks;
use rustix::time::{ClockId, clock_getres, clock_gettime};

/// How old the measured difference may be before it is measured again.
const REFRESH_AFTER_NS: u64 = 1_000_000_000;

/// Readings a measurement takes; the tightest one counts.
const READINGS: usize = 3;

/// `CLOCK_MONOTONIC` now, nanoseconds: the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// How long the kernel's timer ticks are.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    tick_ns: u64,
}

impl Ticks {
    /// Of the running kernel: `CLOCK_MONOTONIC_COARSE` moves on with each tick
    /// (kernel/time/posix-timers.c, `posix_get_coarse_res`).
    #[must_use]
    pub fn of_kernel() -> Self {
        let tick = clock_getres(ClockId::MonotonicCoarse);
        Self {
            tick_ns: u64::try_from(tick.tv_nsec).unwrap_or_default(),
        }
    }

    /// What the kernel side tells of acknowledgements, as nanoseconds; `None` where that is no sum.
    #[must_use]
    pub fn busy_ns(self, ticks: u32) -> Option<u64> {
        let is_sum = !matches!(ticks, busy_ticks::UNASKED | busy_ticks::STILL_BUSY);
        is_sum.then(|| u64::from(ticks) * self.tick_ns)
    }
}

/// Converts kernel times to wall-clock times. Clones share the measured difference.
#[derive(Clone, Debug)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`.
    offset_ns: AtomicI64,
    /// `CLOCK_MONOTONIC` of the last measurement.
    measured_at_ns: AtomicU64,
}

impl Clock {
    /// Measures the difference between the two clocks for the first time.
    #[must_use]
    pub fn new() -> Self {
        let clock = Self {
            shared: Arc::new(Shared {
                offset_ns: AtomicI64::new(0),
                measured_at_ns: AtomicU64::new(0),
            }),
        };
        clock.refresh();
        clock
    }

    /// The wall-clock time of `at_ns`, a reading of `CLOCK_MONOTONIC` in nanoseconds. Measures the
    /// difference again when the last measurement is older than a second.
    #[must_use]
    pub fn wall_time(&self, at_ns: u64) -> SystemTime {
        let now_ns = monotonic_ns();
        // Relaxed: the two values are independent enough; a reader that sees one a moment late is
        // off by what NTP slews in that moment.
        if now_ns.saturating_sub(self.shared.measured_at_ns.load(Ordering::Relaxed))
            > REFRESH_AFTER_NS
        {
            self.refresh();
        }
        self.convert(at_ns)
    }

    /// Measures the difference between the clocks now.
    pub fn refresh(&self) {
        // A reading of one clock between two readings of the other is off by at most their gap, so
        // that the reading with the smallest gap is the best (the thread may be preempted in any).
        let mut best: Option<(u64, i64, u64)> = None;
        for _ in 0..READINGS {
            let before = nanoseconds(ClockId::Monotonic);
            let wall = nanoseconds(ClockId::Realtime);
            let after = nanoseconds(ClockId::Monotonic);
            let gap = after.saturating_sub(before);
            if best.is_none_or(|(smallest, ..)| gap < smallest) {
                best = Some((
                    gap,
                    wall.wrapping_sub(before + gap / 2).cast_signed(),
                    after,
                ));
            }
        }
        if let Some((_, offset_ns, measured_at_ns)) = best {
            self.shared.offset_ns.store(offset_ns, Ordering::Relaxed);
            self.shared
                .measured_at_ns
                .store(measured_at_ns, Ordering::Relaxed);
        }
    }

    fn convert(&self, at_ns: u64) -> SystemTime {
        let wall_ns = at_ns.saturating_add_signed(self.shared.offset_ns.load(Ordering::Relaxed));
        UNIX_EPOCH + Duration::from_nanos(wall_ns)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Neither clock is ever negative on a machine that booted after 1970.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_is_now() {
        let clock = Clock::new();
        let before = SystemTime::now();
        let told = clock.wall_time(monotonic_ns());
        let after = SystemTime::now();
        let slack = Duration::from_millis(2);
        assert!(
            told + slack >= before && told <= after + slack,
            "{before:?} {told:?} {after:?}"
        );
    }

    #[test]
    fn differences_are_kept_to_the_nanosecond() {
        let clock = Clock::new();
        let at = monotonic_ns();
        let apart = clock
            .convert(at)
            .duration_since(clock.convert(at - 1_234_567))
            .unwrap();
        assert_eq!(apart, Duration::from_nanos(1_234_567));
    }

    #[test]
    fn a_stale_difference_is_measured_again() {
        let clock = Clock::new();
        // As after a step of the wall clock by an hour that happened two seconds ago.
        let right = clock
            .shared
            .offset_ns
            .fetch_add(3_600_000_000_000, Ordering::Relaxed);
        clock
            .shared
            .measured_at_ns
            .fetch_sub(2 * REFRESH_AFTER_NS, Ordering::Relaxed);
        let _ = clock.wall_time(monotonic_ns());
        let error_ns = clock.shared.offset_ns.load(Ordering::Relaxed) - right;
        assert!(error_ns.abs() < 5_000_000, "{error_ns} ns off");
    }

    #[test]
    fn times_before_the_epoch_do_not_panic() {
        let clock = Clock::new();
        clock.shared.offset_ns.store(-5, Ordering::Relaxed);
        assert_eq!(clock.convert(0), UNIX_EPOCH);
    }
}
