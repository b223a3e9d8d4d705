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
        bpf_get_current_task_btf, bpf_get_stack, bpf_ktime_get_ns, bpf_loop, bpf_ringbuf_output,
        bpf_task_pt_regs,
    },
    macros::{btf_map, perf_event},
    programs::PerfEventContext,
};
use ebpf_common::{
    config::MISSING,
    loss::LossReason,
    sample::{
        MAX_KERNEL_FRAMES, MAX_USER_FRAMES, SampleKey, SampleTime, SamplerState, StackHeader,
        stack_flags,
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
    time: SampleTime,
}

/// Samples by key. Two epochs of half a second are in it at a time: room for 32 CPUs at 997 Hz
/// when no two stacks are alike.
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

/// One for each program that captures stacks, which does not interrupt itself: `cpu-clock` fires
/// from a timer interrupt, `sched_switch` with interrupts off.
#[btf_map]
static STACK_SCRATCH: PerCpuArray<StackScratch, 2> = PerCpuArray::new();

/// Index of the sampler's scratch.
const SAMPLER_SLOT: u32 = 0;
/// Index of the one of `sched_switch`.
pub const OFF_CPU_SLOT: u32 = 1;

/// Fires on each tick of the sampling clock of one CPU. Walks by `bpf_loop` (5.17+).
#[perf_event]
pub fn sample(ctx: PerfEventContext) -> u32 {
    // SAFETY: no arguments; and since 5.15 each task's registers can be asked for.
    let pt_regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    let Some(scratch) = begin(&ctx, pt_regs) else {
        return 0;
    };
    walk(scratch, SAMPLER_SLOT);
    scratch.finish(0);
    count(scratch);
    0
}

/// One frame of the stack in a scratch; 1 ends the loop.
#[inline(never)]
extern "C" fn walk_one(_index: u32, slot: *mut core::ffi::c_void) -> i64 {
    i64::from(!scratch_of(slot).is_some_and(StackScratch::step_native))
}

/// One step towards or along the interpreter's frames; 1 ends the loop.
#[inline(never)]
extern "C" fn python_one(_index: u32, slot: *mut core::ffi::c_void) -> i64 {
    i64::from(!scratch_of(slot).is_some_and(StackScratch::step_python))
}

#[inline(always)]
fn scratch_of(slot: *mut core::ffi::c_void) -> Option<&'static mut StackScratch> {
    // SAFETY: `walk` passes the address of a slot's index.
    scratch(unsafe { *slot.cast::<u32>() })
}

/// Walks the user's part of the stack in the scratch `slot`, by `bpf_loop` (5.17+).
#[inline(always)]
pub fn walk(scratch: &mut StackScratch, mut slot: u32) {
    let slot = (&raw mut slot).cast();
    // SAFETY: the callbacks have the signature that the helper wants, and keep no pointer.
    unsafe {
        if scratch.python.has_begun() {
            let one = python_one as *mut core::ffi::c_void;
            bpf_loop(MAX_STEPS, one, slot, 0);
            scratch.end_python();
        }
        if scratch.walk.has_begun() {
            let one = walk_one as *mut core::ffi::c_void;
            bpf_loop(MAX_USER_FRAMES as u32 + 1, one, slot, 0);
        }
    }
}

/// A scratch of this CPU.
#[inline(always)]
pub fn scratch(slot: u32) -> Option<&'static mut StackScratch> {
    let scratch = STACK_SCRATCH.get_ptr_mut(slot)?;
    // SAFETY: this CPU's scratch, and the program that uses the slot does not interrupt itself.
    Some(unsafe { &mut *scratch })
}

impl StackScratch {
    /// One native frame more; `false` at the end.
    #[inline(always)]
    fn step_native(&mut self) -> bool {
        self.walk.step(&mut self.addresses, &mut self.python)
    }

    /// One step towards or along the interpreter's frames; `false` at the end.
    #[inline(always)]
    fn step_python(&mut self) -> bool {
        let kernel_frames = self.walk.kernel_frames;
        self.python
            .step(&mut self.addresses, &mut self.walk.lanes, kernel_frames)
    }

    /// Has the native frames follow the interpreter's.
    #[inline(always)]
    fn end_python(&mut self) {
        self.walk.before += self.python.words;
        self.walk.flags |= self.python.flags;
    }

