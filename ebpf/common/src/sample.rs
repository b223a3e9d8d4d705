//! Stacks that the sampler captured.

/// Deepest stack that the kernel captures a side (`perf_event_max_stack` of a stock kernel).
pub const MAX_STACK_FRAMES: usize = 127;
