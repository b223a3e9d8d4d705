//! Values that leave a head, each checked and bounded, and nothing of the head beside them.

use crate::observation::TraceParent;

/// Bytes of a path that are kept.
const PATH_BYTES: usize = 1024;
/// Bytes of a host that are kept; a longer one is none (RFC 1035 allows 255).
const HOST_BYTES: usize = 256;
/// Bytes of a request or correlation id; a longer one is dropped, for half an id finds nothing.
const ID_BYTES: usize = 128;

/// The parts of a request target (RFC 9112, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    /// Path without query and fragment; `*` as sent, the authority of CONNECT.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) authority: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub(crate) fn parse(target: &'a str, is_connect: bool) -> Self {
        if is_connect {
            let authority = host(target.as_bytes());
            return Self {
                path: authority.unwrap_or("/"),
                query: None,
                authority,
            };
        }
        let target = target.split('#').next().unwrap_or_default();
        let (before_query, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let (path, authority) = match before_query.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => {
                let slash = rest.find('/').unwrap_or(rest.len());
                let (authority, path) = rest.split_at(slash);
                let path = if path.is_empty() { "/" } else { path };
                (path, host(without_userinfo(authority).as_bytes()))
            }
            _ if before_query.starts_with('/') => (before_query, None),
            // No form that RFC 9112 knows; what stands before an at sign may be a password.
            _ => (without_userinfo(before_query), None),
        };
        Self {
            path: cut(path, PATH_BYTES),
            query,
            authority,
        }
    }
}

/// The value of `Host`, if it is visible ASCII, without userinfo (which has no business there).
pub(crate) fn host(value: &[u8]) -> Option<&str> {
    let value = visible(value)?;
    let host = without_userinfo(value);
    // What has a path or a query is no authority, and could be a secret.
    let is_one = !value.contains(['/', '?', '#']);
    (is_one && !host.is_empty() && host.len() <= HOST_BYTES).then_some(host)
}

/// The value of an id field: visible ASCII of at most 128 bytes.
pub(crate) fn id(value: &[u8]) -> Option<&str> {
    visible(value).filter(|id| (1..=ID_BYTES).contains(&id.len()))
}

/// The value of `traceparent`: W3C Trace Context, level 1, section 3.2. A later version is read as
/// far as version 00 goes, as the specification asks.
pub(crate) fn trace_parent(value: &[u8]) -> Option<TraceParent> {
    const VERSION_00_BYTES: usize = 55;
    let (version, trace_id, parent_id, flags) = (
        value.get(..2)?,
        value.get(3..35)?,
        value.get(36..52)?,
        value.get(53..VERSION_00_BYTES)?,
    );
    if [value[2], value[35], value[52]] != *b"---" || version == b"ff" {
        return None;
    }
    let [version] = lower_hex::<1>(version)?;
    match value.get(VERSION_00_BYTES) {
        None => {}
        Some(b'-') if version > 0 => {}
        Some(_) => return None,
    }
    let parent = TraceParent {
        trace_id: lower_hex(trace_id)?,
        parent_id: lower_hex(parent_id)?,
        flags: lower_hex::<1>(flags)?[0],
    };
    (parent.trace_id != [0; 16] && parent.parent_id != [0; 8]).then_some(parent)
}

/// `text` cut to at most `max_bytes`, at a character's boundary.
fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

fn visible(value: &[u8]) -> Option<&str> {
    let text = str::from_utf8(value.trim_ascii()).ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_graphic())
        .then_some(text)
}

fn without_userinfo(authority: &str) -> &str {
    authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host)
}

/// RFC 3986, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Decodes `2 × N` lower-case hexadecimal digits; upper case is not valid in a `traceparent`.
fn lower_hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(target: &str) -> &str {
        Target::parse(target, false).path
    }

    #[test]
    fn the_four_forms_of_a_target() {
        assert_eq!(path("/a/b?token=secret#x"), "/a/b");
        assert_eq!(path("/a#f?x"), "/a");
        assert_eq!(path("*"), "*");
        let absolute = Target::parse("http://user:pw@example.org:80/a?q=1", false);
        assert_eq!(absolute.path, "/a");
        assert_eq!(absolute.query, Some("q=1"));
        assert_eq!(absolute.authority, Some("example.org:80"));
        assert_eq!(path("http://example.org"), "/");
        assert_eq!(path("user:pw@example.org/a?b"), "example.org/a");
        assert_eq!(path("/proxy/http://user@x/y"), "/proxy/http://user@x/y");
        let connect = Target::parse("user@example.org:443", true);
        assert_eq!(connect.path, "example.org:443");
        let broken = Target::parse("example.org?token=secret", true);
        assert_eq!((broken.path, broken.authority), ("/", None));
    }

    #[test]
    fn long_paths_are_cut_between_characters() {
        let long = format!("/{}", "ü".repeat(600));
        assert_eq!(path(&long).len(), 1023);
    }

    #[test]
    fn ids_are_visible_and_short() {
        assert_eq!(id(b" abc-1 "), Some("abc-1"));
        assert_eq!(id(b"a b"), None);
        assert_eq!(id(&[b'x'; 129]), None);
        assert_eq!(id(b""), None);
    }

    #[test]
    fn trace_parents_of_the_specification() {
        let valid = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = trace_parent(valid).unwrap();
        assert_eq!(parent.trace_id[..2], [0x4b, 0xf9]);
        assert_eq!(parent.parent_id[7], 0xb7);
        assert_eq!(parent.flags, 1);
        let mut later = valid.to_vec();
        later.extend_from_slice(b"-extra");
        assert_eq!(trace_parent(&later), None, "version 00 has no fifth field");
        later[1] = b'1';
        assert_eq!(trace_parent(&later), Some(parent));
        for (index, byte) in [(0, b'f'), (2, b'_'), (3, b'B'), (36, b'x'), (53, b'-')] {
            let mut broken = valid.to_vec();
            broken[index] = byte;
            if index == 0 {
                broken[1] = b'f';
            }
            assert_eq!(trace_parent(&broken), None, "{index}");
        }
        assert_eq!(trace_parent(&valid[..54]), None);
        assert_eq!(
            trace_parent(b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
            None
        );
    }
}
