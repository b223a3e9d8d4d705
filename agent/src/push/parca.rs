//! Parca: `ProfileStoreService.WriteRaw` over gRPC (`parca/profilestore/v1alpha1/profilestore.proto`
//! of github.com/parca-dev/parca).

use std::time::Duration;

use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, client::Grpc};
use tonic_prost::ProstCodec;

use super::{Batch, PushError, TIMEOUT};

const METHOD: &str = "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw";

/// Parca's name for what a profile is of; its user interface lists it with the sample type.
const NAME: &str = "process_cpu";

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRawRequest {
    #[prost(message, repeated, tag = "2")]
    series: Vec<RawProfileSeries>,
    /// Addresses are those of the files, not those of one process.
    #[prost(bool, tag = "3")]
    normalized: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RawProfileSeries {
    #[prost(message, optional, tag = "1")]
    labels: Option<LabelSet>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LabelSet {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RawSample {
    /// Gzipped pprof.
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WriteRawResponse {}

/// A server.
pub(super) struct Parca {
    channel: Channel,
    headers: MetadataMap,
}

impl Parca {
    /// Connects when there is something to send.
    pub(super) fn new(url: &str, headers: MetadataMap) -> Result<Self, PushError> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| PushError::Setup(url.to_owned(), error.to_string()))?
            .connect_timeout(Duration::from_secs(5))
            .timeout(TIMEOUT);
        Ok(Self {
            channel: endpoint.connect_lazy(),
            headers,
        })
    }

    /// Sends the profiles of all services in one message.
    pub(super) async fn send(&self, batch: &Batch) -> Result<(), PushError> {
        let series = batch.profiles.iter().map(|profile| RawProfileSeries {
            labels: Some(LabelSet {
                labels: vec![
                    label("__name__", NAME),
                    label("node", &batch.host_name),
                    label("service", &profile.service),
                ],
            }),
            samples: vec![RawSample {
                raw_profile: profile.pprof.clone(),
            }],
        });
        let message = WriteRawRequest {
            series: series.collect(),
            normalized: true,
        };
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        let mut client = Grpc::new(self.channel.clone());
        let ready = client.ready().await;
        ready.map_err(|error| PushError::Unavailable(super::chain(&error)))?;
        let codec = ProstCodec::<WriteRawRequest, WriteRawResponse>::default();
        let path = PathAndQuery::from_static(METHOD);
        client
            .unary(request, path, codec)
            .await
            .map_err(|status| failure(&status))?;
        Ok(())
    }
}

fn failure(status: &Status) -> PushError {
    let told = format!("{}: {}", status.code(), status.message());
    match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Cancelled
        | Code::Unknown => PushError::Unavailable(told),
        _ => PushError::Refused(told),
    }
}

fn label(name: &str, value: &str) -> Label {
    Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}
