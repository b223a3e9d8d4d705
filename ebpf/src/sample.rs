//! The CPU sampler: a perf_event program on the software event `cpu-clock`.
//!
//! `BPF_MAP_TYPE_STACK_TRACE` is not used: its ids collide, and then a stack is either lost or
//! charged to another one. Stacks are captured into scratch, hashed to 128 bits and counted by
//! that; the first of each epoch is sent up whole.

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
        bpf_get_current_task_btf, bpf_get_stack, bpf_loop, bpf_ringbuf_output, bpf_task_pt_regs,
    },
    macros::{btf_map, perf_event},
    programs::PerfEventContext,
};
use ebpf_common::{
    config::MISSING,
    loss::LossReason,
    sample::{
        MAX_KERNEL_FRAMES, MAX_USER_FRAMES, SampleKey, SamplerState, StackHeader, stack_flags,
    },
};

use crate::{
    kernel::read,
    maps::{config, count_loss},
    python::{MAX_STEPS, PythonWalk},
    unwind::{self, Addresses, Walk},
};

/// Bytes of the kernel's part of a stack.
const KERNEL_BYTES: usize = MAX_KERNEL_FRAMES * size_of::<u64>();

/// No wakeup: the agent reads the ring when it reads the counts.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// `THREAD_SIZE` of x86-64 (without KASAN), and `sizeof(struct pt_regs)`, which ends there.
const KERNEL_STACK_BYTES: u64 = 16 * 1024;
const PT_REGS_BYTES: u64 = 168;

/// A stack record under construction: 29 KiB, too large for the 512 bytes of stack.
#[repr(C)]
pub struct StackScratch {
    header: StackHeader,
    addresses: Addresses,
    walk: Walk,
    python: PythonWalk,
}

/// Samples by key. Two epochs of half a second are in it at a time: room for 32 CPUs at 997 Hz
/// when no two stacks are alike. Allocated beforehand, as perf_event programs need before 6.1.
#[btf_map]
static SAMPLE_COUNTS: HashMap<SampleKey, u64, 16384> = HashMap::new();

/// Each stack once an epoch. Read every 100 ms: room for 2,000 samples a second that are all
/// different and of the greatest depth, 30,000 of those of usual depth.
#[btf_map]
static SAMPLE_RING: RingBuf<[u8; 0], { 2 * 1024 * 1024 }> = RingBuf::new();

/// Pids to sample.
#[btf_map]
static SAMPLE_TARGETS: HashMap<u32, u32, 4096> = HashMap::new();

/// What is sampled.
#[btf_map]
static SAMPLER: Array<SamplerState, 1> = Array::new();

/// One slot is enough: `cpu-clock` fires from a timer interrupt, which does not nest.
#[btf_map]
static STACK_SCRATCH: PerCpuArray<StackScratch, 1> = PerCpuArray::new();

/// Fires on each tick of the sampling clock of one CPU. Walks by `bpf_loop` (5.17+).
#[perf_event]
pub fn sample(ctx: PerfEventContext) -> u32 {
    // SAFETY: no arguments; and since 5.15 each task's registers can be asked for.
    let pt_regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    let Some(scratch) = begin(&ctx, pt_regs) else {
        return 0;
    };
    if scratch.python.has_begun() {
        // SAFETY: the callback has the signature that the helper wants, and keeps no pointer.
        unsafe {
            bpf_loop(
                MAX_STEPS,
                python_one as *mut core::ffi::c_void,
                core::ptr::null_mut(),
                0,
            );
        }
        scratch.end_python();
    }
    if scratch.walk.has_begun() {
        // SAFETY: the callback has the signature that the helper wants, and keeps no pointer.
        unsafe {
            bpf_loop(
                MAX_USER_FRAMES as u32 + 1,
                walk_one as *mut core::ffi::c_void,
                core::ptr::null_mut(),
                0,
            );
        }
    }
    finish(scratch);
    0
}

/// One frame of the stack in the scratch; 1 ends the loop.
extern "C" fn walk_one(_index: u32, _context: *mut core::ffi::c_void) -> i64 {
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's scratch, and the program does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    i64::from(
        !scratch
            .walk
            .step(&mut scratch.addresses, &mut scratch.python),
    )
}

/// One step towards or along the interpreter's frames; 1 ends the loop.
extern "C" fn python_one(_index: u32, _context: *mut core::ffi::c_void) -> i64 {
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's scratch, and the program does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    let kernel_frames = scratch.walk.kernel_frames;
    i64::from(!scratch.python.step(
        &mut scratch.addresses,
        &mut scratch.walk.lanes,
        kernel_frames,
    ))
}

impl StackScratch {
    /// Has the native frames follow the interpreter's.
    #[inline(always)]
    fn end_python(&mut self) {
        self.walk.before += self.python.words;
        self.walk.flags |= self.python.flags;
    }
}

/// The same on older kernels, by a loop of its own.
#[perf_event]
pub fn sample_before_loop(ctx: PerfEventContext) -> u32 {
    let stack = config().offsets.task_stack;
    let pt_regs = if stack == MISSING {
        0
    } else {
        // SAFETY: no arguments.
        let task = unsafe { bpf_get_current_task() };
        read::<u64>(task, stack) + KERNEL_STACK_BYTES - PT_REGS_BYTES
    };
    let Some(scratch) = begin(&ctx, pt_regs) else {
        return 0;
    };
    if scratch.python.has_begun() {
        let mut index = 0;
        while index <= MAX_STEPS {
            if python_step() != 0 {
                break;
            }
            index += 1;
        }
        scratch.end_python();
    }
    if scratch.walk.has_begun() {
        let mut index = 0;
        while index <= MAX_USER_FRAMES {
            if walk_step() != 0 {
                break;
            }
            index += 1;
        }
    }
    finish(scratch);
    0
}

