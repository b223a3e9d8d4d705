//! Request paths: which endpoint, and the index expression.
//!
//! Paths are matched against the templates of `endpoints.txt` in a trie of segments, a literal before
//! a parameter. So `/bulk/_search` is a search in an index called `bulk`, and `/_search` never an index.

use std::borrow::Cow;
use std::sync::LazyLock;

/// More than the longest template has.
const MAX_SEGMENTS: usize = 16;

/// Bytes of an index expression that are kept: a label must stay small.
const MAX_COLLECTION_BYTES: usize = 256;

const TABLE: &str = include_str!("endpoints.txt");

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Endpoint id.
    pub(super) operation: &'static str,
    /// The index expression, percent-decoded; empty where the path has none.
    pub(super) collection: Box<str>,
}

/// The endpoint that `method` and `path` name, if the table has it.
pub(super) fn resolve(method: &str, path: &str) -> Option<Target> {
    let segments = Segments::split(path)?;
    let (operation, index) = TRIE.root_match(method, segments.as_slice())?;
    let collection = index.map_or_else(Default::default, |raw| bounded(&percent_decoded(raw)));
    Some(Target {
        operation,
        collection,
    })
}

/// Whether a path has the form of one of the REST API, in the table or not: the root, or an endpoint's
/// name, which begins with `_`, behind at most one index expression.
pub(super) fn has_api_form(path: &str) -> bool {
    let Some(segments) = Segments::split(path) else {
        return false;
    };
    let segments = segments.as_slice();
    segments.is_empty()
        || segments
            .iter()
            .take(2)
            .any(|segment| segment.starts_with('_'))
}

static TRIE: LazyLock<Node> = LazyLock::new(|| Node::from_table(TABLE));

#[derive(Debug, Default)]
struct Node {
    literals: Vec<(&'static str, Self)>,
    /// By the parameter's name, in the order of the table.
    parameters: Vec<(&'static str, Self)>,
    /// Methods and operation of the templates that end here.
    endpoints: Vec<(&'static str, &'static str)>,
}

impl Node {
    /// Lines that are none (a test has it that there are none) are left out.
    fn from_table(table: &'static str) -> Self {
        let mut root = Self::default();
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split(' ');
            if let (Some(operation), Some(methods), Some(template), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            {
                root.insert(template, methods, operation);
            }
        }
        root
    }

    fn insert(&mut self, template: &'static str, methods: &'static str, operation: &'static str) {
        let mut node = self;
        for segment in template.split('/').filter(|segment| !segment.is_empty()) {
            let parameter = segment
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'));
            let (children, key) = match parameter {
                Some(name) => (&mut node.parameters, name),
                None => (&mut node.literals, segment),
            };
            let at = children
                .iter()
                .position(|(name, _)| *name == key)
                .unwrap_or_else(|| {
                    children.push((key, Self::default()));
                    children.len() - 1
                });
            node = &mut children[at].1;
        }
        node.endpoints.push((methods, operation));
    }

    fn root_match<'a>(
        &self,
        method: &str,
        segments: &[&'a str],
    ) -> Option<(&'static str, Option<&'a str>)> {
        let Some((segment, rest)) = segments.split_first() else {
            let allows = |methods: &str| methods.split(',').any(|allowed| allowed == method);
            let (_, operation) = self.endpoints.iter().find(|(methods, _)| allows(methods))?;
            return Some((operation, None));
        };
        let literal = self.literals.iter().find(|(name, _)| name == segment);
        if let Some(found) = literal.and_then(|(_, node)| node.root_match(method, rest)) {
            return Some(found);
        }
        self.parameters.iter().find_map(|(name, node)| {
            let is_index = *name == "index";
            if is_index && !is_index_expression(segment) {
                return None;
            }
            let (operation, index) = node.root_match(method, rest)?;
            Some((operation, if is_index { Some(*segment) } else { index }))
        })
    }
}

/// The servers refuse index names that begin with `_`, so that an unknown endpoint is no index.
/// `_all` stands for every index.
fn is_index_expression(segment: &str) -> bool {
    let name = percent_decoded(segment);
    !name.starts_with('_') || name == "_all" || name.starts_with("_all,")
}

/// Path segments; the servers overlook a slash at the end.
struct Segments<'a> {
    all: [&'a str; MAX_SEGMENTS],
    len: usize,
}

impl<'a> Segments<'a> {
    /// `None` for a path that no template can match: not absolute, too long, or with an empty segment.
    fn split(path: &'a str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let mut segments = Self {
            all: [""; MAX_SEGMENTS],
            len: 0,
        };
        if path.is_empty() {
            return Some(segments);
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        for segment in path.split('/') {
            if segment.is_empty() {
                return None;
            }
            *segments.all.get_mut(segments.len)? = segment;
            segments.len += 1;
        }
        Some(segments)
    }

    fn as_slice(&self) -> &[&'a str] {
        &self.all[..self.len]
    }
}

/// Percent-decoded (RFC 3986 section 2.1); as it stands where it isn't valid or isn't UTF-8.
/// `+` stays: the servers decode it as a space in queries alone.
fn percent_decoded(raw: &str) -> Cow<'_, str> {
    fn decode(raw: &str) -> Option<String> {
        let mut decoded = Vec::with_capacity(raw.len());
        let mut bytes = raw.bytes();
        while let Some(byte) = bytes.next() {
            if byte == b'%' {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
                decoded.push(u8::try_from(value).ok()?);
            } else {
                decoded.push(byte);
            }
        }
        String::from_utf8(decoded).ok()
    }
    if raw.contains('%') {
        decode(raw).map_or(Cow::Borrowed(raw), Cow::Owned)
    } else {
        Cow::Borrowed(raw)
    }
}

/// At most [`MAX_COLLECTION_BYTES`], cut between characters.
fn bounded(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(MAX_COLLECTION_BYTES)].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_target(method: &str, path: &str, operation: &str, collection: &str) {
        let target = resolve(method, path).expect("the path names an endpoint");
        assert_eq!(
            (target.operation, &*target.collection),
            (operation, collection)
        );
    }

