//! Frames of CPython: read before the native ones, in the order in which they call, newest first.
//!
//! Where the interpreter keeps its frames is told by the agent (`PYTHON_PROCESSES`); what is read
//! here is not believed there until the code objects have been looked at.

use aya_ebpf::{
    btf_maps::Array,
    helpers::{bpf_get_current_task, generated::bpf_probe_read_user},
    macros::btf_map,
};
use ebpf_common::{
    config::MISSING,
    python::{
        FRAME_WORDS, GROUP_END, MAX_PYTHON_FRAMES, MAX_PYTHON_PROCESSES, OWNER_NATIVE,
        PythonProcess, TEXT_HASH_OFFSET, THREAD_NEXT_OFFSET, TYPE_OFFSET, WINDOW_WORDS, kind,
        stamp,
    },
    sample::{MAX_KERNEL_FRAMES, stack_flags},
};

use crate::{
    kernel::read,
    maps::config,
    unwind::{Addresses, mix},
};

/// Where the interpreter of each process keeps its frames.
#[btf_map]
static PYTHON_PROCESSES: Array<PythonProcess, MAX_PYTHON_PROCESSES> = Array::new();

/// Most steps: each looks at a frame, a thread state or an interpreter.
pub const MAX_STEPS: u32 = 2048;

/// Most thread states that are looked at for the one of the thread.
const MAX_THREADS: u32 = 1024;

/// Tags of references in the lower bits of an address (3.14).
const TAGS: u64 = 7;

/// The state of the walk over the interpreter's frames.
#[repr(C)]
pub struct PythonWalk {
    /// What is looked at next, each 0 where there is none: a frame, then a thread state, then an
    /// interpreter.
    frame: u64,
    thread: u64,
    interpreter: u64,
    /// The `_PyCFrame` of the native frame that is looked at.
    cframe: u64,
    /// The thread's FS base.
    fs_base: u64,
    /// The stack's hash before the first of the frames.
    lanes: [u64; 2],
    /// Element in `PYTHON_PROCESSES`; 0: there is nothing to walk.
    process: u32,
    /// Words written so far.
    pub words: u32,
    /// Native frames of the interpreter that are known so far.
    groups: u32,
    threads_seen: u32,
    /// Bits of `stack_flags`.
    pub flags: u32,
    /// The next mark that the native walk will meet.
    next_mark: u32,
    window: [u64; WINDOW_WORDS],
    /// Addresses on the native stack that tell the native frame of each group.
    marks: [u64; MAX_PYTHON_FRAMES + 2],
}

impl PythonWalk {
    /// Begins at the process's interpreters. `process` is an element of `PYTHON_PROCESSES`.
    #[inline(always)]
    pub fn begin(&mut self, process: u32) {
        self.process = 0;
        self.words = 0;
        self.groups = 0;
        self.flags = 0;
        self.next_mark = 0;
        if process == 0 {
            return;
        }
        let fs_base = config().offsets.task_fs_base;
        let Some(layout) = PYTHON_PROCESSES.get(process) else {
            return;
        };
        if fs_base == MISSING {
            return;
        }
        self.process = process;
        // SAFETY: no arguments.
        let task = unsafe { bpf_get_current_task() };
        self.fs_base = read(task, fs_base);
        self.threads_seen = 0;
        self.frame = 0;
        self.thread = 0;
        self.cframe = 0;
        self.interpreter = user_word(layout.interpreters);
    }

    /// Is there anything to walk?
    #[inline(always)]
    pub fn has_begun(&self) -> bool {
        self.process != 0
    }

    /// One frame, thread state or interpreter. False at the end.
    #[inline(always)]
    pub fn step(
        &mut self,
        addresses: &mut Addresses,
        lanes: &mut [u64; 2],
        kernel_frames: u32,
    ) -> bool {
        let Some(layout) = PYTHON_PROCESSES.get(self.process) else {
            return false;
        };
        if self.frame != 0 {
            return self.step_frame(layout, addresses, lanes, kernel_frames);
        }
        if self.thread == 0 {
            if self.interpreter == 0 {
                return false;
            }
            let interpreter = self.interpreter;
            self.thread = user_word(interpreter + u64::from(layout.interpreter_threads));
            self.interpreter = user_word(interpreter + u64::from(layout.interpreter_next));
        }
        self.threads_seen += 1;
        if self.threads_seen > MAX_THREADS {
            self.flags |= stack_flags::PYTHON_CUT;
            return false;
        }
        let thread = self.thread;
        if user_word(thread + u64::from(layout.thread_id)) == self.fs_base {
            self.enter_thread(layout, thread);
            // A thread has one state an interpreter, but may have several interpreters.
            self.thread = 0;
            self.lanes = *lanes;
        } else {
            self.thread = user_word(thread + THREAD_NEXT_OFFSET);
        }
        true
    }

