//! Spans as a collector receives them: real servers for both transports, on ports of their own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prometheus::Registry;
use prost::Message as _;
use protocol::observation::Role;
use tokio::net::TcpListener;

use super::*;
use crate::sink::fixtures::{observation, process, search};

/// What a collector got: each span with its resource and the request's token.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Arrived>>>);

#[derive(Clone, Debug)]
struct Arrived {
    resource: BTreeMap<String, String>,
    scope: String,
    span: Span,
    token: Option<String>,
}

impl Received {
    fn take_in(&self, request: ExportTraceServiceRequest, token: Option<&str>) {
        let mut received = self.0.lock().unwrap();
        for spans in request.resource_spans {
            let resource = attributes(&spans.resource.unwrap_or_default().attributes);
            for scope in spans.scope_spans {
                let name = scope.scope.unwrap_or_default().name;
                received.extend(scope.spans.into_iter().map(|span| Arrived {
                    resource: resource.clone(),
                    scope: name.clone(),
                    span,
                    token: token.map(str::to_owned),
                }));
            }
        }
    }

    fn all(&self) -> Vec<Arrived> {
        self.0.lock().unwrap().clone()
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(value) => value.clone(),
        any_value::Value::IntValue(value) => value.to_string(),
        any_value::Value::BoolValue(value) => value.to_string(),
        any_value::Value::ArrayValue(values) => {
            format!(
                "[{}]",
                values
                    .values
                    .iter()
                    .filter_map(|value| match &value.value {
                        Some(any_value::Value::StringValue(value)) => Some(value.as_str()),
                        _ => None,
                    })
                    .collect::<Vec<_>>()
                    .join(",")
            )
        }
        other => panic!("no attribute has such a value: {other:?}"),
    };
    pairs
        .iter()
        .map(|pair| {
            (
                pair.key.clone(),
                text(pair.value.as_ref().unwrap().value.as_ref().unwrap()),
            )
        })
        .collect()
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let token = request
            .metadata()
            .get("x-token")
            .map(|token| token.to_str().unwrap().to_owned());
        self.take_in(request.into_inner(), token.as_deref());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn serve_grpc(listener: TcpListener, received: Received) {
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(received))
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

async fn serve_http(listener: TcpListener, received: Received) {
    let answer = move |headers: axum::http::HeaderMap, body: axum::body::Bytes| async move {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let token = headers.get("x-token").map(|token| token.to_str().unwrap());
        received.take_in(ExportTraceServiceRequest::decode(body).unwrap(), token);
        ExportTraceServiceResponse::default().encode_to_vec()
    };
    let router = axum::Router::new().route("/v1/traces", axum::routing::post(answer));
    let stop = std::future::pending();
    crate::http::serve(listener.into_std().unwrap(), router, stop)
        .await
        .unwrap();
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A sink and what it lost.
struct Setup {
    sink: OtlpSink,
    losses: Losses,
    health: Health,
}

impl Setup {
    fn start(options: OtlpOptions) -> Self {
        let losses = Losses::new(&Registry::new()).unwrap();
        let health = Health::new();
        let sink = OtlpSink::start(options, Clock::new(), &losses, &health).unwrap();
        Self {
            sink,
            losses,
            health,
        }
    }

    fn lost(losses: &Losses) -> [u64; 3] {
        ["queue_full", "export_failed", "shutdown"]
            .map(|reason| losses.counter("otlp", reason).get())
    }
}

fn options(protocol: OtlpProtocol, address: SocketAddr) -> OtlpOptions {
    let path = match protocol {
        OtlpProtocol::Grpc => "",
        OtlpProtocol::HttpProtobuf => "/v1/traces",
    };
    OtlpOptions {
        endpoint: format!("http://{address}{path}"),
        protocol,
        headers: vec![("x-token".into(), "t0k3n".into())],
        timeout: Duration::from_secs(5),
        host_name: "node-7".into(),
        ..OtlpOptions::default()
    }
}

/// Two processes' exchanges, as they arrive by `protocol`.
async fn two_processes_by(protocol: OtlpProtocol) {
    let (listener, address) = listener().await;
    let received = Received::default();
    match protocol {
        OtlpProtocol::Grpc => tokio::spawn(serve_grpc(listener, received.clone())),
        OtlpProtocol::HttpProtobuf => tokio::spawn(serve_http(listener, received.clone())),
    };
    let Setup {
        sink,
        losses,
        health,
    } = Setup::start(options(protocol, address));
    let mut worker = sink.worker();
    for _ in 0..3 {
        worker.observe(&observation("shop", Role::Server, "/items/{id}"));
        let mut other = search("indexer");
        let mut of_container = process("indexer", 77);
        of_container.container_id = Some("c".repeat(64).into());
        of_container.service_namespace = Some("search".into());
        other.process = Arc::new(of_container);
        worker.observe(&other);
    }
    sink.shutdown(Duration::from_secs(5)).await;

    let arrived = received.all();
    assert_eq!(arrived.len(), 6);
    for Arrived {
        resource,
        span,
        token,
        scope,
    } in &arrived
    {
        assert_eq!(token.as_deref(), Some("t0k3n"));
        assert_eq!(scope, "telltale");
        let told = attributes(&span.attributes);
        assert_eq!(resource["host.name"], "node-7");
        assert_eq!(resource["process.executable.name"], "python3.12");
        if told.contains_key("db.system.name") {
            assert_eq!(resource["service.name"], "indexer");
            assert_eq!(resource["service.namespace"], "search");
            assert_eq!(resource["process.pid"], "77");
            assert_eq!(resource["container.id"], "c".repeat(64));
        } else {
            assert_eq!(resource["service.name"], "shop");
            assert_eq!(resource["process.pid"], "42");
            assert!(!resource.contains_key("container.id"));
        }
    }
    assert_eq!(Setup::lost(&losses), [0, 0, 0]);
    assert_eq!(health.report().status, Status::Healthy);
}

#[tokio::test]
async fn spans_arrive_by_grpc_with_the_resource_of_their_process() {
    two_processes_by(OtlpProtocol::Grpc).await;
}

#[tokio::test]
async fn spans_arrive_by_http_with_the_resource_of_their_process() {
    two_processes_by(OtlpProtocol::HttpProtobuf).await;
}

#[tokio::test]
async fn a_stop_sends_what_is_queued() {
    let (listener, address) = listener().await;
    let received = Received::default();
    tokio::spawn(serve_grpc(listener, received.clone()));
    // Longer than the test: nothing leaves because it is old.
    let linger = Duration::from_secs(600);
    let Setup { sink, losses, .. } = Setup::start(OtlpOptions {
        linger,
        ..options(OtlpProtocol::Grpc, address)
    });
    let mut worker = sink.worker();
    for _ in 0..1_300 {
        worker.observe(&observation("shop", Role::Server, "/"));
    }
    sink.shutdown(Duration::from_secs(10)).await;
    assert_eq!(received.all().len(), 1_300);
    assert_eq!(Setup::lost(&losses), [0, 0, 0]);
    // A worker that goes on counts what it cannot hand over.
    worker.observe(&observation("shop", Role::Server, "/"));
    assert_eq!(Setup::lost(&losses), [1, 0, 0]);
}

#[tokio::test]
async fn without_a_collector_every_span_is_counted_once() {
    let (listener, address) = listener().await;
    drop(listener);
    let Setup {
        sink,
        losses,
        health,
    } = Setup::start(OtlpOptions {
        queue: 20,
        batch: 5,
        linger: Duration::from_millis(10),
        timeout: Duration::from_millis(400),
        ..options(OtlpProtocol::Grpc, address)
    });
    let mut worker = sink.worker();
    for _ in 0..100 {
        worker.observe(&observation("shop", Role::Server, "/"));
    }
    let start = Instant::now();
    while health.report().status == Status::Healthy && start.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = health.report();
    assert_eq!(report.status, Status::Degraded);
    assert!(
        report.subsystems["otlp"].reasons[0].contains(&address.to_string()),
        "{report:?}"
    );
    sink.shutdown(Duration::from_millis(50)).await;
    let [queue_full, export_failed, shutdown] = Setup::lost(&losses);
    assert_eq!(queue_full + export_failed + shutdown, 100);
    assert!(
        queue_full >= 75 && export_failed >= 5 && shutdown > 0,
        "{:?}",
        Setup::lost(&losses)
    );
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_what_waited() {
    let (listener, address) = listener().await;
    drop(listener);
    let linger = Duration::from_millis(10);
    let Setup {
        sink,
        losses,
        health,
    } = Setup::start(OtlpOptions {
        linger,
        ..options(OtlpProtocol::Grpc, address)
    });
    sink.worker()
        .observe(&observation("shop", Role::Server, "/"));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let received = Received::default();
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(serve_grpc(listener, received.clone()));
    let start = Instant::now();
    while received.all().is_empty() && start.elapsed() < Duration::from_secs(4) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    sink.shutdown(Duration::from_secs(5)).await;
    assert_eq!(received.all().len(), 1);
    assert_eq!(Setup::lost(&losses), [0, 0, 0]);
    assert_eq!(health.report().status, Status::Healthy);
}

/// A collector that answers with these statuses in turn, the last one from then on.
async fn serve_statuses(listener: TcpListener, statuses: &'static [u16], asked: Arc<AtomicU64>) {
    let answer = move || async move {
        let request = asked.fetch_add(1, Ordering::AcqRel) as usize;
        axum::http::StatusCode::from_u16(statuses[request.min(statuses.len() - 1)]).unwrap()
    };
    let router = axum::Router::new().route("/v1/traces", axum::routing::post(answer));
    let stop = std::future::pending();
    crate::http::serve(listener.into_std().unwrap(), router, stop)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_refusal_is_final_and_an_overload_is_not() {
    for (statuses, requests, failed) in [
        (&[401][..], 1, 1),
        (&[503, 429, 200][..], 3, 0),
        (&[400, 200][..], 1, 1),
    ] {
        let (listener, address) = listener().await;
        let asked = Arc::new(AtomicU64::new(0));
        tokio::spawn(serve_statuses(listener, statuses, Arc::clone(&asked)));
        let Setup {
            sink,
            losses,
            health,
        } = Setup::start(options(OtlpProtocol::HttpProtobuf, address));
        sink.worker()
            .observe(&observation("shop", Role::Server, "/"));
        sink.shutdown(Duration::from_secs(5)).await;
        assert_eq!(asked.load(Ordering::Acquire), requests, "{statuses:?}");
        assert_eq!(Setup::lost(&losses), [0, failed, 0], "{statuses:?}");
        let reasons = health.report().subsystems["otlp"].reasons.concat();
        let is_told = reasons.contains(&format!("status code: {}", statuses[0]));
        assert_eq!(is_told, failed == 1, "{statuses:?}: {reasons}");
    }
}

#[tokio::test]
async fn a_collector_that_hangs_does_not_hold_the_stop() {
    // It accepts, for the kernel does, and never answers.
    let (_listener, address) = listener().await;
    let Setup { sink, losses, .. } = Setup::start(options(OtlpProtocol::HttpProtobuf, address));
    let mut worker = sink.worker();
    for _ in 0..7 {
        worker.observe(&observation("shop", Role::Server, "/"));
    }
    let start = Instant::now();
    sink.shutdown(Duration::from_millis(300)).await;
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(Setup::lost(&losses), [0, 0, 7]);
}

#[tokio::test]
async fn endpoints_and_headers_that_cannot_be_are_refused() {
    let losses = Losses::new(&Registry::new()).unwrap();
    let start = |options| {
        OtlpSink::start(options, Clock::new(), &losses, &Health::new())
            .map(|_| ())
            .unwrap_err()
    };
    for endpoint in [
        "",
        "localhost",
        "ftp://localhost:4317",
        "http://",
        "http://localhost:4317?x=1",
    ] {
        let error = start(OtlpOptions {
            endpoint: endpoint.into(),
            ..OtlpOptions::default()
        });
        assert!(
            matches!(&error, OtlpError::BadEndpoint { endpoint: told, .. } if told == endpoint),
            "{endpoint}: {error}"
        );
    }
    let headers = vec![("x-token".to_owned(), "sec\nret".to_owned())];
    let told = start(OtlpOptions {
        headers,
        ..OtlpOptions::default()
    })
    .to_string();
    assert!(told.contains("x-token") && !told.contains("sec"), "{told}");
}
