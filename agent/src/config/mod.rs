//! The validated configuration: units in the names, every default written down once.
//!
//! A value comes from the command line, else from the environment, else from the YAML file, else
//! from the defaults below. `deploy/telltale.example.yaml` shows every key; a test keeps it true.

mod error;
mod load;
mod refusal;
mod units;
mod validate;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::profiler::MAX_HZ;

pub use error::ConfigError;
pub use validate::HISTOGRAMS;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the HTTP API listens.
    #[serde(with = "units::socket_address")]
    pub listen: SocketAddr,
    /// The agent's own log.
    pub log: LogConfig,
    /// Span export.
    pub otlp: OtlpConfig,
    /// Which processes are observed.
    pub targets: TargetsConfig,
    /// Route templates.
    pub routes: RoutesConfig,
    /// The metrics page.
    pub metrics: MetricsConfig,
    /// How the kernel side tells of socket data.
    pub tap: Tap,
    /// What is captured, and how much memory that may take.
    pub capture: CaptureConfig,
    /// What is measured of exchanges beside their duration.
    pub http: HttpConfig,
    /// Elasticsearch and OpenSearch.
    pub elasticsearch: ElasticsearchConfig,
    /// CPU profiles.
    pub profile: ProfileConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)),
            log: LogConfig::default(),
            otlp: OtlpConfig::default(),
            targets: TargetsConfig::default(),
            routes: RoutesConfig::default(),
            metrics: MetricsConfig::default(),
            tap: Tap::default(),
            capture: CaptureConfig::default(),
            http: HttpConfig::default(),
            elasticsearch: ElasticsearchConfig::default(),
            profile: ProfileConfig::default(),
        }
    }
}

/// The agent's own log, on standard error.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// One line of text or one JSON object an event.
    pub format: LogFormat,
    /// Least severity that is written.
    pub level: LogLevel,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Least severity that is logged; ordered from silent to talkative.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Deserialize,
    Serialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What stops a part of the agent.
    Error,
    /// What makes its data incomplete.
    Warn,
    /// Start, stop and what was chosen.
    #[default]
    Info,
    /// For finding out why something is not seen.
    Debug,
    /// Everything.
    Trace,
}

/// Span export by OTLP. Off while `endpoint` is absent.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OtlpConfig {
    /// Base URL of the collector, `http://host:port`; `http/protobuf` appends `/v1/traces`.
    pub endpoint: Option<String>,
    /// URL that spans go to as it stands; wins over `endpoint`.
    pub traces_endpoint: Option<String>,
    /// How it is spoken to.
    pub protocol: OtlpProtocol,
    /// Headers (gRPC: metadata) sent with each export.
    pub headers: BTreeMap<String, String>,
    /// How long one export may take.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Spans that wait for export at most; further ones are dropped and counted.
    pub queue_spans: usize,
    /// Spans in one export at most.
    pub batch_spans: usize,
    /// How long a span waits for its batch to fill.
    #[serde(with = "units::duration")]
    pub interval: Duration,
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            traces_endpoint: None,
            protocol: OtlpProtocol::default(),
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(10),
            queue_spans: 8192,
            batch_spans: 512,
            interval: Duration::from_secs(1),
        }
    }
}

impl OtlpConfig {
    /// The URL that spans are sent to: `None` while export is off. For gRPC the collector's base
    /// URL, for `http/protobuf` the full URL, as the OpenTelemetry specification builds it
    /// (protocol/exporter, "Endpoint URLs for OTLP/HTTP").
    #[must_use]
    pub fn traces_url(&self) -> Option<String> {
        if let Some(url) = &self.traces_endpoint {
            return Some(url.clone());
        }
        let base = self.endpoint.as_deref()?;
        Some(match self.protocol {
            OtlpProtocol::Grpc => base.to_owned(),
            OtlpProtocol::HttpProtobuf => format!("{}/v1/traces", base.trim_end_matches('/')),
        })
    }
}

/// OTLP's transports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum OtlpProtocol {
    /// OTLP/gRPC, usually port 4317.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// OTLP/HTTP with protobuf bodies, usually port 4318.
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// Which processes are observed: those that some `include` rule selects (every process, where
/// there is none) and no `exclude` rule does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetsConfig {
    /// Rules that take a process in.
    pub include: Vec<TargetRule>,
    /// Rules that leave a process out; they win.
    pub exclude: Vec<TargetRule>,
}

/// Selects the processes for which everything that it names holds. Globs know `*`, `?`, `[a-z]`
/// and `{a,b}`; `*` matches slashes too.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetRule {
    /// Glob over the executable's path, or over its file name where the glob has no slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// Glob over the command line, its arguments joined by one space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    /// A local TCP port that the process serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Glob over the service name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Start of the container id, or a glob over it. No container matches no rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// Route templates.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutesConfig {
    /// Glob over the service name → its templates (`/users/{id}`). Routes of services without
    /// templates, and paths that fit none, are learned.
    pub templates: BTreeMap<String, Vec<String>>,
    /// Routes that a service may have; beyond, those that are used least share one.
    pub max_per_service: usize,
}

impl Default for RoutesConfig {
    fn default() -> Self {
        Self {
            templates: BTreeMap::new(),
            max_per_service: 200,
        }
    }
}