    #[test]
    fn every_line_of_the_table_is_an_endpoint_and_is_found_again() {
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = line.split(' ').collect();
            let [operation, methods, template] = fields[..] else {
                panic!("{line:?}")
            };
            let path = template.replace("{index}", "books").replace(['{', '}'], "");
            let collection = if template.contains("{index}") {
                "books"
            } else {
                ""
            };
            for method in methods.split(',') {
                assert!(
                    matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "DELETE"),
                    "{line:?}"
                );
                assert_target(method, &path, operation, collection);
            }
        }
    }

    #[test]
    fn an_index_may_be_called_like_an_endpoint() {
        assert_target("POST", "/bulk/_search", "search", "bulk");
        assert_target("PUT", "/doc/_doc/_bulk", "index", "doc");
        assert_target("POST", "/_bulk", "bulk", "");
        assert_target("POST", "/search/_bulk", "bulk", "search");
        assert_target("PUT", "/count", "indices.create", "count");
        assert_target("GET", "/scroll/_doc/scroll", "get", "scroll");
    }

    #[test]
    fn methods_tell_endpoints_of_one_path_apart() {
        assert_target("GET", "/books/_doc/1", "get", "books");
        assert_target("HEAD", "/books/_doc/1", "exists", "books");
        assert_target("PUT", "/books/_doc/1", "index", "books");
        assert_target("DELETE", "/books/_doc/1", "delete", "books");
        assert_eq!(resolve("PATCH", "/books/_doc/1"), None);
    }

    #[test]
    fn index_expressions_are_decoded() {
        assert_target(
            "GET",
            "/logs-*,-logs-1,c1:books/_search",
            "search",
            "logs-*,-logs-1,c1:books",
        );
        assert_target(
            "GET",
            "/%3Clogstash-%7Bnow%2Fd%7D%3E/_search",
            "search",
            "<logstash-{now/d}>",
        );
        assert_target("GET", "/_all/_search", "search", "_all");
        assert_target("GET", "/%5Fall/_count/", "count", "_all");
        assert_target("GET", "/50%/_count", "count", "50%");
        assert_target("GET", "/%ff/_count", "count", "%ff");
        assert_target("GET", "/a+b/_count", "count", "a+b");
    }

    #[test]
    fn unknown_endpoints_are_no_index() {
        for path in [
            "/_tasks",
            "/%5Ftasks",
            "/_nope/_search",
            "/a/_nope",
            "/a/b/c",
            "//",
            "/a//_search",
        ] {
            for method in ["GET", "PUT", "DELETE", "HEAD"] {
                assert_eq!(resolve(method, path), None, "{method} {path}");
            }
        }
    }

    #[test]
    fn a_long_index_expression_is_cut_between_characters() {
        let path = format!("/a{}/_search", "é".repeat(200));
        let target = resolve("GET", &path).expect("a search");
        assert_eq!(target.collection.len(), MAX_COLLECTION_BYTES - 1);
    }
}
