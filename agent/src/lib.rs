//! The Telltale node agent: loads and attaches the kernel programs, drains what they see, knows
//! the processes, and exports what it learned. `agent.rs` reads as the data flow.

pub mod agent;
pub mod check;
pub mod cli;
pub mod clock;
pub mod cluster_poll;
pub mod clusters;
pub mod commands;
pub mod config;
pub mod connections;
pub mod decode;
pub mod early;
pub mod health;
pub mod http;
pub mod kernel_side;
pub mod logging;
pub mod observation;
pub mod older_sockets;
mod outlet;
pub mod probes;
pub mod process;
pub mod process_events;
pub mod profiler;
pub mod push;
pub mod requests;
pub mod routes;
pub mod selection;
pub mod self_metrics;
pub mod sink;
mod start;
pub mod symbolize;
pub mod tracker;
pub mod worker;
