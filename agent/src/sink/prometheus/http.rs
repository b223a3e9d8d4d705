//! The metrics of HTTP exchanges, either role.

use std::sync::Arc;

use hashbrown::Equivalent;
use prometheus::local::LocalHistogram;
use prometheus::{HistogramVec, IntCounter};
use protocol::observation::{Exchange, Role};

use super::buckets::{self, Buckets};
use super::series::Family;
use super::{histogram_vec, port_label, record};
use crate::observation::Observation;
use crate::sink::semantics::{self, ErrorType, Server};

/// The histograms of one role.
pub(super) struct HttpFamilies {
    duration: Family<HistogramVec>,
    first_byte: Family<HistogramVec>,
    /// Of servers alone.
    queue: Option<Family<HistogramVec>>,
    request_body: Family<HistogramVec>,
    response_body: Family<HistogramVec>,
}

impl HttpFamilies {
    pub(super) fn server(
        buckets: &Buckets,
        max_series: usize,
        refused: &IntCounter,
    ) -> Result<Self, prometheus::Error> {
        let histogram = |name, help, labels: &[&str]| {
            histogram_vec(buckets, name, help, labels)
                .map(|vec| Family::new(vec, max_series, refused.clone()))
        };
        let base = ["service_name", "http_request_method", "http_route"];
        let sized = [
            "service_name",
            "http_request_method",
            "http_route",
            "http_response_status_code",
        ];
        Ok(Self {
            duration: histogram(
                buckets::SERVER_DURATION,
                "Duration of HTTP requests at the server, first byte of the request to last byte of the response.",
                &[
                    "service_name",
                    "http_request_method",
                    "http_route",
                    "http_response_status_code",
                    "error_type",
                ],
            )?,
            first_byte: histogram(
                buckets::SERVER_FIRST_BYTE,
                "First byte of the request to first byte of the response, at the server.",
                &base,
            )?,
            queue: Some(histogram(
                buckets::SERVER_QUEUE,
                "Arrival of the request's first byte to the read that took it; for a request that came before its connection was accepted, from when that was ready.",
                &base,
            )?),
            request_body: histogram(
                buckets::SERVER_REQUEST_BODY,
                "Body size of HTTP requests that the server received.",
                &sized,
            )?,
            response_body: histogram(
                buckets::SERVER_RESPONSE_BODY,
                "Body size of HTTP responses that the server sent.",
                &sized,
            )?,
        })
    }

    pub(super) fn client(
        buckets: &Buckets,
        max_series: usize,
        refused: &IntCounter,
    ) -> Result<Self, prometheus::Error> {
        let histogram = |name, help, labels: &[&str]| {
            histogram_vec(buckets, name, help, labels)
                .map(|vec| Family::new(vec, max_series, refused.clone()))
        };
        let base = ["service_name", "http_request_method", "url_template"];
        let sized = [
            "service_name",
            "http_request_method",
            "url_template",
            "http_response_status_code",
        ];
        Ok(Self {
            duration: histogram(
                buckets::CLIENT_DURATION,
                "Duration of HTTP requests at the client, first byte of the request to last byte of the response.",
                &[
                    "service_name",
                    "http_request_method",
                    "url_template",
                    "http_response_status_code",
                    "error_type",
                    "server_address",
                    "server_port",
                ],
            )?,
            first_byte: histogram(
                buckets::CLIENT_FIRST_BYTE,
                "First byte of the request to first byte of the response, at the client.",
                &base,
            )?,
            queue: None,
            request_body: histogram(
                buckets::CLIENT_REQUEST_BODY,
                "Body size of HTTP requests that the client sent.",
                &sized,
            )?,
            response_body: histogram(
                buckets::CLIENT_RESPONSE_BODY,
                "Body size of HTTP responses that the client received.",
                &sized,
            )?,
        })
    }

    /// Every family, for the registry and for forgetting.
    pub(super) fn families(&self) -> impl Iterator<Item = &Family<HistogramVec>> {
        [
            &self.duration,
            &self.first_byte,
            &self.request_body,
            &self.response_body,
        ]
        .into_iter()
        .chain(&self.queue)
    }
}

