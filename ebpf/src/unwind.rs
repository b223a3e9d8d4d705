//! The walk over a user stack: registers, mapping, row, rule, caller; one frame a step.
//!
//! The walk's state lies in the scratch, so that a step is the same in both drivers: `bpf_loop`
//! (since 5.17), and a loop that calls a global function. The verifier knows nothing of what it
//! reads there, so it looks at one step and is done.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap},
    helpers::generated::{bpf_get_smp_processor_id, bpf_probe_read_kernel, bpf_probe_read_user},
    macros::btf_map,
};
use ebpf_common::{
    prologue::{BYTES_BEFORE, CODE_WORDS, Setup},
    python::{FRAME_WORDS, MAX_PYTHON_FRAMES, NATIVE_MARK},
    sample::{MAX_KERNEL_FRAMES, MAX_USER_FRAMES, stack_flags},
    unwind::{
        CHUNK_BLOCKS, CHUNK_PAGES, MAX_BLOCKS, MAX_MAPPINGS, MAX_PAGES, MAX_PROCESSES, MAX_RULES,
        Machine, PAGE_SHIFT, Registers, RowBlock, StackEnd, USER_END, UnwindMapping, UnwindProcess,
        UnwindRule, caller, caller_by_frame_pointer, cfa_kind, interrupted, page_block, page_first,
        page_last, row_low, row_rule,
    },
    v8::{SCRIPT_MARK, SCRIPT_WORDS, SHARED_WORDS},
};

use crate::{buffer::read_user_into, known::KnownRule, python::PythonWalk, v8};

/// Rows of every file: blocks in chunks, which are made when they are needed.
#[btf_map]
static UNWIND_ROWS: ArrayOfMaps<Array<RowBlock, CHUNK_BLOCKS>, { MAX_BLOCKS / CHUNK_BLOCKS }> =
    ArrayOfMaps::new();

/// Where the rows of each page are, in chunks as well.
#[btf_map]
static UNWIND_PAGES: ArrayOfMaps<Array<u64, CHUNK_PAGES>, { MAX_PAGES / CHUNK_PAGES }> =
    ArrayOfMaps::new();

/// What rows lead to.
#[btf_map]
static UNWIND_RULES: Array<UnwindRule, MAX_RULES> = Array::new();

/// Executable ranges, those of a process side by side.
#[btf_map]
static UNWIND_MAPPINGS: Array<UnwindMapping, MAX_MAPPINGS> = Array::new();

/// The processes whose ranges are known.
#[btf_map]
static UNWIND_PROCESSES: HashMap<u32, UnwindProcess, MAX_PROCESSES> = HashMap::new();

/// Words of x86-64's `struct pt_regs`.
const PT_REGS_WORDS: usize = 21;

/// Indexes of words in it.
const RBP: usize = 4;
const RSI: usize = 13;
const RDI: usize = 14;
const RIP: usize = 16;
const CS: usize = 17;
const RSP: usize = 19;

/// Index in `pt_regs` by DWARF's number of a register, four bits each, from `rax` (0) to `r15`.
/// `rsp` (7) has none that would fit, and rules on it are of another kind.
const BY_DWARF_NUMBER: u64 = 0x0123_6789_f4ed_5bca;

/// `__USER_CS`: 64-bit code.
const USER_CODE: u64 = 0x33;

/// `mov $15,%rax; syscall`, as far as a word goes: the return from a signal handler, which not
/// every C library describes (`rt_sigreturn` is system call 15).
const SIGNAL_RETURN: u64 = 0x0f00_0000_0fc0_c748;

/// Words of the deepest stack of each kind together.
pub const MAX_WORDS: usize = MAX_KERNEL_FRAMES + FRAME_WORDS * MAX_PYTHON_FRAMES + MAX_USER_FRAMES;

/// What is known of code without rows.
const NOTHING: UnwindRule = UnwindRule::new(cfa_kind::NONE, 0, 0, 0, 0);

/// And of what was compiled at run time, which lies in no file.
const JIT: UnwindRule = UnwindRule::new(cfa_kind::NONE, 0, 0, 0, 1);

/// Steps of a search among [`MAX_PROCESS_MAPPINGS`](ebpf_common::unwind::MAX_PROCESS_MAPPINGS) and
/// among a page's rows. Each search takes all of them, which is one path for the verifier.
const MAPPING_STEPS: u32 = 12;
const ROW_STEPS: u32 = 10;

