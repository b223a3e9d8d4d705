//! Calls of real clients to a real OpenSearch and a real Elasticsearch: what the agent says is what
//! the client got.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{CLUSTER, ELASTICSEARCH, Node, OPENSEARCH, Product, difference, run_client};
use e2e::otlp::{Collector, Span};
use e2e::{Agent, Metrics, Server, eventually, prerequisite};

const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
const SPANS_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a client makes its list of calls.
const ROUNDS: u32 = 3;

/// What is captured of bodies.
const CAPTURE: &str = "capture: {ring_bytes: 16MiB}\nelasticsearch: {body_bytes: 2MiB}\n";
/// An index whose bulk requests are larger than that, unless they are compressed.
const HUGE: &str = "huge";

const BULK_ITEMS_CUT: [(&str, &str); 2] =
    [("stage", "elasticsearch"), ("reason", "bulk_items_cut")];
const BULK_ITEMS: &str = "elasticsearch_bulk_items_total";
const DURATION_COUNT: &str = "db_client_operation_duration_seconds_count";
const SERVED_COUNT: &str = "elasticsearch_server_operation_duration_seconds_count";
const DURATION_SUM: &str = "db_client_operation_duration_seconds_sum";

#[test]
fn calls_to_opensearch_are_what_the_client_got() -> Result<()> {
    check(&OPENSEARCH)
}

#[test]
fn calls_to_elasticsearch_are_what_the_client_got() -> Result<()> {
    check(&ELASTICSEARCH)
}

#[test]
fn a_service_that_merely_has_the_paths_is_no_cluster() -> Result<()> {
    let server = Server::uvicorn()?;
    let agent = Agent::start()?;
    let service = "e2e-no-cluster";
    let paths = [
        "/",
        "/_search",
        "/books/_search",
        "/_bulk",
        "/_cluster/health",
        "/items/1",
    ];
    let script = "import sys, requests\n\
         session = requests.Session()\n\
         session.trust_env = False\n\
         for path in sys.argv[2:]: session.get(sys.argv[1] + path).content\n";
    let mut command = Command::new(prerequisite::python("python")?);
    command.args(["-c", script, &format!("http://{}", server.address)]);
    command.args(paths);
    run_client(command, service)?;

    let labels = [("service_name", service)];
    let metrics = eventually(SCRAPE_TIMEOUT, || {
        let metrics = agent.metrics()?;
        let seen = metrics.sum("http_client_request_duration_seconds_count", &labels);
        ensure!(
            seen == paths.len() as f64,
            "{seen} requests of {}",
            paths.len()
        );
        Ok(metrics)
    })?;
    ensure!(
        metrics.select(DURATION_COUNT, &labels).next().is_none(),
        "{}",
        metrics.text
    );
    Ok(())
}

/// The table of operations is held against a list of requests, by unit tests; this holds the list
/// against the clients that are installed here.
#[test]
fn the_clients_make_the_requests_that_the_table_was_held_against() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/protocol/endpoints");
    let list = std::fs::read_to_string(folder.join("clients.txt"))?;
    for (module, client) in [
        ("elasticsearch", "py-elasticsearch-7.17.13"),
        ("opensearchpy", "py-opensearch-3.2.0"),
    ] {
        let mut command = Command::new(prerequisite::python("python")?);
        command.arg(folder.join("clients.py")).arg(module);
        let output = run_client(command, module)?;
        let made: BTreeSet<_> = output.lines().collect();
        // `# f py-elasticsearch-7.17.13`
        let mut lines = list.lines();
        let letter = lines.find_map(|line| line.strip_prefix("# ")?.strip_suffix(client));
        let letter = letter.context("no such client")?.trim();
        let listed = lines.filter_map(|line| {
            let (request, clients) = line.rsplit_once(' ')?;
            (!line.starts_with('#') && clients.contains(letter)).then_some(request)
        });
        let listed: BTreeSet<_> = listed.collect();
        let different: Vec<_> = made.symmetric_difference(&listed).collect();
        ensure!(different.is_empty() && made.len() > 500, "{different:?}");
    }
    Ok(())
}

