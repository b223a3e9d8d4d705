//! Calls of real clients to a real OpenSearch and a real Elasticsearch: what the agent says is what
//! the client got.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::otlp::{Collector, Span};
use e2e::{Agent, Child, Client, Metrics, Request, Server, eventually, free_port, prerequisite};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(120);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
const SPANS_TIMEOUT: Duration = Duration::from_secs(20);
/// As the nodes are configured.
const CLUSTER: &str = "telltale-test";
/// How often a client makes its list of calls.
const ROUNDS: u32 = 3;

/// An index whose bulk requests are larger than what is captured.
const LARGE: &str = "large";

const BULK_ITEMS: &str = "elasticsearch_bulk_items_total";
const DURATION_COUNT: &str = "db_client_operation_duration_seconds_count";
const DURATION_SUM: &str = "db_client_operation_duration_seconds_sum";

/// What is different between the two products.
struct Product {
    name: &'static str,
    program: &'static str,
    class_path: &'static str,
    npm_package: &'static str,
}

const OPENSEARCH: Product = Product {
    name: "opensearch",
    program: "RunOpenSearch.java",
    class_path: "TELLTALE_OPENSEARCH_CP",
    npm_package: "opensearch-project/opensearch",
};

const ELASTICSEARCH: Product = Product {
    name: "elasticsearch",
    program: "RunElasticsearch.java",
    class_path: "TELLTALE_ELASTICSEARCH_CP",
    npm_package: "elastic/elasticsearch",
};

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
    command.args(paths).env("OTEL_SERVICE_NAME", service);
    let mut client = Child::spawn(service, command, tempfile::tempdir()?)?;
    let status = client.wait(CLIENT_TIMEOUT)?;
    ensure!(status.success(), "{}", client.output());

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

