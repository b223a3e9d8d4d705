//! CPU profiles: request in, [`Profile`] out, from now on or of what continuous profiling keeps.
//!
//! One sampler serves all requests that run at the same time, and continuous profiling beside
//! them, each at its own rate.

mod error;
mod interpreted;
mod known;
mod labels;
pub mod python;
mod recorder;
mod session;
mod target;
mod thin;
pub mod unwind;
pub mod v8;
mod waits;
mod work;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use profile::Profile;
use tokio::sync::oneshot;

use crate::probes::sampler::Sampler;
use crate::process::ProcessTable;
use crate::self_metrics::ProfileSamples;
use crate::symbolize::Symbolizer;
use python::PythonProcesses;
use session::Collected;
use work::Message;

pub use error::ProfileError;
pub use labels::{LostRecords, RequestSource};
pub use recorder::Continuous;
pub use target::{Selector, Target, WorkFilter};
use unwind::Unwinder;
use v8::V8Processes;

/// Highest sampling rate.
pub const MAX_HZ: u32 = 997;

/// Longest profile, seconds.
pub const MAX_SECONDS: u64 = 600;

/// Most that the shortest wait of an off-CPU profile may be.
pub const MAX_SHORTEST_WAIT: Duration = Duration::from_secs(10);

/// The shortest wait when nobody says.
pub const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Profiles that may be taken at the same time.
pub const MAX_CONCURRENT: usize = 8;

/// Shortest part of a container id that names a container.
const MIN_CONTAINER_ID_LEN: usize = 8;

/// Names that an error lists.
const MAX_LISTED: usize = 20;

/// A profile that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRequest {
    /// Which samples it is made of.
    pub selector: Selector,
    /// Of which time.
    pub time: ProfileTime,
}

/// The time of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileTime {
    /// From now on.
    Next {
        /// For how long; at most [`MAX_SECONDS`].
        duration: Duration,
        /// Samples a second and CPU, 1 to [`MAX_HZ`].
        hz: u32,
    },
    /// Waits off the CPU, those that begin from now on.
    Waits {
        /// For how long; at most [`MAX_SECONDS`].
        duration: Duration,
        /// Shorter ones are left out: 1 µs to [`MAX_SHORTEST_WAIT`].
        min: Duration,
    },
    /// A range of what continuous profiling keeps.
    Past {
        /// Its begin.
        from: SystemTime,
        /// Its end.
        to: SystemTime,
    },
}

/// What a person reads above the profile.
impl fmt::Display for ProfileRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let selector = &self.selector;
        match self.time {
            ProfileTime::Next { .. } => write!(formatter, "CPU of {selector}"),
            ProfileTime::Waits { min, .. } => {
                write!(formatter, "Waits of {selector}, {min:?} and more")
            }
            ProfileTime::Past { from, to } => {
                let (from, to) = (clock_time(from), clock_time(to));
                write!(formatter, "CPU of {selector}, {from} to {to} UTC")
            }
        }
    }
}

/// Processes whose functions are not those of their code alone.
#[derive(Clone, Debug, Default)]
pub struct Interpreters {
    python: PythonProcesses,
    v8: V8Processes,
}

impl Interpreters {
    /// What runs the functions of a process, in words; `None` where nothing is known.
    #[must_use]
    pub fn describe(&self, pid: u32) -> Option<String> {
        let python = self.python.get(pid).map(|known| known.describe());
        python.or_else(|| Some(self.v8.get(pid)?.describe()))
    }
}

/// Handle on the profiler. Cheap to clone.
#[derive(Clone)]
pub struct Profiler {
    messages: mpsc::Sender<Message>,
    symbolizer: Arc<Symbolizer>,
    processes: Arc<ProcessTable>,
    samples: Option<ProfileSamples>,
    interpreters: Interpreters,
}

