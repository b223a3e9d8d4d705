//! What the end-to-end tests need beside Rust, and which suite needs it.
//!
//! Two tables and nothing else, for people: versions are pinned in the files that they name.

use std::path::PathBuf;

use crate::paths;

/// A program that has to be on the path, and the Debian package that holds it.
///
/// The package is installed only where the program is missing: a machine's own Node or Go serves.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    /// Suites (files of `tests/tests`) that need it.
    pub(crate) suites: &'static [&'static str],
}

pub(crate) const PROGRAMS: &[Program] = &[
    // Servers and clients.
    Program {
        name: "nginx",
        package: "nginx-light",
        suites: SERVERS,
    },
    Program {
        name: "curl",
        package: "curl",
        suites: SERVERS,
    },
    // The monitoring side.
    Program {
        name: "prometheus",
        package: "prometheus",
        suites: COLLECTOR,
    },
    Program {
        name: "promtool",
        package: "prometheus",
        suites: COLLECTOR,
    },
    // Privileges and the kernel's own view.
    Program {
        name: "setpriv",
        package: "util-linux",
        suites: PRIVILEGES,
    },
    Program {
        name: "systemd-analyze",
        package: "systemd",
        suites: DEPLOY,
    },
    Program {
        name: "bpftool",
        package: "bpftool",
        suites: SERVERS,
    },
    // What the folders below are made with.
    Program {
        name: "python3",
        package: "python3-venv",
        suites: PYTHON,
    },
    Program {
        name: "node",
        package: "nodejs",
        suites: NODE,
    },
    Program {
        name: "npm",
        package: "npm",
        suites: NODE,
    },
    Program {
        name: "go",
        package: "golang-go",
        suites: GO,
    },
    // Workloads in C, and what reads profiles back.
    Program {
        name: "gcc",
        package: "gcc",
        suites: PROFILE,
    },
    Program {
        name: "readelf",
        package: "binutils",
        suites: PROFILE,
    },
    // A JDK: the nodes' main classes are compiled when they start.
    Program {
        name: "javac",
        package: "default-jdk-headless",
        suites: SEARCH,
    },
    Program {
        name: "mvn",
        package: "maven",
        suites: SEARCH,
    },
];

const SERVERS: &[&str] = &["workloads", "http", "lifecycle", "failures", "monitoring"];
const PRIVILEGES: &[&str] = &["failures", "deploy"];
const DEPLOY: &[&str] = &["deploy"];
const PYTHON: &[&str] = &[
    "workloads",
    "http",
    "lifecycle",
    "failures",
    "monitoring",
    "elasticsearch",
    "deploy",
];
const NODE: &[&str] = &["workloads", "http", "lifecycle"];
const GO: &[&str] = &["workloads", "monitoring", "profile"];
const PROFILE: &[&str] = &["profile"];
const COLLECTOR: &[&str] = &["workloads", "monitoring", "elasticsearch"];
const SEARCH: &[&str] = &["elasticsearch"];

/// Something made once from a pinned list, handed to the tests by a variable.
pub(crate) struct Folder {
    pub(crate) what: &'static str,
    /// Its name below `target/test-tools`.
    pub(crate) name: &'static str,
    /// The variable through which the tests find it.
    pub(crate) variable: &'static str,
    /// The files that it is made from, below `tests/workloads`: a change makes it anew.
    pub(crate) sources: &'static [&'static str],
    pub(crate) recipe: Recipe,
    pub(crate) suites: &'static [&'static str],
}

/// How a folder is made.
#[derive(Clone, Copy)]
pub(crate) enum Recipe {
    /// A Python virtual environment from `requirements.txt`.
    Python,
    /// `node_modules` by `npm ci`.
    Node,
    /// A Go program.
    Go,
    /// A file with a Java class path, from a Maven project.
    Maven,
}

pub(crate) const FOLDERS: &[Folder] = &[
    Folder {
        what: "Python servers and clients",
        name: "venv",
        variable: "TELLTALE_VENV",
        sources: &["requirements.txt"],
        recipe: Recipe::Python,
        suites: PYTHON,
    },
    Folder {
        what: "Node servers",
        name: "node",
        variable: "TELLTALE_NODE_MODULES",
        sources: &["package.json", "package-lock.json"],
        recipe: Recipe::Node,
        suites: NODE,
    },
    Folder {
        what: "OpenTelemetry Collector",
        name: "collector",
        variable: "TELLTALE_COLLECTOR",
        sources: &["collector/go.mod", "collector/go.sum", "collector/main.go"],
        recipe: Recipe::Go,
        suites: COLLECTOR,
    },
    Folder {
        what: "OpenSearch",
        name: "opensearch",
        variable: "TELLTALE_OPENSEARCH_CP",
        sources: &["opensearch/pom.xml"],
        recipe: Recipe::Maven,
        suites: SEARCH,
    },
    Folder {
        what: "Elasticsearch",
        name: "elasticsearch",
        variable: "TELLTALE_ELASTICSEARCH_CP",
        sources: &["elasticsearch/pom.xml"],
        recipe: Recipe::Maven,
        suites: SEARCH,
    },
];

/// Folder with the sources of workloads.
pub(crate) fn workloads() -> PathBuf {
    paths::root().join("tests/workloads")
}
