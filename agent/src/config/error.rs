//! What can be wrong with a configuration. Each error prints as one line that names the key, the
//! value and what is allowed.

use std::path::PathBuf;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag or argument that clap refused.
    #[error("{0}")]
    Usage(String),
    /// The file could not be read.
    #[error("--config {}: cannot read the file: {source}", path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("{}: not valid YAML: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, on one line, with line and column.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{source_name}: unknown key `{key}`{}; allowed here: {allowed}", hint(suggestion.as_ref()))]
    UnknownKey {
        /// The file.
        source_name: String,
        /// Dotted path of the key.
        key: String,
        /// The closest key that exists.
        suggestion: Option<String>,
        /// All keys that exist there.
        allowed: String,
    },
    /// A value that is not allowed.
    #[error("{source_name}: `{key}` is {value}; allowed: {allowed}")]
    Value {
        /// The file, or the environment variable's or flag's kind.
        source_name: String,
        /// Dotted path of the key, or the name of the variable or flag.
        key: String,
        /// As given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

fn hint(suggestion: Option<&String>) -> String {
    suggestion.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
