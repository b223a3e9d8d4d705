//! Builds a [`Config`]: defaults, then the file, then the environment, then flags.

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::refusal::{hidden, not_a_mapping, not_allowed, one_line, refused};
use super::units::socket_address::SOCKET_ADDRESS;
use super::validate::{self, endpoint_url};
use super::{Config, ConfigError, LogFormat, LogLevel, OtlpProtocol};
use crate::cli::RunArgs;

/// Longest file that is read: a larger one is not a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl Config {
    /// The configuration of `telltale run`: `args` win over the process's environment, the
    /// environment over the file, the file over the defaults.
    ///
    /// # Errors
    ///
    /// The first value that is not allowed, as one line: see [`ConfigError`].
    pub fn from_cli(args: &RunArgs) -> Result<Self, ConfigError> {
        Self::load(args, |name| std::env::var(name).ok())
    }

    /// As [`Config::from_cli`], with the environment given.
    ///
    /// # Errors
    ///
    /// As [`Config::from_cli`].
    pub fn load(
        args: &RunArgs,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        // An empty variable counts as unset (OpenTelemetry specification, "Parsing empty value").
        let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
        let path = args
            .config
            .clone()
            .or_else(|| environment("TELLTALE_CONFIG").map(PathBuf::from));
        let mut config = match path {
            Some(path) => Self::from_file(&path)?,
            None => Self::default(),
        };
        config.apply_environment(&environment)?;
        config.apply_flags(args)?;
        Ok(config)
    }

    /// Reads a file onto the defaults.
    ///
    /// # Errors
    ///
    /// As [`Config::from_cli`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if metadata.len() > MAX_FILE_BYTES {
            return Err(unreadable(std::io::Error::other("larger than 1 MiB")));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::from_yaml(&text, path)
    }

    /// Reads YAML onto the defaults; `path` is for errors alone.
    ///
    /// # Errors
    ///
    /// As [`Config::from_cli`].
    pub fn from_yaml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let source_name = path.display().to_string();
        // Through an untyped value, whose errors repeat what was written.
        let options = serde_saphyr::options! {
            // `off` is a level and a mode here, as YAML 1.2 has it, and not `false`.
            strict_booleans: true,
        };
        let mut value: Value =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| {
                ConfigError::Syntax {
                    path: path.to_owned(),
                    reason: one_line(&error.without_snippet().to_string()),
                }
            })?;
        if value.is_null() {
            value = Value::Object(serde_json::Map::new());
        }
        let defaults = serde_json::to_value(Self::default()).unwrap_or_default();
        check_shape(&value, &defaults, "", &source_name)?;
        drop_nulls(&mut value, &defaults);
        let config: Self = serde_path_to_error::deserialize(&value)
            .map_err(|error| refused(&error, &value, &source_name))?;
        validate::check(&config, &source_name)?;
        config.normalized(&source_name)
    }

    fn normalized(mut self, source_name: &str) -> Result<Self, ConfigError> {
        for (key, endpoint) in [
            ("otlp.endpoint", &mut self.otlp.endpoint),
            ("otlp.traces_endpoint", &mut self.otlp.traces_endpoint),
            ("profile.push.pyroscope", &mut self.profile.push.pyroscope),
            ("profile.push.parca", &mut self.profile.push.parca),
        ] {
            if let Some(url) = endpoint {
                *url = endpoint_url(url, source_name, key)?;
            }
        }
        let polled = self.elasticsearch.poll.endpoints.iter_mut();
        for (index, url) in polled.enumerate() {
            let key = format!("elasticsearch.poll.endpoints[{index}]");
            *url = endpoint_url(url, source_name, &key)?;
        }
        Ok(self)
    }

    fn apply_environment(
        &mut self,
        environment: &impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        if let Some((name, value)) = first(environment, &["TELLTALE_LISTEN"]) {
            self.listen = listen(&value, "environment", name)?;
        }
        if let Some((name, value)) = first(environment, &["TELLTALE_LOG_FORMAT"]) {
            self.log.format = named::<LogFormat>(&value, name)?;
        }
        if let Some((name, value)) = first(environment, &["TELLTALE_LOG_LEVEL"]) {
            self.log.level = named::<LogLevel>(&value, name)?;
        }
        let base = environment("OTEL_EXPORTER_OTLP_ENDPOINT");
        if let Some(url) = base {
            self.otlp.endpoint = Some(endpoint_url(
                &url,
                "environment",
                "OTEL_EXPORTER_OTLP_ENDPOINT",
            )?);
            // The file's URL for traces is of a lower layer.
            self.otlp.traces_endpoint = None;
        }
        if let Some(url) = environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            self.otlp.traces_endpoint = Some(endpoint_url(
                &url,
                "environment",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            )?);
        }
        if let Some((name, value)) = first(
            environment,
            &[
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "OTEL_EXPORTER_OTLP_PROTOCOL",
            ],
        ) {
            self.otlp.protocol = match value.as_str() {
                "grpc" => OtlpProtocol::Grpc,
                "http/protobuf" => OtlpProtocol::HttpProtobuf,
                _ => {
                    return Err(not_allowed(
                        "environment",
                        name,
                        &value,
                        "grpc, http/protobuf",
                    ));
                }
            };
        }
        if let Some((name, value)) = first(
            environment,
            &[
                "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
                "OTEL_EXPORTER_OTLP_TIMEOUT",
            ],
        ) {
            let milliseconds = value.parse().ok().filter(|&ms: &u64| ms > 0);
            self.otlp.timeout = milliseconds.map(Duration::from_millis).ok_or_else(|| {
                not_allowed(
                    "environment",
                    name,
                    &value,
                    "milliseconds, a whole number from 1",
                )
            })?;
        }
        if let Some((name, value)) = first(
            environment,
            &[
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
                "OTEL_EXPORTER_OTLP_HEADERS",
            ],
        ) {
            for pair in value
                .split(',')
                .map(str::trim)
                .filter(|pair| !pair.is_empty())
            {
                let (key, text) = split_header(pair).ok_or_else(|| hidden("environment", name))?;
                if !validate::header(&key, &text) {
                    return Err(hidden("environment", name));
                }
                self.otlp.headers.insert(key, text);
            }
        }
        Ok(())
    }

    fn apply_flags(&mut self, args: &RunArgs) -> Result<(), ConfigError> {
        if let Some(text) = &args.listen {
            self.listen = listen(text, "command line", "--listen")?;
        }
        if let Some(url) = &args.otlp_endpoint {
            self.otlp.endpoint = Some(endpoint_url(url, "command line", "--otlp-endpoint")?);
            self.otlp.traces_endpoint = None;
        }
        if let Some(format) = args.log_format {
            self.log.format = format;
        }
        if let Some(level) = args.log_level {
            self.log.level = level;
        }
        Ok(())
    }
}

