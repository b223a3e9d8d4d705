//! Calls of real clients to a real OpenSearch and a real Elasticsearch: what the agent says is what
//! the client got.

use std::collections::BTreeMap;
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

const DURATION_COUNT: &str = "db_client_operation_duration_seconds_count";
const DURATION_SUM: &str = "db_client_operation_duration_seconds_sum";

/// What is different between the two products.
struct Product {
    name: &'static str,
    program: &'static str,
    class_path: &'static str,
}

const OPENSEARCH: Product = Product {
    name: "opensearch",
    program: "RunOpenSearch.java",
    class_path: "TELLTALE_OPENSEARCH_CP",
};

const ELASTICSEARCH: Product = Product {
    name: "elasticsearch",
    program: "RunElasticsearch.java",
    class_path: "TELLTALE_ELASTICSEARCH_CP",
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
        assert_took_agrees(&metrics, &service, &calls)?;
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
        let batch_size = span.attribute("db.operation.batch.size");
        let expected = call
            .bulk_operations
            .map_or_else(String::new, |size| size.to_string());
        // A request that is larger than what is captured of it could not be counted.
        let unknown = call.bulk_operations > Some(10) && batch_size.is_empty();
        ensure!(
            batch_size == expected || unknown,
            "{batch_size} for {expected}: {span:?}"
        );
    }
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
    /// Operations of a bulk request.
    bulk_operations: Option<u64>,
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
            bulk_operations: value["bulk_operations"].as_u64(),
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
