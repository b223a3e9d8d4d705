//! Which processes run CPython, and their elements in the kernel's map.
//!
//! A process that has just begun has its interpreter's file mapped before there is an interpreter:
//! it is looked at again until there is one.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_common::python::{MAX_PYTHON_PROCESSES, PythonProcess};
use profile::python::PythonFile;

use super::super::python::{self, AttachError, PythonProcesses, attach};
use super::{KnownFile, Worker};
use crate::symbolize::maps::MapsEntry;

/// How often an interpreter that has not begun is looked for.
const AGAIN: Duration = Duration::from_millis(20);

/// For how long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A wait that others shorten.
const LONG: Duration = Duration::from_secs(3600);

/// The interpreter of a process image.
struct Interpreter {
    image: u64,
    file: PythonFile,
    bias: u64,
    /// When it was met.
    since: Instant,
    state: State,
}

enum State {
    /// Not looked at, or looked at in vain.
    Awaited,
    /// The kernel side reads its frames.
    Attached(u32),
    /// They can't be read.
    Refused,
}

/// See the module.
pub(super) struct Interpreters {
    by_pid: HashMap<u32, Interpreter>,
    /// Elements that no process has, the one that was given up first in front.
    free: VecDeque<u32>,
    told: PythonProcesses,
}

impl Interpreters {
    pub(super) fn new(told: PythonProcesses) -> Self {
        Self {
            by_pid: HashMap::new(),
            free: (1..MAX_PYTHON_PROCESSES as u32).collect(),
            told,
        }
    }

    /// Takes note of a range that a process image has mapped.
    pub(super) fn note(
        &mut self,
        pid: u32,
        image: u64,
        entry: &MapsEntry,
        file: Option<&KnownFile>,
    ) {
        let Some(KnownFile {
            code,
            python: Some(file),
            ..
        }) = file
        else {
            return;
        };
        if self
            .by_pid
            .get(&pid)
            .is_some_and(|known| known.image == image)
        {
            return;
        }
        let segment = code
            .iter()
            .find(|segment| segment.is_mapped_at(entry.file_offset));
        let Some(segment) = segment else {
            return;
        };
        self.forget(pid);
        let interpreter = Interpreter {
            image,
            file: *file,
            bias: entry
                .start
                .wrapping_sub(segment.address_at(entry.file_offset)),
            since: Instant::now(),
            state: State::Awaited,
        };
        self.by_pid.insert(pid, interpreter);
    }

    /// The element of a process image; 0 where it has none.
    pub(super) fn element(&self, pid: u32, image: u64) -> u32 {
        match self.by_pid.get(&pid) {
            Some(Interpreter {
                image: known,
                state: State::Attached(element),
                ..
            }) if *known == image => *element,
            _ => 0,
        }
    }

    /// Gives up the element of a process.
    fn refuse(&mut self, pid: u32) {
        if let Some(interpreter) = self.by_pid.get_mut(&pid)
            && let State::Attached(element) =
                std::mem::replace(&mut interpreter.state, State::Refused)
        {
            self.free.push_back(element);
        }
    }

    pub(super) fn forget(&mut self, pid: u32) {
        if let Some(interpreter) = self.by_pid.remove(&pid) {
            self.told.remove(pid);
            if let State::Attached(element) = interpreter.state {
                self.free.push_back(element);
            }
        }
    }

    /// Is any looked for again?
    pub(super) fn are_awaited(&self) -> bool {
        self.by_pid.values().any(Interpreter::is_awaited)
    }

    /// Until then.
    pub(super) fn wait(&self) -> Duration {
        if self.are_awaited() { AGAIN } else { LONG }
    }

    /// Looks at the interpreter of a process. Gives its element and what belongs there, once.
    fn attach(&mut self, proc_root: &Path, pid: u32) -> Option<(u32, PythonProcess)> {
        let interpreter = self.by_pid.get_mut(&pid)?;
        if !interpreter.is_awaited() {
            return None;
        }
        let file = &interpreter.file;
        let tell = |layout| {
            let image = interpreter.image;
            self.told.set(pid, python::Known { image, layout });
        };
        match attach(proc_root, pid, file, interpreter.bias) {
            Ok(layout) => {
                let process = layout.process;
                let Some(element) = self.free.pop_front() else {
                    tracing::warn!(pid, "no room for one more process that runs CPython");
                    interpreter.state = State::Refused;
                    return None;
                };
                tracing::debug!(pid, version = %layout.version, "frames of CPython are read");
                tell(Ok(Arc::new(layout)));
                interpreter.state = State::Attached(element);
                Some((element, process))
            }
            Err(error) if error.may_pass() && interpreter.since.elapsed() < PATIENCE => None,
            Err(error) => {
                refuse(pid, &error);
                tell(Err(error));
                interpreter.state = State::Refused;
                None
            }
        }
    }
}

fn refuse(pid: u32, error: &AttachError) {
    if error.has_ended() {
        return tracing::debug!(pid, %error, "a process that ran CPython has ended");
    }
    tracing::info!(pid, %error, "a process runs CPython, but its frames are not read");
}

impl Interpreter {
    fn is_awaited(&self) -> bool {
        matches!(self.state, State::Awaited)
    }
}

impl Worker {
    /// Tells the kernel side where the interpreter of a process keeps its frames, if that is known
    /// since now. They are read once the process's element says so.
    pub(super) fn attach(&mut self, pid: u32) -> bool {
        let Some((element, process)) = self.interpreters.attach(&self.proc_root, pid) else {
            return false;
        };
        if let Err(error) = self.maps.set_python(element, process) {
            tracing::warn!(pid, %error, "frames of CPython are not read");
            self.interpreters.refuse(pid);
            return false;
        }
        true
    }

    /// Looks again for the interpreters that had not begun.
    pub(super) fn attach_awaited(&mut self) {
        let interpreters = self.interpreters.by_pid.iter();
        let awaited: Vec<_> = interpreters
            .filter(|(_, interpreter)| interpreter.is_awaited())
            .map(|(pid, _)| *pid)
            .collect();
        for pid in awaited {
            if !self.attach(pid) {
                continue;
            }
            let Some(known) = self.processes.get(&pid) else {
                continue;
            };
            let element = self.element(pid, known.image, &known.range, known.version);
            if let Err(error) = self.maps.set_process(pid, element) {
                tracing::warn!(pid, %error, "frames of CPython are not read");
            }
        }
    }
}
