//! What both kinds of interpreters have in common: the processes that run one, and their memory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use profile::python::Memory;

/// The processes that run an interpreter: found by the unwinder's thread, asked by the profiler's.
/// Clones share them.
#[derive(Debug)]
pub struct Interpreted<T>(Arc<Mutex<HashMap<u32, T>>>);

impl<T: Clone> Interpreted<T> {
    /// What is known of a process; `None` where it does not run the interpreter.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<T> {
        self.lock().get(&pid).cloned()
    }

    pub(super) fn set(&self, pid: u32, known: T) {
        self.lock().insert(pid, known);
    }

    pub(super) fn remove(&self, pid: u32) {
        self.lock().remove(&pid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Interpreted<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Interpreted<T> {
    fn default() -> Self {
        Self(Arc::default())
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
