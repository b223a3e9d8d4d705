//! What an ELF file tells of the V8 in it: its version, and the constants that it exports for
//! debuggers (`v8dbg_*`, made by V8's `tools/gen-postmortem-metadata.py`).

use std::collections::HashMap;

use ebpf_common::v8::{HEAP_TAG, SHARED_WORDS, TAG_MASK, V8Layout};
use object::elf::{EM_X86_64, SHN_UNDEF, SHT_DYNSYM, SHT_NOBITS, Sym64};
use object::read::elf::{ElfFile64, FileHeader as _, SectionHeader as _, Sym as _};
use object::{Endianness, ReadRef};

/// Longest table of symbols or of their names that is looked through.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Most constants that are taken of a file; those of Node 20 are 531.
const MAX_CONSTANTS: usize = 4096;

/// Begin of a constant's name.
const PREFIX: &str = "v8dbg_";

/// The version's parts, as C++ mangles them (`v8::internal::Version`).
const MAJOR: &str = "_ZN2v88internal7Version6major_E";
const MINOR: &str = "_ZN2v88internal7Version6minor_E";

/// Where a build of V8 keeps what tells a function's name. Offsets are bytes from an object's first
/// one, without the tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V8 {
    /// Version, as far as it says how scopes are kept.
    pub version: (u32, u32),
    /// What the kernel side has to know.
    pub layout: V8Layout,
    pub(super) shared_name: u64,
    pub(super) shared_script: u64,
    pub(super) map_instance_type: u64,
    pub(super) script_type: u16,
    pub(super) script_name: u64,
    pub(super) script_source: u64,
    pub(super) scope_info_type: u16,
    pub(super) oddball_type: u16,
    pub(super) scope: ScopeLayout,
    pub(super) strings: Strings,
}

/// Why the functions of a V8 are not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum V8Error {
    /// It does not say where it keeps something.
    #[error("its file does not tell `{0}`")]
    Missing(&'static str),
    /// It keeps something in a way that is not known.
    #[error("its `{0}` is none that is known")]
    Unknown(&'static str),
    /// Where its scopes keep names is not known.
    #[error("functions of V8 {0}.{1} are not read (those of {known} are)", known = V8::versions())]
    Version(u32, u32),
}

/// How a `ScopeInfo` is kept (`src/objects/scope-info.tq`), which no constant tells whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScopeLayout {
    /// The flags are a number of 32 bits, not a `Smi`.
    pub raw_flags: bool,
    /// Word of the first position in the source; `None`: behind the name.
    pub positions: Option<u64>,
    /// Word of the first local variable's name, counted behind the map.
    pub first_local: u64,
    /// `ScopeType` of a function.
    pub function_scope: u64,
}

/// Versions whose scopes are known, each tried with a Node that has it: 18, 20, 22, 24.
const SCOPES: [((u32, u32), ScopeLayout); 4] = [
    ((10, 2), EARLY_SCOPE),
    ((11, 3), EARLY_SCOPE),
    ((12, 4), EARLY_SCOPE),
    (
        (13, 6),
        ScopeLayout {
            raw_flags: true,
            positions: Some(3),
            first_local: 5,
            function_scope: 4,
        },
    ),
];

const EARLY_SCOPE: ScopeLayout = ScopeLayout {
    raw_flags: false,
    positions: None,
    first_local: 3,
    function_scope: 2,
};

/// How strings are told apart and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strings {
    /// The types below are strings'.
    pub first_other_type: u16,
    pub representation_mask: u16,
    pub cons: u16,
    pub thin: u16,
    /// Bit of those of one byte a character.
    pub one_byte: u16,
    pub length: u64,
    pub characters: u64,
    pub cons_first: u64,
    pub cons_second: u64,
    pub thin_actual: u64,
}

