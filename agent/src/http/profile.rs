//! `GET /debug/pprof/profile`, `/debug/pprof/flamegraph`, `/debug/pprof/diff`, and the page at
//! `/flamegraph`.
//!
//! The paths and parameters are those of Go's `net/http/pprof`, so that its tools can be pointed
//! here: `go tool pprof 'http://127.0.0.1:9464/debug/pprof/profile?service=shop&seconds=10'`.

use std::convert::identity;
use std::io;
use std::time::SystemTime;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use profile::Profile;

use super::flame_page;
use super::query::{ALLOWED, Asked, check_limits};
use crate::config::ProfileConfig;
use crate::profiler::{ProfileError, ProfileRequest, Profiler};
use crate::sink::flamegraph_diff::DiffFormat;
use crate::sink::profile_format::ProfileFormat;

/// The profiler, and how much of it a request may take.
#[derive(Clone)]
struct Profiling {
    profiler: Option<Profiler>,
    limits: ProfileConfig,
}

/// The routes, for profiles within `limits`. `None` answers that this host has no profiler,
/// and why is in the log.
pub fn router(profiler: Option<Profiler>, limits: ProfileConfig) -> Router {
    Router::new()
        .route("/debug/pprof/profile", get(profile))
        .route("/debug/pprof/flamegraph", get(flamegraph))
        .route("/debug/pprof/diff", get(diff))
        .route("/flamegraph", get(look_into))
        .route("/flamegraph.css", get(flame_page::style))
        .route("/flamegraph.js", get(flame_page::script))
        .with_state(Profiling { profiler, limits })
}

type Parameters = Query<Vec<(String, String)>>;

const DRAWN: [(&str, ProfileFormat); 3] = [
    ("svg", ProfileFormat::Svg),
    ("folded", ProfileFormat::Folded),
    ("speedscope", ProfileFormat::Speedscope),
];

const DIFFERENCES: [(&str, DiffFormat); 2] =
    [("svg", DiffFormat::Svg), ("folded", DiffFormat::Folded)];

/// What a drawing's script keeps in its address, so that it is there again when that is loaded anew:
/// the frame that is magnified, and what is searched for.
const STATE_OF_DRAWING: [&str; 3] = ["x", "y", "s"];

/// A drawing runs the script that is in it, and loads nothing.
const DRAWING_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; \
     form-action 'none'",
);

/// What is said of the base of a difference begins with this.
const BASE: &str = "base_";

async fn profile(State(profiling): State<Profiling>, Query(query): Parameters) -> Response {
    let answer = answer(&profiling, &query, &[("", ProfileFormat::Pprof)]).await;
    answer.unwrap_or_else(identity)
}

async fn flamegraph(State(profiling): State<Profiling>, Query(mut query): Parameters) -> Response {
    query.retain(|(key, _)| !STATE_OF_DRAWING.contains(&&**key));
    let answer = answer(&profiling, &query, &DRAWN).await;
    answer.unwrap_or_else(identity)
}

async fn diff(State(profiling): State<Profiling>, Query(mut query): Parameters) -> Response {
    query.retain(|(key, _)| !STATE_OF_DRAWING.contains(&&**key));
    let answer = difference(&profiling, &query).await;
    answer.unwrap_or_else(identity)
}

async fn look_into(State(profiling): State<Profiling>, Query(query): Parameters) -> Response {
    let page = page(&profiling, &query).await;
    page.unwrap_or_else(identity)
}

