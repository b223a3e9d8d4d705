//! An observation as a span.

use std::borrow::Cow;
use std::time::Duration;

use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use protocol::elasticsearch::path_parameters;
use protocol::observation::{ElasticsearchCall, Exchange, Role};

use crate::clock::Clock;
use crate::observation::{Endpoint, Observation};
use crate::process::Process;
use crate::sink::semantics::{self, ErrorType};

/// The resource of a process.
pub(super) fn resource(process: &Process, host_name: &str) -> Resource {
    let mut attributes = vec![
        KeyValue::new("service.name", process.service.to_string()),
        KeyValue::new("process.pid", i64::from(process.pid)),
        KeyValue::new("host.name", host_name.to_owned()),
    ];
    if let Some(namespace) = &process.service_namespace {
        attributes.push(KeyValue::new("service.namespace", namespace.to_string()));
    }
    if let Some(name) = process.executable.file_name() {
        attributes.push(KeyValue::new(
            "process.executable.name",
            name.to_string_lossy().into_owned(),
        ));
    }
    if let Some(container) = &process.container_id {
        attributes.push(KeyValue::new("container.id", container.to_string()));
    }
    if let Some(pod) = &process.pod {
        attributes.push(KeyValue::new("k8s.pod.uid", pod.uid.to_string()));
        for (key, value) in [
            ("k8s.pod.name", &pod.name),
            ("k8s.namespace.name", &pod.namespace),
        ] {
            attributes.extend(
                value
                    .as_ref()
                    .map(|value| KeyValue::new(key, value.to_string())),
            );
        }
    }
    // Empty: the SDK's own detectors describe the agent, not the process that was observed.
    Resource::builder_empty()
        .with_attributes(attributes)
        .build()
}

/// The span of an exchange whose outcome is observed.
///
/// A `traceparent` makes it a child, with the flags as they came. It is exported whatever the
/// sampled flag says: the decision not to record was the instrumentation's, and the agent has no
/// other way to tell its user of the exchange.
pub(super) fn from_observation(observation: &Observation, clock: &Clock) -> SpanData {
    let exchange = &observation.exchange;
    let ids = RandomIdGenerator::default();
    let (trace_id, parent_span_id, flags) = match exchange.trace_parent {
        Some(parent) => (
            TraceId::from_bytes(parent.trace_id),
            SpanId::from_bytes(parent.parent_id),
            TraceFlags::new(parent.flags),
        ),
        None => (ids.new_trace_id(), SpanId::INVALID, TraceFlags::SAMPLED),
    };
    let times = &exchange.times;
    let start_time = clock.wall_time(times.request_first_ns);
    // Counted from the start, so that a clock step in between cannot bend the span.
    let after_start = |at_ns: u64| {
        start_time + Duration::from_nanos(at_ns.saturating_sub(times.request_first_ns))
    };
    let mut events = SpanEvents::default();
    if let Some(queued_ns) = semantics::queued_ns(exchange) {
        events.events.push(Event::new(
            "request.arrived",
            start_time - Duration::from_nanos(queued_ns),
            vec![],
            0,
        ));
    }
    if let Some(first_ns) = times.response_first_ns {
        events.events.push(Event::new(
            "response.first_byte",
            after_start(first_ns),
            vec![],
            0,
        ));
    }
    let error = error_of(exchange);
    SpanData {
        span_context: SpanContext::new(trace_id, ids.new_span_id(), flags, false, TraceState::NONE),
        parent_span_id,
        parent_span_is_remote: exchange.trace_parent.is_some(),
        span_kind: match exchange.role {
            Role::Client => SpanKind::Client,
            Role::Server => SpanKind::Server,
        },
        name: name(observation),
        start_time,
        end_time: start_time + Duration::from_nanos(semantics::duration_ns(exchange)),
        attributes: attributes(observation, error.as_deref()),
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status: status(exchange, error.is_some()),
        instrumentation_scope: InstrumentationScope::builder("telltale")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}

/// `{method} {route}`, or `{operation} {index}` for an Elasticsearch call whose operation is known.
fn name(observation: &Observation) -> Cow<'static, str> {
    let exchange = &observation.exchange;
    if let Some(ElasticsearchCall {
        operation: Some(operation),
        collection,
        ..
    }) = exchange.elasticsearch.as_deref()
    {
        return if collection.is_empty() {
            Cow::Borrowed(operation)
        } else {
            Cow::Owned(format!("{operation} {collection}"))
        };
    }
    // The conventions name a method that no RFC knows `HTTP` in span names.
    let method = if exchange.method == "_OTHER" {
        "HTTP"
    } else {
        exchange.method
    };
    if observation.route.is_empty() {
        Cow::Borrowed(method)
    } else {
        Cow::Owned(format!("{method} {}", observation.route))
    }
}

