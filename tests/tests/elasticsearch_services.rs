//! Services that ask a real OpenSearch and a real Elasticsearch: through a proxy, from a web application,
//! many at once. And clusters that nobody asks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{CLUSTER, ELASTICSEARCH, Node, OPENSEARCH, Product, difference, run_client};
use e2e::{Agent, Child, Client, Metrics, Request, Server, eventually, free_port, prerequisite};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

const BULK_ITEMS: &str = "elasticsearch_bulk_items_total";
const DURATION_COUNT: &str = "db_client_operation_duration_seconds_count";

#[test]
fn a_cluster_that_nobody_asks_is_polled() -> Result<()> {
    let node = Node::start(&ELASTICSEARCH)?;
    let config = format!(
        "elasticsearch: {{poll: {{endpoints: [\"http://{}\"], interval: 1s}}}}\n",
        node.address
    );
    let agent = Agent::command()?.config(config).start()?;
    let port = node.address.port().to_string();
    let labels = [("cluster", CLUSTER), ("server_port", port.as_str())];
    let shown = |name: &str| -> Result<Vec<f64>> {
        let metrics = agent.metrics()?;
        let samples = metrics.select(name, &labels);
        Ok(samples.map(|sample| sample.value).collect())
    };
    eventually(SCRAPE_TIMEOUT, || {
        ensure!(shown("elasticsearch_cluster_health")? == [2.0]);
        ensure!(shown("elasticsearch_cluster_nodes")? == [1.0]);
        ensure!(shown("elasticsearch_cluster_pending_tasks")? == [0.0]);
        Ok(())
    })?;
    drop(node);
    eventually(SCRAPE_TIMEOUT, || {
        let health = agent.get("/health/detailed")?.text();
        ensure!(health.contains("cannot connect"), "{health}");
        let left = shown("elasticsearch_cluster_health")?;
        ensure!(left.is_empty(), "{left:?} of a cluster that is gone");
        ensure!(agent.metrics()?.lost("elasticsearch", "poll_failed") > 0.0);
        Ok(())
    })
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
            ["GET", "/es/_not/_a/_path/_of/_theirs", "", "", "400"],
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
        run_client(command, &service)?;

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
        check_trickle(&agent, &proxy)?;
    }
    Ok(())
}

