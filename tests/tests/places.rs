//! Where servers run: in processes that inherit the listening socket, behind another network, in a
//! container.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::accounts::{EXPORT_DELAY, Side, check_body_sizes, check_counts, check_exported};
use e2e::network::End;
use e2e::traces::Traces;
use e2e::{
    Agent, Child, Client, Load, Network, Request, Server, Tally, eventually, free_port,
    prerequisite,
};
use serde_json::{Value, json};

const AXUM: &str = env!("CARGO_BIN_EXE_axum_server");

/// The processes that the agent knows under a service's name.
fn targets(agent: &Agent, service: &str) -> Result<Vec<Value>> {
    let targets: Value = serde_json::from_str(&agent.get("/targets")?.text())?;
    let targets = targets["targets"].as_array().context("a list")?.iter();
    Ok(targets
        .filter(|target| target["service"] == service)
        .cloned()
        .collect())
}

#[test]
fn processes_that_inherit_the_listener_are_one_service() -> Result<()> {
    let agent = Agent::start()?;
    let apache = Server::apache()?;
    std::fs::write(
        apache.folder().join("files/hello.txt"),
        "hello\n".repeat(2000),
    )?;
    let plan = vec![
        (Request::new("GET", "/hello.txt"), "/hello.txt"),
        (Request::new("HEAD", "/hello.txt"), "/hello.txt"),
        (Request::new("GET", "/none"), "/none"),
        (Request::new("OPTIONS", "/hello.txt"), "/hello.txt"),
    ];
    let load = Load {
        address: apache.address,
        connections: 4,
        rounds: 50,
        plan: plan.clone(),
    };
    let mut tally = load.run()?;
    // A connection each: whichever process is first takes it.
    for (request, route) in plan.iter().cycle().take(100) {
        tally.add(request, route, &Client::once(apache.address, request)?);
    }
    check_apache(&agent, &apache, &tally)
}

fn check_apache(agent: &Agent, apache: &Server, tally: &Tally) -> Result<()> {
    let counts = eventually(EXPORT_DELAY, || {
        let handled = apache.handler_tally()?;
        let counts = handled
            .into_iter()
            .map(|(key, (count, _))| (key, count))
            .collect();
        check_counts("the server's account", &counts, &tally.counts())?;
        Ok(counts)
    })?;
    check_exported(agent, Side::Client(apache), &counts)?;
    let metrics = check_exported(agent, Side::Server(apache), &counts)?;
    check_body_sizes(&metrics, apache, tally)?;
    let answered: BTreeSet<_> = apache
        .handler_lines()?
        .into_iter()
        .map(|line| line.pid)
        .collect();
    ensure!(answered.len() > 1, "{answered:?} answered");
    let known: BTreeSet<_> = targets(agent, &apache.service)?
        .iter()
        .filter_map(|target| u32::try_from(target["pid"].as_u64()?).ok())
        .collect();
    ensure!(
        known.is_superset(&answered),
        "{answered:?} answered, {known:?} are known"
    );
    Ok(())
}

#[test]
fn servers_of_another_network_are_seen_with_their_addresses() -> Result<()> {
    let agent = Agent::start()?;
    let network = Network::new()?;
    let port = free_port()?;
    let service = format!("e2e-far-{port}");
    let folder = tempfile::tempdir()?;
    let mut python = Command::new(prerequisite::on_path("ip")?);
    python
        .args(["netns", "exec", &network.namespace(End::Far)])
        .arg(prerequisite::python("python")?)
        .args(["-m", "http.server", "--bind", "10.99.0.2", "--directory"])
        .arg(folder.path())
        .arg(port.to_string())
        .env("OTEL_SERVICE_NAME", &service);
    let mut python = Child::spawn("http.server", python, tempfile::tempdir()?)?;
    let address = SocketAddr::from((End::Far.address(), port));
    python.wait_until(Duration::from_secs(10), || {
        network.connect(End::Near, address).is_ok()
    })?;
    for _ in 0..20 {
        let mut client = Client::over(network.connect(End::Near, address)?)?;
        ensure!(client.send(&Request::new("GET", "/far"))?.status == 404);
    }
    eventually(EXPORT_DELAY, || {
        let metrics = agent.metrics()?;
        let of_server = [("service_name", service.as_str()), ("http_route", "/far")];
        let server = metrics.sum("http_server_request_duration_seconds_count", &of_server);
        let port = port.to_string();
        let of_client = [("url_template", "/far"), ("server_port", &port)];
        let client = metrics.sum("http_client_request_duration_seconds_count", &of_client);
        ensure!(
            server == 20.0 && client == 20.0,
            "{server} and {client} of 20"
        );
        Ok(())
    })?;
    let targets = targets(&agent, &service)?;
    ensure!(
        targets.len() == 1 && targets[0]["ports"] == json!([port]),
        "{targets:?}"
    );
    Ok(())
}