/// Takes the profile and makes a page of it. Where no time is said, that is the last minutes of
/// what is kept, or the next seconds where nothing is.
async fn page(profiling: &Profiling, query: &[(String, String)]) -> Result<Response, Response> {
    let now = SystemTime::now();
    let mut query = query.to_vec();
    let of_time = ["from", "to", "seconds", "hz", "type"];
    if !query.iter().any(|(key, _)| of_time.contains(&key.as_str())) {
        let (key, value) = if profiling.limits.continuous.hz > 0 {
            ("from", "now-5m")
        } else {
            ("seconds", "5")
        };
        query.push((key.to_owned(), value.to_owned()));
    }
    let mut asked = Asked::default();
    for (key, value) in &query {
        if !asked.take(key, value, now).map_err(bad_request)? {
            return Err(unknown(key, ALLOWED));
        }
    }
    let request = asked.request(now).map_err(bad_request)?;
    let profile = profiling.collect(request.clone()).await?;
    let page = move || flame_page::page(&profile, &request, &query);
    let made = tokio::task::spawn_blocking(page).await;
    made.map_err(|_| {
        refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the page could not be made",
        )
    })
}

/// Takes the profile and encodes it in one of `formats`, the first of which is the default.
async fn answer(
    profiling: &Profiling,
    query: &[(String, String)],
    formats: &[(&str, ProfileFormat)],
) -> Result<Response, Response> {
    let now = SystemTime::now();
    let mut asked = Asked::default();
    let mut format = formats[0].1;
    for (key, value) in query {
        let taken = if key == "format" {
            format = one_of(formats, value).map_err(bad_request)?;
            true
        } else {
            asked.take(key, value, now).map_err(bad_request)?
        };
        if !taken {
            return Err(unknown(key, &format!("{ALLOWED}, format")));
        }
    }
    let request = asked.request(now).map_err(bad_request)?;
    let title = request.to_string();
    let profile = profiling.collect(request).await?;
    let bytes = encode(move || format.encode(&profile, &title)).await?;
    let mut response = respond(format.content_type(), bytes);
    if format == ProfileFormat::Pprof {
        let attachment = HeaderValue::from_static("attachment; filename=\"profile.pb.gz\"");
        response
            .headers_mut()
            .insert(header::CONTENT_DISPOSITION, attachment);
    }
    Ok(response)
}

/// Draws what two ranges of time or two services differ by. What is not said of the base is as
/// with the other one.
async fn difference(
    profiling: &Profiling,
    query: &[(String, String)],
) -> Result<Response, Response> {
    let now = SystemTime::now();
    let (mut base, mut asked) = (Asked::default(), Asked::default());
    let mut format = DiffFormat::Svg;
    for (key, value) in query {
        let taken = match key.strip_prefix(BASE) {
            _ if key == "format" => {
                format = one_of(&DIFFERENCES, value).map_err(bad_request)?;
                Ok(true)
            }
            Some(key) => base.take(key, value, now),
            None => asked.take(key, value, now),
        };
        if !taken.map_err(bad_request)? {
            return Err(unknown(
                key,
                &format!("{ALLOWED}, each with {BASE} before it too, format"),
            ));
        }
    }
    let base = base.or(&asked);
    if base == Asked::default().or(&asked) {
        return Err(bad_request(format!(
            "the base is the same: say {BASE}from and {BASE}to, {BASE}service or {BASE}route"
        )));
    }
    let requests = [base, asked].map(|asked| asked.past_request(now));
    let [base, asked] = requests;
    let (base, asked) = (base.map_err(bad_request)?, asked.map_err(bad_request)?);
    let titles = [base.to_string(), asked.to_string()];
    let (base, asked) = (
        profiling.collect(base).await?,
        profiling.collect(asked).await?,
    );
    let bytes = encode(move || {
        let [base_title, title] = &titles;
        format.encode((&base, base_title), (&asked, title))
    })
    .await?;
    Ok(respond(format.content_type(), bytes))
}

impl Profiling {
    async fn collect(&self, request: ProfileRequest) -> Result<Profile, Response> {
        let Some(profiler) = &self.profiler else {
            return Err(refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "no profiler here; see the log",
            ));
        };
        check_limits(&request, &self.limits).map_err(bad_request)?;
        let collected = profiler.collect(request).await;
        collected.map_err(|error| refuse_error(&error))
    }
}

