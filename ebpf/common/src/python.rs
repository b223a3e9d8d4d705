//! Frames of CPython, which the sampler reads from the thread's own state while the thread stands
//! still for the sample.
//!
//! ```text
//! PythonProcess.runtime ─▶ interpreters ─▶ thread states ─▶ the one of this thread ─▶ frames ─▶ code
//! ```
//!
//! A frame goes up as two words: the code object's address (with [`GROUP_END`] where one native
//! frame of the interpreter ends), and the place in it with a [`stamp`] of the object, by which the
//! agent tells later whether the same object is still there. The native frame in which a group of
//! them runs is marked with [`NATIVE_MARK`].

use crate::unwind::MAX_PROCESSES;

/// Most frames of Python that are captured of a stack.
pub const MAX_PYTHON_FRAMES: usize = 768;

/// Words that a frame of Python takes.
pub const FRAME_WORDS: usize = 2;

/// Elements of the map `PYTHON_PROCESSES`; element 0 stays empty.
pub const MAX_PYTHON_PROCESSES: usize = MAX_PROCESSES / 4;

/// Set in the first word of a frame: the outermost one that its native frame runs.
pub const GROUP_END: u64 = 1 << 63;

/// Set in a native address: a group of frames of Python runs in this native frame. No user address
/// has this bit.
pub const NATIVE_MARK: u64 = 1 << 63;

/// One word more than is ever read of a frame, or of a code object.
pub const WINDOW_WORDS: usize = 16;

/// Of which kind the interpreter's frames are: bits of [`PythonProcess::kind`].
pub mod kind {
    /// One native frame each (up to 3.10).
    pub const EACH: u32 = 1;
    /// The native frames are those in the interpreter's loop, told by its addresses (3.8, 3.9).
    pub const BY_CODE: u32 = 2;
    /// The native frames are those that hold the thread's `CFrame`s, one each (3.10).
    pub const CFRAME_EACH: u32 = 4;
    /// A `_PyCFrame` holds the newest frame of its native frame (3.11, 3.12).
    pub const CFRAME: u32 = 8;
    /// The outermost frame says so itself (3.11).
    pub const ENTRY_FLAG: u32 = 16;
    /// The outermost frame is followed by one on the native stack, which its owner tells (3.12+).
    pub const ENTRY_OWNER: u32 = 32;
    /// The place in the code is a number (up to 3.10), not an address.
    pub const INDEX: u32 = 64;
    /// The stamp takes in the name's hash: nothing else in the object is unique (before 3.12).
    pub const NAME_HASH: u32 = 128;
}

/// Least `owner` of a frame that lies on the native stack: `FRAME_OWNED_BY_CSTACK` (3.12, 3.13),
/// `FRAME_OWNED_BY_INTERPRETER` (3.14).
pub const OWNER_NATIVE: u64 = 3;

/// Offset of an object's type in it (`PyObject.ob_type`).
pub const TYPE_OFFSET: u64 = 8;

/// Offset of a text's hash in it (`PyASCIIObject.hash`).
pub const TEXT_HASH_OFFSET: u64 = 24;

/// Offset of the next thread state in one (`PyThreadState.next`), in every version.
pub const THREAD_NEXT_OFFSET: u64 = 8;

/// Where a process keeps what the sampler reads. Offsets are bytes unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PythonProcess {
    /// Address of `_PyRuntime.interpreters.head`.
    pub interpreters: u64,
    /// Address of `PyCode_Type`; 0 where it is not known.
    pub code_type: u64,
    /// First addresses of the interpreter's loop and of the part that compilers split off it, for
    /// [`kind::BY_CODE`].
    pub loop_starts: [u64; 2],
    /// Their lengths, bytes.
    pub loop_lens: [u64; 2],
    /// See [`kind`].
    pub kind: u32,
    /// `PyInterpreterState.next`
    pub interpreter_next: u32,
    /// `PyInterpreterState.threads.head`
    pub interpreter_threads: u32,
    /// `PyThreadState.thread_id`: what `pthread_self` gives, the thread's FS base.
    pub thread_id: u32,
    /// Where a thread keeps its newest frame, or the `_PyCFrame` that does.
    pub thread_frame: u32,
    /// `PyThreadState.cframe`, for [`kind::CFRAME_EACH`].
    pub thread_cframe: u32,
    /// Newest frame in a `_PyCFrame`.
    pub cframe_current: u32,
    /// Next one in a `_PyCFrame`.
    pub cframe_previous: u32,
    /// Word of the caller in a frame.
    pub frame_previous: u32,
    /// Word of the code object in a frame.
    pub frame_code: u32,
    /// Word of the place in the code in a frame.
    pub frame_place: u32,
    /// Byte of `owner` or `is_entry` in a frame.
    pub frame_owner: u32,
    /// Begin of the part of a code object that the stamp is made of.
    pub code_stamp: u32,
    /// Words of that part.
    pub code_stamp_words: u32,
    /// Word of the name in that part.
    pub code_name: u32,
    /// Words that are read of a frame, fewer than [`WINDOW_WORDS`]: see [`Self::words_of_frame`].
    pub frame_words: u32,
}

impl PythonProcess {
    /// As many words of a frame as hold what is read of it. Frames lie one behind the other up to the end of
    /// a page, and the next page may not be in memory before there is a frame in it.
    #[must_use]
    pub fn words_of_frame(&self) -> u32 {
        let last = [self.frame_code, self.frame_place, self.frame_owner / 8];
        let last = last.into_iter().fold(self.frame_previous, u32::max);
        (last + 1).min(WINDOW_WORDS as u32 - 1)
    }

    /// All ones where the kind has `bit`, else 0.
    #[inline(always)]
    #[must_use]
    pub const fn mask(&self, bit: u32) -> u64 {
        0_u64.wrapping_sub((self.kind >> bit.trailing_zeros() & 1) as u64)
    }
}

/// What tells a code object from another one at its address: of the words of the object that never
/// change, and the hash of its name.
#[inline(always)]
#[must_use]
pub fn stamp(words: &[u64; WINDOW_WORDS], count: u32, name_hash: u64) -> u32 {
    let mut sum = name_hash;
    let mut index = 0;
    while index < WINDOW_WORDS {
        // Words beyond are taken for zero: without a branch, of which the verifier would follow
        // both sides.
        let is_part = ((index as i64).wrapping_sub(count as i64) >> 63) as u64;
        sum = (sum ^ words[index] & is_part)
            .wrapping_mul(0x9E37_79B1_85EB_CA87)
            .rotate_left(31);
        index += 1;
    }
    (sum ^ (sum >> 32)) as u32
}

const _: () = {
    assert!(size_of::<PythonProcess>() == 112);
};

// SAFETY: plain integers without padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for PythonProcess {}
