//! From addresses to functions: kernel, ELF, DWARF with inlined callees, vDSO, perf maps, and a mark
//! for what JIT compilers wrote.
//!
//! While samples come in, [`Images`] holds on to what each process has mapped. When they are all
//! there, [`Symbolizer::resolve`] gives every address its place and its functions.

pub mod executable;
pub mod image;
pub mod jit;
pub mod maps;
pub mod names;
pub mod perf_map;
pub mod resolve;
mod shown;

use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::probes::release_memory;

pub use image::{Image, ImageKey, Images, NamelessFiles};
pub use resolve::{Request, Resolved};

use names::Names;

/// How long names are kept after they were last used.
const IDLE: Duration = Duration::from_secs(30);

/// How long names are kept however often they are used: the kernel loads and unloads code.
const MAX_AGE: Duration = Duration::from_secs(300);

/// The symbolizer gave up on a request: a bug of ours or of a library, met in some file.
#[derive(Debug, thiserror::Error)]
#[error("symbols could not be read: the symbolizer failed, see its message on standard error")]
pub struct SymbolizerFailed;

/// Resolves addresses in a thread of its own, which keeps names for half a minute.
#[derive(Debug, Default)]
pub struct Symbolizer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
}

struct Job {
    request: Request,
    answer: mpsc::Sender<Resolved>,
}

impl Symbolizer {
    /// Resolves all of `request`. Blocks, for seconds where executables carry much debug
    /// information.
    ///
    /// # Errors
    /// When the thread can't be started, or a file makes it panic.
    pub fn resolve(&self, request: Request) -> Result<Resolved, SymbolizerFailed> {
        let (answer, resolved) = mpsc::channel();
        self.submit(Job { request, answer })?;
        resolved.recv().map_err(|_| SymbolizerFailed)
    }

    fn submit(&self, job: Job) -> Result<(), SymbolizerFailed> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent = match jobs.as_ref() {
            Some(sender) => sender.send(job).err().map(|mpsc::SendError(job)| job),
            None => Some(job),
        };
        // There is no thread yet, or a file made the last one panic.
        if let Some(job) = unsent {
            let (sender, receiver) = mpsc::channel();
            thread::Builder::new()
                .name("symbolizer".into())
                .spawn(move || work(&receiver))
                .map_err(|_| SymbolizerFailed)?;
            sender.send(job).map_err(|_| SymbolizerFailed)?;
            *jobs = Some(sender);
        }
        Ok(())
    }
}

/// Answers jobs for as long as there is somebody who could ask.
fn work(jobs: &mpsc::Receiver<Job>) {
    let mut names = None;
    let mut since = Instant::now();
    loop {
        match jobs.recv_timeout(IDLE) {
            Ok(Job { request, answer }) => {
                if since.elapsed() >= MAX_AGE {
                    names = None;
                }
                let names = names.get_or_insert_with(|| {
                    since = Instant::now();
                    Names::default()
                });
                // Whoever asked may have gone away.
                let _ = answer.send(resolve::resolve(names, request));
                names.trim();
                // Reading symbols leaves much behind that the allocator would keep.
                release_memory();
            }
            // Symbols take tens of megabytes.
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if names.take().is_some() {
                    release_memory();
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}