fn check(product: &Product) -> Result<()> {
    let node = Node::start(product)?;
    let collector = Collector::start()?;
    let agent = Agent::command()?
        .config(CAPTURE)
        .arg("--otlp-endpoint")
        .arg(collector.grpc_endpoint())
        .start()?;
    let mut served = Vec::new();
    let mut cut = 0.0;
    for coding in ["plain", "gzip"] {
        let service = format!(
            "e2e-{}-client-{coding}-{}",
            product.name,
            node.address.port()
        );
        let calls = calls_of_client(&node, product, coding, &service)?;
        let metrics = eventually(SCRAPE_TIMEOUT, || {
            let metrics = agent.metrics()?;
            assert_counts_agree(&metrics, product, &service, &calls)?;
            Ok(metrics)
        })?;
        let operations: BTreeSet<_> = calls.iter().map(|call| &call.operation).collect();
        ensure!(
            operations.len() >= 60,
            "{} operations alone",
            operations.len()
        );
        assert_took_agrees(&metrics, &service, &calls)?;
        let is_captured = |index: &str| index != HUGE || coding == "gzip";
        assert_items_agree(&metrics, &service, &calls, is_captured)?;
        // What is not captured is told of.
        let before = cut;
        cut = metrics.sum("telltale_losses_total", &BULK_ITEMS_CUT);
        ensure!(
            (cut > before) == (coding == "plain"),
            "{cut} after {before}"
        );
        assert_durations_agree(&metrics, &service, &calls)?;
        assert_health_agrees(&metrics, &node, &calls)?;
        eventually(SPANS_TIMEOUT, || {
            assert_spans_agree(collector.spans()?, product, &service, &calls)
        })?;
        let of_node = [("service_name", node.service.as_str())];
        ensure!(
            metrics.sum(DURATION_COUNT, &of_node) == 0.0,
            "the node is no client"
        );
        let of_client = [("service_name", service.as_str())];
        assert_templates(&metrics, &of_client)?;
        ensure!(
            metrics.sum(SERVED_COUNT, &of_client) == 0.0,
            "the client is no node"
        );
        // The node's side has seen the same calls, those of both clients.
        served.extend(calls);
        eventually(SCRAPE_TIMEOUT, || {
            assert_calls(
                &agent.metrics()?,
                SERVED_COUNT,
                product,
                &node.service,
                &served,
            )
        })?;
    }
    Ok(())
}

fn assert_counts_agree(
    metrics: &Metrics,
    product: &Product,
    service: &str,
    calls: &[Call],
) -> Result<()> {
    assert_calls(metrics, DURATION_COUNT, product, service, calls)?;
    let all = metrics.sum(DURATION_COUNT, &[("service_name", service)]);
    ensure!(
        all == calls.len() as f64,
        "calls of another product: {all} in all"
    );
    Ok(())
}

/// A client's paths are told by the API's templates: no index and no document has a series of its own.
fn assert_templates(metrics: &Metrics, of_client: &[(&str, &str)]) -> Result<()> {
    let requests = metrics.select("http_client_request_duration_seconds_count", of_client);
    let templates: BTreeSet<_> = requests.map(|it| it.label("url_template")).collect();
    let has = |name: &str| templates.iter().any(|template| template.contains(name));
    ensure!(has("/{index}/_doc/{id}"), "{templates:?}");
    ensure!(
        !has("/bulk") && !has("/doc") && !has("missing"),
        "{templates:?}"
    );
    Ok(())
}

/// By operation, index and status.
fn assert_calls(
    metrics: &Metrics,
    metric: &str,
    product: &Product,
    service: &str,
    calls: &[Call],
) -> Result<()> {
    let mut expected = BTreeMap::new();
    for call in calls {
        let key = [&call.operation, &call.index, &call.status.to_string()].map(Clone::clone);
        *expected.entry(key).or_insert(0.0) += 1.0;
    }
    let labels = [("service_name", service), ("db_system_name", product.name)];
    let by = [
        "db_operation_name",
        "db_collection_name",
        "db_response_status_code",
    ];
    let counted = metrics.sum_by(metric, &labels, by);
    ensure!(counted == expected, "{}", difference(&counted, &expected));
    Ok(())
}

