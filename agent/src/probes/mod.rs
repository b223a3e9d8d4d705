//! The kernel side as the agent holds it: loading, attaching, rings and maps.
//!
//! The only module of the agent that contains `unsafe` code.

pub mod attach;
pub mod btf;
pub mod load;
pub mod maps;
pub mod mounts;
pub mod offsets;
pub mod programs;
pub mod ring;
pub mod sampler;

/// The kernel programs, compiled from `ebpf/` (`cargo xtask ebpf build`).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/telltale.bpf.o"
));

/// Gives back to the system what loading needed: the kernel's types alone take some 25 MB, which
/// the allocator would keep for a next time that does not come.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments that could be wrong; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
