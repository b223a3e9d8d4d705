//! Handle on the CPU sampler: the program `sample`, its clock on each CPU, its counts.
//!
//! The clock ticks only while somebody wants samples. One sampler serves all who do, at the highest
//! rate that any of them asks for.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{PerfEvent, ProgramError, ProgramFd};
use aya::util::online_cpus;
use ebpf_common::loss::LossReason;
use ebpf_common::python::{FRAME_WORDS, MAX_PYTHON_FRAMES};
use ebpf_common::sample::{
    MAX_KERNEL_FRAMES, MAX_USER_FRAMES, SampleKey, SampleTime, SamplerState, StackHeader, Waited,
    stack_flags,
};
use ebpf_common::v8::{SCRIPT_MARK, SCRIPT_WORDS};
use profile::Work;
use zerocopy::FromBytes as _;

use super::off_cpu::{OffCpu, Waits};
use super::ring::SeldomRing;
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

/// What tells the function of V8 that a native frame belongs to (see [`ebpf_common::v8`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFunction {
    /// Index of the frame's address.
    pub frame: usize,
    /// Tagged address of the `SharedFunctionInfo`.
    pub shared: u64,
    /// What it is told by.
    pub stamp: u64,
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
    /// CPUs with their perf events; closing one stops the clock.
    clocks: Vec<(u32, OwnedFd)>,
    /// Stacks of the epochs that are not read yet.
    stacks: HashMap<SampleKey, Stack>,
    /// Stacks of threads that left the CPU to wait.
    waits: HashMap<SampleKey, Stack>,
    /// When samples were taken that nobody asked for yet.
    times: Vec<SampleTime>,
    targeted: HashSet<u32>,
    now: SamplerState,
    /// Counts whose stack never came, and records that could not be read. Neither happens unless
    /// the two sides disagree about the ABI.
    broken: u64,
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
            clocks: Vec::new(),
            stacks: HashMap::new(),
            waits: HashMap::new(),
            times: Vec::new(),
            targeted: HashSet::new(),
            now: SamplerState::default(),
            broken: 0,
        })
    }

    /// What this kernel took.
    #[must_use]
    pub fn variant(&self) -> &Variant {
        &self.variant
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

    /// Starts the clock of every CPU that is online, each at a random phase: a clock that keeps
    /// step with what the program does sees one part of it always and another never.
    ///
    /// # Errors
    /// When the kernel refuses a clock. None runs then.
    pub fn start(&mut self, period: Duration) -> Result<(), SamplerError> {
        self.stop();
        let cpus = online_cpus().map_err(|(_, source)| SamplerError::Io {
            call: "read the list of online CPUs",
            source,
        })?;
        let mut clocks = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            let clock = open_clock(self.program.as_fd(), cpu, period)
                .map_err(|source| SamplerError::Clock { cpu, source })?;
            clocks.push((random_below(period.min(LONGEST_PHASE)), cpu, clock));
        }
        clocks.sort_by_key(|(phase, ..)| *phase);
        let begin = Instant::now();
        for (phase, cpu, clock) in &clocks {
            std::thread::sleep(phase.saturating_sub(begin.elapsed()));
            ioctl(clock.as_fd(), PERF_EVENT_IOC_ENABLE, 0)
                .map_err(|source| SamplerError::Clock { cpu: *cpu, source })?;
        }
        self.clocks = clocks
            .into_iter()
            .map(|(_, cpu, clock)| (cpu, clock))
            .collect();
        Ok(())
    }

    /// Stops every clock. When it returns, no program runs any more.
    pub fn stop(&mut self) {
        self.clocks.clear();
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
        self.each_clock(PERF_EVENT_IOC_DISABLE)?;
        self.now.epoch = self.now.epoch.wrapping_add(1);
        let set = self.state.set(0, self.now, 0);
        self.each_clock(PERF_EVENT_IOC_ENABLE)?;
        Ok(set?)
    }

    fn each_clock(&self, request: u64) -> Result<(), SamplerError> {
        self.clocks.iter().try_for_each(|(cpu, clock)| {
            ioctl(clock.as_fd(), request, 0)
                .map_err(|source| SamplerError::Clock { cpu: *cpu, source })
        })
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
            let Some((key, record)) = decode(record) else {
                self.broken += 1;
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
    /// [`Self::read_stacks`] goes first. Returns how many waits had no stack, which do not come
    /// unless the two sides disagree about the ABI.
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
                self.broken += count;
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
        Ok(full.iter().sum::<u64>() + self.broken)
    }
}

/// Most time that the clocks' phases are spread over.
const LONGEST_PHASE: Duration = Duration::from_millis(100);

/// `PERF_TYPE_SOFTWARE`
const PERF_TYPE_SOFTWARE: u32 = 1;
/// `PERF_COUNT_SW_CPU_CLOCK`
const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
/// `PERF_FLAG_FD_CLOEXEC`
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// Bits of `perf_event_attr`: `disabled` and `exclude_idle`.
const DISABLED_AND_NOT_IDLE: u64 = (1 << 0) | (1 << 7);
/// `_IO('$', 0)`
const PERF_EVENT_IOC_ENABLE: u64 = 0x2400;
/// `_IO('$', 1)`
const PERF_EVENT_IOC_DISABLE: u64 = 0x2401;
/// `_IOW('$', 8, __u32)`
const PERF_EVENT_IOC_SET_BPF: u64 = 0x4004_2408;

/// `struct perf_event_attr` as every kernel since 2.6.32 takes it (`PERF_ATTR_SIZE_VER0`).
#[derive(Default)]
#[repr(C)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    bp_addr: u64,
}