#[test]
fn a_cluster_behind_a_proxys_path_is_understood() -> Result<()> {
    for product in [&OPENSEARCH, &ELASTICSEARCH] {
        let node = Node::start(product)?;
        let proxy = Server::nginx_before_cluster(node.address)?;
        let agent = Agent::start()?;
        let service = format!("e2e-behind-{}", proxy.address.port());
        // The first can only be a cluster's behind a prefix; the last one is no call at all.
        let requests = [
            ["GET", "/es/_cluster/health", "cluster.health", "", "200"],
            ["PUT", "/es/books", "indices.create", "books", "200"],
            ["PUT", "/es/books/_doc/1", "index", "books", "201"],
            ["GET", "/es/_search", "search", "", "200"],
            ["GET", "/es/books/_search", "search", "books", "200"],
            ["GET", "/es/missing/_search", "search", "missing", "404"],
            ["GET", "/es/books/_unheard_of", "", "", "400"],
            ["DELETE", "/es/books", "indices.delete", "books", "200"],
            ["GET", "/return", "", "", ""],
        ];
        let script = "import sys, requests\n\
             session = requests.Session()\n\
             session.trust_env = False\n\
             words = sys.argv[2:]\n\
             for method, path in zip(words[::2], words[1::2]):\n    \
             json = {'title': 'a'} if '_doc' in path else None\n    \
             session.request(method, sys.argv[1] + path, json=json).content\n";
        let mut command = Command::new(prerequisite::python("python")?);
        command.args(["-c", script, &format!("http://{}", proxy.address)]);
        for [method, path, ..] in requests {
            command.args([method, path]);
        }
        command.env("OTEL_SERVICE_NAME", &service);
        let mut client = Child::spawn(&service, command, tempfile::tempdir()?)?;
        let status = client.wait(CLIENT_TIMEOUT)?;
        ensure!(status.success(), "{}", client.output());

        let mut expected = BTreeMap::new();
        for [_, _, operation, collection, status] in requests {
            if !status.is_empty() {
                let key = [operation, collection, status].map(str::to_owned);
                *expected.entry(key).or_insert(0.0) += 1.0;
            }
        }
        let by = [
            "db_operation_name",
            "db_collection_name",
            "db_response_status_code",
        ];
        // The client's calls to the proxy, and the proxy's to the cluster.
        for service in [&service, &proxy.service] {
            let labels = [
                ("service_name", service.as_str()),
                ("db_system_name", product.name),
            ];
            eventually(SCRAPE_TIMEOUT, || {
                let counted = agent.metrics()?.sum_by(DURATION_COUNT, &labels, by);
                ensure!(
                    counted == expected,
                    "{service}: {}",
                    difference(&counted, &expected)
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Threads, tasks and JavaScript at once, 10,000 calls in all with both products.
#[test]
fn many_calls_at_once_are_what_the_clients_got() -> Result<()> {
    for product in [&OPENSEARCH, &ELASTICSEARCH] {
        check_load(product)?;
    }
    Ok(())
}

fn check_load(product: &Product) -> Result<()> {
    let node = Node::start(product)?;
    // So that all of a bulk request with 44 items is captured, or all of its answer.
    let agent = Agent::command()?
        .config("capture: {bytes: 16KiB}\nelasticsearch: {query_text: true}\n")
        .start()?;
    let mut calls = 0.0;
    for (language, kind, coding, count) in [
        ("python", "threads", "plain", 1_504),
        ("python", "threads", "gzip", 1_504),
        ("python", "tasks", "plain", 504),
        ("python", "tasks", "gzip", 504),
        ("node", "", "plain", 504),
        ("node", "", "gzip", 504),
    ] {
        let port = node.address.port();
        let service = format!("e2e-{}-{language}-{kind}-{coding}-{port}", product.name);
        let load = node.run_load(product, [language, kind, coding], count, &service)?;
        calls += load.calls.values().sum::<f64>();
        eventually(SCRAPE_TIMEOUT, || {
            let metrics = agent.metrics()?;
            load.assert_agrees(&metrics, product, &service)
        })?;
    }
    ensure!(calls > 5_000.0, "{calls} calls");

    let slow = agent.get("/api/elasticsearch/slow")?.text();
    let slow: serde_json::Value = serde_json::from_str(&slow)?;
    let told = slow["calls"].as_array().context("no calls")?;
    let is_search =
        |call: &&serde_json::Value| call["operation"] == "search" && call["collection"] == "load-0";
    let search = told.iter().find(is_search).context("no search")?;
    let expected = "{query:{match:{title:?}},size:?}";
    ensure!(search["query"] == expected, "{search}");
    Ok(())
}

/// What the clients of one load got.
struct Load {
    /// By operation, index and status.
    calls: BTreeMap<[String; 3], f64>,
    /// Answers with `took` and its sum in milliseconds, by operation and index.
    took: BTreeMap<[String; 2], (f64, f64)>,
    /// By index, action and outcome.
    items: BTreeMap<[String; 3], f64>,
}

impl Load {
    fn parse(line: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let calls: Vec<(String, String, String, f64)> =
            serde_json::from_value(value["calls"].clone())?;
        let took: Vec<(String, String, f64, f64)> = serde_json::from_value(value["took"].clone())?;
        let items: Vec<(String, String, String, f64)> =
            serde_json::from_value(value["items"].clone())?;
        let counts = |list: Vec<(String, String, String, f64)>| {
            let entries = list.into_iter();
            entries
                .map(|(first, second, third, count)| ([first, second, third], count))
                .collect()
        };
        Ok(Self {
            calls: counts(calls),
            took: took
                .into_iter()
                .map(|(operation, index, count, sum_ms)| ([operation, index], (count, sum_ms)))
                .collect(),
            items: counts(items),
        })
    }

    fn assert_agrees(&self, metrics: &Metrics, product: &Product, service: &str) -> Result<()> {
        let of_service = [("service_name", service)];
        let labels = [of_service[0], ("db_system_name", product.name)];
        let by = [
            "db_operation_name",
            "db_collection_name",
            "db_response_status_code",
        ];
        let counted = metrics.sum_by(DURATION_COUNT, &labels, by);
        ensure!(
            counted == self.calls,
            "{}",
            difference(&counted, &self.calls)
        );
        let by = ["db_operation_name", "db_collection_name"];
        let counts = metrics.sum_by("elasticsearch_took_seconds_count", &of_service, by);
        let expected = self
            .took
            .iter()
            .map(|(key, it)| (key.clone(), it.0))
            .collect();
        ensure!(
            counts == expected,
            "took: {}",
            difference(&counts, &expected)
        );
        for (key, (_, sum_ms)) in &self.took {
            let labels = [of_service[0], (by[0], &key[0]), (by[1], &key[1])];
            let summed_ms = metrics.sum("elasticsearch_took_seconds_sum", &labels) * 1e3;
            // A sum of floating-point seconds.
            ensure!(
                (summed_ms - sum_ms).abs() < 1e-3,
                "{key:?}: {summed_ms} for {sum_ms}"
            );
        }
        let by = ["db_collection_name", "action", "outcome"];
        let items = metrics.sum_by(BULK_ITEMS, &of_service, by);
        ensure!(
            items == self.items,
            "items: {}",
            difference(&items, &self.items)
        );
        Ok(())
    }
}

fn check(product: &Product) -> Result<()> {
    let node = Node::start(product)?;
    let collector = Collector::start()?;
    let agent = Agent::command()?
        .arg("--otlp-endpoint")
        .arg(collector.grpc_endpoint())
        .start()?;
    for coding in ["plain", "gzip"] {
        let service = format!(
            "e2e-{}-client-{coding}-{}",
            product.name,
            node.address.port()
        );
        let calls = node.run_client(product, coding, &service)?;
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
        assert_items_agree(&metrics, &service, &calls)?;
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
    }
    Ok(())
}

fn assert_counts_agree(
    metrics: &Metrics,
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
    let counted = metrics.sum_by(DURATION_COUNT, &labels, by);
    ensure!(counted == expected, "{}", difference(&counted, &expected));
    let all = metrics.sum(DURATION_COUNT, &[("service_name", service)]);
    ensure!(
        all == calls.len() as f64,
        "calls of another product: {all} in all"
    );
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
        let error_type = match &call.error_type {
            Some(error_type) => error_type.clone(),
            None if call.status >= 400 => call.status.to_string(),
            None => String::new(),
        };
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
        let unknown = call.batch_size > Some(10) && batch_size.is_empty();
        ensure!(
            batch_size == number(call.batch_size) || unknown,
            "{batch_size} for {:?}: {span:?}",
            call.batch_size
        );
    }
    Ok(())
}

/// Items by index, action and outcome, but for the index whose requests are too large to be counted.
fn assert_items_agree(metrics: &Metrics, service: &str, calls: &[Call]) -> Result<()> {
    let mut expected = BTreeMap::new();
    for call in calls.iter().filter(|call| call.index != LARGE) {
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
    counted.retain(|key, _| key[0] != LARGE);
    ensure!(counted == expected, "{}", difference(&counted, &expected));
    let cut = [("stage", "elasticsearch"), ("reason", "bulk_items_cut")];
    let cut = metrics.sum("telltale_losses_total", &cut);
    ensure!(
        cut > 0.0,
        "requests that could not be counted are not told of"
    );
    Ok(())
}

/// A call as the client saw it.
#[derive(Debug)]
struct Call {
    operation: String,
    index: String,
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
    seconds: f64,
}

impl Call {
    fn parse(line: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        Ok(Self {
            operation: text("operation").context("operation")?,
            index: text("index").context("index")?,
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
        })
    }

    fn key(&self) -> [String; 2] {
        [self.operation.clone(), self.index.clone()]
    }
}

/// A running node. Dropping it ends it.
struct Node {
    address: SocketAddr,
    service: String,
    _child: Child,
}

impl Node {
    fn start(product: &Product) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let service = format!("e2e-{}-{}", product.name, address.port());
        let mut command = Command::new(prerequisite::on_path("java")?);
        // Quick to start, small, and quick enough.
        command.args(["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        command.args(["-cp", prerequisite::class_path(product.class_path)?.trim()]);
        command.arg(prerequisite::workload(product.name).join(product.program));
        command.arg(folder.path()).arg(address.port().to_string());
        command.env("OTEL_SERVICE_NAME", &service);
        let mut child = Child::spawn(product.name, command, folder)?;
        child.wait_until(START_TIMEOUT, || {
            Client::once(address, &Request::new("GET", "/_cluster/health"))
                .is_ok_and(|response| response.status == 200)
        })?;
        Ok(Self {
            address,
            service,
            _child: child,
        })
    }

    fn run_client(&self, product: &Product, coding: &str, service: &str) -> Result<Vec<Call>> {
        let mut command = Command::new(prerequisite::python("python")?);
        // The client warns of what later versions of it will refuse.
        command
            .args(["-W", "ignore"])
            .arg(prerequisite::workload("search_client.py"));
        command.args([product.name, &format!("http://{}", self.address), coding]);
        command
            .arg(ROUNDS.to_string())
            .env("OTEL_SERVICE_NAME", service);
        let mut client = Child::spawn(service, command, tempfile::tempdir()?)?;
        let status = client.wait(CLIENT_TIMEOUT)?;
        let output = client.output();
        ensure!(status.success(), "{output}");
        output
            .lines()
            .map(|line| Call::parse(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// Runs a load of `search_load.py` or `search_load.js`: language, kind, content coding.
    fn run_load(
        &self,
        product: &Product,
        [language, kind, coding]: [&str; 3],
        calls: u32,
        service: &str,
    ) -> Result<Load> {
        let mut command = if language == "node" {
            let mut command = Command::new(prerequisite::on_path("node")?);
            command.arg(prerequisite::workload("search_load.js"));
            let package = format!("@{}", product.npm_package);
            command.env("NODE_PATH", prerequisite::node_modules(&package)?);
            command
        } else {
            let mut command = Command::new(prerequisite::python("python")?);
            command.arg(prerequisite::workload("search_load.py"));
            command
        };
        command.args([product.name, &format!("http://{}", self.address), coding]);
        if !kind.is_empty() {
            command.arg(kind);
        }
        command
            .arg(calls.to_string())
            .env("OTEL_SERVICE_NAME", service);
        let mut client = Child::spawn(service, command, tempfile::tempdir()?)?;
        let status = client.wait(CLIENT_TIMEOUT)?;
        let output = client.output();
        ensure!(status.success(), "{output}");
        let line = output.lines().find(|line| line.starts_with('{'));
        Load::parse(line.context("the load told nothing")?)
    }
}

/// The entries in which two maps differ.
fn difference<const N: usize>(
    counted: &BTreeMap<[String; N], f64>,
    expected: &BTreeMap<[String; N], f64>,
) -> String {
    let mut keys: Vec<_> = counted.keys().chain(expected.keys()).collect();
    keys.sort();
    keys.dedup();
    let differs = |key: &&&[String; N]| counted.get(**key) != expected.get(**key);
    keys.iter()
        .filter(differs)
        .fold(String::new(), |text, key| {
            let count =
                |map: &BTreeMap<[String; N], f64>| map.get(*key).copied().unwrap_or_default();
            text + &format!(
                "{key:?}: {} counted, {} made\n",
                count(counted),
                count(expected)
            )
        })
}
