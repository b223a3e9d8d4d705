//! Whose work the samples are: joins the times of samples with the requests that threads serve.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_common::sample::SampleTime;
use profile::Work;

use super::known::Known;
use crate::clock::monotonic_ns;
use crate::probes::sampler::{RawSample, Sampler, SamplerError};
use crate::requests::timelines::{InFlight, Told};
use crate::requests::{Moment, Name, Requests, StintKey, Timelines};
use crate::self_metrics::ProfileLabels;

/// Most samples whose work is looked for at a time; further ones go without.
const MAX_SAMPLES: usize = 1 << 17;

/// For how long it is doubtful who serves what after records were lost: one may have told of a request
/// that goes on.
const DOUBT_NS: u64 = 1_000_000_000;

/// How long samples wait for the workers, which are two rounds late, and for a request's name.
const PATIENCE: Duration = Duration::from_millis(60);

/// How often it is looked whether they have come so far.
const LOOK: Duration = Duration::from_millis(1);

/// Reads how many records were lost that may have told of requests.
pub type LostRecords = Box<dyn Fn() -> u64 + Send>;

/// What labels are made from.
pub struct RequestSource {
    /// What the workers tell.
    pub requests: Arc<Requests>,
    /// Records lost since the start.
    pub lost: LostRecords,
    /// Counts samples by what was found.
    pub outcomes: Option<ProfileLabels>,
}

/// See the module.
pub(super) struct Labels {
    source: Option<RequestSource>,
    wanted: bool,
    timelines: Timelines,
    /// Whether all workers have begun to tell.
    is_told: bool,
    /// Records lost when it was last looked.
    lost: u64,
    /// Later than what is known of.
    undecided: Vec<(Moment, SampleTime)>,
    /// Samples of the clock since they were last taken.
    samples: Vec<Decided>,
    /// Waits, likewise.
    waits: Vec<Decided>,
}

/// What a thread worked on in a stack, and how much of what was counted there.
pub(super) type Parts = HashMap<StackId, Vec<(Work, u64)>>;

/// Hash, thread and epoch of a sampled stack.
type StackId = ([u64; 2], u32, u32);

