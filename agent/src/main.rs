//! The `telltale` command: flags → configuration → logging → run → exit code.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use telltale::cli::{self, Command, Invocation};
use telltale::config::{Config, ConfigError};
use telltale::probes::bound_heaps;
use telltale::{agent, check, commands, logging};

/// A flag, key or value that cannot be used.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("telltale: {}", one_line(&error));
            let is_usage = error.downcast_ref::<ConfigError>().is_some();
            ExitCode::from(if is_usage { EXIT_USAGE } else { 1 })
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let command = match cli::parse(std::env::args_os())? {
        Invocation::Print(text) => {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        Invocation::Command(command) => command,
    };
    match command {
        Command::Run(args) => {
            let config = Config::from_cli(&args)?;
            logging::start(&config.log)?;
            runtime()?.block_on(agent::run(config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Profile(args) => {
            runtime()?.block_on(commands::profile::run(&args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(args) => {
            let config = args
                .config
                .as_deref()
                .map_or(Ok(Config::default()), Config::from_file)?;
            let report = check::check(config.tap);
            print!("{}", report.to_text());
            Ok(if report.is_able() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

/// An error with its causes; those that its own text repeats are left out.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error
        .chain()
        .map(|cause| cause.to_string().replace('\n', " "))
    {
        let cause = cause.trim();
        if line.is_empty() {
            line.push_str(cause);
        } else if !line.contains(cause) {
            line.push_str(": ");
            line.push_str(cause);
        }
    }
    line
}

/// Two threads: workers and the profiler have their own.
fn runtime() -> std::io::Result<Runtime> {
    bound_heaps();
    raise_open_files();
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("telltale")
        .enable_all()
        .build()
}

/// As many open files as the system allows: the agent keeps one of each executable that it sampled,
/// and one of each chunk of unwind rows, which on a busy host are more than the 1,024 that shells and
/// systemd begin with.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
