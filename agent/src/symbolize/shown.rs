//! What of a stack is shown, and how far it was followed: by the names of its functions.

use profile::{FrameIndex, StackEnd, StackTrace, SymbolizedFrame, Unwind};

use super::jit::{self, is_mark};
use super::resolve::FrameTable;

impl FrameTable {
    /// Cuts off what lies beyond a thread's entry. Entries have no frame pointer of their own to
    /// pass on, so what is found there is what happened to be in the register.
    pub(super) fn cut_beyond_entry(&self, stack: &StackTrace, frames: &mut Vec<FrameIndex>) {
        if stack.end == StackEnd::Outermost {
            return;
        }
        let begin = frames
            .len()
            .saturating_sub(OUTERMOST)
            .max(stack.kernel.len() + 1);
        let Some(entry) = (begin..frames.len()).find(|at| self.is(frames[*at], is_entry)) else {
            return;
        };
        // An entry may have been reached through another one: `_start` calls `__libc_start_main`.
        let beyond = (entry..frames.len()).find(|at| !self.is(frames[*at], is_entry));
        frames.truncate(beyond.unwrap_or(frames.len()));
    }

    /// Has a function of V8 take the place of the native frame that belongs to it, where that says
    /// less: code without a name, or the interpreter's. What a perf map says of a frame says more.
    pub(super) fn join_scripts(&self, frames: &mut Vec<FrameIndex>) {
        if self.scripts.is_empty() {
            return;
        }
        let is_script =
            |frame: Option<&FrameIndex>| frame.is_some_and(|frame| self.scripts.contains(frame));
        let mut joined = Vec::with_capacity(frames.len());
        for (index, frame) in frames.iter().enumerate() {
            let native = &self.frames[*frame];
            let is_listed = |functions: &[SymbolizedFrame]| {
                functions.iter().any(|function| !is_mark(&function.name))
            };
            if is_script(Some(frame)) {
                let before = index
                    .checked_sub(1)
                    .map(|before| &self.frames[frames[before]]);
                let is_named = before
                    .is_some_and(|native| native.mapping.is_none() && is_listed(&native.functions));
                if !is_named {
                    joined.push(*frame);
                }
            } else if !is_script(frames.get(index + 1))
                || is_listed(&native.functions) && !is_script_interpreter(&native.functions)
            {
                joined.push(*frame);
            }
        }
        *frames = joined;
    }

    /// Leaves out the native functions by which the interpreter calls one of Python's from another:
    /// before 3.11 there are two to four of them a call, and they say nothing.
    pub(super) fn leave_out_plumbing(&self, frames: &mut Vec<FrameIndex>) {
        let mut follows_python = false;
        frames.retain(|index| {
            let frame = &self.frames[*index];
            let is_python = frame.is_interpreted();
            let is_plumbing = follows_python
                && !frame.functions.is_empty()
                && frame
                    .functions
                    .iter()
                    .all(|function| is_plumbing(&function.name));
            follows_python = is_python || is_plumbing;
            !is_plumbing
        });
    }

    /// How far the stack was followed.
    pub(super) fn unwind(&self, stack: &StackTrace, frames: &[FrameIndex]) -> Unwind {
        match self.unwind_native(stack, frames) {
            Unwind::Complete if self.lacks_interpreted(stack, frames) => Unwind::Interpreter,
            unwind => unwind,
        }
    }

    /// Did the thread run an interpreter whose frames, or functions, are not all told?
    fn lacks_interpreted(&self, stack: &StackTrace, frames: &[FrameIndex]) -> bool {
        let ran_python = || frames.iter().any(|frame| self.pythons.contains(frame));
        let has_nameless_script = || {
            let mut functions = frames.iter().map(|frame| &self.frames[*frame].functions);
            functions.any(|functions| is_nameless_script(functions))
        };
        stack.interpreter_missing
            || !stack.python_read && ran_python()
            || !stack.scripts_read && has_nameless_script()
    }

