//! Finds where the running kernel keeps the members of its structures.
//!
//! Reads the kernel's BTF in place: no table of its 150,000 types is built, since a handful of
//! structures is wanted once. The format: Documentation/bpf/btf.rst.

use std::path::{Path, PathBuf};

/// Where the kernel shows its own BTF (since 5.4, with `CONFIG_DEBUG_INFO_BTF`).
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why BTF could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error("cannot read {path}: {source} (the kernel needs CONFIG_DEBUG_INFO_BTF)")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not BTF, or end too early.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// A structure or member that the agent cannot do without.
    #[error("the kernel's BTF has no {0}")]
    Missing(String),
}

const MAGIC: u16 = 0xeb9f;

// Kinds, and how many bytes follow the 12 bytes that every type has.
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FORWARD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_FUNCTION: u32 = 12;
const KIND_TYPE_TAG: u32 = 18;

/// A BTF blob and where its types begin.
pub struct Btf {
    data: Vec<u8>,
    /// Offset in `data` of each type; index 0 is `void`.
    types: Vec<u32>,
    strings: usize,
}

/// One type, as its first 12 bytes say.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    size_or_type: u32,
    /// Offset in the blob of what follows.
    body: usize,
}

impl Type {
    const fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    const fn vlen(self) -> u32 {
        self.info & 0xffff
    }

    /// Bit 31: a structure whose members carry bit-field sizes.
    const fn has_bit_fields(self) -> bool {
        self.info >> 31 == 1
    }

    const fn is_composite(self) -> bool {
        matches!(self.kind(), KIND_STRUCT | KIND_UNION)
    }
}

impl Btf {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    /// Where the file cannot be read or is not BTF.
    pub fn of_kernel() -> Result<Self, BtfError> {
        let path = Path::new(VMLINUX);
        let data = std::fs::read(path).map_err(|source| BtfError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(data)
    }

    /// Takes a blob and finds its types.
    ///
    /// # Errors
    /// Where it is not BTF in this machine's byte order.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        const SHORT: BtfError = BtfError::Malformed("the header is cut off");
        let magic = data.get(..2).ok_or(SHORT)?;
        if magic != MAGIC.to_ne_bytes() {
            return Err(BtfError::Malformed("no magic number"));
        }
        let word = |at: usize| word(&data, at).ok_or(SHORT);
        let header_len = word(4)? as usize;
        let types_start = header_len + word(8)? as usize;
        let types_end = types_start + word(12)? as usize;
        let strings = header_len + word(16)? as usize;
        let mut types = vec![0];
        let mut at = types_start;
        while at < types_end {
            let kind = read_type(&data, at).ok_or(BtfError::Malformed("a type is cut off"))?;
            types.push(u32::try_from(at).map_err(|_| BtfError::Malformed("too large"))?);
            at = kind.body + body_len(kind)?;
        }
        Ok(Self {
            data,
            types,
            strings,
        })
    }

