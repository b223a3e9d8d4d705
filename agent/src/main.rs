//! The `telltale` command: flags → configuration → logging → run → exit code.

use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

use telltale::cli::{self, Command, Invocation};
use telltale::config::{Config, ConfigError};
use telltale::{agent, check, commands, logging};

/// A flag, key or value that cannot be used.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("telltale: {error:#}");
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
            let report = check::check(config.tap.into());
            print!("{}", report.to_text());
            Ok(if report.is_able() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

/// Two threads: workers and the profiler have their own.
fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("telltale")
        .enable_all()
        .build()
}
