//! `GET /debug/pprof/profile` and `GET /debug/pprof/flamegraph`: profiles on demand.
//!
//! The paths and parameters are those of Go's `net/http/pprof`, so that its tools can be pointed
//! here: `go tool pprof 'http://127.0.0.1:9464/debug/pprof/profile?service=shop&seconds=10'`.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::config::ProfileConfig;
use crate::profiler::{ProfileError, ProfileRequest, Profiler, Target};
use crate::sink::profile_format::ProfileFormat;

/// How long a profile lasts when nobody says.
const DEFAULT_SECONDS: u64 = 30;

/// Samples a second and CPU when nobody says.
const DEFAULT_HZ: u32 = 99;

/// The profiler, and how much of it a request may take.
#[derive(Clone)]
struct Profiling {
    profiler: Option<Profiler>,
    limits: ProfileConfig,
}

/// The two routes, for profiles within `limits`. `None` answers that this host has no profiler,
/// and why is in the log.
pub fn router(profiler: Option<Profiler>, limits: ProfileConfig) -> Router {
    Router::new()
        .route("/debug/pprof/profile", get(profile))
        .route("/debug/pprof/flamegraph", get(flamegraph))
        .with_state(Profiling { profiler, limits })
}

type Parameters = Query<Vec<(String, String)>>;

async fn profile(State(profiling): State<Profiling>, Query(query): Parameters) -> Response {
    answer(profiling, &query, &[("", ProfileFormat::Pprof)]).await
}

async fn flamegraph(State(profiling): State<Profiling>, Query(query): Parameters) -> Response {
    let formats = [
        ("svg", ProfileFormat::Svg),
        ("folded", ProfileFormat::Folded),
        ("speedscope", ProfileFormat::Speedscope),
    ];
    answer(profiling, &query, &formats).await
}

/// Takes the profile and encodes it in one of `formats`, the first of which is the default.
async fn answer(
    profiling: Profiling,
    query: &[(String, String)],
    formats: &[(&str, ProfileFormat)],
) -> Response {
    let Some(profiler) = profiling.profiler else {
        return refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "no profiler here; see the log",
        );
    };
    let asked = parse(query, formats).and_then(|(request, format)| {
        check_limits(&request, &profiling.limits)?;
        Ok((request, format))
    });
    let (request, format) = match asked {
        Ok(asked) => asked,
        Err(reason) => return refuse(StatusCode::BAD_REQUEST, &reason),
    };
    let title = request.to_string();
    let profile = match profiler.collect(request).await {
        Ok(profile) => profile,
        Err(error) => return refuse_error(&error),
    };
    let encoded = tokio::task::spawn_blocking(move || format.encode(&profile, &title)).await;
    match encoded {
        Ok(Ok(bytes)) => respond(format, bytes),
        failed => {
            tracing::error!(?failed, "the profile could not be encoded");
            refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the profile could not be encoded",
            )
        }
    }
}

fn respond(format: ProfileFormat, bytes: Vec<u8>) -> Response {
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(format.content_type()),
    );
    if format == ProfileFormat::Pprof {
        let attachment = HeaderValue::from_static("attachment; filename=\"profile.pb.gz\"");
        headers.insert(header::CONTENT_DISPOSITION, attachment);
    }
    response
}

/// What is asked for; or what is wrong with it, in one line.
fn parse(
    query: &[(String, String)],
    formats: &[(&str, ProfileFormat)],
) -> Result<(ProfileRequest, ProfileFormat), String> {
    let mut target = None;
    let mut seconds = DEFAULT_SECONDS;
    let mut hz = DEFAULT_HZ;
    let mut format = formats[0].1;
    for (key, value) in query {
        let named = match key.as_str() {
            "seconds" => {
                seconds = number(key, value)?;
                continue;
            }
            "hz" => {
                hz = number(key, value)?;
                continue;
            }
            "format" => {
                let known = formats
                    .iter()
                    .find(|(name, _)| !name.is_empty() && name == value);
                format = known.ok_or_else(|| unknown_format(value, formats))?.1;
                continue;
            }
            "pid" => Target::Pid(number(key, value)?),
            "service" => Target::Service(value.clone()),
            "container" => Target::Container(value.clone()),
            _ => {
                return Err(format!(
                    "unknown parameter {key:?}; allowed: seconds, hz, pid, service, container, format"
                ));
            }
        };
        if target.replace(named).is_some() {
            return Err("more than one of pid, service and container is given".to_owned());
        }
    }
    let request = ProfileRequest {
        target: target.unwrap_or(Target::All),
        duration: Duration::from_secs(seconds),
        hz,
    };
    Ok((request, format))
}

