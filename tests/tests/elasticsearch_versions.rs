//! Calls to real nodes of the versions that the other suites leave out, Elasticsearch 8 and 9, OpenSearch
//! 1 and 3: what the agent says is what the node answered.
//!
//! Runs when it is named: `cargo xtask test elasticsearch_versions`. Of Elasticsearch's modules only the
//! network is published, so that its X-Pack is asked for things that it has to refuse.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{
    ELASTICSEARCH_8, ELASTICSEARCH_9, Node, OPENSEARCH_1, OPENSEARCH_3, Product, difference,
};
use e2e::{Agent, Client, Request, eventually};

const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

const DURATION_COUNT: &str = "db_client_operation_duration_seconds_count";

/// Method, target, body, operation, index. `{pit}` and `{scroll}` stand for the ids of earlier answers.
type Call = [&'static str; 5];

const MATCH: &str = r#"{"query":{"match":{"title":"telltale"}}}"#;
const SCROLL: &str = r#"{"scroll_id":"{scroll}"}"#;

/// What every version has.
const COMMON: [Call; 28] = [
    ["GET", "/", "", "info", ""],
    ["GET", "/_cluster/health", "", "cluster.health", ""],
    ["PUT", "/bulk", "", "indices.create", "bulk"],
    ["HEAD", "/bulk", "", "indices.exists", "bulk"],
    [
        "PUT",
        "/bulk/_doc/1?refresh",
        r#"{"title":"telltale"}"#,
        "index",
        "bulk",
    ],
    [
        "PUT",
        "/bulk/_create/1",
        r#"{"title":"again"}"#,
        "create",
        "bulk",
    ],
    [
        "POST",
        "/doc/_doc",
        r#"{"title":"telltale"}"#,
        "index",
        "doc",
    ],
    [
        "POST",
        "/doc/_bulk?refresh",
        "{\"index\":{}}\n{\"title\":\"telltale\"}\n",
        "bulk",
        "doc",
    ],
    ["GET", "/bulk/_doc/1", "", "get", "bulk"],
    ["HEAD", "/bulk/_doc/1", "", "exists", "bulk"],
    ["GET", "/bulk/_doc/missing", "", "get", "bulk"],
    ["POST", "/bulk/_mget", r#"{"ids":["1"]}"#, "mget", "bulk"],
    ["POST", "/bulk/_search", MATCH, "search", "bulk"],
    ["POST", "/bulk,doc/_search", MATCH, "search", "bulk,doc"],
    ["POST", "/_all/_search?size=0", "", "search", "_all"],
    [
        "GET",
        "/%3Clogs-%7Bnow%2Fd%7D%3E/_search",
        "",
        "search",
        "<logs-{now/d}>",
    ],
    ["POST", "/missing/_search", "", "search", "missing"],
    [
        "POST",
        "/bulk/_search",
        r#"{"query":{"nonsense":{}}}"#,
        "search",
        "bulk",
    ],
    ["POST", "/bulk/_search?scroll=1m", "", "search", "bulk"],
    ["POST", "/_search/scroll", SCROLL, "scroll", ""],
    ["DELETE", "/_search/scroll", SCROLL, "clear_scroll", ""],
    ["POST", "/bulk/_count", MATCH, "count", "bulk"],
    [
        "POST",
        "/_msearch",
        "{\"index\":\"bulk\"}\n{}\n",
        "msearch",
        "",
    ],
    [
        "POST",
        "/bulk/_update/1",
        r#"{"doc":{"a":1}}"#,
        "update",
        "bulk",
    ],
    [
        "GET",
        "/bulk/_field_caps?fields=*",
        "",
        "field_caps",
        "bulk",
    ],
    ["GET", "/_cat/indices", "", "cat.indices", ""],
    ["DELETE", "/bulk/_doc/1", "", "delete", "bulk"],
    ["GET", "/_not/_a/_path/_of/_theirs", "", "", ""],
];

const VECTORS: &str = r#"{"mappings":{"properties":{"v":{"type":"dense_vector","dims":2,"index":true,"similarity":"l2_norm"}}}}"#;
const KNN: &str = r#"{"knn":{"field":"v","query_vector":[1,2],"k":1,"num_candidates":2}}"#;
const CLOSE_PIT: &str = r#"{"id":"{pit}"}"#;

const FROM_ELASTICSEARCH_8: [Call; 10] = [
    ["PUT", "/vectors", VECTORS, "indices.create", "vectors"],
    [
        "PUT",
        "/vectors/_doc/1?refresh",
        r#"{"v":[1,2]}"#,
        "index",
        "vectors",
    ],
    ["POST", "/vectors/_search", KNN, "search", "vectors"],
    // Gone from 9 on, which says so.
    ["POST", "/vectors/_knn_search", KNN, "knn_search", "vectors"],
    [
        "POST",
        "/doc/_pit?keep_alive=1m",
        "",
        "open_point_in_time",
        "doc",
    ],
    ["DELETE", "/_pit", CLOSE_PIT, "close_point_in_time", ""],
    ["GET", "/_health_report", "", "health_report", ""],
    ["GET", "/_synonyms", "", "synonyms.get_synonyms_sets", ""],
    // Of modules that are not there.
    [
        "POST",
        "/_query",
        r#"{"query":"FROM doc"}"#,
        "esql.query",
        "",
    ],
    [
        "POST",
        "/doc/_async_search",
        MATCH,
        "async_search.submit",
        "doc",
    ],
];

const OF_OPENSEARCH_1: [Call; 2] = [
    // Of a plugin that is not there, under a path that the table does not have.
    ["GET", "/_opendistro/_sql/stats", "", "", ""],
    [
        "POST",
        "/_reindex",
        r#"{"source":{"index":"doc"},"dest":{"index":"copy"}}"#,
        "reindex",
        "",
    ],
];

const FROM_OPENSEARCH_3: [Call; 6] = [
    [
        "POST",
        "/doc/_search/point_in_time?keep_alive=1m",
        "",
        "create_pit",
        "doc",
    ],
    ["GET", "/_search/point_in_time/_all", "", "get_all_pits", ""],
    [
        "POST",
        "/_reindex",
        r#"{"source":{"index":"doc"},"dest":{"index":"copy"}}"#,
        "reindex",
        "",
    ],
    // Of plugins that are not there.
    [
        "POST",
        "/_plugins/_ppl",
        r#"{"query":"source=doc"}"#,
        "ppl.query",
        "",
    ],
    [
        "POST",
        "/_plugins/_sql",
        r#"{"query":"select 1"}"#,
        "sql.query",
        "",
    ],
    ["GET", "/_plugins/_knn/stats", "", "knn.stats", ""],
];

#[test]
fn elasticsearch_8() -> Result<()> {
    check(&ELASTICSEARCH_8, "X-elastic-product", &FROM_ELASTICSEARCH_8)
}

#[test]
fn elasticsearch_9() -> Result<()> {
    check(&ELASTICSEARCH_9, "X-elastic-product", &FROM_ELASTICSEARCH_8)
}

#[test]
fn opensearch_1() -> Result<()> {
    check(&OPENSEARCH_1, "", &OF_OPENSEARCH_1)
}

#[test]
fn opensearch_3() -> Result<()> {
    check(&OPENSEARCH_3, "X-OpenSearch-Version", &FROM_OPENSEARCH_3)
}

/// `header` is how the answers tell the product, if they do.
fn check(product: &Product, header: &str, own: &[Call]) -> Result<()> {
    let node = Node::start(product)?;
    let agent = Agent::start()?;
    let mut client = Client::connect(node.address)?;
    let (mut expected, mut took, mut errors) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut ids: BTreeMap<&str, String> = BTreeMap::new();
    for [method, target, body, operation, index] in COMMON.iter().chain(own) {
        let body = ids.iter().fold((*body).to_owned(), |body, (name, id)| {
            body.replace(&format!("{{{name}}}"), id)
        });
        let media_type = if body.contains('\n') {
            "x-ndjson"
        } else {
            "json"
        };
        let request = Request::new(method, *target)
            .header(format!("Content-Type: application/{media_type}"))
            .body(body);
        let answer = client.send(&request)?;
        let is_told = answer.header(&header.to_ascii_lowercase()).is_some();
        ensure!(is_told != header.is_empty(), "{:?}", answer.headers);
        let count = |map: &mut BTreeMap<_, f64>, third: &str| {
            *map.entry([*operation, *index, third].map(str::to_owned))
                .or_default() += 1.0;
        };
        count(&mut expected, &answer.status.to_string());
        let facts: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        for (name, member) in [("scroll", "_scroll_id"), ("pit", "id")] {
            if let Some(id) = facts[member].as_str() {
                ids.insert(name, id.to_owned());
            }
        }
        if let Some(took_ms) = facts["took"].as_u64() {
            let key = [*operation, *index].map(str::to_owned);
            let (answers, sum_ms) = took.entry(key).or_insert((0.0, 0));
            (*answers, *sum_ms) = (*answers + 1.0, *sum_ms + took_ms);
        }
        if let Some(error_type) = facts["error"]["type"].as_str() {
            count(&mut errors, error_type);
        }
    }
    ensure!(
        errors
            .keys()
            .any(|key| key[2] == "index_not_found_exception"),
        "{errors:?}"
    );
    ensure!(took.len() > 5, "{took:?}");

    let port = node.address.port().to_string();
    let labels = [
        ("db_system_name", product.name),
        ("server_port", port.as_str()),
    ];
    eventually(SCRAPE_TIMEOUT, || {
        let metrics = agent.metrics()?;
        let by = [
            "db_operation_name",
            "db_collection_name",
            "db_response_status_code",
        ];
        let counted = metrics.sum_by(DURATION_COUNT, &labels, by);
        ensure!(counted == expected, "{}", difference(&counted, &expected));
        let by = ["db_operation_name", "db_collection_name", "error_type"];
        let mut counted = metrics.sum_by(DURATION_COUNT, &labels, by);
        counted.retain(|key, _| !key[2].is_empty());
        ensure!(counted == errors, "{}", difference(&counted, &errors));
        Ok(())
    })?;
    let metrics = agent.metrics()?;
    let sample = metrics.select(DURATION_COUNT, &labels).next();
    let service = sample.context("no call")?.label("service_name");
    for ([operation, index], (answers, sum_ms)) in took {
        let labels = [
            ("service_name", service),
            ("db_operation_name", operation.as_str()),
            ("db_collection_name", index.as_str()),
        ];
        let counted = metrics.sum("elasticsearch_took_seconds_count", &labels);
        let summed_ms = metrics.sum("elasticsearch_took_seconds_sum", &labels) * 1e3;
        ensure!(counted == answers, "{labels:?}: {counted} of {answers}");
        // A sum of floating-point seconds.
        ensure!(
            (summed_ms - sum_ms as f64).abs() < 1e-6,
            "{labels:?}: {summed_ms} for {sum_ms}"
        );
    }
    Ok(())
}
