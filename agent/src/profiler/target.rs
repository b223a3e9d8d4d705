//! What is profiled, and whether a sample belongs to it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use profile::Thread;

use crate::process::Process;

/// Most cgroups of one process: a host has about a dozen hierarchies at the most.
const MAX_CGROUPS: usize = 16;

/// What is profiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One process.
    Pid(u32),
    /// One thread.
    Tid(u32),
    /// Every process of a service.
    Service(String),
    /// Every process of a container, by its id or the beginning of it.
    Container(String),
    /// Every process of a cgroup and of those below it, by its path (`/system.slice/nginx.service`).
    Cgroup(String),
    /// Everything that runs on this host.
    All,
}

/// Which samples a profile is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Whose.
    pub target: Target,
    /// Of threads with this name alone.
    pub thread: Option<String>,
}

impl From<Target> for Selector {
    fn from(target: Target) -> Self {
        Self {
            target,
            thread: None,
        }
    }
}

/// What a person reads above the profile.
impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Pid(pid) => write!(formatter, "process {pid}"),
            Target::Tid(tid) => write!(formatter, "thread {tid}"),
            Target::Service(name) => formatter.write_str(name),
            Target::Container(id) => write!(formatter, "container {id}"),
            Target::Cgroup(path) => write!(formatter, "cgroup {path}"),
            Target::All => formatter.write_str("everything on this host"),
        }?;
        match &self.thread {
            Some(name) => write!(formatter, ", threads called {name}"),
            None => Ok(()),
        }
    }
}

/// Who a sampled process is.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) process: Arc<Process>,
    cgroups: Box<[Box<str>]>,
}

impl Identity {
    /// With the process's cgroups; there are none when it has ended.
    pub(super) fn read(process: Arc<Process>, proc_root: &Path) -> Self {
        let mut identity = Self::without_cgroups(process);
        identity.refresh_cgroups(proc_root);
        identity
    }

    /// Asks the kernel for the process's cgroups. One that has ended keeps those that it had.
    pub(super) fn refresh_cgroups(&mut self, proc_root: &Path) {
        let path = proc_root.join(format!("{}/cgroup", self.process.pid));
        if let Ok(lines) = fs::read_to_string(path) {
            self.cgroups = cgroups(&lines);
        }
    }

    /// Who it is, where its cgroups don't matter.
    pub(super) fn without_cgroups(process: Arc<Process>) -> Self {
        Self {
            process,
            cgroups: Box::default(),
        }
    }
}

/// Paths of `/proc/PID/cgroup`, `hierarchy:controllers:path` (cgroups(7)), each once.
fn cgroups(lines: &str) -> Box<[Box<str>]> {
    let mut paths: Vec<Box<str>> = lines
        .lines()
        // The path may hold colons itself.
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(Into::into)
        .collect();
    paths.sort();
    paths.dedup();
    paths.truncate(MAX_CGROUPS);
    paths.into()
}

impl Selector {
    /// Is it a sample of a thread of this process that is meant? Nothing but its numbers is known
    /// of a process that ended too soon.
    pub(super) fn includes(&self, thread: &Thread, identity: Option<&Identity>) -> bool {
        let named = self
            .thread
            .as_ref()
            .is_none_or(|name| **name == *thread.name);
        named
            && match &self.target {
                Target::All => true,
                Target::Pid(pid) => thread.pid == *pid,
                Target::Tid(tid) => thread.tid == *tid,
                Target::Service(_) | Target::Container(_) | Target::Cgroup(_) => {
                    identity.is_some_and(|identity| self.target.includes_process(identity))
                }
            }
    }
}

impl Target {
    /// Does the process belong to the service, container or cgroup? Others are told apart by their
    /// numbers alone.
    pub(super) fn includes_process(&self, identity: &Identity) -> bool {
        let process = &identity.process;
        match self {
            Self::All | Self::Pid(_) | Self::Tid(_) => true,
            Self::Service(name) => *process.service == **name,
            Self::Container(id) => {
                let container = process.container_id.as_deref();
                container.is_some_and(|container| container.starts_with(&**id))
            }
            Self::Cgroup(path) => identity.cgroups.iter().any(|own| is_below(own, path)),
        }
    }
}

/// Is the cgroup `path` the one that was asked for, or below it?
fn is_below(path: &str, asked: &str) -> bool {
    path.strip_prefix(asked.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let mut process = Process::unknown(7, "shop");
        process.container_id = Some("0123456789abcdef".into());
        Identity {
            process: Arc::new(process),
            cgroups: cgroups("12:cpu:/a/b\n1:name=systemd:/a/b\n0::/kubepods/c:1/d\n"),
        }
    }

    fn thread() -> Thread {
        Thread {
            pid: 7,
            tid: 8,
            image: 1,
            name: "worker".into(),
        }
    }

    #[test]
    fn a_target_includes_its_processes() {
        for (target, included) in [
            (Target::All, true),
            (Target::Pid(7), true),
            (Target::Pid(8), false),
            (Target::Tid(8), true),
            (Target::Tid(7), false),
            (Target::Service("shop".into()), true),
            (Target::Service("sho".into()), false),
            (Target::Container("01234567".into()), true),
            (Target::Container("12345678".into()), false),
            (Target::Cgroup("/a".into()), true),
            (Target::Cgroup("/a/b/".into()), true),
            (Target::Cgroup("/a/b/c".into()), false),
            (Target::Cgroup("/a/".into()), true),
            (Target::Cgroup("/kubepods/c:1".into()), true),
            (Target::Cgroup("/kubepods/c".into()), false),
        ] {
            let selector = Selector::from(target);
            let result = selector.includes(&thread(), Some(&identity()));
            assert_eq!(result, included, "{selector:?}");
        }
    }

    #[test]
    fn a_thread_is_selected_by_its_name_too() {
        let named = |name: &str| Selector {
            target: Target::Service("shop".into()),
            thread: Some(name.to_owned()),
        };
        assert!(named("worker").includes(&thread(), Some(&identity())));
        assert!(!named("work").includes(&thread(), Some(&identity())));
        assert!(!named("worker").includes(&thread(), None));
    }

    #[test]
    fn this_process_has_cgroups() {
        let own = std::process::id();
        let process = Arc::new(Process::unknown(own, ""));
        let identity = Identity::read(process, Path::new("/proc"));
        assert!(identity.cgroups.iter().all(|path| path.starts_with('/')));
        assert!(Target::Cgroup("/".into()).includes_process(&identity));
    }
}
