//! Calls of a search cluster, told from the bytes of a connection.

mod wire;

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use protocol::Direction;
use protocol::Limits;
use protocol::observation::{BulkAction, BulkOutcome, ElasticsearchCall, SearchProduct, Unknown};
use wire::Wire;
use wire::kernel::{Fate, Kernel};

const SEARCH: &[u8] = b"POST /books/_search?q=secret HTTP/1.1\r\nHost: es:9200\r\n\
    Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"query\": {}}";
const ANSWER: &str = r#"{"took":7,"timed_out":false,"_shards":{"failed":0},"hits":{"hits":[]}}"#;

const JSON: &str = "Content-Type: application/json\r\n";

fn response(fields: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!("HTTP/1.1 200 OK\r\n{fields}{JSON}Content-Length: {len}\r\n\r\n{body}").into_bytes()
}

fn call(wire: &mut Wire) -> Option<ElasticsearchCall> {
    wire.exchange().elasticsearch.map(|call| *call)
}

#[test]
fn a_search_is_told_by_the_product_header() {
    let mut wire = Wire::client();
    wire.request(SEARCH);
    wire.response(&response("X-elastic-product: Elasticsearch\r\n", ANSWER));
    let call = call(&mut wire).unwrap();
    assert_eq!(call.product, SearchProduct::Elasticsearch);
    assert_eq!(call.operation, Some("search"));
    assert_eq!(&*call.collection, "books");
    assert_eq!(call.took_ms, Some(7));
    let product = wire.connection.search_product();
    assert_eq!(product, Some(SearchProduct::Elasticsearch));
}

#[test]
fn who_answered_is_told_by_the_heads_fields() {
    let answered = |fields: &str| {
        let mut wire = Wire::client();
        wire.request(SEARCH);
        let product = "X-elastic-product: Elasticsearch\r\n";
        wire.response(&response(&format!("{product}{fields}"), ANSWER));
        let call = call(&mut wire).unwrap();
        [call.namespace, call.node].map(|name| name.map(String::from))
    };
    let told = answered(
        "X-Found-Handling-Cluster: 9c5f0fae\r\nx-found-handling-instance: instance-0000000001\r\n\
         X-Opaque-Id: mine\r\n",
    );
    let expected = ["9c5f0fae", "instance-0000000001"];
    assert_eq!(told, expected.map(|name| Some(name.to_owned())));
    assert_eq!(answered("X-Opaque-Id: mine\r\n"), [None, None]);
    // Neither long names nor anything that is no name.
    let long = "x".repeat(129);
    for name in ["", "two words", "ü", &long] {
        let fields =
            format!("X-Found-Handling-Cluster: {name}\r\nX-Found-Handling-Instance: {name}\r\n");
        assert_eq!(answered(&fields), [None, None], "{name}");
    }
}