/// The state of a walk.
#[repr(C)]
pub struct Walk {
    /// The frame that is looked at.
    frame: Registers,
    /// The range that the last frame was in: often the next one's as well.
    mapping: UnwindMapping,
    process: UnwindProcess,
    /// The stack's hash so far.
    pub lanes: [u64; 2],
    /// Frames of the kernel's part, which is there before the walk begins.
    pub kernel_frames: u32,
    /// Words before the first of the user's part.
    pub before: u32,
    /// Frames found so far.
    pub user_frames: u32,
    /// Words beside their addresses.
    pub script_words: u32,
    /// A [`StackEnd`].
    end: u32,
    /// See [`stack_flags`].
    pub flags: u32,
    /// 1: `frame.pc` is an interrupted instruction. 0: it is a return address.
    is_interrupted: u32,
    /// 1: the frame's return address is where [`Setup::Entry`] has it, by what the callee told.
    is_bare: u32,
    cpu: u32,
    registers: [u64; PT_REGS_WORDS],
    stack: StackWindow,
    window: [u64; SHARED_WORDS],
    code: [u64; CODE_WORDS],
}

/// Words of a stack: the kernel's part, the interpreter's frames, then the user's part.
pub type Addresses = [u64; MAX_WORDS];

impl Walk {
    /// Begins at the user registers in `pt_regs`, if there are any.
    #[inline(always)]
    pub fn begin(&mut self, pt_regs: u64, pid: u32, image: u64) {
        self.user_frames = 0;
        self.script_words = 0;
        self.is_interrupted = 0;
        self.is_bare = 0;
        self.end = StackEnd::NoUserStack as u32;
        self.stack.start = StackWindow::NOWHERE;
        // SAFETY: the helper checks the address, and fills with zeroes where it cannot read.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut self.registers).cast(),
                size_of::<[u64; PT_REGS_WORDS]>() as u32,
                pt_regs as *const _,
            );
        }
        let segment = self.registers[CS] & 0xffff;
        // A kernel thread has no such registers.
        if image == 0 || segment & 3 != 3 || self.registers[RIP] == 0 {
            return;
        }
        self.frame = Registers {
            pc: self.registers[RIP],
            sp: self.registers[RSP],
            fp: self.registers[RBP],
        };
        self.is_interrupted = 1;
        // SAFETY: no arguments.
        self.cpu = unsafe { bpf_get_smp_processor_id() };
        self.mapping = UnwindMapping {
            start: 0,
            end: 0,
            bias: 0,
            first_page: 0,
            pages: 0,
        };
        self.process.mappings = 0;
        self.process.python = 0;
        self.process.v8 = 0;
        // SAFETY: copied out at once.
        if let Some(process) = unsafe { UNWIND_PROCESSES.get(pid) }
            && process.image == image
            && segment == USER_CODE
        {
            self.process = *process;
        }
        if self.process.mappings == 0 {
            self.flags |= stack_flags::PROCESS_UNKNOWN;
        }
        if self.process.v8 != 0 {
            self.flags |= stack_flags::SCRIPTS_READ;
        }
    }

    /// The process's element in `PYTHON_PROCESSES`, or 0.
    #[inline(always)]
    pub fn python(&self) -> u32 {
        self.process.python
    }

    /// Words of the whole stack so far.
    #[inline(always)]
    pub fn words(&self) -> usize {
        // In 64 bits, so that the register that is bounded is the one that is used.
        self.before as usize + self.user_frames as usize + self.script_words as usize
    }

    /// Is there a stack to walk?
    #[inline(always)]
    pub fn has_begun(&self) -> bool {
        self.is_interrupted != 0
    }

    /// Takes note of where the walk ended.
    #[inline(always)]
    pub fn finish(&mut self) {
        self.flags |= self.end << StackEnd::SHIFT;
    }

    /// One frame: notes its address and goes on to its caller. False at the end.
    #[inline(always)]
    pub fn step(&mut self, addresses: &mut Addresses, python: &mut PythonWalk) -> bool {
        let frame = self.frame;
        let is_leaf = self.user_frames == 0;
        if frame.pc == 0 {
            return self.end(StackEnd::Zero);
        }
        // What stands where a return address should be can be anything, even what a mark looks like.
        if frame.pc >= USER_END {
            return self.end(StackEnd::NoCode);
        }
        if self.user_frames >= MAX_USER_FRAMES as u32 {
            return self.end(StackEnd::Depth);
        }
        // Where the call stands, not where it returns to. Of a caller that a signal interrupted,
        // the address is noted as if it had called.
        let lookup = frame.pc.wrapping_sub(u64::from(self.is_interrupted == 0));
        let address = if is_leaf {
            frame.pc
        } else {
            lookup.wrapping_add(1)
        };
        let index = self.words();
        if index >= MAX_WORDS {
            return self.end(StackEnd::Depth);
        }
        addresses[index] = address;
        mix(&mut self.lanes, address);
        self.user_frames += 1;

        let is_known = self.process.mappings != 0;
        let found = if is_known { self.rule_of(lookup) } else { None };
        let machine = Process {
            registers: &raw const self.registers,
            stack: &raw mut self.stack,
            is_leaf,
        };
        if is_known && found.is_none() && !is_leaf {
            return self.end(StackEnd::NoCode);
        }
        let rule = found.unwrap_or(NOTHING);
        let was_interrupted = self.is_interrupted != 0;
        let is_bare = self.is_bare != 0;
        self.is_bare = 0;
        self.is_interrupted = u32::from(rule.cfa_kind() == cfa_kind::SIGNAL);
        let next = if rule.cfa_kind() != cfa_kind::NONE {
            caller(rule, frame, &machine)
        } else if !is_leaf && machine.word(frame.pc) == Some(SIGNAL_RETURN) {
            self.is_interrupted = 1;
            interrupted(frame, &machine)
        } else {
            self.flags |= stack_flags::BY_FRAME_POINTER;
            // Who called another one has set up its frame, unless the other one does so.
            let setup = if is_bare {
                Setup::Entry
            } else if was_interrupted {
                self.setup(frame, &machine)
            } else {
                Setup::Done
            };
            self.is_bare = u32::from(setup == Setup::ForCaller);
            if self.process.v8 != 0 {
                let is_jit = rule.extra == JIT.extra;
                self.note_function(addresses, index, frame, setup, is_jit);
            }
            if setup.has_frame() {
                caller_by_frame_pointer(frame, &machine)
            } else {
                setup.caller(frame, &machine)
            }
        };
        match next {
            Ok(next) => {
                self.frame = next;
                if self.process.python != 0 && python.meets(lookup, frame.sp, next.sp) {
                    addresses[index] |= NATIVE_MARK;
                    mix(&mut self.lanes, NATIVE_MARK);
                }
                true
            }
            Err(end) => self.end(end),
        }
    }

    /// Has the interrupted code at `frame` set up its frame?
    #[inline(always)]
    fn setup(&mut self, frame: Registers, machine: &Process) -> Setup {
        read_user_into(&mut self.code, frame.pc.wrapping_sub(BYTES_BEFORE));
        let setup = Setup::at(&self.code);
        if setup.is_guess() && self.process.mappings != 0 {
            let top = machine.word(frame.sp).unwrap_or_default();
            if !self.find_mapping(top) {
                return Setup::Done;
            }
        }
        setup
    }

    /// Notes the function of V8 that a frame belongs to, if it is one, behind the frame's address at
    /// `index`.
    #[inline(always)]
    fn note_function(
        &mut self,
        addresses: &mut Addresses,
        index: usize,
        frame: Registers,
        setup: Setup,
        is_jit: bool,
    ) {
        let layout = self.process.v8;
        // A call of JavaScript passes them in registers. What else is compiled at run time has no function
        // there, by its type.
        let passed = |frames: u32| {
            let is_there = is_jit && self.user_frames <= frames;
            is_there.then_some([self.registers[RDI], self.registers[RSI]])
        };
        let with_context = match setup {
            Setup::Done => v8::of_frame(layout, frame.fp, frame.sp).or_else(|| passed(1)),
            Setup::Leaving => v8::of_frame(layout, frame.fp, 0),
            Setup::Left => v8::of_frame(layout, frame.sp.wrapping_sub(8), 0),
            // What sets up the frame for its caller leaves them to that.
            Setup::Entry | Setup::Saved(_) => passed(2),
            _ => None,
        };
        let Some(with_context) = with_context else {
            return;
        };
        let Some(words) = v8::function(layout, with_context, &mut self.window) else {
            return;
        };
        // Bounded here, in one comparison: older verifiers forget what they knew before the calls.
        let index = core::hint::black_box(index);
        if index >= MAX_WORDS - SCRIPT_WORDS {
            return;
        }
        addresses[index] |= SCRIPT_MARK;
        addresses[index + 1] = words[0];
        addresses[index + 2] = words[1];
        mix(&mut self.lanes, words[0]);
        mix(&mut self.lanes, words[1]);
        self.script_words += SCRIPT_WORDS as u32;
    }

    #[inline(always)]
    fn end(&mut self, end: StackEnd) -> bool {
        self.end = end as u32;
        false
    }

    /// The rule for an address; `None` where that lies in no range of the process.
    #[inline(always)]
    fn rule_of(&mut self, address: u64) -> Option<UnwindRule> {
        let version = self.process.version;
        let known = KnownRule::of(self.cpu, version, address)?;
        if !known.is_of(version, address) {
            if !self.find_mapping(address) {
                return None;
            }
            known.set(version, address, self.find_rule(address));
        }
        Some(known.rule)
    }

    /// Makes `mapping` the one that `address` lies in.
    #[inline(always)]
    fn find_mapping(&mut self, address: u64) -> bool {
        if address >= self.mapping.start && address < self.mapping.end {
            return true;
        }
        let first = self.process.first_mapping;
        let (mut base, mut count) = (0, self.process.mappings);
        let mut step = 0;
        while step < MAPPING_STEPS {
            let half = count / 2;
            let Some(mapping) = UNWIND_MAPPINGS.get(first + base + half) else {
                return false;
            };
            base += if_reached(half, mapping.start, address);
            count -= half;
            // Opaque, so that the loop is not unrolled.
            step = core::hint::black_box(step) + 1;
        }
        let Some(mapping) = UNWIND_MAPPINGS.get(first + base) else {
            return false;
        };
        self.mapping = *mapping;
        address >= self.mapping.start && address < self.mapping.end
    }

    /// The rule for an address of `mapping`.
    #[inline(always)]
    fn find_rule(&self, address: u64) -> UnwindRule {
        if self.mapping.pages == 0 {
            return JIT;
        }
        let inside = address.wrapping_sub(self.mapping.bias);
        let number = inside >> PAGE_SHIFT;
        if number >= u64::from(self.mapping.pages) {
            return NOTHING;
        }
        let index = self.mapping.first_page + number as u32;
        let (chunk, index) = (index / CHUNK_PAGES as u32, index % CHUNK_PAGES as u32);
        let Some(page) = UNWIND_PAGES.get_value(chunk, &index) else {
            return NOTHING;
        };
        let page = *page;
        let block = page_block(page);
        let (chunk, index) = (block / CHUNK_BLOCKS as u32, block % CHUNK_BLOCKS as u32);
        let Some(rows) = UNWIND_ROWS.get_value(chunk, &index) else {
            return NOTHING;
        };
        let low = inside as u32 & ((1 << PAGE_SHIFT) - 1);
        let mut first = page_first(page);
        let mut count = page_last(page) + 1;
        let mut step = 0;
        while step < ROW_STEPS {
            let half = count / 2;
            let row = rows[((first + half) & 1023) as usize];
            first += if_reached(half, u64::from(row_low(row)), u64::from(low));
            count -= half;
            // Opaque, so that the loop is not unrolled.
            step = core::hint::black_box(step) + 1;
        }
        match UNWIND_RULES.get(row_rule(rows[(first & 1023) as usize])) {
            Some(rule) => *rule,
            None => NOTHING,
        }
    }
}

