//! Heads: the start line and the fields, as far as an exchange needs them.

use std::mem::MaybeUninit;

use httparse::{Header, ParserConfig};

use super::body::Framing;
use super::fields::{self, Target};
use super::method;
use crate::elasticsearch::{self, HandledBy};
use crate::observation::{SearchProduct, TraceParent};

/// Fields that fit without an allocation. Most heads have fewer than thirty.
const FEW_FIELDS: usize = 64;
/// Fields that a head may have at all: what 64 KiB of head can hold of them, sensibly.
const MANY_FIELDS: usize = 4096;

/// A request's head. Borrows from the captured bytes.
#[derive(Debug)]
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'static str,
    pub(crate) target: Target<'a>,
    pub(crate) minor_version: u8,
    /// `None` when the fields contradict each other.
    pub(crate) framing: Option<Framing>,
    pub(crate) expects_continue: bool,
    pub(crate) host: Option<&'a str>,
    pub(crate) trace_parent: Option<TraceParent>,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) correlation_id: Option<&'a str>,
    pub(crate) content: Content<'a>,
}

/// A response's head. Borrows from the captured bytes.
#[derive(Debug)]
pub(crate) struct ResponseHead<'a> {
    pub(crate) status: u16,
    pub(crate) minor_version: u8,
    pub(crate) product: Option<SearchProduct>,
    pub(crate) handled_by: HandledBy<'a>,
    pub(crate) content: Content<'a>,
    length: Length,
    coding: Coding,
}

/// How a body is to be read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Content<'a> {
    pub(crate) content_type: Option<&'a [u8]>,
    pub(crate) encoding: Option<&'a [u8]>,
}

impl<'a> RequestHead<'a> {
    /// Parses a complete head; `None` when it is none. A cut one goes through [`complete`] first.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        with_room(|headers| {
            let mut request = httparse::Request::new(&mut []);
            ParserConfig::default()
                .allow_multiple_spaces_in_request_line_delimiters(true)
                .parse_request_with_uninit_headers(&mut request, bytes, headers)?;
            Ok(Self::read(&request))
        })?
    }

    fn read(request: &httparse::Request<'_, 'a>) -> Option<Self> {
        let method = method::known(request.method?);
        let mut head = Self {
            method,
            target: Target::parse(request.path?, method == "CONNECT"),
            minor_version: request.version?,
            framing: None,
            expects_continue: false,
            host: None,
            trace_parent: None,
            request_id: None,
            correlation_id: None,
            content: Content::default(),
        };
        let (mut length, mut coding) = (Length::Absent, Coding::default());
        for Header { name, value } in request.headers.iter() {
            length.read(name, value);
            coding.read(name, value);
            head.content.read(name, value);
            let is = |other| name.eq_ignore_ascii_case(other);
            if is("host") {
                head.host = fields::host(value);
            } else if is("expect") {
                head.expects_continue = value.eq_ignore_ascii_case(b"100-continue");
            } else if is("traceparent") {
                head.trace_parent = fields::trace_parent(value);
            } else if is("x-request-id") {
                head.request_id = fields::id(value);
            } else if is("x-correlation-id") {
                head.correlation_id = fields::id(value);
            }
        }
        // RFC 9112, section 3.2.2: the target's authority wins over the field.
        head.host = head.target.authority.or(head.host);
        head.framing = match (coding.last, length) {
            (LastCoding::Chunked, _) => Some(coding.framing()),
            // A request can't run until the connection's end (RFC 9112, section 6.3).
            (LastCoding::Other, _) => None,
            (LastCoding::Absent, Length::Bytes(bytes)) => Some(Framing::Length(bytes)),
            (LastCoding::Absent, Length::Absent) => Some(Framing::Length(0)),
            (LastCoding::Absent, Length::Conflicting) => None,
        };
        Some(head)
    }
}

