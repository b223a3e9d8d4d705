use super::*;
use crate::observation::{BulkAction, BulkItems, BulkOutcome};

#[test]
fn a_bulk_is_understood() {
    let request = Request {
        body: BULK_REQUEST.as_bytes(),
        ..request("POST", "/_bulk")
    };
    let call = observe(&request, &response(200, BULK.as_bytes()), None, 0).expect("a call");
    assert_eq!((call.operation, &*call.collection), (Some("bulk"), ""));
    assert_eq!((call.took_ms, call.errors), (Some(437), Some(true)));
    assert_eq!(call.batch_size, Some(2), "the answer is whole");
    let items = [
        items(BulkAction::Index, BulkOutcome::Succeeded, 1),
        items(BulkAction::Delete, BulkOutcome::NotFound, 1),
    ];
    assert_eq!(call.bulk_items, items);
}

fn items(action: BulkAction, outcome: BulkOutcome, count: u64) -> BulkItems {
    BulkItems {
        action,
        outcome,
        count,
    }
}

/// What is told of a bulk request of three, of whose answer the first `captured` bytes are known.
fn bulk_of_three(
    status: u16,
    answer: &str,
    captured: usize,
    request_complete: bool,
) -> ElasticsearchCall {
    let request = Request {
        body: BULK_REQUEST.as_bytes(),
        body_complete: request_complete,
        ..request("POST", "/_bulk")
    };
    let response = Response {
        body_complete: captured >= answer.len(),
        ..response(status, &answer.as_bytes()[..captured])
    };
    let known = SearchProduct::Elasticsearch.into();
    observe(&request, &response, Some(&known), 0).expect("a call")
}

#[test]
fn items_whose_answer_was_not_captured_are_unknown_and_not_zero() {
    use BulkAction::{Create, Delete, Index};
    use BulkOutcome::{Rejected, Succeeded, Unknown as Untold};
    // Behind the first item.
    let captured = BULK.find(",{\"delete\"").expect("the second item");
    let call = bulk_of_three(200, BULK, captured, true);
    let expected = [
        items(Index, Succeeded, 1),
        items(Create, Untold, 1),
        items(Delete, Untold, 1),
    ];
    assert_eq!(call.bulk_items, expected);
    assert_eq!((call.batch_size, &call.unknown[..]), (Some(3), &[][..]));

    // An answer without errors tells of most items by its beginning.
    let good = BULK.replace("\"errors\":true", "\"errors\":false");
    let call = bulk_of_three(200, &good, 40, true);
    let expected = [
        items(Index, Succeeded, 1),
        items(Create, Succeeded, 1),
        // It may have found nothing to delete, which is no error.
        items(Delete, Untold, 1),
    ];
    assert_eq!(call.bulk_items, expected);
    let call = bulk_of_three(200, &good, good.len(), true);
    let expected = [
        items(Index, Succeeded, 1),
        items(Delete, BulkOutcome::NotFound, 1),
    ];
    assert_eq!(call.bulk_items, expected);

    // Refused as a whole.
    let call = bulk_of_three(429, NO_INDEX, NO_INDEX.len(), true);
    let expected = [Index, Create, Delete].map(|action| items(action, Rejected, 1));
    assert_eq!(call.bulk_items, expected);

    // Neither body is whole.
    let call = bulk_of_three(200, BULK, captured, false);
    assert_eq!(call.bulk_items, [items(Index, Succeeded, 1)]);
    assert_eq!(call.batch_size, None);
    assert_eq!(call.unknown, [Unknown::BulkItemsCut]);
}

#[test]
fn outcomes_are_told_by_their_status() {
    let outcome = |status: u64| bulk::outcome_of(status);
    assert_eq!(outcome(201), BulkOutcome::Succeeded);
    assert_eq!(outcome(404), BulkOutcome::NotFound);
    assert_eq!(outcome(409), BulkOutcome::Conflict);
    assert_eq!(outcome(429), BulkOutcome::Rejected);
    assert_eq!(outcome(400), BulkOutcome::Failed);
}

#[test]
fn an_msearch_tells_how_many_searches_it_was() {
    let body = b"{}\n{\"size\":0}\n\n{}\n";
    let request = Request {
        body,
        ..request("POST", "/_msearch")
    };
    let whole = observe(&request, &response(200, MSEARCH.as_bytes()), None, 0).expect("a call");
    assert_eq!((whole.took_ms, whole.batch_size), (Some(8), Some(1)));
    let cut = Response {
        body_complete: false,
        ..response(200, &MSEARCH.as_bytes()[..40])
    };
    let cut = observe(&request, &cut, None, 0).expect("a call");
    assert_eq!((cut.took_ms, cut.batch_size), (Some(8), Some(2)));
}

#[test]
fn a_bulk_request_counts_only_where_it_is_whole_and_well_formed() {
    let batch_size = |body: &str, content_type: &'static [u8], body_complete| {
        let request = Request {
            body: body.as_bytes(),
            content_type: Some(content_type),
            body_complete,
            ..request("POST", "/_bulk")
        };
        let answer = Response {
            body_complete: false,
            ..response(200, &BULK.as_bytes()[..60])
        };
        observe(&request, &answer, None, 0)
            .expect("a call")
            .batch_size
    };
    let ndjson = b"application/vnd.elasticsearch+x-ndjson;compatible-with=8";
    assert_eq!(batch_size(BULK_REQUEST, ndjson, true), Some(3));
    assert_eq!(batch_size(BULK_REQUEST, b"application/json", true), Some(3));
    assert_eq!(batch_size(BULK_REQUEST, ndjson, false), None);
    assert_eq!(batch_size(BULK_REQUEST, b"application/cbor", true), None);
    assert_eq!(
        batch_size("{\"index\":{}}", ndjson, true),
        None,
        "no document"
    );
    assert_eq!(
        batch_size("{\"upsert\":{}}\n{}\n", ndjson, true),
        None,
        "no such action"
    );
    assert_eq!(batch_size("{}\n{}\n", ndjson, true), None, "no action");
    assert_eq!(
        batch_size("{\"delete\":{}}", ndjson, true),
        Some(1),
        "no newline at the end"
    );
}
