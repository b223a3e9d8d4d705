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
//! A body counts as far as it was captured: what lies beyond is `None` and told as [`Unknown`], never 0.
//!
//! Behind a proxy the API's paths can begin with a prefix (`/es/books/_search`). It is configured, or
//! learned from a path that only makes sense behind one ([`ElasticsearchCall::prefix`]).

mod answer;
mod body;
mod bulk;
mod coding;
mod endpoints;
mod json;
mod nesting;
mod operations;
mod path;
mod query;
mod streamed;
#[cfg(test)]
mod tests;
mod zstd;

use std::sync::Arc;

use crate::http1::fields;
use crate::observation::{BulkAction, BulkOutcome, ElasticsearchCall, SearchProduct, Unknown};

use answer::Answer;
use body::Text;
use operations::Reading;
use path::Target;
pub(crate) use streamed::{Counted, Side, Streamed};

/// What is known of an endpoint from earlier calls or from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Who answers there.
    pub product: SearchProduct,
    /// What the API's paths begin with there, longest first, each with a slash before and none behind;
    /// empty where that is nothing.
    pub prefixes: Arc<[Box<str>]>,
}

impl From<SearchProduct> for Cluster {
    fn from(product: SearchProduct) -> Self {
        Self {
            product,
            prefixes: Arc::default(),
        }
    }
}

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
    /// What [`HandledBy::read`] found among them.
    pub handled_by: HandledBy<'a>,
    /// Value of `Content-Type`.
    pub content_type: Option<&'a [u8]>,
    /// Value of `Content-Encoding`.
    pub content_encoding: Option<&'a [u8]>,
    /// Captured beginning of the body, chunk framing removed.
    pub body: &'a [u8],
    /// Whether `body` is all of it.
    pub body_complete: bool,
}

/// Who answered, as the proxies of Elastic Cloud say in every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandledBy<'a> {
    /// `X-Found-Handling-Cluster`.
    pub cluster: Option<&'a str>,
    /// `X-Found-Handling-Instance`.
    pub node: Option<&'a str>,
}

impl<'a> HandledBy<'a> {
    /// Takes a response field in, where it is one of the two. `name` in any case; a value that is not
    /// visible ASCII of at most 128 bytes is none.
    ///
    /// Source: OpenTelemetry's conventions for Elasticsearch clients, `db.namespace` and
    /// `elasticsearch.node.name`.
    pub fn read(&mut self, name: &[u8], value: &'a [u8]) {
        if name.eq_ignore_ascii_case(b"x-found-handling-cluster") {
            self.cluster = fields::id(value);
        } else if name.eq_ignore_ascii_case(b"x-found-handling-instance") {
            self.node = fields::id(value);
        }
    }
}

/// Whether the bodies of an exchange are worth keeping for [`observe`] while nothing else is known: the
/// path is the root or names an endpoint. Cheap.
///
/// `false` does not say that it is no call: a path that is one index alone (`PUT /books`) says nothing.
/// [`observe`] is to be asked as well when the response names a product or the endpoint is known.
#[must_use]
pub fn is_candidate(method: &str, path: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "PATCH")
        && path::may_have_api_form(path)
}

/// Whether `operation` is an endpoint id of the REST specifications (`search`, `cluster.health`).
#[must_use]
pub fn is_operation(operation: &str) -> bool {
    endpoints::has_operation(operation)
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

/// Names and values of what the path of a call fills into its template: `index`, `id`, … Values are
/// percent-decoded.
pub fn path_parameters<'a>(
    method: &str,
    path: &'a str,
    call: &ElasticsearchCall,
) -> impl Iterator<Item = (&'static str, std::borrow::Cow<'a, str>)> {
    let target = path::without_prefix(path, &call.prefix)
        .filter(|_| call.operation.is_some())
        .and_then(|path| path::resolve(method, path));
    target.into_iter().flat_map(Target::parameters)
}

/// Whether a path may be that of a bulk request, the items of whose bodies are all to be counted.
pub(crate) fn may_be_bulk(path: &str) -> bool {
    path.trim_end_matches('/').ends_with("/_bulk")
}

/// The call that an exchange was; `None` unless a cluster answered (see the module).
///
/// `known` is what is known of the endpoint. The query's text is kept up to `query_bytes`, 0 for none.
#[must_use]
pub fn observe(
    request: &Request<'_>,
    response: &Response<'_>,
    known: Option<&Cluster>,
    query_bytes: usize,
) -> Option<ElasticsearchCall> {
    observe_counted(request, response, &Counted::default(), known, query_bytes)
}

