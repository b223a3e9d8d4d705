
    "/../ebpf/telltale.bpf.o"
    env!("CARGO_MANIFEST_DIR"),
));
//!
//! The kernel side as the agent holds it: loading, attaching, rings and maps.
//! The only module of the agent that contains `unsafe` code.
//! Typed handles on the kernel programs and their maps. The only part of the agent that is
//! allowed to use `unsafe`.
/// The kernel programs, compiled from `ebpf/` (`cargo xtask ebpf build`).
pub mod attach;
pub mod btf;
pub mod load;
pub mod maps;
pub mod mounts;
pub mod offsets;
pub mod ring;
pub mod sampler;
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