/// `half` where `start` is at most `position`, else 0: without a branch, of which the verifier would
/// follow both sides. Both are below 2^63.
#[inline(always)]
fn if_reached(half: u32, start: u64, position: u64) -> u32 {
    let is_beyond = (position as i64).wrapping_sub(start as i64) >> 63;
    half & !(is_beyond as u32)
}

/// Words of a [`StackWindow`].
const STACK_WORDS: usize = 32;

/// Of those, how many below the pair that is read: where registers are saved.
const WORDS_BELOW: usize = 6;

/// A piece of the user stack: most frames are small, so that one read serves several.
#[repr(C)]
struct StackWindow {
    /// Address of the first word.
    start: u64,
    words: [u64; STACK_WORDS],
}

impl StackWindow {
    /// As an address, of a window that holds nothing.
    const NOWHERE: u64 = 1 << 63;

    /// Index of the word at `address` where it and `more` behind it are there.
    #[inline(always)]
    fn index(&self, address: u64, more: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.start);
        (offset <= ((STACK_WORDS - 1 - more) * 8) as u64 && offset & 7 == 0)
            .then_some(offset as usize / 8)
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        self.words[index & (STACK_WORDS - 1)]
    }

    /// Reads anew, around `address`; false where that cannot be read.
    #[inline(always)]
    fn fill(&mut self, address: u64) -> bool {
        let start = address.wrapping_sub(WORDS_BELOW as u64 * 8);
        // SAFETY: the helper checks the address, and writes all words, zeroes where it cannot read.
        let result = unsafe {
            bpf_probe_read_user(
                (&raw mut self.words).cast(),
                size_of::<[u64; STACK_WORDS]>() as u32,
                start as *const _,
            )
        };
        self.start = if result == 0 { start } else { Self::NOWHERE };
        result == 0
    }
}

