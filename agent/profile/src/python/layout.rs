//! Where each version keeps what is read of it: by table up to 3.12, by what the interpreter says of
//! itself from 3.13 on.

use ebpf_common::python::{PythonProcess, WINDOW_WORDS, kind};

use super::lines::LineFormat;

/// A version of CPython, without its patch level: structures stay within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// `3`
    pub major: u8,
    /// `11` of 3.11
    pub minor: u8,
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Of `PY_VERSION_HEX` (`Include/patchlevel.h`).
    #[must_use]
    pub const fn of_hex(hex: u64) -> Self {
        Self {
            major: (hex >> 24) as u8,
            minor: (hex >> 16) as u8,
        }
    }

    /// Of a file's name: `python3.9`, `libpython3.10.so.1.0`.
    #[must_use]
    pub fn of_file_name(name: &str) -> Option<Self> {
        let (_, rest) = name.split_once("python3.")?;
        let digits = rest.find(|character: char| !character.is_ascii_digit());
        let minor = rest[..digits.unwrap_or(rest.len())].parse().ok()?;
        Some(Self { major: 3, minor })
    }
}

/// Why a version's structures are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not one of 3.8 to 3.14.
    #[error("CPython {0} is not among the versions that are known")]
    Version(Version),
    /// Built without the global interpreter lock.
    #[error("a free-threaded CPython {0}")]
    FreeThreaded(Version),
    /// What it says of itself cannot be.
    #[error("CPython {0} says of its structures what cannot be")]
    Offsets(Version),
}

/// Bytes at the beginning of `_PyRuntime` that are looked at (`_Py_DebugOffsets`, 3.13+).
pub const DEBUG_OFFSETS_BYTES: usize = 8 * 88;

/// Where a version keeps what is read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The version.
    pub version: Version,
    /// What the kernel side needs. `interpreters` is an offset in `_PyRuntime` here.
    pub process: PythonProcess,
    /// `PyCodeObject.co_filename`, bytes.
    pub(super) code_file: u64,
    /// `co_qualname`, or `co_name` before 3.11.
    pub(super) code_name: u64,
    /// `co_firstlineno`
    pub(super) code_first_line: u64,
    /// `co_linetable`, `co_lnotab`
    pub(super) code_lines: u64,
    /// `co_code_adaptive`; 0 where places are numbers.
    pub(super) code_start: u64,
    pub(super) lines: LineFormat,
    /// `sizeof(PyASCIIObject)`: where the text begins in those of ASCII alone.
    pub(super) text_ascii: u64,
    /// `sizeof(PyCompactUnicodeObject)`: where it begins in others.
    pub(super) text_other: u64,
}

impl Layout {
    /// By table: 3.8 to 3.12.
    ///
    /// # Errors
    /// For others.
    pub const fn of_version(version: Version) -> Result<Self, LayoutError> {
        if version.major != 3 {
            return Err(LayoutError::Version(version));
        }
        // The offsets that a compiler gives these members, with the headers of 3.8.18, 3.9.18,
        // 3.10.13, 3.11.2, 3.11.7 and 3.12.1.
        Ok(match version.minor {
            8 | 9 => Self::before_3_11(version, LineFormat::ByteDeltas),
            10 => Self::before_3_11(version, LineFormat::Ranges),
            11 => Self {
                version,
                process: PythonProcess {
                    interpreters: 40,
                    kind: kind::CFRAME | kind::ENTRY_FLAG | kind::NAME_HASH,
                    interpreter_next: 0,
                    interpreter_threads: 16,
                    thread_id: 152,
                    thread_frame: 56,
                    cframe_current: 8,
                    cframe_previous: 16,
                    frame_previous: 6,
                    frame_code: 4,
                    frame_place: 7,
                    frame_owner: 68,
                    code_stamp: 56,
                    code_stamp_words: (144 - 56) / 8,
                    code_name: (120 - 56) / 8,
                    ..EMPTY
                },
                code_file: 112,
                code_name: 128,
                code_first_line: 72,
                code_lines: 136,
                code_start: 184,
                lines: LineFormat::Locations,
                text_ascii: 48,
                text_other: 72,
            },
            12 => Self {
                version,
                process: PythonProcess {
                    interpreters: 40,
                    kind: kind::CFRAME | kind::ENTRY_OWNER,
                    interpreter_next: 0,
                    interpreter_threads: 72,
                    thread_id: 136,
                    thread_frame: 56,
                    cframe_current: 0,
                    cframe_previous: 8,
                    frame_previous: 1,
                    frame_code: 0,
                    frame_place: 7,
                    frame_owner: 70,
                    code_stamp: 56,
                    code_stamp_words: (144 - 56) / 8,
                    code_name: (120 - 56) / 8,
                    ..EMPTY
                },
                code_file: 112,
                code_name: 128,
                code_first_line: 68,
                code_lines: 136,
                code_start: 192,
                lines: LineFormat::Locations,
                text_ascii: 40,
                text_other: 56,
            },
            _ => return Err(LayoutError::Version(version)),
        })
    }

