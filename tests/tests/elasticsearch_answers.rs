//! What a real OpenSearch and a real Elasticsearch answer when they refuse, and in other formats, about
//! names of every form: what the agent says is what the node answered.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::{ELASTICSEARCH, Node, OPENSEARCH, Product, difference};
use e2e::{Agent, Client, Metrics, Request, Response, eventually};

const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

const DURATION_COUNT: &str = "db_client_operation_duration_seconds_count";

/// A node that has room for documents of a kilobyte, and no more.
const SETTINGS: [&str; 1] = ["indexing_pressure.memory.limit=1kb"];

/// Method, target, body, operation, index.
type Call<'a> = [&'a str; 5];

const TEXT: &str = r#"{"title":"telltale"}"#;
const BY_TEXT: &str = r#"{"sort":["title"]}"#;
/// Requests of more than 150 bytes are refused: the breaker counts twice what comes.
const SMALL_REQUESTS: &str = r#"{"transient":{"network.breaker.inflight_requests.limit":"300b"}}"#;
const ANY_REQUESTS: &str = r#"{"transient":{"network.breaker.*":null}}"#;
const DATA_STREAM: &str = r#"{"index_patterns":["logs-*"],"data_stream":{}}"#;

#[test]
fn opensearch_answers() -> Result<()> {
    check(
        &OPENSEARCH,
        &[
            "circuit_breaking_exception",
            "index_not_found_exception",
            "rejected_execution_exception",
            "search_phase_execution_exception",
        ],
        // Elasticsearch's data streams are no part of what is published of it.
        &[
            [
                "PUT",
                "/_index_template/logs",
                DATA_STREAM,
                "indices.put_index_template",
                "",
            ],
            [
                "PUT",
                "/_data_stream/logs-a",
                "",
                "indices.create_data_stream",
                "logs-a",
            ],
            [
                "POST",
                "/logs-a/_doc",
                r#"{"@timestamp":"2020-02-02"}"#,
                "index",
                "logs-a",
            ],
            ["POST", "/logs-a/_search", "", "search", "logs-a"],
            [
                "DELETE",
                "/_data_stream/logs-a",
                "",
                "indices.delete_data_stream",
                "logs-a",
            ],
        ],
    )
}

#[test]
fn elasticsearch_answers() -> Result<()> {
    check(
        &ELASTICSEARCH,
        &[
            "circuit_breaking_exception",
            "es_rejected_execution_exception",
            "index_not_found_exception",
            "search_phase_execution_exception",
        ],
        &[],
    )
}

