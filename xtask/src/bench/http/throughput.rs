//! nginx under wrk: throughput, time in kernel programs, the agent's own time, and the counts.

use std::collections::BTreeMap;
use std::thread;

use anyhow::Result;

use super::Setting;
use super::nginx::{CLIENT, Nginx, STATUS_PATH, Target};
use super::wrk::WrkResult;
use crate::bench::agent::{Agent, Settled, rest};
use crate::bench::figure::{Figure, Reach};
use crate::bench::pairs::{Ratios, in_turn, median};

const SERVER: &str = "bench-nginx";

const CONNECTIONS: u32 = 32;

/// Runs whose kernel time is measured: apart from the others, since the kernel's measuring of each
/// run of a program costs throughput.
const MEASURED_RUNS: u32 = 3;
const MEASURED: [&str; 2] = ["off", "always"];

/// Of the time, arrivals are watched for so much by default.
const WATCHED: f64 = 1.0 / 7.0;

/// Seconds of the load on all processors.
const ALL_SECONDS: u32 = 3;

/// What a run with the agent showed.
struct Observed {
    load: WrkResult,
    /// In the run that counts and in the one before it.
    agent_seconds: f64,
    /// Exchanges that the agent counted, at either side.
    counted: u64,
    /// How far these are from what was served and received.
    miscounted: u64,
    losses: BTreeMap<String, u64>,
    unaccounted: f64,
    programs_ns: f64,
}

/// Throughput with the agent and without, and what the agent did for it.
///
/// # Errors
/// When the agent or nginx does not start or answer.
pub(super) fn measure(setting: &Setting, target: Target) -> Result<Vec<Figure>> {
    let nginx = Nginx::start(SERVER, &setting.processors.server)?;
    let load = |seconds| nginx.load(target, &setting.processors.load, CONNECTIONS, seconds);
    // Caches and the processor's clock settle.
    load(1)?;
    let observed = |config: &str| -> Result<Observed> {
        let agent = Agent::start(&setting.agent, &setting.processors.agent, config)?.past_samples();
        let served_before = nginx.requests()?;
        let cpu_before = agent.cpu_seconds()?;
        let received_before = load(setting.seconds)?.requests;
        let load = load(setting.seconds)?;
        let received = received_before + load.requests;
        let agent_seconds = agent.cpu_seconds()? - cpu_before;
        // nginx counts the request for its status too.
        let served = nginx.requests()? - served_before - 1;
        let settled = agent.settled()?;
        agent.stop()?;
        Ok(Observed::of(
            load,
            agent_seconds,
            [served, received],
            &settled,
        ))
    };
    let pairs = in_turn(
        setting.pairs,
        || {
            rest();
            load(setting.seconds)?;
            load(setting.seconds)
        },
        || {
            let observed = observed("")?;
            eprintln!(
                "nginx, {target}: {:.0} requests/s",
                observed.load.per_second()
            );
            Ok(observed)
        },
    )?;
    let mut us_a_side = [0.0; MEASURED.len()];
    for (us, queue_time) in us_a_side.iter_mut().zip(MEASURED) {
        let config = format!(
            "{{metrics: {{program_statistics: always}}, http: {{queue_time: {queue_time}}}}}"
        );
        let mut measured = Vec::new();
        for _ in 0..MEASURED_RUNS {
            let observed = observed(&config)?;
            measured.push(observed.programs_ns / observed.counted.max(1) as f64 / 1e3);
        }
        *us = median(measured.into_iter());
    }
    let [mostly_us, watched_us] = us_a_side;
    let mean_us = mostly_us + (watched_us - mostly_us) * WATCHED;

    let each = || pairs.iter().map(|pair| (pair.without, &pair.with));
    let ratios =
        Ratios::of(each().map(|(without, with)| (without.per_second(), with.load.per_second())));
    let without = median(each().map(|(without, _)| without.per_second()));
    let with = median(each().map(|(_, with)| with.load.per_second()));
    let p99_us = (
        median(each().map(|(without, _)| without.p99_us)),
        median(each().map(|(_, with)| with.load.p99_us)),
    );
    let per_million =
        median(each().map(|(_, with)| with.agent_seconds / (with.counted.max(1) as f64 / 1e6)));
    let observed = || each().map(|(_, with)| with);
    Ok(vec![
        Figure::new(
            format!("nginx, one worker, {target}, {CONNECTIONS} connections: throughput on/off"),
            ratios.median,
            "",
            format!(
                "{ratios}: {without:.0} → {with:.0} requests/s, p99 {:.0} → {:.0} µs",
                p99_us.0, p99_us.1
            ),
        )
        .reach(Reach::AtLeast(0.96)),
        Figure::new(
            "the same: kernel time a request and side",
            mean_us,
            "µs",
            format!(
                "{mean_us:.2} µs: {mostly_us:.2}, and {watched_us:.2} while arrivals are watched, \
                 one second in seven"
            ),
        )
        .reach(Reach::AtMost(1.0)),
        Figure::new(
            "the same: the agent's CPU a million exchanges",
            per_million,
            "s",
            format!("{per_million:.2} s"),
        )
        .reach(Reach::AtMost(5.0)),
        accounts("the same", observed()),
    ])
}