/// Tells `each` part of a sample by what its thread worked on. A count is one of `unit`.
pub(super) fn split(
    parts: &Parts,
    mut sample: RawSample<'_>,
    unit: u64,
    mut each: impl FnMut(&RawSample<'_>),
) {
    let key = sample.key;
    let mut left = sample.count;
    for (work, count) in parts
        .get(&(key.stack_hash, key.tid, key.epoch))
        .into_iter()
        .flatten()
    {
        sample.count = (count / unit).min(left);
        left -= sample.count;
        if sample.count > 0 {
            sample.work = work.clone();
            each(&sample);
        }
    }
    if left > 0 {
        sample.count = left;
        sample.work = Work::default();
        each(&sample);
    }
}

struct Decided {
    stack: StackId,
    /// 1, or the wait's nanoseconds.
    count: u64,
    server: InFlight,
    client: InFlight,
}

impl Labels {
    pub(super) fn new(source: Option<RequestSource>) -> Self {
        Self {
            source,
            wanted: false,
            timelines: Timelines::default(),
            is_told: false,
            lost: 0,
            undecided: Vec::new(),
            samples: Vec::new(),
            waits: Vec::new(),
        }
    }

    /// Has workers tell what threads serve, or no more.
    pub(super) fn want(&mut self, wanted: bool) {
        if let Some(source) = &self.source
            && wanted != self.wanted
        {
            source.requests.want(wanted);
            self.timelines.restart();
            *self = Self {
                timelines: std::mem::take(&mut self.timelines),
                ..Self::new(self.source.take())
            };
            self.lost = self.source.as_ref().map_or(0, lost);
            self.wanted = wanted;
        }
    }

    /// Reads what was sampled, and decides what is known of already. Returns until when all is known,
    /// nanoseconds of `CLOCK_MONOTONIC`; `None` where nothing ever is.
    ///
    /// # Errors
    /// When the samples can't be read.
    pub(super) fn read(
        &mut self,
        sampler: &mut Sampler,
        known: &mut Known,
    ) -> Result<Option<u64>, SamplerError> {
        // First: samples from before then are in the ring by now.
        let source = self.source.as_ref();
        let handled_ns = source.map(|source| source.requests.handled_ns());
        sampler.read_stacks(|key, stack| known.observe(key, &stack))?;
        let times = sampler.take_times();
        if let Some(handled_ns) = handled_ns {
            self.advance(times, handled_ns);
        }
        Ok(handled_ns)
    }

    /// Reads what was sampled until all of it is decided and named, or that takes too long.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn settle(
        &mut self,
        sampler: &mut Sampler,
        known: &mut Known,
    ) -> Result<(), SamplerError> {
        self.await_now(true);
        let settled = self.wait(sampler, known);
        self.await_now(false);
        settled
    }

    fn wait(&mut self, sampler: &mut Sampler, known: &mut Known) -> Result<(), SamplerError> {
        let (until_ns, began) = (monotonic_ns(), Instant::now());
        loop {
            let handled_ns = self.read(sampler, known)?;
            let is_settled = |handled_ns| handled_ns >= until_ns && self.are_named();
            if handled_ns.is_none_or(is_settled) || began.elapsed() >= PATIENCE {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn await_now(&self, awaited: bool) {
        if let Some(source) = &self.source {
            source.requests.await_now(awaited);
        }
    }

    /// Takes in the times of samples, and decides all that ended before `handled_ns`.
    fn advance(&mut self, times: Vec<SampleTime>, handled_ns: u64) {
        let Some(source) = &self.source else {
            return;
        };
        let room = MAX_SAMPLES.saturating_sub(self.undecided.len() + self.samples.len());
        let moments = times.into_iter().take(room).map(|time| {
            let moment = Moment {
                tid: time.tid,
                at_ns: time.time_ns,
                lasts_ns: time.waited_ns,
            };
            (moment, time)
        });
        self.undecided.extend(moments);
        let lost = lost(source);
        if lost > self.lost {
            self.lost = lost;
            self.timelines.doubt(monotonic_ns() + DOUBT_NS);
        }
        if !self.is_told {
            let Some(since_ns) = source.requests.told_since_ns() else {
                return;
            };
            self.timelines.begin(since_ns);
            self.is_told = true;
        }
        let stints = source.requests.take();
        let (samples, waits) = (&mut self.samples, &mut self.waits);
        let undecided = &mut self.undecided;
        self.timelines
            .advance(stints, handled_ns, undecided, |time, server, client| {
                let is_wait = time.waited_ns > 0;
                let kept = if is_wait { &mut *waits } else { &mut *samples };
                if kept.len() < MAX_SAMPLES {
                    kept.push(Decided {
                        stack: (time.stack_hash, time.tid, time.epoch),
                        count: if is_wait { time.waited_ns } else { 1 },
                        server,
                        client,
                    });
                }
            });
    }

    /// Whether it is known by now what those requests are called that samples of the clock belong to.
    fn are_named(&self) -> bool {
        let mut keys = self.samples.iter().filter_map(|sample| one(sample.server));
        !keys.any(|key| self.timelines.told(key) == Told::Awaited)
    }

    /// What is known of the samples of the clock in epochs that are over. All of those are let go, also
    /// where too little is known.
    pub(super) fn take_samples(&mut self, is_over: impl Fn(u32) -> bool) -> Parts {
        let undecided = self.undecided.len();
        self.undecided
            .retain(|(_, time)| time.waited_ns > 0 || !is_over(time.epoch));
        let samples: Vec<_> = self
            .samples
            .extract_if(.., |sample| is_over(sample.stack.2))
            .collect();
        if let Some(outcomes) = self
            .source
            .as_ref()
            .and_then(|source| source.outcomes.as_ref())
        {
            for sample in &samples {
                outcomes.add(self.outcome(sample.server), 1);
            }
            outcomes.add(UNKNOWN, (undecided - self.undecided.len()) as u64);
        }
        let parts = self.parts(&samples);
        self.forget();
        parts
    }

    /// What is known of the waits, likewise.
    pub(super) fn take_waits(&mut self) -> Parts {
        self.undecided.retain(|(_, time)| time.waited_ns == 0);
        let waits = std::mem::take(&mut self.waits);
        let parts = self.parts(&waits);
        self.forget();
        parts
    }

    fn forget(&mut self) {
        let waits = self.waits.iter().chain(&self.samples);
        let needed: HashSet<StintKey> = waits
            .flat_map(|decided| [decided.server, decided.client])
            .filter_map(one)
            .collect();
        self.timelines.forget_chosen(|key| needed.contains(&key));
    }

    fn parts(&self, decided: &[Decided]) -> Parts {
        let mut parts = Parts::new();
        for sample in decided {
            let mut work = Work::default();
            if let Some(Name::Request(request)) = self.name(sample.server) {
                work.request = Some(request.clone());
            }
            if let Some(Name::Operation(operation)) = self.name(sample.client) {
                work.operation = Some(operation);
            }
            if !work.is_unknown() {
                let of_stack = parts.entry(sample.stack).or_default();
                match of_stack.iter_mut().find(|(known, _)| *known == work) {
                    Some((_, count)) => *count += sample.count,
                    None => of_stack.push((work, sample.count)),
                }
            }
        }
        parts
    }

    fn name(&self, in_flight: InFlight) -> Option<&Name> {
        match self.timelines.told(one(in_flight)?) {
            Told::Name(name) => Some(name),
            Told::Awaited | Told::Moved => None,
        }
    }

    fn outcome(&self, in_flight: InFlight) -> &'static str {
        match in_flight {
            InFlight::Nothing => "no_request",
            InFlight::Several => "several_requests",
            InFlight::Doubtful => UNKNOWN,
            InFlight::One(key) => match self.timelines.told(key) {
                Told::Name(Name::Request(_)) => "labelled",
                Told::Moved => "moving_requests",
                Told::Awaited | Told::Name(_) => UNKNOWN,
            },
        }
    }
}

/// Value of `outcome` for samples of whose request too little is known, or not in time.
const UNKNOWN: &str = "unknown";

fn lost(source: &RequestSource) -> u64 {
    (source.lost)() + source.requests.dropped()
}

const fn one(in_flight: InFlight) -> Option<StintKey> {
    match in_flight {
        InFlight::One(key) => Some(key),
        InFlight::Nothing | InFlight::Several | InFlight::Doubtful => None,
    }
}