    /// Byte offset of a member, by its path through named members (`__sk_common.skc_family` is
    /// found as `skc_family` in `sock_common`); anonymous structures and unions are looked into.
    ///
    /// # Errors
    /// [`BtfError::Missing`] where the structure or the member is not there, or is a bit field.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("{structure}.{path}"));
        let mut current = self.structure(structure).ok_or_else(missing)?;
        let mut bits = 0;
        for name in path.split('.') {
            let (offset, member_type) = self.member(current, name, 0).ok_or_else(missing)?;
            bits += offset;
            if let Some(next) = self.resolve(member_type) {
                current = next;
            }
        }
        if bits % 8 != 0 {
            Err(missing())
        } else {
            Ok(bits / 8)
        }
    }

    /// Whether `tp_btf` programs can attach to a tracepoint: the kernel keeps its prototype as the
    /// typedef `btf_trace_NAME`.
    #[must_use]
    pub fn has_tracepoint(&self, name: &str) -> bool {
        let typedef = format!("btf_trace_{name}");
        self.types
            .iter()
            .skip(1)
            .filter_map(|&at| read_type(&self.data, at as usize))
            .any(|kind| kind.kind() == KIND_TYPEDEF && self.name_is(kind.name, &typedef))
    }

    /// Whether programs can attach to the function of that name.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.types
            .iter()
            .skip(1)
            .filter_map(|&at| read_type(&self.data, at as usize))
            .any(|kind| kind.kind() == KIND_FUNCTION && self.name_is(kind.name, name))
    }

    /// The value of an enumerator of up to 32 bits; `None` where the kernel has none of that name.
    #[must_use]
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let kind = self
            .types
            .iter()
            .skip(1)
            .filter_map(|&at| read_type(&self.data, at as usize))
            .find(|kind| kind.kind() == KIND_ENUM && self.name_is(kind.name, enumeration))?;
        // Each is a name and a value.
        let values = (0..kind.vlen() as usize).map(|index| kind.body + index * 8);
        values
            .filter_map(|at| Some((word(&self.data, at)?, word(&self.data, at + 4)?)))
            .find_map(|(string, value)| self.name_is(string, name).then_some(value))
    }

    /// The same types with nothing left but what programs attach to: the prototypes of tracepoints
    /// and `functions`, under the same numbers. It is all that the loader looks for; of every type
    /// it would keep all that there is.
    #[must_use]
    pub fn outline(&self, functions: &[&str]) -> Vec<u8> {
        const HEADER_BYTES: u32 = 24;
        const NAMELESS: [u32; 3] = [0, KIND_FORWARD << 24, 0];
        let mut types = Vec::with_capacity(self.types.len() * 12);
        let mut strings = vec![0];
        for &at in self.types.iter().skip(1) {
            let kept = read_type(&self.data, at as usize).and_then(|kind| match kind.kind() {
                KIND_TYPEDEF => Some((kind, self.tracepoint_name(kind.name)?)),
                KIND_FUNCTION => {
                    let name = functions
                        .iter()
                        .find(|name| self.name_is(kind.name, name))?;
                    Some((kind, name.as_bytes()))
                }
                _ => None,
            });
            let words = match kept {
                Some((kind, name)) => {
                    let position = strings.len() as u32;
                    strings.extend_from_slice(name);
                    strings.push(0);
                    [position, kind.info, kind.size_or_type]
                }
                None => NAMELESS,
            };
            types.extend(words.into_iter().flat_map(u32::to_ne_bytes));
        }
        let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
        let mut blob = Vec::with_capacity(HEADER_BYTES as usize + types.len() + strings.len());
        blob.extend(MAGIC.to_ne_bytes());
        // Version 1, no flags.
        blob.extend([1, 0]);
        for word in [HEADER_BYTES, 0, types_len, types_len, strings_len] {
            blob.extend(word.to_ne_bytes());
        }
        blob.append(&mut types);
        blob.append(&mut strings);
        blob
    }

    /// The name at `offset`, where it is that of a tracepoint's prototype.
    fn tracepoint_name(&self, offset: u32) -> Option<&[u8]> {
        let rest = self.data.get(self.strings + offset as usize..)?;
        let name = rest.split(|&byte| byte == 0).next()?;
        name.starts_with(b"btf_trace_").then_some(name)
    }

    /// The structure of that name.
    fn structure(&self, name: &str) -> Option<Type> {
        self.types
            .iter()
            .skip(1)
            .filter_map(|&at| read_type(&self.data, at as usize))
            .find(|kind| kind.kind() == KIND_STRUCT && self.name_is(kind.name, name))
    }

    /// Bit offset and type of a member; `None` for bit fields.
    fn member(&self, composite: Type, name: &str, depth: u32) -> Option<(u32, u32)> {
        // Anonymous members nest a few levels; a blob that nests deeper is malformed.
        if depth > 8 {
            return None;
        }
        for index in 0..composite.vlen() as usize {
            let at = composite.body + index * 12;
            let member_name = word(&self.data, at)?;
            let member_type = word(&self.data, at + 4)?;
            let raw = word(&self.data, at + 8)?;
            let (offset, bit_field) = if composite.has_bit_fields() {
                (raw & 0x00ff_ffff, raw >> 24 != 0)
            } else {
                (raw, false)
            };
            if member_name == 0 {
                let inner = self.resolve(member_type).filter(|kind| kind.is_composite());
                if let Some((inner, kind)) =
                    inner.and_then(|inner| self.member(inner, name, depth + 1))
                {
                    return Some((offset + inner, kind));
                }
            } else if self.name_is(member_name, name) {
                return (!bit_field).then_some((offset, member_type));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut id = id;
        for _ in 0..16 {
            let at = *self.types.get(id as usize).filter(|_| id != 0)?;
            let kind = read_type(&self.data, at as usize)?;
            match kind.kind() {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_TYPE_TAG => {
                    id = kind.size_or_type;
                }
                _ => return Some(kind),
            }
        }
        None
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        let start = self.strings + offset as usize;
        let end = start + name.len();
        self.data.get(start..end) == Some(name.as_bytes()) && self.data.get(end) == Some(&0)
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn read_type(data: &[u8], at: usize) -> Option<Type> {
    Some(Type {
        name: word(data, at)?,
        info: word(data, at + 4)?,
        size_or_type: word(data, at + 8)?,
        body: at + 12,
    })
}

/// Bytes that follow the common part of a type, by its kind.
fn body_len(kind: Type) -> Result<usize, BtfError> {
    let vlen = kind.vlen() as usize;
    Ok(match kind.kind() {
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        // integer, variable, declaration tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        // structure, union, data section, enumeration of 64 bits
        4 | 5 | 15 | 19 => vlen * 12,
        // enumeration, function prototype
        6 | 13 => vlen * 8,
        _ => {
            return Err(BtfError::Malformed(
                "a kind that this version does not know",
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_members_of_the_running_kernel() {
        let btf = Btf::of_kernel().expect("the kernel shows its BTF");
        // Stable for decades: a task's name is 16 bytes and lies well inside.
        assert!(btf.offset("task_struct", "comm").unwrap() > 0);
        // Through an anonymous union, and through a named structure.
        let daddr = btf.offset("sock_common", "skc_daddr").unwrap();
        assert_eq!(btf.offset("sock", "__sk_common.skc_daddr").unwrap(), daddr);
        assert_eq!(daddr, 0);
        assert_eq!(btf.offset("sock_common", "skc_rcv_saddr").unwrap(), 4);
        assert!(btf.has_tracepoint("sched_process_exec"));
        assert!(!btf.has_tracepoint("no_such_tracepoint"));
    }

    #[test]
    fn tracepoints_keep_their_numbers() {
        let blob = Btf::of_kernel().unwrap().outline(&["inet_sendmsg"]);
        let whole = std::fs::metadata(VMLINUX).unwrap().len();
        assert!((blob.len() as u64) < whole);
        assert!(aya::Btf::parse(&blob, aya::Endianness::default()).is_ok());
        let full = Btf::of_kernel().unwrap();
        let outline = Btf::parse(blob).unwrap();
        assert_eq!(outline.types.len(), full.types.len());
        for name in ["sys_exit", "sched_process_exec", "tcp_destroy_sock"] {
            let typedef = format!("btf_trace_{name}");
            let number = |btf: &Btf| {
                btf.types.iter().skip(1).position(|&at| {
                    let kind = read_type(&btf.data, at as usize).unwrap();
                    kind.kind() == KIND_TYPEDEF && btf.name_is(kind.name, &typedef)
                })
            };
            assert!(number(&full).is_some());
            assert_eq!(number(&outline), number(&full), "{name}");
        }
    }

    #[test]
    fn missing_members_and_bit_fields_are_told() {
        let btf = Btf::of_kernel().expect("the kernel shows its BTF");
        for (structure, path) in [
            ("sock", "no_such_member"),
            ("no_such_structure", "x"),
            ("sock", "sk_kern_sock"),
        ] {
            let error = btf.offset(structure, path).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(mut data in proptest::collection::vec(any::<u8>(), 0..512), valid in any::<bool>()) {
            if valid && data.len() >= 8 {
                data[..2].copy_from_slice(&MAGIC.to_ne_bytes());
                data[4..8].copy_from_slice(&24u32.to_ne_bytes());
            }
            if let Ok(btf) = Btf::parse(data) {
                let _ = btf.offset("a", "b.c");
                let _ = btf.enumerator("a", "b");
                let _ = btf.outline(&["a"]);
            }
        }
    }
}
