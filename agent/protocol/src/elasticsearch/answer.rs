//! What an answer's body tells, and whether it can only be a cluster's.

use crate::observation::{ClusterHealth, SearchProduct};

use super::json::{Kind, Scanner};

/// A cluster's name is a label, so a longer one is left out.
const MAX_CLUSTER_NAME_BYTES: usize = 128;

/// Top-level members of a JSON answer. Of a member that comes twice, the first counts, so that
/// knowing more of a body never changes what was known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    pub(super) took_ms: Option<u64>,
    pub(super) timed_out: Option<bool>,
    pub(super) errors: Option<bool>,
    pub(super) health: Option<ClusterHealth>,
    cluster_name: Option<&'a [u8]>,
    status_code: Option<u64>,
    tagline: Option<&'a [u8]>,
    version: Version<'a>,
    /// Members whose presence and kind is all that matters.
    has_shards: bool,
    has_items: bool,
    has_responses: bool,
    has_index: bool,
    has_id: bool,
    has_found: bool,
    has_result: bool,
    has_count: bool,
    has_number_of_nodes: bool,
    has_root_cause: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Version<'a> {
    number: Option<&'a [u8]>,
    distribution: Option<&'a [u8]>,
}

impl<'a> Answer<'a> {
    /// Reads as much as there is.
    pub(super) fn scan(text: &'a [u8]) -> Self {
        let mut answer = Self::default();
        // Where the text ends or stops being JSON, what came before it still holds.
        let _ended = Scanner::new(text).object(|value, key| answer.member(value, key));
        answer
    }

    fn member(&mut self, value: &mut Scanner<'a>, key: &[u8]) -> Option<()> {
        let kind = value.peek()?;
        match (key, kind) {
            (b"took", Kind::Number) => first(&mut self.took_ms, number(value.word()?)),
            (b"timed_out", Kind::True | Kind::False) => {
                first(&mut self.timed_out, boolean(value.word()?));
            }
            (b"errors", Kind::True | Kind::False) => {
                first(&mut self.errors, boolean(value.word()?));
            }
            (b"status", Kind::String) => first(&mut self.health, health(value.raw_string()?)),
            (b"status", Kind::Number) => first(&mut self.status_code, number(value.word()?)),
            (b"cluster_name", Kind::String) => {
                first(&mut self.cluster_name, Some(value.raw_string()?));
            }
            (b"tagline", Kind::String) => first(&mut self.tagline, Some(value.raw_string()?)),
            (b"version", Kind::Object) => {
                let version = &mut self.version;
                value.object(|value, key| {
                    let kind = value.peek()?;
                    match (key, kind) {
                        (b"number", Kind::String) => {
                            first(&mut version.number, Some(value.raw_string()?));
                        }
                        (b"distribution", Kind::String) => {
                            first(&mut version.distribution, Some(value.raw_string()?));
                        }
                        _ => value.skip()?,
                    }
                    Some(())
                })?;
            }
            (b"_shards", Kind::Object) => {
                self.has_shards |= has_member(value, b"total", Kind::Number)?;
            }
            (b"error", Kind::Object) => {
                self.has_root_cause |= has_member(value, b"root_cause", Kind::Array)?;
            }
            _ => {
                // An array of answers is seen by its beginning: most of it was not captured.
                match (key, kind) {
                    (b"items", Kind::Array) => self.has_items = true,
                    (b"responses", Kind::Array) => self.has_responses = true,
                    (b"_index", Kind::String) => self.has_index = true,
                    (b"_id", Kind::String) => self.has_id = true,
                    (b"found", Kind::True | Kind::False) => self.has_found = true,
                    (b"result", Kind::String) => self.has_result = true,
                    (b"count", Kind::Number) => self.has_count = true,
                    (b"number_of_nodes", Kind::Number) => self.has_number_of_nodes = true,
                    _ => {}
                }
                value.skip()?;
            }
        }
        Some(())
    }

    /// The cluster's name, where it was read and needs no unescaping.
    pub(super) fn cluster_name(&self) -> Option<Box<str>> {
        let name = self.cluster_name?;
        if name.len() > MAX_CLUSTER_NAME_BYTES || name.contains(&b'\\') {
            return None;
        }
        std::str::from_utf8(name).ok().map(Into::into)
    }

    /// The product, from the answer to `GET /`.
    ///
    /// Elasticsearch forks and OpenSearch's compatibility mode change `number`; `distribution` and
    /// the tagline are not configurable.
    pub(super) fn product_of_root(&self) -> Option<SearchProduct> {
        self.version.number?;
        match (self.tagline?, self.version.distribution) {
            (_, Some(b"opensearch")) => Some(SearchProduct::OpenSearch),
            (b"You Know, for Search", None) => Some(SearchProduct::Elasticsearch),
            _ => None,
        }
    }

    /// Whether only a cluster answers `operation` like this: several members together that no other
    /// service has by chance. `status` is the response's code.
    pub(super) fn has_shape_of(&self, operation: &str, status: u16) -> bool {
        // Every error of the servers has this form, with the response's code inside.
        if self.has_root_cause && self.status_code == Some(u64::from(status)) {
            return true;
        }
        let took = self.took_ms.is_some();
        let document = self.has_index && self.has_id;
        match operation {
            "search" | "scroll" => took && self.timed_out.is_some() && self.has_shards,
            "bulk" => took && self.errors.is_some() && self.has_items,
            "msearch" => took && self.has_responses,
            "count" => self.has_count && self.has_shards,
            "get" => document && self.has_found,
            "index" | "create" | "update" | "delete" => {
                document && self.has_result && self.has_shards
            }
            "cluster.health" => {
                self.cluster_name.is_some()
                    && self.health.is_some()
                    && self.timed_out.is_some()
                    && self.has_number_of_nodes
            }
            _ => false,
        }
    }
}

fn first<T>(member: &mut Option<T>, value: Option<T>) {
    if member.is_none() {
        *member = value;
    }
}

/// Reads an object for one member of its own. (Where the object is cut, the scan ends anyhow.)
fn has_member(value: &mut Scanner<'_>, name: &[u8], kind: Kind) -> Option<bool> {
    let mut found = false;
    value.object(|value, key| {
        found |= key == name && value.peek()? == kind;
        value.skip()
    })?;
    Some(found)
}

fn number(word: &[u8]) -> Option<u64> {
    // `parse` would take a sign as well.
    let digits = word.iter().all(u8::is_ascii_digit);
    if digits {
        std::str::from_utf8(word).ok()?.parse().ok()
    } else {
        None
    }
}

fn boolean(word: &[u8]) -> Option<bool> {
    match word {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

fn health(status: &[u8]) -> Option<ClusterHealth> {
    match status {
        b"green" => Some(ClusterHealth::Green),
        b"yellow" => Some(ClusterHealth::Yellow),
        b"red" => Some(ClusterHealth::Red),
        _ => None,
    }
}
