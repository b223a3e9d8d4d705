//! From counted stacks to a profile's frames: each address becomes a place in a file, equal
//! places become one frame, and each frame gets its functions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use profile::python::PYTHON_FRAME;
use profile::v8::SCRIPT_FRAME;
use profile::{
    Counted, Frame, FrameIndex, Mapping, MappingIndex, Sample, StackTrace, SymbolizedFrame,
};

use super::executable::FileIdentity;
use super::image::{Backing, Image, ImageKey};
use super::maps::MapsEntry;
use super::names::{Functions, Names, kernel_build_id};
use super::perf_map;

/// What is to be resolved.
#[derive(Debug, Default)]
pub struct Request {
    /// Stacks with their counts.
    pub counted: Vec<Counted>,
    /// What the sampled processes had mapped.
    pub images: HashMap<ImageKey, Image>,
    /// Service of each process image.
    pub services: HashMap<ImageKey, Arc<str>>,
    /// Functions of what stands in stacks for frames of Python and functions of V8.
    pub interpreted: HashMap<u64, SymbolizedFrame>,
}

/// Parts of a [`profile::Profile`].
#[derive(Debug, Default)]
pub struct Resolved {
    /// See [`profile::Profile::mappings`].
    pub mappings: Vec<Mapping>,
    /// See [`profile::Profile::frames`].
    pub frames: Vec<Frame>,
    /// See [`profile::Profile::samples`].
    pub samples: Vec<Sample>,
    /// Lines of perf maps that could not be understood, each counted once.
    pub malformed_lines: u64,
    /// Perf maps of which not all was used, for their size.
    pub cut_lists: u64,
}

/// Resolves all of `request`.
#[must_use]
pub fn resolve(names: &mut Names, request: Request) -> Resolved {
    let Request {
        counted,
        images,
        services,
        interpreted,
    } = request;
    let mut table = FrameTable::default();
    let placed: Vec<_> = counted
        .into_iter()
        .map(|counted| {
            let key = ImageKey {
                pid: counted.thread.pid,
                image: counted.thread.image,
            };
            let stack = table.add_stack(names, key, images.get(&key), &counted.stack);
            (counted, stack)
        })
        .collect();
    table.name_frames(names, &images, &interpreted);
    let unknown: Arc<str> = "unknown".into();
    let samples = placed
        .into_iter()
        .map(|(counted, mut frames)| {
            let Counted {
                thread,
                stack,
                count,
            } = counted;
            table.cut_beyond_entry(&stack, &mut frames);
            table.join_scripts(&mut frames);
            table.leave_out_plumbing(&mut frames);
            Sample {
                unwind: table.unwind(&stack, &frames),
                frames,
                count,
                pid: thread.pid,
                tid: thread.tid,
                service: services
                    .get(&ImageKey::of(&thread))
                    .unwrap_or(&unknown)
                    .clone(),
                thread: thread.name,
                work: thread.work,
            }
        })
        .collect();
    Resolved {
        mappings: table.mappings,
        frames: table.frames,
        samples,
        malformed_lines: table.malformed_lines,
        cut_lists: table.cut_lists,
    }
}

/// What makes two addresses the same frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// An address of the kernel.
    Kernel(u64),
    /// An address of a file, in its own terms.
    File(FileIdentity, u64),
    /// An offset into the vDSO.
    Vdso(u64),
    /// A frame of Python, or a function of V8, by what stands for it.
    Interpreted(u64),
    /// An absolute address of one process image: code without a file.
    Own(ImageKey, u64),
}

/// The frames and mappings that were met so far.
#[derive(Default)]
pub(super) struct FrameTable {
    pub(super) frames: Vec<Frame>,
    by_place: HashMap<Place, FrameIndex>,
    mappings: Vec<Mapping>,
    by_mapping: HashMap<Mapping, MappingIndex>,
    malformed_lines: u64,
    cut_lists: u64,
    /// Those that the frame before belongs to.
    pub(super) scripts: HashSet<FrameIndex>,
    /// Those in a file that holds CPython.
    pub(super) pythons: HashSet<FrameIndex>,
}