/// As `walk_one`. A global function (5.6+), which the verifier looks at once, whatever calls it and
/// how often; a callback, though, has to be none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_step() -> u32 {
    walk_one(0, core::ptr::null_mut()) as u32
}

/// The same for the interpreter's frames.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_step() -> u32 {
    python_one(0, core::ptr::null_mut()) as u32
}

/// Fills in all but the user's part of the stack; `None` where nothing is to be sampled.
#[inline(always)]
fn begin(ctx: &PerfEventContext, pt_regs: u64) -> Option<&'static mut StackScratch> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    // Idle: no process has the CPU.
    if pid == 0 {
        return None;
    }
    let state = SAMPLER.get(0)?;
    // SAFETY: only the presence of the key is looked at.
    if state.every_process == 0 && unsafe { SAMPLE_TARGETS.get(pid) }.is_none() {
        return None;
    }
    let scratch = STACK_SCRATCH.get_ptr_mut(0)?;
    // SAFETY: this CPU's scratch, and the program does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    let mut flags = 0;
    let addresses = scratch.addresses.as_mut_ptr();
    // SAFETY: the helper writes at most `KERNEL_BYTES`, and the array is longer.
    let got = unsafe { bpf_get_stack(ctx.as_ptr(), addresses.cast(), KERNEL_BYTES as u32, 0) };
    let kernel_bytes = if got < 0 {
        flags |= stack_flags::KERNEL_FAILED;
        0
    } else {
        (got as usize).min(KERNEL_BYTES)
    };
    if kernel_bytes == KERNEL_BYTES {
        flags |= stack_flags::KERNEL_TRUNCATED;
    }
    let kernel_frames = (kernel_bytes / size_of::<u64>()) as u32;
    let mut lanes = unwind::seed(kernel_frames);
    let mut index = 0;
    while index < MAX_KERNEL_FRAMES {
        if index as u32 >= kernel_frames {
            break;
        }
        unwind::mix(&mut lanes, scratch.addresses[index]);
        index += 1;
    }
    let image = image();
    scratch.header.key = SampleKey {
        stack_hash: [0; 2],
        image,
        pid,
        tid: pid_tgid as u32,
        epoch: state.epoch,
        flags: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    scratch.walk.lanes = lanes;
    scratch.walk.kernel_frames = kernel_frames;
    scratch.walk.before = kernel_frames;
    scratch.walk.flags = flags;
    scratch.walk.begin(pt_regs, pid, image);
    scratch.python.begin(scratch.walk.python());
    Some(scratch)
}

/// Completes the record and counts it.
#[inline(always)]
fn finish(scratch: &mut StackScratch) {
    let walk = &mut scratch.walk;
    walk.finish();
    let words = walk.before + walk.user_frames;
    scratch.header.kernel_frames = walk.kernel_frames;
    scratch.header.user_frames = walk.user_frames;
    scratch.header.python_words = scratch.python.words;
    scratch.header.key.flags = walk.flags;
    scratch.header.key.stack_hash = unwind::hash(walk.lanes, words);
    count(scratch);
}

/// Counts the stack in the scratch, and sends it when this epoch has not seen it.
#[inline(always)]
fn count(scratch: &StackScratch) {
    let key = &scratch.header.key;
    if increment(key) {
        return;
    }
    let words = (scratch.walk.before + scratch.walk.user_frames) as usize;
    let len = size_of::<StackHeader>() + words.min(unwind::MAX_WORDS) * size_of::<u64>();
    // The stack goes first: a count whose stack is unknown could not be reported.
    // SAFETY: `len` bytes of the scratch.
    let sent = unsafe {
        bpf_ringbuf_output(
            (&raw const SAMPLE_RING).cast_mut().cast(),
            core::ptr::from_ref(scratch).cast_mut().cast(),
            len as u64,
            BPF_RB_NO_WAKEUP,
        )
    };
    if sent != 0 {
        count_loss(LossReason::StacksFull);
        return;
    }
    // A thread runs on one CPU at a time, so nobody else inserts its key; if it is there all the
    // same, it is counted.
    if SAMPLE_COUNTS
        .insert(key, 1, u64::from(BPF_NOEXIST))
        .is_err()
        && !increment(key)
    {
        count_loss(LossReason::StacksFull);
    }
}

/// Adds one to the count of `key`; false where it has none.
#[inline(always)]
fn increment(key: &SampleKey) -> bool {
    let Some(count) = SAMPLE_COUNTS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: a live element; the key names a thread, which runs on one CPU at a time, and the
    // agent does not touch the elements of the current epoch.
    unsafe { *count += 1 };
    true
}

/// Where the arguments of the current process image begin; 0 where that cannot be told.
#[inline(always)]
fn image() -> u64 {
    let offsets = &config().offsets;
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let mm: u64 = read(task, offsets.task_mm);
    if mm == 0 {
        return 0;
    }
    read(mm, offsets.mm_arg_start)
}
