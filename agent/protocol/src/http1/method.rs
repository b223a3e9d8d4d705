//! Methods and what a head begins with.

/// Declares the known methods and their look-up, literal by literal: the compiler tells them apart by
/// length and a word or two, where a search of a table called `memcmp` for each of them and took
/// three quarters of a worker's time.
macro_rules! methods {
    ($($method:literal)*) => {
        /// Methods of RFC 9110, RFC 5789 (PATCH) and of the IANA registry that services use.
        const METHODS: &[&str] = &[$($method),*];

        fn find(method: &[u8]) -> Option<&'static str> {
            $(
                if method == const { $method.as_bytes() } {
                    return Some($method);
                }
            )*
            None
        }
    };
}

methods! {
    "GET" "POST" "PUT" "DELETE" "HEAD" "PATCH" "OPTIONS" "CONNECT" "TRACE" "COPY" "LINK" "LOCK"
    "MERGE" "MKCALENDAR" "MKCOL" "MOVE" "PROPFIND" "PROPPATCH" "QUERY" "REPORT" "SEARCH" "UNLINK"
    "UNLOCK" "ACL"
}

/// Length of the longest of them.
const LONGEST_METHOD: usize = 10;

/// Stands for every method that is not in the registry, so that the label stays bounded.
pub(crate) const OTHER: &str = "_OTHER";

/// What every response begins with.
const RESPONSE: &[u8] = b"HTTP/1.";

/// The static form of a method; `_OTHER` for one that is not in the registry.
#[must_use]
pub fn known(method: &str) -> &'static str {
    find(method.as_bytes()).unwrap_or(OTHER)
}

/// The two kinds of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Response,
}

/// Whether bytes begin a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// They do.
    Message(Kind),
    /// They may: too few to tell.
    Perhaps,
    /// They don't.
    Nothing,
}

/// Compares the first bytes of a possible head with the known methods and the response's version.
pub(crate) fn beginning(bytes: &[u8]) -> Beginning {
    if bytes.starts_with(RESPONSE) {
        return Beginning::Message(Kind::Response);
    }
    let token = &bytes[..bytes.len().min(LONGEST_METHOD + 1)];
    if let Some(space) = token.iter().position(|&byte| byte == b' ') {
        return match find(&token[..space]) {
            Some(_) => Beginning::Message(Kind::Request),
            None => Beginning::Nothing,
        };
    }
    let perhaps = |whole: &[u8]| bytes.len() <= whole.len() && whole.starts_with(bytes);
    if perhaps(RESPONSE) || METHODS.iter().any(|method| perhaps(method.as_bytes())) {
        Beginning::Perhaps
    } else {
        Beginning::Nothing
    }
}

/// Whether `bytes` may be the beginning of a request line with any method: a token, then a space
/// (RFC 9112, section 3). Only a stream that is in step may ask: inside a body any word looks so.
pub(crate) fn begins_any_request(bytes: &[u8]) -> bool {
    /// Longer than any method that was ever registered.
    const METHOD_BYTES: usize = 32;
    let token = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
        .count();
    (1..=METHOD_BYTES).contains(&token) && bytes.get(token).is_none_or(|byte| *byte == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nine_methods_that_the_kernel_side_knows_begin_a_request() {
        for method in [
            "GET ", "POST ", "PUT ", "HEAD ", "DELETE ", "PATCH ", "OPTIONS ", "CONNECT ", "TRACE ",
        ] {
            let message = Beginning::Message(Kind::Request);
            assert_eq!(beginning(method.as_bytes()), message, "{method}");
        }
    }

    #[test]
    fn a_prefix_is_not_decided_yet() {
        assert_eq!(beginning(b""), Beginning::Perhaps);
        assert_eq!(beginning(b"H"), Beginning::Perhaps);
        assert_eq!(beginning(b"HTTP/1"), Beginning::Perhaps);
        assert_eq!(beginning(b"GET"), Beginning::Perhaps);
        assert_eq!(beginning(b"HTTP/1."), Beginning::Message(Kind::Response));
    }

    #[test]
    fn other_words_begin_nothing() {
        for bytes in [&b"GETS "[..], b"get /", b"HTTP/2", b"\0", b"PRI * HTTP/2.0"] {
            assert_eq!(beginning(bytes), Beginning::Nothing);
        }
        assert!(begins_any_request(b"PURGE /x"));
        assert!(begins_any_request(b"PURG"));
        assert!(!begins_any_request(b" /x"));
        assert!(!begins_any_request(b"{\"a\": 1}"));
    }
}