/// As [`observe`], with what was counted in bodies that were not kept whole.
pub(crate) fn observe_counted(
    request: &Request<'_>,
    response: &Response<'_>,
    counted: &Counted,
    known: Option<&Cluster>,
    query_bytes: usize,
) -> Option<ElasticsearchCall> {
    // Most exchanges are none, and end here.
    if response.product.is_none() && known.is_none() && !path::may_have_api_form(request.path) {
        return None;
    }
    let place = Place::of(request, response, known);
    let readable = body::is_json(response.content_type).then(|| {
        body::decoded(
            response.content_encoding,
            response.body,
            response.body_complete,
        )
    });
    let text = readable.flatten();
    let answer = text
        .as_ref()
        .map(|text| Answer::scan(&text.bytes))
        .unwrap_or_default();
    let product = product_of(&place, response, known, &answer)?;
    let place = place.settled(response, known, &answer)?;

    let target = place.target;
    let mut call = ElasticsearchCall {
        product,
        prefix: place.prefix.into(),
        operation: target.as_ref().map(Target::operation),
        template: target.as_ref().map(|target| target.endpoint.template),
        collection: target.map(|target| target.collection()).unwrap_or_default(),
        took_ms: None,
        timed_out: None,
        shards: None,
        hits: None,
        errors: None,
        error_type: None,
        batch_size: None,
        bulk_items: Vec::new(),
        cluster: None,
        namespace: response.handled_by.cluster.map(Into::into),
        node: response.handled_by.node.map(Into::into),
        query_text: None,
        unknown: Vec::new(),
    };
    if response.status.is_some_and(|status| status >= 400) {
        call.error_type = answer.error_type();
    }
    let Some(endpoint) = target.map(|target| target.endpoint) else {
        return Some(call);
    };
    let answered = Answered {
        answer: &answer,
        text: text.as_ref(),
        status: response.status,
    };
    match endpoint.reading {
        Reading::Bulk => read_bulk(&mut call, request, &answered, counted),
        Reading::Searches => {
            read_took(&mut call, &answered, response);
            call.batch_size = answer
                .responses
                .or_else(|| bulk::count_searches(&whole_request(request)?.bytes));
        }
        Reading::Health => {
            call.timed_out = answer.timed_out;
            // Asked for some indices, the status is theirs, not the cluster's.
            if call.collection.is_empty() {
                let report = answer.cluster();
                call.cluster = report.health.is_some().then(|| Box::new(report));
            }
        }
        Reading::Took => {
            read_took(&mut call, &answered, response);
            call.timed_out = answer.timed_out;
            call.shards = answer.shards;
            call.hits = answer.hits;
        }
        Reading::Shards => call.shards = answer.shards,
        Reading::Nothing => {}
    }
    let is_wanted = query_bytes > 0 && operations::is_query(endpoint.operation);
    if is_wanted && body::is_json(request.content_type) {
        let text = body::decoded(
            request.content_encoding,
            request.body,
            request.body_complete,
        );
        call.query_text = text.and_then(|text| query::masked(&text.bytes, query_bytes));
    }
    Some(call)
}

/// Where in the API a path leads.
struct Place<'a> {
    /// What a proxy put before the API's path.
    prefix: &'a str,
    /// The API's path.
    path: &'a str,
    target: Option<Target<'a>>,
    /// Whether the prefix was known before.
    is_known: bool,
}

impl<'a> Place<'a> {
    fn of(request: &Request<'a>, response: &Response<'_>, known: Option<&Cluster>) -> Self {
        let whole = request.path;
        let has_types = may_have_types(response);
        let resolved = |path| {
            let target = path::resolve(request.method, path);
            target.filter(|target| has_types || !target.endpoint.has_type)
        };
        let prefixes = known.into_iter().flat_map(|known| known.prefixes.iter());
        for prefix in prefixes {
            if let Some(path) = path::without_prefix(whole, prefix) {
                return Self {
                    prefix: &whole[..prefix.len()],
                    path,
                    target: resolved(path),
                    is_known: !prefix.is_empty(),
                };
            }
        }
        let target = resolved(whole);
        let succeeded = response.status.is_some_and(|status| status < 300);
        // A cluster that is asked for something it does not have has no prefix, and says so.
        let prefix = if target.is_none() && succeeded {
            path::prefix_of(request.method, whole)
        } else {
            None
        };
        let Some(prefix) = prefix else {
            return Self {
                prefix: "",
                path: whole,
                target,
                is_known: false,
            };
        };
        let path = &whole[prefix.len()..];
        Self {
            prefix,
            path,
            target: resolved(path),
            is_known: false,
        }
    }

