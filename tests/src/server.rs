//! Real servers with a known set of routes. Each writes a line a request, its own truth.
//!
//! The application servers share their routes: `GET|HEAD|DELETE /items/{id}` (200, 422 with
//! `?limit=many`, 204), `POST /items` (201), `GET /get_complete_tree/{id}` (chunked),
//! `GET /cached` (200, 304), `GET /fail` (500), `GET /sleep/{milliseconds}`; else 404.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::child::{Child, free_port};
use crate::load::Key;
use crate::prerequisite;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The service name that the agent should give it; unlike any other on the machine.
    pub service: String,
    child: Child,
    log: PathBuf,
}

/// What a server says about one request.
#[derive(Clone, Debug)]
pub struct HandlerLine {
    /// Method.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Status code.
    pub status: u16,
    /// Time in the handler, which lies within the time on the wire.
    pub seconds: f64,
    /// The process that answered.
    pub pid: u32,
}

/// What nginx does beside its static files (`/files/`, in `folder()/files`) and its returns
/// (`/return` 200, `/empty` 204, `/teapot` 418, `/broken` 500, `/moved` 301), and what costs it time:
/// `/a/{id}` compresses the file `large`, `/b/{id}` matches an expression for long.
#[derive(Clone, Copy, Debug, Default)]
pub struct NginxOptions<'a> {
    /// Passes every other path on to this upstream: `127.0.0.1:8000`, `unix:/path`.
    pub proxy_to: Option<&'a str>,
}

