//! The profiler's thread: owns the sampler, runs the sessions.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ebpf_common::sample::SampleKey;

use super::session::{Begin, Session};
use super::unwind::Unwinder;
use super::{MAX_CONCURRENT, ProfileError};
use crate::probes::sampler::{Sampler, SamplerError, Targets};
use crate::process::ProcessTable;
use crate::symbolize::{ImageKey, Images};

/// How often new stacks are read: soon enough to find a process still there that lives shortly.
const TICK: Duration = Duration::from_millis(100);

/// How often counts are read.
const EPOCH: Duration = Duration::from_millis(500);

/// How long a profile waits for the unwind rows of the processes that it is of.
const PREPARATION: Duration = Duration::from_millis(300);

/// Most process images that a service name is kept for.
const MAX_SERVICES: usize = 8192;

/// See the module.
pub(super) struct Worker {
    sampler: Sampler,
    processes: Arc<ProcessTable>,
    sessions: Vec<Session>,
    known: Known,
    epoch: u32,
    epoch_began: Instant,
}

/// What was learned about sampled processes.
struct Known {
    images: Images,
    services: HashMap<ImageKey, Arc<str>>,
    unwinder: Unwinder,
}

impl Worker {
    /// Nothing is sampled yet.
    pub(super) fn new(sampler: Sampler, unwinder: Unwinder, processes: Arc<ProcessTable>) -> Self {
        let known = Known {
            images: Images::new("/proc"),
            services: HashMap::new(),
            unwinder,
        };
        Self {
            sampler,
            processes,
            sessions: Vec::new(),
            known,
            epoch: 0,
            epoch_began: Instant::now(),
        }
    }

