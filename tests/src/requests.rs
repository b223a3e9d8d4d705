//! Profiles by request: servers under a load whose routes each spend their time in a function of their
//! own, and which route the samples of that function carry.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agent::Agent;
use crate::client::{Client, Request};
use crate::eventually;
use crate::server::Server;
use crate::traces::{Trace, Traces};

/// A route, and the function that no other route calls.
pub type Route = (&'static str, &'static str);

/// Those of the applications named `requests_app` and of the axum application.
pub const ROUTES: [Route; 2] = [("/a/{id}", "spend_a"), ("/b/{id}", "spend_b")];

/// What a server's stacks count by function and route: samples, or nanoseconds of waiting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Of a route's function with the label of that route.
    pub right: u64,
    /// With another route's.
    pub wrong: u64,
    /// With none.
    pub none: u64,
}

impl Counts {
    /// Of the stacks that have one of the routes' functions.
    #[must_use]
    pub fn of(traces: &Traces, routes: &[Route]) -> Self {
        let mut counts = Self::default();
        for trace in &traces.traces {
            let Some((route, _)) = routes.iter().find(|(_, name)| calls(trace, name)) else {
                continue;
            };
            let count = match &*trace.route {
                "" => &mut counts.none,
                found if found == *route && trace.method == "GET" => &mut counts.right,
                _ => &mut counts.wrong,
            };
            *count += trace.count;
        }
        println!("{counts:?}, {:.4} labelled", counts.labelled());
        counts
    }

    /// The share with the right label.
    #[must_use]
    pub fn labelled(&self) -> f64 {
        self.right as f64 / (self.right + self.wrong + self.none).max(1) as f64
    }
}

/// Does a function of that name stand in the stack? Classes, modules and signatures around it are not
/// looked at.
#[must_use]
pub fn calls(trace: &Trace, function: &str) -> bool {
    let is_it = |name: &String| {
        let mut words = name.split([' ', '.', '(', ':', '*']);
        words.any(|word| word == function)
    };
    trace.functions.iter().any(is_it)
}

/// The first process that the server's own one started, which answers in its place.
///
/// # Errors
/// When there is none for ten seconds.
pub fn worker(server: &Server) -> Result<u32> {
    let pid = server.pid();
    eventually(Duration::from_secs(10), || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let child = children.split_ascii_whitespace().next();
        Ok(child.context("no worker")?.parse()?)
    })
}

/// What `/debug/pprof/{query}` answers.
///
/// # Errors
/// When that is no 200.
pub fn get(agent: &Agent, query: &str) -> Result<Vec<u8>> {
    let began = Instant::now();
    let response = agent.get(&format!("/debug/pprof/{query}"))?;
    println!("{query}: {:?}", began.elapsed());
    let status = response.status;
    ensure!(status == 200, "{query}: {status}: {}", response.text());
    Ok(response.body)
}

/// How requests come.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Paths, asked for in turn with another number behind them each time.
    pub paths: &'a [&'a str],
    /// How many connections send at a time.
    pub connections: usize,
    /// Whether each request has a connection of its own.
    pub closing: bool,
}

impl Load<'_> {
    /// Sends to `server` while `work` goes on.
    ///
    /// # Errors
    /// Those of `work`, and when an answer is no 200.
    pub fn during<T>(&self, server: &Server, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let stop = AtomicBool::new(false);
        let number = AtomicU64::new(1);
        let connection = || -> Result<u64> {
            let mut client = None;
            let mut answers = 0;
            while !stop.load(Relaxed) {
                let number = number.fetch_add(1, Relaxed);
                let path = self.paths[number as usize % self.paths.len()];
                let request =
                    Request::new("GET", format!("{path}/{number}")).header("Accept-Encoding: gzip");
                let response = if self.closing {
                    Client::once(server.address, &request.header("Connection: close"))?
                } else {
                    if client.is_none() {
                        client = Some(Client::connect(server.address)?);
                    }
                    client.as_mut().context("a client")?.send(&request)?
                };
                ensure!(response.status == 200, "{}", response.text());
                answers += 1;
            }
            Ok(answers)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.connections)
                .map(|_| scope.spawn(connection))
                .collect();
            let done = work();
            stop.store(true, Relaxed);
            let mut answers = 0;
            for thread in threads {
                answers += thread.join().expect("no panic")?;
            }
            println!("{answers} answers");
            done
        })
    }
}
