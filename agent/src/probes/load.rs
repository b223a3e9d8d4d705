//! Loading the object: constants and capacities in, maps and unverified programs out.

use aya::{Ebpf, EbpfLoader};
use ebpf_common::config::{Config, MAX_CAPTURE_BYTES, MAX_RINGS, MISSING, Offsets};
use ebpf_common::unwind::KNOWN_RULES;

use super::allocation::{allocate_on_demand, is_safe_on_demand};
use super::attach;
use super::btf::{Btf, BtfError};
use super::offsets;
use crate::config::Tap;

/// The set of programs that sees what calls move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapVariant {
    /// The ends of the kernel's functions that send and receive.
    Fentry,
    /// `sock_send_length` and `sock_recv_length` (6.3+).
    Socket,
    /// `sys_exit`, walking from the descriptor.
    Walk,
}

impl TapVariant {
    /// The best variant for what was asked, and the one to fall back to: a kernel that names what the
    /// best one needs may refuse its programs still.
    fn candidates(
        wanted: Tap,
        has_functions: bool,
        has_tracepoints: bool,
    ) -> Result<(Self, Option<Self>), LoadError> {
        match (wanted, has_functions, has_tracepoints) {
            (Tap::Auto, _, true) => Ok((Self::Socket, Some(Self::Walk))),
            (Tap::Auto, true, false) => Ok((Self::Fentry, Some(Self::Walk))),
            (Tap::Fentry, true, _) => Ok((Self::Fentry, None)),
            (Tap::Fentry, false, _) => Err(LoadError::NoFentryTap),
            (Tap::Socket, _, true) => Ok((Self::Socket, None)),
            (Tap::Socket, _, false) => Err(LoadError::NoSocketTap),
            (Tap::Auto, false, false) | (Tap::Walk, _, _) => Ok((Self::Walk, None)),
        }
    }