/// Encodes off the async threads.
async fn encode(
    encode: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
) -> Result<Vec<u8>, Response> {
    match tokio::task::spawn_blocking(encode).await {
        Ok(Ok(bytes)) => Ok(bytes),
        failed => {
            tracing::error!(?failed, "the profile could not be encoded");
            Err(refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the profile could not be encoded",
            ))
        }
    }
}

fn respond(content_type: &'static str, bytes: Vec<u8>) -> Response {
    let is_drawing = content_type == ProfileFormat::Svg.content_type();
    let content_type = HeaderValue::from_static(content_type);
    let mut response = ([(header::CONTENT_TYPE, content_type)], bytes).into_response();
    if is_drawing {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, DRAWING_POLICY);
    }
    response
}

/// The format of this name.
fn one_of<F: Copy>(formats: &[(&str, F)], name: &str) -> Result<F, String> {
    let known = formats
        .iter()
        .find(|(known, _)| !known.is_empty() && *known == name);
    known
        .map(|(_, format)| *format)
        .ok_or_else(|| unknown_format(name, formats))
}

fn unknown_format<F>(value: &str, formats: &[(&str, F)]) -> String {
    let allowed: Vec<_> = formats
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !name.is_empty())
        .collect();
    match allowed.as_slice() {
        [] => "format belongs to /debug/pprof/flamegraph; a profile is always pprof".to_owned(),
        allowed => format!("format is {value:?}; allowed: {}", allowed.join(", ")),
    }
}

fn unknown(key: &str, allowed: &str) -> Response {
    bad_request(format!("unknown parameter {key:?}; allowed: {allowed}"))
}

fn bad_request(reason: impl AsRef<str>) -> Response {
    refuse(StatusCode::BAD_REQUEST, reason.as_ref())
}

fn refuse_error(error: &ProfileError) -> Response {
    let retry_after = match error {
        ProfileError::TooMany { wait } | ProfileError::OffCpuBusy { wait } => {
            Some(wait.as_secs() + 1)
        }
        _ => None,
    };
    let mut response = refuse(status(error), &error.to_string());
    if let Some(seconds) = retry_after {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn status(error: &ProfileError) -> StatusCode {
    match error {
        ProfileError::Hz(_)
        | ProfileError::ShortestWait(_)
        | ProfileError::Duration(_)
        | ProfileError::ContainerId(_)
        | ProfileError::CgroupPath(_)
        | ProfileError::Route(_)
        | ProfileError::Method(_)
        | ProfileError::Operation(_) => StatusCode::BAD_REQUEST,
        ProfileError::NoSuchProcess(_)
        | ProfileError::NoSuchThread(_)
        | ProfileError::NoSuchService { .. }
        | ProfileError::NoSuchContainer(_)
        | ProfileError::NoSuchCgroup(_)
        | ProfileError::NoSuchWork { .. }
        | ProfileError::NothingKept
        | ProfileError::NotKept { .. } => StatusCode::NOT_FOUND,
        ProfileError::TooMany { .. } | ProfileError::OffCpuBusy { .. } => {
            StatusCode::TOO_MANY_REQUESTS
        }
        ProfileError::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        ProfileError::Sampler(_) | ProfileError::Interrupted(_) | ProfileError::Symbolizer(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// Go's tools show the text of an answer that carries this header.
const X_GO_PPROF: HeaderName = HeaderName::from_static("x-go-pprof");

fn refuse(status: StatusCode, reason: &str) -> Response {
    let headers = [(X_GO_PPROF, HeaderValue::from_static("1"))];
    (status, headers, format!("{reason}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn errors_have_the_status_that_fits() {
        assert_eq!(status(&ProfileError::Hz(0)), StatusCode::BAD_REQUEST);
        assert_eq!(
            status(&ProfileError::NoSuchProcess(1)),
            StatusCode::NOT_FOUND
        );
        let busy = ProfileError::TooMany {
            wait: Duration::from_millis(1500),
        };
        let response = refuse_error(&busy);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }
}
