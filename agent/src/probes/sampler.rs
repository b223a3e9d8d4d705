//! Handle on the CPU sampler: the program `sample`, its clock on each CPU, its counts.
//!
//! The clock ticks only while somebody wants samples. One sampler serves all who do, at the highest
//! rate that any of them asks for.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{PerfEvent, ProgramError, ProgramFd};
use ebpf_common::loss::LossReason;
use ebpf_common::sample::{SampleKey, SampleTime, SamplerState, Waited, stack_flags};
use profile::Work;
use zerocopy::FromBytes as _;

use super::clocks::Clocks;
use super::off_cpu::{OffCpu, Waits};
use super::ring::SeldomRing;
pub use super::stack_record::FrameFunction;
use super::stack_record::decode;
use super::unwind_maps::UnwindMaps;

/// What keeps the sampler from working.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The object lacks a part, or it is not of the kind that it should be.
    #[error("the kernel object has no usable `{0}`")]
    Missing(&'static str),
    /// The kernel refused the program.
    #[error("load the sampling program")]
    Program(#[from] ProgramError),
    /// This kernel can't measure waits.
    #[error("no off-CPU profiles on this kernel (they need Linux 5.17): {0}")]
    NoOffCpu(String),
    /// A map could not be used.
    #[error("use the sampler's maps")]
    Map(#[from] MapError),
    /// The kernel refused the sampling clock of a CPU.
    #[error("start the sampling clock of CPU {cpu} (perf_event_open, needs CAP_PERFMON)")]
    Clock {
        /// CPU, as the kernel numbers it.
        cpu: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The list of CPUs could not be read, or a descriptor could not be copied.
    #[error("{call}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// The answer.
        source: io::Error,
    },
}

/// Which processes are sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// All of them.
    Every,
    /// These pids.
    Pids(HashSet<u32>),
}

/// A stack of one thread with the number of its samples in one epoch.
#[derive(Debug)]
pub struct RawSample<'a> {
    /// What it was counted by.
    pub key: &'a SampleKey,
    /// Kernel addresses, leaf first.
    pub kernel: &'a [u64],
    /// User addresses, leaf first, or what [`Sampler::read_stacks`] was given in their place.
    pub user: &'a [u64],
    /// See [`Translated::interpreter_missing`].
    pub interpreter_missing: bool,
    /// Samples, or microseconds.
    pub count: u64,
    /// What the thread worked on.
    pub work: Work,
}

/// A stack as it was captured.
#[derive(Debug)]
struct Stack {
    kernel: Box<[u64]>,
    user: Translated,
}

impl Stack {
    fn sample<'a>(&'a self, key: &'a SampleKey, count: u64) -> RawSample<'a> {
        RawSample {
            key,
            kernel: &self.kernel,
            user: &self.user.user,
            interpreter_missing: self.user.interpreter_missing,
            count,
            work: Work::default(),
        }
    }
}

/// The user's part of a stack, as it is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// Addresses and what stands for frames of an interpreter, leaf first.
    pub user: Box<[u64]>,
    /// Not all of those could be read, or placed among the addresses.
    pub interpreter_missing: bool,
}

/// The user's part of a stack that is new.
#[derive(Debug)]
pub struct UserStack<'a> {
    /// Addresses, leaf first.
    pub native: &'a [u64],
    /// Words of the interpreter's frames (see [`ebpf_common::python`]). Where there are any, the
    /// native frames that run them are marked.
    pub python: &'a [u64],
    /// Functions that native frames belong to, in their order.
    pub functions: &'a [FrameFunction],
}

/// Waits that were measured, by stack.
#[derive(Debug, Default)]
pub struct Stopped(Vec<(SampleKey, Waited)>);

/// The sampling programs that this kernel takes.
#[derive(Clone, Debug)]
pub struct Variant {
    /// It walks by `bpf_loop` (5.17+).
    pub has_loop: bool,
    /// Instructions that the verifier processed (kernels from 5.16 tell).
    pub verified_steps: Option<u32>,
    /// The same of the program that measures waits, or why there is none.
    pub off_cpu: Result<Option<u32>, String>,
}

