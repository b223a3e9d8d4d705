//! CPython's frames: where each version keeps what the kernel side reads, what a code object says of
//! itself, and how frames of Python and native ones make one stack.
//!
//! Everything is read from the memory of a process that runs on meanwhile. So nothing is believed
//! that does not fit: a name that is not known is better than a wrong one.

mod code;
mod elf;
mod layout;
mod lines;
mod merge;

pub use code::{Code, CodeError, Memory, read_code};
pub use elf::PythonFile;
pub use layout::{DEBUG_OFFSETS_BYTES, Layout, LayoutError, Version};
pub use merge::{Merged, merge};

use ebpf_common::python::{PythonProcess, THREAD_NEXT_OFFSET};

/// Most interpreters and thread states that are looked at when a layout is checked.
const MAX_CHECKED: usize = 64;

/// Offset of `PyThreadState.interp`, in every version.
const THREAD_INTERPRETER_OFFSET: u64 = 16;

/// Set in an address of a stack: a frame of Python, by the number in its other bits.
pub const PYTHON_FRAME: u64 = 1 << 63;

/// Why a process's frames are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There is no interpreter yet, or none any more.
    #[error("no interpreter has begun")]
    NotBegun,
    /// What should be a thread's state is none.
    #[error("its thread states are not where this version keeps them")]
    Threads,
    /// What should be a frame's code object is none.
    #[error("its frames are not where this version keeps them")]
    Frames,
}

/// Checks that the interpreter's structures are where `process` says: interpreters and threads refer
/// to each other, threads have a thread block of the C library, frames lead to code objects. Gives the
/// address of those objects' type, 0 where there is no frame.
///
/// # Errors
/// See [`Unfit`]. The process runs on, so that a second try may find what the first one did not.
pub fn check(memory: &impl Memory, layout: &Layout, process: &PythonProcess) -> Result<u64, Unfit> {
    let word = |address: u64| code::word(memory, address);
    let mut interpreter = word(process.interpreters).unwrap_or_default();
    let mut is_checked = false;
    let mut code_type = 0;
    for _ in 0..MAX_CHECKED {
        if interpreter == 0 {
            break;
        }
        let threads = interpreter.wrapping_add(u64::from(process.interpreter_threads));
        let mut thread = word(threads).ok_or(Unfit::Threads)?;
        for _ in 0..MAX_CHECKED {
            if thread == 0 {
                break;
            }
            let owner = word(thread.wrapping_add(THREAD_INTERPRETER_OFFSET));
            let id = word(thread.wrapping_add(u64::from(process.thread_id)));
            // The C library's thread block begins with its own address (x86-64's TLS ABI).
            let is_thread = id.is_some_and(|id| id != 0 && word(id) == Some(id));
            if owner != Some(interpreter) || !is_thread {
                return Err(Unfit::Threads);
            }
            if let Some(code) = newest_code(memory, process, thread) {
                let found = code::check_type(memory, code, "code");
                code_type = found.map_err(|_| Unfit::Frames)?;
                code::names(memory, layout, code).map_err(|_| Unfit::Frames)?;
            }
            is_checked = true;
            thread = word(thread.wrapping_add(THREAD_NEXT_OFFSET)).ok_or(Unfit::Threads)?;
        }
        interpreter = word(interpreter.wrapping_add(u64::from(process.interpreter_next)))
            .ok_or(Unfit::Threads)?;
    }
    if is_checked {
        Ok(code_type)
    } else {
        Err(Unfit::NotBegun)
    }
}

/// The code object of a thread's newest frame that has one, by the steps that the kernel side takes.
fn newest_code(memory: &impl Memory, process: &PythonProcess, thread: u64) -> Option<u64> {
    use ebpf_common::python::{OWNER_NATIVE, kind};
    let word = |address: u64| code::word(memory, address);
    let mut frame = word(thread.wrapping_add(u64::from(process.thread_frame)))?;
    if process.kind & kind::CFRAME != 0 {
        frame = word(frame.wrapping_add(u64::from(process.cframe_current)))?;
    }
    for _ in 0..MAX_CHECKED {
        if frame == 0 {
            return None;
        }
        let at = |index: u32| frame.wrapping_add(u64::from(index) * 8);
        let owner = word(frame.wrapping_add(u64::from(process.frame_owner)))? & 0xff;
        if process.kind & kind::ENTRY_OWNER == 0 || owner < OWNER_NATIVE {
            return Some(word(at(process.frame_code))? & !7);
        }
        frame = word(at(process.frame_previous))?;
    }
    None
}
