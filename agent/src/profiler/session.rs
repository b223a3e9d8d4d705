//! A profile that is being taken.

use std::time::{Duration, Instant, SystemTime};

use ebpf_common::sample::stack_flags;
use profile::{Kind, StackEnd, StackTrace, Store, Thread};
use tokio::sync::oneshot;

use super::ProfileError;
use super::known::Known;
use super::target::{OtherWork, Selector};
use super::thin::Thin;
use crate::probes::sampler::RawSample;
use crate::symbolize::{ImageKey, Request};

/// Most different stacks of one profile: some 30 MB of them.
pub(super) const MAX_STACKS: usize = 50_000;

/// Where an answer goes.
pub(super) type Answer = oneshot::Sender<Result<Collected, ProfileError>>;

/// Everything that was sampled for one request.
#[derive(Debug)]
pub(super) struct Collected {
    /// The stacks and what is needed to resolve them.
    pub(super) request: Request,
    /// When sampling began.
    pub(super) started: SystemTime,
    /// How long it lasted.
    pub(super) duration: Duration,
    /// What was counted.
    pub(super) kind: Kind,
    /// What one count stands for, nanoseconds.
    pub(super) period_ns: u64,
    /// Samples of the selection that were taken and then lost before they came here.
    pub(super) lost_samples: u64,
    /// See [`profile::Profile::lost_on_host`].
    pub(super) lost_on_host: u64,
    /// Samples of stacks beyond those that one profile can have.
    pub(super) dropped_samples: u64,
}

/// A profile that is being taken.
pub(super) struct Session {
    selector: Selector,
    duration: Duration,
    hz: u32,
    answer: Answer,
    store: Store,
    thin: Thin,
    started: (SystemTime, Instant),
    lost_before: u64,
    /// Work that was not asked for.
    other: OtherWork,
}

impl Session {
    /// A session that has not begun to sample.
    pub(super) fn new(selector: Selector, duration: Duration, hz: u32, answer: Answer) -> Self {
        Self {
            selector,
            duration,
            hz,
            answer,
            store: Store::new(MAX_STACKS),
            thin: Thin::to(hz),
            started: (SystemTime::now(), Instant::now()),
            lost_before: 0,
            other: OtherWork::default(),
        }
    }

    /// Begins now. So far the kernel side has lost `lost` samples.
    pub(super) fn begin(&mut self, lost: u64) {
        self.started = (SystemTime::now(), Instant::now());
        self.lost_before = lost;
    }

    /// What it is made of.
    pub(super) fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The rate that was asked for.
    pub(super) fn hz(&self) -> u32 {
        self.hz
    }

    /// How long it will still sample.
    pub(super) fn time_left(&self, now: Instant) -> Duration {
        self.duration
            .saturating_sub(now.saturating_duration_since(self.started.1))
    }

    /// Is nobody there any more who waits for it?
    pub(super) fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    /// Takes in a sample of clocks that run at `clock_hz`, if it is one of its own.
    pub(super) fn add(&mut self, sample: &RawSample<'_>, known: &Known, clock_hz: u32) {
        let thread = thread(sample);
        let identity = known.identity(&thread);
        if self.selector.includes(&thread, identity, &mut self.other) {
            let count = self.thin.keep(sample.count, clock_hz);
            if count > 0 {
                self.store.add(thread, stack(sample), count);
            }
        }
    }

    /// Processes that it has samples of.
    pub(super) fn images(&self) -> impl Iterator<Item = ImageKey> {
        self.store.threads().map(ImageKey::of)
    }

    /// Hands over what was collected until `now`.
    pub(super) fn finish(self, known: &mut Known, lost_now: u64, now: Instant) {
        let lost = lost_now.saturating_sub(self.lost_before);
        let (lost_samples, lost_on_host) = self.selector.share_of_lost(lost);
        let dropped_samples = self.store.dropped();
        let (started, begin) = self.started;
        let counted = self.store.into_counted();
        let refusal = self.other.refusal(&self.selector.work);
        let collected = match refusal.filter(|_| counted.is_empty()) {
            Some(refusal) => Err(refusal),
            None => Ok(Collected {
                request: known.request(counted),
                started,
                duration: now.saturating_duration_since(begin),
                kind: Kind::Cpu,
                period_ns: period_ns(self.hz),
                lost_samples,
                lost_on_host,
                dropped_samples,
            }),
        };
        // Whoever asked may have gone away.
        let _ = self.answer.send(collected);
    }

