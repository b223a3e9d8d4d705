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