/// A bundle as runc wants it: the host's programs, read only; namespaces of its own but for the
/// network.
fn bundle(folder: &Path, id: &str, arguments: &[&str], environment: &[String]) -> Result<()> {
    std::fs::create_dir(folder.join("rootfs"))?;
    let spec = Command::new(prerequisite::on_path("runc")?)
        .args(["spec", "--bundle"])
        .arg(folder)
        .status()?;
    ensure!(spec.success(), "runc spec: {spec}");
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = json!(arguments);
    config["process"]["env"] = json!(environment);
    config["process"]["rlimits"] = json!([]);
    config["hostname"] = "e2e-container".into();
    config["linux"]["cgroupsPath"] = format!("/docker/{id}").into();
    let namespaces = config["linux"]["namespaces"]
        .as_array_mut()
        .context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "network");
    let mounts = config["mounts"].as_array_mut().context("mounts")?;
    mounts.retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup");
    let bound = |from: &Path, to: &str, option: &str| {
        json!({
            "destination": to, "source": from, "type": "none",
            "options": ["rbind", option],
        })
    };
    for path in ["/usr", "/lib", "/lib64", "/bin"] {
        let path = Path::new(path);
        if path.exists() {
            mounts.push(bound(
                &path.canonicalize()?,
                &path.display().to_string(),
                "ro",
            ));
        }
    }
    mounts.push(bound(
        Path::new(AXUM).parent().context("a folder")?,
        "/app",
        "ro",
    ));
    mounts.push(bound(&prerequisite::workload(""), "/workloads", "ro"));
    std::fs::create_dir(folder.join("logs"))?;
    mounts.push(bound(&folder.join("logs"), "/logs", "rw"));
    Ok(std::fs::write(path, serde_json::to_vec(&config)?)?)
}

/// Ends with the value, and its control groups with it.
struct Container {
    folder: tempfile::TempDir,
    id: String,
}

impl Container {
    /// Runs a program in it, with the service's name in its environment.
    fn start(
        id: String,
        service: &str,
        arguments: &[&str],
        own: &[(&Path, &str)],
    ) -> Result<(Self, Child)> {
        let folder = tempfile::tempdir()?;
        let environment = [
            format!("OTEL_SERVICE_NAME={service}"),
            "PATH=/usr/bin".to_owned(),
        ];
        bundle(folder.path(), &id, arguments, &environment)?;
        for (from, to) in own {
            let to = folder.path().join("rootfs").join(to);
            std::fs::create_dir_all(to.parent().context("a folder")?)?;
            std::fs::copy(from, to)?;
        }
        let container = Self { folder, id };
        let mut runc = container.runc()?;
        runc.args(["run", "--bundle"])
            .arg(container.folder.path())
            .arg(&container.id);
        let runc = Child::spawn("runc", runc, tempfile::tempdir()?)?;
        Ok((container, runc))
    }