/// Samples and waits whose stack could not be read, since the kernel programs were loaded. There are
/// none unless the two sides disagree about the ABI. Clones share the numbers.
#[derive(Clone, Debug, Default)]
pub struct Unread(Arc<UnreadCounts>);

#[derive(Debug, Default)]
struct UnreadCounts {
    samples: AtomicU64,
    waits: AtomicU64,
}

impl Unread {
    /// How many of both.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.samples() + self.0.waits.load(Ordering::Relaxed)
    }

    fn samples(&self) -> u64 {
        self.0.samples.load(Ordering::Relaxed)
    }
}

/// Handle on the sampler. Dropping it stops the clocks.
pub struct Sampler {
    program: ProgramFd,
    variant: Variant,
    state: Array<MapData, SamplerState>,
    targets: BpfHashMap<MapData, u32, u32>,
    counts: BpfHashMap<MapData, SampleKey, u64>,
    ring: SeldomRing,
    losses: PerCpuArray<MapData, u64>,
    unwind_maps: Option<UnwindMaps>,
    /// Why there is none otherwise.
    off_cpu: Result<OffCpu, SamplerError>,
    clocks: Clocks,
    /// Stacks of the epochs that are not read yet.
    stacks: HashMap<SampleKey, Stack>,
    /// Stacks of threads that left the CPU to wait.
    waits: HashMap<SampleKey, Stack>,
    /// When samples were taken that nobody asked for yet.
    times: Vec<SampleTime>,
    targeted: HashSet<u32>,
    now: SamplerState,
    unread: Unread,
}

impl Sampler {
    /// Loads the program and takes the maps that are its own out of `ebpf`.
    ///
    /// # Errors
    /// When the object lacks a part or the kernel refuses the program.
    pub fn new(ebpf: &mut aya::Ebpf, btf: &aya::Btf) -> Result<Self, SamplerError> {
        let mut has_loop = true;
        let (program, verified_steps) = match load_program(ebpf, "sample") {
            Ok(loaded) => loaded,
            Err(SamplerError::Program(error)) => {
                has_loop = false;
                tracing::debug!(%error, "no bpf_loop: stacks are walked by a loop in the program");
                load_program(ebpf, "sample_before_loop")?
            }
            Err(error) => return Err(error),
        };
        let off_cpu = OffCpu::new(ebpf, btf);
        Ok(Self {
            program,
            variant: Variant {
                has_loop,
                verified_steps,
                off_cpu: match &off_cpu {
                    Ok(off_cpu) => Ok(off_cpu.verified_steps),
                    Err(error) => Err(error.to_string()),
                },
            },
            off_cpu,
            state: take(ebpf, "SAMPLER")?.try_into()?,
            targets: take(ebpf, "SAMPLE_TARGETS")?.try_into()?,
            counts: take(ebpf, "SAMPLE_COUNTS")?.try_into()?,
            ring: take_ring(ebpf)?,
            losses: share_losses(ebpf)?,
            unwind_maps: Some(UnwindMaps::take(ebpf)?),
            clocks: Clocks::default(),
            stacks: HashMap::new(),
            waits: HashMap::new(),
            times: Vec::new(),
            targeted: HashSet::new(),
            now: SamplerState::default(),
            unread: Unread::default(),
        })
    }

    /// What this kernel took.
    #[must_use]
    pub fn variant(&self) -> &Variant {
        &self.variant
    }

    /// How many samples could not be read, now and later.
    #[must_use]
    pub fn unread(&self) -> Unread {
        self.unread.clone()
    }

    /// Hands over the maps that stacks are walked by; `None` the second time.
    pub fn take_unwind_maps(&mut self) -> Option<UnwindMaps> {
        self.unwind_maps.take()
    }

    /// Says what is sampled from now on, in a new epoch.
    ///
    /// # Errors
    /// When a map can't be written (more than 4096 pids, for one), or a clock not be paused.
    pub fn set_targets(&mut self, targets: &Targets) -> Result<(), SamplerError> {
        let wanted = match targets {
            Targets::Every => &HashSet::new(),
            Targets::Pids(pids) => pids,
        };
        for pid in self.targeted.difference(wanted) {
            self.targets.remove(pid)?;
        }
        for pid in wanted.difference(&self.targeted) {
            self.targets.insert(pid, 1, 0)?;
        }
        self.targeted.clone_from(wanted);
        self.now.every_process = u32::from(matches!(targets, Targets::Every));
        self.next_epoch()
    }