/// As many servers and loads as there are processors, the agent wherever it finds one.
///
/// # Errors
/// When the agent or nginx does not start or answer.
pub(super) fn on_all_processors(setting: &Setting) -> Result<Vec<Figure>> {
    let count = setting.processors.count;
    let places: Vec<_> = (0..count / 2)
        .map(|place| {
            let server = (2 * place).to_string();
            Ok((Nginx::start(SERVER, &server)?, (2 * place + 1).to_string()))
        })
        .collect::<Result<_>>()?;
    let all = format!("0-{}", count - 1);
    let agent = Agent::start(&setting.agent, &all, "")?;
    let served = || -> Result<u64> {
        let served = places.iter().map(|(nginx, _)| nginx.requests());
        served.sum()
    };
    let served_before = served()?;
    let cpu_before = agent.cpu_seconds()?;
    let loads: Vec<WrkResult> = thread::scope(|scope| {
        let loads: Vec<_> = places
            .iter()
            .map(|(nginx, processor)| {
                scope.spawn(move || nginx.load(Target::Return, processor, CONNECTIONS, ALL_SECONDS))
            })
            .collect();
        loads
            .into_iter()
            .map(|load| load.join().expect("a load does not panic"))
            .collect::<Result<_>>()
    })?;
    let agent_seconds = agent.cpu_seconds()? - cpu_before;
    let served = served()? - served_before - places.len() as u64;
    let settled = agent.settled()?;
    agent.stop()?;
    let load = WrkResult::sum(&loads);
    let requests = [served, load.requests];
    let observed = Observed::of(load, agent_seconds, requests, &settled);
    Ok(vec![accounts(
        &format!("{} nginx and wrk on all {count} CPUs", places.len()),
        std::iter::once(&observed),
    )])
}

impl Observed {
    fn of(
        load: WrkResult,
        agent_seconds: f64,
        [served, received]: [u64; 2],
        settled: &Settled,
    ) -> Self {
        // nginx served all that it read; wrk leaves the last requests without reading the answer.
        let at_server = settled.at_server(SERVER, STATUS_PATH);
        let at_client = settled.at_client(CLIENT);
        Self {
            load,
            agent_seconds,
            counted: at_server + at_client,
            miscounted: at_server.abs_diff(served) + at_client.abs_diff(received),
            losses: settled.losses.clone(),
            unaccounted: settled.unaccounted(),
            programs_ns: settled.programs_ns(),
        }
    }
}

/// Exchanges that are lost or counted wrong, at the highest rate of some runs.
fn accounts<'a>(what: &str, runs: impl Iterator<Item = &'a Observed> + Clone) -> Figure {
    let rate = runs.clone().map(|run| 2.0 * run.load.per_second());
    let rate = rate.fold(0.0, f64::max);
    let counted: u64 = runs.clone().map(|run| run.counted).sum();
    let miscounted: u64 = runs.clone().map(|run| run.miscounted).sum();
    let unaccounted: f64 = runs.clone().map(|run| run.unaccounted).sum();
    let mut losses = BTreeMap::new();
    for (labels, count) in runs.flat_map(|run| &run.losses) {
        *losses.entry(labels.as_str()).or_insert(0) += count;
    }
    let lost: u64 = losses.values().sum();
    let mut shown = format!(
        "{lost} lost, {miscounted} miscounted, {unaccounted:.0} unaccounted of {counted}, at up to \
         {rate:.0} exchanges/s",
    );
    for (labels, count) in losses {
        shown += &format!("; {count} {labels}");
    }
    let wrong = lost as f64 + miscounted as f64 + unaccounted;
    Figure::new(format!("{what}: losses and the identity"), wrong, "", shown)
        .reach(Reach::Exactly(0.0))
}