/// The first of `names` that is set, with its value.
fn first<'a>(
    environment: &impl Fn(&str) -> Option<String>,
    names: &[&'a str],
) -> Option<(&'a str, String)> {
    names
        .iter()
        .find_map(|name| environment(name).map(|value| (*name, value)))
}

fn listen(text: &str, source: &str, key: &str) -> Result<std::net::SocketAddr, ConfigError> {
    text.parse()
        .map_err(|_| not_allowed(source, key, text, SOCKET_ADDRESS))
}

fn named<T: clap::ValueEnum>(text: &str, name: &str) -> Result<T, ConfigError> {
    T::from_str(text, true).map_err(|_| {
        let allowed: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|variant| Some(variant.to_possible_value()?.get_name().to_owned()))
            .collect();
        not_allowed("environment", name, text, &allowed.join(", "))
    })
}

/// `key=value`, the value percent-encoded (OpenTelemetry specification, "Specifying headers via
/// environment variables").
fn split_header(pair: &str) -> Option<(String, String)> {
    let (key, value) = pair.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    Some((key.trim().to_owned(), value.into_owned()))
}

/// serde takes a list for a structure too, its members in order of declaration. Nobody who writes
/// one means that.
fn check_shape(
    value: &Value,
    defaults: &Value,
    key: &str,
    source_name: &str,
) -> Result<(), ConfigError> {
    match (value, defaults) {
        (Value::Object(map), _) => map.iter().try_for_each(|(name, item)| {
            let separator = if key.is_empty() { "" } else { "." };
            let path = format!("{key}{separator}{name}");
            check_shape(item, &defaults[name], &path, source_name)
        }),
        (Value::Array(items), Value::Array(_)) => {
            items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| match item {
                    Value::Array(_) => {
                        Err(not_a_mapping(item, &format!("{key}[{index}]"), source_name))
                    }
                    _ => Ok(()),
                })
        }
        (_, Value::Object(_)) if !value.is_null() => Err(not_a_mapping(value, key, source_name)),
        _ => Ok(()),
    }
}

/// A key without a value (`otlp:` with all below it commented out) leaves the default. Only keys
/// that exist: others have to reach the error for unknown ones.
fn drop_nulls(value: &mut Value, defaults: &Value) {
    let (Value::Object(map), Value::Object(known)) = (value, defaults) else {
        return;
    };
    map.retain(|key, item| !(item.is_null() && known.contains_key(key)));
    for (key, item) in map {
        if let Some(default) = known.get(key) {
            drop_nulls(item, default);
        }
    }
}
