//! What sinks get to see of traffic. Captured bytes end here: an [`Exchange`] holds only the fields
//! that the contract names, and none of them can carry a query string, a credential or a body.

/// Which side of the exchange the observed process is on: who sends the request is the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The process sent the request.
    Client,
    /// The process received the request.
    Server,
}

impl Role {
    /// The value of the `role` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// How an exchange ended. Every request head ends in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Request and response are complete.
    Matched,
    /// The connection was reset in the middle.
    Reset,
    /// The connection ended in good order before the response did.
    ClosedEarly,
    /// The kernel gave up on the peer.
    TimedOut,
    /// The connection left HTTP: 101, or a 2xx answer to CONNECT.
    Upgraded,
    /// Bytes were lost and the exchange could not be told apart from the next one.
    Resynchronized,
    /// The agent forgot the connection to keep its memory bounded.
    Evicted,
    /// The head could not be parsed.
    NotParsed,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 8] = [
        Self::Matched,
        Self::Reset,
        Self::ClosedEarly,
        Self::TimedOut,
        Self::Upgraded,
        Self::Resynchronized,
        Self::Evicted,
        Self::NotParsed,
    ];

    /// The value of the `outcome` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::Reset => "reset",
            Self::ClosedEarly => "closed_early",
            Self::TimedOut => "timeout",
            Self::Upgraded => "upgraded",
            Self::Resynchronized => "resynchronized",
            Self::Evicted => "evicted",
            Self::NotParsed => "not_parsed",
        }
    }
}

/// When an exchange happened: `CLOCK_MONOTONIC`, nanoseconds, as the process read and wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// When the request's first byte arrived at the server, or when the connection was ready to be
    /// accepted, where the byte came before it was; `None` where the kernel side does not tell, for a
    /// client, and for a request that was read in one go with the end of another one.
    pub request_arrived_ns: Option<u64>,
    /// First byte of the request.
    pub request_first_ns: u64,
    /// Last byte of the request that passed.
    pub request_last_ns: u64,
    /// First byte of the (final, not 1xx) response; `None` when none came.
    pub response_first_ns: Option<u64>,
    /// Last byte of the response that passed, or the end of the connection.
    pub response_last_ns: Option<u64>,
}

/// The W3C trace context of a request (`traceparent`, level 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// 16 bytes, not all zero.
    pub trace_id: [u8; 16],
    /// 8 bytes, not all zero.
    pub parent_id: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// The observed process's side.
    pub role: Role,
    /// How it ended.
    pub outcome: Outcome,
    /// Method as sent; `_OTHER` for one that no RFC knows.
    pub method: &'static str,
    /// Raw path without query and fragment, at most 1 KiB; `*` and the authority of CONNECT as sent.
    pub path: String,
    /// Status code of the final response; `None` when it never came.
    pub status: Option<u16>,
    /// Minor version of the response, or of the request where no response came: 0 or 1.
    pub http_minor_version: u8,
    /// First and last bytes.
    pub times: Times,
    /// Bytes of the request's body as framed on the wire (chunk framing not counted); `None` if unknown.
    pub request_body_bytes: Option<u64>,
    /// Bytes of the response's body, likewise.
    pub response_body_bytes: Option<u64>,
    /// The `Host` header or the target's authority, without userinfo, at most 256 bytes.
    pub host: Option<String>,
    /// Trace context that the request carried.
    pub trace_parent: Option<TraceParent>,
    /// `X-Request-ID`, at most 128 bytes of visible ASCII.
    pub request_id: Option<String>,
    /// `X-Correlation-ID`, likewise.
    pub correlation_id: Option<String>,
    /// What the exchange was to an Elasticsearch or OpenSearch cluster.
    pub elasticsearch: Option<Box<ElasticsearchCall>>,
}

/// Which product answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SearchProduct {
    /// Elasticsearch.
    Elasticsearch,
    /// OpenSearch.
    OpenSearch,
}

impl SearchProduct {
    /// The value of `db.system.name`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Elasticsearch => "elasticsearch",
            Self::OpenSearch => "opensearch",
        }
    }
}

/// `status` of a `_cluster/health` answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterHealth {
    /// Some primary shards are missing.
    Red,
    /// Some replicas are missing.
    Yellow,
    /// All shards are there.
    Green,
}

