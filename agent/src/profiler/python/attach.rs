//! Finding out where a process's interpreter keeps its frames.

use std::io;
use std::path::Path;
use std::sync::Arc;

use ebpf_common::python::kind;
use profile::python::{
    DEBUG_OFFSETS_BYTES, Layout, LayoutError, Memory as _, PythonFile, Unfit, check,
};

use super::super::interpreted::ProcessMemory;

/// Why the frames of a process that runs CPython are not read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AttachError {
    /// Its memory can't be read.
    #[error("its memory cannot be read: {0}")]
    Memory(Arc<io::Error>),
    /// Nothing tells its version.
    #[error("its version cannot be told")]
    NoVersion,
    /// Its version is not known.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The interpreter's loop is needed, and cannot be found: no symbols.
    #[error("its interpreter's loop has no symbol")]
    NoLoop,
    /// Its memory does not look as it should. It may, a moment later.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

impl AttachError {
    /// May another try find what this one did not?
    pub(in super::super) fn may_pass(&self) -> bool {
        matches!(self, Self::Unfit(_))
    }

    /// Is it only that the process has ended?
    pub(in super::super) fn has_ended(&self) -> bool {
        let Self::Memory(error) = self else {
            return false;
        };
        let gone = [libc::ENOENT, libc::ESRCH];
        error
            .raw_os_error()
            .is_some_and(|error| gone.contains(&error))
    }
}

/// Reads where the interpreter of process `pid` keeps its frames, and checks that it does. The file
/// that it is in is loaded `bias` above its own addresses.
pub(in super::super) fn attach(
    proc_root: &Path,
    pid: u32,
    file: &PythonFile,
    bias: u64,
) -> Result<Layout, AttachError> {
    let memory = ProcessMemory::open(proc_root, pid)
        .map_err(|error| AttachError::Memory(Arc::new(error)))?;
    let runtime = file.runtime.wrapping_add(bias);
    let mut begin = vec![0; DEBUG_OFFSETS_BYTES];
    let told = memory
        .read(runtime, &mut begin)
        .and_then(|()| Layout::of_debug_offsets(&begin));
    let mut layout = match told {
        Some(layout) => layout?,
        None => Layout::of_version(file.version.ok_or(AttachError::NoVersion)?)?,
    };
    let mut process = layout.process;
    process.interpreters = runtime.wrapping_add(process.interpreters);
    for (index, (address, len)) in file.loops.into_iter().enumerate() {
        process.loop_starts[index] = address.wrapping_add(bias);
        process.loop_lens[index] = len;
    }
    if process.kind & kind::BY_CODE != 0 && process.loop_lens[0] == 0 {
        return Err(AttachError::NoLoop);
    }
    process.frame_words = process.words_of_frame();
    process.code_type = check(&memory, &layout, &process)?;
    layout.process = process;
    Ok(layout)
}