    /// Hands over the reason why there is nothing.
    pub(super) fn fail(self, error: ProfileError) {
        let _ = self.answer.send(Err(error));
    }
}

/// CPU time that a sample stands for, nanoseconds.
pub(super) fn period_ns(hz: u32) -> u64 {
    1_000_000_000 / u64::from(hz)
}

/// Whose sample it is.
pub(super) fn thread(sample: &RawSample<'_>) -> Thread {
    let key = sample.key;
    let name = key.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    Thread {
        pid: key.pid,
        tid: key.tid,
        image: key.image,
        name: String::from_utf8_lossy(name).into(),
        work: sample.work.clone(),
    }
}

/// Its stack.
pub(super) fn stack(sample: &RawSample<'_>) -> StackTrace {
    let flags = sample.key.flags;
    StackTrace {
        kernel: sample.kernel.into(),
        user: sample.user.into(),
        truncated: flags & stack_flags::KERNEL_TRUNCATED != 0,
        end: StackEnd::of_flags(flags),
        by_frame_pointer: flags & stack_flags::BY_FRAME_POINTER != 0,
        interpreter_missing: sample.interpreter_missing,
        python_read: flags & stack_flags::PYTHON_READ != 0,
        scripts_read: flags & stack_flags::SCRIPTS_READ != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ebpf_common::sample::SampleKey;
    use profile::Work;

    use super::*;
    use crate::process::ProcessTable;
    use crate::profiler::target::Target;
    use crate::profiler::unwind::Unwinder;

    type Receiver = oneshot::Receiver<Result<Collected, ProfileError>>;

    fn session(target: Target) -> (Session, Receiver) {
        let (answer, collected) = oneshot::channel();
        let mut session = Session::new(target.into(), Duration::from_secs(1), 99, answer);
        session.begin(100);
        (session, collected)
    }

    fn known() -> Known {
        Known::new(Arc::new(ProcessTable::default()), Unwinder::idle())
    }

    fn add(session: &mut Session, pid: u32, count: u64, clock_hz: u32) {
        let key = SampleKey {
            stack_hash: [0; 2],
            image: 1,
            pid,
            tid: pid,
            epoch: 1,
            flags: stack_flags::KERNEL_TRUNCATED,
            comm: *b"worker\0\0\0\0\0\0\0\0\0\0",
        };
        let sample = RawSample {
            interpreter_missing: false,
            key: &key,
            kernel: &[1],
            user: &[2],
            count,
            work: Work::default(),
        };
        session.add(&sample, &known(), clock_hz);
    }

    fn finished(session: Session, mut collected: Receiver) -> Collected {
        session.finish(&mut known(), 103, Instant::now());
        collected.try_recv().unwrap().unwrap()
    }

    #[test]
    fn samples_of_faster_clocks_are_thinned() {
        let (mut session, collected) = session(Target::All);
        add(&mut session, 1, 10, 99);
        add(&mut session, 1, 990, 990);
        let collected = finished(session, collected);
        assert_eq!(collected.request.counted[0].count, 10 + 99);
        assert_eq!((collected.lost_samples, collected.lost_on_host), (3, 0));
    }

    #[test]
    fn samples_of_other_processes_are_left_to_other_sessions() {
        let (mut session, collected) = session(Target::Pid(7));
        add(&mut session, 7, 1, 99);
        add(&mut session, 8, 1, 99);
        let collected = finished(session, collected);
        // Whose they were is not known.
        assert_eq!((collected.lost_samples, collected.lost_on_host), (0, 3));
        let counted = collected.request.counted;
        assert_eq!(counted.len(), 1);
        assert_eq!(
            (counted[0].thread.pid, &*counted[0].thread.name),
            (7, "worker")
        );
        assert!(counted[0].stack.truncated);
    }

    #[test]
    fn a_session_that_nobody_waits_for_is_abandoned() {
        let (session, collected) = session(Target::All);
        assert!(!session.is_abandoned());
        drop(collected);
        assert!(session.is_abandoned());
    }
}
