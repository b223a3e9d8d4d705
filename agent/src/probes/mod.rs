//! Typed handles on the kernel programs and their maps. The only part of the agent that is
//! allowed to use `unsafe`.

pub mod sampler;
