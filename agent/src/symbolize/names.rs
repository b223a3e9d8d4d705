//! Names of addresses, by blazesym. Where a name would be a guess, there is none.
//!
//! A file's symbols and debug information take many times what the names take that are looked up in
//! it. So names are kept, and files are let go of when they were used, but for a few small ones.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use blazesym::symbolize::evict::{self, Evict};
use blazesym::symbolize::source::{Elf, Kernel, Process, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer as Blazesym};
use blazesym::{MaybeDefault, Pid};
use profile::go::GoTable;
use profile::{BuildId, SymbolizedFrame};

use super::executable::{Executable, FileIdentity, Layout};
use super::maps;

/// Files that are held open; beyond, all are let go.
const MAX_FILES: usize = 300;

/// Names that are kept; beyond, all are let go.
const MAX_NAMES: usize = 50_000;

/// Length of the files whose symbols are kept. The C library is among them as long as it is used
/// often; a compiler's library or a program with debug information is read anew.
const MAX_READ_BYTES: u64 = 16 * 1024 * 1024;

/// No function of the kernel is longer: what lies further from a symbol is not that function's.
const LONGEST_KERNEL_FUNCTION_BYTES: usize = 1 << 20;

/// Functions whose symbols tell no size are written in assembler, and short.
const LONGEST_SIZELESS_FUNCTION_BYTES: usize = 4096;

/// Longest name that is passed on; C++ templates can have names of many kilobytes.
const MAX_NAME_BYTES: usize = 1024;

/// The functions at one address, innermost inlined callee first; empty when unknown.
pub type Functions = Vec<SymbolizedFrame>;

/// Names in the kernel and in files, kept from one profile to the next.
pub struct Names {
    blazesym: Blazesym,
    files: HashMap<FileIdentity, NamedFile>,
    /// Files that blazesym has read, the one used last at the end.
    read: VecDeque<FileIdentity>,
    kernel: HashMap<u64, Functions>,
    texts: HashSet<Arc<str>>,
    vdso_start: Option<u64>,
}

/// A file and the names that were looked up in it.
struct NamedFile {
    /// One descriptor a file for as long as it is in use: blazesym knows files by path, and the
    /// path is that of the descriptor.
    executable: Arc<Executable>,
    layout: Option<Arc<Layout>>,
    functions: HashMap<u64, Functions>,
}

impl Default for Names {
    fn default() -> Self {
        let own_maps = maps::read(Path::new("/proc/self"), std::process::id())
            .or_else(|_| maps::read(Path::new("/proc"), std::process::id()))
            .unwrap_or_default();
        let vdso = own_maps.into_iter().find(|entry| entry.path == "[vdso]");
        Self {
            blazesym: Blazesym::new(),
            files: HashMap::new(),
            read: VecDeque::new(),
            kernel: HashMap::new(),
            texts: HashSet::new(),
            vdso_start: vdso.map(|entry| entry.start),
        }
    }
}

impl Names {
    /// Where `executable` places its code; `None` for a file that is not ELF.
    pub fn layout(&mut self, executable: &Arc<Executable>) -> Option<Arc<Layout>> {
        let file = self
            .files
            .entry(executable.identity())
            .or_insert_with(|| NamedFile {
                executable: Arc::clone(executable),
                layout: executable.layout().map(Arc::new),
                functions: HashMap::new(),
            });
        file.layout.clone()
    }

