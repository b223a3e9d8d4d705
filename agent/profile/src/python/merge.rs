//! One stack of native frames and Python's.

use ebpf_common::python::{FRAME_WORDS, GROUP_END, NATIVE_MARK, kind};

/// A stack in which each native frame of the interpreter's loop gave way to the frames of Python that
/// it ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Native addresses, and what `name` made of the frames of Python; leaf first.
    pub user: Vec<u64>,
    /// Every frame of Python has its place.
    pub is_whole: bool,
}

/// Merges the native frames with the words of Python's (see [`ebpf_common::python`]).
///
/// `kind` is that of the process; `reached_end`: no outer native frame is missing; `name` is given
/// the two words of each frame.
pub fn merge(
    native: &[u64],
    words: &[u64],
    kind: u32,
    reached_end: bool,
    mut name: impl FnMut(u64, u64) -> u64,
) -> Merged {
    let groups = groups(words);
    let marks = native
        .iter()
        .filter(|word| *word & NATIVE_MARK != 0)
        .count();
    let Some((mut unpaired_marks, first_group)) = pair(marks, groups.len(), kind, reached_end)
    else {
        return Merged {
            user: native.iter().map(|word| word & !NATIVE_MARK).collect(),
            is_whole: false,
        };
    };
    let mut groups = groups[first_group..].iter();
    let mut merged = Merged {
        user: Vec::with_capacity(native.len() + words.len() / FRAME_WORDS),
        is_whole: true,
    };
    for word in native {
        let address = word & !NATIVE_MARK;
        if address == *word {
            merged.user.push(address);
        } else if unpaired_marks > 0 {
            unpaired_marks -= 1;
            merged.user.push(address);
        } else if let Some(group) = groups.next() {
            if group.is_empty() {
                merged.user.push(address);
            }
            let frames = group.iter().map(|[code, place]| name(*code, *place));
            merged.user.extend(frames);
        } else {
            merged.is_whole = false;
            merged.user.push(address);
        }
    }
    // Nobody knows between which native frames these are, but they are the outer ones.
    if !reached_end {
        for [code, place] in groups.copied().flatten() {
            merged.user.push(name(*code, *place));
        }
    } else if groups.next().is_some() {
        merged.is_whole = false;
    }
    merged
}

/// How many of the innermost marks have no group, and how many of the innermost groups no mark;
/// `None` where that cannot be told.
fn pair(marks: usize, groups: usize, kind: u32, reached_end: bool) -> Option<(usize, usize)> {
    if marks == groups || !reached_end {
        return Some((0, 0));
    }
    // Until 3.10 there is a moment at the begin and at the end of each call when a native frame has
    // no frame yet, or (3.10) a frame no native one any more.
    if kind & kind::EACH != 0 {
        return match marks {
            _ if marks == groups + 1 => Some((1, 0)),
            _ if marks + 1 == groups && kind & kind::CFRAME_EACH != 0 => Some((0, 1)),
            _ => None,
        };
    }
    // Marks and groups have met one by one, from the innermost on.
    Some((0, 0))
}

/// The frames of each native one, innermost first. A group can be empty.
fn groups(words: &[u64]) -> Vec<&[[u64; FRAME_WORDS]]> {
    let (frames, _) = words.as_chunks::<FRAME_WORDS>();
    frames
        .split_inclusive(|[code, _]| code & GROUP_END != 0)
        .map(|group| match group {
            // An end that is no frame itself.
            [frames @ .., [GROUP_END, _]] => frames,
            group => group,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The words of groups of code addresses; each ends by itself, or by a frame of its own.
    fn words(groups: &[&[u64]], own_end: bool) -> Vec<u64> {
        let mut words = Vec::new();
        for group in groups {
            for (index, code) in group.iter().enumerate() {
                let is_last = index + 1 == group.len() && !own_end;
                words.extend([code | if is_last { GROUP_END } else { 0 }, 0]);
            }
            if own_end {
                words.extend([GROUP_END, 0]);
            }
        }
        words
    }

    const MARK: u64 = NATIVE_MARK;

    fn merged(native: &[u64], words: &[u64], kind: u32, reached_end: bool) -> (Vec<u64>, bool) {
        let merged = merge(native, words, kind, reached_end, |code, _| {
            code & !GROUP_END
        });
        (merged.user, merged.is_whole)
    }

    #[test]
    fn each_group_takes_the_place_of_its_native_frame() {
        let native = [1, 2 | MARK, 3, 4, 5 | MARK, 6];
        for own_end in [false, true] {
            let words = words(&[&[10, 11], &[12]], own_end);
            let kind = if own_end {
                kind::ENTRY_OWNER
            } else {
                kind::ENTRY_FLAG
            };
            let expected = vec![1, 10, 11, 3, 4, 12, 6];
            assert_eq!(merged(&native, &words, kind, true), (expected, true));
        }
    }

    #[test]
    fn a_native_frame_that_is_done_stays() {
        let words = words(&[&[], &[12]], true);
        let native = [2 | MARK, 3, 5 | MARK, 6];
        let expected = vec![2, 3, 12, 6];
        assert_eq!(
            merged(&native, &words, kind::ENTRY_OWNER, true),
            (expected, true)
        );
    }

    #[test]
    fn before_3_11_the_newest_call_may_be_half_begun_or_half_ended() {
        let words = words(&[&[10], &[11]], false);
        let native = [1 | MARK, 2 | MARK, 3 | MARK, 4];
        for kind in [kind::EACH | kind::BY_CODE, kind::EACH | kind::CFRAME_EACH] {
            assert_eq!(
                merged(&native, &words, kind, true),
                (vec![1, 10, 11, 4], true)
            );
        }
        let native = [1, 2 | MARK, 4];
        let kind = kind::EACH | kind::CFRAME_EACH;
        assert_eq!(merged(&native, &words, kind, true), (vec![1, 11, 4], true));
        let kind = kind::EACH | kind::BY_CODE;
        assert_eq!(merged(&native, &words, kind, true), (vec![1, 2, 4], false));
    }

    #[test]
    fn where_native_frames_are_missing_the_outer_frames_follow() {
        let words = words(&[&[10], &[11, 12], &[13]], false);
        let native = [1, 2 | MARK, 3];
        let expected = vec![1, 10, 3, 11, 12, 13];
        assert_eq!(
            merged(&native, &words, kind::ENTRY_FLAG, false),
            (expected, true)
        );
        assert_eq!(
            merged(&native, &words, kind::ENTRY_FLAG, true),
            (vec![1, 10, 3], false)
        );
    }

    proptest! {
        #[test]
        fn a_whole_stack_has_every_frame_in_order(
            native in prop::collection::vec((1..1000_u64, any::<bool>()), 0..30),
            words in prop::collection::vec(any::<u64>(), 0..60),
            kind in 0..256_u32,
            reached_end: bool,
        ) {
            let native: Vec<_> = native
                .into_iter()
                .map(|(address, is_marked)| if is_marked { address | MARK } else { address })
                .collect();
            let mut named = Vec::new();
            let merged = merge(&native, &words, kind, reached_end, |code, place| {
                named.push((code, place));
                PYTHON | named.len() as u64
            });
            let python: Vec<_> = merged.user.iter().filter(|word| **word & PYTHON != 0).collect();
            prop_assert!(python.is_sorted());
            prop_assert_eq!(python.len(), named.len());
            prop_assert!(merged.user.len() <= native.len() + words.len());
        }
    }

    const PYTHON: u64 = 1 << 63;
}
