//! The agent's own log, on standard error.

use std::io::{IsTerminal, stderr};

use tracing::Subscriber;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Sends everything that `tracing` and `log` say to standard error, for the rest of the process's life.
///
/// # Errors
///
/// A subscriber was set before.
pub fn start(config: &LogConfig) -> Result<(), TryInitError> {
    subscriber(config, stderr, stderr().is_terminal()).try_init()
}

/// Writes events to `writer`, with colours where it is a terminal.
fn subscriber<W>(
    config: &LogConfig,
    writer: W,
    is_terminal: bool,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let level = match config.level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let layer = fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry().with(level);
    match config.format {
        LogFormat::Text => Box::new(registry.with(layer.with_ansi(is_terminal))),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false);
            Box::new(registry.with(layer))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;

    /// What two events, of `info` and of `debug`, leave in the log.
    fn written(format: LogFormat, level: LogLevel) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let file = Arc::new(File::create(&path).unwrap());
        let config = LogConfig { format, level };
        tracing::subscriber::with_default(subscriber(&config, file, false), || {
            tracing::info!(listen = "127.0.0.1:9464", "observing\nall");
            tracing::debug!("detail");
        });
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn text_is_one_plain_line_an_event_for_people() {
        let text = written(LogFormat::Text, LogLevel::Debug);
        assert!(
            text.contains("INFO") && text.contains("listen=\"127.0.0.1:9464\""),
            "{text}"
        );
        assert!(text.contains("DEBUG") && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = written(LogFormat::Json, LogLevel::Info);
        assert_eq!(text.lines().count(), 1, "{text}");
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["level"], "INFO");
        assert_eq!(event["message"], "observing\nall");
        assert_eq!(event["listen"], "127.0.0.1:9464");
    }

    #[test]
    fn what_is_below_the_level_is_not_written() {
        assert_eq!(written(LogFormat::Text, LogLevel::Warn), "");
        assert_eq!(written(LogFormat::Json, LogLevel::Off), "");
    }
}
