//! The CPU sampler: a perf_event program on the software event `cpu-clock`.
//!
//! `BPF_MAP_TYPE_STACK_TRACE` is not used: its ids collide, and then a stack is either lost or
//! charged to another one. Stacks are captured into scratch, hashed to 128 bits and counted by
//! that; the first of each epoch is sent up whole.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_stack,
        bpf_probe_read_kernel, bpf_ringbuf_output,
    },
    macros::{btf_map, perf_event},
    programs::PerfEventContext,
};
use ebpf_common::{
    config::MISSING,
    loss::LossReason,
    sample::{MAX_STACK_FRAMES, SampleKey, SamplerState, StackHeader, stack_flags},
};

use crate::maps::{config, count_loss};

/// Bytes of one part of a stack.
const PART_BYTES: usize = MAX_STACK_FRAMES * size_of::<u64>();

/// No wakeup: the agent reads the ring when it reads the counts.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// A stack record under construction: 2 KiB, too large for the 512 bytes of stack.
#[repr(C)]
pub struct StackScratch {
    header: StackHeader,
    addresses: [u64; 2 * MAX_STACK_FRAMES],
}

/// Samples by key. Two epochs of half a second are in it at a time: room for 32 CPUs at 997 Hz
/// when no two stacks are alike. Allocated beforehand, as perf_event programs need before 6.1.
#[btf_map]
static SAMPLE_COUNTS: HashMap<SampleKey, u64, 16384> = HashMap::new();

/// Each stack once an epoch. Read every 100 ms: room for 10,000 samples a second that are all
/// different and of the greatest depth.
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

/// Fires on each tick of the sampling clock of one CPU.
#[perf_event]
pub fn sample(ctx: PerfEventContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let pid = (pid_tgid >> 32) as u32;
    // Idle: no process has the CPU.
    if pid == 0 {
        return 0;
    }
    let Some(state) = SAMPLER.get(0) else {
        return 0;
    };
    // SAFETY: only the presence of the key is looked at.
    if state.every_process == 0 && unsafe { SAMPLE_TARGETS.get(pid) }.is_none() {
        return 0;
    }
    let Some(scratch) = STACK_SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's scratch, and the program does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    capture(&ctx, scratch, pid, pid_tgid as u32, state.epoch);
    count(scratch);
    0
}

/// Fills the scratch: stack, then key.
#[inline(always)]
fn capture(ctx: &PerfEventContext, scratch: &mut StackScratch, pid: u32, tid: u32, epoch: u32) {
    let mut flags = 0;
    let addresses = scratch.addresses.as_mut_ptr();
    // SAFETY: the helper writes at most `PART_BYTES`, and the array holds two parts.
    let got = unsafe { bpf_get_stack(ctx.as_ptr(), addresses.cast(), PART_BYTES as u32, 0) };
    let kernel_bytes = if got < 0 {
        flags |= stack_flags::KERNEL_FAILED;
        0
    } else {
        (got as usize).min(PART_BYTES)
    };
    if kernel_bytes == PART_BYTES {
        flags |= stack_flags::KERNEL_TRUNCATED;
    }
    // SAFETY: `kernel_bytes` is at most one part, so a whole part is left behind it.
    let got = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            addresses.cast::<u8>().add(kernel_bytes).cast(),
            PART_BYTES as u32,
            u64::from(BPF_F_USER_STACK),
        )
    };
    let user_bytes = if got < 0 {
        flags |= stack_flags::USER_FAILED;
        0
    } else {
        (got as usize).min(PART_BYTES)
    };
    if user_bytes == PART_BYTES {
        flags |= stack_flags::USER_TRUNCATED;
    }
    let kernel_frames = (kernel_bytes / size_of::<u64>()) as u32;
    let user_frames = (user_bytes / size_of::<u64>()) as u32;
    scratch.header = StackHeader {
        key: SampleKey {
            stack_hash: hash(&scratch.addresses, kernel_frames, user_frames),
            image: image(),
            pid,
            tid,
            epoch,
            flags,
            comm: bpf_get_current_comm().unwrap_or_default(),
        },
        kernel_frames,
        user_frames,
    };
}

/// Counts the stack in the scratch, and sends it when this epoch has not seen it.
#[inline(always)]
fn count(scratch: &StackScratch) {
    let key = &scratch.header.key;
    if increment(key) {
        return;
    }
    let frames = (scratch.header.kernel_frames + scratch.header.user_frames) as usize;
    let len = size_of::<StackHeader>() + frames.min(2 * MAX_STACK_FRAMES) * size_of::<u64>();
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
    if offsets.task_mm == MISSING || offsets.mm_arg_start == MISSING {
        return 0;
    }
    // SAFETY: the helper has no arguments.
    let task = unsafe { bpf_get_current_task() };
    let mm = read(task + u64::from(offsets.task_mm));
    if mm == 0 {
        return 0;
    }
    read(mm + u64::from(offsets.mm_arg_start))
}

/// Reads a word of kernel memory; zero where that fails.
#[inline(always)]
fn read(address: u64) -> u64 {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.unwrap_or_default()
}

/// Two independent lanes of multiply and rotate (the constants are from xxHash64). The key holds
/// the thread as well, so a program that crafted a collision would deceive its own profile alone.
#[inline(always)]
fn hash(addresses: &[u64; 2 * MAX_STACK_FRAMES], kernel_frames: u32, user_frames: u32) -> [u64; 2] {
    const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
    const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
    const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
    let frames = kernel_frames + user_frames;
    let mut lanes = [
        PRIME_3 ^ u64::from(kernel_frames),
        PRIME_1 ^ u64::from(user_frames),
    ];
    for (index, address) in addresses.iter().enumerate() {
        if index as u32 >= frames {
            break;
        }
        lanes[0] = (lanes[0] ^ address.wrapping_mul(PRIME_1))
            .rotate_left(27)
            .wrapping_mul(PRIME_2);
        lanes[1] = (lanes[1] ^ address.wrapping_mul(PRIME_2))
            .rotate_left(31)
            .wrapping_mul(PRIME_1);
    }
    [finish(lanes[0]), finish(lanes[1])]
}

/// Spreads the last words' bits over the lane.
#[inline(always)]
fn finish(lane: u64) -> u64 {
    let lane = (lane ^ (lane >> 33)).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    let lane = (lane ^ (lane >> 29)).wrapping_mul(0x1656_67B1_9E37_79F9);
    lane ^ (lane >> 32)
}
