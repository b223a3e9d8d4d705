//! The profiler's thread: owns the sampler, runs the sessions and the recorder.
//!
//! There is one set of clocks, which runs at the highest rate that anybody asks for; whoever asked
//! for less gets its samples thinned. Time is cut into *turns*: at each, what was sampled so far
//! becomes final and is handed to those who want it, and what is sampled next is settled anew.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use profile::Kind;

use super::error::chain;
use super::known::Known;
use super::labels::{Labels, RequestSource, split};
use super::recorder::{Continuous, Recorder};
use super::session::{Answer, Collected, Session, period_ns};
use super::target::{OtherWork, Selector, Target};
use super::unwind::Unwinder;
use super::waits::WaitSession;
use super::{MAX_CONCURRENT, ProfileError};
use crate::probes::sampler::{Sampler, SamplerError, Targets};
use crate::process::ProcessTable;
use crate::self_metrics::ProfileSamples;
use crate::symbolize::ImageKey;

/// How often new stacks are read: soon enough to find a process still there that lives shortly.
const TICK: Duration = Duration::from_millis(100);

/// Longest turn.
const LONGEST_TURN: Duration = Duration::from_secs(10);

/// Shortest turn that nobody asked for.
const SHORTEST_TURN: Duration = Duration::from_millis(250);

/// Counts that a turn may take: half of what the kernel's map holds, when no two stacks are alike.
const COUNTS_A_TURN: u64 = 8192;

/// The clocks never run slower: a profile of a second at 1 Hz would often have no sample at all,
/// because the first one comes a period after the start.
const LEAST_CLOCK_HZ: u32 = 19;

/// How long continuous profiling rests after the sampler failed.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(300);

/// How often processes that nobody has samples of any more are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// What is asked of the profiler's thread.
pub(super) enum Message {
    /// A profile from now on.
    Begin {
        selector: Selector,
        duration: Duration,
        hz: u32,
        answer: Answer,
    },
    /// One of waits that begin from now on.
    Waits {
        selector: Selector,
        duration: Duration,
        min: Duration,
        answer: Answer,
    },
    /// One of what is kept.
    Past {
        selector: Selector,
        from: SystemTime,
        to: SystemTime,
        answer: Answer,
    },
}

/// What the clocks are to do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    hz: u32,
    targets: Targets,
}

/// See the module.
pub(super) struct Worker {
    sampler: Sampler,
    known: Known,
    labels: Labels,
    sessions: Vec<Session>,
    waits: Option<WaitSession>,
    recorder: Option<Recorder>,
    /// What the clocks do; `None` while they stand still.
    running: Option<Plan>,
    turned: Instant,
    forgot: Instant,
    /// Continuous profiling rests until then.
    resting_until: Option<Instant>,
    cpus: u64,
    samples: Option<ProfileSamples>,
}

