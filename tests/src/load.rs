//! A known number of requests, and what came back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::client::{Client, Request};

/// Requests by (method, route, status), with the sum of the client's own durations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// The exact counts.
    pub counts: BTreeMap<[String; 3], u64>,
    /// Sum of the durations that the client measured.
    pub durations: BTreeMap<[String; 3], Duration>,
}

impl Tally {
    /// Adds one exchange.
    pub fn add(&mut self, method: &str, route: &str, status: u16, duration: Duration) {
        let key = [method.to_owned(), route.to_owned(), status.to_string()];
        *self.counts.entry(key.clone()).or_default() += 1;
        *self.durations.entry(key).or_default() += duration;
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: Self) {
        for (key, count) in other.counts {
            *self.counts.entry(key).or_default() += count;
        }
        for (key, duration) in other.durations {
            *self.durations.entry(key).or_default() += duration;
        }
    }

    /// All requests.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
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
                tally.add(request.method, route, response.status, response.duration);
            }
        }
        Ok(tally)
    }
}