    /// Takes back what the answer does not bear out; `None` where it is no call at all.
    fn settled(
        mut self,
        response: &Response<'_>,
        known: Option<&Cluster>,
        answer: &Answer<'_>,
    ) -> Option<Self> {
        if answer.has_error_text {
            let has_type = |target: &Target<'_>| target.endpoint.has_type;
            self.target = self.target.filter(|target| !has_type(target));
        }
        let is_told = response.product.is_some() || self.is_known;
        // The name of an index alone could be a page of another service behind the same proxy.
        let is_index = self.target.is_some()
            && known.is_none_or(|known| known.prefixes.is_empty())
            && (response.status.is_none() || body::is_json(response.content_type));
        let is_call = is_told || path::has_api_form(self.path) || is_index;
        is_call.then_some(self)
    }
}

/// Whether the path of the request may name a mapping type. Without this any path would be one.
///
/// Elasticsearch has them up to 7, which says what it is from 7.14 on; from 8 on, an answer to an
/// official client says which version it is compatible with.
fn may_have_types(response: &Response<'_>) -> bool {
    let content_type = response.content_type.unwrap_or_default();
    response.product == Some(SearchProduct::Elasticsearch)
        && memchr::memmem::find(content_type, b"compatible-with=").is_none()
}

fn product_of(
    place: &Place<'_>,
    response: &Response<'_>,
    known: Option<&Cluster>,
    answer: &Answer<'_>,
) -> Option<SearchProduct> {
    let told = response.product.or(known.map(|known| known.product));
    told.or_else(|| {
        let operation = place.target.as_ref()?.operation();
        if operation == "info" {
            return answer.product_of_root();
        }
        let is_shape = answer.has_shape_of(operation, response.status?);
        is_shape.then_some(SearchProduct::OpenSearch)
    })
}

/// An answer, and how much of it there was.
struct Answered<'a> {
    answer: &'a Answer<'a>,
    text: Option<&'a Text<'a>>,
    status: Option<u16>,
}

fn read_took(call: &mut ElasticsearchCall, answered: &Answered<'_>, response: &Response<'_>) {
    let answer = answered.answer;
    call.took_ms = answer.took_ms;
    let is_empty = response.body.is_empty() && response.body_complete;
    let is_due = answered.status.is_some_and(|status| status < 300) && !is_empty;
    if call.took_ms.is_none() && is_due {
        match answered.text {
            None => call.unknown.push(Unknown::AnswerFormat),
            Some(text) if !text.complete && !answer.ended => call.unknown.push(Unknown::AnswerCut),
            Some(_) => {}
        }
    }
}

fn read_bulk(
    call: &mut ElasticsearchCall,
    request: &Request<'_>,
    answered: &Answered<'_>,
    counted: &Counted,
) {
    let answer = answered.answer;
    call.took_ms = answer.took_ms;
    call.errors = answer.errors;
    let requested = counted
        .requested
        .or_else(|| whole_request(request).and_then(|text| bulk::count_operations(&text.bytes)));
    // What was read of it piece by piece begins where the answer does, and goes further.
    let (mut items, items_whole) = counted.items.unwrap_or((answer.items, answer.items_whole));
    let succeeded = answered.status.is_some_and(|status| status < 300);
    let rest = |action| match answered.status {
        // Refused as a whole: no item was looked at.
        Some(status) if !succeeded => bulk::outcome_of(status.into()),
        // That the document to delete is not there is no error.
        Some(_) if answer.errors == Some(false) && action != BulkAction::Delete => {
            BulkOutcome::Succeeded
        }
        _ => BulkOutcome::Unknown,
    };
    if items_whole {
        call.batch_size = Some(items.total());
    } else if let Some(requested) = requested {
        call.batch_size = Some(requested.iter().sum());
        items.add_rest(&requested, rest);
    } else {
        call.unknown.push(Unknown::BulkItemsCut);
        if succeeded && answer.took_ms.is_none() {
            let is_read = answered.text.is_some();
            call.unknown.push(if is_read {
                Unknown::AnswerCut
            } else {
                Unknown::AnswerFormat
            });
        }
    }
    call.bulk_items = items.items();
}

/// The request's body as text, if all of it was captured.
fn whole_request<'a>(request: &Request<'a>) -> Option<Text<'a>> {
    if !body::is_json(request.content_type) {
        return None;
    }
    let text = body::decoded(
        request.content_encoding,
        request.body,
        request.body_complete,
    )?;
    text.complete.then_some(text)
}
