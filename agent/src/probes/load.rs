//! Loading the object: constants and capacities in, maps and unverified programs out.

use aya::{Ebpf, EbpfLoader};
use ebpf_common::config::{Config, MAX_CAPTURE_BYTES, MAX_RINGS, Offsets};

use super::btf::{Btf, BtfError};
use super::offsets;
use crate::config::Tap;

/// The set of programs that sees what calls move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapVariant {
    /// `sock_send_length` and `sock_recv_length` (6.3+).
    Socket,
    /// `sys_exit`, walking from the descriptor.
    Walk,
}

impl TapVariant {
    /// The variant for what was asked of a kernel with or without the tracepoints.
    fn choose(wanted: Tap, has_tracepoints: bool) -> Result<Self, LoadError> {
        match (wanted, has_tracepoints) {
            (Tap::Auto | Tap::Socket, true) => Ok(Self::Socket),
            (Tap::Auto, false) | (Tap::Walk, _) => Ok(Self::Walk),
            (Tap::Socket, false) => Err(LoadError::NoSocketTap),
        }
    }
}

/// What tells when bytes arrived at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrivalVariant {
    /// `sk_data_ready` (6.3+).
    Socket,
    /// `tcp_probe`: TCP alone, and also at each bare acknowledgement.
    Segment,
}

impl ArrivalVariant {
    /// The tracepoint, which its program is named after.
    #[must_use]
    pub const fn tracepoint(self) -> &'static str {
        match self {
            Self::Socket => "sk_data_ready",
            Self::Segment => "tcp_probe",
        }
    }

    /// The best that the kernel has; `None` where it has none.
    fn choose(btf: &Btf) -> Option<Self> {
        let both = [Self::Socket, Self::Segment];
        both.into_iter()
            .find(|variant| btf.has_tracepoint(variant.tracepoint()))
    }
}

/// Capacities and choices that are fixed once the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Bytes captured from the start of each run.
    pub capture_bytes: u32,
    /// Socket rings in use; 0 chooses by the number of CPUs.
    pub rings: u32,
    /// Size of each socket ring: a power of two, at least a page.
    pub ring_bytes: u32,
    /// Connections followed at a time.
    pub max_connections: u32,
    /// Which tap.
    pub tap: Tap,
    /// Whether the arrival of bytes is watched.
    pub queue_time: bool,
    /// Log the kernel side's decisions.
    pub verbose: bool,
}

impl LoadOptions {
    /// The least that can be loaded: for commands that do not observe sockets.
    pub const MINIMAL: Self = Self {
        capture_bytes: 256,
        rings: 1,
        ring_bytes: 4096,
        max_connections: 1,
        tap: Tap::Walk,
        queue_time: false,
        verbose: false,
    };
}

/// Why the object could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel's type information.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The kernel's type information, as the loader reads it.
    #[error("cannot use the kernel's BTF: {0}")]
    LoaderBtf(#[from] aya::BtfError),
    /// The socket tap was asked for, but the kernel has no such tracepoints.
    #[error("tap `socket` needs the sock_send_length tracepoint (Linux 6.3); use `auto` or `walk`")]
    NoSocketTap,
    /// Maps could not be created, or the object is damaged.
    #[error("cannot load the kernel programs: {0}{hint}", hint = privilege_hint(.0))]
    Ebpf(#[from] aya::EbpfError),
}

/// What to do about the commonest reason.
pub(super) fn privilege_hint(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::PermissionDenied
        {
            return " (run as root, or with CAP_BPF and CAP_PERFMON)";
        }
        source = error.source();
    }
    ""
}

/// The loaded object with what was decided on the way.
pub struct Loaded {
    /// Maps and programs; no program is verified or attached yet.
    pub ebpf: Ebpf,
    /// The kernel's types, which attaching needs again.
    pub btf: aya::Btf,
    /// Socket rings in use.
    pub rings: u32,
    /// The tap that fits this kernel.
    pub tap: TapVariant,
    /// What tells of arrivals; `None` where they are not watched.
    pub arrivals: Option<ArrivalVariant>,
}

/// Loads the object for this kernel.
///
/// # Errors
/// Where BTF cannot be read, a member without which nothing works is missing, or the kernel
/// refuses to create a map.
pub fn load(options: &LoadOptions) -> Result<Loaded, LoadError> {
    let (offsets, has_socket_tap, arrivals, tracepoints) = {
        let btf = Btf::of_kernel()?;
        (
            offsets::resolve(&btf)?,
            btf.has_tracepoint("sock_send_length"),
            ArrivalVariant::choose(&btf).filter(|_| options.queue_time),
            btf.tracepoints(),
        )
    };
    let tap = TapVariant::choose(options.tap, has_socket_tap)?;
    let cpus = aya::util::nr_cpus().map_or(1, |cpus| u32::try_from(cpus).unwrap_or(1));
    let rings = match options.rings {
        // One a CPU, so that CPUs do not wait for each other.
        0 => cpus.clamp(1, MAX_RINGS),
        rings => rings.min(MAX_RINGS),
    };
    let config = constants(options, offsets, rings, arrivals.is_some());
    lift_memory_lock();
    let btf = aya::Btf::parse(&tracepoints, aya::Endianness::default())?;
    drop(tracepoints);
    // aya-log counts from 1, error, to 5, trace; 0 is off.
    let log_level: u8 = if options.verbose { 4 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&btf))
        .override_global("CONFIG", &config, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .map_max_entries("CONNECTIONS", options.max_connections)
        .map_max_entries("SCRATCH", 2 * cpus);
    if arrivals.is_none() {
        loader.map_max_entries("FIRST_ARRIVALS", 1);
    }
    for (index, name) in RING_MAPS.iter().enumerate() {
        let used = index < rings as usize;
        loader.map_max_entries(name, if used { options.ring_bytes } else { 4096 });
    }
    let ebpf = loader.load(super::OBJECT)?;
    drop(loader);
    Ok(Loaded {
        ebpf,
        btf,
        rings,
        tap,
        arrivals,
    })
}

/// Before 5.11 maps count against `RLIMIT_MEMLOCK`, 64 KiB by default. Newer kernels count them
/// against the cgroup, so that a refusal (no CAP_SYS_RESOURCE) matters to the old ones alone.
fn lift_memory_lock() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid structure that outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}

/// The socket rings' maps, in the order of their numbers.
pub const RING_MAPS: [&str; MAX_RINGS as usize] = [
    "SOCKET_RING_0",
    "SOCKET_RING_1",
    "SOCKET_RING_2",
    "SOCKET_RING_3",
    "SOCKET_RING_4",
    "SOCKET_RING_5",
    "SOCKET_RING_6",
    "SOCKET_RING_7",
];

fn constants(options: &LoadOptions, offsets: Offsets, rings: u32, arrivals: bool) -> Config {
    Config {
        offsets,
        syscalls: offsets::syscalls(),
        agent_pid: std::process::id(),
        capture_bytes: options.capture_bytes.min(MAX_CAPTURE_BYTES),
        rings,
        queue_time: arrivals.into(),
    }
}