    /// Fills in all but the user's part of the current thread's stack, of which the first
    /// `own_frames` are the program's and its caller's.
    #[inline(always)]
    pub fn begin(
        &mut self,
        ctx: &impl EbpfContext,
        pt_regs: u64,
        pid_tgid: u64,
        image: u64,
        epoch: u32,
        own_frames: u64,
    ) {
        let pid = (pid_tgid >> 32) as u32;
        let mut flags = 0;
        let addresses = self.addresses.as_mut_ptr();
        // SAFETY: the helper writes at most `KERNEL_BYTES`, and the array is longer.
        let got = unsafe {
            bpf_get_stack(
                ctx.as_ptr(),
                addresses.cast(),
                KERNEL_BYTES as u32,
                own_frames,
            )
        };
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
            unwind::mix(&mut lanes, self.addresses[index]);
            index += 1;
        }
        self.header.key = SampleKey {
            stack_hash: [0; 2],
            image,
            pid,
            tid: pid_tgid as u32,
            epoch,
            flags: 0,
            comm: bpf_get_current_comm().unwrap_or_default(),
        };
        self.walk.lanes = lanes;
        self.walk.kernel_frames = kernel_frames;
        self.walk.before = kernel_frames;
        self.walk.flags = flags;
        self.walk.begin(pt_regs, pid, image);
        self.python.begin(self.walk.python());
    }

    /// Completes the record.
    #[inline(always)]
    pub fn finish(&mut self, flags: u32) {
        let walk = &mut self.walk;
        walk.finish();
        let words = walk.words();
        self.header.kernel_frames = walk.kernel_frames;
        self.header.user_frames = walk.user_frames;
        self.header.python_words = self.python.words;
        self.header.script_words = walk.script_words;
        self.header.key.flags = walk.flags | flags;
        self.header.key.stack_hash = unwind::hash(walk.lanes, words as u32);
    }

    /// What the stack is counted by.
    pub const fn key(&self) -> &SampleKey {
        &self.header.key
    }

    /// Sends the stack; `false` where the ring is full.
    #[inline(always)]
    pub fn send(&self) -> bool {
        let words = self.walk.words();
        let len = size_of::<StackHeader>() + words.min(unwind::MAX_WORDS) * size_of::<u64>();
        // SAFETY: `len` bytes of the scratch.
        let sent = unsafe {
            bpf_ringbuf_output(
                (&raw const SAMPLE_RING).cast_mut().cast(),
                core::ptr::from_ref(self).cast_mut().cast(),
                len as u64,
                BPF_RB_NO_WAKEUP,
            )
        };
        sent == 0
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
    scratch.finish(0);
    count(scratch);
    0
}

/// As `walk_one`. A global function (5.6+), which the verifier looks at once, whatever calls it and
/// how often; a callback, though, has to be none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn walk_step() -> u32 {
    let mut slot = SAMPLER_SLOT;
    walk_one(0, (&raw mut slot).cast()) as u32
}

/// The same for the interpreter's frames.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_step() -> u32 {
    let mut slot = SAMPLER_SLOT;
    python_one(0, (&raw mut slot).cast()) as u32
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
    let scratch = scratch(SAMPLER_SLOT)?;
    scratch.begin(ctx, pt_regs, pid_tgid, image(), state.epoch, 0);
    Some(scratch)
}

/// Counts the stack in the scratch, and sends it when this epoch has not seen it.
#[inline(always)]
fn count(scratch: &mut StackScratch) {
    if config().sample_times != 0 {
        // SAFETY: no arguments.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        send_time(&mut scratch.time, &scratch.header.key, now_ns, 0);
    }
    let key = &scratch.header.key;
    if increment(key) {
        return;
    }
    // The stack goes first: a count whose stack is unknown could not be reported.
    if !scratch.send() {
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

/// Sends when a sample was taken, or a wait began and how long it was. One that finds the ring full is no
/// loss: the sample is counted all the same. `time` is where the record is built.
#[inline(always)]
pub fn send_time(time: &mut SampleTime, key: &SampleKey, time_ns: u64, waited_ns: u64) {
    *time = SampleTime {
        stack_hash: key.stack_hash,
        time_ns,
        waited_ns,
        tid: key.tid,
        epoch: key.epoch,
    };
    // SAFETY: the whole record.
    unsafe {
        bpf_ringbuf_output(
            (&raw const SAMPLE_RING).cast_mut().cast(),
            core::ptr::from_mut(time).cast(),
            size_of::<SampleTime>() as u64,
            BPF_RB_NO_WAKEUP,
        )
    };
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
pub fn image() -> u64 {
    let offsets = &config().offsets;
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let mm: u64 = read(task, offsets.task_mm);
    if mm == 0 {
        return 0;
    }
    read(mm, offsets.mm_arg_start)
}