impl V8 {
    /// The V8 in an ELF file; `None` where there is none.
    ///
    /// # Errors
    /// See [`V8Error`].
    pub fn of_elf<'data, R: ReadRef<'data>>(data: R) -> Option<Result<Self, V8Error>> {
        let constants = Constants::of_elf(data)?;
        (!constants.by_name.is_empty()).then(|| Self::of_constants(&constants))
    }

    /// The versions whose functions are read, in words.
    #[must_use]
    pub fn versions() -> String {
        let known = SCOPES.map(|((major, minor), _)| format!("{major}.{minor}"));
        known.join(", ")
    }

    fn of_constants(constants: &Constants) -> Result<Self, V8Error> {
        let is = |name, expected: i32| match constants.get(name)? {
            value if value == expected => Ok(()),
            _ => Err(V8Error::Unknown(name)),
        };
        let offset = |name| u64::try_from(constants.get(name)?).map_err(|_| V8Error::Unknown(name));
        let kind = |name| u16::try_from(constants.get(name)?).map_err(|_| V8Error::Unknown(name));
        // 64-bit pointers without compression, `Smi`s in the upper half of a word.
        is("TaggedSize", 8)?;
        is("SmiTag", 0)?;
        is("SmiShiftSize", 31)?;
        is("HeapObjectTag", HEAP_TAG as i32)?;
        is("HeapObjectTagMask", TAG_MASK as i32)?;
        is("class_HeapObject__map", 0)?;
        is("SeqStringTag", 0)?;
        is("scopeinfo_idx_ncontextlocals", 2)?;
        let frame_function = constants.get("off_fp_function")?;
        is("off_fp_context", frame_function + 8)?;
        let major = constants.version(MAJOR).ok_or(V8Error::Missing(MAJOR))?;
        let minor = constants.version(MINOR).ok_or(V8Error::Missing(MINOR))?;
        let version = (major as u32, minor as u32);
        let scope = SCOPES.iter().find(|(known, _)| *known == version);
        let scope = scope.ok_or(V8Error::Version(version.0, version.1))?.1;
        is("scopeinfo_idx_first_vars", scope.first_local as i32)?;
        let shared_name = offset("class_SharedFunctionInfo__name_or_scope_info")?;
        let shared_script = offset("class_SharedFunctionInfo__script_or_debug_info")
            .or_else(|_| offset("class_SharedFunctionInfo__raw_script"))?;
        let word = |name, offset: u64| match u8::try_from(offset / 8) {
            Ok(word) if usize::from(word) < SHARED_WORDS => Ok(word),
            _ => Err(V8Error::Unknown(name)),
        };
        let small = |name| u32::try_from(offset(name)?).map_err(|_| V8Error::Unknown(name));
        const SHARED: &str = "class_SharedFunctionInfo";
        let layout = V8Layout {
            frame_function,
            function_shared: small("class_JSFunction__shared")?,
            map_instance_type: small("class_Map__instance_type")?,
            shared_type: u32::from(kind("type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE")?),
            shared_words: [
                word(SHARED, shared_name)?,
                word(SHARED, shared_script)?,
                word(SHARED, offset("class_SharedFunctionInfo__length")?)?,
                word(SHARED, offset("class_SharedFunctionInfo__flags")?)?,
            ],
        };
        Ok(Self {
            version,
            layout,
            shared_name,
            shared_script,
            map_instance_type: u64::from(layout.map_instance_type),
            script_type: kind("type_Script__SCRIPT_TYPE")?,
            script_name: offset("class_Script__name")?,
            script_source: offset("class_Script__source")?,
            scope_info_type: kind("type_ScopeInfo__SCOPE_INFO_TYPE")?,
            oddball_type: kind("type_Oddball__ODDBALL_TYPE")?,
            scope,
            strings: Strings {
                // The mask has all bits but those of strings' types.
                first_other_type: constants.get("IsNotStringMask")?.unsigned_abs() as u16,
                representation_mask: kind("StringRepresentationMask")?,
                cons: kind("ConsStringTag")?,
                thin: kind("ThinStringTag")?,
                one_byte: kind("OneByteStringTag")?,
                length: offset("class_String__length")?,
                characters: offset("class_SeqOneByteString__chars")?,
                cons_first: offset("class_ConsString__first")?,
                cons_second: offset("class_ConsString__second")?,
                thin_actual: offset("class_ThinString__actual")?,
            },
        })
    }
}

