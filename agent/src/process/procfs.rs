//! Reads one process from `/proc`, each file bounded, all through one handle on its folder, so
//! that a pid that is reused in between yields an error, never a mixture.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use procfs::process::{Process as Folder, Stat};

use super::cgroup::Cgroup;
use super::container::ContainerNames;
use super::name::{Environment, clean, executable_name, workload_name};
use super::script::{Script, script};
use super::{NameSource, Pod, Process, Runtime, runtime};

const MAX_COMMAND_LINE_BYTES: u64 = 4096;
const MAX_ENVIRONMENT_BYTES: u64 = 256 << 10;
const MAX_CGROUP_BYTES: u64 = 64 << 10;
/// Executables whose runtime is remembered; beyond, all are looked at again.
const MAX_EXECUTABLES: usize = 4096;
/// `PF_KTHREAD` of `include/linux/sched.h`.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// A file as it was: device, inode, time of its last change in nanoseconds.
type FileVersion = (u64, u64, i128);

/// Reads processes below `/proc`.
#[derive(Debug)]
pub(super) struct Reader {
    root: PathBuf,
    containers: ContainerNames,
    runtimes: Mutex<HashMap<FileVersion, Runtime>>,
}

impl Reader {
    pub(super) fn new(root: PathBuf) -> Self {
        // The node's first process stands in the node's root folder, wherever the agent stands.
        // Where it may not be followed, the agent's own root is the best guess.
        let node_root = root.join("1/root");
        let node_root = match std::fs::read_dir(&node_root) {
            Ok(_) => node_root,
            Err(_) => PathBuf::from("/"),
        };
        let containers = ContainerNames::new(node_root);
        Self {
            root,
            containers,
            runtimes: Mutex::default(),
        }
    }