/// An answer of a megabyte and a half that comes slowly: its first byte does not. The client itself took
/// no less than what is measured.
fn check_trickle(agent: &Agent, proxy: &Server) -> Result<()> {
    let mut client = Client::connect(proxy.address)?;
    let document = format!(r#"{{"title":"{}"}}"#, "x".repeat(3 << 19));
    let put = Request::new("PUT", "/es/large/_doc/1")
        .header("Content-Type: application/json")
        .body(document);
    ensure!(client.send(&put)?.status == 201);
    let got = client.send(&Request::new("GET", "/es/large/_doc/1"))?;
    ensure!(got.status == 200 && got.body.len() > 3 << 19);
    let port = proxy.address.port().to_string();
    let of_call = [
        ("server_port", port.as_str()),
        ("db_operation_name", "get"),
        ("db_collection_name", "large"),
    ];
    eventually(SCRAPE_TIMEOUT, || {
        let metrics = agent.metrics()?;
        let call = metrics.select(DURATION_COUNT, &of_call).next();
        let call = call.context("not counted")?;
        let service = [("service_name", call.label("service_name"))];
        let get = [service[0], ("http_request_method", "GET")];
        let first = metrics.sum("http_client_time_to_first_byte_seconds_sum", &get);
        // Scrapes are requests of the same process.
        let scrapes = [get[0], get[1], ("url_template", "/metrics")];
        let first = first - metrics.sum("http_client_time_to_first_byte_seconds_sum", &scrapes);
        let duration = metrics.sum("db_client_operation_duration_seconds_sum", &of_call);
        let (most_first, most) = (got.first_byte.as_secs_f64(), got.duration.as_secs_f64());
        // nginx lets through what it would in the first second, or two, at once.
        ensure!(
            most - most_first > 0.4,
            "{most_first} and {most} s are no trickle"
        );
        ensure!(
            0.9 * most < duration && duration <= most,
            "last byte after {duration} s of {most} s"
        );
        ensure!(
            0.5 * most_first < first && first < most_first + 1e-6,
            "first byte after {first} s of {most_first} s"
        );
        Ok(())
    })
}

/// A service over one index, as its users' alerts look at it: requests by route, calls by operation, the
/// cluster's health.
#[test]
fn a_service_that_searches_shows_its_requests_and_its_calls() -> Result<()> {
    for product in [&OPENSEARCH, &ELASTICSEARCH] {
        let node = Node::start(product)?;
        let port = free_port()?;
        let service = format!("e2e-search-service-{port}");
        let mut command = Command::new(prerequisite::python("uvicorn")?);
        command.args(["search_service:api", "--port", &port.to_string()]);
        command
            .current_dir(prerequisite::workload(""))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("SEARCH_LIBRARY", product.name)
            .env("SEARCH_URL", format!("http://{}", node.address))
            .env("OTEL_SERVICE_NAME", &service);
        let mut child = Child::spawn(&service, command, tempfile::tempdir()?)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        child.wait_for_port(address, START_TIMEOUT)?;
        let agent = Agent::start()?;

        let summary = r#"{"workflow_id":"4711","type":"summary","parent":"0"}"#;
        let put = Request::new("PUT", "/documents/1")
            .header("Content-Type: application/json")
            .body(summary);
        let get = |target: &str| Request::new("GET", target);
        for (request, status) in [
            (put, 200),
            (get("/get_final_summary/4711"), 200),
            (get("/get_final_summary/4712"), 404),
            (get("/get_complete_tree/4711"), 200),
            (get("/get_document_with_context/1"), 200),
            (get("/get_document_with_context/2"), 404),
            (get("/health/detailed"), 200),
        ] {
            let answer = Client::once(address, &request)?;
            ensure!(answer.status == status, "{}", answer.status);
        }

        let of_service = [("service_name", service.as_str())];
        let routes = [
            ["/documents/{id}", "200"],
            ["/get_complete_tree/{id}", "200"],
            ["/get_document_with_context/{id}", "200"],
            ["/get_document_with_context/{id}", "404"],
            ["/get_final_summary/{id}", "200"],
            ["/get_final_summary/{id}", "404"],
            ["/health/detailed", "200"],
        ];
        let mut operations = vec![
            (["cluster.health", "", "200"], 1.0),
            (["count", "documents", "200"], 1.0),
            (["get", "documents", "200"], 1.0),
            (["get", "documents", "404"], 1.0),
            (["index", "documents", "201"], 1.0),
            (["mget", "documents", "200"], 1.0),
            (["search", "documents", "200"], 3.0),
        ];
        if product.name == "elasticsearch" {
            // Its client asks who answers before its first call.
            operations.push((["info", "", "200"], 1.0));
        }
        let routes: BTreeMap<_, _> = routes.map(|key| (key.map(str::to_owned), 1.0)).into();
        let operations: BTreeMap<_, _> = operations
            .into_iter()
            .map(|(key, count)| (key.map(str::to_owned), count))
            .collect();
        eventually(SCRAPE_TIMEOUT, || {
            let metrics = agent.metrics()?;
            let by = ["http_route", "http_response_status_code"];
            let requests = "http_server_request_duration_seconds_count";
            let counted = metrics.sum_by(requests, &of_service, by);
            ensure!(counted == routes, "{}", difference(&counted, &routes));
            let by = [
                "db_operation_name",
                "db_collection_name",
                "db_response_status_code",
            ];
            let counted = metrics.sum_by(DURATION_COUNT, &of_service, by);
            ensure!(
                counted == operations,
                "{}",
                difference(&counted, &operations)
            );
            let port = node.address.port().to_string();
            let cluster = [("cluster", CLUSTER), ("server_port", port.as_str())];
            for gauge in ["health", "nodes", "active_shards", "unassigned_shards"] {
                let name = format!("elasticsearch_cluster_{gauge}");
                ensure!(metrics.select(&name, &cluster).count() == 1, "no {name}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Threads, tasks, JavaScript and Rust at once, more than 10,000 calls in all with both products.
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
        ("rust", "", "plain", 504),
        ("rust", "", "gzip", 504),
    ] {
        let port = node.address.port();
        let service = format!("e2e-{}-{language}-{kind}-{coding}-{port}", product.name);
        let command = load_command(&node, product, [language, kind, coding], count)?;
        let output = run_client(command, &service)?;
        let line = output.lines().find(|line| line.starts_with('{'));
        let load = Load::parse(line.context("the load told nothing")?)?;
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

/// `search_load.py`, `search_load.js` or `search_load.rs`: language, kind, content coding.
fn load_command(
    node: &Node,
    product: &Product,
    [language, kind, coding]: [&str; 3],
    calls: u32,
) -> Result<Command> {
    let mut command = match language {
        "rust" => Command::new(env!("CARGO_BIN_EXE_search_load")),
        "node" => {
            let mut command = Command::new(prerequisite::on_path("node")?);
            command.arg(prerequisite::workload("search_load.js"));
            let modules = prerequisite::node_modules(product.npm_package)?;
            command.env("NODE_PATH", modules);
            command
        }
        _ => {
            let mut command = Command::new(prerequisite::python("python")?);
            command.arg(prerequisite::workload("search_load.py"));
            command
        }
    };
    if language != "rust" {
        command.arg(product.name);
    }
    command.args([&format!("http://{}", node.address), coding]);
    if !kind.is_empty() {
        command.arg(kind);
    }
    command.arg(calls.to_string());
    Ok(command)
}
