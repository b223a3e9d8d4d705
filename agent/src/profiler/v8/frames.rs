//! Names of V8's functions, read soon after they were sampled and kept as long as somebody has samples
//! of them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use ebpf_common::sample::SampleKey;
use profile::SymbolizedFrame;
use profile::v8::{SCRIPT_FRAME, read_function};

use super::super::interpreted::ProcessMemory;
use super::V8Processes;
use crate::probes::sampler::{Translated, UserStack};
use crate::symbolize::ImageKey;

/// Most different functions whose names are kept; frames of others have none.
const MAX_FUNCTIONS: usize = 100_000;

/// Most `SharedFunctionInfo`s that are remembered; beyond, all are read anew.
const MAX_KNOWN: usize = 100_000;

/// A `SharedFunctionInfo`, as the kernel side tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SharedKey {
    image: ImageKey,
    shared: u64,
    stamp: u64,
}

/// See the module.
pub(in super::super) struct ScriptFrames {
    proc_root: PathBuf,
    processes: V8Processes,
    /// Numbers of the functions that stand in stacks; `None` for one of V8's own.
    known: HashMap<SharedKey, Option<u64>>,
    /// Equal functions share a number.
    numbers: HashMap<SymbolizedFrame, u64>,
    functions: Vec<SymbolizedFrame>,
}

impl ScriptFrames {
    /// None yet.
    pub(in super::super) fn new(proc_root: impl Into<PathBuf>, processes: V8Processes) -> Self {
        Self {
            proc_root: proc_root.into(),
            processes,
            known: HashMap::new(),
            numbers: HashMap::new(),
            functions: Vec::new(),
        }
    }

    /// Puts the functions that the frames of a stack belong to behind the frames' addresses; `None`
    /// where it has none.
    pub(in super::super) fn translate(
        &mut self,
        key: &SampleKey,
        stack: &UserStack<'_>,
    ) -> Option<Translated> {
        if stack.functions.is_empty() {
            return None;
        }
        let image = ImageKey {
            pid: key.pid,
            image: key.image,
        };
        let mut reader = Reader::default();
        let mut user = Vec::with_capacity(stack.native.len() + stack.functions.len());
        let mut functions = stack.functions.iter().peekable();
        for (index, address) in stack.native.iter().enumerate() {
            user.push(*address);
            if let Some(function) = functions.next_if(|function| function.frame == index) {
                let key = SharedKey {
                    image,
                    shared: function.shared,
                    stamp: function.stamp,
                };
                user.extend(self.number(key, &mut reader));
            }
        }
        Some(Translated {
            user: user.into(),
            interpreter_missing: reader.any_unknown,
        })
    }

    /// What stands for a function in a stack; `None` for one that has no name, or is V8's own.
    fn number(&mut self, key: SharedKey, reader: &mut Reader) -> Option<u64> {
        if let Some(number) = self.known.get(&key) {
            return *number;
        }
        let number = self.read(key, reader).and_then(|function| match function {
            Some(function) => Some(Some(self.number_of(function)?)),
            None => Some(None),
        });
        let Some(number) = number else {
            reader.any_unknown = true;
            return None;
        };
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(key, number);
        number
    }

    /// Reads a function, of which V8's own say nothing; `None` where that fails.
    fn read(&self, key: SharedKey, reader: &mut Reader) -> Option<Option<SymbolizedFrame>> {
        let pid = key.image.pid;
        let known = self.processes.get(pid)?;
        if known.image != key.image.image {
            return None;
        }
        if reader.memory.is_none() {
            reader.memory = ProcessMemory::open(&self.proc_root, pid).ok();
        }
        let v8 = (*known.v8).as_ref().ok()?;
        match read_function(reader.memory.as_ref()?, v8, key.shared, key.stamp) {
            Ok(function) => Some(function),
            Err(error) => {
                tracing::debug!(pid, address = key.shared, %error, "a function was not read");
                None
            }
        }
    }

    fn number_of(&mut self, function: SymbolizedFrame) -> Option<u64> {
        if let Some(number) = self.numbers.get(&function) {
            return Some(SCRIPT_FRAME | number);
        }
        if self.functions.len() >= MAX_FUNCTIONS {
            return None;
        }
        let number = self.functions.len() as u64;
        self.functions.push(function.clone());
        self.numbers.insert(function, number);
        Some(SCRIPT_FRAME | number)
    }

    /// The function that stands in a stack.
    pub(in super::super) fn function(&self, frame: u64) -> Option<&SymbolizedFrame> {
        let number = usize::try_from(frame & !SCRIPT_FRAME).ok()?;
        self.functions.get(number)
    }

    /// Forgets the `SharedFunctionInfo`s of images that are not among `kept`. The functions stay,
    /// since nobody knows which others share them.
    pub(in super::super) fn retain(&mut self, kept: &HashSet<ImageKey>) {
        self.known.retain(|key, _| kept.contains(&key.image));
    }

    /// Forgets everything: nobody has samples.
    pub(in super::super) fn clear(&mut self) {
        self.known = HashMap::new();
        self.numbers = HashMap::new();
        self.functions = Vec::new();
    }
}

/// What the functions of one stack are read with.
#[derive(Default)]
struct Reader {
    /// Opened where it is needed.
    memory: Option<ProcessMemory>,
    any_unknown: bool,
}
