//! CPython's frames: which processes run it, and the names of what was sampled in them, read from
//! their memory while they run on.

mod attach;
mod frames;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use profile::python::{Layout, Memory};

pub(super) use attach::{AttachError, attach};
pub(super) use frames::PythonFrames;

/// The processes that run CPython: found by the unwinder's thread, asked by the profiler's.
#[derive(Clone, Debug, Default)]
pub struct PythonProcesses(Arc<Mutex<HashMap<u32, Known>>>);

/// A process image that runs CPython.
#[derive(Clone, Debug)]
pub struct Known {
    /// See `SampleKey::image`.
    pub image: u64,
    /// Where it keeps its frames, or why they are not read.
    pub layout: Result<Arc<Layout>, AttachError>,
}

impl PythonProcesses {
    /// What is known of a process; `None` where it does not run CPython.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<Known> {
        self.lock().get(&pid).cloned()
    }

    pub(super) fn set(&self, pid: u32, known: Known) {
        self.lock().insert(pid, known);
    }

    pub(super) fn remove(&self, pid: u32) {
        self.lock().remove(&pid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory of a process, as long as it keeps its image.
pub(super) struct ProcessMemory(File);

impl ProcessMemory {
    /// Opens it. A process whose main thread has ended has it all the same.
    pub(super) fn open(proc_root: &Path, pid: u32) -> io::Result<Self> {
        Ok(Self(File::open(proc_root.join(format!("{pid}/mem")))?))
    }
}

/// Reading does not stop the process.
impl Memory for ProcessMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Option<()> {
        // The offset of a file is signed, and so user addresses alone can be asked for.
        i64::try_from(address).ok()?;
        self.0.read_exact_at(into, address).ok()
    }
}
