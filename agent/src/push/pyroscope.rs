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

    /// Sends the profile of each service.
    pub(super) async fn send(&self, batch: &Batch) -> Result<(), PushError> {
        for profile in &batch.profiles {
            let sent = tokio::time::timeout(TIMEOUT, self.send_one(batch, profile));
            sent.await
                .map_err(|_| PushError::Send(format!("no answer in {} s", TIMEOUT.as_secs())))??;
        }
        Ok(())
    }

    async fn send_one(&self, batch: &Batch, profile: &ServiceProfile) -> Result<(), PushError> {
        let refused = |error: &dyn std::fmt::Display| PushError::Send(error.to_string());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/ingest?{}", self.base, query(batch, profile)))
            .body(Full::from(profile.pprof.clone()))
            .map_err(|error| refused(&error))?;
        *request.headers_mut() = self.headers.clone();
        let response = self.client.request(request).await;
        let response = response.map_err(|error| refused(&super::chain(&error)))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let reason = Limited::new(response.into_body(), MAX_REASON_BYTES);
        let reason = reason.collect().await;
        let reason = reason.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
        let reason = String::from_utf8_lossy(&reason).replace(char::is_control, " ");
        Err(PushError::Send(format!("{status} {}", reason.trim())))
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

/// A name or value without what would end it.
fn clean(text: &str) -> String {
    text.replace(['{', '}', ',', '=', '"'], "_")
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
            service: "shop {a=b}".into(),
            pprof: Vec::new(),
            samples: 1,
        };
        assert_eq!(
            query(&batch, &profile),
            "name=shop%20%5Fa%5Fb%5F%7Bhostname%3Dnode%2D1%7D&from=10&until=25&format=pprof\
             &sampleRate=19&spyName=telltale"
        );
    }
}
