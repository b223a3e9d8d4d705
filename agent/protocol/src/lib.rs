//! Bytes and times in, observations out.
//!
//! This crate understands the traffic: HTTP/1.1 and Elasticsearch. It knows no tokio, no aya, no
//! clock and no socket, and nothing in it panics on any input.
#![forbid(unsafe_code)]

pub mod elasticsearch;
pub mod observation;

pub use ebpf_common::connection::{CloseReason, Cursor, Direction};
