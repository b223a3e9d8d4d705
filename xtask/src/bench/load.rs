//! nginx with one worker, and wrk.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Kept;
use crate::command::output;
use crate::host;

/// Names of the copies of both programs, and so of the services that the agent tells apart from
/// whatever else this machine serves.
pub(crate) const SERVER: &str = "bench-nginx";
pub(crate) const CLIENT: &str = "bench-wrk";

/// Where nginx tells how many requests it served.
pub(crate) const STATUS_PATH: &str = "/status";

/// Size of the static file: a small answer, so that requests a second are high.
const FILE_BYTES: usize = 1024;

/// What wrk asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// `return 200`: the least that nginx can do for a request, so the hardest for us.
    Return,
    /// A small file by sendfile.
    File,
}

impl Target {
    pub(crate) const ALL: [Self; 2] = [Self::Return, Self::File];

    fn path(self) -> &'static str {
        match self {
            Self::Return => "/return",
            Self::File => "/file.txt",
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Return => "return 200",
            Self::File => "static file, 1 KiB",
        })
    }
}

/// A running nginx.
pub(crate) struct Nginx {
    address: SocketAddr,
    _child: Kept,
    folder: tempfile::TempDir,
}

impl Nginx {
    /// Starts nginx on these processors and a free port of the loopback.
    ///
    /// # Errors
    /// When it does not answer within five seconds.
    pub(crate) fn start(processors: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("telltale-bench-")
            .tempdir()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        fs::write(folder.path().join("file.txt"), "x".repeat(FILE_BYTES))?;
        let root = folder.path().display();
        // One process without a master: nobody is left when it is killed.
        let config = format!(
            "daemon off; master_process off; user root; pid {root}/pid; error_log {root}/error.log;\n\
             events {{ worker_connections 2048; }}\n\
             http {{\n\
               access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;\n\
               client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
               fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi;\n\
               scgi_temp_path {root}/scgi;\n\
               server {{\n\
                 listen {address} backlog=4096; root {root};\n\
                 location = /return {{ return 200 'ok'; }}\n\
                 location = {STATUS_PATH} {{ stub_status; }}\n\
               }}\n\
             }}\n"
        );
        let path = folder.path().join("nginx.conf");
        fs::write(&path, config)?;
        for (program, copy) in [("nginx", SERVER), ("wrk", CLIENT)] {
            let program = host::find(program).with_context(|| format!("no {program} here"))?;
            fs::copy(program, folder.path().join(copy))?;
        }
        let log = File::create(folder.path().join("output.log"))?;
        let child = Command::new("taskset")
            .args(["--cpu-list", processors])
            .arg(folder.path().join(SERVER))
            .arg("-c")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start nginx")?;
        let nginx = Self {
            address,
            _child: Kept(child),
            folder,
        };
        let start = Instant::now();
        while nginx.requests().is_err() {
            if start.elapsed() > Duration::from_secs(5) {
                bail!("nginx does not answer on {address}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(nginx)
    }

    /// Requests that nginx has begun to serve since its start, this one for its status included.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn requests(&self) -> Result<u64> {
        // `… accepts handled requests`, then their three numbers.
        let status = get(self.address, STATUS_PATH)?;
        let numbers = status
            .lines()
            .nth(2)
            .context("no counters in nginx's status")?;
        let requests = numbers
            .split_whitespace()
            .nth(2)
            .context("no requests in nginx's status")?;
        Ok(requests.parse()?)
    }

    /// Runs wrk for so many seconds.
    ///
    /// # Errors
    /// When it fails or an answer was not 200.
    pub(crate) fn load(
        &self,
        target: Target,
        processors: &str,
        connections: u32,
        seconds: u32,
    ) -> Result<WrkResult> {
        let threads = processors.split(',').count();
        let report = output(
            Command::new("taskset")
                .args(["--cpu-list", processors])
                .arg(self.folder.path().join(CLIENT))
                .arg("--latency")
                .arg(format!("--threads={threads}"))
                .arg(format!("--connections={connections}"))
                .arg(format!("--duration={seconds}s"))
                .arg(format!("http://{}{}", self.address, target.path())),
        )?;
        WrkResult::parse(&report).with_context(|| format!("wrk wrote:\n{report}"))
    }
}

/// What wrk says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct WrkResult {
    /// Answers that it read.
    pub(crate) requests: u64,
    seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

impl WrkResult {
    pub(crate) fn per_second(&self) -> f64 {
        // Counts of seconds of requests are far below 2^52.
        self.requests as f64 / self.seconds
    }

    fn parse(report: &str) -> Result<Self> {
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

/// The body of an answer to GET; HTTP/1.0, so that it is neither chunked nor kept alive.
///
/// # Errors
/// When nobody answers within five seconds, or not with 200.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String> {
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    if head.split_whitespace().nth(1) != Some("200") {
        bail!("GET {path}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
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
