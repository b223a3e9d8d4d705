//! What the answers of operations tell, and which requests are queries.

/// Operations of several searches at once.
const SEARCHES: [&str; 3] = ["fleet.msearch", "msearch", "msearch_template"];

/// Other operations whose answers say `took` (and `timed_out`, where they can time out) at their top.
const WITH_TOOK: [&str; 21] = [
    "async_search.get",
    "async_search.submit",
    "asynchronous_search.get",
    "asynchronous_search.search",
    "delete_by_query",
    "eql.get",
    "eql.search",
    "esql.async_query",
    "esql.async_query_get",
    "esql.query",
    "fleet.search",
    "graph.explore",
    "knn_search",
    "monitoring.bulk",
    "reindex",
    "rollup.rollup_search",
    "scroll",
    "search",
    "search_template",
    "termvectors",
    "update_by_query",
];

/// Operations whose answers say `_shards` at their top, beside those that say `took`.
const WITH_SHARDS: [&str; 10] = [
    "count",
    "create",
    "delete",
    "index",
    "indices.clear_cache",
    "indices.flush",
    "indices.forcemerge",
    "indices.refresh",
    "indices.validate_query",
    "update",
];

/// Operations whose requests are queries.
const WITH_QUERY: [&str; 17] = [
    "async_search.submit",
    "asynchronous_search.search",
    "count",
    "delete_by_query",
    "eql.search",
    "esql.async_query",
    "esql.query",
    "explain",
    "fleet.search",
    "knn_search",
    "msearch",
    "ppl.query",
    "search",
    "search_template",
    "sql.query",
    "terms_enum",
    "update_by_query",
];

/// What is read from an operation's answer. Each member is read where the API has it: elsewhere it might
/// be part of somebody's document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// `took`, `errors` and the items.
    Bulk,
    /// `took` and how many answers there are.
    Searches,
    /// The state of a cluster.
    Health,
    /// `took`, `timed_out`, `_shards` and `hits.total`, where it has them.
    Took,
    /// `_shards`.
    Shards,
    /// Nothing.
    Nothing,
}

impl Reading {
    /// What is read of `operation`.
    pub(super) fn of(operation: &str) -> Self {
        match operation {
            "bulk" => Self::Bulk,
            "cluster.health" => Self::Health,
            _ if SEARCHES.contains(&operation) => Self::Searches,
            _ if WITH_TOOK.contains(&operation) => Self::Took,
            _ if WITH_SHARDS.contains(&operation) => Self::Shards,
            _ => Self::Nothing,
        }
    }
}

/// Whether the requests of `operation` are queries.
pub(super) fn is_query(operation: &str) -> bool {
    WITH_QUERY.contains(&operation)
}

#[cfg(test)]
mod tests {
    use super::super::endpoints;
    use super::*;

    #[test]
    fn every_operation_named_here_is_in_the_table() {
        let lists = [&SEARCHES[..], &WITH_TOOK, &WITH_SHARDS, &WITH_QUERY];
        for operation in lists.concat() {
            let known = endpoints::lines().any(|endpoint| endpoint.operation == operation);
            assert!(known, "{operation}");
        }
    }
}
