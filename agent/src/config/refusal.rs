//! Puts what is wrong into one line that names the key, the value and what is allowed.

use serde_json::Value;

use super::ConfigError;
use super::validate::HEADERS;

/// Most of a refused value that an error repeats.
const MAX_SHOWN_CHARS: usize = 80;
const MAPPING: &str = "a mapping of keys to values";

pub(super) fn not_allowed(source: &str, key: &str, value: &str, allowed: &str) -> ConfigError {
    ConfigError::Value {
        source_name: source.to_owned(),
        key: key.to_owned(),
        value: format!("`{}`", shown(value)),
        allowed: allowed.to_owned(),
    }
}

/// An error about a value that may be a credential.
pub(super) fn hidden(source: &str, key: &str) -> ConfigError {
    ConfigError::Value {
        source_name: source.to_owned(),
        key: key.to_owned(),
        value: "malformed (not shown, it may hold a credential)".to_owned(),
        allowed: HEADERS.to_owned(),
    }
}

pub(super) fn not_a_mapping(value: &Value, key: &str, source_name: &str) -> ConfigError {
    let key = if key.is_empty() {
        "the whole file"
    } else {
        key
    };
    not_allowed(source_name, key, &text_of(value), MAPPING)
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Puts serde's error into our words.
pub(super) fn refused(
    error: &serde_path_to_error::Error<serde_json::Error>,
    root: &Value,
    source_name: &str,
) -> ConfigError {
    let message = error.inner().to_string();
    let key = error.path().to_string();
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let (name, expected) = rest.split_once('`').unwrap_or((rest, ""));
        let allowed: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        return ConfigError::UnknownKey {
            source_name: source_name.to_owned(),
            suggestion: closest(name, &allowed).map(|near| join_parent(&key, name, near)),
            key: join_parent(&key, name, name),
            allowed: allowed.join(", "),
        };
    }
    let pointer: String = error
        .path()
        .iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Seq { index } => Some(format!("/{index}")),
            serde_path_to_error::Segment::Map { key } => {
                Some(format!("/{}", key.replace('~', "~0").replace('/', "~1")))
            }
            _ => None,
        })
        .collect();
    if key.starts_with("otlp.headers") {
        return hidden(source_name, &key);
    }
    let value = root
        .pointer(&pointer)
        .map_or_else(String::new, |value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
    let allowed = message
        .split_once("expected ")
        .map_or(message.as_str(), |(_, expected)| expected);
    let allowed = if message.starts_with("unknown variant") {
        allowed.replace('`', "")
    } else {
        plain_type(allowed).to_owned()
    };
    not_allowed(source_name, &key, &value, &allowed)
}

/// serde's name of a Rust type as a user would say it.
fn plain_type(expected: &str) -> &str {
    match expected {
        "u16" => "a whole number, 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f64" => "a number",
        "a sequence" => "a list",
        "a map" => MAPPING,
        other if other.starts_with("struct ") => MAPPING,
        other => other,
    }
}

/// `key` with its last segment, `name`, replaced by `other`.
fn join_parent(key: &str, name: &str, other: &str) -> String {
    let parent = key.strip_suffix(name).unwrap_or(key).trim_end_matches('.');
    if parent.is_empty() {
        other.to_owned()
    } else {
        format!("{parent}.{other}")
    }
}

/// The name that was probably meant, where one is near.
fn closest<'a>(name: &str, allowed: &[&'a str]) -> Option<&'a str> {
    allowed
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

fn shown(value: &str) -> String {
    let clean = one_line(value);
    if clean.chars().count() <= MAX_SHOWN_CHARS {
        return clean;
    }
    clean.chars().take(MAX_SHOWN_CHARS).chain(['…']).collect()
}

pub(super) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().filter(|character| !character.is_control()));
    }
    line
}
