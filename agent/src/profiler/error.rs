//! Why there is no profile.

use std::sync::Arc;
use std::time::Duration;

use super::{MAX_CONCURRENT, MAX_HZ, MAX_LISTED, MAX_SECONDS, MIN_CONTAINER_ID_LEN};
use crate::probes::sampler::SamplerError;

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
    /// The path of a cgroup is none.
    #[error("cgroup is {0:?}: a path below the mount point is needed, which begins with /")]
    CgroupPath(String),
    /// No such process.
    #[error("there is no process {0}")]
    NoSuchProcess(u32),
    /// No such thread.
    #[error("there is no thread {0}")]
    NoSuchThread(u32),
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
    /// No process of the cgroup is known.
    #[error("there is no process in cgroup {0:?}")]
    NoSuchCgroup(String),
    /// The route is none.
    #[error("route is {0:?}: a template as http_route has it is needed, such as /users/{{id}}")]
    Route(String),
    /// The method is none.
    #[error("method is {0:?}: one of HTTP's in capitals is needed, or _OTHER")]
    Method(String),
    /// The operation is none.
    #[error(
        "operation is {0:?}: an endpoint id of Elasticsearch's REST specification is needed, such as \
         search"
    )]
    Operation(String),
    /// Nothing that was sampled is proven to be of the work that was asked for, but something of other
    /// work is.
    #[error("no sample of {asked}; those there are: {known}")]
    NoSuchWork {
        /// What was asked for.
        asked: String,
        /// Some of what there is.
        known: String,
    },
    /// Nothing is kept.
    #[error("nothing is kept: continuous profiling is off (profile.continuous.hz)")]
    NothingKept,
    /// Nothing is kept of the time that was asked for.
    #[error("nothing is kept from then; the oldest is {} s old", age.as_secs())]
    NotKept {
        /// How long ago the oldest window began.
        age: Duration,
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
    /// Waits are being measured for somebody else.
    #[error("an off-CPU profile is being taken already: ask again in {} s", wait.as_secs() + 1)]
    OffCpuBusy {
        /// How long until it is finished.
        wait: Duration,
    },
    /// The shortest wait is out of bounds.
    #[error("min_us is {}: 1 to 10000000 is allowed", .0.as_micros())]
    ShortestWait(Duration),
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

impl ProfileError {
    /// For whoever misspelt a service: some of the `names` that there are.
    pub(super) fn no_such_service(name: &str, names: &mut Vec<Arc<str>>) -> Self {
        names.sort();
        names.dedup();
        if names.len() > MAX_LISTED {
            names.truncate(MAX_LISTED);
            names.push("…".into());
        }
        let known = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        Self::NoSuchService {
            name: name.to_owned(),
            known,
        }
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
