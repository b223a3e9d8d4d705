//! A profile that is being taken.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ebpf_common::sample::{SampleKey, stack_flags};
use profile::{StackEnd, StackTrace, Store, Thread};
use tokio::sync::oneshot;

use super::{ProfileError, ProfileRequest, Target};
use crate::probes::sampler::RawSample;
use crate::process;
use crate::symbolize::{ImageKey, Images, Request};

/// Most different stacks of one profile: some 30 MB of them.
const MAX_STACKS: usize = 50_000;

/// A request on its way to the profiler's thread.
pub(super) struct Begin {
    /// What is asked for; validated.
    pub(super) request: ProfileRequest,
    /// Where the answer goes.
    pub(super) answer: oneshot::Sender<Result<Collected, ProfileError>>,
}

/// Everything that was sampled for one request.
#[derive(Debug)]
pub(super) struct Collected {
    /// The stacks and what is needed to resolve them.
    pub(super) request: Request,
    /// When sampling began.
    pub(super) started: SystemTime,
    /// How long it lasted.
    pub(super) duration: Duration,
    /// Samples that were taken and then lost.
    pub(super) lost_samples: u64,
}

/// A profile that is being taken.
pub(super) struct Session {
    begin: Begin,
    /// Pids that were ever sampled for this session; empty for [`Target::All`].
    pids: HashSet<u32>,
    store: Store,
    first_epoch: u32,
    /// Set when the time is up.
    last_epoch: Option<u32>,
    started: (SystemTime, Instant),
    ended: Option<Instant>,
    lost_before: u64,
}

impl Session {
    /// A session that has not begun to sample.
    pub(super) fn new(begin: Begin, lost_before: u64) -> Self {
        Self {
            begin,
            pids: HashSet::new(),
            store: Store::new(MAX_STACKS),
            first_epoch: 0,
            last_epoch: None,
            started: (SystemTime::now(), Instant::now()),
            ended: None,
            lost_before,
        }
    }

    /// Begins now; its first samples are those of `first_epoch`.
    pub(super) fn begin_at(mut self, first_epoch: u32) -> Self {
        self.first_epoch = first_epoch;
        self.started = (SystemTime::now(), Instant::now());
        self
    }

    /// The rate that was asked for.
    pub(super) fn hz(&self) -> u32 {
        self.begin.request.hz
    }

    /// How long it will still sample.
    pub(super) fn time_left(&self) -> Duration {
        self.begin
            .request
            .duration
            .saturating_sub(self.started.1.elapsed())
    }

    /// Is nobody there any more who waits for it?
    pub(super) fn is_abandoned(&self) -> bool {
        self.begin.answer.is_closed()
    }

    /// Is the time up?
    pub(super) fn has_ended(&self) -> bool {
        self.last_epoch.is_some()
    }

    /// Takes no samples of epochs after `last_epoch`.
    pub(super) fn end(&mut self, last_epoch: u32) {
        self.last_epoch = Some(last_epoch);
        self.ended = Some(Instant::now());
    }

    /// Has every count been read that belongs to it, when those of epochs up to `epoch` have?
    pub(super) fn is_complete(&self, epoch: u32) -> bool {
        self.last_epoch.is_some_and(|last| last <= epoch)
    }

    /// Looks anew which processes are meant, among those that are known; `None` means all.
    pub(super) fn refresh_pids(&mut self, known: &[process::Target]) -> Option<&HashSet<u32>> {
        match &self.begin.request.target {
            Target::All => return None,
            // It may not be known yet.
            Target::Pid(pid) => {
                self.pids.insert(*pid);
            }
            target => {
                let processes = known.iter().map(|listed| &listed.process);
                let meant = processes.filter(|process| target.includes(process));
                self.pids.extend(meant.map(|process| process.pid));
            }
        }
        Some(&self.pids)
    }

    /// Must the list of processes be known to say what is meant?
    pub(super) fn needs_processes(&self) -> bool {
        matches!(
            self.begin.request.target,
            Target::Service(_) | Target::Container(_)
        )
    }

