//! The maps that the agent reads beside the rings.

use std::collections::{HashMap as StdHashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use ebpf_common::connection::{ClusterEndpoint, ConnectionState, family};
use ebpf_common::loss::LossReason;

use super::ring::RingError;

/// How far each connection has come, for workers that ask.
pub struct Connections {
    map: HashMap<MapData, u64, ConnectionState>,
    /// A second handle: removing needs one of its own.
    removal: Mutex<HashMap<MapData, u64, ConnectionState>>,
}

impl Connections {
    /// Takes the connection map out of the object.
    ///
    /// # Errors
    /// Where the object has none, or no descriptor is left.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, RingError> {
        const NAME: &str = "CONNECTIONS";
        let Some(Map::HashMap(data)) = ebpf.take_map(NAME) else {
            return Err(RingError::NoMap(NAME.to_owned()));
        };
        let error = |source| RingError::Map {
            name: NAME.to_owned(),
            source,
        };
        let second = Map::HashMap(second_handle(&data, NAME)?);
        Ok(Self {
            removal: Mutex::new(second.try_into().map_err(error)?),
            map: Map::HashMap(data).try_into().map_err(error)?,
        })
    }

    /// The kernel's record of the connection `id` on the socket at `socket`; `None` once it ended
    /// or the address has another owner.
    #[must_use]
    pub fn get(&self, socket: u64, id: u64) -> Option<ConnectionState> {
        self.map
            .get(&socket, 0)
            .ok()
            .filter(|state| state.connection_id == id)
    }

    /// Removes Unix sockets that no longer exist and have been silent for `silent_ns` at `now_ns`:
    /// no tracepoint tells their end where neither side reads it. Returns how many went.
    pub fn forget_dead_unix_sockets(&self, now_ns: u64, silent_ns: u64) -> usize {
        let silent: Vec<(u64, ConnectionState)> = self
            .map
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, state)| {
                let last_ns = state.cursors.iter().map(|cursor| cursor.last_ns).max();
                u16::from(state.family) == family::UNIX
                    && now_ns.saturating_sub(last_ns.unwrap_or(0).max(state.opened_ns)) > silent_ns
            })
            .collect();
        // Namespace → inodes of its Unix sockets, by any process of ours that lives in it.
        let mut namespaces = StdHashMap::<u64, HashSet<u64>>::new();
        let own = std::process::id();
        for pid in silent.iter().map(|(_, state)| state.pid).chain([own]) {
            if let Some(namespace) = network_namespace(pid)
                && !namespaces.contains_key(&namespace)
                && let Some(inodes) = unix_inodes(pid)
            {
                namespaces.insert(namespace, inodes);
            }
        }
        let mut removal = self.removal.lock().unwrap_or_else(PoisonError::into_inner);
        let dead = silent.into_iter().filter(|(socket, state)| {
            let inodes = namespaces.get(&u64::from(state.network_namespace));
            !inodes.is_some_and(|inodes| inodes.contains(&state.inode))
                && removal.remove(socket).is_ok()
        });
        dead.count()
    }
}

fn network_namespace(pid: u32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/net"))
        .ok()
        .map(|metadata| metadata.ino())
}

/// Inodes of `/proc/PID/net/unix`: its seventh column.
fn unix_inodes(pid: u32) -> Option<HashSet<u64>> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).ok()?;
    let rows = table.lines().skip(1);
    Some(
        rows.filter_map(|row| row.split_ascii_whitespace().nth(6)?.parse().ok())
            .collect(),
    )
}

/// The endpoints of which the kernel side knows that they are clusters.
#[derive(Debug)]
pub struct ClusterEndpoints {
    map: Mutex<HashMap<MapData, ClusterEndpoint, u8>>,
}