/// The metrics page.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Metric name (one of [`HISTOGRAMS`]) → upper bounds of its buckets, in its unit, without
    /// `+Inf`. A metric that is not named keeps its defaults.
    pub buckets: BTreeMap<String, Vec<f64>>,
    /// Label sets that a metric may have; what comes later is counted as a loss.
    pub max_series: usize,
    /// When the kernel measures the runs of kernel programs.
    pub program_statistics: Sampling,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            max_series: 10_000,
            program_statistics: Sampling::default(),
        }
    }
}

/// When something is measured that costs what it measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// A second now and then, which stands for the time between.
    #[default]
    Sampled,
    /// All the time.
    Always,
    /// Never.
    Off,
}

/// Where the kernel side sees the bytes of stream sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tap {
    /// The best that the kernel has.
    #[default]
    Auto,
    /// The `sock_send_length` and `sock_recv_length` tracepoints (Linux 6.3+).
    Socket,
    /// The ends of the kernel's functions that send and receive, where it lets them be traced.
    Fentry,
    /// The end of system calls, going from the descriptor to the socket.
    Walk,
}

/// What is captured, and how much memory that may take.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// Bytes captured from the start of each message: 256 to 16384.
    #[serde(with = "units::bytes")]
    pub bytes: u32,
    /// Rings, each with a worker thread: 1 to 8; 0 lets the agent choose by the CPUs.
    pub rings: u32,
    /// Size of one ring, bytes: a power of two, 64 KiB to 64 MiB.
    #[serde(with = "units::bytes")]
    pub ring_bytes: u32,
    /// Connections known at a time; the one unused for longest goes first.
    pub max_connections: u32,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            bytes: 4096,
            rings: 0,
            ring_bytes: 2 * 1024 * 1024,
            max_connections: 65_536,
        }
    }
}

/// What is measured of exchanges beside their duration.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// How long requests waited for their server to read them.
    pub queue_time: Sampling,
    /// How long answers waited for their peer to acknowledge them.
    pub delivery_time: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            queue_time: Sampling::Sampled,
            delivery_time: true,
        }
    }
}

/// Elasticsearch and OpenSearch.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ElasticsearchConfig {
    /// `host:port` of servers known to be one, so that their calls are recognized before the
    /// first answer with a product header; `host:port/prefix` where a proxy has the API behind a
    /// path. The host is an address or a name that resolves.
    pub endpoints: Vec<String>,
    /// Bytes captured of a body on connections to known clusters, beyond `capture.bytes`, so that the
    /// items of bulk requests can be counted: 4096 to 16 MiB; 0 for none.
    #[serde(with = "units::bytes")]
    pub body_bytes: u32,
    /// Whether spans and the table of slow calls show queries, every literal replaced by `?`.
    pub query_text: bool,
    /// Asking clusters for their health.
    pub poll: PollConfig,
}

impl Default for ElasticsearchConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            body_bytes: 1024 * 1024,
            query_text: false,
            poll: PollConfig::default(),
        }
    }
}

/// Asking clusters for their health, for those that nobody else asks. Off while `endpoints` is empty.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PollConfig {
    /// `http://host:port`, with a path where a proxy has the API behind one.
    pub endpoints: Vec<String>,
    /// How often each is asked.
    #[serde(with = "units::duration")]
    pub interval: Duration,
    /// File with the value of the `Authorization` header: `ApiKey …`, `Basic …`.
    pub authorization_file: Option<PathBuf>,
}

impl Default for PollConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            interval: Duration::from_secs(30),
            authorization_file: None,
        }
    }
}

/// CPU profiles: what a request may ask for, and what is taken without being asked.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProfileConfig {
    /// Longest profile that a request may ask for.
    #[serde(with = "units::duration")]
    pub max_duration: Duration,
    /// Highest sampling rate that a request may ask for, a CPU and second.
    pub max_hz: u32,
    /// Continuous profiling.
    pub continuous: ContinuousConfig,
    /// Where what it keeps is sent to.
    pub push: PushConfig,
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            max_duration: Duration::from_secs(120),
            max_hz: MAX_HZ,
            continuous: ContinuousConfig::default(),
            push: PushConfig::default(),
        }
    }
}

/// Continuous profiling of everything that runs, kept in memory.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContinuousConfig {
    /// Samples a second and CPU; 0 switches it off.
    pub hz: u32,
    /// Length of a window: how finely a range of time can be asked for.
    #[serde(with = "units::duration")]
    pub window: Duration,
    /// How long windows are kept.
    #[serde(with = "units::duration")]
    pub retention: Duration,
    /// Memory that they may take, bytes; beyond, the oldest goes before its time.
    #[serde(with = "units::bytes")]
    pub max_bytes: u32,
}

impl Default for ContinuousConfig {
    fn default() -> Self {
        Self {
            hz: 19,
            window: Duration::from_secs(10),
            retention: Duration::from_secs(3600),
            max_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Servers that what continuous profiling keeps is sent to.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushConfig {
    /// Base URL of a Pyroscope server, `http://host:port`.
    pub pyroscope: Option<String>,
    /// Base URL of a Parca server, `http://host:port`.
    pub parca: Option<String>,
    /// Headers (gRPC: metadata) sent with each message.
    pub headers: BTreeMap<String, String>,
    /// How often.
    #[serde(with = "units::duration")]
    pub interval: Duration,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            pyroscope: None,
            parca: None,
            headers: BTreeMap::new(),
            interval: Duration::from_secs(15),
        }
    }
}

#[cfg(test)]
mod tests;