    /// Takes in a sample, if it is one of its own.
    pub(super) fn add(&mut self, sample: &RawSample<'_>) {
        let key = sample.key;
        let in_time =
            self.first_epoch <= key.epoch && self.last_epoch.is_none_or(|last| key.epoch <= last);
        let meant =
            matches!(self.begin.request.target, Target::All) || self.pids.contains(&key.pid);
        if in_time && meant {
            self.store.add(thread(key), stack(sample), sample.count);
        }
    }

    /// Hands over what was collected.
    pub(super) fn finish(
        self,
        images: &Images,
        services: &HashMap<ImageKey, Arc<str>>,
        lost_now: u64,
    ) {
        let lost_samples = lost_now.saturating_sub(self.lost_before) + self.store.dropped();
        let counted = self.store.into_counted();
        let keys: HashSet<_> = counted
            .iter()
            .map(|counted| ImageKey::of(&counted.thread))
            .collect();
        let of_keys = |key: &ImageKey| keys.contains(key);
        let request = Request {
            images: keys
                .iter()
                .filter_map(|key| Some((*key, images.get(*key)?.clone())))
                .collect(),
            services: services
                .iter()
                .filter(|(key, _)| of_keys(key))
                .map(|(key, service)| (*key, Arc::clone(service)))
                .collect(),
            counted,
        };
        let (started, begin) = self.started;
        let duration = self
            .ended
            .unwrap_or_else(Instant::now)
            .duration_since(begin);
        // Whoever asked may have gone away.
        let _ = self.begin.answer.send(Ok(Collected {
            request,
            started,
            duration,
            lost_samples,
        }));
    }

    /// Hands over the reason why there is nothing.
    pub(super) fn fail(self, error: ProfileError) {
        let _ = self.begin.answer.send(Err(error));
    }
}

fn thread(key: &SampleKey) -> Thread {
    let name = key.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    Thread {
        pid: key.pid,
        tid: key.tid,
        image: key.image,
        name: String::from_utf8_lossy(name).into(),
    }
}

fn stack(sample: &RawSample<'_>) -> StackTrace {
    let flags = sample.key.flags;
    StackTrace {
        kernel: sample.kernel.into(),
        user: sample.user.into(),
        truncated: flags & stack_flags::KERNEL_TRUNCATED != 0,
        end: StackEnd::of_flags(flags),
        by_frame_pointer: flags & stack_flags::BY_FRAME_POINTER != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(target: Target) -> (Session, oneshot::Receiver<Result<Collected, ProfileError>>) {
        let (answer, collected) = oneshot::channel();
        let request = ProfileRequest {
            target,
            duration: Duration::from_secs(1),
            hz: 99,
        };
        (
            Session::new(Begin { request, answer }, 100).begin_at(5),
            collected,
        )
    }

    fn sample(pid: u32, epoch: u32) -> SampleKey {
        SampleKey {
            stack_hash: [0; 2],
            image: 1,
            pid,
            tid: pid,
            epoch,
            flags: stack_flags::KERNEL_TRUNCATED,
            comm: *b"worker\0\0\0\0\0\0\0\0\0\0",
        }
    }

    fn add(session: &mut Session, pid: u32, epoch: u32, count: u64) {
        session.add(&RawSample {
            key: &sample(pid, epoch),
            kernel: &[1],
            user: &[2],
            count,
        });
    }

    fn finished(
        session: Session,
        mut collected: oneshot::Receiver<Result<Collected, ProfileError>>,
    ) -> Collected {
        session.finish(&Images::new("/proc"), &HashMap::new(), 103);
        collected.try_recv().unwrap().unwrap()
    }

    #[test]
    fn samples_count_from_the_first_epoch_to_the_last() {
        let (mut session, collected) = session(Target::All);
        for epoch in 3..10 {
            if epoch == 7 {
                session.end(7);
            }
            add(&mut session, 1, epoch, 10_u64.pow(epoch));
        }
        assert!(!session.is_complete(6) && session.is_complete(7));
        let collected = finished(session, collected);
        assert_eq!(collected.request.counted[0].count, 11_100_000);
        assert_eq!(collected.lost_samples, 3);
    }

    #[test]
    fn samples_of_other_processes_are_left_to_other_sessions() {
        let (mut session, collected) = session(Target::Pid(7));
        session.refresh_pids(&[]);
        add(&mut session, 7, 5, 1);
        add(&mut session, 8, 5, 1);
        let counted = finished(session, collected).request.counted;
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
