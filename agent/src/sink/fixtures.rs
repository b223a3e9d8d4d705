//! Observations for the tests of sinks.

use std::sync::Arc;

use protocol::observation::{ElasticsearchCall, Exchange, Outcome, Role, SearchProduct, Times};

use crate::observation::{Endpoint, Observation};
use crate::process::{NameSource, Process, Runtime};

pub(crate) const MILLISECOND_NS: u64 = 1_000_000;

/// A process of a service.
pub(crate) fn process(service: &str, pid: u32) -> Process {
    Process {
        service: service.into(),
        service_source: NameSource::Environment,
        executable: "/usr/bin/python3.12".into(),
        runtime: Runtime::Python,
        start_ticks: 4711,
        ..Process::unknown(pid, "python3")
    }
}

/// A `GET` that `service` answered or sent: 200 after 10 ms, the first byte after 4.
pub(crate) fn observation(service: &str, role: Role, route: &str) -> Observation {
    let start_ns = 1_000_000_000_000;
    Observation {
        exchange: Exchange {
            role,
            outcome: Outcome::Matched,
            method: "GET",
            path: "/items/17".into(),
            status: Some(200),
            http_minor_version: 1,
            times: Times {
                request_arrived_ns: None,
                request_first_ns: start_ns,
                request_last_ns: start_ns + MILLISECOND_NS,
                response_first_ns: Some(start_ns + 4 * MILLISECOND_NS),
                response_last_ns: Some(start_ns + 10 * MILLISECOND_NS),
            },
            request_body_bytes: Some(0),
            response_body_bytes: Some(512),
            host: Some("shop.example:8080".into()),
            trace_parent: None,
            request_id: None,
            correlation_id: None,
            elasticsearch: None,
        },
        route: route.into(),
        process: Arc::new(process(service, 42)),
        local: Endpoint::Inet(([127, 0, 0, 1], 8080).into()),
        remote: Endpoint::Inet(([127, 0, 0, 1], 50_123).into()),
    }
}

/// A `search` of the index `docs` that `service` sent: 10 ms on the wire, `took` 6.
pub(crate) fn search(service: &str) -> Observation {
    let mut observation = observation(service, Role::Client, "/{index}/_search");
    observation.local = Endpoint::Inet(([127, 0, 0, 1], 50_200).into());
    observation.remote = Endpoint::Inet(([127, 0, 0, 1], 9200).into());
    let exchange = &mut observation.exchange;
    exchange.method = "POST";
    exchange.path = "/docs/_search".into();
    exchange.host = Some("es.example:9200".into());
    exchange.elasticsearch = Some(Box::new(ElasticsearchCall {
        product: SearchProduct::Elasticsearch,
        prefix: "".into(),
        operation: Some("search"),
        collection: "docs".into(),
        took_ms: Some(6),
        timed_out: Some(false),
        shards: None,
        hits: None,
        errors: None,
        error_type: None,
        batch_size: None,
        bulk_items: Vec::new(),
        cluster: None,
        namespace: None,
        node: None,
        query_text: None,
        unknown: Vec::new(),
    }));
    observation
}

/// Makes the exchange last so long, from its first byte to its last.
pub(crate) fn lasting(mut observation: Observation, milliseconds: u64) -> Observation {
    let times = &mut observation.exchange.times;
    times.response_last_ns = Some(times.request_first_ns + milliseconds * MILLISECOND_NS);
    times.response_first_ns = Some(times.request_first_ns + milliseconds * MILLISECOND_NS / 2);
    observation
}
