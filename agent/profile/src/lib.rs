//! Stacks, mappings and counts of a CPU profile: pure data, no IO.
#![forbid(unsafe_code)]
