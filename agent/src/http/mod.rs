//! The HTTP API.

pub mod profile;