impl FrameTable {
    /// Turns the addresses of a stack into frames. The first address that is no code of the
    /// process ends it: what frame pointers led to from there on is no stack.
    fn add_stack(
        &mut self,
        names: &mut Names,
        key: ImageKey,
        image: Option<&Image>,
        stack: &StackTrace,
    ) -> Vec<FrameIndex> {
        let mut frames = Vec::with_capacity(stack.kernel.len() + stack.user.len());
        for address in lookup_addresses(&stack.kernel) {
            let mapping = self.mapping(kernel_mapping);
            frames.push(self.frame(Place::Kernel(address), address, Some(mapping)));
        }
        for (address, looked_up) in stack.user.iter().zip(lookup_addresses(&stack.user)) {
            if address & PYTHON_FRAME != 0 {
                let frame = self.frame(Place::Interpreted(*address), 0, None);
                if address & SCRIPT_FRAME == SCRIPT_FRAME {
                    self.scripts.insert(frame);
                }
                frames.push(frame);
                continue;
            }
            let Some(frame) = self.user_frame(names, key, image, looked_up) else {
                return frames;
            };
            frames.push(frame);
        }
        frames
    }

    /// The frame of a user address; `None` where the process has no code there.
    fn user_frame(
        &mut self,
        names: &mut Names,
        key: ImageKey,
        image: Option<&Image>,
        address: u64,
    ) -> Option<FrameIndex> {
        let own = Place::Own(key, address);
        let Some(image) = image.filter(|image| image.is_known()) else {
            return Some(self.frame(own, address, None));
        };
        let region = image.region(address)?;
        let inside = address - region.entry.start;
        let frame = match &region.backing {
            Backing::File(executable) => {
                let layout = names.layout(executable);
                let file_offset = inside.saturating_add(region.entry.file_offset);
                let place = layout.and_then(|layout| Some((layout.place(file_offset)?, layout)));
                match place {
                    Some(((address, mapping), layout)) => {
                        let mapping = self.mapping(|| mapping);
                        let place = Place::File(executable.identity(), address);
                        let frame = self.frame(place, address, Some(mapping));
                        if layout.holds_python() {
                            self.pythons.insert(frame);
                        }
                        frame
                    }
                    None => self.frame(own, address, None),
                }
            }
            Backing::Vdso => {
                let len = region.entry.end - region.entry.start;
                let mapping = self.mapping(|| vdso_mapping(len));
                self.frame(Place::Vdso(inside), inside, Some(mapping))
            }
            Backing::Anonymous => self.frame(own, address, None),
            Backing::Unopened => {
                let mapping = self.mapping(|| unread_mapping(&region.entry));
                self.frame(own, address, Some(mapping))
            }
        };
        Some(frame)
    }

    fn frame(&mut self, place: Place, address: u64, mapping: Option<MappingIndex>) -> FrameIndex {
        *self.by_place.entry(place).or_insert_with(|| {
            self.frames.push(Frame {
                address,
                mapping,
                functions: Vec::new(),
            });
            self.frames.len() - 1
        })
    }

    fn mapping(&mut self, mapping: impl FnOnce() -> Mapping) -> MappingIndex {
        let mapping = mapping();
        if let Some(index) = self.by_mapping.get(&mapping) {
            return *index;
        }
        self.mappings.push(mapping.clone());
        self.by_mapping.insert(mapping, self.mappings.len() - 1);
        self.mappings.len() - 1
    }

    /// Gives every frame its functions, one look at each source.
    fn name_frames(
        &mut self,
        names: &mut Names,
        images: &HashMap<ImageKey, Image>,
        interpreted: &HashMap<u64, SymbolizedFrame>,
    ) {
        let mut kernel = Group::default();
        let mut vdso = Group::default();
        let mut files: HashMap<FileIdentity, Group> = HashMap::new();
        let mut own: HashMap<ImageKey, Group> = HashMap::new();
        for (place, frame) in &self.by_place {
            match *place {
                Place::Kernel(address) => kernel.push((address, *frame)),
                Place::Vdso(offset) => vdso.push((offset, *frame)),
                Place::File(file, address) => {
                    files.entry(file).or_default().push((address, *frame));
                }
                Place::Interpreted(number) => {
                    let functions = &mut self.frames[*frame].functions;
                    functions.extend(interpreted.get(&number).cloned());
                }
                Place::Own(key, address) => own.entry(key).or_default().push((address, *frame)),
            }
        }
        self.set(kernel, |addresses| names.in_kernel(addresses));
        self.set(vdso, |offsets| names.in_vdso(offsets));
        for (identity, group) in files {
            self.set(group, |addresses| names.in_file(identity, addresses));
        }
        for (key, group) in own {
            let Some(image) = images.get(&key) else {
                continue;
            };
            if let Some(list) = image.perf_map() {
                let (mut malformed_lines, mut is_cut) = (0, false);
                self.set(group.clone(), |addresses| {
                    let answer = perf_map::functions(list, addresses);
                    (malformed_lines, is_cut) = (answer.malformed_lines, answer.is_cut);
                    answer.functions
                });
                self.malformed_lines += malformed_lines;
                self.cut_lists += u64::from(is_cut);
            }
            for (address, frame) in group {
                let functions = &mut self.frames[frame].functions;
                if functions.is_empty()
                    && let Some(mark) = image.jit_mark(address)
                {
                    functions.push(SymbolizedFrame {
                        name: Arc::clone(mark),
                        file: None,
                        line: None,
                    });
                }
            }
        }
    }