    /// Works until nobody holds the other end of `requests`.
    pub(super) fn run(mut self, requests: &Receiver<Begin>) {
        loop {
            match self.next_request(requests) {
                Ok(begin) => self.begin(begin),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Err(error) = self.tick() {
                self.give_up(error);
            }
        }
    }

    /// Waits for a request, or for the next thing to do while there are sessions.
    fn next_request(&self, requests: &Receiver<Begin>) -> Result<Begin, RecvTimeoutError> {
        let next_end = self
            .sessions
            .iter()
            .map(Session::time_left)
            .filter(|left| !left.is_zero());
        match next_end.chain([TICK]).min() {
            Some(wait) if !self.sessions.is_empty() => requests.recv_timeout(wait),
            _ => requests
                .recv()
                .map_err(|mpsc::RecvError| RecvTimeoutError::Disconnected),
        }
    }

    fn begin(&mut self, begin: Begin) {
        if let Err(error) = self.admit(&begin) {
            // Whoever asked may have gone away.
            let _ = begin.answer.send(Err(error));
            return;
        }
        let period = Duration::from_secs(1) / begin.request.hz;
        let lost_before = self.sampler.lost_samples().unwrap_or_default();
        self.sessions.push(Session::new(begin, lost_before));
        let first = self.sessions.len() == 1;
        let started = self.retarget().and_then(|epoch| {
            if first {
                self.sampler.start(period)
            } else {
                Ok(())
            }
            .map(|()| epoch)
        });
        let Some(session) = self.sessions.pop() else {
            return;
        };
        match started {
            Ok(epoch) => self.sessions.push(session.begin_at(epoch)),
            Err(error) => session.fail(error.into()),
        }
    }

    /// May this request begin now?
    fn admit(&self, begin: &Begin) -> Result<(), ProfileError> {
        let left = self.sessions.iter().map(Session::time_left);
        if let Some(session) = self.sessions.iter().find(|s| s.hz() != begin.request.hz) {
            let wait = left.max().unwrap_or_default();
            return Err(ProfileError::OtherRate {
                hz: session.hz(),
                wait,
            });
        }
        if self.sessions.len() >= MAX_CONCURRENT {
            return Err(ProfileError::TooMany {
                wait: left.min().unwrap_or_default(),
            });
        }
        Ok(())
    }

    /// Reads what has come in; ends the sessions whose time is up.
    fn tick(&mut self) -> Result<(), SamplerError> {
        self.sessions.retain(|session| !session.is_abandoned());
        if self.sessions.is_empty() {
            self.rest();
            return Ok(());
        }
        let Self {
            sampler,
            known,
            processes,
            ..
        } = self;
        sampler.read_stacks(|key, user| known.observe(processes, key, user));
        if self
            .sessions
            .iter()
            .all(|s| s.has_ended() || s.time_left().is_zero())
        {
            return self.finish_all();
        }
        let mut ending = false;
        for session in &mut self.sessions {
            if !session.has_ended() && session.time_left().is_zero() {
                session.end(self.epoch);
            }
            ending |= session.has_ended();
        }
        if ending || self.epoch_began.elapsed() >= EPOCH {
            self.retarget()?;
            // While the clocks run, the two latest epochs are not read.
            self.read_counts()?;
            let read = self.epoch.saturating_sub(2);
            self.finish(|session| session.is_complete(read))?;
        }
        Ok(())
    }

    /// Every session's time is up: stops the clocks, so that all counts are final at once.
    fn finish_all(&mut self) -> Result<(), SamplerError> {
        self.sampler.stop();
        for session in &mut self.sessions {
            if !session.has_ended() {
                session.end(self.epoch);
            }
        }
        self.read_counts()?;
        self.finish(|_| true)?;
        self.rest();
        Ok(())
    }

    /// Samples what the sessions that have not ended want, in a new epoch.
    fn retarget(&mut self) -> Result<u32, SamplerError> {
        let lists_needed = self.sessions.iter().any(Session::needs_processes);
        let list = if lists_needed {
            self.processes.list()
        } else {
            Vec::new()
        };
        let mut pids = HashSet::new();
        let mut every = false;
        for session in self
            .sessions
            .iter_mut()
            .filter(|session| !session.has_ended())
        {
            match session.refresh_pids(&list) {
                Some(wanted) => pids.extend(wanted),
                None => every = true,
            }
        }
        let targets = if every {
            Targets::Every
        } else {
            self.known.unwinder.prepare(&pids, PREPARATION);
            Targets::Pids(pids)
        };
        self.epoch = self.sampler.set_targets(&targets)?;
        self.epoch_began = Instant::now();
        Ok(self.epoch)
    }

    fn read_counts(&mut self) -> Result<(), SamplerError> {
        let Self {
            sampler,
            known,
            processes,
            sessions,
            ..
        } = self;
        sampler.read_counts(
            |key, user| known.observe(processes, key, user),
            |sample| sessions.iter_mut().for_each(|session| session.add(&sample)),
        )
    }

    /// Hands over the sessions that are complete.
    fn finish(&mut self, complete: impl Fn(&Session) -> bool) -> Result<(), SamplerError> {
        let lost = self.sampler.lost_samples()?;
        let (done, rest) = self.sessions.drain(..).partition(complete);
        self.sessions = rest;
        let done: Vec<Session> = done;
        for session in done {
            session.finish(&self.known.images, &self.known.services, lost);
        }
        Ok(())
    }

    /// Nobody wants samples: stops the clocks and forgets the processes.
    fn rest(&mut self) {
        self.sampler.stop();
        // What nobody waited for must not be in the way of the next profile.
        if let Err(error) = self.sampler.read_counts(|_, _| (), |_| ()) {
            tracing::warn!(error = super::chain(&error), "samples were not read");
        }
        self.known.images.clear();
        self.known.services.clear();
    }

    /// The kernel side failed: everybody is told, and the next request tries again.
    fn give_up(&mut self, error: SamplerError) {
        tracing::error!(error = super::chain(&error), "the sampler failed");
        let error = Arc::new(error);
        for session in self.sessions.drain(..) {
            session.fail(ProfileError::Interrupted(Arc::clone(&error)));
        }
        self.rest();
    }
}

impl Known {
    /// Learns what has to be known of a sampled process before it ends.
    fn observe(&mut self, processes: &ProcessTable, key: &SampleKey, user: &[u64]) {
        let image = ImageKey {
            pid: key.pid,
            image: key.image,
        };
        self.images.observe(image, key.tid, user);
        self.unwinder.observe(key);
        if self.services.len() < MAX_SERVICES {
            self.services
                .entry(image)
                .or_insert_with(|| Arc::clone(&processes.lookup(key.pid).service));
        }
    }
}