    /// Starts the clocks.
    ///
    /// # Errors
    /// When the kernel refuses a clock. None runs then.
    pub fn start(&mut self, period: Duration) -> Result<(), SamplerError> {
        self.stop();
        self.clocks = Clocks::start(self.program.as_fd(), period)?;
        Ok(())
    }

    /// Stops every clock. When it returns, no program runs any more.
    pub fn stop(&mut self) {
        self.clocks = Clocks::default();
    }

    /// Ends the epoch and starts the next one: what was sampled before is final when it returns.
    ///
    /// The clocks are paused for that. Disabling a perf event waits until its CPU is out of the
    /// handler, and a paused `cpu-clock` keeps the rest of its period (`hw.period_left`), so that
    /// no sample is lost or moved by more than the pause.
    ///
    /// # Errors
    /// When the map can't be written, or a clock not be paused.
    pub fn next_epoch(&mut self) -> Result<(), SamplerError> {
        self.clocks.pause()?;
        self.now.epoch = self.now.epoch.wrapping_add(1);
        let set = self.state.set(0, self.now, 0);
        self.clocks.resume()?;
        Ok(set?)
    }

    /// Reads the stacks that are new and tells each one's key and user's part, in whose place
    /// something else may be put. To be called ten times a second while the clocks run, so that the
    /// ring has room and a process is still there to be asked.
    ///
    /// # Errors
    /// When the ring can't be mapped.
    pub fn read_stacks(
        &mut self,
        mut seen: impl FnMut(&SampleKey, UserStack<'_>) -> Option<Translated>,
    ) -> Result<(), SamplerError> {
        let read = self.ring.drain(|record| {
            if let Ok(time) = SampleTime::read_from_bytes(record) {
                self.times.push(time);
                return;
            }
            // The samples of a stack that cannot be read are counted when their number comes.
            let Some((key, record)) = decode(record) else {
                return;
            };
            let user = UserStack {
                native: &record.native,
                python: &record.python,
                functions: &record.functions,
            };
            let user = seen(&key, user);
            let stack = Stack {
                kernel: record.kernel.into(),
                user: user.unwrap_or_else(|| Translated {
                    user: record.native.into(),
                    interpreter_missing: false,
                }),
            };
            if key.flags & stack_flags::OFF_CPU == 0 {
                self.stacks.insert(key, stack);
            } else {
                self.waits.insert(key, stack);
            }
        });
        read.map_err(|source| SamplerError::Io {
            call: "map the ring of stacks",
            source,
        })
    }

    /// Takes out when those samples were taken that [`Self::read_stacks`] met.
    pub fn take_times(&mut self) -> Vec<SampleTime> {
        std::mem::take(&mut self.times)
    }

    /// Measures waits that begin from now on.
    ///
    /// # Errors
    /// [`SamplerError::NoOffCpu`] where this kernel can't; when it can and something fails.
    pub fn start_waits(&mut self, waits: Waits) -> Result<(), SamplerError> {
        self.waits.clear();
        match &mut self.off_cpu {
            Ok(off_cpu) => off_cpu.start(waits),
            Err(reason) => Err(SamplerError::NoOffCpu(reason.to_string())),
        }
    }

    /// Ends what [`Self::start_waits`] began. The times of waits that go on are among those that
    /// [`Self::take_times`] gives.
    ///
    /// # Errors
    /// When a map can't be read.
    pub fn stop_waits(&mut self) -> Result<Stopped, SamplerError> {
        let Ok(off_cpu) = &mut self.off_cpu else {
            return Ok(Stopped::default());
        };
        let measured = off_cpu.stop()?;
        self.times.extend(measured.going_on);
        Ok(Stopped(measured.waited))
    }

    /// Tells each stack with the microseconds that its thread waited there in all.
    /// [`Self::read_stacks`] goes first. Returns how many waits had no stack that could be read.
    pub fn read_waits(
        &mut self,
        Stopped(waited): Stopped,
        mut sample: impl FnMut(RawSample<'_>),
    ) -> u64 {
        let stacks = std::mem::take(&mut self.waits);
        let mut unknown = 0;
        for (key, waited) in waited {
            if let Some(stack) = stacks.get(&key) {
                sample(stack.sample(&key, waited.ns / 1000));
            } else {
                unknown += waited.count;
            }
        }
        self.unread.0.waits.fetch_add(unknown, Ordering::Relaxed);
        unknown
    }

    /// Threads and images that wait, as far as they are known.
    pub fn waits(&self) -> impl Iterator<Item = &SampleKey> {
        self.waits.keys()
    }

    /// Waits that were not measured since the kernel programs were loaded.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn skipped_waits(&self) -> Result<u64, SamplerError> {
        let skipped = self.losses.get(&(LossReason::WaitsSkipped as u32), 0)?;
        Ok(skipped.iter().sum())
    }

    /// Reads and removes the counts of epochs that are over; once the clocks are stopped, the
    /// current one's too. The kernel sends a stack before it counts it, so that
    /// [`Self::read_stacks`] goes first, after the epoch's end.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn read_counts(
        &mut self,
        mut sample: impl FnMut(RawSample<'_>),
    ) -> Result<(), SamplerError> {
        let mut read = Vec::new();
        for entry in self.counts.iter() {
            let (key, count) = entry?;
            if self.is_over(key.epoch) {
                read.push((key, count));
            }
        }
        for (key, count) in read {
            self.counts.remove(&key)?;
            if let Some(stack) = self.stacks.remove(&key) {
                sample(stack.sample(&key, count));
            } else {
                self.unread.0.samples.fetch_add(count, Ordering::Relaxed);
            }
        }
        // What is left of those epochs was sent, but then found no room among the counts; the
        // kernel side has counted the loss.
        let mut stacks = std::mem::take(&mut self.stacks);
        stacks.retain(|key, _| !self.is_over(key.epoch));
        self.stacks = stacks;
        Ok(())
    }

    /// Whether no more samples are taken in an epoch.
    #[must_use]
    pub fn is_over(&self, epoch: u32) -> bool {
        self.clocks.is_empty() || epoch != self.now.epoch
    }

    /// Samples lost since the kernel programs were loaded.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn lost_samples(&self) -> Result<u64, SamplerError> {
        let full = self.losses.get(&(LossReason::StacksFull as u32), 0)?;
        Ok(full.iter().sum::<u64>() + self.unread.samples())
    }
}

