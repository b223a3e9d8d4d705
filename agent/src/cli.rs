//! Flags as the user types them. `config` turns them into a [`crate::config::Config`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, LogFormat, LogLevel};
use crate::profiler::{MAX_HZ, MAX_SECONDS, MAX_SHORTEST_WAIT, SHORTEST_WAIT};

/// HTTP latency, Elasticsearch timing and CPU flamegraphs of services that nobody instrumented.
#[derive(Clone, Debug, Parser)]
#[command(name = "telltale", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the node agent until SIGTERM or SIGINT: attach, observe, export
    Run(RunArgs),
    /// Take one CPU profile without a running agent
    Profile(Box<ProfileArgs>),
    /// Tell what this kernel and these privileges allow, and which fallback is taken where
    Check(CheckArgs),
}

/// Flags of `telltale run`. Each is also a key of the config file.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Configuration file (YAML) [env: TELLTALE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address and port of the HTTP API [env: TELLTALE_LISTEN] [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Base URL of an OTLP collector; without one no spans are exported [env: OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Form of the log on standard error [env: TELLTALE_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Least severity that is logged [env: TELLTALE_LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}

/// Flags of `telltale profile`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("target").required(true).multiple(false))]
pub struct ProfileArgs {
    /// Profile one process
    #[arg(long, group = "target", value_name = "PID")]
    pub pid: Option<u32>,
    /// Profile every process of a service
    #[arg(long, group = "target", value_name = "NAME")]
    pub service: Option<String>,
    /// Profile one thread
    #[arg(long, group = "target", value_name = "TID")]
    pub tid: Option<u32>,
    /// Profile every process of a container
    #[arg(long, group = "target", value_name = "ID")]
    pub container: Option<String>,
    /// Profile every process of a cgroup and of those below it (/system.slice/nginx.service)
    #[arg(long, group = "target", value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Profile the whole machine
    #[arg(long, group = "target")]
    pub all: bool,
    /// Only threads of this name
    #[arg(long, value_name = "NAME")]
    pub thread: Option<String>,
    /// Only what is proven to serve requests of this route (`/users/{id}`); HTTP is watched meanwhile
    #[arg(long, value_name = "ROUTE")]
    pub route: Option<String>,
    /// Only what is proven to serve requests with this method
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Only what is proven to wait for this Elasticsearch operation (`search`); see --off-cpu
    #[arg(long, value_name = "OPERATION")]
    pub operation: Option<String>,
    /// How long, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
    pub seconds: u64,
    /// Samples a CPU and second
    #[arg(long, default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_HZ)))]
    pub hz: u32,
    /// Measure where threads wait off the CPU, in place of where they run on it
    #[arg(long, conflicts_with = "hz")]
    pub off_cpu: bool,
    /// Leave out shorter waits, in microseconds
    #[arg(long, value_name = "MICROSECONDS", requires = "off_cpu", default_value_t = SHORTEST_WAIT.as_micros() as u32, value_parser = clap::value_parser!(u32).range(1..=MAX_SHORTEST_WAIT.as_micros() as i64))]
    pub min_us: u32,
    /// Where to; the format follows the extension: .pb.gz (pprof), .svg, .folded, .json (speedscope)
    #[arg(short, long, value_name = "FILE", default_value = "profile.pb.gz")]
    pub output: PathBuf,
}

/// Flags of `telltale check`.
#[derive(Clone, Debug, Default, Args)]
pub struct CheckArgs {
    /// Check this configuration file too
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What a command line asks for.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// A command.
    Command(Command),
    /// Text to print on standard output, and nothing else: `--help`, `--version`.
    Print(String),
}

/// Reads a command line; its first element is the program's name.
///
/// # Errors
///
/// [`ConfigError::Usage`], one line, for anything that clap refuses.
pub fn parse<I, T>(args: I) -> Result<Invocation, ConfigError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    match Cli::try_parse_from(args) {
        Ok(cli) => Ok(Invocation::Command(cli.command)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                Ok(Invocation::Print(error.render().to_string()))
            }
            _ => Err(ConfigError::Usage(one_line(&error))),
        },
    }
}

/// Clap's words without their layout: the error and its tips, but not the usage, which `--help`
/// prints.
fn one_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command given; allowed: run, profile, check".to_owned();
    }
    let text = error.render().to_string();
    let kept: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let joined = kept.join(" ");
    joined.strip_prefix("error: ").unwrap_or(&joined).to_owned()
}