    /// Its name in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Socket => "socket",
            Self::Walk => "walk",
        }
    }

    /// Programs that move segments, each of which needs a scratch record a CPU.
    const fn scratches(self) -> u32 {
        match self {
            Self::Fentry => 8,
            Self::Socket | Self::Walk => 2,
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

/// Addresses of clusters that the kernel side knows, of which IPv4 ones count twice.
const MAX_CLUSTER_ENDPOINTS: u32 = 512;

/// Capacities and choices that are fixed once the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Bytes captured from the start of each run.
    pub capture_bytes: u32,
    /// Bytes captured of a body beyond that, on connections to clusters; 0 for none.
    pub body_bytes: u32,
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
    /// Whether the peers' acknowledgements are asked for.
    pub delivery_time: bool,
    /// Whether each sample's time is told.
    pub sample_times: bool,
    /// Log the kernel side's decisions.
    pub verbose: bool,
}

impl LoadOptions {
    /// The least that can be loaded: for commands that do not observe sockets.
    pub const MINIMAL: Self = Self {
        capture_bytes: 256,
        body_bytes: 0,
        rings: 1,
        ring_bytes: 4096,
        max_connections: 1,
        tap: Tap::Walk,
        queue_time: false,
        delivery_time: false,
        sample_times: false,
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
    /// The fentry tap was asked for, but the kernel's BTF does not name what it needs.
    #[error("tap `fentry` needs functions that this kernel's BTF does not name; use `auto`")]
    NoFentryTap,
    /// The socket tap was asked for, but the kernel has no such tracepoints.
    #[error("tap `socket` needs the sock_send_length tracepoint (Linux 6.3); use `auto` or `walk`")]
    NoSocketTap,
    /// Maps could not be created, or the object is damaged.
    #[error("cannot load the kernel programs: {0}{hint}", hint = privilege_hint(.0))]
    Ebpf(#[from] aya::EbpfError),
    /// A map that is made after the others.
    #[error("cannot make the map `{name}`: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: aya::maps::MapError,
    },
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
    /// The tap that fits this kernel best, and the one to fall back to.
    pub taps: (TapVariant, Option<TapVariant>),
    /// The functions that the fentry tap traces, as far as this kernel has them.
    pub functions: Vec<&'static str>,
    /// What tells of arrivals; `None` where they are not watched.
    pub arrivals: Option<ArrivalVariant>,
}

/// Loads the object for this kernel.
///
/// # Errors
/// Where BTF cannot be read, a member without which nothing works is missing, or the kernel
/// refuses to create a map.
pub fn load(options: &LoadOptions) -> Result<Loaded, LoadError> {
    let (offsets, iterators, functions, has_socket_tap, arrivals, is_on_demand, outline) = {
        let btf = Btf::of_kernel()?;
        let offsets = offsets::resolve(&btf)?;
        let functions: Vec<_> = attach::functions()
            .filter(|name| btf.has_function(name))
            .collect();
        (
            offsets,
            offsets::iterators(&btf, &offsets),
            functions.clone(),
            btf.has_tracepoint("sock_send_length"),
            ArrivalVariant::choose(&btf).filter(|_| options.queue_time),
            is_safe_on_demand(&btf),
            btf.outline(&functions),
        )
    };
    let has_functions =
        iterators.is_some() && attach::functions_suffice(&functions, has_ipv6(&offsets));
    let taps = TapVariant::candidates(options.tap, has_functions, has_socket_tap)?;
    // The one to fall back to needs no more.
    let scratches = taps.0.scratches();
    let cpus = aya::util::nr_cpus().map_or(1, |cpus| u32::try_from(cpus).unwrap_or(1));
    let rings = match options.rings {
        // One a CPU, so that CPUs do not wait for each other.
        0 => cpus.clamp(1, MAX_RINGS),
        rings => rings.min(MAX_RINGS),
    };
    let config = Config {
        offsets,
        syscalls: offsets::syscalls(),
        iterators: iterators.unwrap_or_default(),
        agent_pid: std::process::id(),
        capture_bytes: options.capture_bytes.min(MAX_CAPTURE_BYTES),
        // The kernel side ends where less than a record's worth is left.
        body_bytes: match options.body_bytes {
            0 => 0,
            bytes => bytes.saturating_add(MAX_CAPTURE_BYTES),
        },
        rings,
        scratches,
        queue_time: arrivals.is_some().into(),
        delivery_time: options.delivery_time.into(),
        sample_times: options.sample_times.into(),
    };
    let clusters = if options.body_bytes == 0 {
        1
    } else {
        MAX_CLUSTER_ENDPOINTS
    };
    lift_memory_lock();
    let btf = aya::Btf::parse(&outline, aya::Endianness::default())?;
    drop(outline);
    // aya-log counts from 1, error, to 5, trace; 0 is off.
    let log_level: u8 = if options.verbose { 4 } else { 0 };
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(&btf))
        .override_global("CONFIG", &config, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .map_max_entries(
            "CONNECTIONS",
            if is_on_demand {
                1
            } else {
                options.max_connections
            },
        )
        .map_max_entries("CLUSTERS", clusters)
        .map_max_entries("SCRATCH", scratches * cpus)
        .map_max_entries("UNWIND_KNOWN", KNOWN_RULES as u32 * cpus);
    if arrivals.is_none() {
        loader.map_max_entries("FIRST_ARRIVALS", 1);
    }
    for (index, name) in RING_MAPS.iter().enumerate() {
        let used = index < rings as usize;
        loader.map_max_entries(name, if used { options.ring_bytes } else { 4096 });
    }
    let mut ebpf = loader.load(super::OBJECT)?;
    drop(loader);
    if is_on_demand {
        for (name, max_entries) in [
            ("CONNECTIONS", Some(options.max_connections)),
            ("SAMPLE_COUNTS", None),
            ("WAITED", None),
            ("WAITING", None),
        ] {
            allocate_on_demand(&mut ebpf, name, max_entries)
                .map_err(|source| LoadError::Map { name, source })?;
        }
    }
    Ok(Loaded {
        ebpf,
        btf,
        rings,
        taps,
        functions,
        arrivals,
    })
}

fn has_ipv6(offsets: &Offsets) -> bool {
    offsets.sock_local_v6 != MISSING
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_back_and_what_is_named_does_not() {
        let candidates = |wanted, functions, tracepoints| {
            TapVariant::candidates(wanted, functions, tracepoints).ok()
        };
        use TapVariant::{Fentry, Socket, Walk};
        for (functions, tracepoints, best, other) in [
            (true, true, Socket, Some(Walk)),
            (true, false, Fentry, Some(Walk)),
            (false, true, Socket, Some(Walk)),
            (false, false, Walk, None),
        ] {
            let found = candidates(Tap::Auto, functions, tracepoints);
            assert_eq!(found, Some((best, other)), "{functions} {tracepoints}");
        }
        for (wanted, tap) in [
            (Tap::Fentry, Fentry),
            (Tap::Socket, Socket),
            (Tap::Walk, Walk),
        ] {
            assert_eq!(candidates(wanted, true, true), Some((tap, None)));
        }
        assert_eq!(candidates(Tap::Fentry, false, true), None);
        assert_eq!(candidates(Tap::Socket, true, false), None);
    }
}
