//! nginx in one process, and wrk on it.

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::wrk::WrkResult;
use crate::bench::processors::pinned;
use crate::bench::server::{Kept, free_address, get, wait_for};
use crate::command::output;
use crate::host;

/// Name of the copy of wrk, and so of the service that the agent tells apart from whatever else
/// this machine does.
pub(super) const CLIENT: &str = "bench-wrk";

/// Where nginx tells how many requests it served.
pub(super) const STATUS_PATH: &str = "/status";

/// Size of the static file: a small answer, so that requests a second are high.
const FILE_BYTES: usize = 1024;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// `return 200`: the least that nginx can do for a request, so the hardest for us.
    Return,
    /// A small file by sendfile.
    File,
}

impl Target {
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Return => "/return",
            Self::File => "/file.txt",
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Return => "`return 200`",
            Self::File => "file of 1 KiB",
        })
    }
}

/// A running nginx.
pub(super) struct Nginx {
    pub(super) address: SocketAddr,
    _child: Kept,
    folder: tempfile::TempDir,
}

impl Nginx {
    /// Starts nginx under this name, which is its service's, on these processors and a free port of
    /// the loopback.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) fn start(name: &str, processors: &str) -> Result<Self> {
        let nginx = Self::launch(name, processors)?;
        wait_for("nginx", || nginx.requests())?;
        Ok(nginx)
    }

    /// The same without waiting until it answers.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn launch(name: &str, processors: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("telltale-bench-")
            .tempdir()?;
        let address = free_address()?;
        fs::write(folder.path().join("file.txt"), "x".repeat(FILE_BYTES))?;
        let root = folder.path().display();
        // One process without a master: nobody is left when it is killed.
        let config = format!(
            "daemon off; master_process off; user root; pid {root}/pid; error_log {root}/error.log;\n\
             events {{ worker_connections 2048; }}\n\
             http {{\n\
               access_log off; sendfile on; tcp_nopush on;\n\
               keepalive_requests 1000000000; keepalive_timeout 1h;\n\
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
        let program = host::find("nginx").context("no nginx here")?;
        let copy = folder.path().join(name);
        // A link where that is possible: what many of them run is in memory once.
        fs::hard_link(&program, &copy).or_else(|_| fs::copy(&program, &copy).map(drop))?;
        let log = File::create(folder.path().join("output.log"))?;
        let child = pinned(processors, copy)
            .arg("-c")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start nginx")?;
        Ok(Self {
            address,
            _child: Kept(child),
            folder,
        })
    }

    /// Requests that nginx has begun to serve since its start, this one for its status included.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn requests(&self) -> Result<u64> {
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
    pub(super) fn load(
        &self,
        target: Target,
        processors: &str,
        connections: u32,
        seconds: u32,
    ) -> Result<WrkResult> {
        let copy = self.folder.path().join(CLIENT);
        if !copy.exists() {
            fs::copy(host::find("wrk").context("no wrk here")?, &copy)?;
        }
        let report = output(
            pinned(processors, copy)
                .args(["--latency", "--threads=1"])
                .arg(format!("--connections={connections}"))
                .arg(format!("--duration={seconds}s"))
                .arg(format!("http://{}{}", self.address, target.path())),
        )?;
        WrkResult::parse(&report).with_context(|| format!("wrk wrote:\n{report}"))
    }
}