impl ClusterEndpoints {
    /// Takes the map of clusters out of the object.
    ///
    /// # Errors
    /// Where the object has none.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, RingError> {
        const NAME: &str = "CLUSTERS";
        let map = ebpf
            .take_map(NAME)
            .ok_or_else(|| RingError::NoMap(NAME.to_owned()))?;
        let map = map.try_into().map_err(|source| RingError::Map {
            name: NAME.to_owned(),
            source,
        })?;
        Ok(Self {
            map: Mutex::new(map),
        })
    }

    /// Tells the kernel side of a cluster. Where the map is full, bodies of that one are captured no
    /// further than others.
    pub fn insert(&self, endpoint: SocketAddr) {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses(endpoint.ip()).into_iter().flatten() {
            let key = ClusterEndpoint {
                address,
                port: endpoint.port().into(),
            };
            if let Err(error) = map.insert(key, 1, 0) {
                tracing::warn!(%endpoint, %error, "cluster not told to the kernel side");
            }
        }
    }
}

/// How sockets show an address: an IPv4 one is a mapped one to those of both families.
fn addresses(address: IpAddr) -> [Option<[u8; 16]>; 2] {
    let of_v4 = |address: Ipv4Addr| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address.octets());
        [Some(bytes), Some(address.to_ipv6_mapped().octets())]
    };
    match address.to_canonical() {
        IpAddr::V4(address) => of_v4(address),
        IpAddr::V6(address) => [Some(address.octets()), None],
    }
}

/// The kernel side's loss counters.
pub struct KernelLosses {
    map: PerCpuArray<MapData, u64>,
}

impl KernelLosses {
    /// Reads the loss counters through a descriptor of its own: the sampler has another.
    ///
    /// # Errors
    /// Where the object has none, or no descriptor is left.
    pub fn share(ebpf: &Ebpf) -> Result<Self, RingError> {
        Ok(Self {
            map: share_losses(ebpf)?,
        })
    }

    /// Every reason with its count since the start, over all CPUs.
    #[must_use]
    pub fn read(&self) -> Vec<(LossReason, u64)> {
        let totals = LossReason::ALL.into_iter();
        totals.map(|reason| (reason, self.total(reason))).collect()
    }

    /// The count of one reason since the start, over all CPUs.
    #[must_use]
    pub fn total(&self, reason: LossReason) -> u64 {
        let slots = self.map.get(&(reason as u32), 0);
        slots.map_or(0, |slots| slots.iter().sum())
    }
}

fn share_losses(ebpf: &Ebpf) -> Result<PerCpuArray<MapData, u64>, RingError> {
    const NAME: &str = "LOSSES";
    let Some(Map::PerCpuArray(data)) = ebpf.map(NAME) else {
        return Err(RingError::NoMap(NAME.to_owned()));
    };
    let second = Map::PerCpuArray(second_handle(data, NAME)?);
    second.try_into().map_err(|source| RingError::Map {
        name: NAME.to_owned(),
        source,
    })
}

/// Another descriptor of the same map.
fn second_handle(data: &MapData, name: &str) -> Result<MapData, RingError> {
    let no_descriptor = |source| RingError::Descriptor {
        name: name.to_owned(),
        source,
    };
    let fd = data
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(no_descriptor)?;
    MapData::from_fd(fd).map_err(|source| RingError::Map {
        name: name.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_ipv4_address_has_two_forms() {
        let mapped: Ipv6Addr = "::ffff:10.1.2.3".parse().unwrap();
        let mut plain = [0; 16];
        plain[..4].copy_from_slice(&[10, 1, 2, 3]);
        for address in [IpAddr::from([10, 1, 2, 3]), mapped.into()] {
            assert_eq!(addresses(address), [Some(plain), Some(mapped.octets())]);
        }
        let other: Ipv6Addr = "fd00::1".parse().unwrap();
        assert_eq!(addresses(other.into()), [Some(other.octets()), None]);
    }

    #[test]
    fn finds_the_unix_sockets_of_a_namespace() {
        let (socket, _peer) = UnixStream::pair().expect("a pair of sockets");
        let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = std::fs::metadata(link).expect("the socket's inode").ino();
        let pid = std::process::id();
        assert!(unix_inodes(pid).expect("the table").contains(&inode));
        assert!(network_namespace(pid).is_some());
        assert!(unix_inodes(0).is_none());
    }
}
