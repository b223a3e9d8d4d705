//! Every map that more than one program uses, and the read-only configuration.

use aya_ebpf::{
    btf_maps::{PerCpuArray, RingBuf},
    macros::btf_map,
};
use ebpf_common::{config::Config, loss::LossReason};

/// Set by the agent before load; the verifier sees its fields as constants.
#[unsafe(no_mangle)]
static CONFIG: Config = Config::EMPTY;

/// Losses by [`LossReason`], a CPU each, so that counting takes no lock.
#[btf_map]
static LOSSES: PerCpuArray<u64, { LossReason::COUNT as usize }> = PerCpuArray::new();

/// Records of processes that start and end. 256 KiB hold some 400 of the longest command lines.
#[btf_map]
pub static PROCESS_RING: RingBuf<[u8; 0], { 256 * 1024 }> = RingBuf::new();

/// The configuration, as the verifier's constants.
#[inline(always)]
pub fn config() -> &'static Config {
    // SAFETY: a read-only global that nothing writes after load; the opaque pointer keeps the
    // compiler from folding the values that the agent replaces.
    unsafe { &*core::hint::black_box(&raw const CONFIG) }
}

/// Counts one loss.
#[inline(always)]
pub fn count_loss(reason: LossReason) {
    if let Some(count) = LOSSES.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot; programs of one CPU that interrupt each other may lose a
        // count, which per-CPU atomics would cost more than it is worth.
        unsafe { *count += 1 };
    }
}
