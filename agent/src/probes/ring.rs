//! Draining a ring: hand every record to a closure.

use aya::maps::{MapData, MapError, RingBuf};
use aya::{Ebpf, maps::Map};

/// One ring buffer and its only reader.
pub struct Ring {
    ring: RingBuf<MapData>,
}

/// A map of the object is not what the agent takes it for.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The object has no such map, or it was taken already.
    #[error("the object has no map `{0}`")]
    NoMap(String),
    /// No second descriptor of a map could be had.
    #[error("cannot copy the descriptor of map `{name}`: {source}")]
    Descriptor {
        /// The map's name.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The map is of another kind, or could not be mapped into memory.
    #[error("cannot use map `{name}`: {source}")]
    Map {
        /// The map's name.
        name: String,
        /// What went wrong.
        source: MapError,
    },
}

impl Ring {
    /// Takes the ring of that name out of the object.
    ///
    /// # Errors
    /// Where there is none, or it cannot be mapped.
    pub fn take(ebpf: &mut Ebpf, name: &str) -> Result<Self, RingError> {
        let map: Map = ebpf
            .take_map(name)
            .ok_or_else(|| RingError::NoMap(name.to_owned()))?;
        let ring = RingBuf::try_from(map).map_err(|source| RingError::Map {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self { ring })
    }

    /// Hands at most `limit` waiting records to `handle`; returns how many there were.
    pub fn drain(&mut self, limit: usize, mut handle: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(record) = self.ring.next()
        {
            handle(&record);
            count += 1;
        }
        count
    }
}
