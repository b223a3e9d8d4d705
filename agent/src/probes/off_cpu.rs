//! Handle on `sched_switch`: which waits it measures, and what it found.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use aya::maps::{Array, HashMap, MapData, MapError};
use aya::programs::{BtfTracePoint, ProgramFd};
use ebpf_common::sample::{OffCpuState, SampleKey, SampleTime, Waited, Waiting};

use super::sampler::{SamplerError, take};
use crate::clock::monotonic_ns;

/// The tracepoint, and the program's name.
const TRACEPOINT: &str = "sched_switch";

/// Which waits are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Of one process; of every one but the agent otherwise.
    pub pid: Option<u32>,
    /// The shortest.
    pub min: Duration,
}

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Waits by stack, those that go on among them.
    pub(super) waited: Vec<(SampleKey, Waited)>,
    /// The times of those that go on.
    pub(super) going_on: Vec<SampleTime>,
}

/// Handle on the program. Dropping it detaches it.
pub(super) struct OffCpu {
    program: ProgramFd,
    /// Instructions that the verifier processed (kernels from 5.16 tell).
    pub(super) verified_steps: Option<u32>,
    state: Array<MapData, OffCpuState>,
    waiting: HashMap<MapData, u32, Waiting>,
    waited: HashMap<MapData, SampleKey, Waited>,
    now: OffCpuState,
    /// While it is attached.
    link: Option<OwnedFd>,
}

impl OffCpu {
    /// Loads the program, which needs `bpf_loop` (5.17), and takes its maps out of `ebpf`.
    ///
    /// # Errors
    /// When the object lacks a part or the kernel refuses the program.
    pub(super) fn new(ebpf: &mut aya::Ebpf, btf: &aya::Btf) -> Result<Self, SamplerError> {
        let program: &mut BtfTracePoint = ebpf
            .program_mut(TRACEPOINT)
            .ok_or(SamplerError::Missing(TRACEPOINT))?
            .try_into()?;
        program.load(TRACEPOINT, btf)?;
        let verified_steps = program.info()?.verified_instruction_count();
        let program = program.fd()?.try_clone();
        Ok(Self {
            verified_steps,
            program: program.map_err(|source| SamplerError::Io {
                call: "copy the descriptor of the program on sched_switch",
                source,
            })?,
            state: take(ebpf, "OFF_CPU")?.try_into()?,
            waiting: take(ebpf, "WAITING")?.try_into()?,
            waited: take(ebpf, "WAITED")?.try_into()?,
            now: OffCpuState::default(),
            link: None,
        })
    }

    /// Measures waits that begin from now on.
    ///
    /// # Errors
    /// When a map can't be written, or the kernel refuses to attach the program.
    pub(super) fn start(&mut self, waits: Waits) -> Result<(), SamplerError> {
        self.link = None;
        self.clear()?;
        self.now = OffCpuState {
            epoch: self.now.epoch.wrapping_add(1),
            pid: waits.pid.unwrap_or(0),
            min_ns: u64::try_from(waits.min.as_nanos()).unwrap_or(u64::MAX),
        };
        self.state.set(0, self.now, 0)?;
        let link = attach(&self.program).map_err(|source| SamplerError::Io {
            call: "attach to sched_switch",
            source,
        })?;
        self.link = Some(link);
        Ok(())
    }

    /// Ends the measurement.
    ///
    /// # Errors
    /// When a map can't be read.
    pub(super) fn stop(&mut self) -> Result<Measured, SamplerError> {
        self.link = None;
        let now_ns = monotonic_ns();
        let mut waited = self
            .waited
            .iter()
            .collect::<Result<std::collections::HashMap<_, _>, _>>()?;
        let mut going_on = Vec::new();
        for entry in self.waiting.iter() {
            let (_, waiting) = entry?;
            let ns = now_ns.saturating_sub(waiting.since_ns);
            if ns >= self.now.min_ns
                && let Some(waited) = waited.get_mut(&waiting.key)
            {
                waited.count += 1;
                waited.ns += ns;
                going_on.push(SampleTime {
                    stack_hash: waiting.key.stack_hash,
                    time_ns: waiting.since_ns,
                    waited_ns: ns,
                    tid: waiting.key.tid,
                    epoch: waiting.key.epoch,
                });
            }
        }
        self.clear()?;
        let over = waited.into_iter();
        Ok(Measured {
            waited: over.filter(|(_, waited)| waited.count > 0).collect(),
            going_on,
        })
    }

    fn clear(&mut self) -> Result<(), MapError> {
        let threads = self.waiting.keys().collect::<Result<Vec<_>, _>>()?;
        for thread in threads {
            // A program that is on its way out may have been quicker.
            let _ = self.waiting.remove(&thread);
        }
        let stacks = self.waited.keys().collect::<Result<Vec<_>, _>>()?;
        for stack in stacks {
            let _ = self.waited.remove(&stack);
        }
        Ok(())
    }
}

/// `BPF_RAW_TRACEPOINT_OPEN`
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;

/// Of `union bpf_attr`, the part of this command as kernels before 6.10 have it.
#[repr(C)]
struct RawTracepoint {
    /// 0: the program names it by its BTF type.
    name: u64,
    program: u32,
    padding: u32,
}

/// Attaches the program to its tracepoint until the descriptor is closed. By hand: aya attaches
/// only what it holds, and the object is elsewhere by the time that somebody asks.
fn attach(program: &ProgramFd) -> io::Result<OwnedFd> {
    let attributes = RawTracepoint {
        name: 0,
        program: program.as_fd().as_raw_fd() as u32,
        padding: 0,
    };
    // SAFETY: the structure outlives the call, and its size is true.
    let link = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_RAW_TRACEPOINT_OPEN,
            &raw const attributes,
            size_of::<RawTracepoint>(),
        )
    };
    if link < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(link as libc::c_int) })
}
