//! What is profiled, and whether a sample belongs to it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use profile::{Thread, Work};
use protocol::elasticsearch::is_operation;
use protocol::known_method;

use super::{MAX_LISTED, MIN_CONTAINER_ID_LEN, ProfileError};
use crate::process::{Process, ProcessTable};

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
    /// Of this work alone.
    pub work: WorkFilter,
}

impl From<Target> for Selector {
    fn from(target: Target) -> Self {
        Self {
            target,
            thread: None,
            work: WorkFilter::default(),
        }
    }
}

/// What the threads worked on whose samples are meant; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkFilter {
    /// Route of the request that they served.
    pub route: Option<String>,
    /// Its method.
    pub method: Option<String>,
    /// The Elasticsearch operation that they waited for.
    pub operation: Option<String>,
}

impl WorkFilter {
    /// Whether all samples are meant.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.route.is_none() && self.method.is_none() && self.operation.is_none()
    }

    /// Whether that is what is meant.
    #[must_use]
    pub fn includes(&self, work: &Work) -> bool {
        let request = work.request.as_ref();
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        is(&self.route, request.map(|request| &*request.route))
            && is(&self.method, request.map(|request| request.method))
            && is(&self.operation, work.operation)
    }

    /// Whether there can be such work at all.
    ///
    /// # Errors
    /// What there can't be.
    fn validate(&self) -> Result<(), ProfileError> {
        let is_route = |route: &String| route.starts_with(['/', '*', '{']);
        if let Some(route) = self.route.as_ref().filter(|route| !is_route(route)) {
            return Err(ProfileError::Route(route.clone()));
        }
        let is_method = |method: &String| known_method(method) == method || method == "_OTHER";
        if let Some(method) = self.method.as_ref().filter(|method| !is_method(method)) {
            return Err(ProfileError::Method(method.clone()));
        }
        let is_none = |operation: &&String| !is_operation(operation);
        match self.operation.as_ref().filter(is_none) {
            Some(operation) => Err(ProfileError::Operation(operation.clone())),
            None => Ok(()),
        }
    }
}

