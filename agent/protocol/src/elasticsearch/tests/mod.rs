//! The answers are those of Elasticsearch 7.17.29 and OpenSearch 2.19.1, shortened where a test tells.

mod bulk_items;

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;

use super::*;
use crate::observation::{ClusterHealth, Shards, Unknown};

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
        handled_by: HandledBy::default(),
        content_type: Some(JSON),
        content_encoding: None,
        body,
        body_complete: true,
    }
}

fn call(method: &str, path: &str, status: u16, body: &str) -> Option<ElasticsearchCall> {
    let known = Cluster::from(SearchProduct::Elasticsearch);
    observe(
        &request(method, path),
        &response(status, body.as_bytes()),
        Some(&known),
        0,
    )
}

#[test]
fn a_search_is_understood() {
    let call = call("POST", "/books/_search", 200, SEARCH).expect("a call");
    let expected = ElasticsearchCall {
        product: SearchProduct::Elasticsearch,
        prefix: "".into(),
        operation: Some("search"),
        collection: "books".into(),
        took_ms: Some(120),
        timed_out: Some(false),
        shards: Some(Shards {
            total: 1,
            failed: 0,
        }),
        hits: Some(1),
        errors: None,
        error_type: None,
        batch_size: None,
        bulk_items: Vec::new(),
        cluster: None,
        namespace: None,
        node: None,
        query_text: None,
        unknown: Vec::new(),
    };
    assert_eq!(call, expected);
}

