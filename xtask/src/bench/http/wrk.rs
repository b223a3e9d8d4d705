//! wrk, and what it says.

use anyhow::{Context as _, Result, bail};

/// What wrk says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WrkResult {
    /// Answers that it read.
    pub(super) requests: u64,
    seconds: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl WrkResult {
    /// Answers a second.
    pub(super) fn per_second(&self) -> f64 {
        // Counts of seconds of requests are far below 2^52.
        self.requests as f64 / self.seconds
    }

    /// Of loads side by side.
    pub(super) fn sum(loads: &[Self]) -> Self {
        let most = |of: fn(&Self) -> f64| loads.iter().map(of).fold(0.0, f64::max);
        Self {
            requests: loads.iter().map(|load| load.requests).sum(),
            seconds: most(|load| load.seconds),
            p50_us: most(|load| load.p50_us),
            p99_us: most(|load| load.p99_us),
        }
    }

    /// Reads wrk's report.
    ///
    /// # Errors
    /// When an answer was not 200.
    pub(super) fn parse(report: &str) -> Result<Self> {
        for sign in ["Socket errors:", "Non-2xx"] {
            if report.contains(sign) {
                bail!("not every request was answered with 200");
            }
        }
        let total = report.lines().find(|line| line.contains(" requests in "));
        let total = total.context("no total")?.trim();
        let (requests, rest) = total.split_once(" requests in ").context("no total")?;
        let (seconds, _) = rest.split_once(',').context("no duration")?;
        Ok(Self {
            requests: requests.parse()?,
            seconds: microseconds(seconds)? / 1e6,
            p50_us: percentile(report, "50%")?,
            p99_us: percentile(report, "99%")?,
        })
    }
}

fn percentile(report: &str, name: &str) -> Result<f64> {
    let value = report
        .lines()
        .find_map(|line| line.trim().strip_prefix(name));
    microseconds(
        value
            .with_context(|| format!("no percentile {name}"))?
            .trim(),
    )
}

/// wrk's durations: `612.00us`, `1.20ms`, `3.00s`, `1.02m`.
fn microseconds(text: &str) -> Result<f64> {
    let digits = text
        .find(|c: char| c.is_ascii_alphabetic())
        .context("a duration has a unit")?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => bail!("unknown unit in {text}"),
    };
    Ok(number.parse::<f64>()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
Running 3s test @ http://127.0.0.1:1/return
  2 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   612.35us    1.20ms  20.46ms   95.51%
    Req/Sec    60.51k     3.98k   68.03k    70.00%
  Latency Distribution
     50%  512.00us
     75%  633.00us
     90%    0.98ms
     99%    5.26ms
  361234 requests in 3.10s, 58.22MB read
Requests/sec: 116527.10
Transfer/sec:     18.78MB
";

    #[test]
    fn figures_of_wrk_are_read_in_their_units() {
        let result = WrkResult::parse(REPORT).unwrap();
        assert_eq!((result.requests, result.seconds), (361_234, 3.1));
        assert_eq!((result.p50_us, result.p99_us), (512.0, 5260.0));
        assert_eq!(result.per_second().round(), 116_527.0);
    }

    #[test]
    fn answers_other_than_200_are_an_error() {
        assert!(WrkResult::parse(&format!("{REPORT}  Non-2xx or 3xx responses: 3\n")).is_err());
    }
}
