//! Who is a pid? The process table, and what it learns from exec and exit events and from `/proc`.

mod cgroup;
mod container;
mod name;
mod procfs;
mod runtime;
mod script;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

pub use table::{ProcessTable, Target};

/// Where a service name came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NameSource {
    /// `OTEL_SERVICE_NAME` or `service.name` of `OTEL_RESOURCE_ATTRIBUTES`.
    Environment,
    /// The container's name, or its pod's.
    Container,
    /// Script or module that an interpreter runs.
    Script,
    /// The executable's file name.
    Executable,
    /// `comm`, because nothing else could be read (the process had ended).
    Comm,
}

/// What runs the service's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// CPython.
    Python,
    /// Node.js.
    Node,
    /// A Java virtual machine.
    Java,
    /// A Go program.
    Go,
    /// A Rust program.
    Rust,
    /// Machine code of another origin.
    Native,
    /// Not known.
    Unknown,
}

/// The Kubernetes pod that a process runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pod {
    /// Pod uid, from the cgroup; 36 characters, or the 32 of a static pod's hash.
    pub uid: Box<str>,
    /// `k8s.pod.name`, where the node tells.
    pub name: Option<Box<str>>,
    /// `k8s.namespace.name`, where the node tells.
    pub namespace: Option<Box<str>>,
}

/// A process as the sinks name it. Immutable: an exec makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id in the agent's pid namespace (the kernel's tgid).
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat` field 22); tells reused pids apart.
    /// 0 where the process had ended before it could be read.
    pub start_ticks: u64,
    /// Service name; at most 128 bytes, without control characters, never empty.
    pub service: Arc<str>,
    /// Where the name came from.
    pub service_source: NameSource,
    /// `service.namespace`, where the environment gives one.
    pub service_namespace: Option<Box<str>>,
    /// Executable as `/proc/PID/exe` names it; empty where that could not be read.
    pub executable: PathBuf,
    /// Command line, at most 4 KiB of it.
    pub command_line: Vec<String>,
    /// What runs its code.
    pub runtime: Runtime,
    /// Container id from the cgroup, 64 hexadecimal digits.
    pub container_id: Option<Box<str>>,
    /// The container's own name, where the node tells.
    pub container_name: Option<Box<str>>,
    /// The pod, in Kubernetes.
    pub pod: Option<Box<Pod>>,
}

impl Process {
    /// A process of which nothing but its pid and, at most, its `comm` is known.
    #[must_use]
    pub fn unknown(pid: u32, comm: &str) -> Self {
        Self {
            pid,
            start_ticks: 0,
            service: if comm.is_empty() { "unknown" } else { comm }.into(),
            service_source: NameSource::Comm,
            service_namespace: None,
            executable: PathBuf::new(),
            command_line: Vec::new(),
            runtime: Runtime::Unknown,
            container_id: None,
            container_name: None,
            pod: None,
        }
    }
}
