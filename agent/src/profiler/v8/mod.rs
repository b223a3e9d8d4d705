//! V8's functions: which processes run it, and the names of what was sampled in them, read from their
//! memory while they run on.

mod frames;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use profile::v8::{V8, V8Error};

pub(super) use frames::ScriptFrames;

/// The processes that run V8: found by the unwinder's thread, asked by the profiler's.
#[derive(Clone, Debug, Default)]
pub struct V8Processes(Arc<Mutex<HashMap<u32, Known>>>);

/// A process image that runs V8.
#[derive(Clone, Debug)]
pub struct Known {
    /// See `SampleKey::image`.
    pub image: u64,
    /// Where it keeps its functions, or why they are not read.
    pub v8: Arc<Result<V8, V8Error>>,
}

impl V8Processes {
    /// What is known of a process; `None` where it does not run V8.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<Known> {
        self.lock().get(&pid).cloned()
    }

    /// What people read of it.
    #[must_use]
    pub fn describe(&self, pid: u32) -> Option<String> {
        Some(match &*self.get(pid)?.v8 {
            Ok(v8) => format!("V8 {}.{}", v8.version.0, v8.version.1),
            Err(error) => format!("V8, not read: {error}"),
        })
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
