//! The endpoints of the REST APIs, as a trie over the segments of their path templates.
//!
//! The table is `endpoints/endpoints.txt`; what it was made from is told there and in the README beside.

use std::cmp::Ordering;
use std::sync::LazyLock;

use super::operations::Reading;
use super::path::is_index_expression;

/// Operation, methods (joined by commas) and path template, a line each.
const TABLE: &str = include_str!("../../endpoints/endpoints.txt");

/// Methods of the APIs.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"];

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Id of the operation.
    pub(super) operation: &'static str,
    /// What its answer tells.
    pub(super) reading: Reading,
    /// Path template; parameters are whole segments, in braces.
    pub(super) template: &'static str,
    /// Whether the path names a mapping type (`/books/novel/1`), as it could up to Elasticsearch 7 and
    /// OpenSearch 1. Such a path has nothing else that tells the API.
    pub(super) has_type: bool,
    /// The number of the segment that is the index expression.
    pub(super) index_segment: Option<usize>,
    /// A bit for each of [`METHODS`].
    methods: u8,
}

impl Endpoint {
    fn of_line(line: &'static str) -> Option<Self> {
        let mut fields = line.split(' ');
        let operation = fields.next()?;
        let methods = fields.next()?.split(',').map(method_bit);
        let template = fields.next().filter(|path| path.starts_with('/'))?;
        let endpoint = Self {
            operation,
            reading: Reading::of(operation),
            template,
            has_type: template.starts_with("/{index}/{type}"),
            index_segment: index_segment(template),
            methods: methods.fold(0, |all, bit| all | bit),
        };
        fields.next().is_none().then_some(endpoint)
    }

    /// Names of the template's parameters, with the number of their segment.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (usize, &'static str)> + use<> {
        parameters(self.template)
    }
}

fn parameters(template: &'static str) -> impl Iterator<Item = (usize, &'static str)> {
    let segments = template[1..].split('/').enumerate();
    segments.filter_map(|(at, segment)| Some((at, parameter(segment)?)))
}

/// What stands first in a path is an index expression, whatever the template calls it; a data stream is
/// used like an index.
fn index_segment(template: &'static str) -> Option<usize> {
    let index = parameters(template).find(|(at, name)| *at == 0 || *name == "index");
    index.map(|(at, _)| at).or_else(|| {
        let is_data_stream = template.starts_with("/_data_stream/{name}");
        is_data_stream.then_some(1)
    })
}

/// Whether an endpoint of the table has this id.
pub(super) fn has_operation(operation: &str) -> bool {
    let mut endpoints = TABLE.lines().filter_map(Endpoint::of_line);
    endpoints.any(|endpoint| endpoint.operation == operation)
}

/// 0 for a method that is none of the APIs'.
fn method_bit(method: &str) -> u8 {
    let at = METHODS.iter().position(|known| *known == method);
    at.map_or(0, |at| 1 << at)
}

/// The endpoint of a path's segments; a literal goes before a parameter, so that `/_search` is never
/// an index, and a template that comes first in the table before another.
pub(super) fn find(method: &str, segments: &[&str]) -> Option<&'static Endpoint> {
    TRIE.find(method_bit(method), segments, 0)
}

static TRIE: LazyLock<Node> = LazyLock::new(Node::of_table);

#[derive(Debug, Default)]
struct Node {
    /// Sorted by [`by_length`].
    literals: Vec<(&'static str, Self)>,
    /// By the parameter's name, in the order of the table, a mapping type last.
    parameters: Vec<(&'static str, Self)>,
    /// Of the templates that end here.
    endpoints: Vec<Endpoint>,
}

/// The lines of the table. One that is none (a test has it that there are none) is left out.
pub(super) fn lines() -> impl Iterator<Item = Endpoint> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(Endpoint::of_line)
}

/// An order that mostly needs no look at the texts.
fn by_length(one: &str, other: &str) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

impl Node {
    fn of_table() -> Self {
        let mut root = Self::default();
        for endpoint in lines() {
            root.insert(endpoint);
        }
        root.sort();
        root
    }

    fn insert(&mut self, endpoint: Endpoint) {
        let mut node = self;
        let segments = endpoint.template.split('/');
        for segment in segments.filter(|segment| !segment.is_empty()) {
            let (children, key) = match parameter(segment) {
                Some(name) => (&mut node.parameters, name),
                None => (&mut node.literals, segment),
            };
            let at = children
                .iter()
                .position(|(name, _)| *name == key)
                .unwrap_or_else(|| {
                    children.push((key, Self::default()));
                    children.len() - 1
                });
            node = &mut children[at].1;
        }
        node.endpoints.push(endpoint);
    }

