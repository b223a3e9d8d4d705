//! What was learned about sampled processes, while they were there to be asked.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_common::python::NATIVE_MARK;
use ebpf_common::sample::SampleKey;
use profile::python::PYTHON_FRAME;
use profile::v8::SCRIPT_FRAME;
use profile::{Counted, Thread};

use super::python::PythonFrames;
use super::target::{Identity, Target};
use super::unwind::Unwinder;
use super::v8::ScriptFrames;
use crate::probes::sampler::{Translated, UserStack};
use crate::process::{Process, ProcessTable};
use crate::symbolize::{ImageKey, Images, NamelessFiles, Request};

/// Most process images that are kept in mind. What continuous profiling keeps is bounded by memory
/// well before.
const MAX_IDENTITIES: usize = 65_536;

/// How long a profile waits for the unwind rows of the processes that it is of.
const PREPARATION: Duration = Duration::from_millis(300);

/// Most processes whose rows are waited for.
const MAX_PREPARED: usize = 512;

/// Service name of the kernel's own threads.
const KERNEL: &str = "kernel";

/// See the module.
pub(super) struct Known {
    processes: Arc<ProcessTable>,
    images: Images,
    identities: HashMap<ImageKey, Identity>,
    /// Met since something was forgotten last: their samples may still be in the kernel's map.
    young: HashSet<ImageKey>,
    unwinder: Unwinder,
    python: PythonFrames,
    scripts: ScriptFrames,
}

impl Known {
    /// Nothing yet.
    pub(super) fn new(processes: Arc<ProcessTable>, unwinder: Unwinder) -> Self {
        Self {
            processes,
            images: Images::new("/proc"),
            identities: HashMap::new(),
            young: HashSet::new(),
            python: PythonFrames::new("/proc", unwinder.python().clone()),
            scripts: ScriptFrames::new("/proc", unwinder.v8().clone()),
            unwinder,
        }
    }

    /// Has the unwind rows of the processes of a target loaded before they are sampled.
    pub(super) fn prepare(&mut self, target: &Target) {
        let until = Instant::now() + PREPARATION;
        match target {
            Target::Pid(pid) => self.unwinder.prepare([*pid], until),
            _ => {
                let members = target.members(&self.processes).take(MAX_PREPARED);
                self.unwinder.prepare(members, until);
            }
        }
    }

    /// Learns what has to be known of a sampled process before it ends. Where it runs an interpreter,
    /// gives back its stack with the interpreter's frames.
    pub(super) fn observe(&mut self, key: &SampleKey, stack: &UserStack<'_>) -> Option<Translated> {
        let image = ImageKey::of_sample(key);
        self.unwinder.observe(key);
        let native: Vec<_> = stack
            .native
            .iter()
            .map(|word| word & !NATIVE_MARK)
            .collect();
        self.images.observe(image, key.tid, &native);
        if self.identities.len() < MAX_IDENTITIES {
            let identity = || {
                // The kernel's own threads have no memory of their own, and no executable.
                let process = if key.image == 0 && native.is_empty() {
                    Arc::new(Process::unknown(key.pid, KERNEL))
                } else {
                    self.processes.lookup(key.pid)
                };
                Identity::read(process, Path::new("/proc"))
            };
            self.identities.entry(image).or_insert_with(|| {
                self.young.insert(image);
                identity()
            });
        }
        self.python
            .translate(key, stack)
            .or_else(|| self.scripts.translate(key, stack))
    }

    /// See [`Images::take_nameless`].
    pub(super) fn take_nameless(&mut self) -> NamelessFiles {
        self.images.take_nameless()
    }

    /// Who a sampled thread belongs to.
    pub(super) fn identity(&self, thread: &Thread) -> Option<&Identity> {
        self.identities.get(&ImageKey::of(thread))
    }

    /// Asks anew which cgroups the processes are in: they can be moved at any time.
    pub(super) fn refresh_cgroups(&mut self) {
        for identity in self.identities.values_mut() {
            identity.refresh_cgroups(Path::new("/proc"));
        }
    }

    /// Names of the sampled services.
    pub(super) fn services(&self) -> impl Iterator<Item = &str> {
        self.identities
            .values()
            .map(|identity| &*identity.process.service)
    }

    /// The stacks with what is needed to resolve them.
    pub(super) fn request(&mut self, counted: Vec<Counted>) -> Request {
        let keys: HashSet<_> = counted
            .iter()
            .map(|counted| ImageKey::of(&counted.thread))
            .collect();
        self.images.find_perf_maps(&keys);
        let services = keys.iter().filter_map(|key| {
            let identity = self.identities.get(key)?;
            Some((*key, Arc::clone(&identity.process.service)))
        });
        let images = keys
            .iter()
            .filter_map(|key| Some((*key, self.images.get(*key)?.clone())));
        let mut interpreted = HashMap::new();
        for frame in counted.iter().flat_map(|counted| &counted.stack.user) {
            let function = match frame & SCRIPT_FRAME {
                SCRIPT_FRAME => self.scripts.function(*frame),
                PYTHON_FRAME => self.python.function(*frame),
                _ => None,
            };
            if let Some(function) = function {
                interpreted
                    .entry(*frame)
                    .or_insert_with(|| function.clone());
            }
        }
        Request {
            interpreted,
            images: images.collect(),
            services: services.collect(),
            counted,
        }
    }

    /// Forgets the processes that nobody has samples of: those not among `sampled`.
    pub(super) fn retain(&mut self, sampled: HashSet<ImageKey>) {
        let mut kept = sampled;
        kept.extend(self.young.drain());
        self.images.retain(&kept);
        self.python.retain(&kept);
        self.scripts.retain(&kept);
        self.identities.retain(|key, _| kept.contains(key));
    }

    /// Forgets everything and closes the files.
    pub(super) fn clear(&mut self) {
        self.images.clear();
        self.python.clear();
        self.scripts.clear();
        self.identities.clear();
        self.young.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_forgotten_when_nobody_has_samples_of_it() {
        let mut known = Known::new(Arc::new(ProcessTable::default()), Unwinder::idle());
        let key = |image| SampleKey {
            stack_hash: [0; 2],
            image,
            pid: std::process::id(),
            tid: std::process::id(),
            epoch: 1,
            flags: 0,
            comm: [0; 16],
        };
        let nothing = UserStack {
            native: &[],
            python: &[],
            functions: &[],
        };
        let image = |image| ImageKey {
            pid: std::process::id(),
            image,
        };
        known.observe(&key(1), &nothing);
        known.observe(&key(2), &nothing);
        // Their samples may not have been read yet.
        known.retain(HashSet::new());
        assert_eq!(known.identities.len(), 2);
        known.retain(HashSet::from([image(2)]));
        assert_eq!(known.identities.keys().collect::<Vec<_>>(), [&image(2)]);
        known.observe(&key(1), &nothing);
        known.retain(HashSet::new());
        assert_eq!(known.identities.keys().collect::<Vec<_>>(), [&image(1)]);
    }
}
