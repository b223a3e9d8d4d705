//! `cargo xtask …`: development tasks that cargo alone cannot do.
//!
//! Depends on no other crate of the workspace: it has to build when they do not.

mod command;
mod ebpf;
mod host;
mod paths;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of Telltale.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Get the toolchain of the kernel programs; build them; verify the committed object
    #[command(subcommand)]
    Ebpf(ebpf::Ebpf),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Ebpf(task) => ebpf::main(&task),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
