//! The maps that the agent reads beside the rings.

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use ebpf_common::connection::ConnectionState;
use ebpf_common::loss::LossReason;

use super::ring::RingError;

/// How far each connection has come, for workers that ask.
pub struct Connections {
    map: HashMap<MapData, u64, ConnectionState>,
}

impl Connections {
    /// Takes the connection map out of the object.
    ///
    /// # Errors
    /// Where the object has none.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, RingError> {
        Ok(Self {
            map: take(ebpf, "CONNECTIONS")?,
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
}

/// The kernel side's loss counters.
pub struct KernelLosses {
    map: PerCpuArray<MapData, u64>,
}

impl KernelLosses {
    /// Takes the loss counters out of the object.
    ///
    /// # Errors
    /// Where the object has none.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, RingError> {
        Ok(Self {
            map: take(ebpf, "LOSSES")?,
        })
    }

    /// Every reason with its count since the start, over all CPUs.
    #[must_use]
    pub fn read(&self) -> Vec<(LossReason, u64)> {
        LossReason::ALL
            .into_iter()
            .map(|reason| {
                let slots = self.map.get(&(reason as u32), 0);
                (reason, slots.map_or(0, |slots| slots.iter().sum()))
            })
            .collect()
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, RingError> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| RingError::NoMap(name.to_owned()))?;
    M::try_from(map).map_err(|source| RingError::Map {
        name: name.to_owned(),
        source,
    })
}