    /// Functions at addresses of a file, in the file's own terms. The file was given to
    /// [`Self::layout`] before.
    pub fn in_file(&mut self, identity: FileIdentity, addresses: &[u64]) -> Vec<Functions> {
        let Some(NamedFile {
            executable,
            layout: Some(layout),
            functions,
        }) = self.files.get(&identity)
        else {
            return vec![Vec::new(); addresses.len()];
        };
        let unknown = missing(functions, addresses);
        if !unknown.is_empty() {
            let (executable, layout) = (Arc::clone(executable), Arc::clone(layout));
            let trusted = |symbol: &Sym<'_>, address| {
                symbol.size.is_some()
                    || (symbol.offset < LONGEST_SIZELESS_FUNCTION_BYTES
                        && layout.same_section(symbol.addr, address))
            };
            let mut found = self.in_elf(&executable, &unknown, trusted);
            if found.iter().any(Vec::is_empty) {
                let texts = &mut self.texts;
                executable.with_go_table(|table| {
                    for (functions, address) in found.iter_mut().zip(&unknown) {
                        if functions.is_empty() {
                            functions.extend(go_function(table, *address, texts));
                        }
                    }
                });
            }
            if let Some(file) = self.files.get_mut(&identity) {
                file.functions.extend(unknown.into_iter().zip(found));
            }
            self.note_read(identity);
        }
        let functions = self.files.get(&identity).map(|file| &file.functions);
        functions.map_or_else(Vec::new, |functions| known(functions, addresses))
    }

    /// Functions by an ELF file's debug information and its symbols.
    fn in_elf(
        &mut self,
        executable: &Executable,
        addresses: &[u64],
        trusted: impl Fn(&Sym<'_>, u64) -> bool,
    ) -> Vec<Functions> {
        let mut elf = Elf::new(executable.reopen_path());
        let source = Source::from(elf.clone());
        let by_debug = self.symbolize(&source, Input::VirtOffset(addresses), &trusted);
        let mut found =
            by_debug.unwrap_or_else(|| vec![(Vec::new(), Trust::None); addresses.len()]);
        let doubtful: Vec<_> = found
            .iter()
            .zip(addresses)
            .filter(|((_, trust), _)| *trust == Trust::None)
            .map(|(_, address)| *address)
            .collect();
        // Debug information that cannot be read is no reason to do without the symbols, nor is one that
        // says of a function in several parts, as compilers split them, where it has code, but not where
        // it begins.
        elf.debug_syms = false;
        let by_symbols = if doubtful.is_empty() {
            None
        } else {
            self.symbolize(&Source::from(elf), Input::VirtOffset(&doubtful), trusted)
        };
        let mut by_symbols = by_symbols.unwrap_or_default().into_iter();
        let found = found.iter_mut().map(|(functions, trust)| {
            let by_debug = std::mem::take(functions);
            if *trust == Trust::Full {
                return by_debug;
            }
            match by_symbols.next() {
                Some((by_symbols, Trust::Full)) if is_same(&by_debug, &by_symbols) => by_debug,
                Some((by_symbols, Trust::Full)) => by_symbols,
                _ => Vec::new(),
            }
        });
        found.collect()
    }

    /// Lets go of what was read for the longest time, until the rest is short enough.
    fn note_read(&mut self, identity: FileIdentity) {
        self.read.retain(|read| *read != identity);
        self.read.push_back(identity);
        let len = |read: &VecDeque<FileIdentity>| -> u64 {
            read.iter().map(FileIdentity::size_bytes).sum()
        };
        while len(&self.read) > MAX_READ_BYTES
            && let Some(file) = self
                .read
                .pop_front()
                .and_then(|oldest| self.files.get(&oldest))
        {
            let path = file.executable.reopen_path();
            if let Err(error) = self.blazesym.evict(&Evict::from(evict::Elf::new(path))) {
                tracing::debug!(%error, "symbols were not let go of");
            }
        }
    }

    /// Functions at addresses of the kernel.
    pub fn in_kernel(&mut self, addresses: &[u64]) -> Vec<Functions> {
        let unknown = missing(&self.kernel, addresses);
        if !unknown.is_empty() {
            let source = Source::Kernel(Kernel {
                vmlinux: MaybeDefault::None,
                debug_syms: false,
                ..Kernel::default()
            });
            let found = self.symbolize(&source, Input::AbsAddr(&unknown), |symbol, _| {
                // Without CAP_SYSLOG every symbol reads as zero.
                symbol.addr != 0 && symbol.offset < LONGEST_KERNEL_FUNCTION_BYTES
            });
            let found = trusted_alone(found, unknown.len());
            self.kernel.extend(unknown.into_iter().zip(found));
        }
        known(&self.kernel, addresses)
    }

    /// Functions at offsets into the vDSO, which is the same in every 64-bit process.
    pub fn in_vdso(&mut self, offsets: &[u64]) -> Vec<Functions> {
        let Some(start) = self.vdso_start else {
            return vec![Vec::new(); offsets.len()];
        };
        let addresses: Vec<_> = offsets.iter().map(|offset| start + offset).collect();
        let source = Source::from(Process::new(Pid::Slf));
        let found = self.symbolize(&source, Input::AbsAddr(&addresses), |_, _| true);
        trusted_alone(found, offsets.len())
    }

    /// Lets go of everything when it is too much.
    pub fn trim(&mut self) {
        let in_files: usize = self.files.values().map(|file| file.functions.len()).sum();
        if self.files.len() > MAX_FILES || in_files + self.kernel.len() > MAX_NAMES {
            *self = Self::default();
        }
    }

    /// Names of all addresses, and whether `trusted` takes them; `None` where the source cannot be
    /// read.
    fn symbolize(
        &mut self,
        source: &Source<'_>,
        addresses: Input<&[u64]>,
        trusted: impl Fn(&Sym<'_>, u64) -> bool,
    ) -> Option<Vec<(Functions, Trust)>> {
        let count = addresses.as_inner_ref().len();
        let symbols = match self.blazesym.symbolize(source, addresses) {
            Ok(symbols) => symbols,
            Err(error) => {
                tracing::debug!(?source, %error, "no symbols");
                return None;
            }
        };
        let texts = &mut self.texts;
        let mut functions: Vec<_> = symbols
            .iter()
            .zip(addresses.into_inner())
            .map(|(symbol, address)| match symbol {
                Symbolized::Sym(symbol) if trusted(symbol, *address) => {
                    (functions(symbol, texts), Trust::Full)
                }
                Symbolized::Sym(symbol) => (functions(symbol, texts), Trust::None),
                Symbolized::Unknown(_) => (Vec::new(), Trust::None),
            })
            .collect();
        functions.resize(count, (Vec::new(), Trust::None));
        Some(functions)
    }
}

/// Whether a name can be relied upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Full,
    None,
}