impl Profiler {
    /// Starts the profiler's thread, which sleeps until a profile is asked for, or profiles
    /// continuously. `samples` counts what profiles on demand were made of; `requests` tells what the
    /// sampled threads worked on.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn new(
        mut sampler: Sampler,
        processes: Arc<ProcessTable>,
        samples: Option<ProfileSamples>,
        continuous: Option<Continuous>,
        requests: Option<RequestSource>,
    ) -> std::io::Result<Self> {
        let unwinder = Unwinder::start(sampler.take_unwind_maps())?;
        let interpreters = Interpreters {
            python: unwinder.python().clone(),
            v8: unwinder.v8().clone(),
        };
        let (messages, received) = mpsc::channel();
        let processes_of_worker = Arc::clone(&processes);
        let worker =
            work::Worker::new(sampler, unwinder, processes_of_worker, continuous, requests)
                .counting(samples.clone());
        thread::Builder::new()
            .name("profiler".into())
            .spawn(move || worker.run(&received))?;
        Ok(Self {
            messages,
            symbolizer: Arc::default(),
            processes,
            samples,
            interpreters,
        })
    }

    /// The processes that run CPython or V8, as far as they were sampled.
    #[must_use]
    pub fn interpreters(&self) -> &Interpreters {
        &self.interpreters
    }

    /// Takes a profile, or sums what is kept. When the future is dropped, sampling ends.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub async fn collect(&self, request: ProfileRequest) -> Result<Profile, ProfileError> {
        self.validate(&request)?;
        let (answer, collected) = oneshot::channel();
        let selector = request.selector;
        let message = match request.time {
            ProfileTime::Next { duration, hz } => Message::Begin {
                selector,
                duration,
                hz,
                answer,
            },
            ProfileTime::Waits { duration, min } => Message::Waits {
                selector,
                duration,
                min,
                answer,
            },
            ProfileTime::Past { from, to } => Message::Past {
                selector,
                from,
                to,
                answer,
            },
        };
        self.messages
            .send(message)
            .map_err(|_| ProfileError::Stopped)?;
        let collected = collected.await.map_err(|_| ProfileError::Stopped)??;
        let symbolizer = Arc::clone(&self.symbolizer);
        let samples = self.samples.clone();
        let finish = move || finish(&symbolizer, collected, samples.as_ref());
        let profile = tokio::task::spawn_blocking(finish)
            .await
            .map_err(|_| ProfileError::Stopped)??;
        if matches!(request.time, ProfileTime::Next { .. }) {
            self.count(&profile);
        }
        Ok(profile)
    }

    /// Checks what can be checked before anything is attached. Who was profiled in the past may be
    /// gone by now.
    fn validate(&self, request: &ProfileRequest) -> Result<(), ProfileError> {
        request.selector.validate()?;
        let target = &request.selector.target;
        let duration = match request.time {
            ProfileTime::Next { hz, .. } if !(1..=MAX_HZ).contains(&hz) => {
                return Err(ProfileError::Hz(hz));
            }
            ProfileTime::Waits { min, .. }
                if !(Duration::from_micros(1)..=MAX_SHORTEST_WAIT).contains(&min) =>
            {
                return Err(ProfileError::ShortestWait(min));
            }
            ProfileTime::Next { duration, .. } | ProfileTime::Waits { duration, .. } => duration,
            ProfileTime::Past { .. } => return Ok(()),
        };
        if duration.is_zero() || duration > Duration::from_secs(MAX_SECONDS) {
            return Err(ProfileError::Duration(duration));
        }
        let runs = |id: &u32| Path::new("/proc").join(id.to_string()).exists();
        match target {
            Target::All => Ok(()),
            Target::Pid(pid) if runs(pid) => Ok(()),
            Target::Pid(pid) => Err(ProfileError::NoSuchProcess(*pid)),
            // A thread's number leads to its folder too.
            Target::Tid(tid) if runs(tid) => Ok(()),
            Target::Tid(tid) => Err(ProfileError::NoSuchThread(*tid)),
            _ if target.members(&self.processes).next().is_some() => Ok(()),
            Target::Service(name) => {
                let listed = self.processes.list();
                let mut names: Vec<_> = listed
                    .iter()
                    .map(|listed| Arc::clone(&listed.process.service))
                    .collect();
                Err(ProfileError::no_such_service(name, &mut names))
            }
            Target::Container(id) => Err(ProfileError::NoSuchContainer(id.clone())),
            Target::Cgroup(path) => Err(ProfileError::NoSuchCgroup(path.clone())),
        }
    }

    fn count(&self, profile: &Profile) {
        let Some(samples) = &self.samples else {
            return;
        };
        for sample in &profile.samples {
            samples.add(sample.unwind.label(), sample.count);
        }
        samples.add(LOST, profile.lost_samples + profile.lost_on_host);
    }
}

/// Value of `outcome` for samples that are in no profile.
const LOST: &str = "lost";

/// Gives the addresses of what was collected their functions.
fn finish(
    symbolizer: &Symbolizer,
    collected: Collected,
    samples: Option<&ProfileSamples>,
) -> Result<Profile, ProfileError> {
    let Collected {
        request,
        kind,
        started,
        duration,
        period_ns,
        lost_samples,
        lost_on_host,
        dropped_samples,
    } = collected;
    let resolved = symbolizer.resolve(request)?;
    if let Some(samples) = samples {
        samples.dropped.inc_by(dropped_samples);
        samples.malformed_lines.inc_by(resolved.malformed_lines);
        samples.cut_lists.inc_by(resolved.cut_lists);
    }
    Ok(Profile {
        started,
        duration,
        kind,
        period_ns,
        mappings: resolved.mappings,
        frames: resolved.frames,
        samples: resolved.samples,
        lost_samples: lost_samples + dropped_samples,
        lost_on_host,
    })
}

/// Time of day, UTC.
fn clock_time(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.unwrap_or_default().as_secs();
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}