impl Worker {
    /// Nothing is sampled yet.
    pub(super) fn new(
        sampler: Sampler,
        unwinder: Unwinder,
        processes: Arc<ProcessTable>,
        continuous: Option<Continuous>,
        requests: Option<RequestSource>,
    ) -> Self {
        let now = Instant::now();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            sampler,
            known: Known::new(processes, unwinder),
            labels: Labels::new(requests),
            sessions: Vec::new(),
            waits: None,
            recorder: continuous.map(Recorder::new),
            running: None,
            turned: now,
            forgot: now,
            resting_until: None,
            cpus: cpus as u64,
            samples: None,
        }
    }

    /// The same, but what is lost on the way is counted there.
    pub(super) fn counting(self, samples: Option<ProfileSamples>) -> Self {
        Self { samples, ..self }
    }

    /// Works until nobody holds the other end of `messages`.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let done = self.tick();
            self.settle(done);
            let message = match self.next_wait() {
                Some(wait) => messages.recv_timeout(wait),
                None => messages
                    .recv()
                    .map_err(|mpsc::RecvError| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// How long until there is something to do; `None` while only a message can bring it.
    fn next_wait(&self) -> Option<Duration> {
        let now = Instant::now();
        if self.running.is_none() && self.waits.is_none() {
            return self
                .resting_until
                .map(|until| until.saturating_duration_since(now));
        }
        let next_end = self.sessions.iter().map(|session| session.time_left(now));
        let waits_end = self.waits.iter().map(|waits| waits.time_left(now));
        next_end.chain(waits_end).chain([TICK]).min()
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Begin {
                selector,
                duration,
                hz,
                answer,
            } => self.begin(Session::new(selector, duration, hz, answer)),
            Message::Waits {
                selector,
                duration,
                min,
                answer,
            } => self.begin_waits(selector, (duration, min), answer),
            Message::Past {
                selector,
                from,
                to,
                answer,
            } => {
                let found = self.past(&selector, from, to);
                // Whoever asked may have gone away.
                let _ = answer.send(found);
            }
        }
    }

    fn begin(&mut self, mut session: Session) {
        if self.sessions.len() >= MAX_CONCURRENT {
            let now = Instant::now();
            let left = self.sessions.iter().map(|session| session.time_left(now));
            let wait = left.min().unwrap_or_default();
            return session.fail(ProfileError::TooMany { wait });
        }
        self.prepare(session.selector());
        let begun = self
            .turn(Some(&session))
            .and_then(|()| self.sampler.lost_samples());
        match begun {
            Ok(lost) => {
                session.begin(lost);
                self.sessions.push(session);
            }
            Err(error) => {
                session.fail(error.into());
                self.rest();
            }
        }
    }

    fn begin_waits(&mut self, selector: Selector, times: (Duration, Duration), answer: Answer) {
        if let Some(waits) = &self.waits {
            let wait = waits.time_left(Instant::now());
            let _ = answer.send(Err(ProfileError::OffCpuBusy { wait }));
            return;
        }
        self.prepare(&selector);
        self.waits = WaitSession::begin(selector, times, answer, &mut self.sampler);
        self.want_labels();
    }

    /// Learns what has to be known of a target before its first stack is taken.
    fn prepare(&mut self, selector: &Selector) {
        match &selector.target {
            // Whoever runs most is likely to be known, and nobody could wait for all.
            Target::All => return,
            Target::Cgroup(_) => self.known.refresh_cgroups(),
            _ => {}
        }
        self.known.prepare(&selector.target);
    }

    fn past(
        &mut self,
        selector: &Selector,
        from: SystemTime,
        to: SystemTime,
    ) -> Result<Collected, ProfileError> {
        if self.recorder.is_none() {
            return Err(ProfileError::NothingKept);
        }
        let done = self.turn(None).and_then(|()| self.close_window());
        self.settle(done);
        let Some(recorder) = &self.recorder else {
            return Err(ProfileError::NothingKept);
        };
        let mut other = OtherWork::default();
        let Some(span) = recorder.sum(from, to, selector, &self.known, &mut other) else {
            let age = recorder.age();
            return Err(ProfileError::NotKept { age });
        };
        if let Target::Service(name) = &selector.target
            && span.counted.is_empty()
            && !self.known.services().any(|known| known == name)
        {
            let mut names: Vec<_> = self.known.services().map(Into::into).collect();
            return Err(ProfileError::no_such_service(name, &mut names));
        }
        if let Some(refusal) = other.refusal(&selector.work)
            && span.counted.is_empty()
        {
            return Err(refusal);
        }
        let (lost_samples, lost_on_host) = selector.share_of_lost(span.lost_samples);
        Ok(Collected {
            request: self.known.request(span.counted),
            started: span.began,
            duration: span.duration,
            kind: Kind::Cpu,
            period_ns: period_ns(recorder.hz()),
            lost_samples,
            lost_on_host,
            dropped_samples: 0,
        })
    }

    /// Reads what has come in; makes a turn when it is time for one.
    fn tick(&mut self) -> Result<(), SamplerError> {
        let now = Instant::now();
        self.sessions.retain(|session| !session.is_abandoned());
        if self.resting_until.is_some_and(|until| until <= now) {
            self.resting_until = None;
        }
        let Self {
            sampler,
            known,
            labels,
            ..
        } = self;
        if self.running.is_some() || self.waits.is_some() {
            labels.read(sampler, known)?;
        }
        let nameless = known.take_nameless();
        if let Some(samples) = &self.samples {
            let [beyond_limit, unreadable] = &samples.nameless_files;
            beyond_limit.inc_by(nameless.beyond_limit);
            unreadable.inc_by(nameless.unreadable);
        }
        if let Some(waits) = self.waits.take_if(|waits| waits.time_left(now).is_zero()) {
            waits.finish(sampler, known, labels);
            self.want_labels();
            if self.running.is_none() {
                // Nobody refers to any process.
                self.known.clear();
            }
        }
        let window_full = self
            .recorder
            .as_ref()
            .is_some_and(|recorder| recorder.is_full(now));
        let has_ended = |session: &Session| session.time_left(now).is_zero();
        let is_due = self.sessions.iter().any(has_ended)
            || self.running != self.plan(now, None)
            || self.running.is_some() && (window_full || self.turned.elapsed() >= self.turn_len());
        if is_due {
            self.turn(None)?;
        }
        if window_full {
            self.close_window()?;
        }
        if self.forgot.elapsed() >= FORGET_EVERY {
            self.forget();
        }
        Ok(())
    }

    /// What everybody who wants samples wants together, `beginning` too.
    fn plan(&self, now: Instant, beginning: Option<&Session>) -> Option<Plan> {
        let sessions = self
            .sessions
            .iter()
            .filter(|session| !session.time_left(now).is_zero())
            .chain(beginning);
        let recorder = self
            .recorder
            .as_ref()
            .filter(|_| self.resting_until.is_none());
        let mut hz = recorder.map_or(0, Recorder::hz);
        let mut every = recorder.is_some();
        let mut pids = HashSet::new();
        for session in sessions {
            hz = hz.max(session.hz());
            match session.selector().target {
                Target::Pid(pid) => {
                    pids.insert(pid);
                }
                // Who belongs to them is known when there is a sample: processes that begin
                // meanwhile belong to them as well.
                _ => every = true,
            }
        }
        let targets = if every {
            Targets::Every
        } else {
            Targets::Pids(pids)
        };
        (hz > 0).then(|| Plan {
            hz: hz.max(LEAST_CLOCK_HZ),
            targets,
        })
    }

    /// Hands out what was sampled so far, ends the sessions whose time is up, and goes on with
    /// those that are left and the one that begins.
    fn turn(&mut self, beginning: Option<&Session>) -> Result<(), SamplerError> {
        let now = Instant::now();
        let next = self.plan(now, beginning);
        let ran_at = self.running.as_ref().map(|plan| plan.hz);
        let goes_on = match (&self.running, &next) {
            (Some(running), Some(next)) if running.hz == next.hz => {
                self.sampler.set_targets(&next.targets)?;
                true
            }
            _ => {
                self.sampler.stop();
                false
            }
        };
        if let Some(clock_hz) = ran_at {
            // Whoever begins does not wait for what others have sampled.
            self.hand_out(clock_hz, beginning.is_none())?;
        }
        let lost = self.sampler.lost_samples()?;
        for session in self
            .sessions
            .extract_if(.., |session| session.time_left(now).is_zero())
        {
            session.finish(&mut self.known, lost, now);
        }
        if !goes_on {
            self.running = None;
            if let Some(next) = &next {
                self.sampler.set_targets(&next.targets)?;
                self.sampler.start(Duration::from_secs(1) / next.hz)?;
            }
        }
        if next.is_none() && self.waits.is_none() {
            // Nobody refers to any process.
            self.known.clear();
        }
        self.running = next;
        self.turned = Instant::now();
        self.want_labels();
        Ok(())
    }

    fn want_labels(&mut self) {
        self.labels
            .want(self.running.is_some() || self.waits.is_some());
    }

    fn hand_out(&mut self, clock_hz: u32, may_wait: bool) -> Result<(), SamplerError> {
        let Self {
            sampler,
            known,
            labels,
            sessions,
            recorder,
            ..
        } = self;
        if may_wait {
            labels.settle(sampler, known)?;
        } else {
            labels.read(sampler, known)?;
        }
        let parts = labels.take_samples(|epoch| sampler.is_over(epoch));
        sampler.read_counts(|sample| {
            split(&parts, sample, 1, |sample| {
                for session in &mut *sessions {
                    session.add(sample, known, clock_hz);
                }
                if let Some(recorder) = recorder {
                    recorder.add(sample, clock_hz);
                }
            });
        })
    }

    fn close_window(&mut self) -> Result<(), SamplerError> {
        let lost = self.sampler.lost_samples()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.close(lost);
        }
        Ok(())
    }

    /// How long the kernel's map has room for.
    fn turn_len(&self) -> Duration {
        let hz = self.running.as_ref().map_or(1, |plan| plan.hz);
        let samples_a_second = u64::from(hz) * self.cpus;
        let len = Duration::from_millis(COUNTS_A_TURN * 1000 / samples_a_second.max(1));
        len.clamp(SHORTEST_TURN, LONGEST_TURN)
    }

    /// Forgets the processes that nobody has samples of.
    fn forget(&mut self) {
        let sampled = self.sessions.iter().flat_map(Session::images);
        let mut images: HashSet<_> = sampled.collect();
        images.extend(self.sampler.waits().map(ImageKey::of_sample));
        if let Some(recorder) = &self.recorder {
            images.extend(recorder.images());
        }
        self.known.retain(images);
        self.forgot = Instant::now();
    }

    fn settle(&mut self, done: Result<(), SamplerError>) {
        if let Err(error) = done {
            tracing::error!(error = chain(&error), "the sampler failed");
            let error = Arc::new(error);
            for session in self.sessions.drain(..) {
                session.fail(ProfileError::Interrupted(Arc::clone(&error)));
            }
            self.rest();
        }
    }

    /// After a failure: stops the clocks; requests try again at once, continuous profiling later.
    fn rest(&mut self) {
        self.sampler.stop();
        // What nobody waited for must not be in the way of the next profile.
        self.labels.want(false);
        let stacks = self.sampler.read_stacks(|_, _| None);
        if let Err(error) = stacks.and(self.sampler.read_counts(|_| ())) {
            tracing::warn!(error = chain(&error), "samples were not read");
        }
        self.running = None;
        if self.recorder.is_some() {
            self.resting_until = Some(Instant::now() + REST_AFTER_FAILURE);
        }
    }
}