fn check(product: &Product, errors: &[&str], own: &[Call<'_>]) -> Result<()> {
    let node = Node::start_with(product, &SETTINGS)?;
    let agent = Agent::start()?;
    let mut client = Client::connect(node.address)?;
    let port = node.address.port().to_string();
    let of_node = [
        ("db_system_name", product.name),
        ("server_port", port.as_str()),
    ];
    let long = format!(r#"{{"title":"{}"}}"#, "x".repeat(2_000));
    let long_bulk = format!("{{\"index\":{{}}}}\n{long}\n{{\"create\":{{}}}}\n{TEXT}\n");
    let calls: [Call<'_>; 14] = [
        ["GET", "/", "", "info", ""],
        // No index can be called so: the operation is unknown, not guessed.
        ["PUT", "/_all_", "", "", ""],
        ["PUT", "/books/_doc/a%2Fb?refresh", TEXT, "index", "books"],
        ["GET", "/books/_doc/a%2Fb", "", "get", "books"],
        ["GET", "/boo%6Bs,bo*/_count", "", "count", "books,bo*"],
        ["GET", "/c1:books/_search", "", "search", "c1:books"],
        [
            "GET",
            "/%3Cbooks-%7Bnow%2Fd%7D%3E/_search",
            "",
            "search",
            "<books-{now/d}>",
        ],
        ["POST", "/books/_search", BY_TEXT, "search", "books"],
        // One document, and a request of two, that the node has no room for.
        ["PUT", "/books/_doc/2", &long, "index", "books"],
        ["POST", "/books/_bulk", &long_bulk, "bulk", "books"],
        [
            "PUT",
            "/_cluster/settings",
            SMALL_REQUESTS,
            "cluster.put_settings",
            "",
        ],
        ["POST", "/books/_search", &long, "search", "books"],
        [
            "PUT",
            "/_cluster/settings",
            ANY_REQUESTS,
            "cluster.put_settings",
            "",
        ],
        ["DELETE", "/books", "", "indices.delete", "books"],
    ];
    let (mut expected, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for call in calls.iter().chain(own) {
        let answer = send(&mut client, call, "json")?;
        let [_, _, _, operation, index] = *call;
        let facts: serde_json::Value = serde_json::from_slice(&answer.body)?;
        let error = facts["error"]["type"].as_str().unwrap_or_default();
        let status = answer.status.to_string();
        let key = [operation, index, &status, error].map(str::to_owned);
        *expected.entry(key).or_insert(0.0) += 1.0;
        if answer.status == 429 {
            *refused.entry([error.to_owned()]).or_insert(0.0) += 1.0;
        }
    }
    for error in errors {
        let is_answered = expected.keys().any(|key| key[3] == *error);
        ensure!(is_answered, "no {error} in {expected:?}");
    }
    ensure!(refused.len() == 2, "429: {refused:?}");
    eventually(SCRAPE_TIMEOUT, || {
        let by = [
            "db_operation_name",
            "db_collection_name",
            "db_response_status_code",
            "error_type",
        ];
        let counted = agent.metrics()?.sum_by(DURATION_COUNT, &of_node, by);
        ensure!(counted == expected, "{}", difference(&counted, &expected));
        Ok(())
    })?;
    let metrics = agent.metrics()?;
    let by = ["db_collection_name", "action", "outcome"];
    let service = service_of(&metrics, &of_node);
    let of_service = [("service_name", service.as_str())];
    let items = metrics.sum_by("elasticsearch_bulk_items_total", &of_service, by);
    let rejected =
        ["index", "create"].map(|action| (["books", action, "rejected"].map(str::to_owned), 1.0));
    ensure!(items == rejected.into(), "{items:?}");
    wire_times(&agent, &mut client, &of_node)?;
    other_formats(&agent, &mut client, &of_service)
}

/// What each call took on the wire, by the clock of the client's own transport.
fn wire_times(agent: &Agent, client: &mut Client, of_node: &[(&str, &str)]) -> Result<()> {
    const NEAR: Duration = Duration::from_micros(100);
    const CALLS: usize = 100;
    let mut measured = BTreeMap::new();
    for number in 0..CALLS {
        // An index of its own, which tells the call from all others.
        let index = format!("timed-{number}");
        let target = format!("/{index}/_search?ignore_unavailable=true");
        let answer = send(client, &["GET", &target, "", "", ""], "json")?;
        ensure!(answer.status == 200);
        measured.insert(index, answer.duration);
    }
    let told = eventually(SCRAPE_TIMEOUT, || {
        let metrics = agent.metrics()?;
        let sums = metrics.sum_by(
            "db_client_operation_duration_seconds_sum",
            of_node,
            ["db_collection_name"],
        );
        let told = sums.into_iter().filter_map(|([index], seconds)| {
            Some((Duration::from_secs_f64(seconds), *measured.get(&index)?))
        });
        let told: Vec<_> = told.collect();
        ensure!(told.len() == CALLS, "{} calls of {CALLS}", told.len());
        Ok(told)
    })?;
    let mut apart: Vec<_> = told
        .into_iter()
        .map(|(told, measured)| told.abs_diff(measured))
        .collect();
    apart.sort();
    let middle = apart[CALLS / 2];
    println!(
        "the wire and the client's transport: {middle:?} apart, {:?} at most",
        apart[CALLS - 1]
    );
    ensure!(middle < NEAR, "{middle:?} apart");
    Ok(())
}

/// What is no JSON tells no `took`, and is counted as unread, at the client and at the node.
fn other_formats(agent: &Agent, client: &mut Client, of_service: &[(&str, &str)]) -> Result<()> {
    let seen = |metrics: &Metrics| {
        let unread = [("stage", "elasticsearch"), ("reason", "answer_format")];
        let searches = [of_service[0], ("db_operation_name", "search")];
        [
            metrics.sum(DURATION_COUNT, &searches),
            metrics.sum("elasticsearch_took_seconds_count", &searches),
            metrics.sum("telltale_losses_total", &unread),
        ]
    };
    let before = seen(&agent.metrics()?);
    for (format, magic) in [
        ("cbor", &b"\xbf"[..]),
        ("smile", b":)\n"),
        ("yaml", b"---"),
        ("json", b"{"),
    ] {
        let answer = send(client, &["POST", "/_search", "", "", ""], format)?;
        ensure!(
            answer.status == 200 && answer.body.starts_with(magic),
            "{answer:?}"
        );
    }
    let [calls, took, unread] = before;
    eventually(SCRAPE_TIMEOUT, || {
        let seen = seen(&agent.metrics()?);
        ensure!(
            seen == [calls + 4.0, took + 1.0, unread + 6.0],
            "{before:?} {seen:?}"
        );
        Ok(())
    })
}

fn send(
    client: &mut Client,
    [method, target, body, ..]: &Call<'_>,
    format: &str,
) -> Result<Response> {
    // The methods of the lists, which live as long as the program.
    let methods = ["GET", "PUT", "POST", "DELETE"];
    let method = methods
        .into_iter()
        .find(|known| known == method)
        .unwrap_or("GET");
    let media_type = if body.contains('\n') {
        "x-ndjson"
    } else {
        "json"
    };
    let request = Request::new(method, *target)
        .header(format!("Content-Type: application/{media_type}"))
        .header(format!("Accept: application/{format}"))
        .body(*body);
    client.send(&request)
}

fn service_of(metrics: &Metrics, of_node: &[(&str, &str)]) -> String {
    let sample = metrics.select(DURATION_COUNT, of_node).next();
    sample.map_or_else(String::new, |sample| {
        sample.label("service_name").to_owned()
    })
}
