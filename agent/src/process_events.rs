//! Exec and exit events → process table.

use std::sync::{Arc, Mutex, PoisonError};

use crate::decode::{Event, decode};
use crate::probes::ring::Ring;
use crate::process::ProcessTable;
use crate::self_metrics::Losses;

/// Most records taken at a time, so that no caller is held for long.
const MAX_RECORDS: usize = 4096;

/// The process ring and where its events go.
///
/// Whoever is about to ask the table for a process it does not know drains first: an exec is in
/// the ring before the new image can have moved a byte, so that the answer is about that image.
pub struct ProcessEvents {
    ring: Mutex<Ring>,
    table: Arc<ProcessTable>,
    losses: Losses,
}

impl ProcessEvents {
    /// Reads `ring` into `table`.
    #[must_use]
    pub fn new(ring: Ring, table: Arc<ProcessTable>, losses: Losses) -> Self {
        Self {
            ring: Mutex::new(ring),
            table,
            losses,
        }
    }

    /// Takes in what is waiting.
    pub fn drain(&self) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.drain(MAX_RECORDS, |record| match decode(record) {
            Ok(Event::ProcessExec(exec, command_line)) => {
                self.table.handle_exec(&exec, command_line);
            }
            Ok(Event::ProcessExit(exit)) => self.table.handle_exit(exit.pid),
            Ok(_) => self.losses.add("decode", "wrong_ring", 1),
            Err(_) => self.losses.add("decode", "malformed", 1),
        });
    }
}
