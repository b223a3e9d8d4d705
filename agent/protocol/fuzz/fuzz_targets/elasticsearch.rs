//! Any exchange is understood without a panic, and the more of an answer there is, the more is known
//! of it: what its beginning told, all of it tells too.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use protocol::elasticsearch::{
    Cluster, HandledBy, Request, Response, is_candidate, observe, product_from_header,
};
use protocol::observation::SearchProduct;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input<'a> {
    path: &'a str,
    method: u8,
    path_of_table: u8,
    coding: u8,
    status: Option<u16>,
    known: bool,
    request_body: &'a [u8],
    body: &'a [u8],
    captured: u16,
    field: (&'a [u8], &'a [u8]),
}

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "HEAD", "DELETE"];
const PATHS: [&str; 5] = [
    "/",
    "/_search",
    "/_bulk",
    "/_cluster/health",
    "/books/_doc/1",
];
const CODINGS: [Option<&[u8]>; 4] = [None, Some(b"gzip"), Some(b"deflate"), Some(b"zstd")];

fuzz_target!(|input: Input<'_>| {
    let method = METHODS[usize::from(input.method) % METHODS.len()];
    let path = PATHS
        .get(usize::from(input.path_of_table))
        .copied()
        .unwrap_or(input.path);
    let content_encoding = CODINGS[usize::from(input.coding) % CODINGS.len()];
    let request = Request {
        method,
        path,
        query: None,
        content_type: Some(b"application/x-ndjson"),
        content_encoding,
        body: input.request_body,
        body_complete: true,
    };
    let mut handled_by = HandledBy::default();
    handled_by.read(input.field.0, input.field.1);
    let response = Response {
        status: input.status,
        product: product_from_header(input.field.0, input.field.1),
        handled_by,
        content_type: Some(b"application/json"),
        content_encoding,
        body: input.body,
        body_complete: true,
    };
    let _candidate = is_candidate(method, path);
    let known = input
        .known
        .then(|| Cluster::from(SearchProduct::OpenSearch));
    let Some(whole) = observe(&request, &response, known.as_ref(), 64) else {
        return;
    };
    assert!(whole.collection.len() <= 256);

    let captured = usize::from(input.captured).min(input.body.len());
    let beginning = Response {
        body: &input.body[..captured],
        body_complete: false,
        ..response
    };
    if let Some(part) = observe(&request, &beginning, known.as_ref(), 64) {
        assert_eq!(part.operation, whole.operation);
        // A decoder that meets broken data may keep back what it had decoded just before.
        let broken = content_encoding.is_some();
        assert!(agrees(part.took_ms, whole.took_ms, broken));
        assert!(agrees(part.timed_out, whole.timed_out, broken));
        assert!(agrees(part.errors, whole.errors, broken));
        assert!(agrees(part.hits, whole.hits, broken));
        assert!(agrees(part.shards, whole.shards, broken));
        assert!(agrees(part.error_type, whole.error_type, broken));
    }
});

fn agrees<T: PartialEq>(part: Option<T>, whole: Option<T>, broken: bool) -> bool {
    part.is_none() || part == whole || (broken && whole.is_none())
}
