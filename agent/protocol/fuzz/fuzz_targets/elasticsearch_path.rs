//! Any path on any cluster is understood without a panic, and what it is said to name is in it.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use protocol::elasticsearch::{Cluster, HandledBy, Request, Response, observe, path_parameters};
use protocol::observation::SearchProduct;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input<'a> {
    method: &'a str,
    path: &'a str,
    prefix: &'a str,
    status: Option<u16>,
    told: bool,
}

fuzz_target!(|input: Input<'_>| {
    let request = Request {
        method: input.method,
        path: input.path,
        query: None,
        content_type: None,
        content_encoding: None,
        body: b"",
        body_complete: true,
    };
    let response = Response {
        status: input.status,
        product: input.told.then_some(SearchProduct::Elasticsearch),
        handled_by: HandledBy::default(),
        content_type: None,
        content_encoding: None,
        body: b"",
        body_complete: true,
    };
    let mut cluster = Cluster::from(SearchProduct::Elasticsearch);
    cluster.prefixes = [input.prefix.into()].into();
    let Some(call) = observe(&request, &response, Some(&cluster), 0) else {
        return;
    };
    assert!(call.collection.len() <= 256);
    assert!(input.path.starts_with(&*call.prefix));
    let parameters = path_parameters(input.method, input.path, &call).count();
    assert!(parameters == 0 || call.operation.is_some());
    assert!(call.collection.is_empty() || parameters > 0);
});