    fn set(&mut self, mut group: Group, names: impl FnOnce(&[u64]) -> Vec<Functions>) {
        if group.is_empty() {
            return;
        }
        group.sort_unstable();
        let addresses: Vec<_> = group.iter().map(|(address, _)| *address).collect();
        for ((_, frame), functions) in group.iter().zip(names(&addresses)) {
            self.frames[*frame].functions = functions;
        }
    }
}

/// Addresses of one source with the frames that they belong to.
type Group = Vec<(u64, FrameIndex)>;

/// What is to be looked up for each address of a stack: the interrupted instruction itself for
/// the leaf, and the last byte of the call for each caller. The return address may already belong
/// to the next line, or, after a call that never returns, to the next function.
fn lookup_addresses(addresses: &[u64]) -> impl Iterator<Item = u64> + '_ {
    let calls = addresses
        .iter()
        .skip(1)
        .map(|address| address.saturating_sub(1));
    addresses.first().copied().into_iter().chain(calls)
}

/// The upper half of the address space is the kernel's.
fn kernel_mapping() -> Mapping {
    Mapping {
        start: 1 << 63,
        end: u64::MAX,
        file_offset: 0,
        path: "[kernel.kallsyms]".into(),
        build_id: kernel_build_id(),
    }
}

/// A file that could not be read: all that is known is where the process has it.
fn unread_mapping(entry: &MapsEntry) -> Mapping {
    Mapping {
        start: entry.start,
        end: entry.end,
        file_offset: entry.file_offset,
        path: entry.path.as_str().into(),
        build_id: None,
    }
}

fn vdso_mapping(len: u64) -> Mapping {
    Mapping {
        start: 0,
        end: len,
        file_offset: 0,
        path: "[vdso]".into(),
        build_id: None,
    }
}

#[cfg(test)]
mod tests {
    use profile::{StackEnd, Thread, Unwind, Work};

    use super::*;
    use crate::symbolize::Images;
    use crate::symbolize::maps;

    /// A function whose name, file and line are looked for.
    #[inline(never)]
    fn landmark() -> u32 {
        line!()
    }

    fn thread(image: u64) -> Thread {
        Thread {
            pid: std::process::id(),
            tid: 1,
            image,
            name: "t".into(),
            work: Work::default(),
        }
    }

    /// Resolves one stack of this process, as if it had been sampled.
    fn resolved(user: &[u64], truncated: bool) -> Resolved {
        let image = maps::read_image("/proc".as_ref(), std::process::id()).unwrap();
        let key = ImageKey::of(&thread(image));
        let mut images = Images::new("/proc");
        images.observe(key, key.pid, user);
        let stack = StackTrace {
            kernel: Box::default(),
            user: user.into(),
            truncated,
            end: StackEnd::Zero,
            by_frame_pointer: true,
            ..StackTrace::default()
        };
        let request = Request {
            interpreted: HashMap::new(),
            counted: vec![Counted {
                thread: thread(image),
                stack,
                count: 5,
            }],
            images: images
                .get(key)
                .map(|image| (key, image.clone()))
                .into_iter()
                .collect(),
            services: HashMap::from([(key, "here".into())]),
        };
        resolve(&mut Names::default(), request)
    }

    fn address() -> u64 {
        landmark as fn() -> u32 as usize as u64
    }

    #[test]
    fn a_function_of_this_program_has_its_name_file_and_line() {
        let line = landmark();
        let resolved = resolved(&[address()], false);
        let function = resolved.frames[0].functions.last().unwrap();
        assert!(
            function.name.ends_with("resolve::tests::landmark"),
            "{}",
            function.name
        );
        assert!(
            function
                .file
                .as_ref()
                .unwrap()
                .ends_with("symbolize/resolve.rs")
        );
        // The function's first instruction stands on one of its own lines.
        assert!((line - 1..=line + 1).contains(&function.line.unwrap()));
        let mapping = &resolved.mappings[resolved.frames[0].mapping.unwrap()];
        assert_eq!(
            *mapping.path,
            *std::env::current_exe().unwrap().to_str().unwrap()
        );
        assert!((mapping.start..mapping.end).contains(&resolved.frames[0].address));
        assert_eq!(*resolved.samples[0].service, *"here");
    }

