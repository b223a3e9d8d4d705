//! The kernel side as the agent holds it: loading, attaching, rings and maps.
//!
//! The only module of the agent that contains `unsafe` code.

mod allocation;
pub mod arrivals;
pub mod attach;
pub mod btf;
mod clocks;
pub mod load;
pub mod maps;
pub mod mounts;
pub mod off_cpu;
pub mod offsets;
pub mod programs;
pub mod ring;
pub mod sampler;
mod stack_record;
pub mod unwind_maps;

/// The kernel programs, compiled from `ebpf/` (`cargo xtask ebpf build`).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/telltale.bpf.o"
));

/// Makes the allocator give back what is freed. To be called before there are threads.
///
/// Left alone, glibc takes ever larger blocks from its heaps once one such block was freed, where
/// what lies above keeps them, and gives each thread a heap of its own: the start took 57 MB so,
/// 42 MB with these bounds, and a host whose executables are profiled kept 12 MB more than it used.
pub fn bound_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: known parameters; no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives freed memory back to the system. glibc keeps what lies below the last block in use: the
/// kernel's types take some 25 MB while loading, a profile of a busy host's symbols 40 MB and more.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no arguments that could be wrong; any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
