//! Who is a pid?

use std::path::PathBuf;

/// Where a service name came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NameSource {
    /// `OTEL_SERVICE_NAME` or `service.name` of `OTEL_RESOURCE_ATTRIBUTES`.
    Environment,
    /// The container.
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

/// A process as the sinks name it. Immutable: an exec makes a new one.
#[derive(Clone, Debug)]
pub struct Process {
    /// Process id in the agent's pid namespace (the kernel's tgid).
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat` field 22); tells reused pids apart.
    pub start_ticks: u64,
    /// Service name; bounded in length, never empty.
    pub service: std::sync::Arc<str>,
    /// Where the name came from.
    pub service_source: NameSource,
    /// `service.namespace`, where the environment gives one.
    pub service_namespace: Option<Box<str>>,
    /// Executable as `/proc/PID/exe` names it.
    pub executable: PathBuf,
    /// Command line.
    pub command_line: Vec<String>,
    /// What runs its code.
    pub runtime: Runtime,
    /// Container id, 64 hexadecimal digits, from the cgroup.
    pub container_id: Option<Box<str>>,
}
