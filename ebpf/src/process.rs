//! Processes that start and end: `sched_process_exec`, `sched_process_exit`.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    btf_maps::PerCpuArray,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_user_buf,
    },
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use ebpf_common::{
    RecordKind,
    loss::LossReason,
    process::{MAX_COMMAND_LINE_BYTES, ProcessExec, ProcessExit},
};

use crate::{
    kernel::read,
    maps::{PROCESS_RING, config, count_loss},
};

/// An exec record under construction; too large for the 512 bytes of stack.
#[repr(C)]
pub struct ExecScratch {
    header: ProcessExec,
    command_line: [u8; MAX_COMMAND_LINE_BYTES],
}

#[btf_map]
static EXEC_SCRATCH: PerCpuArray<ExecScratch, 1> = PerCpuArray::new();

/// `sched_process_exec(task, old_pid, bprm)`: the task has its new memory already.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let offsets = &config().offsets;
    let Some(scratch) = EXEC_SCRATCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's scratch; exec does not nest.
    let scratch = unsafe { &mut *scratch };
    let mm: u64 = read(task, offsets.task_mm);
    let start: u64 = read(mm, offsets.mm_arg_start);
    let end: u64 = read(mm, offsets.mm_arg_end);
    let parent: u64 = read(task, offsets.task_real_parent);
    let mut len = (end.saturating_sub(start)).min(MAX_COMMAND_LINE_BYTES as u64) as usize;
    // SAFETY: the helper checks the address; `len` is within the buffer.
    if len > 0
        && unsafe { bpf_probe_read_user_buf(start as *const u8, &mut scratch.command_line[..len]) }
            .is_err()
    {
        len = 0;
    }
    scratch.header = ProcessExec {
        kind: RecordKind::ProcessExec as u8,
        padding: [0; 3],
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        parent_pid: read(parent, offsets.task_tgid),
        command_line_len: len as u32,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        comm: bpf_get_current_comm().unwrap_or_default(),
        reserved: 0,
    };
    send(
        core::ptr::from_ref(scratch).cast(),
        size_of::<ProcessExec>() + len,
    );
    0
}

/// `sched_process_exit(task, …)`: told for each thread; the last one ends the process.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: u64 = ctx.arg(0);
    let offsets = &config().offsets;
    let signal: u64 = read(task, offsets.task_signal);
    let live: i32 = read(signal, offsets.signal_live);
    // `do_exit` has taken this thread off the count before the tracepoint fires.
    if live > 0 {
        return 0;
    }
    let exit = ProcessExit {
        kind: RecordKind::ProcessExit as u8,
        padding: [0; 3],
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        exit_code: read(task, offsets.task_exit_code),
        padding2: 0,
    };
    send(core::ptr::from_ref(&exit).cast(), size_of::<ProcessExit>());
    0
}

/// Copies a record into the process ring, whose readers poll.
#[inline(always)]
fn send(record: *const u8, len: usize) {
    // SAFETY: `len` bytes at `record` belong to the caller's scratch or stack.
    let sent = unsafe {
        aya_ebpf::helpers::bpf_ringbuf_output(
            (&raw const PROCESS_RING).cast_mut().cast(),
            record.cast_mut().cast(),
            len as u64,
            u64::from(BPF_RB_NO_WAKEUP),
        )
    };
    if sent != 0 {
        count_loss(LossReason::ProcessRingFull);
    }
}