    fn sort(&mut self) {
        self.literals
            .sort_unstable_by(|(one, _), (other, _)| by_length(one, other));
        self.parameters.sort_by_key(|(name, _)| *name == "type");
        let children = self.literals.iter_mut().chain(&mut self.parameters);
        children.for_each(|(_, node)| node.sort());
    }

    fn find(&self, method: u8, segments: &[&str], depth: usize) -> Option<&Endpoint> {
        let Some((segment, rest)) = segments.split_first() else {
            let mut endpoints = self.endpoints.iter();
            return endpoints.find(|endpoint| endpoint.methods & method != 0);
        };
        let literal = self
            .literals
            .binary_search_by(|(name, _)| by_length(name, segment));
        if let Ok(at) = literal
            && let Some(found) = self.literals[at].1.find(method, rest, depth + 1)
        {
            return Some(found);
        }
        self.parameters.iter().find_map(|(name, node)| {
            // The servers refuse names that begin with `_`: an unknown endpoint is no index.
            let named_freely = depth > 1 || depth == 1 && *name != "type";
            if named_freely && *name != "index" || is_index_expression(segment) {
                node.find(method, rest, depth + 1)
            } else {
                None
            }
        })
    }
}

fn parameter(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::path::resolve;
    use super::*;

    /// Requests that the published clients make, and how those call them.
    const CLIENTS: &str = include_str!("../../endpoints/clients.txt");

    /// Operations that a client calls otherwise than the specification does: as the client calls it, and
    /// as it is called here.
    const OTHER_NAMES: [(&str, &str); 22] = [
        // Renamed in the specification after the client was made.
        ("cancel_reindex", "reindex_cancel"),
        ("get_reindex", "reindex_get"),
        ("list_reindex", "reindex_list"),
        ("remote.info", "cluster.remote_info"),
        // opensearch-py has names of its own.
        ("create_point_in_time", "create_pit"),
        ("delete_point_in_time", "delete_pit"),
        ("list_all_point_in_time", "get_all_pits"),
        ("index_management.add_policy", "ism.add_policy"),
        ("index_management.change_policy", "ism.change_policy"),
        ("index_management.delete_policy", "ism.delete_policy"),
        ("index_management.explain_index", "ism.explain_policy"),
        ("index_management.get_policy", "ism.get_policies"),
        ("index_management.get_policy", "ism.get_policy"),
        ("index_management.put_policy", "ism.put_policy"),
        (
            "index_management.remove_policy_from_index",
            "ism.remove_policy",
        ),
        ("index_management.retry", "ism.retry_index"),
        ("security.health_check", "security.health"),
        (
            "security.update_audit_config",
            "security.update_audit_configuration",
        ),
        // The JavaScript client of OpenSearch 2 too.
        (
            "nodes.clear_metering_archive",
            "nodes.clear_repositories_metering_archive",
        ),
        (
            "nodes.get_metering_info",
            "nodes.get_repositories_metering_info",
        ),
        // It asks with GET, which is how the server is asked for a transform of that name.
        ("transforms.preview", "transforms.get"),
        // The path of `tasks.get` without the task.
        ("tasks.get", "tasks.list"),
    ];

    #[test]
    fn every_line_of_the_table_is_an_endpoint_and_is_found_again() {
        let written = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(written, lines().count());
        // No method of the table is unknown.
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let methods = line.split(' ').nth(1).unwrap_or_default();
            assert!(
                methods.split(',').all(|method| method_bit(method) != 0),
                "{line}"
            );
        }
        for endpoint in lines() {
            let path = endpoint.template.replace(['{', '}'], "");
            assert_ne!(endpoint.methods, 0, "{endpoint:?}");
            for method in METHODS
                .iter()
                .filter(|method| endpoint.methods & method_bit(method) != 0)
            {
                let found = resolve(method, &path).map(|target| target.operation());
                assert_eq!(found, Some(endpoint.operation), "{endpoint:?}");
            }
        }
    }

    #[test]
    fn whatever_a_client_calls_is_called_so() {
        let mut wrong = BTreeSet::new();
        let mut requests = 0;
        for line in CLIENTS.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = line.split(' ').collect();
            let [called, method, path, _] = fields[..] else {
                panic!("{line:?}")
            };
            let found = resolve(method, path).map(|target| target.operation());
            if found != Some(called) && !is_other_name(called, found.unwrap_or_default()) {
                wrong.insert(format!("{line}: {found:?}"));
            }
            requests += 1;
        }
        assert!(requests > 1_000, "{requests}");
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    fn is_other_name(called: &str, found: &str) -> bool {
        let mut names = OTHER_NAMES.iter();
        names.any(|(theirs, ours)| called == *theirs && found == *ours)
            // One path, whatever service the body names.
            || called.starts_with("inference.put_") && found == "inference.put"
    }
}
