//! Sends what continuous profiling keeps to Pyroscope and Parca, each sample once.

mod parca;
mod pyroscope;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use profile::Profile;
use prometheus::IntCounter;
use tokio::time::MissedTickBehavior;
use tonic::metadata::MetadataMap;

use crate::config::PushConfig;
use crate::health::{Health, Status};
use crate::profiler::{ProfileError, ProfileRequest, ProfileTime, Profiler, Target};
use crate::self_metrics::Losses;
use crate::sink::pprof;
use parca::Parca;
use pyroscope::Pyroscope;

/// How long one message may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a message is tried.
const ATTEMPTS: u32 = 3;

/// How long the first pause between two attempts is; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Name of the part in the agent's health, and of the losses' stage.
const PART: &str = "profile_push";

/// Why profiles are not sent.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// A URL or a header that cannot be used.
    #[error("{0}: {1}")]
    Setup(String, String),
    /// The server cannot be reached, or is not able to answer now.
    #[error("{0}")]
    Unavailable(String),
    /// The server does not take this, now or later.
    #[error("refused: {0}")]
    Refused(String),
}

/// What is sent at a time.
struct Batch {
    began: SystemTime,
    duration: Duration,
    hz: u32,
    host_name: Arc<str>,
    profiles: Vec<ServiceProfile>,
}

/// The profile of a service.
struct ServiceProfile {
    service: Arc<str>,
    /// Gzipped.
    pprof: Vec<u8>,
    samples: u64,
}

enum Server {
    Pyroscope(Box<Pyroscope>),
    Parca(Parca),
}

/// Sends until the task is aborted.
pub struct Push {
    profiler: Profiler,
    servers: Vec<(&'static str, Server, IntCounter)>,
    interval: Duration,
    host_name: Arc<str>,
    health: Health,
}

impl Push {
    /// What the configuration asks for; `None` where it names no server.
    ///
    /// # Errors
    /// When a URL or a header can't be used.
    pub fn new(
        config: &PushConfig,
        profiler: &Profiler,
        host_name: &Arc<str>,
        losses: &Losses,
        health: &Health,
    ) -> Result<Option<Self>, PushError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            // The value may be a credential, so that no error repeats it.
            let setup = |_: &dyn std::fmt::Display| {
                PushError::Setup(name.clone(), "not a header".to_owned())
            };
            let key: HeaderName = name.parse().map_err(|error| setup(&error))?;
            let value = HeaderValue::from_str(value).map_err(|error| setup(&error))?;
            headers.insert(key, value);
        }
        let mut servers = Vec::new();
        if let Some(url) = &config.pyroscope {
            let server = Server::Pyroscope(Box::new(Pyroscope::new(url, headers.clone())));
            servers.push(("pyroscope", server, losses.counter(PART, "pyroscope")));
        }
        if let Some(url) = &config.parca {
            let server = Parca::new(url, MetadataMap::from_headers(headers))?;
            servers.push((
                "parca",
                Server::Parca(server),
                losses.counter(PART, "parca"),
            ));
        }
        Ok((!servers.is_empty()).then(|| Self {
            profiler: profiler.clone(),
            servers,
            interval: config.interval,
            host_name: Arc::clone(host_name),
            health: health.clone(),
        }))
    }

    /// Sends what was kept since the last time, each interval.
    pub async fn run(self) {
        self.health.set(PART, Status::Healthy, "");
        let mut from = SystemTime::now();
        let mut timer = tokio::time::interval(self.interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer.tick().await;
        loop {
            timer.tick().await;
            let to = SystemTime::now();
            // A clock that was set back leaves a range without any window.
            match self.batch(from.min(to), to).await {
                Ok(batch) => self.send(&batch).await,
                Err(ProfileError::NotKept { .. }) => {}
                Err(error) => tracing::warn!(%error, "no profiles to send"),
            }
            from = to;
        }
    }

    async fn batch(&self, from: SystemTime, to: SystemTime) -> Result<Batch, ProfileError> {
        let request = ProfileRequest {
            selector: Target::All.into(),
            time: ProfileTime::Past { from, to },
        };
        let profile = self.profiler.collect(request).await?;
        let host_name = Arc::clone(&self.host_name);
        let encode = tokio::task::spawn_blocking(move || Batch::of(&profile, host_name));
        match encode.await {
            Ok(Ok(batch)) => Ok(batch),
            failed => {
                tracing::error!(failed = failed.is_err(), "profiles could not be encoded");
                Err(ProfileError::Stopped)
            }
        }
    }

    async fn send(&self, batch: &Batch) {
        let mut troubles = Vec::new();
        for (name, server, lost) in &self.servers {
            let unsent = server.send(batch).await;
            let samples: u64 = unsent.iter().map(|(samples, _)| samples).sum();
            lost.inc_by(samples);
            if let Some((_, error)) = unsent.first() {
                tracing::warn!(server = name, %error, samples, "profiles were not sent");
                troubles.push(format!("{name}: {error}"));
            }
        }
        let status = if troubles.is_empty() {
            Status::Healthy
        } else {
            Status::Degraded
        };
        self.health.set_reasons(PART, status, troubles);
    }
}

