//! What types cannot say: ranges, orders, names.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Uri};

use super::refusal::{hidden, not_allowed};
use super::{Config, ConfigError, TargetRule};
use crate::profiler::{MAX_HZ, MAX_SECONDS};

/// Histograms whose buckets can be set, by their names on the metrics page.
pub const HISTOGRAMS: [&str; 14] = [
    "http_server_request_duration_seconds",
    "http_client_request_duration_seconds",
    "http_server_time_to_first_byte_seconds",
    "http_client_time_to_first_byte_seconds",
    "http_server_queue_time_seconds",
    "http_server_delivery_time_seconds",
    "http_server_request_body_size_bytes",
    "http_server_response_body_size_bytes",
    "http_client_request_body_size_bytes",
    "http_client_response_body_size_bytes",
    "db_client_operation_duration_seconds",
    "elasticsearch_took_seconds",
    "elasticsearch_overhead_seconds",
    "elasticsearch_server_operation_duration_seconds",
];

pub(super) const HEADERS: &str = "header names and values as HTTP allows them (`key=value,…`)";
const MAX_BUCKETS: usize = 64;

/// Checks a configuration that was read from `source_name`.
pub(super) fn check(config: &Config, source_name: &str) -> Result<(), ConfigError> {
    let otlp = &config.otlp;
    let capture = &config.capture;
    let checker = Checker { source_name };
    checker.range("otlp.queue_spans", otlp.queue_spans, 1, 1 << 20)?;
    checker.range("otlp.batch_spans", otlp.batch_spans, 1, otlp.queue_spans)?;
    checker.duration("otlp.timeout", otlp.timeout, 1, 600_000)?;
    checker.duration("otlp.interval", otlp.interval, 10, 600_000)?;
    for (name, value) in &otlp.headers {
        if !header(name, value) {
            return Err(hidden(source_name, &format!("otlp.headers.{name}")));
        }
    }
    for (list, rules) in [
        ("include", &config.targets.include),
        ("exclude", &config.targets.exclude),
    ] {
        for (index, rule) in rules.iter().enumerate() {
            checker.rule(&format!("targets.{list}[{index}]"), rule)?;
        }
    }
    checker.range(
        "routes.max_per_service",
        config.routes.max_per_service,
        1,
        10_000,
    )?;
    for (service, templates) in &config.routes.templates {
        let key = format!("routes.templates.{service}");
        checker.glob(&key, service)?;
        for template in templates {
            checker.template(&key, template)?;
        }
    }
    checker.range(
        "metrics.max_series",
        config.metrics.max_series,
        100,
        1_000_000,
    )?;
    for (name, bounds) in &config.metrics.buckets {
        checker.buckets(name, bounds)?;
    }
    checker.range("capture.bytes", capture.bytes, 256, 16_384)?;
    checker.range("capture.rings", capture.rings, 0, 8)?;
    if config.elasticsearch.body_bytes != 0 {
        let bytes = config.elasticsearch.body_bytes;
        checker.range("elasticsearch.body_bytes", bytes, 4096, 16 << 20)?;
    }
    checker.range("capture.ring_bytes", capture.ring_bytes, 64 << 10, 64 << 20)?;
    if !capture.ring_bytes.is_power_of_two() {
        return Err(checker.error(
            "capture.ring_bytes",
            &capture.ring_bytes.to_string(),
            "a power of two, 64KiB to 64MiB",
        ));
    }
    checker.range(
        "capture.max_connections",
        capture.max_connections,
        1024,
        1 << 20,
    )?;
    for (index, endpoint) in config.elasticsearch.endpoints.iter().enumerate() {
        let (address, prefix) = endpoint
            .find('/')
            .map_or((endpoint.as_str(), ""), |at| endpoint.split_at(at));
        let is_prefix = prefix.is_ascii() && !prefix.contains(['?', '#', ' ']);
        if !is_host_and_port(address) || !is_prefix {
            let key = format!("elasticsearch.endpoints[{index}]");
            let allowed = "host:port or host:port/prefix (`10.0.0.7:9200`, `proxy:80/es`)";
            return Err(checker.error(&key, endpoint, allowed));
        }
    }
    let poll = &config.elasticsearch.poll;
    // Less than the time after which what a cluster said is no longer shown.
    checker.duration("elasticsearch.poll.interval", poll.interval, 1_000, 120_000)?;
    if let Some(path) = &poll.authorization_file
        && !path.is_file()
    {
        let key = "elasticsearch.poll.authorization_file";
        return Err(checker.error(key, &path.display().to_string(), "a file"));
    }
    checker.duration(
        "profile.max_duration",
        config.profile.max_duration,
        1_000,
        MAX_SECONDS * 1_000,
    )?;
    checker.range("profile.max_hz", config.profile.max_hz, 1, MAX_HZ)?;
    let continuous = &config.profile.continuous;
    checker.range("profile.continuous.hz", continuous.hz, 0, MAX_HZ)?;
    checker.duration(
        "profile.continuous.window",
        continuous.window,
        1_000,
        600_000,
    )?;
    checker.duration(
        "profile.continuous.retention",
        continuous.retention,
        10_000,
        24 * 3_600_000,
    )?;
    checker.range(
        "profile.continuous.max_bytes",
        continuous.max_bytes,
        1 << 20,
        1 << 30,
    )?;
    let push = &config.profile.push;
    checker.duration("profile.push.interval", push.interval, 1_000, 600_000)?;
    for (name, value) in &push.headers {
        if !header(name, value) {
            return Err(hidden(source_name, &format!("profile.push.headers.{name}")));
        }
    }
    let is_pushed = push.pyroscope.is_some() || push.parca.is_some();
    if is_pushed && continuous.hz == 0 {
        let allowed = "1 to 997 where profile.push names a server";
        return Err(checker.error("profile.continuous.hz", "0", allowed));
    }
    Ok(())
}