    #[inline(always)]
    fn enter_thread(&mut self, layout: &PythonProcess, thread: u64) {
        self.flags |= stack_flags::PYTHON_READ;
        let newest = self.word(thread + u64::from(layout.thread_frame));
        if layout.kind & kind::CFRAME != 0 {
            self.cframe = newest;
            self.frame = self.word(newest + u64::from(layout.cframe_current));
        } else {
            self.frame = newest;
            self.cframe = if layout.kind & kind::CFRAME_EACH != 0 {
                self.word(thread + u64::from(layout.thread_cframe))
            } else {
                0
            };
        }
    }

    /// As [`user_word`]; the frames are not all there where it cannot be read. Memory of a process that runs is
    /// not at hand while the kernel moves its page.
    #[inline(always)]
    fn word(&mut self, address: u64) -> u64 {
        let mut value = 0;
        if !read_words(&raw mut value, 1, address) {
            self.flags |= stack_flags::PYTHON_CUT;
        }
        value
    }

    #[inline(always)]
    fn step_frame(
        &mut self,
        layout: &PythonProcess,
        addresses: &mut Addresses,
        lanes: &mut [u64; 2],
        kernel_frames: u32,
    ) -> bool {
        let frame = self.frame;
        let may_be_none = layout.kind & kind::CFRAME != 0 && self.groups == 0;
        if !user_window(&mut self.window, frame, layout.frame_words) {
            self.flags |= stack_flags::PYTHON_CUT;
            // What the newest `_PyCFrame` holds may be none. If it is one, its callers are shown, but not as
            // all there is.
            if !may_be_none {
                return false;
            }
        }
        let word = |index: u32| self.window[(index as usize) & (WINDOW_WORDS - 1)];
        let previous = word(layout.frame_previous);
        let code = word(layout.frame_code) & !TAGS;
        let place = word(layout.frame_place);
        let owner = word(layout.frame_owner >> 3) >> ((layout.frame_owner & 7) * 8) & 0xff;
        // All ones or zero: branches would be followed on both sides, each.
        let is_native = layout.mask(kind::ENTRY_OWNER) & ones_if(owner >= OWNER_NATIVE);
        let ends_group = is_native
            | layout.mask(kind::EACH)
            | layout.mask(kind::ENTRY_FLAG) & ones_if(owner != 0);
        // A coroutine that rests has no caller, what is no frame has no code.
        let mut breaks_off = ones_if(previous == 0);
        if may_be_none && self.words == 0 && layout.code_type != 0 {
            breaks_off |= ones_if(user_word(code + TYPE_OFFSET) != layout.code_type);
        }
        let breaks_off = breaks_off & layout.mask(kind::CFRAME) & !ends_group;
        // Of a frame that is none of Python, only that it ends a group.
        let first = code & !is_native | GROUP_END & ends_group;
        let second = self.second_word(layout, code, place) & !is_native;
        // In 64 bits, so that the register that is bounded is the one that is used.
        let index = kernel_frames as usize + self.words as usize;
        if self.words >= (FRAME_WORDS * MAX_PYTHON_FRAMES) as u32
            || index >= MAX_KERNEL_FRAMES + FRAME_WORDS * MAX_PYTHON_FRAMES
        {
            self.flags |= stack_flags::PYTHON_CUT;
            return false;
        }
        addresses[index] = first;
        addresses[index + 1] = second;
        mix(lanes, first);
        mix(lanes, second);
        self.words += FRAME_WORDS as u32;
        self.frame = previous;
        if ends_group | breaks_off != 0 {
            return self.end_group(layout, frame & is_native, breaks_off, lanes);
        }
        true
    }

