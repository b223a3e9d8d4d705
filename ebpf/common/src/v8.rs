//! Functions of V8's frames, which the sampler reads while the thread stands still for the sample.
//!
//! ```text
//! frame pointer ─▶ JSFunction ─▶ SharedFunctionInfo
//! ```
//!
//! The collector moves functions, but what several of them share stays where it is for long. A frame
//! goes up as its native address with [`SCRIPT_MARK`], and two words more: the address of the
//! `SharedFunctionInfo`, and a [`stamp`] of what never changes in it, by which the agent tells later
//! whether the same one is still there. `Smi` and heap pointers are told by their tags.

/// Set in a native address: two words more follow. No user address has this bit.
pub const SCRIPT_MARK: u64 = 1 << 62;

/// Words that follow.
pub const SCRIPT_WORDS: usize = 2;

/// Words that are read of a `SharedFunctionInfo`.
pub const SHARED_WORDS: usize = 8;

/// Elements of the map `V8_LAYOUTS`; element 0 stays empty.
pub const MAX_V8_LAYOUTS: usize = 64;

/// Lower bits of a pointer into the heap (`kHeapObjectTagMask`), and what they are there.
pub const TAG_MASK: u64 = 3;
/// See [`TAG_MASK`].
pub const HEAP_TAG: u64 = 1;

/// Where a build of V8 keeps what the sampler reads. Offsets are bytes from an object's first one,
/// without the tag, unless they say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct V8Layout {
    /// Of the function's slot, from the frame pointer. The context's is the next one.
    pub frame_function: i32,
    /// `JSFunction.shared_function_info`
    pub function_shared: u32,
    /// `Map.instance_type`, 16 bits
    pub map_instance_type: u32,
    /// `SHARED_FUNCTION_INFO_TYPE`
    pub shared_type: u32,
    /// Words of a `SharedFunctionInfo`: the name or the scope, the script, numbers of parameters with
    /// the place in the source, flags with the number of the function in its script.
    pub shared_words: [u8; 4],
}

/// What tells a `SharedFunctionInfo` from another one at its address.
#[inline(always)]
#[must_use]
pub fn stamp(words: &[u64; SHARED_WORDS], layout: &V8Layout) -> u64 {
    let mut sum = 0_u64;
    let mut index = 0;
    while index < layout.shared_words.len() {
        let word = words[layout.shared_words[index] as usize & (SHARED_WORDS - 1)];
        sum = (sum ^ word)
            .wrapping_mul(0x9E37_79B1_85EB_CA87)
            .rotate_left(31);
        index += 1;
    }
    sum
}

const _: () = {
    assert!(size_of::<V8Layout>() == 20);
};

// SAFETY: plain integers without padding; every bit pattern is a value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for V8Layout {}
