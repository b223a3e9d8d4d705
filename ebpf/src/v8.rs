//! The function that a frame of V8 belongs to.
//!
//! Where V8 keeps it is told by the agent (`V8_LAYOUTS`); what is read here is not believed there
//! until all that it leads to has been looked at.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use ebpf_common::v8::{
    HEAP_TAG, MAX_V8_LAYOUTS, SCRIPT_WORDS, SHARED_WORDS, TAG_MASK, V8Layout, stamp,
};

use crate::buffer::{read_user, read_user_into};

/// What the sampler has to know of each build of V8.
#[btf_map]
static V8_LAYOUTS: Array<V8Layout, MAX_V8_LAYOUTS> = Array::new();

/// The function and its context that the frame at `fp` belongs to; `None` where they would lie below
/// `lowest`, where is what earlier calls left.
#[inline(always)]
pub fn of_frame(layout: u32, fp: u64, lowest: u64) -> Option<[u64; 2]> {
    let offset = V8_LAYOUTS.get(layout)?.frame_function;
    let slot = fp.wrapping_add(offset as i64 as u64);
    (slot >= lowest).then(|| read_user(slot))
}

/// The words that tell a function; `None` where it is not JavaScript's.
#[inline(always)]
pub fn function(
    layout: u32,
    [function, context]: [u64; 2],
    window: &mut [u64; SHARED_WORDS],
) -> Option<[u64; SCRIPT_WORDS]> {
    let layout = V8_LAYOUTS.get(layout)?;
    // Of other frames, a number that tells their kind stands in the context's place.
    if function & TAG_MASK != HEAP_TAG || context & TAG_MASK != HEAP_TAG {
        return None;
    }
    let shared =
        read_user::<u64>((function - HEAP_TAG).wrapping_add(u64::from(layout.function_shared)));
    if shared & TAG_MASK != HEAP_TAG {
        return None;
    }
    read_user_into(window, shared - HEAP_TAG);
    let map = window[0];
    // What cannot be read reads as zero, which is no type of a heap's object.
    let kind = read_user::<u16>(
        map.wrapping_sub(HEAP_TAG)
            .wrapping_add(u64::from(layout.map_instance_type)),
    );
    (u32::from(kind) == layout.shared_type).then(|| [shared, stamp(window, layout)])
}