/// `error.type`: what broke, or the status where it means an error to this side: 5xx to both, 4xx
/// to the client. Of a call, what the cluster calls it.
fn error_of(exchange: &Exchange) -> Option<Cow<'static, str>> {
    let broke = match ErrorType::of(exchange) {
        ErrorType::Reset => "reset",
        ErrorType::ClosedEarly => "closed_early",
        ErrorType::Timeout => "timeout",
        ErrorType::None | ErrorType::Status => {
            let least = match exchange.role {
                Role::Client => 400,
                Role::Server => 500,
            };
            let status = exchange.status.filter(|status| *status >= least)?;
            let call = exchange.elasticsearch.as_deref();
            if let Some(exception) = call.and_then(|call| call.error_type.as_deref()) {
                return Some(Cow::Owned(exception.to_owned()));
            }
            return Some(Cow::Owned(status.to_string()));
        }
    };
    Some(Cow::Borrowed(broke))
}

fn status(exchange: &Exchange, is_error: bool) -> Status {
    if !is_error {
        return Status::Unset;
    }
    // The conventions leave the description empty where the status code says it.
    Status::error(match ErrorType::of(exchange) {
        ErrorType::Reset => "the connection was reset",
        ErrorType::ClosedEarly => "the connection closed before the response ended",
        ErrorType::Timeout => "the connection timed out",
        ErrorType::None | ErrorType::Status => "",
    })
}

fn attributes(observation: &Observation, error: Option<&str>) -> Vec<KeyValue> {
    let exchange = &observation.exchange;
    let mut attributes = Vec::with_capacity(20);
    let mut add = |key: &'static str, value: Value| attributes.push(KeyValue::new(key, value));
    add("http.request.method", exchange.method.into());
    add("url.path", text(&exchange.path));
    add("url.scheme", "http".into());
    let template = match exchange.role {
        Role::Server => "http.route",
        Role::Client => "url.template",
    };
    if !observation.route.is_empty() {
        add(template, text(&observation.route));
    }
    if let Some(status) = exchange.status {
        add("http.response.status_code", i64::from(status).into());
    }
    let mut scratch = String::new();
    let (host, port) = semantics::server_of(observation, &mut scratch);
    if !host.is_empty() {
        add("server.address", text(host));
    }
    if let Some(port) = port {
        add("server.port", i64::from(port).into());
    }
    if let (Role::Server, Endpoint::Inet(client)) = (exchange.role, observation.remote) {
        add("client.address", client.ip().to_string().into());
    }
    let version = if exchange.http_minor_version == 0 {
        "1.0"
    } else {
        "1.1"
    };
    add("network.protocol.version", version.into());
    if let Some(bytes) = exchange.request_body_bytes {
        add("http.request.body.size", integer(bytes));
    }
    if let Some(bytes) = exchange.response_body_bytes {
        add("http.response.body.size", integer(bytes));
    }
    if let Some(error) = error {
        add("error.type", text(error));
    }
    if let Some(id) = &exchange.request_id {
        add("http.request.header.x_request_id", header(id));
    }
    if let Some(id) = &exchange.correlation_id {
        add("http.request.header.x_correlation_id", header(id));
    }
    if let Some(call) = &exchange.elasticsearch {
        add_call(&mut attributes, exchange, call);
    }
    attributes
}

/// OpenTelemetry's conventions for database clients and for Elasticsearch; what those have no name
/// for is named `elasticsearch.…` after the answer's own members.
fn add_call(attributes: &mut Vec<KeyValue>, exchange: &Exchange, call: &ElasticsearchCall) {
    for (name, value) in path_parameters(exchange.method, &exchange.path, call) {
        let key = format!("db.operation.parameter.{name}");
        attributes.push(KeyValue::new(key, value.into_owned()));
    }
    let mut add = |key: &'static str, value: Value| attributes.push(KeyValue::new(key, value));
    add("db.system.name", call.product.as_str().into());
    if let Some(operation) = call.operation {
        add("db.operation.name", operation.into());
    }
    if !call.collection.is_empty() {
        add("db.collection.name", text(&call.collection));
    }
    if let Some(cluster) = &call.namespace {
        add("db.namespace", text(cluster));
    }
    if let Some(node) = &call.node {
        add("elasticsearch.node.name", text(node));
    }
    if let Some(operations) = call.batch_size {
        add("db.operation.batch.size", integer(operations));
    }
    if let Some(query) = &call.query_text {
        add("db.query.text", text(query));
    }
    if let Some(status) = exchange.status {
        add("db.response.status_code", status.to_string().into());
    }
    if let Some(took_ms) = call.took_ms {
        add("elasticsearch.took_ms", integer(took_ms));
    }
    if let Some(timed_out) = call.timed_out {
        add("elasticsearch.timed_out", timed_out.into());
    }
    if let Some(shards) = call.shards {
        add("elasticsearch.shards.total", integer(shards.total));
        add("elasticsearch.shards.failed", integer(shards.failed));
    }
    if let Some(hits) = call.hits {
        add("elasticsearch.hits.total", integer(hits));
    }
}

fn text(value: &str) -> Value {
    value.to_owned().into()
}

/// A header is an array of strings: it may come more than once.
fn header(value: &str) -> Value {
    Value::Array(Array::String(vec![StringValue::from(value.to_owned())]))
}

/// OTLP has signed integers; no size that passes a socket reaches the bound.
fn integer(value: u64) -> Value {
    Value::I64(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[path = "span_tests.rs"]
mod tests;
