//! Names of frames of Python, read soon after they were sampled and kept as long as somebody has
//! samples of them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use ebpf_common::python::{FRAME_WORDS, GROUP_END, NATIVE_MARK, PythonProcess};
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
        let native = match &reader.layout {
            Some(layout) if key.flags & stack_flags::PYTHON_CUT != 0 => {
                mark_cut(stack, &layout.process)
            }
            _ => Cow::Borrowed(stack.native),
        };
        let merged = merge(&native, stack.python, kind, reached_end, |code, place| {
            self.number(&mut reader, [code, place])
        });
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

/// The native frames, in which the kernel side did not mark the one that runs the last group of frames,
/// as that group goes on beyond what is captured: it is the next one in the interpreter's loop.
fn mark_cut<'a>(stack: &UserStack<'a>, process: &PythonProcess) -> Cow<'a, [u64]> {
    let mut words = stack.python.chunks_exact(FRAME_WORDS);
    if words
        .next_back()
        .is_none_or(|frame| frame[0] & GROUP_END != 0)
    {
        return Cow::Borrowed(stack.native);
    }
    let last = stack
        .native
        .iter()
        .rposition(|word| word & NATIVE_MARK != 0);
    let first = last.map_or(0, |last| last + 1);
    let mut native = stack.native.to_vec();
    let is_in_loop = |(index, word): &(usize, &mut u64)| {
        let lookup = word.wrapping_sub(u64::from(*index > 0));
        let mut loops = process.loop_starts.iter().zip(process.loop_lens);
        *index >= first && loops.any(|(start, len)| lookup.wrapping_sub(*start) < len)
    };
    if let Some((_, word)) = native.iter_mut().enumerate().find(is_in_loop) {
        *word |= NATIVE_MARK;
    }
    Cow::Owned(native)
}

/// What the frames of one stack are read with.
struct Reader {
    image: ImageKey,
    layout: Option<Arc<Layout>>,
    /// Opened where it is needed.
    memory: Option<ProcessMemory>,
    any_unknown: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_was_cut_belongs_to_the_next_loop() {
        let process = PythonProcess {
            loop_starts: [0x1000, 0x3000],
            loop_lens: [0x100, 0x10],
            ..PythonProcess::default()
        };
        let stack = |native, python| {
            mark_cut(
                &UserStack {
                    native,
                    python,
                    functions: &[],
                },
                &process,
            )
            .into_owned()
        };
        let marked = 0x1004 | NATIVE_MARK;
        let native = [0x1001, marked, 0x2000, 0x1000, 0x1001, 0x3001];
        let ended = [8 | GROUP_END, 0];
        let open = [8 | GROUP_END, 0, 9, 0];
        assert_eq!(stack(&native, &ended), native);
        // A return address belongs to what stands before it.
        let expected = [0x1001, marked, 0x2000, 0x1000, 0x1001 | NATIVE_MARK, 0x3001];
        assert_eq!(stack(&native, &open), expected);
        assert_eq!(
            stack(&[0x1100, 0x3001], &open),
            [0x1100, 0x3001 | NATIVE_MARK]
        );
        assert_eq!(stack(&[0x3001], &[]), [0x3001]);
        assert_eq!(stack(&[0, 0], &open), [0, 0]);
    }
}
