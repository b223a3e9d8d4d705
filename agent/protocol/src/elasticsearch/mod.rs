//! Calls of the Elasticsearch and OpenSearch REST API, told from one HTTP exchange.

use crate::observation::{ElasticsearchCall, SearchProduct};

/// The request of an exchange, as far as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Method as sent.
    pub method: &'a str,
    /// Raw path, without query and fragment.
    pub path: &'a str,
    /// What follows `?`, if anything does.
    pub query: Option<&'a str>,
    /// Value of `Content-Type`.
    pub content_type: Option<&'a [u8]>,
    /// Value of `Content-Encoding`.
    pub content_encoding: Option<&'a [u8]>,
    /// Captured beginning of the body, chunk framing removed.
    pub body: &'a [u8],
    /// Whether `body` is all of it.
    pub body_complete: bool,
}

/// The final response of an exchange, as far as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// Status code; `None` where no response came.
    pub status: Option<u16>,
    /// What [`product_from_header`] found among the response's fields.
    pub product: Option<SearchProduct>,
    /// Value of `Content-Type`.
    pub content_type: Option<&'a [u8]>,
    /// Value of `Content-Encoding`.
    pub content_encoding: Option<&'a [u8]>,
    /// Captured beginning of the body, chunk framing removed.
    pub body: &'a [u8],
    /// Whether `body` is all of it.
    pub body_complete: bool,
}

/// Whether a request could be a call of the REST API. Cheap: decides whether a body is worth keeping.
#[must_use]
pub fn is_candidate(_method: &str, _path: &str) -> bool {
    false
}

/// The product that a response field tells of, if it tells of one.
#[must_use]
pub fn product_from_header(_name: &[u8], _value: &[u8]) -> Option<SearchProduct> {
    None
}

/// The call that an exchange was; `None` unless it is known that a cluster answered.
#[must_use]
pub fn observe(
    _request: &Request<'_>,
    _response: &Response<'_>,
    _known: Option<SearchProduct>,
) -> Option<ElasticsearchCall> {
    None
}