/// The interrupted process.
struct Process {
    registers: *const [u64; PT_REGS_WORDS],
    stack: *mut StackWindow,
    is_leaf: bool,
}

impl Machine for Process {
    #[inline(always)]
    fn word(&self, address: u64) -> Option<u64> {
        // SAFETY: this CPU's scratch.
        let stack = unsafe { &*self.stack };
        match stack.index(address, 0) {
            Some(index) => Some(stack.word(index)),
            None => self.read(address),
        }
    }

    #[inline(always)]
    fn pair(&self, address: u64) -> Option<[u64; 2]> {
        // SAFETY: this CPU's scratch.
        let stack = unsafe { &mut *self.stack };
        let index = match stack.index(address, 1) {
            Some(index) => index,
            None if stack.fill(address) => WORDS_BELOW,
            // At the stack's last page.
            None => return self.read(address),
        };
        Some([stack.word(index), stack.word(index + 1)])
    }

    #[inline(always)]
    fn register(&self, number: u8) -> Option<u64> {
        if !self.is_leaf {
            return None;
        }
        let index = BY_DWARF_NUMBER >> (u64::from(number & 15) * 4) & 15;
        // SAFETY: this CPU's scratch, which has 21 words.
        Some(unsafe { (*self.registers)[index as usize] })
    }
}