/// What tells HTTP series apart. [`HttpKeyRef`] has to hash alike: the same fields in the same
/// order.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct HttpKey {
    role: Role,
    service: Arc<str>,
    method: &'static str,
    route: Arc<str>,
    status: Option<u16>,
    error: ErrorType,
    server: Option<(Box<str>, Option<u16>)>,
}

/// [`HttpKey`], borrowed from an observation.
#[derive(Hash)]
pub(super) struct HttpKeyRef<'a> {
    role: Role,
    service: &'a Arc<str>,
    method: &'static str,
    route: &'a Arc<str>,
    status: Option<u16>,
    error: ErrorType,
    server: Option<Server<'a>>,
}

impl<'a> HttpKeyRef<'a> {
    /// `server` is what a client talks to; a server has none.
    pub(super) fn new(observation: &'a Observation, server: Option<Server<'a>>) -> Self {
        let exchange = &observation.exchange;
        Self {
            role: exchange.role,
            service: &observation.process.service,
            method: exchange.method,
            route: &observation.route,
            status: exchange.status,
            error: ErrorType::of(exchange),
            server,
        }
    }
}

impl Equivalent<HttpKey> for HttpKeyRef<'_> {
    fn equivalent(&self, key: &HttpKey) -> bool {
        self.role == key.role
            && *self.service == key.service
            && self.method == key.method
            && *self.route == key.route
            && self.status == key.status
            && self.error == key.error
            && self.server == key.server.as_ref().map(|(host, port)| (&**host, *port))
    }
}

impl From<&HttpKeyRef<'_>> for HttpKey {
    fn from(key: &HttpKeyRef<'_>) -> Self {
        Self {
            role: key.role,
            service: Arc::clone(key.service),
            method: key.method,
            route: Arc::clone(key.route),
            status: key.status,
            error: key.error,
            server: key.server.map(|(host, port)| (host.into(), port)),
        }
    }
}

/// Handles on the histograms of one set of labels; each is made when there is a first value for it.
#[derive(Default)]
pub(super) struct HttpSeries {
    duration: Option<LocalHistogram>,
    first_byte: Option<LocalHistogram>,
    queue: Option<LocalHistogram>,
    request_body: Option<LocalHistogram>,
    response_body: Option<LocalHistogram>,
}

impl HttpSeries {
    /// Adds what was recorded to the histograms that are scraped.
    pub(super) fn flush(&self) {
        let handles = [
            &self.duration,
            &self.first_byte,
            &self.queue,
            &self.request_body,
            &self.response_body,
        ];
        handles
            .into_iter()
            .flatten()
            .for_each(LocalHistogram::flush);
    }

    /// `false` when one of the families is full.
    pub(super) fn observe(
        &mut self,
        families: &HttpFamilies,
        key: &HttpKeyRef<'_>,
        exchange: &Exchange,
    ) -> bool {
        let seconds = semantics::duration_ns(exchange) as f64 / 1e9;
        let mut within = record(&mut self.duration, seconds, || {
            let status = semantics::status_label(key.status);
            let error = key.error.as_label(&status);
            let port;
            let mut labels = vec![key.service, key.method, &**key.route, &*status, error];
            if let Some((host, port_number)) = key.server {
                port = port_label(port_number);
                labels.extend([host, &*port]);
            }
            families.duration.series(&labels)
        });
        if let Some(first_ns) = exchange.times.response_first_ns {
            let waited_ns = first_ns.saturating_sub(exchange.times.request_first_ns);
            within &= record(&mut self.first_byte, waited_ns as f64 / 1e9, || {
                families
                    .first_byte
                    .series(&[key.service, key.method, key.route])
            });
        }
        if let Some(queued_ns) = semantics::queued_ns(exchange)
            && let Some(family) = &families.queue
        {
            within &= record(&mut self.queue, queued_ns as f64 / 1e9, || {
                family.series(&[key.service, key.method, key.route])
            });
        }
        for (bytes, handle, family) in [
            (
                exchange.request_body_bytes,
                &mut self.request_body,
                &families.request_body,
            ),
            (
                exchange.response_body_bytes,
                &mut self.response_body,
                &families.response_body,
            ),
        ] {
            if let Some(bytes) = bytes {
                within &= record(handle, bytes as f64, || {
                    let status = semantics::status_label(key.status);
                    family.series(&[key.service, key.method, key.route, &status])
                });
            }
        }
        within
    }
}