    const fn before_3_11(version: Version, lines: LineFormat) -> Self {
        let is_3_10 = version.minor == 10;
        let by = if is_3_10 {
            kind::CFRAME_EACH
        } else {
            kind::BY_CODE
        };
        Self {
            version,
            process: PythonProcess {
                interpreters: 32,
                kind: kind::EACH | kind::INDEX | kind::NAME_HASH | by,
                interpreter_next: 0,
                interpreter_threads: 8,
                thread_id: 176,
                thread_frame: 24,
                thread_cframe: 48,
                cframe_previous: 8,
                frame_previous: 3,
                frame_code: 4,
                frame_place: if is_3_10 { 12 } else { 13 },
                code_stamp: 16,
                code_stamp_words: (128 - 16) / 8,
                code_name: (112 - 16) / 8,
                ..EMPTY
            },
            code_file: 104,
            code_name: 112,
            code_first_line: 40,
            code_lines: 120,
            code_start: 0,
            lines,
            text_ascii: 48,
            text_other: 72,
        }
    }

    /// By what the interpreter says of itself: the first [`DEBUG_OFFSETS_BYTES`] of `_PyRuntime`.
    ///
    /// # Errors
    /// `None` where they are none of the kind; else see [`LayoutError`].
    pub fn of_debug_offsets(bytes: &[u8]) -> Option<Result<Self, LayoutError>> {
        let rest = bytes.strip_prefix(b"xdebugpy")?;
        let (words, _) = rest.as_chunks::<8>();
        let words: Vec<_> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let version = Version::of_hex(*words.first()?);
        Some(Self::of_offset_words(version, words.get(1..)?))
    }

    /// `words` begin with `free_threaded`.
    fn of_offset_words(version: Version, words: &[u64]) -> Result<Self, LayoutError> {
        let at = match (version.major, version.minor) {
            (3, 13) => &IN_3_13,
            (3, 14) => &IN_3_14,
            _ => return Err(LayoutError::Version(version)),
        };
        // No structure is that long; most are far shorter.
        let offset = |index: usize| {
            let offset = words.get(index).copied();
            offset.filter(|offset| *offset < 1 << 20)
        };
        if offset(0) != Some(0) {
            return Err(LayoutError::FreeThreaded(version));
        }
        Self::of_offsets(version, at, offset).ok_or(LayoutError::Offsets(version))
    }