/// The names that can be relied upon.
fn trusted_alone(found: Option<Vec<(Functions, Trust)>>, count: usize) -> Vec<Functions> {
    let Some(found) = found else {
        return vec![Vec::new(); count];
    };
    let found = found.into_iter();
    let trusted = found.map(|(functions, trust)| match trust {
        Trust::Full => functions,
        Trust::None => Vec::new(),
    });
    trusted.collect()
}

/// Is the outermost function the same one, or a part of it (`f.cold`)?
fn is_same(by_debug: &Functions, by_symbols: &Functions) -> bool {
    let (Some(by_debug), Some(by_symbols)) = (by_debug.last(), by_symbols.last()) else {
        return false;
    };
    let part = by_symbols.name.strip_prefix(&*by_debug.name);
    part.is_some_and(|part| part.is_empty() || part.starts_with(['.', ' ']))
}

/// Build id of the running kernel, which is read once.
#[must_use]
pub fn kernel_build_id() -> Option<BuildId> {
    static BUILD_ID: LazyLock<Option<BuildId>> = LazyLock::new(read_kernel_build_id);
    BUILD_ID.clone()
}

fn read_kernel_build_id() -> Option<BuildId> {
    // The notes are those of an ELF file, but without the file: header, "GNU\0", id.
    let notes = std::fs::read("/sys/kernel/notes").ok()?;
    let gnu = notes.windows(4).position(|name| name == b"GNU\0")?;
    let header = notes.get(gnu.checked_sub(12)?..gnu)?;
    let len = u32::from_ne_bytes(header[4..8].try_into().ok()?);
    let is_build_id = header[8..12] == 3_u32.to_ne_bytes();
    let id = notes.get(gnu + 4..gnu.checked_add(4)?.checked_add(len as usize)?)?;
    if is_build_id { BuildId::new(id) } else { None }
}

/// Addresses that were not looked up yet.
fn missing(functions: &HashMap<u64, Functions>, addresses: &[u64]) -> Vec<u64> {
    let addresses = addresses.iter().copied();
    addresses
        .filter(|address| !functions.contains_key(address))
        .collect()
}

