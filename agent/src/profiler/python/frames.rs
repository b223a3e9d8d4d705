//! Names of frames of Python, read soon after they were sampled and kept as long as somebody has
//! samples of them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use ebpf_common::python::{FRAME_WORDS, GROUP_END};
use ebpf_common::sample::{SampleKey, stack_flags};
use profile::python::{Code, Layout, PYTHON_FRAME, merge, read_code};
use profile::{StackEnd, SymbolizedFrame};

use super::super::interpreted::ProcessMemory;
use super::PythonProcesses;
use crate::probes::sampler::{Translated, UserStack};
use crate::symbolize::ImageKey;

/// Most different functions and lines that are kept; frames beyond have no name.
const MAX_FRAMES: usize = 300_000;

/// Memory that the code objects may take; beyond, they are read anew.
const MAX_CODE_BYTES: usize = 16 << 20;

/// Shown in place of a function that could not be read.
const UNKNOWN: &str = "[unknown Python function]";

/// A code object, as the kernel side tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CodeKey {
    image: ImageKey,
    address: u64,
    stamp: u32,
}

/// See the module.
pub(in super::super) struct PythonFrames {
    proc_root: PathBuf,
    processes: PythonProcesses,
    codes: HashMap<CodeKey, Arc<Code>>,
    code_bytes: usize,
    /// Numbers of frames, which stand in stacks: frames of equal functions and lines share one.
    numbers: HashMap<SymbolizedFrame, u64>,
    frames: Vec<SymbolizedFrame>,
}

impl PythonFrames {
    /// None yet.
    pub(in super::super) fn new(proc_root: impl Into<PathBuf>, processes: PythonProcesses) -> Self {
        let mut frames = Self {
            proc_root: proc_root.into(),
            processes,
            codes: HashMap::new(),
            code_bytes: 0,
            numbers: HashMap::new(),
            frames: Vec::new(),
        };
        frames.clear();
        frames
    }

    /// Merges the interpreter's frames of a stack with its native ones; `None` where it has none.
    pub(in super::super) fn translate(
        &mut self,
        key: &SampleKey,
        stack: &UserStack<'_>,
    ) -> Option<Translated> {
        let known = self.processes.get(key.pid);
        let layout = known
            .filter(|known| known.image == key.image)
            .and_then(|known| known.layout.ok());
        let image = ImageKey {
            pid: key.pid,
            image: key.image,
        };
        if stack.python.is_empty() && layout.is_none() {
            return None;
        }
        let reached_end = matches!(
            StackEnd::of_flags(key.flags),
            StackEnd::Outermost | StackEnd::Zero
        );
        let kind = layout.as_ref().map_or(0, |layout| layout.process.kind);
        let mut reader = Reader {
            image,
            layout,
            memory: None,
            any_unknown: false,
        };
        let merged = merge(
            stack.native,
            stack.python,
            kind,
            reached_end,
            |code, place| self.number(&mut reader, [code, place]),
        );
        Some(Translated {
            user: merged.user.into(),
            interpreter_missing: !merged.is_whole
                || reader.any_unknown
                || key.flags & stack_flags::PYTHON_CUT != 0,
        })
    }

    /// What stands for a frame in a stack; `None` for one that nobody wrote.
    fn number(&mut self, reader: &mut Reader, [code, place]: [u64; FRAME_WORDS]) -> Option<u64> {
        let key = CodeKey {
            image: reader.image,
            address: code & !GROUP_END,
            stamp: place as u32,
        };
        let Some(code) = self.code(reader, key) else {
            reader.any_unknown = true;
            return Some(PYTHON_FRAME);
        };
        if code.is_internal() {
            return None;
        }
        let frame = code.at((place >> 32) as u32);
        if let Some(number) = self.numbers.get(&frame) {
            return Some(PYTHON_FRAME | number);
        }
        if self.frames.len() >= MAX_FRAMES {
            reader.any_unknown = true;
            return Some(PYTHON_FRAME);
        }
        let number = self.frames.len() as u64;
        self.frames.push(frame.clone());
        self.numbers.insert(frame, number);
        Some(PYTHON_FRAME | number)
    }

    fn code(&mut self, reader: &mut Reader, key: CodeKey) -> Option<Arc<Code>> {
        if let Some(code) = self.codes.get(&key) {
            return Some(Arc::clone(code));
        }
        let layout = reader.layout.as_ref()?;
        if reader.memory.is_none() {
            reader.memory = ProcessMemory::open(&self.proc_root, key.image.pid).ok();
        }
        let code = match read_code(reader.memory.as_ref()?, layout, key.address, key.stamp) {
            Ok(code) => Arc::new(code),
            Err(error) => {
                let pid = key.image.pid;
                tracing::debug!(pid, address = key.address, %error, "a code object was not read");
                return None;
            }
        };
        self.code_bytes += code.bytes();
        if self.code_bytes > MAX_CODE_BYTES {
            self.codes.clear();
            self.code_bytes = code.bytes();
        }
        self.codes.insert(key, Arc::clone(&code));
        Some(code)
    }

    /// The function of a frame in a stack.
    pub(in super::super) fn function(&self, frame: u64) -> Option<&SymbolizedFrame> {
        let number = usize::try_from(frame & !PYTHON_FRAME).ok()?;
        self.frames.get(number)
    }

    /// Forgets the code objects of images that are not among `kept`. Their frames stay, since
    /// nobody knows which others share them.
    pub(in super::super) fn retain(&mut self, kept: &HashSet<ImageKey>) {
        self.codes.retain(|key, _| kept.contains(&key.image));
        self.code_bytes = self.codes.values().map(|code| code.bytes()).sum();
    }

    /// Forgets everything: nobody has samples.
    pub(in super::super) fn clear(&mut self) {
        self.codes = HashMap::new();
        self.code_bytes = 0;
        self.numbers = HashMap::new();
        self.frames = vec![SymbolizedFrame {
            name: UNKNOWN.into(),
            file: None,
            line: None,
        }];
    }
}

/// What the frames of one stack are read with.
struct Reader {
    image: ImageKey,
    layout: Option<Arc<Layout>>,
    /// Opened where it is needed.
    memory: Option<ProcessMemory>,
    any_unknown: bool,
}
