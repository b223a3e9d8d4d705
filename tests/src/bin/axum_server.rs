//! The routes of `workloads/fastapi_app.py` in axum: `axum_server PORT LOG_FILE`. And those of
//! `workloads/requests_app.py`, of which `/turns/{a|b}/{id}` lets others have their turn in between.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().context("no port given")?.parse()?;
    let log = arguments.next().context("no log file given")?;
    let log = Arc::new(OpenOptions::new().create(true).append(true).open(log)?);
    let app = Router::new()
        .route("/items/{id}", get(item).delete(StatusCode::NO_CONTENT))
        .route("/items", post(create))
        .route("/get_complete_tree/{id}", get(tree))
        .route("/cached", get(cached))
        .route("/fail", get(fail))
        .route("/sleep/{milliseconds}", get(sleep))
        .route("/a/{id}", get(async || spend_a()))
        .route("/b/{id}", get(async || spend_b()))
        .route("/turns/a/{id}", get(async || turns(spend_a).await))
        .route("/turns/b/{id}", get(async || turns(spend_b).await))
        .route("/threads/a/{id}", get(async || threads(spend_a).await))
        .route("/threads/b/{id}", get(async || threads(spend_b).await))
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(log, handler_time));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    Ok(axum::serve(listener, app).await?)
}

/// Writes one line a request, before the response is sent: the time it states lies within the time
/// on the wire.
async fn handler_time(State(log): State<Arc<File>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let line = json!({
        "method": method,
        "path": path,
        "status": response.status().as_u16(),
        "seconds": start.elapsed().as_secs_f64(),
        "pid": std::process::id(),
    });
    if let Err(error) = (&*log).write_all(format!("{line}\n").as_bytes()) {
        eprintln!("the log cannot be written: {error}");
    }
    response
}

async fn item(Path(id): Path<u64>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let limit = query.strip_prefix("limit=").unwrap_or("1");
    match limit.parse::<u64>() {
        Ok(limit) => Json(json!({"id": id, "limit": limit, "name": "a thing"})).into_response(),
        Err(_) => (StatusCode::UNPROCESSABLE_ENTITY, "limit is not a number").into_response(),
    }
}

async fn create(body: Bytes) -> impl IntoResponse {
    (StatusCode::CREATED, Json(json!({"received": body.len()})))
}

async fn tree() -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::new(Nodes {
            left: 21,
            turn: false,
        }),
    )
        .into_response()
}

async fn cached(headers: HeaderMap) -> Response {
    let fresh = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|tag| tag == "\"1\"");
    let status = if fresh {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    };
    let body = if fresh { "" } else { "cached" };
    (status, [(header::ETAG, "\"1\"")], body).into_response()
}

async fn fail() -> impl IntoResponse {
    (
        StatusCode::INTERNAL_SERVER_ERROR,
        Json(json!({"detail": "as asked"})),
    )
}

async fn sleep(Path(milliseconds): Path<u64>) -> impl IntoResponse {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    Json(json!({"slept": milliseconds}))
}

/// Of the processor, by the clock.
const SPENT: Duration = Duration::from_millis(2);

fn spend() {
    let begin = Instant::now();
    while begin.elapsed() < SPENT {
        std::hint::spin_loop();
    }
}

#[inline(never)]
fn spend_a() -> &'static str {
    spend();
    std::hint::black_box("a\n")
}

#[inline(never)]
fn spend_b() -> &'static str {
    spend();
    std::hint::black_box("b\n")
}

async fn turns(spend: fn() -> &'static str) -> &'static str {
    spend();
    tokio::time::sleep(Duration::from_millis(1)).await;
    spend()
}

async fn threads(spend: fn() -> &'static str) -> Result<&'static str, StatusCode> {
    let spent = tokio::task::spawn_blocking(spend).await;
    spent.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// A body without a known length, which goes out in chunks, one a turn of the event loop.
struct Nodes {
    left: u32,
    turn: bool,
}

impl axum::body::HttpBody for Nodes {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.turn = !self.turn;
        if self.turn {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from(format!(
            "{{\"node\":{}}}\n",
            self.left
        ))))))
    }
}
