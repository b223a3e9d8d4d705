//! Stacks, mappings and counts of a CPU profile: pure data, no IO.
//!
//! Samples go into a [`Store`], which sums equal ones; a [`History`] keeps what stores held over time. Once each address is resolved (the agent's
//! symbolizer does that), they come out as a [`Profile`], the only thing that the encoders see.
#![forbid(unsafe_code)]

pub mod go;
mod history;
mod mapping;
mod packed;
mod profile;
pub mod python;
mod stack;
mod store;
pub mod unwind;
pub mod v8;

pub use ebpf_common::unwind::StackEnd;
pub use history::{History, Span};
pub use mapping::{BuildId, Mapping};
pub use profile::{Frame, FrameIndex, Kind, MappingIndex, Profile, Sample, SymbolizedFrame};
pub use stack::{Request, StackTrace, Thread, Unwind, Work};
pub use store::{Counted, Store};
