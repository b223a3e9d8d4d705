//! The answers are those of Elasticsearch 7.17.29 and OpenSearch 2.19.1, shortened where a test tells.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;

use super::*;
use crate::observation::ClusterHealth;

const JSON: &[u8] = b"application/json; charset=UTF-8";

const SEARCH: &str = r#"{"took":120,"timed_out":false,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0},"hits":{"total":{"value":1,"relation":"eq"},"max_score":1.0,"hits":[{"_index":"books","_id":"1","_score":1.0,"_source":{"took":5}}]}}"#;
const BULK: &str = r#"{"took":437,"errors":true,"items":[{"index":{"_index":"books","_id":"1","_version":1,"result":"created","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":0,"_primary_term":1,"status":201}},{"delete":{"_index":"books","_id":"9","_version":1,"result":"not_found","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":1,"_primary_term":1,"status":404}}]}"#;
const BULK_REQUEST: &str = "{\"index\":{\"_id\":\"1\"}}\n{\"delete\":{}}\n{ \"delete\" : {\"_id\":\"9\"}}\n\n{\"create\":{}}\r\n{}\n";
const COUNT: &str = r#"{"count":1,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0}}"#;
const GET: &str = r#"{"_index":"books","_id":"1","_version":1,"_seq_no":0,"_primary_term":1,"found":true,"_source":{"t":"a"}}"#;
const INDEX: &str = r#"{"_index":"books","_id":"5","_version":1,"result":"created","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":2,"_primary_term":1}"#;
const NO_INDEX: &str = r#"{"error":{"root_cause":[{"type":"index_not_found_exception","reason":"no such index [nope]","index":"nope"}],"type":"index_not_found_exception","reason":"no such index [nope]","index":"nope"},"status":404}"#;
const HEALTH: &str = r#"{"cluster_name":"test","status":"yellow","timed_out":false,"number_of_nodes":1,"number_of_data_nodes":1,"discovered_master":true,"active_primary_shards":1}"#;
const MSEARCH: &str = r#"{"took":8,"responses":[{"took":7,"timed_out":false,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0},"hits":{"hits":[]},"status":200}]}"#;
const ELASTICSEARCH_ROOT: &str = r#"{
  "name" : "n1", "cluster_name" : "test",
  "version" : { "number" : "7.10.2", "build_flavor" : "unknown" },
  "tagline" : "You Know, for Search"
}"#;
const OPENSEARCH_ROOT: &str = r#"{
  "name" : "n1", "cluster_name" : "test",
  "version" : { "distribution" : "opensearch", "number" : "2.19.1" },
  "tagline" : "The OpenSearch Project: https://opensearch.org/"
}"#;

fn request<'a>(method: &'a str, path: &'a str) -> Request<'a> {
    Request {
        method,
        path,
        query: None,
        content_type: Some(b"application/x-ndjson"),
        content_encoding: None,
        body: b"",
        body_complete: true,
    }
}

fn response(status: u16, body: &[u8]) -> Response<'_> {
    Response {
        status: Some(status),
        product: None,
        content_type: Some(JSON),
        content_encoding: None,
        body,
        body_complete: true,
    }
}

fn call(method: &str, path: &str, status: u16, body: &str) -> Option<ElasticsearchCall> {
    let known = Some(SearchProduct::Elasticsearch);
    observe(
        &request(method, path),
        &response(status, body.as_bytes()),
        known,
    )
}

#[test]
fn a_search_is_understood() {
    let call = call("POST", "/books/_search", 200, SEARCH).expect("a call");
    let expected = ElasticsearchCall {
        product: SearchProduct::Elasticsearch,
        operation: Some("search"),
        collection: "books".into(),
        took_ms: Some(120),
        timed_out: Some(false),
        errors: None,
        batch_size: None,
        cluster_health: None,
        cluster_name: None,
    };
    assert_eq!(call, expected);
}

