//! Asks clusters for their health, where the configuration says so: those that nobody else asks.
//!
//! What a cluster answers goes to the same gauges as what it answers others. Where it does not answer,
//! its gauges vanish: the last value would be a lie.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use protocol::elasticsearch::{self, Cluster};
use protocol::observation::{ElasticsearchCall, SearchProduct};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::config::PollConfig;
use crate::health::{Health, Status};
use crate::self_metrics::Losses;
use crate::sink::prometheus::PrometheusSink;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A health answer has some 500 bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Longest content of the authorization file.
const MAX_AUTHORIZATION_BYTES: usize = 8 * 1024;

const PATH: &str = "/_cluster/health";

/// Why a cluster's health is not known.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("the answer cannot be read: {0}")]
    Body(#[source] Box<dyn Error + Send + Sync>),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer does not tell of a cluster's health")]
    NotHealth,
    #[error("elasticsearch.poll.authorization_file: {0}")]
    Authorization(#[source] io::Error),
    #[error("elasticsearch.poll.authorization_file holds what no header may")]
    NoHeader,
    #[error("not a request: {0}")]
    Request(#[from] hyper::http::Error),
}

/// Polls until the task is aborted; `None` where there is nothing to poll.
pub fn start(
    config: &PollConfig,
    prometheus: PrometheusSink,
    losses: Losses,
    health: Health,
) -> Option<JoinHandle<()>> {
    let config = Arc::new(config.clone());
    let mut targets: Vec<Target> = config
        .endpoints
        .iter()
        .filter_map(|url| Target::of(url))
        .collect();
    if targets.is_empty() {
        return None;
    }
    Some(tokio::spawn(async move {
        let mut timer = tokio::time::interval(config.interval);
        loop {
            timer.tick().await;
            let mut polls = JoinSet::new();
            for target in targets.drain(..) {
                let (config, prometheus) = (Arc::clone(&config), prometheus.clone());
                polls.spawn(target.poll(config, prometheus));
            }
            let mut reasons = Vec::new();
            // Each comes back with what it has shown; one that panicked is polled no more.
            while let Some(polled) = polls.join_next().await {
                match polled {
                    Ok((target, reason)) => {
                        targets.push(target);
                        reasons.extend(reason);
                    }
                    Err(error) => reasons.push(error.to_string()),
                }
            }
            losses.add("elasticsearch", "poll_failed", reasons.len() as u64);
            let status = if reasons.is_empty() {
                Status::Healthy
            } else {
                Status::Degraded
            };
            reasons.sort();
            health.set_reasons("elasticsearch_poll", status, reasons);
        }
    }))
}

/// A cluster to ask.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
    /// Name of the cluster whose gauges are shown.
    shown: Option<Box<str>>,
}

impl Target {
    /// The configuration has checked the URL.
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        Some(Self {
            host: uri.host()?.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(80),
            uri,
            shown: None,
        })
    }

    /// Asks once; the second value is why that gave nothing.
    async fn poll(
        mut self,
        config: Arc<PollConfig>,
        prometheus: PrometheusSink,
    ) -> (Self, Option<String>) {
        let asked = self.ask(config.authorization_file.as_deref());
        let answer = tokio::time::timeout(TIMEOUT, asked).await;
        let answer = answer.unwrap_or(Err(PollError::Timeout));
        let name = |call: &ElasticsearchCall| {
            let report = call.cluster.as_ref();
            report
                .and_then(|report| report.name.clone())
                .unwrap_or_default()
        };
        let now = answer.as_ref().ok().map(name);
        if let Some(before) = self
            .shown
            .take()
            .filter(|before| Some(before) != now.as_ref())
        {
            prometheus.forget_cluster(&self.host, self.port, &before);
        }
        self.shown = now;
        match answer {
            Ok(call) => {
                prometheus.set_cluster(&call, &self.host, self.port);
                (self, None)
            }
            Err(error) => {
                let reason = format!("{}: {error}", self.uri);
                (self, Some(reason))
            }
        }
    }

    async fn ask(&self, authorization_file: Option<&Path>) -> Result<ElasticsearchCall, PollError> {
        let path = format!("{}{PATH}", self.uri.path().trim_end_matches('/'));
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let mut request = Request::get(&path)
            .header(HOST, authority)
            .header(ACCEPT, "application/json");
        if let Some(file) = authorization_file {
            request = request.header(AUTHORIZATION, authorization(file).await?);
        }
        let request = request.body(Empty::<Bytes>::new())?;
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(PollError::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender, or with the answer's own error, which the sender is told.
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await;
        let read = async {
            let (head, body) = answer?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES);
            Ok((
                head,
                body.collect().await.map_err(PollError::Body)?.to_bytes(),
            ))
        };
        let read: Result<_, PollError> = read.await;
        connection.abort();
        let (head, body) = read?;
        if !head.status.is_success() {
            return Err(PollError::Status(head.status.as_u16()));
        }
        let content_type = head.headers.get(CONTENT_TYPE);
        let call = understood(content_type.map(HeaderValue::as_bytes), &body);
        call.ok_or(PollError::NotHealth)
    }
}

