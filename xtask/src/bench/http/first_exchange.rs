//! How long after a new process's first exchange /metrics tells of it.
//!
//! A process nobody has seen is started; as soon as it accepts, one exchange is made. From the
//! client's read of the answer's last byte on, /metrics is asked again and again: the exchange is
//! seen when an answer holds its series under the new service's name, and the time to the end of
//! that answer counts, scrape included.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Setting;
use super::nginx::{Nginx, Target};
use crate::bench::agent::Agent;
use crate::bench::exposition::{label, total};
use crate::bench::figure::{Figure, Reach};
use crate::bench::pairs::{median, quantile};
use crate::bench::server::KeptAlive;

const PROCESSES: usize = 50;
const GIVE_UP: Duration = Duration::from_secs(5);

/// # Errors
/// When the agent or a server does not start, or an exchange is never seen.
pub(super) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let agent = Agent::start(&setting.agent, &setting.processors.agent, "")?;
    let mut delays_ms = (0..PROCESSES)
        .map(|number| {
            let service = format!("bench-first-{number:02}");
            delay_ms(&agent, &service, &setting.processors.server)
        })
        .collect::<Result<Vec<_>>>()?;
    agent.stop()?;
    let middle = median(delays_ms.iter().copied());
    let most = quantile(&mut delays_ms, 1.0).unwrap_or_default();
    let figure = Figure::new(
        format!("first exchange of a new process on /metrics after its end, worst of {PROCESSES}"),
        most,
        "ms",
        format!("{most:.1} ms (median {middle:.1} ms)"),
    );
    Ok(vec![figure.reach(Reach::AtMost(50.0))])
}

fn delay_ms(agent: &Agent, service: &str, processors: &str) -> Result<f64> {
    let nginx = Nginx::launch(service, processors)?;
    let launched = Instant::now();
    let mut connection = loop {
        match KeptAlive::new(nginx.address, Target::Return.path()) {
            Ok(connection) => break connection,
            Err(error) if launched.elapsed() > GIVE_UP => return Err(error),
            Err(_) => thread::yield_now(),
        }
    };
    connection.exchange()?;
    let ended = Instant::now();
    let of_service = label("service_name", service);
    loop {
        let metrics = agent.metrics()?;
        let elapsed = ended.elapsed();
        let seen = total(
            &metrics,
            "http_server_request_duration_seconds_count",
            |labels| labels.contains(&of_service),
        );
        if seen > 0.0 {
            return Ok(elapsed.as_secs_f64() * 1e3);
        }
        if elapsed > GIVE_UP {
            bail!("the first exchange of {service} is never seen");
        }
    }
}
