use protocol::observation::{Outcome, Shards, TraceParent};

use super::*;
use crate::sink::fixtures::{MILLISECOND_NS, observation, search};

fn span_of(observation: &Observation) -> SpanData {
    from_observation(observation, &Clock::new())
}

fn server() -> Observation {
    observation("shop", Role::Server, "/items/{id}")
}

fn client() -> Observation {
    observation("shop", Role::Client, "/items/{id}")
}

fn attributes(span: &SpanData) -> Vec<String> {
    let mut told: Vec<String> = span
        .attributes
        .iter()
        .map(|pair| format!("{}={}", pair.key, pair.value))
        .collect();
    told.sort();
    told
}

#[test]
fn a_server_span_is_as_promised() {
    let mut observation = server();
    observation.exchange.request_id = Some("r-1".into());
    observation.exchange.correlation_id = Some("c-1".into());
    let span = span_of(&observation);
    assert_eq!(span.name, "GET /items/{id}");
    assert_eq!(span.span_kind, SpanKind::Server);
    assert_eq!(span.status, Status::Unset);
    insta::assert_snapshot!(attributes(&span).join("\n"), @r#"
    client.address=127.0.0.1
    http.request.body.size=0
    http.request.header.x_correlation_id=["c-1"]
    http.request.header.x_request_id=["r-1"]
    http.request.method=GET
    http.response.body.size=512
    http.response.status_code=200
    http.route=/items/{id}
    network.protocol.version=1.1
    server.address=shop.example
    server.port=8080
    url.path=/items/17
    url.scheme=http
    "#);
}

#[test]
fn a_span_tells_of_the_arrival_where_that_is_known() {
    let mut observation = server();
    let names = |span: &SpanData| -> Vec<_> {
        let events = span.events.events.iter();
        events.map(|event| event.name.clone()).collect()
    };
    assert_eq!(names(&span_of(&observation)), ["response.first_byte"]);
    let times = &mut observation.exchange.times;
    times.request_arrived_ns = Some(times.request_first_ns - 3 * MILLISECOND_NS);
    let span = span_of(&observation);
    assert_eq!(names(&span), ["request.arrived", "response.first_byte"]);
    let waited = span
        .start_time
        .duration_since(span.events.events[0].timestamp);
    assert_eq!(waited.unwrap(), Duration::from_millis(3));
}

#[test]
fn a_client_span_has_the_template_and_the_server_that_it_called() {
    let mut observation = client();
    observation.exchange.host = None;
    observation.remote = Endpoint::Inet("[::1]:9000".parse().unwrap());
    let span = span_of(&observation);
    assert_eq!(span.span_kind, SpanKind::Client);
    insta::assert_snapshot!(attributes(&span).join("\n"), @r#"
    http.request.body.size=0
    http.request.method=GET
    http.response.body.size=512
    http.response.status_code=200
    network.protocol.version=1.1
    server.address=::1
    server.port=9000
    url.path=/items/17
    url.scheme=http
    url.template=/items/{id}
    "#);
}

#[test]
fn a_search_is_named_by_operation_and_index() {
    let mut observation = search("shop");
    let call = observation.exchange.elasticsearch.as_mut().unwrap();
    call.batch_size = Some(3);
    call.query_text = Some("{query:?}".into());
    call.hits = Some(12);
    let (total, failed) = (5, 1);
    call.shards = Some(Shards { total, failed });
    call.namespace = Some("9c5f0fae".into());
    call.node = Some("instance-0000000001".into());
    let span = span_of(&observation);
    assert_eq!(span.name, "search docs");
    let told = attributes(&span);
    let is_of_call = |it: &&String| it.starts_with("db.") || it.starts_with("elasticsearch.");
    let database: Vec<_> = told.iter().filter(is_of_call).collect();
    assert_eq!(
        database,
        [
            "db.collection.name=docs",
            "db.namespace=9c5f0fae",
            "db.operation.batch.size=3",
            "db.operation.name=search",
            "db.operation.parameter.index=docs",
            "db.query.text={query:?}",
            "db.response.status_code=200",
            "db.system.name=elasticsearch",
            "elasticsearch.hits.total=12",
            "elasticsearch.node.name=instance-0000000001",
            "elasticsearch.shards.failed=1",
            "elasticsearch.shards.total=5",
            "elasticsearch.timed_out=false",
            "elasticsearch.took_ms=6",
        ]
    );
    let call = observation.exchange.elasticsearch.as_mut().unwrap();
    call.collection = "".into();
    assert_eq!(span_of(&observation).name, "search");
    // An operation that is not known names nothing.
    observation
        .exchange
        .elasticsearch
        .as_mut()
        .unwrap()
        .operation = None;
    assert_eq!(span_of(&observation).name, "POST /{index}/_search");
}

#[test]
fn an_error_is_what_the_cluster_calls_it() {
    let mut observation = search("shop");
    observation.exchange.status = Some(404);
    let error = |it: &Observation| {
        let told = attributes(&span_of(it)).into_iter();
        told.filter(|it| it.starts_with("error.type"))
            .collect::<String>()
    };
    assert_eq!(error(&observation), "error.type=404");
    let call = observation.exchange.elasticsearch.as_mut().unwrap();
    call.error_type = Some("index_not_found_exception".into());
    assert_eq!(error(&observation), "error.type=index_not_found_exception");
    observation.exchange.outcome = Outcome::Reset;
    assert_eq!(error(&observation), "error.type=reset");
}

#[test]
fn names_without_a_route_or_a_known_method_follow_the_conventions() {
    let mut observation = server();
    observation.route = "".into();
    assert_eq!(span_of(&observation).name, "GET");
    observation.exchange.method = "_OTHER";
    assert_eq!(span_of(&observation).name, "HTTP");
    assert!(
        !attributes(&span_of(&observation))
            .iter()
            .any(|it| it.starts_with("http.route"))
    );
}

#[test]
fn times_are_the_sockets_times() {
    let clock = Clock::new();
    let now_ns = crate::clock::monotonic_ns();
    let mut observation = server();
    let times = &mut observation.exchange.times;
    times.request_first_ns = now_ns;
    times.response_first_ns = Some(now_ns + 4 * MILLISECOND_NS);
    times.response_last_ns = Some(now_ns + 10 * MILLISECOND_NS);
    let span = from_observation(&observation, &clock);
    let started_ago = std::time::SystemTime::now()
        .duration_since(span.start_time)
        .unwrap();
    assert!(started_ago < Duration::from_secs(1), "{started_ago:?}");
    assert_eq!(
        span.end_time.duration_since(span.start_time).unwrap(),
        Duration::from_millis(10)
    );
    let [event] = &span.events.events[..] else {
        panic!("{:?}", span.events)
    };
    assert_eq!(event.name, "response.first_byte");
    assert_eq!(
        event.timestamp.duration_since(span.start_time).unwrap(),
        Duration::from_millis(4)
    );
}

#[test]
fn a_traceparent_makes_a_child_and_nothing_else_does() {
    let mut observation = server();
    let root = span_of(&observation);
    assert_eq!(root.parent_span_id, SpanId::INVALID);
    assert!(root.span_context.is_valid() && root.span_context.is_sampled());
    assert_ne!(
        root.span_context.trace_id(),
        span_of(&observation).span_context.trace_id()
    );

    let parent = TraceParent {
        trace_id: [7; 16],
        parent_id: [9; 8],
        flags: 0,
    };
    observation.exchange.trace_parent = Some(parent);
    let child = span_of(&observation);
    assert_eq!(child.span_context.trace_id().to_bytes(), [7; 16]);
    assert_eq!(child.parent_span_id.to_bytes(), [9; 8]);
    assert!(child.parent_span_is_remote);
    assert!(
        !child.span_context.is_sampled(),
        "the flags are the request's own"
    );
    assert_ne!(child.span_context.span_id().to_bytes(), [9; 8]);
}

#[test]
fn errors_are_what_each_side_calls_an_error() {
    let told = |mut observation: Observation, status: Option<u16>, outcome: Outcome| {
        observation.exchange.status = status;
        observation.exchange.outcome = outcome;
        let span = span_of(&observation);
        let error = attributes(&span)
            .into_iter()
            .find_map(|it| it.strip_prefix("error.type=").map(str::to_owned));
        assert_eq!(error.is_some(), matches!(span.status, Status::Error { .. }));
        error
    };
    let matched = Outcome::Matched;
    assert_eq!(told(server(), Some(200), matched), None);
    assert_eq!(told(server(), Some(404), matched), None);
    assert_eq!(told(client(), Some(399), matched), None);
    assert_eq!(told(client(), Some(404), matched).as_deref(), Some("404"));
    assert_eq!(told(server(), Some(500), matched).as_deref(), Some("500"));
    assert_eq!(
        told(server(), None, Outcome::Reset).as_deref(),
        Some("reset")
    );
    assert_eq!(
        told(server(), Some(200), Outcome::ClosedEarly).as_deref(),
        Some("closed_early")
    );
    assert_eq!(
        told(client(), None, Outcome::TimedOut).as_deref(),
        Some("timeout")
    );
}