fn assert_took_agrees(metrics: &Metrics, service: &str, calls: &[Call]) -> Result<()> {
    let (mut counts, mut sums_ms) = (BTreeMap::new(), BTreeMap::new());
    for call in calls {
        if let Some(took_ms) = call.took_ms {
            *counts.entry(call.key()).or_insert(0.0) += 1.0;
            *sums_ms.entry(call.key()).or_insert(0) += took_ms;
        }
    }
    ensure!(
        counts.len() > 10,
        "the client has seen too few `took`: {counts:?}"
    );
    let labels = [("service_name", service)];
    let by = ["db_operation_name", "db_collection_name"];
    let counted = metrics.sum_by("elasticsearch_took_seconds_count", &labels, by);
    ensure!(counted == counts, "took: {}", difference(&counted, &counts));
    let overhead = metrics.sum_by("elasticsearch_overhead_seconds_count", &labels, by);
    ensure!(
        overhead == counts,
        "overhead: {}",
        difference(&overhead, &counts)
    );
    for (key, sum_ms) in &sums_ms {
        let labels = [labels[0], (by[0], &key[0]), (by[1], &key[1])];
        let summed_ms = metrics.sum("elasticsearch_took_seconds_sum", &labels) * 1e3;
        // A sum of floating-point seconds.
        ensure!(
            (summed_ms - *sum_ms as f64).abs() < 1e-6,
            "{key:?}: {summed_ms} for {sum_ms}"
        );
    }
    Ok(())
}

/// The wire's time lies within what the client's transport counted, and holds the server's own.
fn assert_durations_agree(metrics: &Metrics, service: &str, calls: &[Call]) -> Result<()> {
    let mut bounds: BTreeMap<_, (f64, f64)> = BTreeMap::new();
    for call in calls {
        let (least, most) = bounds.entry(call.key()).or_default();
        // `took` is in whole milliseconds, of a clock that may be coarse.
        *least += call
            .took_ms
            .map_or(0.0, |took_ms| took_ms as f64 / 1e3 - 0.002);
        *most += call.seconds;
    }
    let by = ["db_operation_name", "db_collection_name"];
    let sums = metrics.sum_by(DURATION_SUM, &[("service_name", service)], by);
    for (key, (least, most)) in bounds {
        let sum = sums.get(&key).copied().unwrap_or_default();
        ensure!(
            least <= sum && 0.0 < sum && sum <= most,
            "{key:?}: {sum} not in {least}..{most}"
        );
    }
    Ok(())
}

fn assert_health_agrees(metrics: &Metrics, node: &Node, calls: &[Call]) -> Result<()> {
    let last = calls.iter().rev().find_map(|call| call.health.as_deref());
    let expected = match last.context("the client asked for no health")? {
        "green" => 2.0,
        "yellow" => 1.0,
        _ => 0.0,
    };
    let port = node.address.port().to_string();
    let labels = [
        ("server_address", "127.0.0.1"),
        ("server_port", port.as_str()),
    ];
    let shown: Vec<_> = metrics
        .select("elasticsearch_cluster_health", &labels)
        .map(|sample| (sample.label("cluster"), sample.value))
        .collect();
    ensure!(shown == [(CLUSTER, expected)], "{shown:?}");
    let nodes = calls.iter().rev().find_map(|call| call.nodes);
    let shown = metrics.sum("elasticsearch_cluster_nodes", &labels);
    ensure!(Some(shown) == nodes.map(|it| it as f64), "{shown} nodes");
    Ok(())
}

/// One span a call, in the client's order, within the client's time.
fn assert_spans_agree(
    mut spans: Vec<Span>,
    product: &Product,
    service: &str,
    calls: &[Call],
) -> Result<()> {
    spans.retain(|span| span.service() == service);
    spans.sort_by_key(|span| span.start_unix_ns);
    ensure!(
        spans.len() == calls.len(),
        "{} spans of {} calls",
        spans.len(),
        calls.len()
    );
    let mut differences: Vec<f64> = Vec::new();
    for (span, call) in spans.iter().zip(calls) {
        for (key, value) in [
            ("db.system.name", product.name),
            ("db.operation.name", &call.operation),
            ("db.collection.name", &call.index),
            ("db.response.status_code", &call.status.to_string()),
        ] {
            ensure!(
                span.attribute(key) == value,
                "{key} is not {value} in {span:?}"
            );
        }
        let seconds = (span.end_unix_ns - span.start_unix_ns) as f64 / 1e9;
        ensure!(
            seconds <= call.seconds,
            "{seconds} s for {} s: {span:?}",
            call.seconds
        );
        differences.push((seconds - call.wire_seconds).abs());
        let error_type = match &call.error_type {
            Some(error_type) => error_type.clone(),
            None if call.status >= 400 => call.status.to_string(),
            None => String::new(),
        };
        if call.operation == "get" {
            let id = call.path.rsplit('/').next().unwrap_or_default();
            let (key, id) = ("db.operation.parameter.id", id.replace("%2F", "/"));
            ensure!(span.attribute(key) == id, "{key} is not {id} in {span:?}");
        }
        let number = |number: Option<u64>| number.map_or_else(String::new, |it| it.to_string());
        for (key, value) in [
            ("error.type", error_type),
            ("elasticsearch.took_ms", number(call.took_ms)),
        ] {
            let shown = span.attribute(key);
            ensure!(shown == value, "{key} is not {value} in {span:?}");
        }
        for (key, value) in [
            ("elasticsearch.hits.total", call.hits),
            ("elasticsearch.shards.total", call.shards.map(|it| it[0])),
            ("elasticsearch.shards.failed", call.shards.map(|it| it[1])),
        ] {
            let shown = span.attribute(key);
            // The client tells those of some operations alone.
            ensure!(
                value.is_none() || shown == number(value),
                "{key} is not {value:?} in {span:?}"
            );
        }
        let batch_size = span.attribute("db.operation.batch.size");
        // Where neither body was captured whole, nobody could count.
        let unknown = call.index == HUGE && batch_size.is_empty();
        ensure!(
            batch_size == number(call.batch_size) || unknown,
            "{batch_size} for {:?}: {span:?}",
            call.batch_size
        );
    }
    differences.sort_by(f64::total_cmp);
    let median = differences[differences.len() / 2];
    println!(
        "median difference to the client's socket: {:.1} µs",
        median * 1e6
    );
    ensure!(median < 100e-6, "{median} s from the client's own time");
    Ok(())
}