impl fmt::Display for WorkFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("route", &self.route),
            ("method", &self.method),
            ("operation", &self.operation),
        ];
        let mut separator = "";
        for (key, value) in parts {
            if let Some(value) = value {
                write!(formatter, "{separator}{key} {value}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// Other work than what was asked for, for whoever misspelt it; bounded.
#[derive(Debug, Default)]
pub(super) struct OtherWork(BTreeSet<Work>);

impl OtherWork {
    pub(super) fn note(&mut self, work: &Work) {
        if !work.is_unknown() && self.0.len() <= MAX_LISTED && !self.0.contains(work) {
            self.0.insert(work.clone());
        }
    }

    /// Why there is nothing, where there is something else.
    pub(super) fn refusal(&self, asked: &WorkFilter) -> Option<ProfileError> {
        let mut known: Vec<_> = self.0.iter().map(Work::to_string).collect();
        if known.len() > MAX_LISTED {
            known.truncate(MAX_LISTED);
            known.push("…".to_owned());
        }
        (!known.is_empty()).then(|| ProfileError::NoSuchWork {
            asked: asked.to_string(),
            known: known.join(", "),
        })
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
        }?;
        if self.work.is_any() {
            return Ok(());
        }
        write!(formatter, ", {}", self.work)
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
    /// Whether there can be such samples, on any host.
    ///
    /// # Errors
    /// What there can't be; the message begins with the key of what is wrong.
    pub fn validate(&self) -> Result<(), ProfileError> {
        match &self.target {
            Target::Container(id) if id.len() < MIN_CONTAINER_ID_LEN => {
                Err(ProfileError::ContainerId(id.clone()))
            }
            Target::Cgroup(path) if !path.starts_with('/') => {
                Err(ProfileError::CgroupPath(path.clone()))
            }
            _ => self.work.validate(),
        }
    }

    /// Of so many samples that were lost on the whole host, how many were of what is meant, and how many
    /// may have been anybody's.
    pub(super) fn share_of_lost(&self, lost: u64) -> (u64, u64) {
        if self.target == Target::All && self.is_of_all() {
            (lost, 0)
        } else {
            (0, lost)
        }
    }

    /// Are all samples of the target meant?
    pub(super) fn is_of_all(&self) -> bool {
        self.thread.is_none() && self.work.is_any()
    }

    /// Is it a sample that is meant? Where only its work is another one, `other` takes note of that.
    pub(super) fn includes(
        &self,
        thread: &Thread,
        identity: Option<&Identity>,
        other: &mut OtherWork,
    ) -> bool {
        if !self.includes_thread(thread, identity) {
            return false;
        }
        let included = self.work.includes(&thread.work);
        if !included {
            other.note(&thread.work);
        }
        included
    }

    /// Is it a thread of this process that is meant? Nothing but its numbers is known of a process
    /// that ended too soon.
    fn includes_thread(&self, thread: &Thread, identity: Option<&Identity>) -> bool {
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
    /// The processes that are known and belong to it now. Of the host, those are all.
    pub(super) fn members(&self, processes: &ProcessTable) -> impl Iterator<Item = u32> {
        let listed = processes.list().into_iter();
        listed.filter_map(|listed| {
            let pid = listed.process.pid;
            let identity = match self {
                Self::Cgroup(_) => Identity::read(listed.process, Path::new("/proc")),
                _ => Identity::without_cgroups(listed.process),
            };
            let belongs = match self {
                Self::Pid(wanted) => pid == *wanted,
                Self::Tid(tid) => Path::new(&format!("/proc/{pid}/task/{tid}")).exists(),
                _ => self.includes_process(&identity),
            };
            belongs.then_some(pid)
        })
    }

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
    use profile::Request;

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
            work: Work::default(),
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
            let result = selector.includes_thread(&thread(), Some(&identity()));
            assert_eq!(result, included, "{selector:?}");
        }
    }

    #[test]
    fn a_thread_is_selected_by_its_name_too() {
        let named = |name: &str| Selector {
            target: Target::Service("shop".into()),
            thread: Some(name.to_owned()),
            work: WorkFilter::default(),
        };
        assert!(named("worker").includes_thread(&thread(), Some(&identity())));
        assert!(!named("work").includes_thread(&thread(), Some(&identity())));
        assert!(!named("worker").includes_thread(&thread(), None));
    }

    fn work(method: &'static str, route: &str) -> Work {
        Work {
            request: Some(Request {
                route: route.into(),
                method,
            }),
            operation: None,
        }
    }

    fn filter(route: Option<&str>, method: Option<&str>, operation: Option<&str>) -> WorkFilter {
        let [route, method, operation] =
            [route, method, operation].map(|text| text.map(ToOwned::to_owned));
        WorkFilter {
            route,
            method,
            operation,
        }
    }

    #[test]
    fn work_is_selected_by_each_of_its_names() {
        let get = work("GET", "/a/{id}");
        let search = Work {
            operation: Some("search"),
            ..get.clone()
        };
        let unknown = Work::default();
        for (filter, included) in [
            (filter(None, None, None), [true, true, true]),
            (filter(Some("/a/{id}"), None, None), [false, true, true]),
            (filter(Some("/a/"), None, None), [false, false, false]),
            (filter(None, Some("GET"), None), [false, true, true]),
            (
                filter(Some("/a/{id}"), Some("PUT"), None),
                [false, false, false],
            ),
            (filter(None, None, Some("search")), [false, false, true]),
            (filter(None, None, Some("bulk")), [false, false, false]),
        ] {
            let found = [&unknown, &get, &search].map(|work| filter.includes(work));
            assert_eq!(found, included, "{filter:?}");
        }
    }

    #[test]
    fn work_that_cannot_be_is_refused() {
        let valid = filter(Some("/a"), Some("GET"), Some("cluster.health"));
        assert!(valid.validate().is_ok());
        for (filter, reason) in [
            (
                filter(Some("a/{id}"), None, None),
                "route is \"a/{id}\": a template as http_route has it is needed, such as /users/{id}",
            ),
            (
                filter(None, Some("get"), None),
                "method is \"get\": one of HTTP's in capitals is needed, or _OTHER",
            ),
            (
                filter(None, None, Some("find")),
                "operation is \"find\": an endpoint id of Elasticsearch's REST specification is needed, \
                 such as search",
            ),
        ] {
            assert_eq!(filter.validate().unwrap_err().to_string(), reason);
        }
    }

    #[test]
    fn other_work_is_listed_where_there_is_any() {
        let asked = filter(Some("/b"), None, None);
        let mut other = OtherWork::default();
        other.note(&Work::default());
        assert!(other.refusal(&asked).is_none());
        other.note(&work("GET", "/a/{id}"));
        other.note(&work("GET", "/a/{id}"));
        let refusal = other.refusal(&asked).unwrap();
        assert_eq!(
            refusal.to_string(),
            "no sample of route /b; those there are: GET /a/{id}"
        );
        for number in 0..100 {
            other.note(&work("GET", &format!("/{number}")));
        }
        assert!(other.0.len() <= MAX_LISTED + 1);
        assert!(other.refusal(&asked).unwrap().to_string().ends_with(", …"));
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