const _: () = assert!(size_of::<PerfEventAttr>() == 64);

/// A sampling clock of one CPU that runs `program` and is not started yet.
fn open_clock(program: BorrowedFd<'_>, cpu: u32, period: Duration) -> io::Result<OwnedFd> {
    let attr = PerfEventAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfEventAttr>() as u32,
        config: PERF_COUNT_SW_CPU_CLOCK,
        sample_period: u64::try_from(period.as_nanos()).unwrap_or(u64::MAX),
        flags: DISABLED_AND_NOT_IDLE,
        ..PerfEventAttr::default()
    };
    let (every_pid, no_group): (libc::c_int, libc::c_int) = (-1, -1);
    // SAFETY: `attr` outlives the call and its `size` is true; the kernel keeps no pointer.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            every_pid,
            cpu as libc::c_int,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    let clock = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    ioctl(
        clock.as_fd(),
        PERF_EVENT_IOC_SET_BPF,
        program.as_raw_fd() as u64,
    )?;
    Ok(clock)
}

/// An `ioctl` of a perf event whose argument is a number.
fn ioctl(clock: BorrowedFd<'_>, request: u64, argument: u64) -> io::Result<()> {
    // SAFETY: the requests that are used take a number, so the kernel follows no pointer.
    let result = unsafe { libc::ioctl(clock.as_raw_fd(), request as _, argument) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A random span shorter than `limit`.
fn random_below(limit: Duration) -> Duration {
    // Each `RandomState` has random keys, so even the hash of nothing is random.
    let random = RandomState::new().hash_one(());
    limit.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
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

/// A record of the sample ring.
#[derive(Debug, Default, PartialEq, Eq)]
struct Record {
    kernel: Vec<u64>,
    python: Vec<u64>,
    native: Vec<u64>,
    functions: Vec<FrameFunction>,
}

/// `None` for a record whose length is not what its header says.
fn decode(record: &[u8]) -> Option<(SampleKey, Record)> {
    let (header, words) = record.split_at_checked(size_of::<StackHeader>())?;
    // SAFETY: `header` has exactly the bytes of a `StackHeader`, whose every bit pattern is a
    // value; the read asks for no alignment.
    let header: StackHeader = unsafe { header.as_ptr().cast::<StackHeader>().read_unaligned() };
    let (kernel, user) = (header.kernel_frames as usize, header.user_frames as usize);
    let (python, script) = (header.python_words as usize, header.script_words as usize);
    if kernel > MAX_KERNEL_FRAMES
        || user > MAX_USER_FRAMES
        || python > FRAME_WORDS * MAX_PYTHON_FRAMES
        || script > SCRIPT_WORDS * MAX_USER_FRAMES
    {
        return None;
    }
    let (words, rest) = words.as_chunks::<{ size_of::<u64>() }>();
    if words.len() != kernel + python + user + script || !rest.is_empty() {
        return None;
    }
    let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
    let mut record = Record {
        kernel: words.by_ref().take(kernel).collect(),
        python: words.by_ref().take(python).collect(),
        native: Vec::with_capacity(user),
        functions: Vec::with_capacity(script / SCRIPT_WORDS),
    };
    while let Some(word) = words.next() {
        record.native.push(word & !SCRIPT_MARK);
        if word & SCRIPT_MARK != 0 {
            record.functions.push(FrameFunction {
                frame: record.native.len() - 1,
                shared: words.next()?,
                stamp: words.next()?,
            });
        }
    }
    (record.native.len() == user).then_some((header.key, record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kernel_frames: u32, python_words: u32, user_frames: u32, words: &[u64]) -> Vec<u8> {
        let script_words = words.len() as u32 - (kernel_frames + python_words + user_frames);
        record_of(
            [kernel_frames, user_frames, python_words, script_words],
            words,
        )
    }

    /// With the header's counts, in its order.
    fn record_of(counts: [u32; 4], words: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<SampleKey>()];
        for count in counts {
            bytes.extend(count.to_ne_bytes());
        }
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_record_decodes_into_its_parts() {
        let (_, record) = decode(&record(1, 2, 1, &[10, 20, 30, 40])).unwrap();
        let expected = Record {
            kernel: vec![10],
            python: vec![20, 30],
            native: vec![40],
            functions: Vec::new(),
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn functions_stand_behind_their_frames() {
        let words = [10, 40, 41 | SCRIPT_MARK, 1, 2, 42, 43 | SCRIPT_MARK, 3, 4];
        let (_, record) = decode(&record(1, 0, 4, &words)).unwrap();
        assert_eq!(record.native, [40, 41, 42, 43]);
        let function = |frame, shared, stamp| FrameFunction {
            frame,
            shared,
            stamp,
        };
        assert_eq!(record.functions, [function(1, 1, 2), function(3, 3, 4)]);
    }

    #[test]
    fn a_record_of_another_length_is_refused() {
        assert!(decode(&record_of([1, 1, 0, 0], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([2, 2, 0, 0], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([1, 1, 2, 0], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([128, 0, 0, 0], &[0; 128])).is_none());
        // More words of functions than frames that have one, and fewer.
        assert!(decode(&record_of([0, 1, 0, 2], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([0, 2, 0, 0], &[10, 20 | SCRIPT_MARK])).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_random_phase_is_below_its_limit(limit_ns in 1..1_000_000_000_u64) {
            let limit = Duration::from_nanos(limit_ns);
            prop_assert!(random_below(limit) <= limit);
        }
    }
}
