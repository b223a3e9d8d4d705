//! Request paths: which endpoint, and the index expression.

use std::borrow::Cow;

use super::endpoints::{self, Endpoint};

/// More than the longest template has.
const MAX_SEGMENTS: usize = 16;

/// Segments that a proxy may put before the API's own.
const MAX_PREFIX_SEGMENTS: usize = 3;

/// Bytes of an index expression that are kept: a label must stay small.
const MAX_COLLECTION_BYTES: usize = 256;

/// What a path asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// The table's line.
    pub(super) endpoint: &'static Endpoint,
    path: &'a str,
}

impl<'a> Target<'a> {
    /// Endpoint id.
    pub(super) const fn operation(&self) -> &'static str {
        self.endpoint.operation
    }

    /// The index expression, percent-decoded; empty where the path has none.
    pub(super) fn collection(&self) -> Box<str> {
        let raw = self.endpoint.index_segment.and_then(|at| self.segment(at));
        raw.map_or_else(Default::default, |raw| bounded(&percent_decoded(raw)))
    }

    /// Names and values (percent-decoded) of what the path fills into its template.
    pub(super) fn parameters(self) -> impl Iterator<Item = (&'static str, Cow<'a, str>)> {
        let names = self.endpoint.parameters();
        names.filter_map(move |(at, name)| Some((name, percent_decoded(self.segment(at)?))))
    }

    fn segment(self, at: usize) -> Option<&'a str> {
        self.path.get(1..)?.split('/').nth(at)
    }
}

/// The endpoint that `method` and `path` name, if the table has it.
pub(super) fn resolve<'a>(method: &str, path: &'a str) -> Option<Target<'a>> {
    let segments = Segments::split(path)?;
    let endpoint = endpoints::find(method, segments.as_slice())?;
    Some(Target { endpoint, path })
}

/// The part of `path` behind a proxy's `prefix`; `None` where it does not begin with it.
pub(super) fn without_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    match rest.as_bytes().first() {
        None => Some("/"),
        Some(b'/') => Some(rest),
        Some(_) => None,
    }
}

/// The prefix of a path that names an endpoint only behind one: `/es` of `/es/_cluster/health`.
///
/// `/es/_search` could as well be a search of an index `es`, and is no evidence of a prefix.
pub(super) fn prefix_of<'a>(method: &str, path: &'a str) -> Option<&'a str> {
    let segments = Segments::split(path)?;
    let segments = segments.as_slice();
    let mut prefix_bytes = 0;
    for count in 1..=MAX_PREFIX_SEGMENTS.min(segments.len()) {
        let segment = segments[count - 1];
        if segment.starts_with('_') {
            return None;
        }
        prefix_bytes += 1 + segment.len();
        let rest = &segments[count..];
        // An endpoint's own name has to be there, or any path would do.
        let is_api = rest.iter().take(2).any(|segment| segment.starts_with('_'));
        if is_api && endpoints::find(method, rest).is_some_and(|endpoint| !endpoint.has_type) {
            return Some(&path[..prefix_bytes]);
        }
    }
    None
}

/// Whether a path has the form of one of the REST API, in the table or not: the root, or an endpoint's
/// name, which begins with `_`, behind at most one index expression.
pub(super) fn has_api_form(path: &str) -> bool {
    has_form(path, 0)
}

/// The same behind any prefix of a proxy.
pub(super) fn may_have_api_form(path: &str) -> bool {
    has_form(path, MAX_PREFIX_SEGMENTS)
}

fn has_form(path: &str, prefix_segments: usize) -> bool {
    let Some(path) = path.strip_prefix('/') else {
        return false;
    };
    let mut segments = path.split('/');
    path.is_empty()
        || segments
            .by_ref()
            .take(2 + prefix_segments)
            .any(|segment| segment.starts_with('_'))
}

/// Whether a segment can be an index expression, or a mapping type. The servers refuse names that begin
/// with `_`; `_all` stands for every index.
pub(super) fn is_index_expression(segment: &str) -> bool {
    if !segment.starts_with(['_', '%']) {
        return true;
    }
    let name = percent_decoded(segment);
    !name.starts_with('_') || name == "_all" || name.starts_with("_all,")
}

/// Path segments; the servers overlook a slash at the end.
#[derive(Clone, Copy, Debug)]
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
            (target.operation(), &*target.collection()),
            (operation, collection)
        );
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
        assert!(resolve("PATCH", "/books/_doc/1").is_none());
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
            "/_task",
            "/%5Ftask",
            "/_nope/_search",
            "/a/_nope",
            "/a/b/c/d",
            "/a/_b/c",
            "//",
            "/a//_search",
        ] {
            for method in ["GET", "PUT", "DELETE", "HEAD"] {
                assert!(resolve(method, path).is_none(), "{method} {path}");
            }
        }
    }

    #[test]
    fn a_long_index_expression_is_cut_between_characters() {
        let path = format!("/a{}/_search", "é".repeat(200));
        let target = resolve("GET", &path).expect("a search");
        assert_eq!(target.collection().len(), MAX_COLLECTION_BYTES - 1);
    }

    #[test]
    fn a_prefix_is_told_by_what_can_only_stand_behind_one() {
        assert_eq!(prefix_of("GET", "/es/_cluster/health"), Some("/es"));
        assert_eq!(prefix_of("POST", "/a/b/books/_search"), Some("/a/b"));
        assert_eq!(prefix_of("GET", "/es/_cat/indices/books"), Some("/es"));
        for path in ["/es/_search", "/es/books/1", "/_x/_cluster/health", "/es"] {
            let told = prefix_of("GET", path);
            // A path that names an endpoint as it stands is never asked for its prefix.
            assert!(told.is_none() || resolve("GET", path).is_some(), "{path}");
        }
        assert_eq!(without_prefix("/es/_search", "/es"), Some("/_search"));
        assert_eq!(without_prefix("/es", "/es"), Some("/"));
        assert_eq!(without_prefix("/essays/_search", "/es"), None);
    }

    #[test]
    fn what_fills_a_template_is_named() {
        let target = resolve("GET", "/books/_doc/a%2Fb").expect("a get");
        let parameters: Vec<_> = target.parameters().collect();
        assert_eq!(
            parameters,
            [("index", "books".into()), ("id", "a/b".into())]
        );
        assert_target(
            "GET",
            "/_data_stream/logs",
            "indices.get_data_stream",
            "logs",
        );
        assert_target("POST", "/alias/_rollover", "indices.rollover", "alias");
    }
}