#[test]
fn a_chunked_answer_cut_anywhere_is_read_without_its_framing() {
    let (first, second) = ANSWER.split_at(9);
    let body = format!(
        "{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\nX-elastic-product: Elasticsearch\r\n{JSON}\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let answer = format!("{head}{body}");
    for cut in head.len()..answer.len() {
        let mut wire = Wire::client();
        wire.request(SEARCH);
        wire.response(&answer.as_bytes()[..cut]);
        wire.response(&answer.as_bytes()[cut..]);
        let exchange = wire.exchange();
        assert_eq!(exchange.elasticsearch.unwrap().took_ms, Some(7), "{cut}");
    }
}

#[test]
fn the_beginning_of_a_long_answer_is_enough() {
    let mut kernel = Kernel::new(Direction::Egress, 400);
    let body = format!("{}{}", &ANSWER[..ANSWER.len() - 1], " ".repeat(5000)) + "}";
    kernel.send(true, SEARCH, Fate::Shown);
    let answer = response("X-elastic-product: Elasticsearch\r\n", &body);
    kernel.send(false, &answer, Fate::Shown);
    kernel.wire.poll_progress();
    assert_eq!(call(&mut kernel.wire).unwrap().took_ms, Some(7));
}

#[test]
fn what_is_captured_behind_a_hole_is_not_taken_for_the_beginning() {
    let mut wire = Wire::client();
    wire.request(SEARCH);
    let answer = response("X-elastic-product: Elasticsearch\r\n", ANSWER);
    let head = answer.len() - ANSWER.len();
    wire.response(&answer[..head]);
    wire.advance(false, 4);
    wire.response(&answer[head + 4..]);
    assert_eq!(call(&mut wire).unwrap().took_ms, None);
}

#[test]
fn an_endpoint_known_to_be_a_cluster_needs_no_header() {
    let mut wire = Wire::client();
    let opensearch = SearchProduct::OpenSearch;
    wire.connection.set_search_cluster(opensearch.into());
    wire.request(SEARCH);
    wire.response(&response("", ANSWER));
    let call = call(&mut wire).unwrap();
    assert_eq!(
        (call.product, call.took_ms),
        (SearchProduct::OpenSearch, Some(7))
    );
}

#[test]
fn an_ordinary_service_is_no_cluster() {
    let mut wire = Wire::client();
    wire.request(SEARCH);
    wire.response(&response("", r#"{"found": []}"#));
    assert_eq!(call(&mut wire), None);
}

/// A bulk request of 300 operations, answered without its items, as with `filter_path=took,errors`.
/// `hole`: some of it goes unseen.
fn bulk_without_items(hole: bool) -> Option<ElasticsearchCall> {
    let body = "{\"index\":{}}\n{\"a\":1}\n".repeat(300);
    let mut wire = Wire::new(Direction::Egress, short());
    let head = format!(
        "POST /books/_bulk HTTP/1.1\r\nContent-Type: application/x-ndjson\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    wire.request(head.as_bytes());
    let (first, rest) = body.as_bytes().split_at(4000);
    wire.request(first);
    if hole {
        wire.advance(true, 100);
    }
    wire.request(&rest[if hole { 100 } else { 0 }..]);
    let answer = r#"{"took":3,"errors":false}"#;
    wire.response(&response("X-elastic-product: Elasticsearch\r\n", answer));
    call(&mut wire)
}

/// Far less is kept of a body than the bodies of bulk requests have.
fn short() -> Limits {
    Limits {
        body_prefix_bytes: 1000,
        ..Limits::default()
    }
}

#[test]
fn a_bulk_request_is_counted_to_its_end() {
    let call = bulk_without_items(false).unwrap();
    assert_eq!(call.operation, Some("bulk"));
    assert_eq!(call.batch_size, Some(300));
    let [items] = &call.bulk_items[..] else {
        panic!("{:?}", call.bulk_items);
    };
    assert_eq!(
        (items.action, items.outcome, items.count),
        (BulkAction::Index, BulkOutcome::Succeeded, 300)
    );
}

#[test]
fn a_bulk_request_with_a_hole_is_of_unknown_size() {
    let call = bulk_without_items(true).unwrap();
    assert_eq!((call.batch_size, call.errors), (None, Some(false)));
    assert_eq!(call.unknown, [Unknown::BulkItemsCut]);
}

#[test]
fn a_long_bulk_answer_is_counted_in_any_pieces() {
    let mut body = String::from(r#"{"took":3,"errors":true,"items":["#);
    for number in 0..500 {
        let (action, status) = match number % 5 {
            0 => ("create", 409),
            1 => ("update", 200),
            2 => ("delete", 404),
            3 => ("index", 400),
            _ => ("index", 201),
        };
        let comma = if number == 0 { "" } else { "," };
        body += &format!(r#"{comma}{{"{action}":{{"_id":"{number}","status":{status}}}}}"#);
    }
    body += "]}";
    let compressed = {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(body.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    for (coding, body) in [("identity", body.as_bytes()), ("gzip", &compressed)] {
        for piece_bytes in [137, 1_000, 16_384] {
            let mut wire = Wire::new(Direction::Egress, short());
            wire.request(
                b"POST /_bulk HTTP/1.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: 0\r\n\r\n",
            );
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\nX-elastic-product: Elasticsearch\r\n{JSON}\
                 Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            .into_bytes();
            for chunk in body.chunks(700) {
                answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                answer.extend_from_slice(chunk);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\n\r\n");
            for piece in answer.chunks(piece_bytes) {
                wire.response(piece);
            }
            let call = call(&mut wire).unwrap();
            assert_eq!(call.batch_size, Some(500), "{coding} {piece_bytes}");
            let counted = |action, outcome| {
                let mut items = call.bulk_items.iter();
                let found = items.find(|it| (it.action, it.outcome) == (action, outcome));
                found.map_or(0, |items| items.count)
            };
            for (action, outcome) in [
                (BulkAction::Create, BulkOutcome::Conflict),
                (BulkAction::Update, BulkOutcome::Succeeded),
                (BulkAction::Delete, BulkOutcome::NotFound),
                (BulkAction::Index, BulkOutcome::Failed),
                (BulkAction::Index, BulkOutcome::Succeeded),
            ] {
                assert_eq!(counted(action, outcome), 100, "{action:?} {outcome:?}");
            }
        }
    }
}
