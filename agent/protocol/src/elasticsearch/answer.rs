//! What an answer's body tells, and whether it can only be a cluster's.

use crate::observation::{ClusterHealth, ClusterReport, SearchProduct, Shards};

use super::bulk::Tally;
use super::json::{Kind, Scanner};

/// Names are labels, so longer ones are left out.
const MAX_NAME_BYTES: usize = 128;

/// Longest `type` of an error that is taken for one.
const MAX_ERROR_TYPE_BYTES: usize = 64;

/// Top-level members of a JSON answer. Of a member that comes twice, the first counts, so that
/// knowing more of a body never changes what was known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer<'a> {
    pub(super) took_ms: Option<u64>,
    pub(super) timed_out: Option<bool>,
    pub(super) errors: Option<bool>,
    pub(super) hits: Option<u64>,
    pub(super) shards: Option<Shards>,
    /// Items of a bulk answer, as far as they were read.
    pub(super) items: Tally,
    /// Whether those are all of them.
    pub(super) items_whole: bool,
    /// Answers in an `msearch`'s, where all of them were read.
    pub(super) responses: Option<u64>,
    /// Whether the answer was read to its end, or as far as anything was wanted of it.
    pub(super) ended: bool,
    /// `error` is a string: what the servers say of a path or a method that they don't know.
    pub(super) has_error_text: bool,
    health: Option<ClusterHealth>,
    cluster_name: Option<&'a [u8]>,
    nodes: Option<u64>,
    active_shards: Option<u64>,
    unassigned_shards: Option<u64>,
    pending_tasks: Option<u64>,
    error_type: Option<&'a [u8]>,
    status_code: Option<u64>,
    tagline: Option<&'a [u8]>,
    version: Version<'a>,
    /// Members whose presence and kind is all that matters.
    is_inside_response: bool,
    has_shards_total: bool,
    has_items: bool,
    has_responses: bool,
    has_index: bool,
    has_id: bool,
    has_found: bool,
    has_result: bool,
    has_count: bool,
    has_root_cause: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Version<'a> {
    number: Option<&'a [u8]>,
    distribution: Option<&'a [u8]>,
}

impl<'a> Answer<'a> {
    /// Reads as much as there is, and no further than the totals of a search: its hits are most of it.
    pub(super) fn scan(text: &'a [u8]) -> Self {
        let mut answer = Self::default();
        // Where the text ends or stops being JSON, what came before it still holds.
        let read = Scanner::new(text).object(|value, key| answer.member(value, key));
        answer.ended = read.is_some() || answer.is_search_told();
        answer
    }

