//! The shape of a query: its keys and its structure, with every literal replaced by `?`.
//!
//! Whatever a user may have typed is a value, so that no value is kept, whatever its kind. Keys are names of
//! fields and of the query language; one that does not look like such a name (a filter's label, say) is
//! replaced as well. Lists of values become one `?`, and neighbours of one shape in a list become one, so
//! that queries that differ in their literals alone have one text.

use super::json::{Kind, Scanner};

/// Longest key that is kept.
const MAX_KEY_BYTES: usize = 64;

/// Deeper structure is left out: `…`.
const MAX_DEPTH: usize = 24;

/// The shape of a query of JSON, or of the lines of an `msearch`: at most `max_bytes`, with `…` where it was
/// cut or the query is not whole. `None` for a body that has none.
pub(super) fn masked(body: &[u8], max_bytes: usize) -> Option<Box<str>> {
    let mut text = Masked {
        text: String::new(),
        max_bytes,
    };
    for line in body_parts(body) {
        let mut scanner = Scanner::new(line);
        scanner.peek()?;
        if !text.text.is_empty() {
            text.text.push(' ');
        }
        if text.value(&mut scanner, 0).is_none() {
            text.text.push('…');
            break;
        }
    }
    (!text.text.is_empty()).then(|| text.bounded())
}

/// A query is one text, however many lines it has; an `msearch` has an object on each line.
fn body_parts(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let first = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut scanner = Scanner::new(first);
    let is_lines = first.len() < body.len() && scanner.skip().is_some();
    let parts: Box<dyn Iterator<Item = &[u8]>> = if is_lines {
        Box::new(body.split(|byte| *byte == b'\n'))
    } else {
        Box::new(std::iter::once(body))
    };
    parts.filter(|part| !part.trim_ascii().is_empty())
}

struct Masked {
    text: String,
    max_bytes: usize,
}