impl Server {
    /// Sends a batch; what could not be sent is told with its samples and the reason.
    async fn send(&self, batch: &Batch) -> Vec<(u64, PushError)> {
        let samples = |profiles: &[ServiceProfile]| -> u64 {
            profiles.iter().map(|profile| profile.samples).sum()
        };
        let mut unsent = Vec::new();
        match self {
            Self::Parca(server) => {
                if let Err(error) = patiently(|| server.send(batch)).await {
                    unsent.push((samples(&batch.profiles), error));
                }
            }
            // A message a service: what is refused of one is no reason to send another again.
            Self::Pyroscope(server) => {
                for (at, profile) in batch.profiles.iter().enumerate() {
                    match patiently(|| server.send(batch, profile)).await {
                        Ok(()) => {}
                        Err(error @ PushError::Unavailable(_)) => {
                            unsent.push((samples(&batch.profiles[at..]), error));
                            break;
                        }
                        Err(error) => unsent.push((profile.samples, error)),
                    }
                }
            }
        }
        unsent
    }
}

/// Tries again, after longer and longer pauses, while the server is not available.
async fn patiently<F>(mut send: impl FnMut() -> F) -> Result<(), PushError>
where
    F: Future<Output = Result<(), PushError>>,
{
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match send().await {
            Err(PushError::Unavailable(_)) => {}
            done => return done,
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    send().await
}

impl Batch {
    fn of(profile: &Profile, host_name: Arc<str>) -> io::Result<Self> {
        let services: BTreeSet<_> = profile
            .samples
            .iter()
            .map(|sample| &sample.service)
            .collect();
        let profiles = services.into_iter().map(|service| {
            let of_service = profile.subset(|sample| sample.service == *service);
            Ok(ServiceProfile {
                service: Arc::clone(service),
                samples: of_service.sample_count(),
                pprof: pprof::encode(&of_service)?,
            })
        });
        Ok(Self {
            began: profile.started,
            duration: profile.duration,
            hz: (1e9 / profile.period_ns as f64).round() as u32,
            host_name,
            profiles: profiles.collect::<io::Result<_>>()?,
        })
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use ::pprof::protos::{self, Message as _};

    use super::*;
    use crate::sink::profile_fixture::profile;

    #[test]
    fn each_service_has_a_profile_of_its_own() {
        let mut profile = profile();
        profile.samples[1].service = "store".into();
        let batch = Batch::of(&profile, "host".into()).unwrap();
        let told: Vec<_> = batch
            .profiles
            .iter()
            .map(|profile| (&*profile.service, profile.samples))
            .collect();
        assert_eq!(told, [("shop", 3), ("store", 1)]);
        assert_eq!(batch.hz, 100);
        let mut message = Vec::new();
        flate2::read::GzDecoder::new(batch.profiles[1].pprof.as_slice())
            .read_to_end(&mut message)
            .unwrap();
        let decoded = protos::Profile::decode(message.as_slice()).unwrap();
        assert_eq!((decoded.sample.len(), decoded.location.len()), (1, 2));
        assert!(!decoded.string_table.iter().any(|text| text == "shop"));
    }
}
