//! The clocks that the sampler ticks by: a perf event of each CPU.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::util::online_cpus;

use super::sampler::SamplerError;

/// Clocks that run. Dropping them stops them.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// CPUs with their perf events; closing one stops it.
    clocks: Vec<(u32, OwnedFd)>,
}

impl Clocks {
    /// Starts the clock of every CPU that is online, each at a random phase: a clock that keeps
    /// step with what the program does sees one part of it always and another never.
    ///
    /// # Errors
    /// When the kernel refuses a clock. None runs then.
    pub(super) fn start(program: BorrowedFd<'_>, period: Duration) -> Result<Self, SamplerError> {
        let cpus = online_cpus().map_err(|(_, source)| SamplerError::Io {
            call: "read the list of online CPUs",
            source,
        })?;
        let mut clocks = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            let clock = open_clock(program, cpu, period)
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
        let clocks = clocks.into_iter().map(|(_, cpu, clock)| (cpu, clock));
        Ok(Self {
            clocks: clocks.collect(),
        })
    }

    /// Does none of them run?
    pub(super) const fn is_empty(&self) -> bool {
        self.clocks.is_empty()
    }

    /// Stops them for a while. When it returns, no program runs that they started.
    ///
    /// # Errors
    /// When one cannot be stopped.
    pub(super) fn pause(&self) -> Result<(), SamplerError> {
        self.each(PERF_EVENT_IOC_DISABLE)
    }

    /// Lets them go on, each with the rest of its period.
    ///
    /// # Errors
    /// When one cannot be started.
    pub(super) fn resume(&self) -> Result<(), SamplerError> {
        self.each(PERF_EVENT_IOC_ENABLE)
    }

    fn each(&self, request: u64) -> Result<(), SamplerError> {
        self.clocks.iter().try_for_each(|(cpu, clock)| {
            ioctl(clock.as_fd(), request, 0)
                .map_err(|source| SamplerError::Clock { cpu: *cpu, source })
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_random_phase_is_below_its_limit(limit_ns in 1..1_000_000_000_u64) {
            let limit = Duration::from_nanos(limit_ns);
            prop_assert!(random_below(limit) <= limit);
        }
    }
}