    fn of_offsets(
        version: Version,
        at: &OffsetIndexes,
        offset: impl Fn(usize) -> Option<u64>,
    ) -> Option<Self> {
        let narrow = |index| offset(index).and_then(|offset| u32::try_from(offset).ok());
        // What is read of a frame by words has to lie within what is read at all.
        let frame_word = |index| {
            narrow(index).filter(|offset| offset % 8 == 0 && offset / 8 < WINDOW_WORDS as u32 - 1)
        };
        let [thread_next, thread_interpreter] = [at.thread + 2, at.thread + 3].map(&offset);
        let code = |member: usize| offset(at.code + member);
        let (file, short_name, name, lines) = (code(1)?, code(2)?, code(3)?, code(4)?);
        let (first_line, start) = (code(5)?, code(9)?);
        // From the counts of arguments to the line table everything stays as it was compiled.
        let stamp = first_line & !7;
        let stamp_bytes = (lines + 8).checked_sub(stamp)?;
        let is_expected = thread_next == Some(ebpf_common::python::THREAD_NEXT_OFFSET)
            && thread_interpreter == Some(super::THREAD_INTERPRETER_OFFSET)
            && offset(at.object + 1) == Some(8)
            && offset(at.class + 1) == Some(super::code::TYPE_NAME_OFFSET)
            && [file, short_name, name, lines]
                .iter()
                .all(|offset| offset % 8 == 0)
            && short_name >= stamp
            && short_name <= lines
            && stamp_bytes < WINDOW_WORDS as u64 * 8
            && offset(at.text + 1) == Some(super::code::TEXT_STATE_OFFSET)
            && offset(at.text + 2) == Some(super::code::LENGTH_OFFSET);
        if !is_expected {
            return None;
        }
        let owner = narrow(at.frame + 5).filter(|owner| *owner < (WINDOW_WORDS as u32 - 1) * 8)?;
        Some(Self {
            version,
            process: PythonProcess {
                interpreters: offset(3)?,
                kind: kind::ENTRY_OWNER,
                interpreter_next: narrow(at.interpreter + 2)?,
                interpreter_threads: narrow(at.interpreter + 3)?,
                thread_id: narrow(at.thread + 5)?,
                thread_frame: narrow(at.thread + 4)?,
                frame_previous: frame_word(at.frame + 1)? / 8,
                frame_code: frame_word(at.frame + 2)? / 8,
                frame_place: frame_word(at.frame + 3)? / 8,
                frame_owner: owner,
                code_stamp: u32::try_from(stamp).ok()?,
                code_stamp_words: u32::try_from(stamp_bytes / 8).ok()?,
                code_name: u32::try_from((short_name - stamp) / 8).ok()?,
                ..EMPTY
            },
            code_file: file,
            code_name: name,
            code_first_line: first_line,
            code_lines: lines,
            code_start: start,
            lines: LineFormat::Locations,
            text_ascii: offset(at.text + 3)?,
            // `PyUnicodeObject` has one pointer more.
            text_other: offset(at.text)?.checked_sub(8)?,
        })
    }
}

const EMPTY: PythonProcess = PythonProcess {
    interpreters: 0,
    code_type: 0,
    loop_starts: [0; 2],
    loop_lens: [0; 2],
    kind: 0,
    interpreter_next: 0,
    interpreter_threads: 0,
    thread_id: 0,
    thread_frame: 0,
    thread_cframe: 0,
    cframe_current: 0,
    cframe_previous: 0,
    frame_previous: 0,
    frame_code: 0,
    frame_place: 0,
    frame_owner: 0,
    code_stamp: 0,
    code_stamp_words: 0,
    code_name: 0,
    frame_words: 0,
};

/// Index of the first word (its size) of each structure in `_Py_DebugOffsets`, counted from
/// `free_threaded`.
struct OffsetIndexes {
    interpreter: usize,
    thread: usize,
    frame: usize,
    code: usize,
    object: usize,
    class: usize,
    text: usize,
}

/// `Include/internal/pycore_runtime.h` of 3.13: structures of 3, 13, 9, 6, 10, 2, 4, 3, 3, 3, 2, 3, 3
/// and 4 words.
const IN_3_13: OffsetIndexes = OffsetIndexes {
    interpreter: 4,
    thread: 17,
    frame: 26,
    code: 32,
    object: 42,
    class: 44,
    text: 65,
};

