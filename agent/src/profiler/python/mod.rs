//! CPython's frames: which processes run it, and the names of what was sampled in them, read from
//! their memory while they run on.

mod attach;
mod frames;

use std::sync::Arc;

use profile::python::Layout;

use super::interpreted::Interpreted;

pub(super) use attach::{AttachError, attach};
pub(super) use frames::PythonFrames;

/// The processes that run CPython.
pub type PythonProcesses = Interpreted<Known>;

/// A process image that runs CPython.
#[derive(Clone, Debug)]
pub struct Known {
    /// See `SampleKey::image`.
    pub image: u64,
    /// Where it keeps its frames, or why they are not read.
    pub layout: Result<Arc<Layout>, AttachError>,
}

impl Known {
    /// What people read of it.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.layout {
            Ok(layout) => format!("CPython {}", layout.version),
            Err(error) => format!("CPython, not read: {error}"),
        }
    }
}
