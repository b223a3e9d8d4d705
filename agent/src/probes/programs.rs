//! The attached programs: their run-time statistics, and their end.

use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;

/// Owns the attached programs. Dropping it detaches them, also where somebody still holds a
/// [`RunStatistics`].
pub struct Programs {
    ebpf: Arc<Mutex<Option<Ebpf>>>,
}

/// Reads how often each program ran and for how long.
#[derive(Clone)]
pub struct RunStatistics {
    ebpf: Arc<Mutex<Option<Ebpf>>>,
}

impl Programs {
    /// Takes over an object whose programs are attached.
    #[must_use]
    pub fn new(ebpf: Ebpf) -> Self {
        Self {
            ebpf: Arc::new(Mutex::new(Some(ebpf))),
        }
    }

    /// A reader of the kernel's own statistics of these programs.
    #[must_use]
    pub fn run_statistics(&self) -> RunStatistics {
        RunStatistics {
            ebpf: Arc::clone(&self.ebpf),
        }
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.ebpf
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

impl RunStatistics {
    /// Name, runs and run time in nanoseconds of each loaded program. Zero where the statistics
    /// are off; empty after the end.
    #[must_use]
    pub fn read(&self) -> Vec<(String, u64, u64)> {
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = ebpf.iter().flat_map(Ebpf::programs);
        programs
            .filter_map(|(name, program)| {
                // A program that this kernel did not take has no information.
                let info = program.info().ok()?;
                let run_ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
                Some((name.to_owned(), info.run_count(), run_ns))
            })
            .collect()
    }
}