/// A call of the Elasticsearch REST API.
#[derive(Clone, Debug, PartialEq)]
pub struct ElasticsearchCall {
    /// Who answers.
    pub product: SearchProduct,
    /// What a proxy has before the API's own path (`/es`); empty where there is nothing.
    pub prefix: Box<str>,
    /// Endpoint id of the REST specification (`search`, `cluster.health`); `None` when unknown.
    pub operation: Option<&'static str>,
    /// Path template of that endpoint (`/{index}/_doc/{id}`).
    pub template: Option<&'static str>,
    /// The index expression; empty where the path has none.
    pub collection: Box<str>,
    /// `took` of the answer, milliseconds; `None` where it has none or it was not captured.
    pub took_ms: Option<u64>,
    /// `timed_out` of the answer.
    pub timed_out: Option<bool>,
    /// Shards that were asked.
    pub shards: Option<Shards>,
    /// `hits.total` of a search: how many documents match, or the least number of them.
    pub hits: Option<u64>,
    /// `errors` of a bulk answer.
    pub errors: Option<bool>,
    /// `type` of the answer's error, such as `index_not_found_exception`.
    pub error_type: Option<Box<str>>,
    /// Operations of a bulk request, searches of an `msearch`: where one of the two bodies was captured
    /// whole.
    pub batch_size: Option<u64>,
    /// The items of a bulk request by what became of them; empty where none was seen.
    pub bulk_items: Vec<BulkItems>,
    /// What a `_cluster/health` answer says of the whole cluster.
    pub cluster: Option<Box<ClusterReport>>,
    /// The cluster that answered, as the answer's head names it; visible ASCII of at most 128 bytes.
    pub namespace: Option<Box<str>>,
    /// The node that answered, likewise.
    pub node: Option<Box<str>>,
    /// The shape of the query, every literal replaced by `?`; `None` unless asked for.
    pub query_text: Option<Box<str>>,
    /// What should have been read from the bodies and was not.
    pub unknown: Vec<Unknown>,
}

/// `_shards` of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// How many were asked.
    pub total: u64,
    /// How many failed.
    pub failed: u64,
}

/// Items of a bulk request that were to do the same and came to the same end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkItems {
    /// What they were to do.
    pub action: BulkAction,
    /// What became of them.
    pub outcome: BulkOutcome,
    /// How many.
    pub count: u64,
}

/// What an item of a bulk request is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BulkAction {
    /// Index a document, whether it is there or not.
    Index,
    /// Index a document that is not there yet.
    Create,
    /// Change a document.
    Update,
    /// Delete a document.
    Delete,
}

impl BulkAction {
    /// Every action.
    pub const ALL: [Self; 4] = [Self::Index, Self::Create, Self::Update, Self::Delete];

    /// As in the API, and the value of the `action` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// What became of an item of a bulk request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BulkOutcome {
    /// A status below 300.
    Succeeded,
    /// 404: the document or the index is not there.
    NotFound,
    /// 409: the document has another version, or is there already.
    Conflict,
    /// 429: the node had no room for it.
    Rejected,
    /// Any other status.
    Failed,
    /// Its part of the answer was not captured.
    Unknown,
}

impl BulkOutcome {
    /// Every outcome.
    pub const ALL: [Self; 6] = [
        Self::Succeeded,
        Self::NotFound,
        Self::Conflict,
        Self::Rejected,
        Self::Failed,
        Self::Unknown,
    ];

    /// The value of the `outcome` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// What a `_cluster/health` answer says of the whole cluster. Numbers that it does not say, or that
/// were not captured, are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterReport {
    /// `cluster_name`.
    pub name: Option<Box<str>>,
    /// `status`.
    pub health: Option<ClusterHealth>,
    /// `number_of_nodes`.
    pub nodes: Option<u64>,
    /// `active_shards`.
    pub active_shards: Option<u64>,
    /// `unassigned_shards`.
    pub unassigned_shards: Option<u64>,
    /// `number_of_pending_tasks`.
    pub pending_tasks: Option<u64>,
}

/// What a call's bodies would have told, had they been read to their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// `took` may lie behind what was captured of the answer.
    AnswerCut,
    /// The answer is in a format or coding that is not read here.
    AnswerFormat,
    /// How many items a bulk request had: neither body was captured whole.
    BulkItemsCut,
}

impl Unknown {
    /// The value of the `reason` label of `telltale_losses_total{stage="elasticsearch"}`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AnswerCut => "answer_cut",
            Self::AnswerFormat => "answer_format",
            Self::BulkItemsCut => "bulk_items_cut",
        }
    }
}
