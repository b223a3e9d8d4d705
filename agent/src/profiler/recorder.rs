//! Continuous profiling: everything that runs, at a low rate, for as long as is configured.

use std::time::{Duration, Instant, SystemTime};

use profile::{History, Span, Store, Thread};
use prometheus::IntCounter;

use super::known::Known;
use super::session::{stack, thread};
use super::target::{OtherWork, Selector};
use super::thin::Thin;
use crate::probes::sampler::RawSample;
use crate::symbolize::ImageKey;

/// Most different stacks of one window.
const MAX_STACKS: usize = 20_000;

/// No window but the first is shorter, however often somebody asks.
const SHORTEST_WINDOW: Duration = Duration::from_millis(500);

/// How continuous profiling goes about.
#[derive(Clone, Debug)]
pub struct Continuous {
    /// Samples a second and CPU.
    pub hz: u32,
    /// Length of a window: what a range can be told apart by.
    pub window: Duration,
    /// How long windows are kept.
    pub retention: Duration,
    /// Memory that they may take, about.
    pub max_bytes: usize,
    /// Counts the samples whose windows went before their time, for want of memory.
    pub dropped: IntCounter,
}

/// Fills the windows.
pub(super) struct Recorder {
    settings: Continuous,
    store: Store,
    thin: Thin,
    began: (SystemTime, Instant),
    lost_before: u64,
    history: History,
}

impl Recorder {
    /// Its first window begins now.
    pub(super) fn new(settings: Continuous) -> Self {
        Self {
            store: Store::new(MAX_STACKS),
            thin: Thin::to(settings.hz),
            began: (SystemTime::now(), Instant::now()),
            lost_before: 0,
            history: History::new(settings.retention, settings.max_bytes),
            settings,
        }
    }

    /// Samples a second and CPU.
    pub(super) fn hz(&self) -> u32 {
        self.settings.hz
    }

    /// Is the current window as long as it should become?
    pub(super) fn is_full(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began.1) >= self.settings.window
    }

    /// Takes in a sample of clocks that run at `clock_hz`.
    pub(super) fn add(&mut self, sample: &RawSample<'_>, clock_hz: u32) {
        let count = self.thin.keep(sample.count, clock_hz);
        if count > 0 {
            self.store.add(thread(sample), stack(sample), count);
        }
    }

    /// Ends the window and begins the next one. So far the kernel side has lost `lost` samples.
    pub(super) fn close(&mut self, lost: u64) {
        let (now, instant) = (SystemTime::now(), Instant::now());
        let (began, begin) = self.began;
        let age = instant.saturating_duration_since(begin);
        if age < SHORTEST_WINDOW && self.history.began().is_some() {
            return;
        }
        self.began = (now, instant);
        let store = std::mem::replace(&mut self.store, Store::new(MAX_STACKS));
        let dropped_of_window = store.dropped();
        let lost_samples = lost.saturating_sub(self.lost_before) + dropped_of_window;
        self.lost_before = lost;
        let dropped_before = self.history.dropped_samples();
        self.history
            .push(began, now, store.into_counted(), lost_samples);
        let dropped = self.history.dropped_samples() - dropped_before;
        self.settings.dropped.inc_by(dropped + dropped_of_window);
    }

    /// The sum of the windows of a range of time; `None` where there is none. `other` takes note of work
    /// that is not meant.
    pub(super) fn sum(
        &self,
        from: SystemTime,
        to: SystemTime,
        selector: &Selector,
        known: &Known,
        other: &mut OtherWork,
    ) -> Option<Span> {
        let wanted = |thread: &Thread| selector.includes(thread, known.identity(thread), other);
        self.history.sum(from, to, wanted)
    }

    /// How long ago the oldest window began; zero when there is none.
    pub(super) fn age(&self) -> Duration {
        let began = self.history.began().unwrap_or(self.began.0);
        began.elapsed().unwrap_or_default()
    }

    /// Processes of which there are samples.
    pub(super) fn images(&self) -> impl Iterator<Item = ImageKey> {
        let kept = self.history.threads().map(ImageKey::of);
        kept.chain(self.store.threads().map(ImageKey::of))
    }
}