/// The answer, as it would be understood on the wire.
fn understood(content_type: Option<&[u8]>, body: &[u8]) -> Option<ElasticsearchCall> {
    let request = elasticsearch::Request {
        method: "GET",
        path: PATH,
        query: None,
        content_type: None,
        content_encoding: None,
        body: b"",
        body_complete: true,
    };
    let response = elasticsearch::Response {
        status: Some(200),
        handled_by: elasticsearch::HandledBy::default(),
        product: None,
        content_type,
        content_encoding: None,
        body,
        body_complete: true,
    };
    let known = Cluster::from(SearchProduct::Elasticsearch);
    elasticsearch::observe(&request, &response, Some(&known), 0)
        .filter(|call| call.cluster.is_some())
}

/// The header's value, read anew each time: it may be rotated.
async fn authorization(file: &Path) -> Result<HeaderValue, PollError> {
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let text = read
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(PollError::Authorization)?;
    let text = text.trim_ascii();
    if text.is_empty() || text.len() > MAX_AUTHORIZATION_BYTES {
        return Err(PollError::NoHeader);
    }
    let mut value = HeaderValue::from_bytes(text).map_err(|_| PollError::NoHeader)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use prometheus::{Registry, TextEncoder};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::self_metrics::SelfMetrics;
    use crate::sink::prometheus::PrometheusOptions;

    const HEALTH: &str = r#"{"cluster_name":"main","status":"yellow","timed_out":false,"number_of_nodes":3,
        "active_shards":12,"unassigned_shards":2,"number_of_pending_tasks":1}"#;

    /// Answers each connection with the next of `answers`; tells the heads of the requests.
    async fn cluster(answers: Vec<String>) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&heads);
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let len = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..len]).into_owned();
                told.lock().unwrap().push(head);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (port, heads)
    }

    fn answer(status: &str, body: &str) -> String {
        let len = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        )
    }

    #[tokio::test]
    async fn a_cluster_is_shown_while_it_answers() {
        let (port, heads) = cluster(vec![
            answer("200 OK", HEALTH),
            answer("503 Service Unavailable", "{}"),
        ])
        .await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authorization");
        std::fs::write(&file, "ApiKey c2VjcmV0\n").unwrap();
        let config = Arc::new(PollConfig {
            endpoints: vec![format!("http://127.0.0.1:{port}/es")],
            authorization_file: Some(file),
            ..PollConfig::default()
        });
        let registry = Registry::new();
        let metrics = SelfMetrics::new(&registry).unwrap();
        let prometheus =
            PrometheusSink::new(&registry, &PrometheusOptions::default(), &metrics).unwrap();
        let text = || {
            TextEncoder::new()
                .encode_to_string(&registry.gather())
                .unwrap()
        };
        let labels =
            format!(r#"{{cluster="main",server_address="127.0.0.1",server_port="{port}"}}"#);

        let target = Target::of(&config.endpoints[0]).unwrap();
        let (target, reason) = target.poll(Arc::clone(&config), prometheus.clone()).await;
        assert_eq!(reason, None);
        let shown = text();
        for (name, value) in [
            ("health", 1),
            ("nodes", 3),
            ("active_shards", 12),
            ("unassigned_shards", 2),
            ("pending_tasks", 1),
        ] {
            let line = format!("elasticsearch_cluster_{name}{labels} {value}\n");
            assert!(shown.contains(&line), "{line} in {shown}");
        }
        let (target, reason) = target.poll(Arc::clone(&config), prometheus.clone()).await;
        let expected = format!("http://127.0.0.1:{port}/es: the answer has status 503");
        assert_eq!(reason, Some(expected));
        assert!(!text().contains(&labels), "{}", text());
        let (_, reason) = target.poll(Arc::clone(&config), prometheus.clone()).await;
        let reason = reason.unwrap();
        assert!(reason.contains("cannot connect"), "{reason}");

        let head = &heads.lock().unwrap()[0];
        assert!(
            head.starts_with("GET /es/_cluster/health HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(
            head.contains("authorization: ApiKey c2VjcmV0\r\n"),
            "{head}"
        );
    }

    #[tokio::test]
    async fn what_is_no_health_is_told_so() {
        let large = "x".repeat(MAX_ANSWER_BYTES + 1);
        let (port, _) = cluster(vec![answer("200 OK", "{}"), answer("200 OK", &large)]).await;
        let target = Target::of(&format!("http://127.0.0.1:{port}")).unwrap();
        let error = target.ask(None).await.unwrap_err();
        assert!(matches!(error, PollError::NotHealth), "{error}");
        let error = target.ask(None).await.unwrap_err();
        assert!(matches!(error, PollError::Body(_)), "{error}");
        let error = target.ask(Some(Path::new("/nowhere"))).await.unwrap_err();
        assert!(matches!(error, PollError::Authorization(_)), "{error}");
    }
}
