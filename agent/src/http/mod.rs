
            "same-origin",
            .entry(name)
            .headers_mut()
            .or_insert(HeaderValue::from_static(value));
            HeaderName::from_static("cross-origin-resource-policy"),
            text.push_str(&format!("{name}: {reason}\n"));
        "the answer could not be made; see the log\n",
        (
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ),
        .fallback(not_found)
        .into_response()
        .layer(middleware::from_fn(bound_time))
        .layer(middleware::from_fn(harden))
        .merge(profile_routes)
        .route("/", get(page::show))
        .route("/health/detailed", get(health))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/metrics", get(metrics))
        .route("/metrics/prometheus", get(metrics))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/readyz", get(readiness))
        .route("/targets", get(list_targets))
        .with_state(state)
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "took too long\n").into_response(),
        Err(error) => internal_error(&error),
        Ok(Err(error)) => internal_error(&error),
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(response) => response,
        Status::Healthy | Status::Degraded => StatusCode::OK,
        Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::NOT_FOUND,
        TextEncoder::new().encode_to_string(&registry.gather())
        api,
        for reason in &subsystem.reasons {
        format!("There is no {path} here. There are:\n\n{ENDPOINTS}"),
        response
        return "ready\n".into_response();
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
        scrapes: Semaphore::new(MAX_SCRAPES),
        }
    (
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    (status, Json(report)).into_response()
    )
    // Sources read kernel maps and /proc, and the text may be large: off the async threads.
    /// Every metric.
    /// How the agent's parts are doing.
    /// Name of this host, for the page.
    /// The last minute of each service.
    /// The watched processes.
    Json(json!({ "targets": views })).into_response()
    Router::new()
    ] {
    api: Api,
    for (name, subsystem) in &report.subsystems {
    for (name, value) in [
    if state.api.health.is_ready() {
    let Ok(_permit) = state.scrapes.acquire().await else {
    let encoded = tokio::task::spawn_blocking(move || {
    let mut response = next.run(request).await;
    let mut text = String::from("not ready\n");
    let path = uri.path();
    let registry = state.api.registry.clone();
    let report = state.api.health.report();
    let state = Arc::new(Shared {
    let status = match report.status {
    let targets = (state.api.targets)();
    let views: Vec<TargetView<'_>> = targets.iter().map(TargetView::of).collect();
    match encoded.await {
    match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
    pub health: Health,
    pub host_name: Arc<str>,
    pub registry: Registry,
    pub summary: Summary,
    pub targets: TargetSource,
    response
    scrapes: Semaphore,
    tracing::error!(error, "an answer could not be made");
    }
    });
    };
";
#[cfg(test)]
#[derive(Clone)]
//! The HTTP API.
//! The agent's HTTP API: metrics, health, targets, profiles and a page for people.
/// All routes. `profile_routes` answers under `/debug/pprof/` and bounds its own time.
/// Gives up on an answer that takes too long.
/// Headers of every answer: a browser takes it for what it says it is, and keeps no copy.
/// Lists the watched processes.
/// Longest that an answer may take, profiles aside: those bound themselves.
/// Scrapes that are encoded at once; each may hold megabytes of text.
/// The state of all handlers.
/// What the API tells from.
/// What there is, for those who ask for something that there is not.
GET /                        services, Elasticsearch calls, flamegraphs: a page for people
GET /debug/pprof/flamegraph  the same drawn: &format=svg|folded|speedscope
GET /debug/pprof/profile     pprof: ?seconds=30&hz=99&pid=|service=|container=
GET /health/detailed         JSON: each part of the agent
GET /healthz                 the agent is alive
GET /metrics                 Prometheus text format (also /metrics/prometheus)
GET /readyz                  probes are attached and rings are drained
GET /targets                 JSON: each watched process
async fn bound_time(request: Request, next: Next) -> Response {
async fn harden(request: Request, next: Next) -> Response {
async fn health(State(state): State<Arc<Shared>>) -> Response {
async fn list_targets(State(state): State<Arc<Shared>>) -> Response {
async fn metrics(State(state): State<Arc<Shared>>) -> Response {
async fn not_found(uri: Uri) -> Response {
async fn readiness(State(state): State<Arc<Shared>>) -> Response {
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ENDPOINTS: &str = "\
const MAX_SCRAPES: usize = 4;
fn internal_error(error: &(dyn std::error::Error + 'static)) -> Response {
mod page;
mod serve;
mod targets;
mod tests;
pub fn router(api: Api, profile_routes: Router) -> Router {
pub mod profile;
pub struct Api {
pub type TargetSource = Arc<dyn Fn() -> Vec<Target> + Send + Sync>;
pub use serve::{BindError, bind, serve};
struct Shared {
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use crate::health::{Health, Status};
use crate::process::Target;
use crate::sink::summary::Summary;
use prometheus::{Registry, TextEncoder};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use targets::TargetView;
use tokio::sync::Semaphore;
}