/// The constants of a file: `v8dbg_class_X__member__Type` goes by `class_X__member`, since the type's
/// spelling changes from version to version.
#[derive(Debug, Default)]
struct Constants {
    by_name: HashMap<String, i32>,
    version: HashMap<&'static str, i32>,
}

impl Constants {
    fn of_elf<'data, R: ReadRef<'data>>(data: R) -> Option<Self> {
        let elf = ElfFile64::<Endianness, R>::parse(data).ok()?;
        let endian = elf.endian();
        if elf.elf_header().e_machine(endian) != EM_X86_64 || endian != Endianness::Little {
            return None;
        }
        let sections = elf.elf_section_table();
        let section = sections
            .iter()
            .find(|section| section.sh_type(endian) == SHT_DYNSYM)?;
        let names = sections.section(section.link(endian)).ok()?;
        if section.sh_size(endian).max(names.sh_size(endian)) > MAX_TABLE_BYTES {
            return None;
        }
        // Read whole: asking for one name at a time would copy a page for each.
        let names = names.data(endian, data).ok()?;
        let symbols: &[Sym64<Endianness>] = section.data_as_array(endian, data).ok()?;
        let value_at = |address: u64| -> Option<i32> {
            let section = sections.iter().find(|section| {
                let start = section.sh_addr(endian);
                let inside = address.checked_sub(start);
                start != 0
                    && inside.is_some_and(|inside| {
                        section.sh_size(endian).checked_sub(4) >= Some(inside)
                    })
            })?;
            if section.sh_type(endian) == SHT_NOBITS {
                return Some(0);
            }
            let inside = address - section.sh_addr(endian);
            let bytes = data
                .read_bytes_at(section.sh_offset(endian).checked_add(inside)?, 4)
                .ok()?;
            Some(i32::from_le_bytes(bytes.try_into().ok()?))
        };
        let mut constants = Self::default();
        for symbol in symbols {
            if symbol.st_shndx(endian) == SHN_UNDEF || constants.by_name.len() >= MAX_CONSTANTS {
                continue;
            }
            let Some(name) = names.get(symbol.st_name(endian) as usize..) else {
                continue;
            };
            if !name.starts_with(PREFIX.as_bytes()) && !name.starts_with(b"_ZN2v88internal7V") {
                continue;
            }
            let end = name.iter().position(|byte| *byte == 0);
            let Some(name) = end.and_then(|end| std::str::from_utf8(&name[..end]).ok()) else {
                continue;
            };
            let part = [MAJOR, MINOR].into_iter().find(|part| *part == name);
            if part.is_none() && !name.starts_with(PREFIX) {
                continue;
            }
            let Some(value) = value_at(symbol.st_value(endian)) else {
                continue;
            };
            if let Some(part) = part {
                constants.version.insert(part, value);
            } else if let Some(name) = name.strip_prefix(PREFIX) {
                constants
                    .by_name
                    .insert(without_type(name).to_owned(), value);
            }
        }
        Some(constants)
    }

    fn get(&self, name: &'static str) -> Result<i32, V8Error> {
        self.by_name
            .get(name)
            .copied()
            .ok_or(V8Error::Missing(name))
    }

    fn version(&self, part: &'static str) -> Option<i32> {
        self.version.get(part).copied()
    }
}

