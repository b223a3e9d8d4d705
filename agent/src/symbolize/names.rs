//! Names of addresses, by blazesym. Where a name would be a guess, there is none.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Kernel, Process, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer as Blazesym};
use blazesym::{MaybeDefault, Pid};
use profile::{BuildId, SymbolizedFrame};

use super::executable::{Executable, FileIdentity, Layout};
use super::maps;

/// Files whose symbols are kept; beyond, all are let go.
const MAX_FILES: usize = 300;

/// No function of the kernel is longer: what lies further from a symbol is not that function's.
const LONGEST_KERNEL_FUNCTION_BYTES: usize = 1 << 20;

/// Functions whose symbols tell no size are written in assembler, and short.
const LONGEST_SIZELESS_FUNCTION_BYTES: usize = 4096;

/// Longest name that is passed on; C++ templates can have names of many kilobytes.
const MAX_NAME_BYTES: usize = 1024;

/// The functions at one address, innermost inlined callee first; empty when unknown.
pub type Functions = Vec<SymbolizedFrame>;

/// Symbols of the kernel and of files, kept from one profile to the next.
pub struct Names {
    blazesym: Blazesym,
    /// One descriptor a file for as long as its symbols are kept: blazesym knows files by path,
    /// and the path is that of the descriptor.
    files: HashMap<FileIdentity, (Arc<Executable>, Option<Arc<Layout>>)>,
    vdso_start: Option<u64>,
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
            vdso_start: vdso.map(|entry| entry.start),
        }
    }
}

impl Names {
    /// Where `executable` places its code; `None` for a file that is not ELF.
    pub fn layout(&mut self, executable: &Arc<Executable>) -> Option<Arc<Layout>> {
        let (_, layout) = self
            .files
            .entry(executable.identity())
            .or_insert_with(|| (Arc::clone(executable), executable.layout().map(Arc::new)));
        layout.clone()
    }

    /// Functions at addresses of a file, in the file's own terms. The file was given to
    /// [`Self::layout`] before.
    #[must_use]
    pub fn in_file(&self, identity: FileIdentity, addresses: &[u64]) -> Vec<Functions> {
        let Some((executable, Some(layout))) = self.files.get(&identity) else {
            return vec![Vec::new(); addresses.len()];
        };
        let source = Source::from(Elf::new(executable.reopen_path()));
        self.symbolize(&source, Input::VirtOffset(addresses), |symbol, address| {
            symbol.size.is_some()
                || (symbol.offset < LONGEST_SIZELESS_FUNCTION_BYTES
                    && layout.same_section(symbol.addr, address))
        })
    }

    /// Functions at addresses of the kernel.
    #[must_use]
    pub fn in_kernel(&self, addresses: &[u64]) -> Vec<Functions> {
        let source = Source::Kernel(Kernel {
            vmlinux: MaybeDefault::None,
            debug_syms: false,
            ..Kernel::default()
        });
        self.symbolize(&source, Input::AbsAddr(addresses), |symbol, _| {
            // Without CAP_SYSLOG every symbol reads as zero.
            symbol.addr != 0 && symbol.offset < LONGEST_KERNEL_FUNCTION_BYTES
        })
    }

    /// Functions at offsets into the vDSO, which is the same in every 64-bit process.
    #[must_use]
    pub fn in_vdso(&self, offsets: &[u64]) -> Vec<Functions> {
        let Some(start) = self.vdso_start else {
            return vec![Vec::new(); offsets.len()];
        };
        let addresses: Vec<_> = offsets.iter().map(|offset| start + offset).collect();
        let source = Source::from(Process::new(Pid::Slf));
        self.symbolize(&source, Input::AbsAddr(&addresses), |_, _| true)
    }

    /// Lets go of the files' symbols when there are too many.
    pub fn trim(&mut self) {
        if self.files.len() > MAX_FILES {
            *self = Self::default();
        }
    }

    /// Names of all addresses; those that `trusted` refuses have none.
    fn symbolize(
        &self,
        source: &Source<'_>,
        addresses: Input<&[u64]>,
        trusted: impl Fn(&Sym<'_>, u64) -> bool,
    ) -> Vec<Functions> {
        let count = addresses.as_inner_ref().len();
        let symbols = match self.blazesym.symbolize(source, addresses) {
            Ok(symbols) => symbols,
            Err(error) => {
                tracing::debug!(?source, %error, "no symbols");
                return vec![Vec::new(); count];
            }
        };
        let mut functions: Vec<_> = symbols
            .iter()
            .zip(addresses.into_inner())
            .map(|(symbol, address)| match symbol {
                Symbolized::Sym(symbol) if trusted(symbol, *address) => functions(symbol),
                _ => Vec::new(),
            })
            .collect();
        functions.resize(count, Vec::new());
        functions
    }
}

/// Build id of the running kernel.
#[must_use]
pub fn kernel_build_id() -> Option<BuildId> {
    // The notes are those of an ELF file, but without the file: header, "GNU\0", id.
    let notes = std::fs::read("/sys/kernel/notes").ok()?;
    let gnu = notes.windows(4).position(|name| name == b"GNU\0")?;
    let header = notes.get(gnu.checked_sub(12)?..gnu)?;
    let len = u32::from_ne_bytes(header[4..8].try_into().ok()?);
    let is_build_id = header[8..12] == 3_u32.to_ne_bytes();
    let id = notes.get(gnu + 4..gnu.checked_add(4)?.checked_add(len as usize)?)?;
    if is_build_id { BuildId::new(id) } else { None }
}

/// A symbol with its inlined callees, innermost first.
fn functions(symbol: &Sym<'_>) -> Functions {
    let inlined = symbol.inlined.iter().rev();
    inlined
        .map(|callee| function(&callee.name, callee.code_info.as_ref()))
        .chain([function(&symbol.name, symbol.code_info.as_deref())])
        .collect()
}

fn function(name: &str, code: Option<&CodeInfo<'_>>) -> SymbolizedFrame {
    SymbolizedFrame {
        name: name[..name.floor_char_boundary(MAX_NAME_BYTES)].into(),
        file: code.map(|code| code.to_path().to_string_lossy().into()),
        line: code.and_then(|code| code.line),
    }
}
