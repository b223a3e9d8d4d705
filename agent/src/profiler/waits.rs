//! An off-CPU profile that is being taken: one at a time.

use std::time::{Duration, Instant, SystemTime};

use profile::{Kind, Store};

use super::ProfileError;
use super::known::Known;
use super::labels::{Labels, split};
use super::session::{Answer, Collected, MAX_STACKS, stack, thread};
use super::target::{OtherWork, Selector, Target};
use crate::probes::off_cpu::Waits;
use crate::probes::sampler::{Sampler, SamplerError};

/// Off the CPU, counts are microseconds.
const PERIOD_NS: u64 = 1000;

/// See the module.
pub(super) struct WaitSession {
    selector: Selector,
    duration: Duration,
    answer: Answer,
    started: (SystemTime, Instant),
    skipped_before: u64,
}

impl WaitSession {
    /// Begins to measure waits of `min` and more. Whoever asked is told where that fails.
    pub(super) fn begin(
        selector: Selector,
        (duration, min): (Duration, Duration),
        answer: Answer,
        sampler: &mut Sampler,
    ) -> Option<Self> {
        let pid = match selector.target {
            Target::Pid(pid) => Some(pid),
            _ => None,
        };
        let begun = sampler
            .start_waits(Waits { pid, min })
            .and_then(|()| sampler.skipped_waits());
        match begun {
            Ok(skipped_before) => Some(Self {
                selector,
                duration,
                answer,
                started: (SystemTime::now(), Instant::now()),
                skipped_before,
            }),
            Err(error) => {
                // Whoever asked may have gone away.
                let _ = answer.send(Err(error.into()));
                None
            }
        }
    }

    /// How long it will still measure; nothing where nobody waits for it any more.
    pub(super) fn time_left(&self, now: Instant) -> Duration {
        if self.answer.is_closed() {
            return Duration::ZERO;
        }
        self.duration
            .saturating_sub(now.saturating_duration_since(self.started.1))
    }

    /// Ends it and hands over what was found.
    pub(super) fn finish(self, sampler: &mut Sampler, known: &mut Known, labels: &mut Labels) {
        let (started, begin) = self.started;
        let duration = begin.elapsed();
        let mut other = OtherWork::default();
        let found = Self::collect(&self.selector, sampler, known, labels, &mut other);
        let found = found.and_then(|(store, unknown)| {
            let skipped = sampler.skipped_waits()?.saturating_sub(self.skipped_before);
            let lost = skipped + unknown;
            // Of one process, nobody else's are measured.
            let (lost_samples, lost_on_host) = match self.selector.target {
                Target::Pid(_) if self.selector.is_of_all() => (lost, 0),
                _ => self.selector.share_of_lost(lost),
            };
            Ok(Collected {
                kind: Kind::OffCpu,
                started,
                duration,
                period_ns: PERIOD_NS,
                lost_samples,
                lost_on_host,
                dropped_samples: store.dropped(),
                request: known.request(store.into_counted()),
            })
        });
        let found = found.map_err(ProfileError::from).and_then(|collected| {
            let refusal = other.refusal(&self.selector.work);
            match refusal.filter(|_| collected.request.counted.is_empty()) {
                Some(refusal) => Err(refusal),
                None => Ok(collected),
            }
        });
        let _ = self.answer.send(found);
    }

    fn collect(
        selector: &Selector,
        sampler: &mut Sampler,
        known: &mut Known,
        labels: &mut Labels,
        other: &mut OtherWork,
    ) -> Result<(Store, u64), SamplerError> {
        let mut store = Store::new(MAX_STACKS);
        let stopped = sampler.stop_waits()?;
        labels.settle(sampler, known)?;
        let parts = labels.take_waits();
        let unknown = sampler.read_waits(stopped, |sample| {
            split(&parts, sample, PERIOD_NS, |sample| {
                let thread = thread(sample);
                if selector.includes(&thread, known.identity(&thread), other) {
                    store.add(thread, stack(sample), sample.count);
                }
            });
        });
        Ok((store, unknown))
    }
}