#[test]
fn a_bulk_is_understood() {
    let request = Request {
        body: BULK_REQUEST.as_bytes(),
        ..request("POST", "/_bulk")
    };
    let call = observe(&request, &response(200, BULK.as_bytes()), None).expect("a call");
    assert_eq!((call.operation, &*call.collection), (Some("bulk"), ""));
    assert_eq!(
        (call.took_ms, call.errors, call.batch_size),
        (Some(437), Some(true), Some(3))
    );
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
        observe(&request, &response(200, BULK.as_bytes()), None)
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

#[test]
fn cluster_health_is_understood() {
    let whole = call("GET", "/_cluster/health", 200, HEALTH).expect("a call");
    assert_eq!(whole.operation, Some("cluster.health"));
    assert_eq!(whole.cluster_health, Some(ClusterHealth::Yellow));
    assert_eq!(whole.cluster_name.as_deref(), Some("test"));

    let of_an_index = call("GET", "/_cluster/health/books", 200, HEALTH).expect("a call");
    assert_eq!(&*of_an_index.collection, "books");
    assert_eq!(
        of_an_index.cluster_health, None,
        "an index's status is not the cluster's"
    );
}

#[test]
fn members_count_only_where_the_api_has_them() {
    let body = r#"{"took":5,"timed_out":true,"errors":true,"status":"red","cluster_name":"x"}"#;
    for path in ["/books/_doc/1", "/books/_source/1", "/_cluster/state"] {
        let call = call("GET", path, 200, body).expect("a call");
        assert_eq!(
            (call.took_ms, call.timed_out, call.errors),
            (None, None, None),
            "{path}"
        );
        assert_eq!(
            (call.cluster_health, call.cluster_name),
            (None, None),
            "{path}"
        );
    }
}

#[test]
fn a_took_that_is_no_count_of_milliseconds_is_unknown() {
    for took in [
        "-1",
        "1.5",
        "1e3",
        "\"7\"",
        "null",
        "99999999999999999999",
        "[3]",
        "{\"took\":3}",
    ] {
        let body = format!(r#"{{"took":{took},"timed_out":false}}"#);
        let call = call("GET", "/_search", 200, &body).expect("a call");
        assert_eq!(call.took_ms, None, "{took}");
    }
    let nested = r#"{"hits":{"took":1},"a":"\"took\":2","b":[{"took":3}],"took":4}"#;
    assert_eq!(
        call("GET", "/_search", 200, nested)
            .expect("a call")
            .took_ms,
        Some(4)
    );
}

#[test]
fn other_formats_and_codings_are_unknown() {
    let (request, known) = (request("GET", "/_search"), Some(SearchProduct::OpenSearch));
    let json = response(200, SEARCH.as_bytes());
    for content_type in [
        &b"application/cbor"[..],
        b"application/smile",
        b"application/yaml",
        b"",
    ] {
        let response = Response {
            content_type: Some(content_type),
            ..json
        };
        assert_eq!(
            observe(&request, &response, known).expect("a call").took_ms,
            None
        );
    }
    for content_encoding in [&b"zstd"[..], b"br", b"gzip, gzip"] {
        let response = Response {
            content_encoding: Some(content_encoding),
            ..json
        };
        assert_eq!(
            observe(&request, &response, known).expect("a call").took_ms,
            None
        );
    }
}

#[test]
fn compressed_bodies_are_read() {
    let request = request("GET", "/_search");
    for (coding, body) in compressed(SEARCH.as_bytes()) {
        let response = Response {
            content_encoding: Some(coding),
            ..response(200, &body)
        };
        let call = observe(&request, &response, None).expect("a call");
        assert_eq!(call.took_ms, Some(120), "{coding:?}");
    }
    for (coding, body) in compressed(BULK_REQUEST.as_bytes()) {
        let request = Request {
            path: "/_bulk",
            body: &body,
            content_encoding: Some(coding),
            ..request
        };
        assert_eq!(batch_size(&request), Some(3), "{coding:?}");
        let cut = Request {
            body: &body[..body.len() - 1],
            ..request
        };
        assert_eq!(batch_size(&cut), None, "{coding:?}");
    }
}

#[test]
fn a_body_that_swells_is_read_up_to_a_bound() {
    let mut body = br#"{"took":3,"timed_out":false,"a":""#.to_vec();
    body.resize(8 << 20, b' ');
    for (coding, body) in compressed(&body) {
        let text = body::decoded(Some(coding), &body, true).expect("a known coding");
        assert_eq!(
            (text.bytes.len(), text.complete),
            (body::MAX_DECODED_BYTES, false)
        );
        assert_eq!(Answer::scan(&text.bytes).took_ms, Some(3));
    }
}

fn compressed(body: &[u8]) -> Vec<(&'static [u8], Vec<u8>)> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(body).expect("in memory");
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(body).expect("in memory");
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
    raw.write_all(body).expect("in memory");
    let gzip = gzip.finish().expect("in memory");
    let zlib = zlib.finish().expect("in memory");
    let raw = raw.finish().expect("in memory");
    vec![
        (b"gzip", gzip.clone()),
        (b"x-gzip", gzip),
        (b"deflate", zlib),
        (b"deflate", raw),
    ]
}

#[test]
fn product_fields_are_known() {
    let product = |name: &str, value: &str| product_from_header(name.as_bytes(), value.as_bytes());
    assert_eq!(
        product("X-elastic-product", "Elasticsearch"),
        Some(SearchProduct::Elasticsearch)
    );
    assert_eq!(
        product("x-opensearch-version", "OpenSearch/3.3.2 (opensearch)"),
        Some(SearchProduct::OpenSearch)
    );
    assert_eq!(product("X-elastic-product", "Kibana"), None);
    assert_eq!(product("server", "Elasticsearch"), None);
}

#[test]
fn answers_of_opensearch_2_are_recognized_by_their_shape() {
    for (method, path, status, body, operation) in [
        ("POST", "/books/_search", 200, SEARCH, "search"),
        ("POST", "/_bulk", 200, BULK, "bulk"),
        ("GET", "/books/_count", 200, COUNT, "count"),
        ("GET", "/books/_doc/1", 200, GET, "get"),
        (
            "GET",
            "/books/_doc/1",
            404,
            r#"{"_index":"b","_id":"7","found":false}"#,
            "get",
        ),
        ("PUT", "/books/_doc/5", 201, INDEX, "index"),
        ("GET", "/nope/_search", 404, NO_INDEX, "search"),
        ("GET", "/_cluster/health", 200, HEALTH, "cluster.health"),
        ("POST", "/_msearch", 200, MSEARCH, "msearch"),
    ] {
        let call = observe(
            &request(method, path),
            &response(status, body.as_bytes()),
            None,
        );
        let call = call.unwrap_or_else(|| panic!("{method} {path} is a call"));
        assert_eq!(
            (call.product, call.operation),
            (SearchProduct::OpenSearch, Some(operation))
        );
        // Cut where the head of a large answer ends, it is either recognized or not a call.
        let cut = observe(
            &request(method, path),
            &response(status, &body.as_bytes()[..9]),
            None,
        );
        assert_eq!(cut, None);
    }
}

#[test]
fn the_root_tells_the_product() {
    let product = |body: &str| {
        observe(&request("GET", "/"), &response(200, body.as_bytes()), None)
            .map(|call| call.product)
    };
    assert_eq!(
        product(ELASTICSEARCH_ROOT),
        Some(SearchProduct::Elasticsearch)
    );
    assert_eq!(product(OPENSEARCH_ROOT), Some(SearchProduct::OpenSearch));
    assert_eq!(product(r#"{"tagline":"You Know, for Search"}"#), None);
    assert_eq!(
        product(r#"{"version":{"number":"1"},"tagline":"Hello"}"#),
        None
    );
}

#[test]
fn a_service_that_merely_has_the_path_is_no_cluster() {
    for (path, status, body) in [
        ("/_search", 200, r#"{"results":[],"took":3}"#),
        ("/api/_search", 200, r#"{"took":3,"timed_out":false}"#),
        ("/_bulk", 200, r#"{"took":3,"errors":[]}"#),
        ("/_cluster/health", 200, r#"{"status":"green"}"#),
        ("/_search", 404, r#"{"error":"not found","status":404}"#),
        ("/_search", 500, NO_INDEX), // the code inside is another
        ("/users", 200, SEARCH),
        ("/users/_nope", 404, NO_INDEX),
    ] {
        let call = observe(
            &request("POST", path),
            &response(status, body.as_bytes()),
            None,
        );
        assert_eq!(call, None, "{path} {body}");
    }
}

#[test]
fn on_a_known_cluster_an_unknown_path_has_no_operation() {
    let unknown = call("GET", "/books/_nope", 400, "").expect("a call");
    assert_eq!((unknown.operation, &*unknown.collection), (None, ""));
    assert_eq!(
        call("GET", "/api/books/1", 200, "{}"),
        None,
        "another service behind one proxy"
    );

    let told = Some(SearchProduct::OpenSearch);
    let response = Response {
        product: told,
        ..response(200, b"{}")
    };
    let told = observe(&request("GET", "/api/books/1"), &response, None).expect("it says so");
    assert_eq!(
        (told.product, told.operation),
        (SearchProduct::OpenSearch, None)
    );
}

#[test]
fn a_call_without_an_answer_is_a_call() {
    let none = Response {
        status: None,
        content_type: None,
        ..response(0, b"")
    };
    let known = Some(SearchProduct::OpenSearch);
    let call = observe(&request("GET", "/books/_search"), &none, known).expect("a call");
    assert_eq!((call.operation, call.took_ms), (Some("search"), None));
    assert_eq!(
        observe(&request("GET", "/books/_search"), &none, None),
        None
    );
}

#[test]
fn candidates_have_the_form_of_the_api() {
    for path in ["/", "/_search", "/books/_doc/1", "/_cat/indices", "/_nope"] {
        assert!(is_candidate("GET", path), "{path}");
    }
    for path in [
        "",
        "*",
        "/users",
        "/api/v1/_search",
        "/users/1",
        "/static/a_b.js",
    ] {
        assert!(!is_candidate("GET", path), "{path}");
    }
    assert!(!is_candidate("OPTIONS", "/_search"));
}

/// Members in any order, with values of every kind and whitespace of every kind between.
fn answer_text() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        r#""(\\"|\\\\|took|[a-z:,{}\[\]])*""#,
        "-?[1-9][0-9]{0,4}(\\.[0-9]{1,2})?",
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just(r#"{"took":1,"a":[{"b":"}]"}]}"#.to_owned()),
        Just(r#"[[],{},"]",2]"#.to_owned()),
    ];
    let space = "[ \t\r\n]{0,2}";
    let member = ("(took|timed_out|errors|_shards|hits)", value, space)
        .prop_map(|(key, value, space)| format!(r#"{space}"{key}"{space}:{space}{value}{space}"#));
    prop::collection::vec(member, 0..8).prop_map(|members| format!("{{{}}}", members.join(",")))
}

proptest! {
    #[test]
    fn what_was_captured_of_an_answer_never_tells_something_else(
        text in answer_text(), took in any::<u64>(), coding in 0..5_usize, cut in any::<prop::sample::Index>(),
    ) {
        let text = format!(r#"{{"took":{took},{}"#, &text[1..]).replace(",}", "}");
        let (coding, body) = match compressed(text.as_bytes()).into_iter().nth(coding) {
            Some((coding, body)) => (Some(coding), body),
            None => (None, text.into_bytes()),
        };
        let scan = |body: &[u8], body_complete| {
            let response = Response { content_encoding: coding, body_complete, ..response(200, body) };
            let known = Some(SearchProduct::Elasticsearch);
            observe(&request("GET", "/_search"), &response, known).expect("a call")
        };
        let whole = scan(&body, true);
        prop_assert_eq!(whole.took_ms, Some(took));
        let part = scan(&body[..cut.index(body.len() + 1)], false);
        prop_assert!(part.took_ms.is_none() || part.took_ms == whole.took_ms);
        prop_assert!(part.timed_out.is_none() || part.timed_out == whole.timed_out);
    }

    #[test]
    fn bulk_operations_are_counted(actions in prop::collection::vec(0..4_usize, 0..50)) {
        let mut body = String::new();
        for action in &actions {
            body += ["{\"index\":{\"_id\":\"}\\n\"}}\n{\"delete\":{}}\n", "{\"create\":{}}\n\n",
                "{\"update\":{\"_id\":\"1\"}}\n{\"doc\":{}}\n", "{\"delete\":{\"_id\":\"1\"}}\n"][*action];
        }
        prop_assert_eq!(bulk::count_operations(body.as_bytes()), Some(actions.len() as u64));
    }

    #[test]
    fn no_input_panics(
        method in "GET|POST|PUT|HEAD|DELETE", path in "(/(_search|_bulk|_cluster|health|%[0-9a-f]|.{0,3})){0,20}",
        body in prop::collection::vec(any::<u8>(), 0..200), coding in "|gzip|deflate",
    ) {
        let coding = Some(coding.as_bytes());
        let request = Request { content_encoding: coding, body: &body, ..request(&method, &path) };
        let response = Response { content_encoding: coding, ..response(200, &body) };
        let _candidate = is_candidate(&method, &path);
        let _call = observe(&request, &response, Some(SearchProduct::OpenSearch));
    }
}