impl Server {
    /// uvicorn with the FastAPI application, one process.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn uvicorn() -> Result<Self> {
        Self::start("uvicorn", |place| uvicorn_command("fastapi_app:api", place))
    }

    /// gunicorn with the Flask application: two worker processes of four threads each.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn gunicorn() -> Result<Self> {
        Self::start("gunicorn", |place| {
            gunicorn_command(&format!("127.0.0.1:{}", place.port))
        })
    }

    /// The same on a Unix socket, with nginx in front; returns nginx first.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn gunicorn_behind_nginx() -> Result<(Self, Self)> {
        let folder = tempfile::tempdir()?;
        let socket = format!("unix:{}", folder.path().join("socket").display());
        let place = Place {
            port: 0,
            log: folder.path().join("requests.log"),
        };
        let service = unique_name("gunicorn-unix", std::process::id());
        let command = with_environment(gunicorn_command(&socket)?, &service, &place);
        let path = folder.path().join("socket");
        let mut child = Child::spawn("gunicorn", command, folder)?;
        child.wait_until(START_TIMEOUT, || path.exists())?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let gunicorn = Self {
            address,
            service,
            child,
            log: place.log,
        };
        let nginx = Self::nginx(NginxOptions {
            proxy_to: Some(&socket),
        })?;
        Ok((nginx, gunicorn))
    }

    /// gunicorn with the application of `requests_app.py`: one worker process, of one thread or several.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn gunicorn_requests(threads: u32) -> Result<Self> {
        Self::start("gunicorn-requests", |place| {
            let mut command = Command::new(prerequisite::python("gunicorn")?);
            command.args(["requests_app:wsgi", "--no-control-socket"]);
            command.args(["--bind", &format!("127.0.0.1:{}", place.port)]);
            command.args(["--workers", "1", "--threads", &threads.to_string()]);
            Ok(command)
        })
    }

    /// gunicorn with the application of `search_requests_app.py`, which asks a cluster; one worker process,
    /// of one thread or several.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn gunicorn_search_requests(cluster: SocketAddr, threads: u32) -> Result<Self> {
        Self::start("gunicorn-search", |place| {
            let mut command = Command::new(prerequisite::python("gunicorn")?);
            command.args(["search_requests_app:wsgi", "--no-control-socket"]);
            command.args(["--bind", &format!("127.0.0.1:{}", place.port)]);
            command.args(["--workers", "1", "--threads", &threads.to_string()]);
            command.env("SEARCH_URL", format!("http://{cluster}"));
            Ok(command)
        })
    }

    /// uvicorn with the application of `requests_app.py`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn uvicorn_requests() -> Result<Self> {
        Self::start("uvicorn-requests", |place| {
            uvicorn_command("requests_app:asgi", place)
        })
    }

    /// Node with the Express application.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn express() -> Result<Self> {
        Self::start("express", |_| {
            let mut command = Command::new(prerequisite::on_path("node")?);
            command.arg(prerequisite::workload("express_app.js"));
            command.env("NODE_PATH", prerequisite::node_modules("express")?);
            Ok(command)
        })
    }

    /// Node with the Express application of `requests_app.js`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn express_requests() -> Result<Self> {
        Self::start("express-requests", |_| {
            let mut command = Command::new(prerequisite::on_path("node")?);
            command.arg(prerequisite::workload("requests_app.js"));
            command.env("NODE_PATH", prerequisite::node_modules("express")?);
            Ok(command)
        })
    }

    /// The JDK's HTTP server with the handlers of `RequestsApp.java`, on so many threads.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn java_requests(threads: u32) -> Result<Self> {
        Self::start("java-requests", |place| {
            let mut command = Command::new(prerequisite::on_path("java")?);
            // Code that is compiled once and stays where a list says that it is.
            command.args(["-XX:+PreserveFramePointer", "-XX:TieredStopAtLevel=1"]);
            command.arg("-XX:CompileCommand=quiet");
            command.arg("-XX:CompileCommand=dontinline,RequestsApp::spend*");
            // Else each answer waits for an acknowledgement that the client delays.
            command.arg("-Dsun.net.httpserver.nodelay=true");
            command.arg(prerequisite::workload("RequestsApp.java"));
            command.args([place.port.to_string(), threads.to_string()]);
            Ok(command)
        })
    }

    /// Go's `net/http` with the handlers of `requests_app.go`.
    ///
    /// # Errors
    /// When it can't be built, or does not come up.
    pub fn go_requests() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let program = folder.path().join("requests_app");
        let status = Command::new(prerequisite::on_path("go")?)
            .args(["build", "-o"])
            .arg(&program)
            .arg(prerequisite::workload("requests_app.go"))
            .status()?;
        ensure!(status.success(), "go build: {status}");
        Self::start("go-requests", |place| {
            let mut command = Command::new(&program);
            command.arg(place.port.to_string());
            Ok(command)
        })
    }

    /// The axum application; `binary` is `env!("CARGO_BIN_EXE_axum_server")`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn axum(binary: &str) -> Result<Self> {
        Self::start("axum", |place| {
            let mut command = Command::new(binary);
            command.arg(place.port.to_string()).arg(&place.log);
            Ok(command)
        })
    }

    /// nginx with one worker.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn nginx(options: NginxOptions<'_>) -> Result<Self> {
        match options.proxy_to {
            Some(server) => Self::nginx_with(server, "/", ""),
            None => Self::nginx_with("", "", ""),
        }
    }

    /// Apache with the processes of its prefork module, of which each takes connections from the
    /// listening socket that all have inherited. Files as nginx, below `/`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn apache() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // Its processes are nobody's.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        std::fs::create_dir(folder.path().join("files"))?;
        let place = Place {
            port: free_port()?,
            log: folder.path().join("requests.log"),
        };
        let service = unique_name("apache", u32::from(place.port));
        let config = std::fs::read_to_string(prerequisite::workload("apache.conf"))?
            .replace("@FOLDER@", &folder.path().display().to_string())
            .replace("@PORT@", &place.port.to_string());
        let config_path = folder.path().join("apache.conf");
        std::fs::write(&config_path, config)?;
        let mut command = Command::new(prerequisite::on_path("apache2")?);
        command.args(["-D", "FOREGROUND", "-f"]).arg(config_path);
        let command = with_environment(command, &service, &place);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.port));
        let mut child = Child::spawn("apache", command, folder)?;
        child.wait_for_port(address, START_TIMEOUT)?;
        Ok(Self {
            address,
            service,
            child,
            log: place.log,
        })
    }

    /// nginx that has a cluster's API behind `/es`, and passes it on without; answers trickle from there
    /// at half a megabyte a second.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn nginx_before_cluster(cluster: SocketAddr) -> Result<Self> {
        Self::nginx_with(&cluster.to_string(), "/es/", "/")
    }

    /// Passes what is below `location` on to `upstream`, below `path` there; nothing where that is
    /// empty.
    fn nginx_with(upstream: &str, location: &str, path: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let service = unique_name("nginx", u32::from(port));
        // nginx writes its title over its environment, so that only the executable names it.
        let binary = folder.path().join(&service);
        std::fs::copy(prerequisite::on_path("nginx")?, &binary)?;
        std::fs::create_dir(folder.path().join("files"))?;
        let limit = if path.is_empty() {
            ""
        } else {
            "limit_rate 512k; "
        };
        let (upstream, proxy) = if upstream.is_empty() {
            (String::new(), String::new())
        } else {
            (
                format!("upstream application {{ server {upstream}; keepalive 8; }}"),
                format!(
                    "location {location} {{ {limit}proxy_pass http://application{path}; \
                     proxy_http_version 1.1; proxy_set_header Connection \"\"; }}"
                ),
            )
        };
        let config = std::fs::read_to_string(prerequisite::workload("nginx.conf"))?
            .replace("@FOLDER@", &folder.path().display().to_string())
            .replace("@PORT@", &port.to_string())
            .replace("@UPSTREAM@", &upstream)
            .replace("@PROXY@", &proxy);
        let config_path = folder.path().join("nginx.conf");
        std::fs::write(&config_path, config)?;
        let log = folder.path().join("requests.log");
        let mut command = Command::new(binary);
        command
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(config_path);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut child = Child::spawn("nginx", command, folder)?;
        child.wait_for_port(address, START_TIMEOUT)?;
        Ok(Self {
            address,
            service,
            child,
            log,
        })
    }

    /// A folder that lives as long as the server.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.child.folder()
    }

    /// Process id of the (main) process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Kills the (main) process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill(&self) -> Result<()> {
        self.child.signal(Signal::KILL)
    }

    /// The server's own account of its requests so far.
    ///
    /// # Errors
    /// When a line of it is not whole.
    pub fn handler_lines(&self) -> Result<Vec<HandlerLine>> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines()
            .map(|line| parse_line(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// [`Self::handler_lines`] as count and seconds by key; what looks like an identifier in the
    /// path is `{id}`.
    ///
    /// # Errors
    /// As [`Self::handler_lines`].
    pub fn handler_tally(&self) -> Result<BTreeMap<Key, (u64, f64)>> {
        let mut tally: BTreeMap<_, (u64, f64)> = BTreeMap::new();
        for line in self.handler_lines()? {
            let key = [line.method, route_of(&line.path), line.status.to_string()];
            let entry = tally.entry(key).or_default();
            entry.0 += 1;
            entry.1 += line.seconds;
        }
        Ok(tally)
    }

    fn start(name: &str, command: impl FnOnce(&Place) -> Result<Command>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let place = Place {
            port: free_port()?,
            log: folder.path().join("requests.log"),
        };
        let service = unique_name(name, u32::from(place.port));
        let command = with_environment(command(&place)?, &service, &place);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.port));
        let mut child = Child::spawn(name, command, folder)?;
        child.wait_for_port(address, START_TIMEOUT)?;
        Ok(Self {
            address,
            service,
            child,
            log: place.log,
        })
    }
}