/// `class_X__member` of `class_X__member__Type`; other names as they are.
fn without_type(name: &str) -> &str {
    if !name.starts_with("class_") {
        return name;
    }
    let mut ends = name.match_indices("__").map(|(at, _)| at);
    match (ends.next(), ends.next()) {
        (Some(_), Some(end)) => &name[..end],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Node 20 exports, as far as it is asked for.
    fn node_20() -> Constants {
        let by_name = [
            ("TaggedSize", 8),
            ("SmiTag", 0),
            ("SmiShiftSize", 31),
            ("HeapObjectTag", 1),
            ("HeapObjectTagMask", 3),
            ("class_HeapObject__map", 0),
            ("SeqStringTag", 0),
            ("scopeinfo_idx_ncontextlocals", 2),
            ("scopeinfo_idx_first_vars", 3),
            ("off_fp_function", -16),
            ("off_fp_context", -8),
            ("class_SharedFunctionInfo__name_or_scope_info", 16),
            ("class_SharedFunctionInfo__script_or_debug_info", 32),
            ("class_SharedFunctionInfo__length", 40),
            ("class_SharedFunctionInfo__flags", 48),
            ("class_JSFunction__shared", 24),
            ("class_Map__instance_type", 12),
            ("type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE", 262),
            ("type_Script__SCRIPT_TYPE", 167),
            ("class_Script__name", 16),
            ("class_Script__source", 8),
            ("type_ScopeInfo__SCOPE_INFO_TYPE", 261),
            ("type_Oddball__ODDBALL_TYPE", 131),
            ("IsNotStringMask", -128),
            ("StringRepresentationMask", 7),
            ("ConsStringTag", 1),
            ("ThinStringTag", 5),
            ("OneByteStringTag", 8),
            ("class_String__length", 12),
            ("class_SeqOneByteString__chars", 16),
            ("class_ConsString__first", 16),
            ("class_ConsString__second", 24),
            ("class_ThinString__actual", 16),
        ];
        let named = by_name.map(|(name, value)| (name.to_owned(), value));
        Constants {
            by_name: named.into_iter().collect(),
            version: HashMap::from([(MAJOR, 11), (MINOR, 3)]),
        }
    }

    #[test]
    fn the_constants_say_where_functions_are() {
        let v8 = V8::of_constants(&node_20()).unwrap();
        assert_eq!(v8.version, (11, 3));
        assert_eq!(v8.layout.shared_words, [2, 4, 5, 6]);
        assert_eq!(v8.layout.shared_type, 262);
        assert_eq!(v8.strings.first_other_type, 128);
    }

    #[test]
    fn what_is_missing_or_unknown_is_refused() {
        let names: Vec<_> = node_20().by_name.into_keys().collect();
        for name in names {
            let mut constants = node_20();
            constants.by_name.remove(&name);
            assert!(V8::of_constants(&constants).is_err(), "{name}");
        }
        let mut compressed = node_20();
        compressed.by_name.insert("TaggedSize".into(), 4);
        let refused = V8::of_constants(&compressed);
        assert_eq!(refused, Err(V8Error::Unknown("TaggedSize")));
        let mut newer = node_20();
        newer.version.insert(MINOR, 4);
        assert_eq!(V8::of_constants(&newer), Err(V8Error::Version(11, 4)));
        let mut far = node_20();
        far.by_name
            .insert("class_SharedFunctionInfo__flags".into(), 64);
        assert!(V8::of_constants(&far).is_err());
    }

    #[test]
    fn members_go_by_their_names_alone() {
        for (name, expected) in [
            ("class_Script__name__Object", "class_Script__name"),
            (
                "class_JSFunction__shared__Tagged_SharedFunctionInfo_",
                "class_JSFunction__shared",
            ),
            (
                "class_Map__instance_descriptors_offset",
                "class_Map__instance_descriptors_offset",
            ),
            ("type_Script__SCRIPT_TYPE", "type_Script__SCRIPT_TYPE"),
        ] {
            assert_eq!(without_type(name), expected);
        }
    }

    #[test]
    fn other_files_have_no_v8() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(V8::of_elf(&*own), None);
        assert_eq!(V8::of_elf(&b"\x7fELF"[..]), None);
    }
}