/// Whether the configuration allows a profile this long and this dense.
fn check_limits(request: &ProfileRequest, limits: &ProfileConfig) -> Result<(), String> {
    if request.duration > limits.max_duration {
        return Err(format!(
            "seconds is {}: at most {} is allowed (profile.max_duration)",
            request.duration.as_secs(),
            limits.max_duration.as_secs()
        ));
    }
    if request.hz > limits.max_hz {
        return Err(format!(
            "hz is {}: at most {} is allowed (profile.max_hz)",
            request.hz, limits.max_hz
        ));
    }
    Ok(())
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{key} is {value:?}: a whole number is needed"))
}

fn unknown_format(value: &str, formats: &[(&str, ProfileFormat)]) -> String {
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

fn refuse_error(error: &ProfileError) -> Response {
    let retry_after = match error {
        ProfileError::OtherRate { wait, .. } | ProfileError::TooMany { wait } => {
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
        ProfileError::Hz(_) | ProfileError::Duration(_) | ProfileError::ContainerId(_) => {
            StatusCode::BAD_REQUEST
        }
        ProfileError::NoSuchProcess(_)
        | ProfileError::NoSuchService { .. }
        | ProfileError::NoSuchContainer(_) => StatusCode::NOT_FOUND,
        ProfileError::OtherRate { .. } | ProfileError::TooMany { .. } => {
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
    use super::*;

    const SVG: [(&str, ProfileFormat); 2] = [
        ("svg", ProfileFormat::Svg),
        ("folded", ProfileFormat::Folded),
    ];

    fn parsed(
        query: &[(&str, &str)],
        formats: &[(&str, ProfileFormat)],
    ) -> Result<(ProfileRequest, ProfileFormat), String> {
        let query: Vec<_> = query
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        parse(&query, formats)
    }

    #[test]
    fn nothing_said_means_everything_for_half_a_minute() {
        let (request, format) = parsed(&[], &SVG).unwrap();
        assert_eq!(request.target, Target::All);
        assert_eq!(
            (request.duration, request.hz),
            (Duration::from_secs(30), 99)
        );
        assert_eq!(format, ProfileFormat::Svg);
    }

    #[test]
    fn parameters_are_taken() {
        let query = [
            ("seconds", "5"),
            ("hz", "499"),
            ("service", "a b"),
            ("format", "folded"),
        ];
        let (request, format) = parsed(&query, &SVG).unwrap();
        assert_eq!(request.target, Target::Service("a b".into()));
        assert_eq!(
            (request.duration, request.hz),
            (Duration::from_secs(5), 499)
        );
        assert_eq!(format, ProfileFormat::Folded);
        assert_eq!(
            parsed(&[("pid", "7")], &SVG).unwrap().0.target,
            Target::Pid(7)
        );
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (query, reason) in [
            (
                &[("seconds", "five")][..],
                "seconds is \"five\": a whole number is needed",
            ),
            (&[("pid", "-1")], "pid is \"-1\": a whole number is needed"),
            (
                &[("pid", "1"), ("service", "x")],
                "more than one of pid, service and container is given",
            ),
            (
                &[("format", "png")],
                "format is \"png\"; allowed: svg, folded",
            ),
            (
                &[("second", "1")],
                "unknown parameter \"second\"; allowed: seconds, hz, pid, service, container, format",
            ),
        ] {
            assert_eq!(parsed(query, &SVG).unwrap_err(), reason);
        }
        let pprof = [("", ProfileFormat::Pprof)];
        let error = parsed(&[("format", "svg")], &pprof).unwrap_err();
        assert!(error.contains("always pprof"), "{error}");
    }

    #[test]
    fn the_configuration_bounds_what_is_asked_for() {
        let limits = ProfileConfig {
            max_duration: Duration::from_secs(60),
            max_hz: 199,
        };
        let check = |query: &[(&str, &str)]| check_limits(&parsed(query, &SVG).unwrap().0, &limits);
        assert_eq!(check(&[("seconds", "60"), ("hz", "199")]), Ok(()));
        let too_long = check(&[("seconds", "61")]).unwrap_err();
        assert_eq!(
            too_long,
            "seconds is 61: at most 60 is allowed (profile.max_duration)"
        );
        let too_dense = check(&[("hz", "200")]).unwrap_err();
        assert_eq!(
            too_dense,
            "hz is 200: at most 199 is allowed (profile.max_hz)"
        );
    }

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