impl<'a> ResponseHead<'a> {
    /// Parses a complete head; `None` when it is none. A cut one goes through [`complete`] first.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        with_room(|headers| {
            let mut response = httparse::Response::new(&mut []);
            ParserConfig::default()
                .allow_spaces_after_header_name_in_responses(true)
                .allow_obsolete_multiline_headers_in_responses(true)
                .parse_response_with_uninit_headers(&mut response, bytes, headers)?;
            Ok(Self::read(&response))
        })?
    }

    fn read(response: &httparse::Response<'_, 'a>) -> Option<Self> {
        let mut head = Self {
            status: response.code?,
            minor_version: response.version?,
            product: None,
            handled_by: HandledBy::default(),
            content: Content::default(),
            length: Length::Absent,
            coding: Coding::default(),
        };
        for Header { name, value } in response.headers.iter() {
            head.length.read(name, value);
            head.coding.read(name, value);
            head.content.read(name, value);
            let product = elasticsearch::product_from_header(name.as_bytes(), value);
            head.product = head.product.or(product);
            head.handled_by.read(name.as_bytes(), value);
        }
        Some(head)
    }

    /// How the body of this answer to a request with `method` is framed: RFC 9112, section 6.3.
    /// `None` when the fields contradict each other.
    pub(crate) fn framing(&self, method: &str) -> Option<Framing> {
        let bodiless = matches!(self.status, 100..200 | 204 | 304)
            || method == "HEAD"
            || self.is_tunnel(method);
        if bodiless {
            return Some(Framing::Length(0));
        }
        match (self.coding.last, self.length) {
            (LastCoding::Chunked, _) => Some(self.coding.framing()),
            (LastCoding::Other, _) => Some(Framing::UntilClose),
            (LastCoding::Absent, Length::Bytes(bytes)) => Some(Framing::Length(bytes)),
            (LastCoding::Absent, Length::Absent) => Some(Framing::UntilClose),
            (LastCoding::Absent, Length::Conflicting) => None,
        }
    }

    /// Whether the connection is no longer HTTP behind this head: RFC 9110, sections 15.2.2, 9.3.6.
    pub(crate) fn is_tunnel(&self, method: &str) -> bool {
        self.status == 101 || (method == "CONNECT" && (200..300).contains(&self.status))
    }

    /// Whether the final response is still to come.
    pub(crate) const fn is_interim(&self) -> bool {
        matches!(self.status, 100..200) && self.status != 101
    }
}

/// Makes a head that was cut parse: leaves its last, broken field out and ends it.
pub(crate) fn complete(cut: &[u8]) -> Vec<u8> {
    let mut head = match memchr::memrchr(b'\n', cut) {
        Some(line_end) => cut[..=line_end].to_vec(),
        // Not even the start line is whole. A request that got as far as its target is still told
        // by it; a response needs its status code alone.
        None if cut.starts_with(b"HTTP/") => [cut, b"\r\n"].concat(),
        None => {
            let mut words = cut.split(|byte| *byte == b' ');
            let (method, target) = (words.next(), words.next());
            [method, target, Some(b"HTTP/1.1\r\n")]
                .map(Option::unwrap_or_default)
                .join(&b' ')
        }
    };
    head.extend_from_slice(b"\r\n");
    head
}

/// Parses with few header slots, and only when those don't do with many.
fn with_room<'a, T>(
    parse: impl Fn(&mut [MaybeUninit<Header<'a>>]) -> Result<T, httparse::Error>,
) -> Option<T> {
    match parse(&mut [const { MaybeUninit::uninit() }; FEW_FIELDS]) {
        Err(httparse::Error::TooManyHeaders) => {
            parse(&mut vec![const { MaybeUninit::uninit() }; MANY_FIELDS]).ok()
        }
        result => result.ok(),
    }
}

impl<'a> Content<'a> {
    fn read(&mut self, name: &str, value: &'a [u8]) {
        if name.eq_ignore_ascii_case("content-type") {
            self.content_type = Some(value);
        } else if name.eq_ignore_ascii_case("content-encoding") {
            self.encoding = Some(value);
        }
    }
}

/// What the `Content-Length` fields say together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Absent,
    Bytes(u64),
    Conflicting,
}

impl Length {
    /// Equal values may repeat, in one field or in several (RFC 9110, section 8.6).
    fn read(&mut self, name: &str, value: &[u8]) {
        if !name.eq_ignore_ascii_case("content-length") {
            return;
        }
        for item in value.split(|byte| *byte == b',') {
            *self = match (*self, decimal(item.trim_ascii())) {
                (Self::Absent, Some(bytes)) => Self::Bytes(bytes),
                (Self::Bytes(known), Some(bytes)) if known == bytes => *self,
                _ => Self::Conflicting,
            };
        }
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    // `parse` alone would let a plus sign through.
    let digits = str::from_utf8(digits).ok()?;
    let all = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all)
}

/// What the `Transfer-Encoding` fields say together, and whether trailer fields are announced.
#[derive(Clone, Copy, Debug, Default)]
struct Coding {
    last: LastCoding,
    trailer: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LastCoding {
    #[default]
    Absent,
    Chunked,
    Other,
}

impl Coding {
    fn read(&mut self, name: &str, value: &[u8]) {
        if name.eq_ignore_ascii_case("trailer") {
            self.trailer = true;
        }
        if !name.eq_ignore_ascii_case("transfer-encoding") {
            return;
        }
        for item in value.split(|byte| *byte == b',') {
            let item = item.trim_ascii();
            if item.eq_ignore_ascii_case(b"chunked") {
                self.last = LastCoding::Chunked;
            } else if !item.is_empty() && !item.eq_ignore_ascii_case(b"identity") {
                self.last = LastCoding::Other;
            }
        }
    }

