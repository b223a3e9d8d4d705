//! The kernel side as the agent holds it: loading, attaching, rings and maps.
//!
//! The only module of the agent that contains `unsafe` code.

pub mod arrivals;
pub mod attach;
pub mod btf;
pub mod load;
pub mod maps;
pub mod mounts;
pub mod offsets;
pub mod programs;
pub mod ring;
pub mod sampler;
pub mod unwind_maps;

/// The kernel programs, compiled from `ebpf/` (`cargo xtask ebpf build`).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/telltale.bpf.o"
));

/// Gives freed memory back to the system. glibc keeps what lies below the last block in use: the
/// kernel's types take some 25 MB while loading, a profile of a busy host's symbols 40 MB and more.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments that could be wrong; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