/// `Include/internal/pycore_debug_offsets.h` of 3.14: 3, 16, 9, 8, 11, 2, 4, 3, 3, 4 (sets are new),
/// 3, 2, 3, 3 and 4 words.
const IN_3_14: OffsetIndexes = OffsetIndexes {
    interpreter: 4,
    thread: 20,
    frame: 29,
    code: 37,
    object: 48,
    class: 50,
    text: 75,
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What 3.13.0 on x86-64 says of itself.
    fn of_3_13() -> Vec<u8> {
        let words: [u64; 72] = [
            0x030d_00f0,
            0, // version, free_threaded
            283_320,
            608,
            632, // runtime
            194_968,
            7272,
            7264,
            7344,
            7400,
            7656,
            7640,
            7648,
            16,
            7752,
            0,
            7768,
            7760, // interpreter
            304,
            0,
            8,
            16,
            72,
            152,
            160,
            232,
            32, // thread
            80,
            8,
            0,
            56,
            72,
            70, // frame
            208,
            112,
            120,
            128,
            136,
            68,
            52,
            96,
            104,
            200, // code
            16,
            8, // object
            416,
            24,
            88,
            168, // type
            32,
            24,
            16, // tuple
            40,
            24,
            16, // list
            48,
            32,
            40, // dict
            24,
            16, // float
            32,
            16,
            24, // int
            40,
            16,
            32, // bytes
            64,
            32,
            16,
            40, // text
            240,
            200, // gc
        ];
        let mut bytes = b"xdebugpy".to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn what_3_13_says_of_itself_is_understood() {
        let layout = Layout::of_debug_offsets(&of_3_13()).unwrap().unwrap();
        assert_eq!(layout.version.to_string(), "3.13");
        let process = layout.process;
        assert_eq!(
            (process.interpreters, process.interpreter_next),
            (632, 7264)
        );
        assert_eq!(
            (process.interpreter_threads, process.thread_id),
            (7344, 152)
        );
        assert_eq!((process.thread_frame, process.frame_owner), (72, 70));
        assert_eq!(
            (
                process.frame_previous,
                process.frame_code,
                process.frame_place
            ),
            (1, 0, 7)
        );
        assert_eq!((process.code_stamp, process.code_stamp_words), (64, 10));
        assert_eq!((layout.code_name, layout.code_start), (128, 200));
        assert_eq!((layout.text_ascii, layout.text_other), (40, 56));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |index: usize, value: u64| {
            let mut bytes = of_3_13();
            bytes[8 + index * 8..][..8].copy_from_slice(&value.to_le_bytes());
            Layout::of_debug_offsets(&bytes).unwrap()
        };
        let version = Version {
            major: 3,
            minor: 13,
        };
        assert_eq!(with(1, 1), Err(LayoutError::FreeThreaded(version)));
        for (index, value) in [
            (20, 16),
            (21, 24),
            (28, 9),
            (29, 1 << 40),
            (37, 4096),
            (67, 40),
        ] {
            assert_eq!(
                with(index, value),
                Err(LayoutError::Offsets(version)),
                "{index}"
            );
        }
        assert!(matches!(with(0, 0x030f_00f0), Err(LayoutError::Version(_))));
        assert!(Layout::of_debug_offsets(b"xdebugp").is_none());
        for minor in [7, 13, 15] {
            assert!(Layout::of_version(Version { major: 3, minor }).is_err());
        }
    }

    #[test]
    fn versions_are_read_from_names() {
        let of = |name| Version::of_file_name(name).map(|version| version.to_string());
        assert_eq!(of("python3.9").as_deref(), Some("3.9"));
        assert_eq!(of("libpython3.10.so.1.0").as_deref(), Some("3.10"));
        assert_eq!(of("python3"), None);
        assert_eq!(of("libpython3.so"), None);
        assert_eq!(Version::of_hex(0x030b_02f0).to_string(), "3.11");
    }

    /// The smallest frame has its own members and room for one value.
    #[test]
    fn no_more_is_read_of_a_frame_than_the_smallest_has() {
        let layout = |minor| Layout::of_version(Version { major: 3, minor }).unwrap();
        for minor in [11, 12] {
            assert!(layout(minor).process.words_of_frame() <= 10, "3.{minor}");
        }
    }

    proptest! {
        #[test]
        fn every_layout_stays_within_what_is_read(
            version in prop::sample::select(vec![0x030d_00f0_u64, 0x030e_00f0]),
            words in prop::collection::vec(0..600_u64, 0..90),
        ) {
            let mut bytes = b"xdebugpy".to_vec();
            bytes.extend(version.to_le_bytes());
            bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            if let Some(Ok(layout)) = Layout::of_debug_offsets(&bytes) {
                let process = layout.process;
                let words = WINDOW_WORDS as u32;
                let frame_words = process.words_of_frame();
                prop_assert!(frame_words < words && process.frame_owner < 8 * frame_words);
                prop_assert!([process.frame_code, process.frame_place, process.frame_previous]
                    .iter()
                    .all(|word| *word < frame_words));
                prop_assert!(process.code_stamp_words < words && process.code_name < words);
            }
        }
    }
}
