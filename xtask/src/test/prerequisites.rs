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
    // Servers and loads.
    program("nginx", "nginx-light", SERVERS_AND_SEARCH),
    program("curl", "curl", SERVERS),
    program("wrk", "wrk", SERVERS),
    program("hey", "hey", SERVERS),
    // Other networks, other namespaces.
    program("ip", "iproute2", &["breaks", "places"]),
    program("apache2", "apache2-bin", &["places"]),
    program("runc", "runc", &["places"]),
    program("nginx", "nginx-light", &["breaks"]),
    program("curl", "curl", &["breaks"]),
    // The monitoring side.
    program("prometheus", "prometheus", COLLECTOR),
    program("promtool", "prometheus", COLLECTOR),
    program(
        "chromium-headless-shell",
        "chromium-headless-shell",
        &["page", "page_flamegraphs"],
    ),
    // Privileges, and the kernel's own view.
    program("setpriv", "util-linux", SERVERS),
    program("chrt", "util-linux", &["waiting"]),
    program("bpftool", "bpftool", SERVERS),
    // Calls that can't be read; a program that writes into the agent's rings.
    program("gcc", "gcc", LOSSES),
    program("clang", "clang", LOSSES),
    program("bpftool", "bpftool", LOSSES),
    program("curl", "curl", LOSSES),
    // A program with a known split of time; a second reader of profiles is part of Go.
    program("gcc", "gcc", PROFILE),
    program("gcc", "gcc", &["page_flamegraphs", "transfers"]),
    program("readelf", "binutils", PROFILE),
    program("go", "golang-go", PROFILE),
    program("gcc", "gcc", UNWIND),
    program("g++", "g++", UNWIND),
    program("clang", "clang", UNWIND),
    program("musl-gcc", "musl-tools", UNWIND),
    program("strip", "binutils", UNWIND),
    program("go", "golang-go", UNWIND),
    program("mvn", "maven", PYTHON_PROFILE),
    program("unshare", "util-linux", PYTHON_PROFILE),
    program("javac", "default-jdk-headless", PROFILE_LABELS),
    program("node", "nodejs", JIT_PROFILE),
    program("luajit", "luajit", JIT_PROFILE),
    program("pypy3", "pypy3", JIT_PROFILE),
    program("javac", "default-jdk-headless", JIT_PROFILE),
    program("systemd-analyze", "systemd", &["deploy"]),
    // What the folders below are made with.
    program("python3", "python3-venv", PYTHON),
    program("node", "nodejs", SERVERS_AND_SEARCH),
    program("npm", "npm", SERVERS_AND_SEARCH),
    program("go", "golang-go", COLLECTOR),
    // A JDK: the nodes' main classes are compiled when they start.
    program("javac", "default-jdk-headless", SEARCH_ANY),
    program("mvn", "maven", SEARCH_ANY),
];

/// Suites that run only when they are named: their servers need a JDK that Debian 12 does not have.
pub(crate) const ON_DEMAND: &[&str] = &["elasticsearch_versions"];

const SERVERS: &[&str] = &[
    "workloads",
    "http",
    "framing",
    "sockets",
    "config",
    "lifecycle",
    "failures",
    "monitoring",
    "waiting",
];
const SERVERS_AND_SEARCH: &[&str] = &[
    "workloads",
    "http",
    "framing",
    "sockets",
    "config",
    "lifecycle",
    "failures",
    "monitoring",
    "waiting",
    "elasticsearch",
    "elasticsearch_services",
    "profile_labels",
];
const PYTHON: &[&str] = &[
    "workloads",
    "http",
    "framing",
    "sockets",
    "config",
    "lifecycle",
    "failures",
    "monitoring",
    "waiting",
    "elasticsearch",
    "elasticsearch_services",
    "breaks",
    "places",
    "deploy",
    "page",
    "page_flamegraphs",
    "profile_push",
    "profile_requests",
    "profile_search",
    "python_profile",
];
/// Suites that need nothing: client and server are threads of the test.
#[cfg(test)]
const ALONE: &[&str] = &["accounting", "exchanges"];
const COLLECTOR: &[&str] = &["workloads", "monitoring", "waiting", "elasticsearch"];
const SEARCH: &[&str] = &[
    "elasticsearch",
    "elasticsearch_answers",
    "elasticsearch_services",
    "page",
    "profile_search",
];
const SEARCH_ANY: &[&str] = &[
    "elasticsearch",
    "elasticsearch_answers",
    "elasticsearch_services",
    "elasticsearch_versions",
    "page",
    "profile_search",
];
const LOSSES: &[&str] = &["losses"];
const PROFILE: &[&str] = &[
    "profile",
    "profile_serving",
    "profile_push",
    "profile_requests",
    "profile_search",
    "off_cpu",
];
const UNWIND: &[&str] = &["unwind"];
const PYTHON_PROFILE: &[&str] = &["python_profile"];
const PROFILE_LABELS: &[&str] = &["profile_labels"];
const JIT_PROFILE: &[&str] = &["jit_profile"];

const fn program(
    name: &'static str,
    package: &'static str,
    suites: &'static [&'static str],
) -> Program {
    Program {
        name,
        package,
        suites,
    }
}

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
    /// An interpreter that a Maven project depends on.
    MavenPython,
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
        what: "CPython 3.14",
        name: "cpython-3.14",
        variable: "TELLTALE_PYTHON_3_14",
        sources: &["cpython-3.14/pom.xml"],
        recipe: Recipe::MavenPython,
        suites: PYTHON_PROFILE,
    },
    Folder {
        what: "Node servers and clients",
        name: "node",
        variable: "TELLTALE_NODE_MODULES",
        sources: &["package.json", "package-lock.json"],
        recipe: Recipe::Node,
        suites: SERVERS_AND_SEARCH,
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
    Folder {
        what: "OpenSearch 1",
        name: "opensearch-1",
        variable: "TELLTALE_OPENSEARCH_1_CP",
        sources: &["opensearch-1/pom.xml"],
        recipe: Recipe::Maven,
        suites: ON_DEMAND,
    },
    Folder {
        what: "OpenSearch 3",
        name: "opensearch-3",
        variable: "TELLTALE_OPENSEARCH_3_CP",
        sources: &["opensearch-3/pom.xml"],
        recipe: Recipe::Maven,
        suites: ON_DEMAND,
    },
    Folder {
        what: "Elasticsearch 8",
        name: "elasticsearch-8",
        variable: "TELLTALE_ELASTICSEARCH_8_CP",
        sources: &["elasticsearch-8/pom.xml"],
        recipe: Recipe::Maven,
        suites: ON_DEMAND,
    },
    Folder {
        what: "Elasticsearch 9",
        name: "elasticsearch-9",
        variable: "TELLTALE_ELASTICSEARCH_9_CP",
        sources: &["elasticsearch-9/pom.xml"],
        recipe: Recipe::Maven,
        suites: ON_DEMAND,
    },
];

/// Folder with the sources of workloads.
pub(crate) fn workloads() -> PathBuf {
    paths::root().join("tests/workloads")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_in_the_tables() {
        let programs = || PROGRAMS.iter().flat_map(|program| program.suites);
        let listed = || programs().chain(ALONE);
        for suite in crate::test::known_suites().unwrap() {
            assert!(
                listed().any(|name| *name == suite),
                "tests/tests/{suite}.rs: say here what it needs"
            );
        }
    }
}