impl Process {
    #[inline(always)]
    fn read<T>(&self, address: u64) -> Option<T> {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address, and fills the value with zeroes where it cannot
        // read it; `T` is a word or two.
        unsafe {
            let result = bpf_probe_read_user(
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                address as *const _,
            );
            if result == 0 {
                Some(value.assume_init())
            } else {
                None
            }
        }
    }
}

/// Begins a stack's hash. Two independent lanes of multiply and rotate (the constants are from
/// xxHash64). Samples are counted by the thread as well, so a program that crafted a collision
/// would deceive its own profile alone.
#[inline(always)]
pub const fn seed(kernel_frames: u32) -> [u64; 2] {
    [
        PRIME_3 ^ kernel_frames as u64,
        PRIME_1 ^ kernel_frames as u64,
    ]
}

/// Mixes an address into both lanes.
#[inline(always)]
pub fn mix(lanes: &mut [u64; 2], address: u64) {
    lanes[0] = (lanes[0] ^ address.wrapping_mul(PRIME_1))
        .rotate_left(27)
        .wrapping_mul(PRIME_2);
    lanes[1] = (lanes[1] ^ address.wrapping_mul(PRIME_2))
        .rotate_left(31)
        .wrapping_mul(PRIME_1);
}

/// The hash of a stack of so many frames.
#[inline(always)]
pub fn hash(lanes: [u64; 2], frames: u32) -> [u64; 2] {
    [spread(lanes[0] ^ u64::from(frames)), spread(lanes[1])]
}

/// Spreads the last words' bits over the lane.
#[inline(always)]
fn spread(lane: u64) -> u64 {
    let lane = (lane ^ (lane >> 33)).wrapping_mul(PRIME_2);
    let lane = (lane ^ (lane >> 29)).wrapping_mul(PRIME_3);
    lane ^ (lane >> 32)
}

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