    const fn framing(self) -> Framing {
        Framing::Chunked {
            trailer: self.trailer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_framing(fields: &str) -> Option<Framing> {
        let head = format!("POST /x HTTP/1.1\r\n{fields}\r\n");
        RequestHead::parse(head.as_bytes()).unwrap().framing
    }

    fn response_framing(status: u16, fields: &str, method: &str) -> Option<Framing> {
        let head = format!("HTTP/1.1 {status} X\r\n{fields}\r\n");
        let head = ResponseHead::parse(head.as_bytes()).unwrap();
        head.framing(method)
    }

    const CHUNKED: Framing = Framing::Chunked { trailer: false };

    #[test]
    fn request_bodies() {
        assert_eq!(request_framing(""), Some(Framing::Length(0)));
        assert_eq!(
            request_framing("content-LENGTH: 7\r\n"),
            Some(Framing::Length(7))
        );
        assert_eq!(
            request_framing("Content-Length: 7\r\nContent-Length: 7, 7\r\n"),
            Some(Framing::Length(7))
        );
        assert_eq!(
            request_framing("Content-Length: 7\r\nContent-Length: 8\r\n"),
            None
        );
        assert_eq!(request_framing("Content-Length: +7\r\n"), None);
        assert_eq!(request_framing("Content-Length: \r\n"), None);
        assert_eq!(
            request_framing("Content-Length: 99999999999999999999\r\n"),
            None
        );
        assert_eq!(
            request_framing("Content-Length: 7\r\nTransfer-Encoding: gzip, Chunked\r\n"),
            Some(CHUNKED)
        );
        assert_eq!(request_framing("Transfer-Encoding: gzip\r\n"), None);
        assert_eq!(
            request_framing("Transfer-Encoding: chunked\r\nTrailer: Digest\r\n"),
            Some(Framing::Chunked { trailer: true })
        );
    }

    #[test]
    fn response_bodies() {
        let length = "Content-Length: 5\r\n";
        let none = Some(Framing::Length(0));
        assert_eq!(
            response_framing(200, length, "GET"),
            Some(Framing::Length(5))
        );
        assert_eq!(response_framing(200, length, "HEAD"), none);
        assert_eq!(response_framing(304, length, "GET"), none);
        assert_eq!(response_framing(204, "", "DELETE"), none);
        assert_eq!(response_framing(103, "", "GET"), none);
        assert_eq!(response_framing(200, "", "CONNECT"), none);
        assert_eq!(
            response_framing(403, length, "CONNECT"),
            Some(Framing::Length(5))
        );
        assert_eq!(response_framing(200, "", "GET"), Some(Framing::UntilClose));
        assert_eq!(
            response_framing(200, "Transfer-Encoding: gzip\r\n", "GET"),
            Some(Framing::UntilClose)
        );
        assert_eq!(
            response_framing(200, "Transfer-Encoding: chunked\r\n", "GET"),
            Some(CHUNKED)
        );
    }

    #[test]
    fn a_head_with_many_fields() {
        let mut head = b"GET /x HTTP/1.1\r\n".to_vec();
        for index in 0..300 {
            head.extend_from_slice(format!("X-{index}: v\r\n").as_bytes());
        }
        head.extend_from_slice(b"X-Request-Id: last\r\n\r\n");
        let head = RequestHead::parse(&head).unwrap();
        assert_eq!(head.request_id, Some("last"));
    }

    #[test]
    fn a_cut_head_keeps_its_whole_lines() {
        let cut = complete(b"GET /x?token=1 HTTP/1.1\r\nHost: a\r\nCookie: abc");
        let head = RequestHead::parse(&cut).unwrap();
        assert_eq!((head.target.path, head.host), ("/x", Some("a")));
        let cut = complete(b"GET /very/long");
        assert_eq!(RequestHead::parse(&cut).unwrap().target.path, "/very/long");
        let cut = complete(b"HTTP/1.1 503");
        assert_eq!(ResponseHead::parse(&cut).unwrap().status, 503);
        assert!(RequestHead::parse(&complete(b"GET ")).is_none());
    }

    #[test]
    fn what_does_not_parse_is_none() {
        assert!(RequestHead::parse(b"GET /x HTTP/2.0\r\n\r\n").is_none());
        assert!(RequestHead::parse(b"GET /x HTTP/1.1\r\nno colon\r\n\r\n").is_none());
        assert!(ResponseHead::parse(b"HTTP/1.1 abc\r\n\r\n").is_none());
    }
}
