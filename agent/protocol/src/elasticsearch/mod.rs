//! Calls of the Elasticsearch and OpenSearch REST API, told from one HTTP exchange.
//!
//! An exchange is a call when it is known that a cluster answered, never because of a port or a path:
//!
//! 1. a response field names the product ([`product_from_header`]). Elasticsearch sends
//!    `X-elastic-product` from 7.14 on, OpenSearch `X-OpenSearch-Version` from 3.0 on;
//! 2. or the endpoint is known to be a cluster from earlier, and the path has the API's form;
//! 3. or the answer itself can only be a cluster's: `GET /` with its tagline and version, or several
//!    members together that the endpoint of that path answers with (`took`, `timed_out` and
//!    `_shards.total` of a search), or an error with `root_cause` and the status code.
//!
//! The third is what there is for OpenSearch 1 and 2, which send no product field. It would rather miss
//! the first calls of a cluster than take another service for one: a service that merely has `/_search`
//! is none. It can't tell OpenSearch from an Elasticsearch before 7.14 except by `GET /`, and
//! says OpenSearch.
//!
//! A body counts as far as it was captured: what lies beyond is `None`, never 0. A path prefix
//! (`/es/_search`, behind a proxy) is not understood.

mod answer;
mod body;
mod bulk;
mod json;
mod path;
#[cfg(test)]
mod tests;

use crate::observation::{ElasticsearchCall, SearchProduct};

use answer::Answer;

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

/// Whether the bodies of an exchange are worth keeping for [`observe`] while nothing else is known: the
/// path is the root or names an endpoint. Cheap.
///
/// `false` does not say that it is no call: a path that is one index alone (`PUT /books`) says nothing.
/// [`observe`] is to be asked as well when the response names a product or the endpoint is known.
#[must_use]
pub fn is_candidate(method: &str, path: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "DELETE") && path::has_api_form(path)
}

/// The product that a response field tells of, if it tells of one. `name` in any case.
#[must_use]
pub fn product_from_header(name: &[u8], value: &[u8]) -> Option<SearchProduct> {
    if name.eq_ignore_ascii_case(b"x-elastic-product") {
        (value == b"Elasticsearch").then_some(SearchProduct::Elasticsearch)
    } else if name.eq_ignore_ascii_case(b"x-opensearch-version") {
        // `OpenSearch/3.3.2 (opensearch)`
        value
            .starts_with(b"OpenSearch/")
            .then_some(SearchProduct::OpenSearch)
    } else {
        None
    }
}

/// The call that an exchange was; `None` unless a cluster answered (see the module).
///
/// `known` is the product of the endpoint, from an earlier call.
#[must_use]
pub fn observe(
    request: &Request<'_>,
    response: &Response<'_>,
    known: Option<SearchProduct>,
) -> Option<ElasticsearchCall> {
    let has_api_form = path::has_api_form(request.path);
    // Most exchanges are none, and end here.
    if response.product.is_none() && known.is_none() && !has_api_form {
        return None;
    }
    let target = path::resolve(request.method, request.path);
    let text = body::is_json(response.content_type)
        .then(|| {
            body::decoded(
                response.content_encoding,
                response.body,
                response.body_complete,
            )
        })
        .flatten();
    let answer = text
        .as_ref()
        .map(|text| Answer::scan(&text.bytes))
        .unwrap_or_default();
    let operation = target.as_ref().map(|target| target.operation);

    let known = known.filter(|_| has_api_form || target.is_some());
    let product = response.product.or(known).or_else(|| {
        if let Some("info") = operation {
            return answer.product_of_root();
        }
        let is_shape = answer.has_shape_of(operation?, response.status?);
        is_shape.then_some(SearchProduct::OpenSearch)
    })?;

    let collection = target.map(|target| target.collection).unwrap_or_default();
    let mut call = ElasticsearchCall {
        product,
        operation,
        collection,
        took_ms: None,
        timed_out: None,
        errors: None,
        batch_size: None,
        cluster_health: None,
        cluster_name: None,
    };
    // Each member is read where the API has it: elsewhere it might be part of somebody's document.
    match operation {
        Some("search" | "scroll" | "delete_by_query" | "update_by_query") => {
            call.took_ms = answer.took_ms;
            call.timed_out = answer.timed_out;
        }
        Some("msearch") => call.took_ms = answer.took_ms,
        Some("bulk") => {
            call.took_ms = answer.took_ms;
            call.errors = answer.errors;
            call.batch_size = batch_size(request);
        }
        Some("cluster.health") => {
            call.timed_out = answer.timed_out;
            call.cluster_name = answer.cluster_name();
            // Asked for some indices, the status is theirs, not the cluster's.
            if call.collection.is_empty() {
                call.cluster_health = answer.health;
            }
        }
        _ => {}
    }
    Some(call)
}

fn batch_size(request: &Request<'_>) -> Option<u64> {
    if !body::is_json(request.content_type) {
        return None;
    }
    let text = body::decoded(
        request.content_encoding,
        request.body,
        request.body_complete,
    )?;
    if !text.complete {
        return None;
    }
    bulk::count_operations(&text.bytes)
}