    /// The place in the code, and the stamp.
    #[inline(always)]
    fn second_word(&mut self, layout: &PythonProcess, code: u64, place: u64) -> u64 {
        let place = place.wrapping_sub(code & !layout.mask(kind::INDEX));
        // What cannot be read reads as zeroes, of which no stamp is made that fits.
        let stamped = code + u64::from(layout.code_stamp);
        user_window(&mut self.window, stamped, layout.code_stamp_words);
        let mut name_hash = 0;
        if layout.kind & kind::NAME_HASH != 0 {
            let name = self.window[(layout.code_name as usize) & (WINDOW_WORDS - 1)];
            name_hash = user_word(name + TEXT_HASH_OFFSET);
        }
        let stamp = stamp(&self.window, layout.code_stamp_words, name_hash);
        place << 32 | u64::from(stamp)
    }

    /// Takes note of the native frame of a group that ends, and goes on to the next one. `breaks_off`:
    /// not 0 where the frames end before the group does.
    #[inline(always)]
    fn end_group(
        &mut self,
        layout: &PythonProcess,
        entry: u64,
        breaks_off: u64,
        lanes: &mut [u64; 2],
    ) -> bool {
        let mark = entry | self.cframe & ones_if(entry == 0);
        if layout.kind & (kind::CFRAME | kind::CFRAME_EACH) != 0 {
            self.cframe = self.word(self.cframe + u64::from(layout.cframe_previous));
        }
        if layout.kind & kind::CFRAME != 0 {
            let next = self.word(self.cframe + u64::from(layout.cframe_current));
            if next != self.frame || breaks_off != 0 {
                // The newest one was just being set up, and held what had been on the stack before.
                self.frame = next;
                if self.groups == 0 {
                    self.words = 0;
                    *lanes = self.lanes;
                    // Once alone.
                    self.groups = 1;
                    self.marks[0] = 0;
                    self.next_mark = 1;
                    return true;
                }
                self.flags |= stack_flags::PYTHON_CUT;
                return false;
            }
        }
        let group = self.groups as usize;
        if group >= MAX_PYTHON_FRAMES {
            self.flags |= stack_flags::PYTHON_CUT;
            return false;
        }
        self.marks[group] = mark;
        self.groups += 1;
        // A native frame that has just begun, and has no frame yet: all are one further in.
        if layout.kind & kind::CFRAME_EACH != 0
            && self.frame == 0
            && self.word(self.cframe + u64::from(layout.cframe_previous)) != 0
        {
            self.marks[group + 1] = self.cframe;
            self.groups += 1;
        }
        true
    }

    /// Does a group of frames run in the native frame whose stack is from `low` to below `high`, and
    /// whose code is at `pc`?
    #[inline(always)]
    pub fn meets(&mut self, pc: u64, low: u64, high: u64) -> bool {
        let Some(layout) = PYTHON_PROCESSES.get(self.process) else {
            return false;
        };
        if layout.kind & kind::BY_CODE != 0 {
            return pc.wrapping_sub(layout.loop_starts[0]) < layout.loop_lens[0]
                || pc.wrapping_sub(layout.loop_starts[1]) < layout.loop_lens[1];
        }
        let next = self.next_mark;
        if next >= self.groups || next as usize >= MAX_PYTHON_FRAMES {
            return false;
        }
        let mark = self.marks[next as usize];
        if mark < low || mark >= high {
            return false;
        }
        self.next_mark = next + 1;
        true
    }
}

/// All ones, or 0.
#[inline(always)]
fn ones_if(condition: bool) -> u64 {
    0_u64.wrapping_sub(u64::from(condition))
}

/// The word at a user address; 0 where it cannot be read.
#[inline(always)]
fn user_word(address: u64) -> u64 {
    let mut value = 0;
    read_words(&raw mut value, 1, address);
    value
}

/// Reads fewer than [`WINDOW_WORDS`] words at a user address; zeroes where that fails.
#[inline(always)]
fn user_window(window: &mut [u64; WINDOW_WORDS], address: u64, words: u32) -> bool {
    let words = words & (WINDOW_WORDS as u32 - 1);
    read_words(window.as_mut_ptr(), words, address)
}

/// Reads words at a user address; false, and zeroes, where they cannot be read.
#[inline(always)]
fn read_words(to: *mut u64, words: u32, address: u64) -> bool {
    let bytes = words * size_of::<u64>() as u32;
    // SAFETY: the callers' words; the helper checks the address, and fills with zeroes where it cannot read.
    unsafe { bpf_probe_read_user(to.cast(), bytes, address as *const _) == 0 }
}