/// Loads one of the sampling programs.
fn load_program(
    ebpf: &mut aya::Ebpf,
    name: &'static str,
) -> Result<(ProgramFd, Option<u32>), SamplerError> {
    let program: &mut PerfEvent = ebpf
        .program_mut(name)
        .ok_or(SamplerError::Missing(name))?
        .try_into()?;
    program.load()?;
    let steps = program.info()?.verified_instruction_count();
    let program = program
        .fd()?
        .try_clone()
        .map_err(|source| SamplerError::Io {
            call: "copy the descriptor of the sampling program",
            source,
        })?;
    Ok((program, steps))
}

/// Takes a map out of the object.
pub(super) fn take(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<Map, SamplerError> {
    ebpf.take_map(name).ok_or(SamplerError::Missing(name))
}

/// Takes the ring of stacks out of the object.
fn take_ring(ebpf: &mut aya::Ebpf) -> Result<SeldomRing, SamplerError> {
    const NAME: &str = "SAMPLE_RING";
    match take(ebpf, NAME)? {
        Map::RingBuf(map) => Ok(SeldomRing::new(map)?),
        _ => Err(SamplerError::Missing(NAME)),
    }
}

/// A second handle on the loss counters, which others read as well.
fn share_losses(ebpf: &aya::Ebpf) -> Result<PerCpuArray<MapData, u64>, SamplerError> {
    let Some(Map::PerCpuArray(losses)) = ebpf.map("LOSSES") else {
        return Err(SamplerError::Missing("LOSSES"));
    };
    let fd = losses
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| SamplerError::Io {
            call: "copy the descriptor of the loss counters",
            source,
        })?;
    Ok(Map::PerCpuArray(MapData::from_fd(fd)?).try_into()?)
}
