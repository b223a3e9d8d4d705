//! `cargo xtask …`: development tasks that cargo alone cannot do.
//!
//! Depends on no other crate of the workspace: it has to build when they do not.

mod bench;
mod command;
mod ebpf;
mod fuzz;
mod host;
mod kernels;
mod paths;
mod run;
mod test;

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
    /// Build the agent and start it on this host, by sudo where needed
    Run {
        /// Flags of `telltale run`
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// Install what the tests need, telling what, and run them all
    Test(test::Test),
    /// Measure what the agent costs, and whether it counts right
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run fuzz targets for a while, each from its committed inputs on
    Fuzz(fuzz::Fuzz),
    /// Boot Debian's stock kernels in QEMU and run the agent on each
    Kernels(kernels::Kernels),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Ebpf(task) => ebpf::main(&task),
        Task::Run { flags } => run::run(&flags).map(|()| ExitCode::SUCCESS),
        Task::Test(arguments) => test::test(&arguments),
        Task::Kernels(arguments) => kernels::kernels(&arguments),
        Task::Fuzz(arguments) => fuzz::fuzz(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Bench(arguments) => bench::bench(&arguments).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
