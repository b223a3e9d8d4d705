//! Pyroscope: `POST /ingest` with pprof as its body
//! (<https://grafana.com/docs/pyroscope/latest/reference-server-api/>).

use std::time::SystemTime;

use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Batch, PushError, ServiceProfile, TIMEOUT};

/// Most of a refusal that is read.
const MAX_REASON_BYTES: usize = 512;

/// A server.
pub(super) struct Pyroscope {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    headers: HeaderMap,
}

impl Pyroscope {
    /// Connects when there is something to send.
    pub(super) fn new(url: &str, headers: HeaderMap) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            base: url.trim_end_matches('/').to_owned(),
            headers,
        }
    }

    /// Sends the profile of a service.
    pub(super) async fn send(
        &self,
        batch: &Batch,
        profile: &ServiceProfile,
    ) -> Result<(), PushError> {
        let sent = tokio::time::timeout(TIMEOUT, self.post(batch, profile)).await;
        let too_late = |_| PushError::Unavailable(format!("no answer in {} s", TIMEOUT.as_secs()));
        sent.map_err(too_late)?
    }

    async fn post(&self, batch: &Batch, profile: &ServiceProfile) -> Result<(), PushError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/ingest?{}", self.base, query(batch, profile)))
            .body(Full::from(profile.pprof.clone()))
            .map_err(|error| PushError::Refused(error.to_string()))?;
        *request.headers_mut() = self.headers.clone();
        let response = self.client.request(request).await;
        let response = response.map_err(|error| PushError::Unavailable(super::chain(&error)))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let reason = Limited::new(response.into_body(), MAX_REASON_BYTES);
        let reason = reason.collect().await;
        let reason = reason.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
        let reason = String::from_utf8_lossy(&reason).replace(char::is_control, " ");
        let told = format!("{status} {}", reason.trim());
        let may_pass = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        Err(if may_pass {
            PushError::Unavailable(told)
        } else {
            PushError::Refused(told)
        })
    }
}

/// `name=SERVICE{hostname=HOST}` and the rest of what the server wants to know.
fn query(batch: &Batch, profile: &ServiceProfile) -> String {
    let name = format!(
        "{}{{hostname={}}}",
        clean(&profile.service),
        clean(&batch.host_name)
    );
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    };
    let until = batch.began + batch.duration;
    format!(
        "name={}&from={}&until={}&format=pprof&sampleRate={}&spyName=telltale",
        utf8_percent_encode(&name, NON_ALPHANUMERIC),
        seconds(batch.began),
        // The server counts in whole seconds, and a range without any would be empty.
        seconds(until).max(seconds(batch.began) + 1),
        batch.hz,
    )
}

/// A name or value of what the server allows in names of applications.
fn clean(text: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    text.replace(|c: char| !is_allowed(c), "_")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_query_names_service_host_and_time() {
        let batch = Batch {
            began: SystemTime::UNIX_EPOCH + Duration::from_millis(10_500),
            duration: Duration::from_millis(15_200),
            hz: 19,
            host_name: "node-1".into(),
            profiles: Vec::new(),
        };
        let profile = ServiceProfile {
            service: "shop:{a=b}".into(),
            pprof: Vec::new(),
            samples: 1,
        };
        assert_eq!(
            query(&batch, &profile),
            "name=shop%5F%5Fa%5Fb%5F%7Bhostname%3Dnode%2D1%7D&from=10&until=25&format=pprof\
             &sampleRate=19&spyName=telltale"
        );
    }
}
