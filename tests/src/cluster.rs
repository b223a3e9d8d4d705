//! Real nodes of OpenSearch and Elasticsearch.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::child::{Child, free_port};
use crate::client::{Client, Request};
use crate::prerequisite;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(120);

/// Name of the cluster, as the nodes are configured.
pub const CLUSTER: &str = "telltale-test";

/// What is different between products and their versions.
#[derive(Debug)]
pub struct Product {
    /// As in `db.system.name`.
    pub name: &'static str,
    /// The client's package for Node.
    pub npm_package: &'static str,
    /// The main class, below the workloads.
    program: &'static str,
    class_path: &'static str,
    least_java: u32,
}

impl Product {
    const fn opensearch(program: &'static str, class_path: &'static str, least_java: u32) -> Self {
        Self {
            name: "opensearch",
            npm_package: "@opensearch-project/opensearch",
            program,
            class_path,
            least_java,
        }
    }

    const fn elasticsearch(
        program: &'static str,
        class_path: &'static str,
        least_java: u32,
    ) -> Self {
        Self {
            name: "elasticsearch",
            npm_package: "@elastic/elasticsearch",
            program,
            class_path,
            least_java,
        }
    }
}

/// OpenSearch 1.3.
pub const OPENSEARCH_1: Product = Product::opensearch(
    "opensearch/RunOpenSearch.java",
    "TELLTALE_OPENSEARCH_1_CP",
    17,
);

/// OpenSearch 2.
pub const OPENSEARCH: Product = Product::opensearch(
    "opensearch/RunOpenSearch.java",
    "TELLTALE_OPENSEARCH_CP",
    17,
);

/// OpenSearch 3.
pub const OPENSEARCH_3: Product = Product::opensearch(
    "opensearch-3/RunOpenSearch.java",
    "TELLTALE_OPENSEARCH_3_CP",
    21,
);

/// Elasticsearch 7.17.
pub const ELASTICSEARCH: Product = Product::elasticsearch(
    "elasticsearch/RunElasticsearch.java",
    "TELLTALE_ELASTICSEARCH_CP",
    17,
);

/// Elasticsearch 8.19.
pub const ELASTICSEARCH_8: Product = Product::elasticsearch(
    "elasticsearch-8/RunElasticsearch.java",
    "TELLTALE_ELASTICSEARCH_8_CP",
    17,
);

/// Elasticsearch 9.
pub const ELASTICSEARCH_9: Product = Product::elasticsearch(
    "elasticsearch-8/RunElasticsearch.java",
    "TELLTALE_ELASTICSEARCH_9_CP",
    21,
);

/// A running node. Dropping it ends it.
#[derive(Debug)]
pub struct Node {
    /// Where its API listens.
    pub address: SocketAddr,
    /// Its service name.
    pub service: String,
    _child: Child,
}

impl Node {
    /// A node on a free port, ready to be asked.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(product: &Product) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let service = format!("e2e-{}-{}", product.name, address.port());
        let mut command = Command::new(prerequisite::java(product.least_java)?);
        // Quick to start, small, and quick enough.
        command.args(["-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]);
        let class_path = prerequisite::class_path(product.class_path)?;
        let (module, class_path) = without_module(class_path.trim());
        command.args(["-cp", &class_path.join(":")]);
        command.arg(prerequisite::workload(product.program));
        command.arg(folder.path()).arg(address.port().to_string());
        command.arg(module.join(":"));
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
}

/// The jars of the network module and the others: from Elasticsearch 8 on, the module loads what it needs
/// itself, and refuses what is on the class path as well.
fn without_module(class_path: &str) -> (Vec<&str>, Vec<&str>) {
    const MODULE: &str = "/org/elasticsearch/plugin/transport-netty4/";
    let has_module = class_path.contains(MODULE);
    let is_of_module = |jar: &&str| jar.contains(MODULE) || jar.contains("/io/netty/");
    class_path
        .split(':')
        .partition(|jar| has_module && is_of_module(jar))
}

/// Runs a client that ends by itself, as `service`, and returns what it printed.
///
/// # Errors
/// When it fails or takes too long; with its output.
pub fn run_client(mut command: Command, service: &str) -> Result<String> {
    command.env("OTEL_SERVICE_NAME", service);
    let mut client = Child::spawn(service, command, tempfile::tempdir()?)?;
    let status = client.wait(CLIENT_TIMEOUT)?;
    let output = client.output();
    ensure!(status.success(), "{output}");
    Ok(output)
}

/// The entries in which two maps differ.
#[must_use]
pub fn difference<const N: usize>(
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