/// Whether HTTP allows this header; gRPC metadata allows no more.
pub(super) fn header(name: &str, value: &str) -> bool {
    HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok()
}

/// An `http` URL; `host:port` alone gets `http://`. The exporter is built without TLS: an `https`
/// URL would be taken here and fail at each export.
pub(super) fn endpoint_url(text: &str, source: &str, key: &str) -> Result<String, ConfigError> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let allowed = "http://host:port (TLS is not built in)";
    let uri: Uri = url
        .parse()
        .map_err(|_| not_allowed(source, key, text, allowed))?;
    let well_formed = uri.scheme_str() == Some("http")
        && uri.host().is_some_and(|host| !host.is_empty())
        // A port that is there but is no number up to 65535 parses as none.
        && uri.authority().is_some_and(|authority| {
            let after_host = authority.as_str().rsplit(']').next().unwrap_or_default();
            !after_host.contains(':') || authority.port_u16().is_some()
        })
        // Userinfo would be a credential in a place that is logged.
        && !uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if !well_formed {
        return Err(not_allowed(source, key, text, allowed));
    }
    Ok(url)
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let host_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        !host.is_empty()
            && host.bytes().all(host_allowed)
            && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'))
            && port.parse().is_ok_and(|port: u16| port > 0)
    })
}

struct Checker<'a> {
    source_name: &'a str,
}

impl Checker<'_> {
    fn error(&self, key: &str, value: &str, allowed: &str) -> ConfigError {
        not_allowed(self.source_name, key, value, allowed)
    }

    fn range<T: Copy + PartialOrd + std::fmt::Display>(
        &self,
        key: &str,
        value: T,
        least: T,
        most: T,
    ) -> Result<(), ConfigError> {
        if value < least || value > most {
            return Err(self.error(key, &value.to_string(), &format!("{least} to {most}")));
        }
        Ok(())
    }

    fn duration(
        &self,
        key: &str,
        value: Duration,
        least_ms: u64,
        most_ms: u64,
    ) -> Result<(), ConfigError> {
        let allowed_range = Duration::from_millis(least_ms)..=Duration::from_millis(most_ms);
        if !allowed_range.contains(&value) {
            return Err(self.error(
                key,
                &format!("{value:?}"),
                &format!("{least_ms}ms to {}s", most_ms / 1000),
            ));
        }
        Ok(())
    }

    fn glob(&self, key: &str, pattern: &str) -> Result<(), ConfigError> {
        crate::selection::glob(pattern)
            .map(drop)
            .map_err(|reason| self.error(key, pattern, &format!("a glob ({reason})")))
    }

    fn rule(&self, key: &str, rule: &TargetRule) -> Result<(), ConfigError> {
        let fields = [
            ("executable", &rule.executable),
            ("command_line", &rule.command_line),
            ("service", &rule.service),
            ("container", &rule.container),
        ];
        for (name, pattern) in fields {
            if let Some(pattern) = pattern {
                let key = format!("{key}.{name}");
                if pattern.is_empty() {
                    return Err(self.error(&key, pattern, "a glob that is not empty"));
                }
                self.glob(&key, pattern)?;
            }
        }
        if rule.port == Some(0) {
            return Err(self.error(&format!("{key}.port"), "0", "1 to 65535"));
        }
        // An empty rule would select everything, which nobody who writes one means.
        if *rule == TargetRule::default() {
            let allowed = "at least one of executable, command_line, port, service, container";
            return Err(self.error(key, "{}", allowed));
        }
        Ok(())
    }

    fn template(&self, key: &str, template: &str) -> Result<(), ConfigError> {
        let well_formed = template.starts_with('/')
            && template.len() <= 512
            && !template.contains(['?', '#'])
            && template.split('/').all(|segment| {
                let braces = segment.matches(['{', '}']).count();
                braces == 0 || braces == 2 && segment.starts_with('{') && segment.ends_with('}')
            });
        if !well_formed {
            let allowed = "paths that begin with / and whose variable segments are whole, in \
                           braces (`/users/{id}`)";
            return Err(self.error(key, template, allowed));
        }
        Ok(())
    }

    fn buckets(&self, name: &str, bounds: &[f64]) -> Result<(), ConfigError> {
        let key = format!("metrics.buckets.{name}");
        if !HISTOGRAMS.contains(&name) {
            return Err(ConfigError::UnknownKey {
                source_name: self.source_name.to_owned(),
                key,
                suggestion: None,
                allowed: HISTOGRAMS.join(", "),
            });
        }
        let finite_and_positive = bounds.iter().all(|bound| bound.is_finite() && *bound > 0.0);
        let increasing = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if bounds.is_empty() || bounds.len() > MAX_BUCKETS || !finite_and_positive || !increasing {
            return Err(self.error(
                &key,
                &format!("{bounds:?}"),
                "1 to 64 finite numbers above 0, each larger than the one before",
            ));
        }
        Ok(())
    }
}
