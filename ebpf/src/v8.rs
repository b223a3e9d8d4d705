//! The function that a frame of V8 belongs to.
//!
//! Where V8 keeps it is told by the agent (`V8_LAYOUTS`); what is read here is not believed there
//! until all that it leads to has been looked at.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_probe_read_user, macros::btf_map};
use ebpf_common::{
    unwind::Registers,
    v8::{HEAP_TAG, MAX_V8_LAYOUTS, SCRIPT_WORDS, SHARED_WORDS, TAG_MASK, V8Layout, stamp},
};

use crate::{buffer::read_user, kernel::Plain};

/// What the sampler has to know of each build of V8.
#[btf_map]
static V8_LAYOUTS: Array<V8Layout, MAX_V8_LAYOUTS> = Array::new();

/// The words that tell the function of the frame at `frame.fp`; `None` where it is not JavaScript's,
/// or not set up yet.
#[inline(always)]
pub fn function(
    layout: u32,
    frame: Registers,
    window: &mut [u64; SHARED_WORDS],
) -> Option<[u64; SCRIPT_WORDS]> {
    let layout = V8_LAYOUTS.get(layout)?;
    let slot = frame.fp.wrapping_add(layout.frame_function as i64 as u64);
    // What lies below the stack pointer is what earlier calls left there.
    if slot < frame.sp {
        return None;
    }
    let [function, context] = read_user::<[u64; 2]>(slot);
    // Of other frames, a number that tells their kind stands in the context's place.
    if function & TAG_MASK != HEAP_TAG || context & TAG_MASK != HEAP_TAG {
        return None;
    }
    let shared =
        read_user::<u64>((function - HEAP_TAG).wrapping_add(u64::from(layout.function_shared)));
    if shared & TAG_MASK != HEAP_TAG {
        return None;
    }
    read_into(window, shared - HEAP_TAG);
    let map = window[0];
    // What cannot be read reads as zero, which is no type of a heap's object.
    let kind = read_user::<u16>(
        map.wrapping_sub(HEAP_TAG)
            .wrapping_add(u64::from(layout.map_instance_type)),
    );
    (u32::from(kind) == layout.shared_type).then(|| [shared, stamp(window, layout)])
}

/// As [`read_user`], for what is too large for the stack.
#[inline(always)]
fn read_into<T: Plain>(value: &mut T, address: u64) {
    // SAFETY: the helper checks the address and writes all of the value, zeroes where it cannot
    // read.
    unsafe {
        bpf_probe_read_user(
            core::ptr::from_mut(value).cast(),
            size_of::<T>() as u32,
            address as *const _,
        );
    }
}
