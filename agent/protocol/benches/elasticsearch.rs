//! What it costs to tell an exchange of Elasticsearch: the path's trie and the scanner of the answer.
//!
//! `cargo bench -p protocol`. Elements are calls; the answers are those of Elasticsearch 7.17, cut where the
//! agent's capture ends.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use protocol::elasticsearch::{Cluster, HandledBy, Request, Response, observe};
use protocol::observation::SearchProduct;

/// The default of `capture.bytes`, without a head.
const CAPTURED_BYTES: usize = 3_800;

const SEARCH: &str = r#"{"took":120,"timed_out":false,"_shards":{"total":5,"successful":5,"skipped":0,"failed":0},"hits":{"total":{"value":10000,"relation":"gte"},"max_score":1.0,"hits":["#;
const HIT: &str = r#"{"_index":"books","_id":"1","_score":1.0,"_source":{"title":"A long title of a book","year":1984,"tags":["a","b"]}},"#;
const GET: &str = r#"{"_index":"books","_id":"1","_version":1,"_seq_no":0,"_primary_term":1,"found":true,"_source":{"title":"A long title"}}"#;
const INDEX: &str = r#"{"_index":"books","_id":"5","_version":1,"result":"created","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":2,"_primary_term":1}"#;
const COUNT: &str = r#"{"count":1,"_shards":{"total":1,"successful":1,"skipped":0,"failed":0}}"#;
const MISSING: &str = r#"{"error":{"root_cause":[{"type":"index_not_found_exception","reason":"no such index [nope]","index":"nope"}],"type":"index_not_found_exception","reason":"no such index [nope]","index":"nope"},"status":404}"#;
const HEALTH: &str = r#"{"cluster_name":"test","status":"yellow","timed_out":false,"number_of_nodes":1,"number_of_data_nodes":1,"active_primary_shards":1,"active_shards":1,"unassigned_shards":1,"number_of_pending_tasks":0}"#;
const BULK: &str = r#"{"took":437,"errors":false,"items":["#;
const ITEM: &str = r#"{"index":{"_index":"books","_id":"1","_version":1,"result":"created","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":0,"_primary_term":1,"status":201}},"#;

struct Call {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    status: u16,
    answer: String,
}

fn calls() -> Vec<Call> {
    let long = |beginning: &str, part: &str| {
        let mut text = beginning.to_owned();
        while text.len() < CAPTURED_BYTES {
            text.push_str(part);
        }
        text.truncate(CAPTURED_BYTES);
        text
    };
    let call = |name, method, path, status, answer: &str| Call {
        name,
        method,
        path,
        status,
        answer: answer.to_owned(),
    };
    vec![
        call("get", "GET", "/books/_doc/1", 200, GET),
        call("index", "PUT", "/books/_doc/5", 201, INDEX),
        call("count", "POST", "/books,c1:logs-*/_count", 200, COUNT),
        call("missing", "POST", "/nope/_search", 404, MISSING),
        call("cluster.health", "GET", "/_cluster/health", 200, HEALTH),
        call("search", "POST", "/books/_search", 200, &long(SEARCH, HIT)),
        call("bulk", "POST", "/books/_bulk", 200, &long(BULK, ITEM)),
    ]
}

fn classify(call: &Call, cluster: &Cluster) {
    let request = Request {
        method: call.method,
        path: call.path,
        query: None,
        content_type: Some(b"application/json"),
        content_encoding: None,
        body: b"",
        body_complete: false,
    };
    let response = Response {
        status: Some(call.status),
        product: Some(SearchProduct::Elasticsearch),
        handled_by: HandledBy::default(),
        content_type: Some(b"application/json; charset=UTF-8"),
        content_encoding: None,
        body: call.answer.as_bytes(),
        body_complete: call.answer.len() < CAPTURED_BYTES,
    };
    black_box(observe(
        black_box(&request),
        black_box(&response),
        Some(cluster),
        0,
    ));
}

fn elasticsearch(criterion: &mut Criterion) {
    let cluster = Cluster::from(SearchProduct::Elasticsearch);
    let calls = calls();
    let mut group = criterion.benchmark_group("elasticsearch");
    group.throughput(Throughput::Elements(1));
    for call in &calls {
        group.bench_function(call.name, |bencher| {
            bencher.iter(|| classify(call, &cluster));
        });
    }
    group.throughput(Throughput::Elements(calls.len() as u64));
    group.bench_function("all of these in turn", |bencher| {
        bencher.iter(|| calls.iter().for_each(|call| classify(call, &cluster)));
    });
    group.finish();
}

criterion_group!(benches, elasticsearch);
criterion_main!(benches);
