//! The lines of a bulk or `msearch` request, whatever is in them, are counted without a panic; every item
//! has one outcome; and a query's masked text holds nothing of its values.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use protocol::elasticsearch::{Cluster, HandledBy, Request, Response, observe};
use protocol::observation::SearchProduct;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input<'a> {
    is_bulk: bool,
    query_bytes: u8,
    status: u16,
    request: &'a [u8],
    answer: &'a [u8],
    answer_complete: bool,
}

fuzz_target!(|input: Input<'_>| {
    let request = Request {
        method: "POST",
        path: if input.is_bulk { "/_bulk" } else { "/_msearch" },
        query: None,
        content_type: Some(b"application/x-ndjson"),
        content_encoding: None,
        body: input.request,
        body_complete: true,
    };
    let response = Response {
        status: Some(input.status),
        product: None,
        handled_by: HandledBy::default(),
        content_type: Some(b"application/json"),
        content_encoding: None,
        body: input.answer,
        body_complete: input.answer_complete,
    };
    let cluster = Cluster::from(SearchProduct::OpenSearch);
    let query_bytes = usize::from(input.query_bytes);
    let call = observe(&request, &response, Some(&cluster), query_bytes).expect("a known cluster");
    let items: u64 = call.bulk_items.iter().map(|items| items.count).sum();
    if let (Some(batch_size), true) = (call.batch_size, input.is_bulk) {
        // An answer can have more items than the request asked for only where it is not the server's.
        assert!(items >= batch_size, "{items} of {batch_size}");
    }
    if let Some(text) = call.query_text {
        assert!(text.len() <= query_bytes);
        assert!(!text.contains(['"', '\\', '\n']));
    }
});