/// Items by index, action and outcome, but for an index whose requests are too large to be captured.
fn assert_items_agree(
    metrics: &Metrics,
    service: &str,
    calls: &[Call],
    is_captured: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut expected = BTreeMap::new();
    for call in calls.iter().filter(|call| is_captured(&call.index)) {
        for [action, outcome] in &call.items {
            let key = [&call.index, action, outcome].map(Clone::clone);
            *expected.entry(key).or_insert(0.0) += 1.0;
        }
    }
    ensure!(
        expected.len() > 5,
        "the client has seen too few items: {expected:?}"
    );
    let by = ["db_collection_name", "action", "outcome"];
    let mut counted = metrics.sum_by(BULK_ITEMS, &[("service_name", service)], by);
    counted.retain(|key, _| is_captured(&key[0]));
    ensure!(counted == expected, "{}", difference(&counted, &expected));
    Ok(())
}

/// A call as the client saw it.
#[derive(Debug)]
struct Call {
    operation: String,
    index: String,
    /// As it went over the wire.
    path: String,
    status: u64,
    took_ms: Option<u64>,
    health: Option<String>,
    /// Nodes of the cluster, where that was asked.
    nodes: Option<u64>,
    hits: Option<u64>,
    /// Shards that were asked, and those that failed.
    shards: Option<[u64; 2]>,
    error_type: Option<String>,
    /// Operations of a bulk request, searches of an `msearch`.
    batch_size: Option<u64>,
    /// Items of a bulk request: action and outcome.
    items: Vec<[String; 2]>,
    /// As the client's transport counts.
    seconds: f64,
    /// As its socket does.
    wire_seconds: f64,
}

impl Call {
    fn parse(line: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Ok(Self {
            operation: text("operation").context("operation")?,
            index: text("index").context("index")?,
            path: text("path").context("path")?,
            status: value["status"].as_u64().context("status")?,
            took_ms: value["took"].as_u64(),
            health: text("health"),
            nodes: value["nodes"].as_u64(),
            hits: value["hits"].as_u64(),
            shards: serde_json::from_value(value["shards"].clone())?,
            error_type: text("error"),
            batch_size: value["batch_size"].as_u64(),
            items: serde_json::from_value(value["items"].clone())?,
            seconds: value["seconds"].as_f64().context("seconds")?,
            wire_seconds: value["wire_seconds"].as_f64().context("wire_seconds")?,
        })
    }

    fn key(&self) -> [String; 2] {
        [self.operation.clone(), self.index.clone()]
    }
}

/// Lets a client make its list of calls.
fn calls_of_client(
    node: &Node,
    product: &Product,
    coding: &str,
    service: &str,
) -> Result<Vec<Call>> {
    let mut command = Command::new(prerequisite::python("python")?);
    // The client warns of what later versions of it will refuse.
    command
        .args(["-W", "ignore"])
        .arg(prerequisite::workload("search_client.py"));
    command.args([product.name, &format!("http://{}", node.address), coding]);
    command.arg(ROUNDS.to_string());
    let output = run_client(command, service)?;
    output
        .lines()
        .map(|line| Call::parse(line).with_context(|| line.to_owned()))
        .collect()
}
