//! V8's functions: which processes run it, and the names of what was sampled in them, read from their
//! memory while they run on.

mod frames;

use std::sync::Arc;

use profile::v8::{V8, V8Error};

use super::interpreted::Interpreted;

pub(super) use frames::ScriptFrames;

/// The processes that run V8.
pub type V8Processes = Interpreted<Known>;

/// A process image that runs V8.
#[derive(Clone, Debug)]
pub struct Known {
    /// See `SampleKey::image`.
    pub image: u64,
    /// Where it keeps its functions, or why they are not read.
    pub v8: Arc<Result<V8, V8Error>>,
}

impl Known {
    /// What people read of it.
    #[must_use]
    pub fn describe(&self) -> String {
        match &*self.v8 {
            Ok(v8) => format!("V8 {}.{}", v8.version.0, v8.version.1),
            Err(error) => format!("V8, not read: {error}"),
        }
    }
}
