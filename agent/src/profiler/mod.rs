//! CPU profiles on demand: request in, [`Profile`] out.
//!
//! One sampler serves all requests that run at the same time, so they have to agree on the rate;
//! a request at another rate is turned away with the time that it would have to wait.

mod session;
pub mod unwind;
mod work;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use profile::Profile;
use tokio::sync::oneshot;

use crate::probes::sampler::{Sampler, SamplerError};
use crate::process::{Process, ProcessTable};
use crate::self_metrics::ProfileSamples;
use crate::symbolize::Symbolizer;
use session::Collected;
use unwind::Unwinder;

/// Highest sampling rate.
pub const MAX_HZ: u32 = 997;

/// Longest profile, seconds.
pub const MAX_SECONDS: u64 = 600;

/// Profiles that may be taken at the same time.
pub const MAX_CONCURRENT: usize = 8;

/// Shortest part of a container id that names a container.
const MIN_CONTAINER_ID_LEN: usize = 8;

/// Service names that an error lists.
const MAX_LISTED_SERVICES: usize = 20;

/// What is profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One process.
    Pid(u32),
    /// Every process of a service.
    Service(String),
    /// Every process of a container, by its id or the beginning of it.
    Container(String),
    /// Everything that runs on this host.
    All,
}

impl Target {
    /// Is the process one of those that are meant?
    fn includes(&self, process: &Process) -> bool {
        match self {
            Self::All => true,
            Self::Pid(pid) => process.pid == *pid,
            Self::Service(name) => *process.service == **name,
            Self::Container(id) => {
                let container = process.container_id.as_deref();
                container.is_some_and(|container| container.starts_with(&**id))
            }
        }
    }
}

/// A profile that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRequest {
    /// What is profiled.
    pub target: Target,
    /// For how long; at most [`MAX_SECONDS`].
    pub duration: Duration,
    /// Samples a second and CPU, 1 to [`MAX_HZ`].
    pub hz: u32,
}