    #[test]
    fn a_caller_is_looked_up_where_it_calls() {
        // As a return address, the first byte of a function belongs to what stands before it.
        let resolved = resolved(&[address(), address()], false);
        let addresses: Vec<_> = resolved.frames.iter().map(|frame| frame.address).collect();
        assert_eq!(addresses[0], addresses[1] + 1);
    }

    #[test]
    fn a_function_takes_the_place_of_a_frame_that_says_less() {
        let mut table = FrameTable::default();
        let mapping = Some(table.mapping(kernel_mapping));
        let key = ImageKey::of(&thread(1));
        let mut push = |address, mapping, name: &str| {
            let frame = table.frame(Place::Own(key, address), address, mapping);
            let named = SymbolizedFrame {
                name: name.into(),
                file: None,
                line: None,
            };
            table.frames[frame]
                .functions
                .extend((!name.is_empty()).then_some(named));
            frame
        };
        let mark = push(1, None, "[jit node]");
        let nameless = push(2, None, "");
        let trampoline = push(3, mapping, "Builtins_InterpreterEntryTrampoline");
        let builtin = push(4, mapping, "Builtins_LoadIC");
        let listed = push(5, None, "JS:*f x.js:1:2");
        let script = push(6, None, "f");
        table.scripts.insert(script);
        for (frame, expected) in [
            (mark, vec![script]),
            (nameless, vec![script]),
            (trampoline, vec![script]),
            (builtin, vec![builtin, script]),
            (listed, vec![listed]),
        ] {
            let mut frames = vec![frame, script, mark];
            table.join_scripts(&mut frames);
            assert_eq!(frames, [expected, vec![mark]].concat());
        }
    }

    #[test]
    fn what_is_no_code_ends_the_stack() {
        let resolved = resolved(&[address(), 0x10, address()], false);
        assert_eq!(resolved.samples[0].frames.len(), 1);
        assert_eq!(resolved.samples[0].unwind, Unwind::Unverified);
    }

    #[test]
    fn a_process_that_could_not_be_asked_keeps_its_addresses() {
        let stack = StackTrace {
            kernel: Box::default(),
            user: [0x1000, 0x2001].into(),
            ..StackTrace::default()
        };
        let request = Request {
            interpreted: HashMap::new(),
            counted: vec![Counted {
                thread: thread(1),
                stack,
                count: 5,
            }],
            ..Request::default()
        };
        let resolved = resolve(&mut Names::default(), request);
        let addresses: Vec<_> = resolved.frames.iter().map(|frame| frame.address).collect();
        assert_eq!(addresses, [0x1000, 0x2000]);
        assert!(
            resolved
                .frames
                .iter()
                .all(|f| f.functions.is_empty() && f.mapping.is_none())
        );
        assert_eq!(*resolved.samples[0].service, *"unknown");
    }

    #[test]
    fn a_stack_ends_at_a_threads_entry() {
        let resolved = resolved(&[address(), entry_address() + 1, address()], false);
        assert_eq!(resolved.samples[0].frames.len(), 2);
        assert_eq!(resolved.samples[0].unwind, Unwind::Complete);
    }

    #[test]
    fn a_stack_is_complete_only_up_to_a_threads_entry() {
        assert_eq!(
            resolved(&[address()], false).samples[0].unwind,
            Unwind::Unverified
        );
        assert_eq!(
            resolved(&[address()], true).samples[0].unwind,
            Unwind::Truncated
        );
        assert_eq!(resolved(&[], false).samples[0].unwind, Unwind::NoUserStack);
        let start = entry_address();
        assert_eq!(
            resolved(&[address(), start + 1], false).samples[0].unwind,
            Unwind::Complete
        );
    }

    /// Address of this test program's `_start`: where its ELF header says that it begins.
    fn entry_address() -> u64 {
        let exe = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&exe).unwrap();
        let entry = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        // How far the loader moved the program: by what `landmark` tells.
        let executable = crate::symbolize::executable::Executable::open(&exe, "x").unwrap();
        let maps = maps::read("/proc".as_ref(), std::process::id()).unwrap();
        let region = maps
            .iter()
            .find(|e| (e.start..e.end).contains(&address()))
            .unwrap();
        let file_offset = address() - region.start + region.file_offset;
        let (own_address, _) = executable.layout().unwrap().place(file_offset).unwrap();
        address() - own_address + entry
    }
}
