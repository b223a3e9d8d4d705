//! Bytes and times in, observations out.
//!
//! This crate understands the traffic: HTTP/1.1 and Elasticsearch. It knows no tokio, no aya, no
//! clock and no socket, and nothing in it panics on any input. A [`Connection`] turns the segments
//! of one connection into [`observation::Exchange`]s; a [`routes::RouteTable`] turns their paths
//! into routes.
#![forbid(unsafe_code)]

mod connection;
mod delivery;
pub mod elasticsearch;
mod http1;
mod in_flight;
mod loss;
pub mod observation;
mod pairing;
mod parking;
pub mod routes;
mod segment;
mod stream;

pub use connection::{Connection, Resting};
pub use ebpf_common::connection::{CloseReason, Cursor, Direction};
pub use http1::method::known as known_method;
pub use loss::{Loss, LossReason};
pub use segment::{Limits, Segment};
