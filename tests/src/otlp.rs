//! A real OpenTelemetry Collector, and the spans that reached it.
//!
//! The Collector takes OTLP over gRPC and HTTP and passes everything on as OTLP JSON to a receiver
//! in the test, so that what is checked went through an independent implementation.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::child::{Child, free_port};
use crate::prerequisite;

/// A finished span as the Collector passed it on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    /// Name.
    pub name: String,
    /// 2 is SERVER, 3 is CLIENT (`opentelemetry/proto/trace/v1/trace.proto`).
    pub kind: u64,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits; empty for a root span.
    pub parent_span_id: String,
    /// Start, nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// End, nanoseconds since 1970.
    pub end_unix_ns: u64,
    /// 0 unset, 1 OK, 2 ERROR.
    pub status_code: u64,
    /// Attributes, values as text.
    pub attributes: BTreeMap<String, String>,
    /// Attributes of the resource.
    pub resource: BTreeMap<String, String>,
    /// Events: name and time, nanoseconds since 1970.
    pub events: Vec<(String, u64)>,
}

impl Span {
    /// An attribute; empty when absent.
    #[must_use]
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// `service.name` of the resource.
    #[must_use]
    pub fn service(&self) -> &str {
        self.resource.get("service.name").map_or("", String::as_str)
    }
}

/// A running Collector. Dropping it ends it.
#[derive(Debug)]
pub struct Collector {
    grpc_port: u16,
    http_port: u16,
    bodies: Arc<Mutex<Vec<String>>>,
    _child: Child,
}

impl Collector {
    /// Starts the Collector and the receiver behind it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start() -> Result<Self> {
        Self::start_on(free_port()?, free_port()?)
    }

    /// [`Self::start`] on given ports.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_on(grpc_port: u16, http_port: u16) -> Result<Self> {
        let (receiver, bodies) = start_receiver()?;
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("collector.yaml");
        std::fs::write(
            &config,
            format!(
                "receivers:
  otlp:
    protocols:
      grpc: {{ endpoint: '127.0.0.1:{grpc_port}' }}
      http: {{ endpoint: '127.0.0.1:{http_port}' }}
exporters:
  otlp_http:
    endpoint: 'http://{receiver}'
    encoding: json
    compression: none
service:
  telemetry: {{ metrics: {{ level: none }} }}
  pipelines:
    traces: {{ receivers: [otlp], exporters: [otlp_http] }}
"
            ),
        )?;
        let mut command = Command::new(prerequisite::collector()?);
        command
            .arg("--config")
            .arg(format!("file:{}", config.display()));
        let mut child = Child::spawn("collector", command, folder)?;
        for port in [grpc_port, http_port] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            child.wait_for_port(address, Duration::from_secs(20))?;
        }
        Ok(Self {
            grpc_port,
            http_port,
            bodies,
            _child: child,
        })
    }

    /// For `OTEL_EXPORTER_OTLP_PROTOCOL=grpc`.
    #[must_use]
    pub fn grpc_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc_port)
    }

    /// For `OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf`.
    #[must_use]
    pub fn http_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// Where it takes OTLP over HTTP.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.http_port))
    }

    /// Everything that arrived, as the JSON that it arrived in.
    #[must_use]
    pub fn raw(&self) -> Vec<String> {
        self.bodies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The spans that arrived so far.
    ///
    /// # Errors
    /// When the JSON is not that of OTLP.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for body in self.raw() {
            read_request(&serde_json::from_str(&body)?, &mut spans)?;
        }
        Ok(spans)
    }
}

fn start_receiver() -> Result<(SocketAddr, Arc<Mutex<Vec<String>>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let received = Arc::clone(&bodies);
    // The thread ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let received = Arc::clone(&received);
            std::thread::spawn(move || serve(&stream, &received));
        }
    });
    Ok((address, bodies))
}

/// Answers `POST`s with a `Content-Length` until the peer closes or sends something else.
fn serve(stream: &TcpStream, received: &Mutex<Vec<String>>) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = None;
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        let Some(length) = length else {
            bail!("a request without Content-Length")
        };
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(body);
        (&*stream).write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        )?;
    }
}

/// `ExportTraceServiceRequest` in OTLP's JSON form: 64-bit integers are decimal strings.
fn read_request(request: &Value, spans: &mut Vec<Span>) -> Result<()> {
    for resource_spans in items(&request["resourceSpans"]) {
        let resource = attributes(&resource_spans["resource"]["attributes"])?;
        for scope_spans in items(&resource_spans["scopeSpans"]) {
            for span in items(&scope_spans["spans"]) {
                spans.push(read_span(span, &resource)?);
            }
        }
    }
    Ok(())
}

fn read_span(span: &Value, resource: &BTreeMap<String, String>) -> Result<Span> {
    let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
    let events = items(&span["events"]).iter().map(|event| {
        let name = event["name"].as_str().context("event name")?.to_owned();
        Ok((name, nanoseconds(&event["timeUnixNano"])?))
    });
    Ok(Span {
        name: text("name"),
        kind: span["kind"].as_u64().unwrap_or_default(),
        trace_id: text("traceId"),
        span_id: text("spanId"),
        parent_span_id: text("parentSpanId"),
        start_unix_ns: nanoseconds(&span["startTimeUnixNano"])?,
        end_unix_ns: nanoseconds(&span["endTimeUnixNano"])?,
        status_code: span["status"]["code"].as_u64().unwrap_or_default(),
        attributes: attributes(&span["attributes"])?,
        resource: resource.clone(),
        events: events.collect::<Result<_>>()?,
    })
}

fn attributes(list: &Value) -> Result<BTreeMap<String, String>> {
    items(list)
        .iter()
        .map(|attribute| {
            let key = attribute["key"]
                .as_str()
                .context("attribute key")?
                .to_owned();
            let value = any_value(&attribute["value"]).context("attribute value")?;
            Ok((key, value))
        })
        .collect()
}

/// `AnyValue` as text; an array's values are joined by commas.
fn any_value(value: &Value) -> Option<String> {
    let (kind, value) = value.as_object()?.iter().next()?;
    if kind == "arrayValue" {
        let values = items(&value["values"]).iter().map(any_value);
        return Some(values.collect::<Option<Vec<_>>>()?.join(","));
    }
    Some(
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned),
    )
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn nanoseconds(value: &Value) -> Result<u64> {
    Ok(value.as_str().context("a time is a string")?.parse()?)
}