    fn unwind_native(&self, stack: &StackTrace, frames: &[FrameIndex]) -> Unwind {
        if stack.user.is_empty() {
            return Unwind::NoUserStack;
        }
        if stack.truncated || stack.end == StackEnd::Depth {
            return Unwind::Truncated;
        }
        // By rules alone, to a return address of zero.
        let is_marked = stack.end == StackEnd::Zero && !stack.by_frame_pointer;
        if stack.end == StackEnd::Outermost || is_marked {
            return Unwind::Complete;
        }
        // Frames without a name may lie beyond the first function of the program: a C library
        // without symbols calls `main`. The leaf does not count: it may call `clone`.
        let callers = frames.get(stack.kernel.len() + 1..).unwrap_or_default();
        let reached_entry = callers
            .iter()
            .rev()
            .take(OUTERMOST)
            .any(|frame| self.is(*frame, |name| is_entry(name) || is_first_function(name)));
        match stack.end {
            _ if reached_entry => Unwind::Complete,
            _ if stack.by_frame_pointer => Unwind::Unverified,
            StackEnd::NoCode => Unwind::NoCode,
            StackEnd::ReadFault => Unwind::ReadFault,
            StackEnd::Unsupported => Unwind::UnsupportedRule,
            StackEnd::NoProgress => Unwind::NoProgress,
            _ => Unwind::Unverified,
        }
    }

    /// Is one of the frame's functions of that kind? Frames of an interpreter lie in no file, and
    /// may have any name.
    fn is(&self, frame: FrameIndex, kind: impl Fn(&str) -> bool) -> bool {
        let frame = &self.frames[frame];
        let mut functions = frame.functions.iter();
        frame.mapping.is_some() && functions.any(|function| kind(&function.name))
    }
}

/// How many frames from the outside a thread's entry is looked for.
const OUTERMOST: usize = 4;

/// V8's functions that run a function by its bytecode.
fn is_script_interpreter(functions: &[SymbolizedFrame]) -> bool {
    let mut names = functions.iter().map(|function| &*function.name);
    names.all(|name| name.starts_with("Builtins_Interpreter"))
}

/// Is it a frame of V8 that does not tell which function runs?
fn is_nameless_script(functions: &[SymbolizedFrame]) -> bool {
    functions
        .iter()
        .any(|function| jit::is_node_mark(&function.name))
        || !functions.is_empty() && is_script_interpreter(functions)
}

/// CPython's functions between the interpreter's loop and itself.
fn is_plumbing(name: &str) -> bool {
    const PLUMBING: [&str; 11] = [
        "_PyEval_EvalFrame",
        "_PyEval_EvalCode",
        "_PyEval_EvalCodeWithName",
        "_PyEval_Vector",
        "_PyFunction_Vectorcall",
        "_PyFunction_FastCallDict",
        "_PyObject_Vectorcall",
        "PyObject_Vectorcall",
        "_PyObject_VectorcallTstate",
        "function_code_fastcall",
        "call_function",
    ];
    PLUMBING.contains(&name)
}

/// Functions in which threads begin, and those that they pass on to before the program's own:
/// glibc, musl, Go.
fn is_entry(name: &str) -> bool {
    const ENTRIES: [&str; 17] = [
        "_start",
        "_start_c",
        "_dl_start",
        "__libc_start_main",
        "__libc_start_main_impl",
        "__libc_start_call_main",
        "libc_start_main_stage2",
        "start_thread",
        "clone",
        "__clone",
        "clone3",
        "__clone3",
        "runtime.goexit",
        "runtime.goexit.abi0",
        "runtime.mstart",
        "runtime.mstart.abi0",
        "runtime.rt0_go.abi0",
    ];
    ENTRIES.contains(&name)
}

/// The first function of a program or of a thread that is not the C library's: C, Rust, Java's
/// virtual machine.
fn is_first_function(name: &str) -> bool {
    name == "main" || name == "thread_native_entry(Thread*)" || name.ends_with("::thread_start")
}