fn known(functions: &HashMap<u64, Functions>, addresses: &[u64]) -> Vec<Functions> {
    let of = |address| functions.get(address).cloned().unwrap_or_default();
    addresses.iter().map(of).collect()
}

/// A symbol with its inlined callees, innermost first.
fn functions(symbol: &Sym<'_>, texts: &mut HashSet<Arc<str>>) -> Functions {
    let inlined = symbol.inlined.iter().rev();
    let mut functions: Functions = inlined
        .map(|callee| function(&callee.name, callee.code_info.as_ref(), texts))
        .collect();
    functions.push(function(&symbol.name, symbol.code_info.as_deref(), texts));
    functions
}

/// A function of a Go program without symbols. What was inlined into it is not told apart.
fn go_function(
    table: &GoTable<'_>,
    address: u64,
    texts: &mut HashSet<Arc<str>>,
) -> Option<SymbolizedFrame> {
    let function = table.find(address)?;
    let (file, line) = function.source_at(address).unzip();
    Some(SymbolizedFrame {
        name: intern(texts, function.name()?),
        file: file.map(|file| intern(texts, file)),
        line,
    })
}

fn function(
    name: &str,
    code: Option<&CodeInfo<'_>>,
    texts: &mut HashSet<Arc<str>>,
) -> SymbolizedFrame {
    SymbolizedFrame {
        name: intern(texts, &name[..name.floor_char_boundary(MAX_NAME_BYTES)]),
        file: code.map(|code| intern(texts, &code.to_path().to_string_lossy())),
        line: code.and_then(|code| code.line),
    }
}

/// The text that is equal to `text`: most files and many functions are met at many addresses.
fn intern(texts: &mut HashSet<Arc<str>>, text: &str) -> Arc<str> {
    if let Some(known) = texts.get(text) {
        return Arc::clone(known);
    }
    let text: Arc<str> = text.into();
    texts.insert(Arc::clone(&text));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::maps;

    #[inline(never)]
    fn one() -> u32 {
        line!()
    }

    #[inline(never)]
    fn other() -> u32 {
        line!()
    }

    #[test]
    fn a_part_of_a_function_is_that_function() {
        let named = |name: &str| {
            vec![SymbolizedFrame {
                name: name.into(),
                file: None,
                line: None,
            }]
        };
        for (debug, symbol, expected) in [
            ("f", "f", true),
            ("f", "f.cold", true),
            ("a::f(int)", "a::f(int) [clone .cold]", true),
            ("f", "fg", false),
            ("g", "f.cold", false),
        ] {
            let found = is_same(&named(debug), &named(symbol));
            assert_eq!(found, expected, "{debug}, {symbol}");
        }
        assert!(!is_same(&Vec::new(), &named("f")));
    }

    #[test]
    fn names_stay_when_the_file_was_let_go_of() {
        let executable =
            Arc::new(Executable::open(Path::new("/proc/self/exe"), "/x").expect("this program"));
        let mut names = Names::default();
        let layout = names.layout(&executable).unwrap();
        let maps = maps::read(Path::new("/proc"), std::process::id()).unwrap();
        let place = |function: fn() -> u32| {
            let address = function as usize as u64;
            let entry = maps.iter().find(|e| (e.start..e.end).contains(&address));
            let entry = entry.unwrap();
            let offset = address - entry.start + entry.file_offset;
            layout.place(offset).unwrap().0
        };
        let (one, other) = (place(one), place(other));
        let identity = executable.identity();
        assert!(
            identity.size_bytes() > MAX_READ_BYTES,
            "a large file is needed here"
        );
        let name = |functions: &[Functions]| {
            let function = functions[0].last().unwrap();
            (function.name.to_string(), function.line.unwrap())
        };
        let first = names.in_file(identity, &[one]);
        assert!(name(&first).0.ends_with("names::tests::one"), "{first:?}");
        assert!(names.read.is_empty(), "it was not let go of");
        let second = names.in_file(identity, &[other]);
        assert!(
            name(&second).0.ends_with("names::tests::other"),
            "{second:?}"
        );
        let both = names.in_file(identity, &[one, other]);
        assert_eq!(both, [first, second].concat());
    }
}
