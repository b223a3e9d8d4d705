//! CPU profiles on demand: request in, [`Profile`] out.
//!
//! One sampler serves all requests that run at the same time, so they have to agree on the rate;
//! a request at another rate is turned away with the time that it would have to wait.

mod session;
mod work;

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use profile::{Profile, Unwind};
use prometheus::{IntCounterVec, Opts};
use tokio::sync::oneshot;

use crate::probes::sampler::{Sampler, SamplerError};
use crate::process::{Process, ProcessTable};
use crate::symbolize::Symbolizer;
use session::Collected;

/// Highest sampling rate.
pub const MAX_HZ: u32 = 997;

/// Longest profile.
pub const MAX_DURATION: Duration = Duration::from_secs(300);

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

/// A profile that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRequest {
    /// What is profiled.
    pub target: Target,
    /// For how long; at most [`MAX_DURATION`].
    pub duration: Duration,
    /// Samples a second and CPU, 1 to [`MAX_HZ`].
    pub hz: u32,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The rate is out of bounds.
    #[error("hz is {0}: 1 to {MAX_HZ} is allowed")]
    Hz(u32),
    /// The duration is out of bounds.
    #[error("seconds is {}: 1 to {} is allowed", .0.as_secs_f64(), MAX_DURATION.as_secs())]
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

/// Who is a pid, and who is there?
pub trait Processes: Send + Sync {
    /// The process `pid`, as far as it is known.
    fn lookup(&self, pid: u32) -> Arc<Process>;

    /// Every process that is known.
    fn list(&self) -> Vec<Arc<Process>>;
}

impl Processes for ProcessTable {
    fn lookup(&self, pid: u32) -> Arc<Process> {
        Self::lookup(self, pid)
    }

    fn list(&self) -> Vec<Arc<Process>> {
        Self::list(self)
            .into_iter()
            .map(|target| target.process)
            .collect()
    }
}

/// Handle on the profiler. Cheap to clone.
#[derive(Clone)]
pub struct Profiler {
    begin: mpsc::Sender<session::Begin>,
    symbolizer: Arc<Symbolizer>,
    processes: Arc<dyn Processes>,
    samples: IntCounterVec,
    proc_root: PathBuf,
}

impl Profiler {
    /// Starts the profiler's thread, which sleeps until a profile is asked for. Counts into
    /// `samples`: see [`samples_metric`].
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn new(
        sampler: Sampler,
        processes: Arc<dyn Processes>,
        samples: IntCounterVec,
    ) -> std::io::Result<Self> {
        let (begin, requests) = mpsc::channel();
        let proc_root = PathBuf::from("/proc");
        let worker = work::Worker::new(sampler, Arc::clone(&processes), &proc_root);
        thread::Builder::new()
            .name("profiler".into())
            .spawn(move || worker.run(&requests))?;
        Ok(Self {
            begin,
            symbolizer: Arc::default(),
            processes,
            samples,
            proc_root,
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
        if request.duration.is_zero() || request.duration > MAX_DURATION {
            return Err(ProfileError::Duration(request.duration));
        }
        match &request.target {
            Target::All => Ok(()),
            Target::Pid(pid) if self.proc_root.join(pid.to_string()).exists() => Ok(()),
            Target::Pid(pid) => Err(ProfileError::NoSuchProcess(*pid)),
            Target::Service(name) => {
                if self
                    .processes
                    .list()
                    .iter()
                    .any(|process| *process.service == **name)
                {
                    return Ok(());
                }
                Err(ProfileError::NoSuchService {
                    name: name.clone(),
                    known: self.known_services(),
                })
            }
            Target::Container(id) if id.len() < MIN_CONTAINER_ID_LEN => {
                Err(ProfileError::ContainerId(id.clone()))
            }
            Target::Container(id) => {
                if self
                    .processes
                    .list()
                    .iter()
                    .any(|process| is_in_container(process, id))
                {
                    return Ok(());
                }
                Err(ProfileError::NoSuchContainer(id.clone()))
            }
        }
    }

    /// Some of the services that there are, for whoever misspelt one.
    fn known_services(&self) -> String {
        let mut names: Vec<_> = self
            .processes
            .list()
            .iter()
            .map(|process| Arc::clone(&process.service))
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
        for sample in &profile.samples {
            self.samples
                .with_label_values(&[sample.unwind.label()])
                .inc_by(sample.count);
        }
        self.samples
            .with_label_values(&[LOST])
            .inc_by(profile.lost_samples);
    }
}

/// Value of `outcome` for samples that are in no profile.
const LOST: &str = "lost";

/// The counter `telltale_profile_samples_total`, with every outcome at zero.
///
/// # Panics
/// Never: the name and the label are well formed.
#[must_use]
pub fn samples_metric() -> IntCounterVec {
    let opts = Opts::new(
        "telltale_profile_samples_total",
        "Samples taken for CPU profiles, by how far their stack could be followed.",
    );
    let samples = IntCounterVec::new(opts, &["outcome"]).expect("a well-formed name and label");
    for outcome in Unwind::ALL.map(Unwind::label).into_iter().chain([LOST]) {
        samples.with_label_values(&[outcome]);
    }
    samples
}

/// Is the process in the container whose id begins with `id`?
fn is_in_container(process: &Process, id: &str) -> bool {
    process
        .container_id
        .as_ref()
        .is_some_and(|container| container.starts_with(id))
}

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
