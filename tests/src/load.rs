//! A known number of requests, and what came back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::client::{Client, Request, Response};

/// Method, route template and status; a status that never came is empty, as in the metrics.
pub type Key = [String; 3];

/// What is known of the requests of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Requests.
    pub count: u64,
    /// Sum of the durations that the client measured.
    pub duration: Duration,
    /// Sum of the request bodies' sizes.
    pub request_bytes: u64,
    /// Sum of the response bodies' sizes, without chunk framing.
    pub response_bytes: u64,
}

/// Exactly what was sent, and how long it took by the client's own clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally(pub BTreeMap<Key, Totals>);

impl Tally {
    /// Adds one exchange.
    pub fn add(&mut self, request: &Request, route: &str, response: &Response) {
        let key = [
            request.method.to_owned(),
            route.to_owned(),
            response.status.to_string(),
        ];
        let totals = self.0.entry(key).or_default();
        totals.count += 1;
        totals.duration += response.duration;
        totals.request_bytes += request.body.len() as u64;
        totals.response_bytes += response.body.len() as u64;
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: Self) {
        for (key, more) in other.0 {
            let totals = self.0.entry(key).or_default();
            totals.count += more.count;
            totals.duration += more.duration;
            totals.request_bytes += more.request_bytes;
            totals.response_bytes += more.response_bytes;
        }
    }

    /// The counts alone.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Key, u64> {
        self.0
            .iter()
            .map(|(key, totals)| (key.clone(), totals.count))
            .collect()
    }

    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().map(|totals| totals.count).sum()
    }
}

/// Keep-alive connections that send a plan of requests in turn.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub address: SocketAddr,
    /// Connections, each on a thread of its own.
    pub connections: usize,
    /// How often each connection goes through the plan.
    pub rounds: usize,
    /// Requests, each with the route template that it belongs to.
    pub plan: Vec<(Request, &'static str)>,
}

impl Load {
    /// Sends `connections × rounds × plan.len()` requests and counts the answers.
    ///
    /// # Errors
    /// The first exchange that failed.
    pub fn run(&self) -> Result<Tally> {
        let connections: Vec<Result<Tally>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.connections)
                .map(|_| scope.spawn(|| self.run_connection()))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(anyhow!("a load thread died")))
                })
                .collect()
        });
        let mut tally = Tally::default();
        for connection in connections {
            tally.merge(connection?);
        }
        Ok(tally)
    }

    fn run_connection(&self) -> Result<Tally> {
        let mut client = Client::connect(self.address)?;
        let mut tally = Tally::default();
        for _ in 0..self.rounds {
            for (request, route) in &self.plan {
                let response = client.send(request)?;
                tally.add(request, route, &response);
            }
        }
        Ok(tally)
    }
}