/// What a person reads above the profile.
impl fmt::Display for ProfileRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Pid(pid) => write!(formatter, "CPU of process {pid}"),
            Target::Service(name) => write!(formatter, "CPU of {name}"),
            Target::Container(id) => write!(formatter, "CPU of container {id}"),
            Target::All => formatter.write_str("CPU of everything on this host"),
        }
    }
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The rate is out of bounds.
    #[error("hz is {0}: 1 to {MAX_HZ} is allowed")]
    Hz(u32),
    /// The duration is out of bounds.
    #[error("seconds is {}: 1 to {MAX_SECONDS} is allowed", .0.as_secs_f64())]
    Duration(Duration),
    /// The beginning of a container id is too short.
    #[error("container is {0:?}: at least {MIN_CONTAINER_ID_LEN} digits of the id are needed")]
    ContainerId(String),
    /// No such process.
    #[error("there is no process {0}")]
    NoSuchProcess(u32),
    /// No process of the service is known.
    #[error("there is no service {name:?}; known: {known}")]
    NoSuchService {
        /// The name that was asked for.
        name: String,
        /// Some of the names that there are.
        known: String,
    },
    /// No process of the container is known.
    #[error("there is no process in a container {0:?}")]
    NoSuchContainer(String),
    /// The sampler runs at another rate.
    #[error(
        "a profile at {hz} Hz is being taken: ask for the same rate, or again in {} s",
        wait.as_secs() + 1
    )]
    OtherRate {
        /// The rate it runs at.
        hz: u32,
        /// How long it will.
        wait: Duration,
    },
    /// Enough profiles are being taken.
    #[error(
        "{MAX_CONCURRENT} profiles are being taken already: ask again in {} s",
        wait.as_secs() + 1
    )]
    TooMany {
        /// How long until one of them is finished.
        wait: Duration,
    },
    /// The kernel side refused to begin.
    #[error("{}", chain(.0))]
    Sampler(#[from] SamplerError),
    /// The kernel side failed on the way.
    #[error("the sampler failed: {}", chain(.0))]
    Interrupted(Arc<SamplerError>),
    /// The symbolizer failed.
    #[error(transparent)]
    Symbolizer(#[from] crate::symbolize::SymbolizerFailed),
    /// The profiler's thread is gone: the agent is stopping.
    #[error("the profiler has stopped")]
    Stopped,
}

/// Handle on the profiler. Cheap to clone.
#[derive(Clone)]
pub struct Profiler {
    begin: mpsc::Sender<session::Begin>,
    symbolizer: Arc<Symbolizer>,
    processes: Arc<ProcessTable>,
    samples: Option<ProfileSamples>,
}

impl Profiler {
    /// Starts the profiler's thread, which sleeps until a profile is asked for. `samples`
    /// counts what profiles were made of.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn new(
        mut sampler: Sampler,
        processes: Arc<ProcessTable>,
        samples: Option<ProfileSamples>,
    ) -> std::io::Result<Self> {
        let (begin, requests) = mpsc::channel();
        let unwinder = Unwinder::start(sampler.take_unwind_maps())?;
        let worker = work::Worker::new(sampler, unwinder, Arc::clone(&processes));
        thread::Builder::new()
            .name("profiler".into())
            .spawn(move || worker.run(&requests))?;
        Ok(Self {
            begin,
            symbolizer: Arc::default(),
            processes,
            samples,
        })
    }

    /// Takes a profile. When the future is dropped, sampling ends.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub async fn collect(&self, request: ProfileRequest) -> Result<Profile, ProfileError> {
        self.validate(&request)?;
        let (answer, collected) = oneshot::channel();
        let period_ns = 1_000_000_000 / u64::from(request.hz);
        let begin = session::Begin { request, answer };
        self.begin.send(begin).map_err(|_| ProfileError::Stopped)?;
        let collected = collected.await.map_err(|_| ProfileError::Stopped)??;
        let symbolizer = Arc::clone(&self.symbolizer);
        let finish = move || finish(&symbolizer, collected, period_ns);
        let profile = tokio::task::spawn_blocking(finish)
            .await
            .map_err(|_| ProfileError::Stopped)??;
        self.count(&profile);
        Ok(profile)
    }

    /// Checks what can be checked before anything is attached.
    fn validate(&self, request: &ProfileRequest) -> Result<(), ProfileError> {
        if !(1..=MAX_HZ).contains(&request.hz) {
            return Err(ProfileError::Hz(request.hz));
        }
        if request.duration.is_zero() || request.duration > Duration::from_secs(MAX_SECONDS) {
            return Err(ProfileError::Duration(request.duration));
        }
        match &request.target {
            Target::All => Ok(()),
            Target::Pid(pid) if Path::new("/proc").join(pid.to_string()).exists() => Ok(()),
            Target::Pid(pid) => Err(ProfileError::NoSuchProcess(*pid)),
            Target::Service(_) if self.includes_any(&request.target) => Ok(()),
            Target::Service(name) => Err(ProfileError::NoSuchService {
                name: name.clone(),
                known: self.known_services(),
            }),
            Target::Container(id) if id.len() < MIN_CONTAINER_ID_LEN => {
                Err(ProfileError::ContainerId(id.clone()))
            }
            Target::Container(_) if self.includes_any(&request.target) => Ok(()),
            Target::Container(id) => Err(ProfileError::NoSuchContainer(id.clone())),
        }
    }

    /// Does any process that is known belong to the target?
    fn includes_any(&self, target: &Target) -> bool {
        self.processes
            .list()
            .iter()
            .any(|listed| target.includes(&listed.process))
    }

    /// Some of the services that there are, for whoever misspelt one.
    fn known_services(&self) -> String {
        let mut names: Vec<_> = self
            .processes
            .list()
            .iter()
            .map(|listed| Arc::clone(&listed.process.service))
            .collect();
        names.sort();
        names.dedup();
        let more = names.len() > MAX_LISTED_SERVICES;
        names.truncate(MAX_LISTED_SERVICES);
        if more {
            names.push("…".into());
        }
        if names.is_empty() {
            "none".into()
        } else {
            names.join(", ")
        }
    }

    fn count(&self, profile: &Profile) {
        let Some(samples) = &self.samples else {
            return;
        };
        for sample in &profile.samples {
            samples.add(sample.unwind.label(), sample.count);
        }
        samples.add(LOST, profile.lost_samples);
    }
}

/// Value of `outcome` for samples that are in no profile.
const LOST: &str = "lost";

/// Gives the addresses of what was collected their functions.
fn finish(
    symbolizer: &Symbolizer,
    collected: Collected,
    period_ns: u64,
) -> Result<Profile, ProfileError> {
    let Collected {
        request,
        started,
        duration,
        lost_samples,
    } = collected;
    let resolved = symbolizer.resolve(request)?;
    Ok(Profile {
        started,
        duration,
        period_ns,
        mappings: resolved.mappings,
        frames: resolved.frames,
        samples: resolved.samples,
        lost_samples,
    })
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_includes_its_processes() {
        let mut process = Process::unknown(7, "shop");
        process.container_id = Some("0123456789abcdef".into());
        for (target, included) in [
            (Target::All, true),
            (Target::Pid(7), true),
            (Target::Pid(8), false),
            (Target::Service("shop".into()), true),
            (Target::Service("sho".into()), false),
            (Target::Container("01234567".into()), true),
            (Target::Container("12345678".into()), false),
        ] {
            assert_eq!(target.includes(&process), included, "{target:?}");
        }
    }

    #[test]
    fn errors_read_as_one_line_with_their_cause() {
        let source = std::io::Error::from_raw_os_error(1);
        let error = ProfileError::from(SamplerError::Clock { cpu: 3, source });
        let line = error.to_string();
        assert!(
            line.contains("CPU 3") && line.contains("Operation not permitted"),
            "{line}"
        );
    }
}
