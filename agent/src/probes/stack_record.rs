//! Records of the ring `SAMPLE_RING` that carry a stack.

use ebpf_common::python::{FRAME_WORDS, MAX_PYTHON_FRAMES};
use ebpf_common::sample::{MAX_KERNEL_FRAMES, MAX_USER_FRAMES, SampleKey, StackHeader};
use ebpf_common::v8::{SCRIPT_MARK, SCRIPT_WORDS};

/// What tells the function of V8 that a native frame belongs to (see [`ebpf_common::v8`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFunction {
    /// Index of the frame's address.
    pub frame: usize,
    /// Tagged address of the `SharedFunctionInfo`.
    pub shared: u64,
    /// What it is told by.
    pub stamp: u64,
}

/// A stack as the kernel side sent it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StackRecord {
    /// Kernel addresses, leaf first.
    pub(super) kernel: Vec<u64>,
    /// Words of the interpreter's frames.
    pub(super) python: Vec<u64>,
    /// User addresses, leaf first.
    pub(super) native: Vec<u64>,
    /// Functions that those belong to, in their order.
    pub(super) functions: Vec<FrameFunction>,
}

/// `None` for a record whose length is not what its header says.
pub(super) fn decode(record: &[u8]) -> Option<(SampleKey, StackRecord)> {
    let (header, words) = record.split_at_checked(size_of::<StackHeader>())?;
    // SAFETY: `header` has exactly the bytes of a `StackHeader`, whose every bit pattern is a
    // value; the read asks for no alignment.
    let header: StackHeader = unsafe { header.as_ptr().cast::<StackHeader>().read_unaligned() };
    let (kernel, user) = (header.kernel_frames as usize, header.user_frames as usize);
    let (python, script) = (header.python_words as usize, header.script_words as usize);
    if kernel > MAX_KERNEL_FRAMES
        || user > MAX_USER_FRAMES
        || python > FRAME_WORDS * MAX_PYTHON_FRAMES
        || script > SCRIPT_WORDS * MAX_USER_FRAMES
    {
        return None;
    }
    let (words, rest) = words.as_chunks::<{ size_of::<u64>() }>();
    if words.len() != kernel + python + user + script || !rest.is_empty() {
        return None;
    }
    let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
    let mut record = StackRecord {
        kernel: words.by_ref().take(kernel).collect(),
        python: words.by_ref().take(python).collect(),
        native: Vec::with_capacity(user),
        functions: Vec::with_capacity(script / SCRIPT_WORDS),
    };
    while let Some(word) = words.next() {
        record.native.push(word & !SCRIPT_MARK);
        if word & SCRIPT_MARK != 0 {
            record.functions.push(FrameFunction {
                frame: record.native.len() - 1,
                shared: words.next()?,
                stamp: words.next()?,
            });
        }
    }
    (record.native.len() == user).then_some((header.key, record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kernel_frames: u32, python_words: u32, user_frames: u32, words: &[u64]) -> Vec<u8> {
        let script_words = words.len() as u32 - (kernel_frames + python_words + user_frames);
        record_of(
            [kernel_frames, user_frames, python_words, script_words],
            words,
        )
    }

    /// With the header's counts, in its order.
    fn record_of(counts: [u32; 4], words: &[u64]) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<SampleKey>()];
        for count in counts {
            bytes.extend(count.to_ne_bytes());
        }
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_record_decodes_into_its_parts() {
        let (_, record) = decode(&record(1, 2, 1, &[10, 20, 30, 40])).unwrap();
        let expected = StackRecord {
            kernel: vec![10],
            python: vec![20, 30],
            native: vec![40],
            functions: Vec::new(),
        };
        assert_eq!(record, expected);
    }

    #[test]
    fn functions_stand_behind_their_frames() {
        let words = [10, 40, 41 | SCRIPT_MARK, 1, 2, 42, 43 | SCRIPT_MARK, 3, 4];
        let (_, record) = decode(&record(1, 0, 4, &words)).unwrap();
        assert_eq!(record.native, [40, 41, 42, 43]);
        let function = |frame, shared, stamp| FrameFunction {
            frame,
            shared,
            stamp,
        };
        assert_eq!(record.functions, [function(1, 1, 2), function(3, 3, 4)]);
    }

    #[test]
    fn a_record_of_another_length_is_refused() {
        assert!(decode(&record_of([1, 1, 0, 0], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([2, 2, 0, 0], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([1, 1, 2, 0], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([128, 0, 0, 0], &[0; 128])).is_none());
        // More words of functions than frames that have one, and fewer.
        assert!(decode(&record_of([0, 1, 0, 2], &[10, 20, 30])).is_none());
        assert!(decode(&record_of([0, 2, 0, 0], &[10, 20 | SCRIPT_MARK])).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }
    }
}
