//! Off-CPU time: where threads wait, and for how long. `sched_switch`, attached while somebody asks.
//!
//! The stack is taken as a thread leaves the CPU, because nothing tells when it is back on one with
//! a stack to walk (before `sched_exit` of 6.15). So each wait of a watched process costs a walk,
//! however short it turns out to be; a limit a CPU keeps that within bounds.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs,
    },
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use ebpf_common::{
    config::MISSING,
    loss::LossReason,
    sample::{OffCpuState, SampleKey, SampleTime, Waited, Waiting, stack_flags},
};

use crate::{
    kernel::load,
    maps::{config, count_loss},
    sample::{OFF_CPU_SLOT, StackScratch, image, scratch, send_time, walk},
};

/// A CPU takes the stacks of so many waits in a window; the others are counted.
const WINDOW_NS: u64 = 100_000_000;
const MAX_WAITS_A_WINDOW: u64 = 500;

/// The program, and `bpf_trace_run4`.
const OWN_FRAMES: u64 = 2;

/// What a CPU works with.
#[repr(C)]
pub struct WaitScratch {
    window_began_ns: u64,
    /// Waits in this window.
    waits: u64,
    waiting: Waiting,
    time: SampleTime,
}

/// Which waits are measured.
#[btf_map]
static OFF_CPU: Array<OffCpuState, 1> = Array::new();

/// Threads that wait.
#[btf_map]
static WAITING: HashMap<u32, Waiting, 4096> = HashMap::new();

/// What they waited, by stack.
#[btf_map]
static WAITED: HashMap<SampleKey, Waited, 8192> = HashMap::new();

#[btf_map]
static WAIT_SCRATCH: PerCpuArray<WaitScratch, 1> = PerCpuArray::new();

/// `sched_switch(preempt, prev, next, …)`; `prev` is the current thread still.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let Some(state) = OFF_CPU.get(0) else {
        return 0;
    };
    let offsets = &config().offsets;
    let (is_preempted, previous, next): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    // SAFETY: the tracepoint's typed arguments; the offsets are those of `task_struct`.
    let (next_tid, can_run) = unsafe {
        (
            load::<u32>(next, offsets.task_pid),
            offsets.task_state != MISSING && load::<u32>(previous, offsets.task_state) == 0,
        )
    };
    // SAFETY: no arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if next_tid != 0 {
        back(next_tid, now_ns, state.min_ns);
    }
    // Whoever was only pushed aside does not wait for anything but a CPU.
    if is_preempted & 1 == 0 && !can_run {
        leave(&ctx, state, now_ns);
    }
    0
}

/// The thread has a CPU again.
#[inline(always)]
fn back(tid: u32, now_ns: u64, min_ns: u64) {
    let Some(waiting) = WAITING.get_ptr(tid) else {
        return;
    };
    // SAFETY: a live element; only this CPU deals with a thread that it switches to.
    let waiting = unsafe { &*waiting };
    let ns = now_ns - waiting.since_ns;
    if ns >= min_ns
        && let Some(waited) = WAITED.get_ptr_mut(&waiting.key)
    {
        // SAFETY: the key names a thread, which is on one CPU at a time.
        unsafe {
            (*waited).count += 1;
            (*waited).ns += ns;
        }
        if config().sample_times != 0
            && let Some(work) = WAIT_SCRATCH.get_ptr_mut(0)
        {
            // SAFETY: this CPU's scratch; the tracepoint fires with interrupts off.
            let time = unsafe { &mut (*work).time };
            send_time(time, &waiting.key, waiting.since_ns, ns);
        }
    }
    let _ = WAITING.remove(tid);
}

/// The current thread leaves the CPU to wait.
#[inline(always)]
fn leave(ctx: &BtfTracePointContext, state: &OffCpuState, now_ns: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    let is_wanted = if state.pid == 0 {
        pid != config().agent_pid
    } else {
        pid == state.pid
    };
    // Threads of the kernel wait for work, and nobody for them.
    let image = image();
    if !is_wanted || image == 0 {
        return;
    }
    let (Some(stack), Some(work)) = (scratch(OFF_CPU_SLOT), WAIT_SCRATCH.get_ptr_mut(0)) else {
        return;
    };
    // SAFETY: this CPU's scratch; the tracepoint fires with interrupts off.
    let work = unsafe { &mut *work };
    if now_ns - work.window_began_ns >= WINDOW_NS {
        work.window_began_ns = now_ns;
        work.waits = 0;
    }
    work.waits += 1;
    if work.waits > MAX_WAITS_A_WINDOW {
        count_loss(LossReason::WaitsSkipped);
        return;
    }
    take(ctx, stack, pid_tgid, image, state.epoch);
    let key = stack.key();
    if WAITED.get_ptr(key).is_none() {
        // Room first: what is sent and has none would be kept by the agent for nothing.
        let nothing = Waited { count: 0, ns: 0 };
        if WAITED
            .insert(key, &nothing, u64::from(BPF_NOEXIST))
            .is_err()
        {
            count_loss(LossReason::WaitsSkipped);
            return;
        }
        if !stack.send() {
            let _ = WAITED.remove(key);
            count_loss(LossReason::WaitsSkipped);
            return;
        }
    }
    work.waiting.key = *key;
    work.waiting.since_ns = now_ns;
    if WAITING.insert(pid_tgid as u32, &work.waiting, 0).is_err() {
        count_loss(LossReason::WaitsSkipped);
    }
}

/// Takes the current thread's stack.
#[inline(always)]
fn take(
    ctx: &BtfTracePointContext,
    stack: &mut StackScratch,
    pid_tgid: u64,
    image: u64,
    epoch: u32,
) {
    // SAFETY: no arguments.
    let pt_regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    stack.begin(ctx, pt_regs, pid_tgid, image, epoch, OWN_FRAMES);
    walk(stack, OFF_CPU_SLOT);
    stack.finish(stack_flags::OFF_CPU);
}