    fn runc(&self) -> Result<Command> {
        let mut command = Command::new(prerequisite::on_path("runc")?);
        command.arg("--root").arg(self.folder.path().join("state"));
        Ok(command)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Ok(mut runc) = self.runc() {
            let _ = runc.args(["delete", "--force", &self.id]).status();
        }
    }
}

#[test]
fn a_server_in_a_container_is_seen_with_its_id() -> Result<()> {
    let agent = Agent::start()?;
    let port = free_port()?;
    let service = format!("e2e-contained-{port}");
    let program = format!(
        "/app/{}",
        Path::new(AXUM).file_name().context("a name")?.display()
    );
    let arguments = [&*program, &port.to_string(), "/logs/requests.log"];
    let (container, mut runc) =
        Container::start(format!("{port:064x}"), &service, &arguments, &[])?;
    let id = &container.id;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    runc.wait_for_port(address, Duration::from_secs(10))?;
    let mut client = Client::connect(address)?;
    for _ in 0..20 {
        ensure!(client.send(&Request::new("GET", "/items/7"))?.status == 200);
    }
    eventually(EXPORT_DELAY, || {
        let metrics = agent.metrics()?;
        let of_server = [
            ("service_name", service.as_str()),
            ("http_route", "/items/{id}"),
        ];
        let server = metrics.sum("http_server_request_duration_seconds_count", &of_server);
        ensure!(server == 20.0, "{server} of 20");
        Ok(())
    })?;
    let targets = targets(&agent, &service)?;
    ensure!(targets.len() == 1, "{targets:?}");
    ensure!(targets[0]["container"] == **id, "{targets:?}");
    // As the host counts processes: within, it is the first.
    let pid = targets[0]["pid"].as_u64().context("pid")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let within = status.lines().find(|line| line.starts_with("NSpid:"));
    ensure!(
        within.is_some_and(|line| line.ends_with("\t1")),
        "{within:?}"
    );
    // Before runc, whose signal the first process of a namespace would not take.
    drop(container);
    Ok(())
}

/// Debian's interpreter under a path that the host does not have, with the library of the container.
#[test]
fn a_python_program_in_a_container_has_its_names() -> Result<()> {
    let agent = Agent::for_profiles()?;
    let id = format!("{:064x}", free_port()?);
    let python = Path::new("/usr/bin/python3").canonicalize()?;
    let (container, mut runc) = Container::start(
        id.clone(),
        "e2e-contained-python",
        &["/opt/own/python3", "/workloads/split.py", "60"],
        &[(&python, "opt/own/python3")],
    )?;
    let log = runc.folder().join("output.log");
    runc.wait_until(Duration::from_secs(10), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
    })?;
    let profile = |seconds: u32| -> Result<Traces> {
        Traces::of(&agent, &format!("container={id}&seconds={seconds}&hz=499"))
    };
    let whole = |profile: &Traces| profile.count(|trace| trace.unwind == "complete");
    // Until its rows have been read, its stacks are followed by frame pointers.
    eventually(Duration::from_secs(20), || {
        let met = profile(1)?;
        let (whole, total) = (whole(&met), met.count(|_| true));
        ensure!(whole >= 0.99 * total, "{whole} of {total}");
        Ok(())
    })?;
    let profile = profile(4)?;
    let total = profile.count(|_| true);
    let whole = whole(&profile);
    println!("{total} samples, {:?}", profile.outcomes());
    ensure!(
        total >= 500.0 && whole >= 0.99 * total,
        "{whole} of {total}"
    );
    for (name, expected) in [
        ("nest_fifty", 0.5),
        ("nest_thirty", 0.3),
        ("nest_twenty", 0.2),
    ] {
        let share = profile.count(|trace| trace.has(name)) / total;
        ensure!((share - expected).abs() < 0.03, "{name}: {share}");
    }
    // By the path that the container has.
    let of_container = profile.count(|trace| {
        let mut places = trace.places.iter();
        places.any(|place| place.starts_with("/workloads/split.py:"))
    });
    ensure!(of_container >= 0.99 * total, "{of_container} of {total}");
    drop(container);
    Ok(())
}
