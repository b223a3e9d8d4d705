//! The agent's HTTP API: metrics, health, targets, profiles and a page for people.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus::{Registry, TextEncoder};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

pub use serve::{BindError, bind, serve};

use crate::health::{Health, Status};
use crate::process::Target;
use crate::sink::slow::SlowCalls;
use crate::sink::summary::Summary;
use targets::TargetView;

mod flame_page;
mod page;
pub mod profile;
mod query;
mod serve;
mod targets;

/// Longest that an answer may take, profiles aside: those bound themselves.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Scrapes that are encoded at once; each may hold megabytes of text.
const MAX_SCRAPES: usize = 4;

/// What there is, for those who ask for something that there is not.
const ENDPOINTS: &str = "\
GET /                        services, Elasticsearch calls, flamegraphs: a page for people
GET /flamegraph              a flamegraph to look into: ?service=&from=now-5m, or &seconds=5
GET /metrics                 Prometheus text format (also /metrics/prometheus)
GET /healthz                 the agent is alive
GET /readyz                  probes are attached and rings are drained
GET /health/detailed         JSON: each part of the agent
GET /targets                 JSON: each watched process
GET /api/elasticsearch/slow  JSON: the slowest Elasticsearch calls of the last minutes
GET /debug/pprof/profile     pprof: ?seconds=30&hz=99&pid=|tid=|service=|container=|cgroup=&thread=,
                             what is proven to serve &route=/a/{id}&method=GET or to await &operation=search,
                             or of what is kept: ?from=now-5m&to=now&…
GET /debug/pprof/flamegraph  the same drawn: &format=svg|folded|speedscope
GET /debug/pprof/diff        two of what is kept: ?service=&from=&to=&base_service=&base_from=&base_to=
";

/// Lists the watched processes.
pub type TargetSource = Arc<dyn Fn() -> Vec<Target> + Send + Sync>;

/// What the API tells from.
#[derive(Clone)]
pub struct Api {
    /// Every metric.
    pub registry: Registry,
    /// How the agent's parts are doing.
    pub health: Health,
    /// The last minute of each service.
    pub summary: Summary,
    /// The slowest Elasticsearch calls.
    pub slow: SlowCalls,
    /// The watched processes.
    pub targets: TargetSource,
    /// Name of this host, for the page.
    pub host_name: Arc<str>,
}

/// All routes. `profile_routes` answers under `/debug/pprof/` and bounds its own time.
pub fn router(api: Api, profile_routes: Router) -> Router {
    let state = Arc::new(Shared {
        api,
        scrapes: Semaphore::new(MAX_SCRAPES),
    });
    Router::new()
        .route("/", get(page::show))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/metrics", get(metrics))
        .route("/metrics/prometheus", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readiness))
        .route("/health/detailed", get(health))
        .route("/targets", get(list_targets))
        .route("/api/elasticsearch/slow", get(list_slow_calls))
        .with_state(state)
        .layer(middleware::from_fn(bound_time))
        .merge(profile_routes)
        .fallback(not_found)
        .layer(middleware::from_fn(harden))
}

/// The state of all handlers.
struct Shared {
    api: Api,
    scrapes: Semaphore,
}

impl Shared {
    /// The watched processes. The source may read `/proc`: off the async threads.
    async fn targets(&self) -> Result<Vec<Target>, JoinError> {
        let source = Arc::clone(&self.api.targets);
        tokio::task::spawn_blocking(move || source()).await
    }
}

async fn metrics(State(state): State<Arc<Shared>>) -> Response {
    let Ok(_permit) = state.scrapes.acquire().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let registry = state.api.registry.clone();
    // Sources read kernel maps and /proc, and the text may be large: off the async threads.
    let encoded = tokio::task::spawn_blocking(move || {
        TextEncoder::new().encode_to_string(&registry.gather())
    });
    match encoded.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => internal_error(&error),
        Err(error) => internal_error(&error),
    }
}

async fn readiness(State(state): State<Arc<Shared>>) -> Response {
    if state.api.health.is_ready() {
        return "ready\n".into_response();
    }
    let report = state.api.health.report();
    let mut text = String::from("not ready\n");
    for (name, subsystem) in &report.subsystems {
        for reason in &subsystem.reasons {
            text.push_str(&format!("{name}: {reason}\n"));
        }
    }
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn health(State(state): State<Arc<Shared>>) -> Response {
    let report = state.api.health.report();
    let status = match report.status {
        Status::Healthy | Status::Degraded => StatusCode::OK,
        Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(report)).into_response()
}

async fn list_targets(State(state): State<Arc<Shared>>) -> Response {
    match state.targets().await {
        Ok(targets) => {
            let views: Vec<TargetView<'_>> = targets.iter().map(TargetView::of).collect();
            Json(json!({ "targets": views })).into_response()
        }
        Err(error) => internal_error(&error),
    }
}

async fn list_slow_calls(State(state): State<Arc<Shared>>) -> Response {
    Json(state.api.slow.report()).into_response()
}

async fn not_found(uri: Uri) -> Response {
    let path = uri.path();
    (
        StatusCode::NOT_FOUND,
        format!("There is no {path} here. There are:\n\n{ENDPOINTS}"),
    )
        .into_response()
}

/// Gives up on an answer that takes too long.
async fn bound_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "took too long\n").into_response(),
    }
}

/// Headers of every answer: a browser takes it for what it says it is, and keeps no copy.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        response
            .headers_mut()
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    response
}

fn internal_error(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error, "an answer could not be made");
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        "the answer could not be made; see the log\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests;