#[test]
fn an_error_is_told_by_its_type() {
    let missing = call("POST", "/nope/_search", 404, NO_INDEX).expect("a call");
    assert_eq!(
        missing.error_type.as_deref(),
        Some("index_not_found_exception")
    );
    for (status, body) in [
        (200, NO_INDEX),
        (404, r#"{"error":{"type":"Some User's Text"},"status":404}"#),
        (404, r#"{"error":{"type":""},"status":404}"#),
        (404, r#"{"error":"index_not_found_exception","status":404}"#),
    ] {
        let call = call("POST", "/nope/_search", status, body).expect("a call");
        assert_eq!(call.error_type, None, "{status} {body}");
    }
}

#[test]
fn totals_of_a_search_are_read() {
    let old = SEARCH.replace(r#"{"value":1,"relation":"eq"}"#, "12");
    for (body, hits) in [(SEARCH, Some(1)), (&old, Some(12))] {
        let call = call("POST", "/_search", 200, body).expect("a call");
        assert_eq!(call.hits, hits);
    }
    let inner = format!(r#"{{"id":"x","is_partial":false,"response":{SEARCH}}}"#);
    let call = call("POST", "/_async_search", 200, &inner).expect("a call");
    assert_eq!((call.took_ms, call.hits), (Some(120), Some(1)));
    let deep = r#"{"response":"#.repeat(20_000);
    let known = SearchProduct::Elasticsearch.into();
    let request = request("POST", "/_async_search");
    let response = response(200, deep.as_bytes());
    assert!(observe(&request, &response, Some(&known), 0).is_some());
}

#[test]
fn what_was_not_captured_is_told_as_unknown() {
    let known = SearchProduct::Elasticsearch.into();
    let request = request("POST", "/_search");
    let unknown = |response: Response<'_>| {
        observe(&request, &response, Some(&known), 0)
            .expect("a call")
            .unknown
    };
    let whole = response(200, SEARCH.as_bytes());
    assert_eq!(unknown(whole), []);
    let cut = |body| Response {
        body_complete: false,
        ..response(200, body)
    };
    assert_eq!(unknown(cut(br#"{"_scroll_id":"abc"#)), [Unknown::AnswerCut]);
    assert_eq!(unknown(cut(br#"{"took":3,"timed"#)), []);
    assert_eq!(unknown(cut(b"")), [Unknown::AnswerCut]);
    assert_eq!(unknown(response(200, b"")), []);
    let cbor = Response {
        content_type: Some(b"application/cbor"),
        ..whole
    };
    assert_eq!(unknown(cbor), [Unknown::AnswerFormat]);
    // Left out on request.
    assert_eq!(unknown(response(200, b"{}")), []);
}

#[test]
fn paths_behind_a_proxy_are_understood() {
    let at = |path: &str, known: &Cluster| {
        observe(
            &request("POST", path),
            &response(200, SEARCH.as_bytes()),
            Some(known),
            0,
        )
        .map(|call| (call.prefix, call.operation, call.collection))
    };
    let told = |prefix: &str, operation, collection: &str| {
        Some((prefix.into(), Some(operation), collection.into()))
    };
    let mut known = Cluster::from(SearchProduct::OpenSearch);
    assert_eq!(at("/es/_search", &known), told("", "search", "es"));
    assert_eq!(
        at("/es/books/_search", &known),
        told("/es", "search", "books")
    );
    assert_eq!(at("/a/b/_msearch", &known), told("/a", "msearch", "b"));
    known.prefixes = ["/es".into()].into();
    assert_eq!(at("/es/_search", &known), told("/es", "search", ""));
    assert_eq!(at("/es/a/_search", &known), told("/es", "search", "a"));
    assert_eq!(at("/essays/_search", &known), told("", "search", "essays"));
    let unknown = at("/es/users/1", &known).expect("all behind the prefix is the cluster's");
    assert_eq!(unknown.1, None);
    assert_eq!(at("/users/1", &known), None, "another service's, perhaps");
    assert_eq!(at("/users", &known), None, "another service's, perhaps");
    known.prefixes = [].into();
    let get = |content_type| {
        let response = Response {
            content_type: Some(content_type),
            ..response(200, b"{}")
        };
        observe(&request("GET", "/users"), &response, Some(&known), 0)
    };
    assert_eq!(get(b"text/html"), None, "a page, perhaps");
    assert!(get(JSON).is_some(), "an index");
    let refused = observe(
        &request("GET", "/es/_cluster/health"),
        &response(400, b"{}"),
        None,
        0,
    );
    assert_eq!(refused, None, "no prefix is learned from a refusal");
}

#[test]
fn mapping_types_are_elasticsearch_7s() {
    let at = |content_type: &'static [u8], product, body: &str| {
        let response = Response {
            product,
            content_type: Some(content_type),
            ..response(200, body.as_bytes())
        };
        let call = observe(&request("GET", "/books/novel/1"), &response, None, 0);
        call.map(|call| call.operation)
    };
    let elasticsearch = Some(SearchProduct::Elasticsearch);
    let opensearch = Some(SearchProduct::OpenSearch);
    let of_8 = b"application/vnd.elasticsearch+json;compatible-with=8";
    assert_eq!(at(JSON, elasticsearch, GET), Some(Some("get")));
    assert_eq!(at(of_8, elasticsearch, GET), Some(None));
    assert_eq!(at(JSON, opensearch, GET), Some(None));
    assert_eq!(at(JSON, None, GET), None);
    let text = r#"{"error":"no handler found for uri [/books/novel/1] and method [GET]"}"#;
    assert_eq!(at(JSON, elasticsearch, text), Some(None));
}

#[test]
fn the_querys_text_is_kept_where_it_is_asked_for() {
    let request = Request {
        body: br#"{"query":{"match":{"title":"secret"}}}"#,
        content_type: Some(JSON),
        ..request("POST", "/books/_search")
    };
    let text = |path, query_bytes| {
        let request = Request { path, ..request };
        observe(
            &request,
            &response(200, SEARCH.as_bytes()),
            Some(&SearchProduct::OpenSearch.into()),
            query_bytes,
        )
        .expect("a call")
        .query_text
    };
    assert_eq!(text("/books/_search", 0), None);
    let told = text("/books/_search", 100);
    assert_eq!(told.as_deref(), Some("{query:{match:{title:?}}}"));
    assert_eq!(text("/books/_doc", 100), None, "a document is no query");
}

/// By zstd 1.5 of `{"took":3,"timed_out":false}` and a newline.
const ZSTD: &[u8] = &[
    0x28, 0xb5, 0x2f, 0xfd, 0x4, 0x58, 0xe9, 0x0, 0x0, 0x7b, 0x22, 0x74, 0x6f, 0x6f, 0x6b, 0x22,
    0x3a, 0x33, 0x2c, 0x22, 0x74, 0x69, 0x6d, 0x65, 0x64, 0x5f, 0x6f, 0x75, 0x74, 0x22, 0x3a, 0x66,
    0x61, 0x6c, 0x73, 0x65, 0x7d, 0xa, 0xb1, 0x40, 0x1c, 0x91,
];

#[test]
fn zstd_is_read_where_it_is_whole() {
    let text = body::decoded(Some(b"zstd"), ZSTD, true).expect("a known coding");
    assert_eq!(Answer::scan(&text.bytes).took_ms, Some(3));
    assert!(text.complete);
    for len in 0..ZSTD.len() {
        let text = body::decoded(Some(b"zstd"), &ZSTD[..len], false).expect("a known coding");
        assert!(!text.complete);
    }
    // A window of 2 GiB is not asked memory for.
    let huge = [0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0];
    let text = body::decoded(Some(b"zstd"), &huge, true).expect("a known coding");
    assert_eq!((text.bytes.len(), text.complete), (0, false));
}

#[test]
fn cluster_health_is_understood() {
    let whole = call("GET", "/_cluster/health", 200, HEALTH).expect("a call");
    assert_eq!(whole.operation, Some("cluster.health"));
    let report = whole.cluster.expect("the whole cluster's");
    assert_eq!(report.health, Some(ClusterHealth::Yellow));
    assert_eq!(report.name.as_deref(), Some("test"));
    assert_eq!((report.nodes, report.active_shards), (Some(1), None));

    let of_an_index = call("GET", "/_cluster/health/books", 200, HEALTH).expect("a call");
    assert_eq!(&*of_an_index.collection, "books");
    assert_eq!(
        of_an_index.cluster, None,
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
        assert_eq!(call.cluster, None, "{path}");
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
    let (request, known) = (request("GET", "/_search"), SearchProduct::OpenSearch.into());
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
            observe(&request, &response, Some(&known), 0)
                .expect("a call")
                .took_ms,
            None
        );
    }
    for content_encoding in [&b"zstd"[..], b"br", b"gzip, gzip"] {
        let response = Response {
            content_encoding: Some(content_encoding),
            ..json
        };
        assert_eq!(
            observe(&request, &response, Some(&known), 0)
                .expect("a call")
                .took_ms,
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
        let call = observe(&request, &response, None, 0).expect("a call");
        assert_eq!(call.took_ms, Some(120), "{coding:?}");
    }
    for (coding, body) in compressed(BULK_REQUEST.as_bytes()) {
        let request = Request {
            method: "POST",
            path: "/_bulk",
            body: &body,
            content_encoding: Some(coding),
            ..request
        };
        let batch_size = |request: &Request<'_>| {
            let answer = response(200, &BULK.as_bytes()[..60]);
            let answer = Response {
                body_complete: false,
                ..answer
            };
            let known = SearchProduct::OpenSearch.into();
            observe(request, &answer, Some(&known), 0)
                .expect("a call")
                .batch_size
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
            0,
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
            0,
        );
        assert_eq!(cut, None);
    }
}

#[test]
fn the_root_tells_the_product() {
    let product = |body: &str| {
        observe(
            &request("GET", "/"),
            &response(200, body.as_bytes()),
            None,
            0,
        )
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
            0,
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
    let told = observe(&request("GET", "/api/books/1"), &response, None, 0).expect("it says so");
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
    let known = SearchProduct::OpenSearch.into();
    let request = request("GET", "/books/_search");
    let call = observe(&request, &none, Some(&known), 0).expect("a call");
    assert_eq!((call.operation, call.took_ms), (Some("search"), None));
    assert_eq!(observe(&request, &none, None, 0), None);
}

#[test]
fn candidates_have_the_form_of_the_api() {
    for path in [
        "/",
        "/_search",
        "/books/_doc/1",
        "/_cat/indices",
        "/_nope",
        "/es/v1/_search",
    ] {
        assert!(is_candidate("GET", path), "{path}");
    }
    for path in [
        "",
        "*",
        "/users",
        "/users/1",
        "/a/b/c/d/e/_search",
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
            let known = SearchProduct::Elasticsearch.into();
            observe(&request("GET", "/_search"), &response, Some(&known), 0).expect("a call")
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
        let counted = bulk::count_operations(body.as_bytes()).map(|counts| counts.iter().sum::<u64>());
        prop_assert_eq!(counted, Some(actions.len() as u64) );
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
        let _call = observe(&request, &response, Some(&SearchProduct::OpenSearch.into()), 100);
    }
}