impl Masked {
    /// `None` where the text ends early, is no JSON or would grow too long.
    fn value(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Option<()> {
        if self.text.len() > self.max_bytes {
            return None;
        }
        match scanner.peek()? {
            Kind::Object | Kind::Array if depth >= MAX_DEPTH => {
                self.text.push('…');
                scanner.skip()
            }
            Kind::Object => self.object(scanner, depth),
            Kind::Array => self.array(scanner, depth),
            Kind::String | Kind::Number | Kind::True | Kind::False | Kind::Null => {
                self.text.push('?');
                scanner.skip()
            }
        }
    }

    fn object(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Option<()> {
        self.text.push('{');
        let mut is_first = true;
        scanner.object(|value, key| {
            if !std::mem::take(&mut is_first) {
                self.text.push(',');
            }
            self.text.push_str(name_of(key));
            self.text.push(':');
            self.value(value, depth + 1)
        })?;
        self.text.push('}');
        Some(())
    }

    fn array(&mut self, scanner: &mut Scanner<'_>, depth: usize) -> Option<()> {
        self.text.push('[');
        let start = self.text.len();
        // Where the last element's text begins.
        let mut last = start;
        scanner.array(|element| {
            let end = self.text.len();
            if end > start {
                self.text.push(',');
            }
            let begin = self.text.len();
            self.value(element, depth + 1)?;
            if end > start && self.text[last..end] == self.text[begin..] {
                self.text.truncate(end);
            } else {
                last = begin;
            }
            Some(())
        })?;
        self.text.push(']');
        Some(())
    }

    fn bounded(mut self) -> Box<str> {
        const ELLIPSIS: &str = "…";
        if self.text.len() > self.max_bytes {
            let room = self.max_bytes.saturating_sub(ELLIPSIS.len());
            self.text.truncate(self.text.floor_char_boundary(room));
            if self.max_bytes >= ELLIPSIS.len() {
                self.text.push_str(ELLIPSIS);
            }
        }
        self.text.into_boxed_str()
    }
}

/// A key, if it looks like a name: begins with a letter, `_` or `@`, and goes on with those, digits and
/// `.`, `-`, `*`. Digits alone could be a number that somebody typed.
fn name_of(key: &[u8]) -> &str {
    let begins = |byte: &u8| byte.is_ascii_alphabetic() || b"_@*".contains(byte);
    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@.-*".contains(byte);
    let is_name =
        key.len() <= MAX_KEY_BYTES && key.first().is_some_and(begins) && key.iter().all(goes_on);
    if is_name {
        str::from_utf8(key).unwrap_or("?")
    } else {
        "?"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(query: &str) -> String {
        masked(query.as_bytes(), 1024)
            .map(String::from)
            .unwrap_or_default()
    }

    #[test]
    fn keys_stay_and_values_go() {
        let query = r#"{"size":10,"query":{"bool":{"must":[{"match":{"title":"secret"}},{"match":{"title":"other"}},
            {"range":{"year":{"gte":1984,"lt":null}}}],"filter":{"terms":{"user.id":["a","b","c"]}}}}}"#;
        let expected = "{size:?,query:{bool:{must:[{match:{title:?}},{range:{year:{gte:?,lt:?}}}],\
            filter:{terms:{user.id:[?]}}}}}";
        assert_eq!(shape(query), expected);
    }

    #[test]
    fn a_key_that_is_no_name_goes() {
        assert_eq!(
            shape(r#"{"filters":{"Jane Doe":{"a":1},"4711":{"b":2}}}"#),
            "{filters:{?:{a:?},?:{b:?}}}"
        );
    }

    #[test]
    fn lines_of_an_msearch_are_told_apart() {
        let body = "{\"index\":\"a\"}\n{\"query\":{\"match_all\":{}}}\n";
        assert_eq!(shape(body), "{index:?} {query:{match_all:{}}}");
        assert_eq!(shape("{\n \"query\" : {\n}\n}\n"), "{query:{}}");
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(
            shape(r#"{"query":{"match":{"title":"sec"#),
            "{query:{match:{title:?…"
        );
        let long = format!("{{{}}}", vec![r#""name":{"a":1}"#; 500].join(","));
        let text = masked(long.as_bytes(), 100).unwrap();
        assert!(text.len() <= 100 && text.ends_with('…'), "{text}");
        assert_eq!(masked(b"", 100), None);
        let deep = "[".repeat(100_000);
        assert!(masked(deep.as_bytes(), 100).unwrap().ends_with('…'));
    }

    /// Queries whose literals, and nothing else, have capital letters and digits from a few.
    fn query() -> impl Strategy<Value = String> {
        let literal = prop_oneof![
            "\"[XYZ ]{1,8}(\\\\\"|\\\\u0058)?[XYZ]{0,4}\"",
            "-?[789]{1,6}(\\.[789]{1,3})?",
            Just("true".to_owned()),
            Just("null".to_owned()),
        ];
        literal.prop_recursive(5, 40, 5, |inner| {
            let member = ("[a-w_.]{1,10}|[XYZ]{2,5} [XYZ]|[789]{1,4}", inner.clone());
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(|all| format!("[{}]", all.join(", "))),
                prop::collection::vec(member, 0..5).prop_map(|all| {
                    let all: Vec<_> = all
                        .iter()
                        .map(|(key, value)| format!("\"{key}\" : {value}"))
                        .collect();
                    format!("{{{}}}", all.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_literal_survives(
            query in query(), cut in any::<prop::sample::Index>(), max_bytes in 0..200_usize,
        ) {
            for body in [query.as_bytes(), &query.as_bytes()[..cut.index(query.len() + 1)]] {
                let text = masked(body, max_bytes).unwrap_or_default();
                prop_assert!(text.len() <= max_bytes, "{}", text);
                prop_assert!(!text.contains(['X', 'Y', 'Z', '7', '8', '9', '"', '\\']), "{}", text);
                prop_assert!(!text.contains("true") || query.contains("true\""), "{}", text);
            }
        }

        #[test]
        fn no_input_panics(body in prop::collection::vec(any::<u8>(), 0..300), max_bytes in 0..50_usize) {
            let text = masked(&body, max_bytes).unwrap_or_default();
            prop_assert!(text.len() <= max_bytes);
        }
    }
}
