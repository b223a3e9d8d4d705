//! What the kernel side tells workers beside the records of their rings.

use ebpf_common::connection::ConnectionState;
use ebpf_common::loss::LossReason;

use crate::probes::maps::{Connections, KernelLosses};
use crate::process_events::ProcessEvents;

/// Answers of the kernel side.
pub trait KernelSide: Send + Sync {
    /// Its record of the connection `id` on the socket at `socket`; `None` once that ended or the
    /// address has another owner.
    fn connection(&self, socket: u64, id: u64) -> Option<ConnectionState>;

    /// Whether every connection so far had its place in the kernel's map when it first moved bytes.
    fn has_seen_every_connection(&self) -> bool;

    /// Brings the process table up to date.
    fn drain_process_events(&self);
}

/// The maps and the process ring of the loaded programs.
pub struct Programs {
    /// How far the kernel has seen connections come.
    pub connections: Connections,
    /// What the kernel side could not pass on.
    pub losses: KernelLosses,
    /// Exec and exit.
    pub process_events: ProcessEvents,
}

impl KernelSide for Programs {
    fn connection(&self, socket: u64, id: u64) -> Option<ConnectionState> {
        self.connections.get(socket, id)
    }

    fn has_seen_every_connection(&self) -> bool {
        self.losses.total(LossReason::ConnectionsFull) == 0
    }

    fn drain_process_events(&self) {
        self.process_events.drain();
    }
}
