//! When arrivals are watched: a program that runs for each of them costs a busy server more than all
//! that the tap adds to it otherwise.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, ProgramError};

use super::load::ArrivalVariant;
use crate::config::Sampling;

/// How long arrivals are watched at a time, and how often. No multiple of the period of the
/// programs' own statistics, which would see always or never what this costs.
const WINDOW: Duration = Duration::from_secs(1);
const PERIOD: Duration = Duration::from_secs(7);

/// Attaches the program that notes arrivals, and detaches it, in turn. What arrived while it was
/// attached is told whenever it is read.
pub struct ArrivalWindows {
    ebpf: Arc<Mutex<Option<Ebpf>>>,
    program: &'static str,
    attached: Option<BtfTracePointLinkId>,
    mode: Sampling,
}

impl ArrivalWindows {
    /// Begins the first window.
    ///
    /// # Errors
    /// Where the program cannot be attached.
    pub(super) fn begin(
        ebpf: Arc<Mutex<Option<Ebpf>>>,
        variant: ArrivalVariant,
        mode: Sampling,
    ) -> Result<Self, ProgramError> {
        let mut windows = Self {
            ebpf,
            program: variant.tracepoint(),
            attached: None,
            mode,
        };
        if mode != Sampling::Off {
            windows.attach()?;
        }
        Ok(windows)
    }

    /// Ends windows and begins others, for as long as it is polled.
    pub async fn run(mut self) {
        if self.mode != Sampling::Sampled {
            return;
        }
        let mut next = tokio::time::interval(PERIOD);
        loop {
            next.tick().await;
            let turned = match self.attached {
                Some(_) => Ok(()),
                None => self.attach(),
            };
            tokio::time::sleep(WINDOW).await;
            if let Err(error) = turned.and_then(|()| self.detach()) {
                tracing::warn!(%error, "arrivals are no longer watched");
                return;
            }
        }
    }

    fn attach(&mut self) -> Result<(), ProgramError> {
        self.attached = Some(self.with_program(BtfTracePoint::attach)?);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), ProgramError> {
        match self.attached.take() {
            Some(link) => self.with_program(|program| program.detach(link)),
            None => Ok(()),
        }
    }

    /// An error where the program is not there, as after the end.
    fn with_program<T>(
        &self,
        act: impl FnOnce(&mut BtfTracePoint) -> Result<T, ProgramError>,
    ) -> Result<T, ProgramError> {
        let mut ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let program = ebpf
            .as_mut()
            .and_then(|ebpf| ebpf.program_mut(self.program))
            .ok_or(ProgramError::NotAttached)?;
        act(program.try_into()?)
    }
}