struct Place {
    port: u16,
    log: PathBuf,
}

fn unique_name(name: &str, number: u32) -> String {
    format!("e2e-{name}-{number}")
}

fn with_environment(mut command: Command, service: &str, place: &Place) -> Command {
    command
        .env("OTEL_SERVICE_NAME", service)
        .env("TELLTALE_TEST_LOG", &place.log)
        .env("PORT", place.port.to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(prerequisite::workload(""));
    command
}

/// uvicorn with an application of `workloads`.
fn uvicorn_command(application: &str, place: &Place) -> Result<Command> {
    let mut command = Command::new(prerequisite::python("uvicorn")?);
    command.args([application, "--no-access-log", "--log-level", "warning"]);
    command.args(["--host", "127.0.0.1", "--port", &place.port.to_string()]);
    Ok(command)
}

fn gunicorn_command(bind: &str) -> Result<Command> {
    let mut command = Command::new(prerequisite::python("gunicorn")?);
    command.args(["flask_app:api", "--bind", bind, "--log-level", "warning"]);
    command.args([
        "--worker-class",
        "gthread",
        "--workers",
        "2",
        "--threads",
        "4",
    ]);
    command.args(["--no-control-socket"]);
    Ok(command)
}

fn parse_line(line: &str) -> Result<HandlerLine> {
    let value: serde_json::Value = serde_json::from_str(line)?;
    let text = |key: &str| {
        value[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| key.to_owned())
    };
    Ok(HandlerLine {
        method: text("method")?,
        path: text("path")?,
        status: u16::try_from(value["status"].as_u64().context("status")?)?,
        seconds: value["seconds"].as_f64().context("seconds")?,
        pid: u32::try_from(value["pid"].as_u64().context("pid")?)?,
    })
}

/// Identifiers of the workloads are numbers and UUIDs.
fn route_of(path: &str) -> String {
    let template = |segment: &str| {
        let number = !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit());
        let uuid = segment.len() == 36 && segment.matches('-').count() == 4;
        if number || uuid {
            "{id}".to_owned()
        } else {
            segment.to_owned()
        }
    };
    path.split('/').map(template).collect::<Vec<_>>().join("/")
}
