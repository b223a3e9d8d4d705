use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::ProfileConfig;
use crate::sink::Sink as _;
use crate::sink::fixtures::{process, search};

/// The API on a port of its own, as the agent serves it.
struct Running {
    address: SocketAddr,
    health: Health,
    slow: SlowCalls,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Running {
    fn start(profile_routes: Router) -> Self {
        let registry = Registry::new();
        let metrics = crate::self_metrics::SelfMetrics::new(&registry).unwrap();
        metrics.losses.add("tap", "ring_full", 3);
        let health = Health::new();
        let slow = SlowCalls::default();
        let api = Api {
            registry,
            health: health.clone(),
            summary: Summary::new(),
            slow: slow.clone(),
            targets: Arc::new(|| {
                let mut shop = process("shop", 42);
                shop.command_line = vec!["python3".into(), "--password=secret".into()];
                vec![Target {
                    process: Arc::new(shop),
                    ports: vec![8080],
                    protocols: vec!["http/1.1"],
                    interpreter: Some("CPython 3.12".into()),
                }]
            }),
            host_name: "host".into(),
        };
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listener, router(api, profile_routes), async {
            let _ = stopped.await;
        }));
        Self {
            address,
            health,
            slow,
            stop,
            task,
        }
    }

    /// Status, head and body of an answer.
    async fn get(&self, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head[9..12].parse().unwrap(),
            head.to_lowercase(),
            body.to_owned(),
        )
    }
}

#[tokio::test]
async fn both_paths_give_the_metrics_as_text() {
    let api = Running::start(Router::new());
    for path in ["/metrics", "/metrics/prometheus"] {
        let (status, head, body) = api.get(path).await;
        assert_eq!(status, 200);
        assert!(
            head.contains("content-type: text/plain; version=0.0.4"),
            "{head}"
        );
        assert!(
            body.contains("telltale_losses_total{reason=\"ring_full\",stage=\"tap\"} 3"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn readiness_follows_health_and_being_alive_does_not() {
    let api = Running::start(Router::new());
    assert_eq!(api.get("/readyz").await.0, 503);
    assert_eq!(api.get("/healthz").await.0, 200);
    api.health.set_ready(true);
    assert_eq!(api.get("/readyz").await.0, 200);
    api.health
        .set("tap", Status::Unhealthy, "ring 0 is not drained");
    let (status, _, body) = api.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("tap: ring 0 is not drained"), "{body}");
    assert_eq!(api.get("/healthz").await.0, 200);
    let (status, _, body) = api.get("/health/detailed").await;
    let report: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &report["subsystems"]["tap"]["status"]),
        (503, &Value::from("unhealthy"))
    );
}

#[tokio::test]
async fn slow_calls_are_told() {
    let api = Running::start(Router::new());
    let mut call = search("shop");
    let now_ns = crate::clock::monotonic_ns();
    let times = &mut call.exchange.times;
    times.request_first_ns = now_ns;
    times.response_last_ns = Some(now_ns + 20_000_000);
    api.slow.worker().observe(&call);
    let (status, _, body) = api.get("/api/elasticsearch/slow").await;
    assert_eq!(status, 200);
    let report: Value = serde_json::from_str(&body).unwrap();
    let told = &report["calls"][0];
    assert_eq!(told["service"], "shop");
    assert_eq!(told["operation"], "search");
    assert_eq!(told["collection"], "docs");
    assert_eq!(told["query"], Value::Null);
    assert_eq!(told["max_seconds"], 0.02);
    assert_eq!(told["max_took_seconds"], 0.006);
    assert_eq!(report["left_out"], 0);
}

#[tokio::test]
async fn targets_tell_the_process_and_not_its_arguments() {
    let api = Running::start(Router::new());
    let (_, head, body) = api.get("/targets").await;
    assert!(head.contains("application/json"), "{head}");
    let targets: Value = serde_json::from_str(&body).unwrap();
    let target = &targets["targets"][0];
    assert_eq!(target["pid"], 42);
    assert_eq!(target["service"], "shop");
    assert_eq!(target["service_source"], "environment");
    assert_eq!(target["executable"], "/usr/bin/python3.12");
    assert_eq!(target["runtime"], "python");
    assert_eq!(target["interpreter"], "CPython 3.12");
    assert_eq!(target["ports"], Value::from(vec![8080]));
    assert_eq!(target["protocols"], Value::from(vec!["http/1.1"]));
    assert!(!body.contains("secret"), "{body}");
}

#[tokio::test]
async fn the_page_allows_nothing_but_its_own_style_and_script() {
    let api = Running::start(Router::new());
    let (status, head, body) = api.get("/").await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-security-policy: default-src 'none'; style-src 'self'"),
        "{head}"
    );
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    for (path, content_type) in [("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        assert!(body.contains(path));
        let (status, head, _) = api.get(path).await;
        assert!(status == 200 && head.contains(content_type), "{head}");
    }
}

#[tokio::test]
async fn an_unknown_path_lists_what_there_is() {
    let profiles = profile::router(None, ProfileConfig::default());
    let api = Running::start(profiles);
    let (status, _, body) = api.get("/metricz").await;
    assert_eq!(status, 404);
    // Whatever the text promises is there.
    let paths = body.lines().filter_map(|line| line.strip_prefix("GET "));
    for path in paths.map(|line| line.split_whitespace().next().unwrap()) {
        assert_ne!(api.get(path).await.0, 404, "{path}");
    }
    let (status, _, reason) = api.get("/debug/pprof/profile").await;
    assert_eq!(status, 503);
    assert!(reason.contains("no profiler"), "{reason}");
}

#[tokio::test]
async fn oversized_heads_are_refused() {
    let api = Running::start(Router::new());
    let path = format!("/{}", "x".repeat(64 * 1024));
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    // The server may close before all is written.
    let _ = stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let status = String::from_utf8_lossy(&answer)
        .get(9..12)
        .map(str::to_owned);
    assert!(
        matches!(status.as_deref(), None | Some("431" | "414")),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_stop_lets_an_answer_under_way_finish() {
    let (started, has_started) = oneshot::channel();
    let started = Arc::new(std::sync::Mutex::new(Some(started)));
    let slow = Router::new().route(
        "/slow",
        get(move || async move {
            let _ = started.lock().unwrap().take().unwrap().send(());
            tokio::time::sleep(Duration::from_millis(300)).await;
            "done"
        }),
    );
    let api = Running::start(slow);
    let address = api.address;
    let Running { stop, task, .. } = api;
    let asked = tokio::spawn(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    });
    has_started.await.unwrap();
    let _ = stop.send(());
    task.await.unwrap().unwrap();
    assert!(asked.await.unwrap().ends_with("done"));
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nobody listens any more"
    );
}

#[test]
fn a_taken_port_is_told_with_its_key_and_value() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let told = bind(address).unwrap_err().to_string();
    assert!(
        told.starts_with("listen: ") && told.contains(&address.to_string()),
        "{told}"
    );
    assert!(
        told.contains("another program") && told.contains("--listen"),
        "{told}"
    );
}