    fn is_search_told(&self) -> bool {
        self.took_ms.is_some()
            && self.timed_out.is_some()
            && self.shards.is_some()
            && self.hits.is_some()
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
            (b"number_of_nodes", Kind::Number) => first(&mut self.nodes, number(value.word()?)),
            (b"active_shards", Kind::Number) => {
                first(&mut self.active_shards, number(value.word()?));
            }
            (b"unassigned_shards", Kind::Number) => {
                first(&mut self.unassigned_shards, number(value.word()?));
            }
            (b"number_of_pending_tasks", Kind::Number) => {
                first(&mut self.pending_tasks, number(value.word()?));
            }
            (b"tagline", Kind::String) => first(&mut self.tagline, Some(value.raw_string()?)),
            (b"version", Kind::Object) => self.read_version(value)?,
            (b"_shards", Kind::Object) => self.read_shards(value)?,
            (b"hits", Kind::Object) => self.read_hits(value)?,
            (b"error", Kind::Object) => self.read_error(value)?,
            (b"error", Kind::String) => {
                value.raw_string()?;
                self.has_error_text = true;
            }
            // An asynchronous search has the search's own answer inside.
            (b"response", Kind::Object) if !self.is_inside_response => {
                self.is_inside_response = true;
                value.object(|value, key| self.member(value, key))?;
            }
            (b"items", Kind::Array) => {
                // Seen by its beginning: most of it may not be captured.
                self.has_items = true;
                let (items, errors) = (&mut self.items, self.errors);
                value.array(|item| items.read_item(item, errors))?;
                self.items_whole = true;
            }
            (b"responses", Kind::Array) => {
                self.has_responses = true;
                let mut count = 0;
                value.array(|response| {
                    count += 1;
                    response.skip()
                })?;
                first(&mut self.responses, Some(count));
            }
            _ => {
                match (key, kind) {
                    (b"_index", Kind::String) => self.has_index = true,
                    (b"_id", Kind::String) => self.has_id = true,
                    (b"found", Kind::True | Kind::False) => self.has_found = true,
                    (b"result", Kind::String) => self.has_result = true,
                    (b"count", Kind::Number) => self.has_count = true,
                    _ => {}
                }
                value.skip()?;
            }
        }
        Some(())
    }

    fn read_version(&mut self, value: &mut Scanner<'a>) -> Option<()> {
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
        })
    }

    fn read_shards(&mut self, value: &mut Scanner<'a>) -> Option<()> {
        let (mut total, mut failed) = (None, None);
        value.object(|value, key| {
            let kind = value.peek()?;
            match (key, kind) {
                (b"total", Kind::Number) => first(&mut total, number(value.word()?)),
                (b"failed", Kind::Number) => first(&mut failed, number(value.word()?)),
                _ => value.skip()?,
            }
            Some(())
        })?;
        self.has_shards_total |= total.is_some();
        let shards = total
            .zip(failed)
            .map(|(total, failed)| Shards { total, failed });
        first(&mut self.shards, shards);
        Some(())
    }

    /// `total` is a number up to Elasticsearch 6 and with `rest_total_hits_as_int`.
    fn read_hits(&mut self, value: &mut Scanner<'a>) -> Option<()> {
        value.object(|value, key| {
            match (key, value.peek()?) {
                (b"total", Kind::Number) => first(&mut self.hits, number(value.word()?)),
                (b"total", Kind::Object) => value.object(|value, key| {
                    if key == b"value" && value.peek()? == Kind::Number {
                        first(&mut self.hits, number(value.word()?));
                        Some(())
                    } else {
                        value.skip()
                    }
                })?,
                _ => value.skip()?,
            }
            (!self.is_search_told()).then_some(())
        })
    }

    fn read_error(&mut self, value: &mut Scanner<'a>) -> Option<()> {
        value.object(|value, key| {
            let kind = value.peek()?;
            match (key, kind) {
                (b"type", Kind::String) => first(&mut self.error_type, Some(value.raw_string()?)),
                (b"root_cause", Kind::Array) => {
                    value.skip()?;
                    self.has_root_cause = true;
                }
                _ => value.skip()?,
            }
            Some(())
        })
    }

    /// `type` of the error. The servers make it of their classes' names: anything else is none.
    pub(super) fn error_type(&self) -> Option<Box<str>> {
        let name = self.error_type?;
        let is_name =
            |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        let fits = (1..=MAX_ERROR_TYPE_BYTES).contains(&name.len());
        if !fits || !name.iter().all(is_name) {
            return None;
        }
        str::from_utf8(name).ok().map(Into::into)
    }

    /// The members of a `_cluster/health` answer.
    pub(super) fn cluster(&self) -> ClusterReport {
        ClusterReport {
            name: self.cluster_name(),
            health: self.health,
            nodes: self.nodes,
            active_shards: self.active_shards,
            unassigned_shards: self.unassigned_shards,
            pending_tasks: self.pending_tasks,
        }
    }

    /// The cluster's name, where it was read and needs no unescaping.
    fn cluster_name(&self) -> Option<Box<str>> {
        let name = self.cluster_name?;
        if name.len() > MAX_NAME_BYTES || name.contains(&b'\\') {
            return None;
        }
        str::from_utf8(name).ok().map(Into::into)
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
            "search" | "scroll" => took && self.timed_out.is_some() && self.has_shards_total,
            "bulk" => took && self.errors.is_some() && self.has_items,
            "msearch" => took && self.has_responses,
            "count" => self.has_count && self.has_shards_total,
            "get" => document && self.has_found,
            "index" | "create" | "update" | "delete" => {
                document && self.has_result && self.has_shards_total
            }
            "cluster.health" => {
                self.cluster_name.is_some()
                    && self.health.is_some()
                    && self.timed_out.is_some()
                    && self.nodes.is_some()
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

/// A whole number without a sign, as long as 64 bits hold it.
pub(super) fn number(word: &[u8]) -> Option<u64> {
    word.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
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