    /// Pids that `/proc` lists.
    pub(super) fn pids(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(&self.root) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Start time of a process that runs; `None` for one that has ended, a zombie too.
    pub(super) fn start_ticks(&self, pid: u32) -> Option<u64> {
        let stat = self.folder(pid)?.stat().ok()?;
        (!has_ended(&stat)).then_some(stat.starttime)
    }

    /// Whether the process is still `known`: started when it was, running what it ran.
    pub(super) fn is_unchanged(&self, known: &Process) -> bool {
        let Some(folder) = self.folder(known.pid) else {
            return false;
        };
        folder
            .stat()
            .is_ok_and(|stat| !has_ended(&stat) && stat.starttime == known.start_ticks)
            && folder.exe().unwrap_or_default() == known.executable
            && read_command_line(&folder) == known.command_line
    }

    /// A process with all that `/proc` tells; `None` when it has ended and for kernel threads.
    pub(super) fn read(&self, pid: u32) -> Option<Process> {
        let folder = self.folder(pid)?;
        let stat = folder.stat().ok()?;
        if has_ended(&stat) || stat.flags & KERNEL_THREAD != 0 {
            return None;
        }
        let executable = folder.exe().unwrap_or_default();
        let command_line = read_command_line(&folder);
        let environment = Environment::parse(&read(&folder, "environ", MAX_ENVIRONMENT_BYTES));
        let cgroup = read(&folder, "cgroup", MAX_CGROUP_BYTES);
        let cgroup = Cgroup::parse(&String::from_utf8_lossy(&cgroup));
        let container = cgroup
            .container_id
            .as_deref()
            .and_then(|id| self.containers.find(id));

        // In Kubernetes the host name is the pod's, save where the pod uses the node's network.
        let pod_name = container
            .as_ref()
            .and_then(|container| container.pod.clone())
            .or_else(|| {
                let own = cgroup.pod_uid.is_some() && !self.shares_host_name(&folder);
                environment.hostname.filter(|_| own).map(Into::into)
            });
        let container_service = match (&container, &pod_name) {
            (Some(container), _) => Some(container.service.to_string()),
            (None, Some(pod)) => clean(workload_name(pod)),
            (None, None) => None,
        };
        let comm = &stat.comm;
        let (service, service_source) = if let Some(name) = environment.service_name {
            (name, NameSource::Environment)
        } else if let Some(name) = container_service {
            (name, NameSource::Container)
        } else {
            self.program_name(&folder, &stat, &executable, &command_line)
        };
        Some(Process {
            pid,
            start_ticks: stat.starttime,
            service: clean(&service)
                .or_else(|| clean(comm))
                .unwrap_or_else(|| "unknown".into())
                .into(),
            service_source,
            service_namespace: environment.service_namespace.map(Into::into),
            runtime: self.runtime(&folder, &executable),
            executable,
            command_line,
            container_id: cgroup.container_id,
            container_name: container
                .as_ref()
                .map(|container| container.container.clone()),
            pod: cgroup.pod_uid.map(|uid| {
                Box::new(Pod {
                    uid,
                    name: pod_name,
                    namespace: container.and_then(|container| container.namespace),
                })
            }),
        })
    }

    /// The script, else the executable's name.
    fn program_name(
        &self,
        folder: &Folder,
        stat: &Stat,
        executable: &Path,
        command_line: &[String],
    ) -> (String, NameSource) {
        let directory = folder.cwd().ok();
        let mut found = script(executable, command_line, directory.as_deref());
        if found == Script::AsParent
            && let Some(parent) = u32::try_from(stat.ppid)
                .ok()
                .and_then(|pid| self.folder(pid))
        {
            let arguments = read_command_line(&parent);
            let executable = parent.exe().unwrap_or_default();
            found = script(&executable, &arguments, parent.cwd().ok().as_deref());
        }
        if let Script::Named(name) = found
            && let Some(name) = clean(&name)
        {
            return (name, NameSource::Script);
        }
        match executable_name(executable) {
            Some(name) => (name, NameSource::Executable),
            None => (stat.comm.clone(), NameSource::Comm),
        }
    }

    /// Whether the process has the same host name as the node's first process.
    fn shares_host_name(&self, folder: &Folder) -> bool {
        let namespace = |path: &Path| std::fs::read_link(path.join("ns/uts")).ok();
        let node = namespace(&self.root.join("1"));
        node.is_some() && node == namespace(&self.root.join(folder.pid().to_string()))
    }

    fn runtime(&self, folder: &Folder, executable: &Path) -> Runtime {
        if let Some(runtime) = runtime::by_name(executable) {
            return runtime;
        }
        let lock = || self.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, version)) = open_executable(folder) else {
            return Runtime::Unknown;
        };
        if let Some(known) = lock().get(&version) {
            return *known;
        }
        let found = runtime::by_file(file);
        let mut known = lock();
        if known.len() >= MAX_EXECUTABLES {
            known.clear();
        }
        known.insert(version, found);
        found
    }

    fn folder(&self, pid: u32) -> Option<Folder> {
        Folder::new_with_root(self.root.join(pid.to_string())).ok()
    }
}

/// Splits a command line: arguments, each ended by NUL.
pub(super) fn command_line(block: &[u8]) -> Vec<String> {
    // A program that set its title leaves the rest of the space as NUL bytes.
    let end = block
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    if end == 0 {
        return Vec::new();
    }
    block[..end]
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

fn read_command_line(folder: &Folder) -> Vec<String> {
    command_line(&read(folder, "cmdline", MAX_COMMAND_LINE_BYTES))
}

fn has_ended(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x')
}

fn open_executable(folder: &Folder) -> Option<(File, FileVersion)> {
    let file = folder.open_relative("exe").ok()?;
    let metadata = file.metadata().ok()?;
    let changed_ns =
        i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Some((file, (metadata.dev(), metadata.ino(), changed_ns)))
}

/// As much of a file as `limit` allows; empty where it cannot be read.
fn read(folder: &Folder, name: &str, limit: u64) -> Vec<u8> {
    let mut content = Vec::new();
    if let Ok(file) = folder.open_relative(name) {
        // What was read before an error is still true.
        let _ = file.take(limit).read_to_end(&mut content);
    }
    content
}
