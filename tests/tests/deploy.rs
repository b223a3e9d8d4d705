//! The files in `deploy/`: accepted by the tools that will read them, and true to the agent.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Agent, AgentCommand, Client, Finished, Request, Server, prerequisite};
use serde_json::Value;

const QUICKLY: Duration = Duration::from_secs(20);
/// The version that the manifest is written for; it also has to be valid for later ones.
const KUBERNETES: [&str; 2] = ["1.30", "1.33"];

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name)
}

fn read(name: &str) -> Result<String> {
    std::fs::read_to_string(deploy(name)).with_context(|| name.to_owned())
}

/// Writes what `change` makes of a file of `deploy/`, under the same name.
fn changed(
    name: &str,
    change: impl FnOnce(&str) -> String,
) -> Result<(tempfile::TempDir, PathBuf)> {
    let original = read(name)?;
    let text = change(&original);
    ensure!(text != original, "nothing changed in {name}");
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    std::fs::write(&path, text)?;
    Ok((folder, path))
}

fn text_of(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// The objects of the manifest.
fn manifest() -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple(&read("daemonset.yaml")?)?)
}

fn object<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.with_context(|| format!("no {kind} in the manifest"))
}

/// The capabilities that the DaemonSet adds, `BPF` and so on.
fn capabilities() -> Result<BTreeSet<String>> {
    let objects = manifest()?;
    let added = object(&objects, "DaemonSet")?
        .pointer("/spec/template/spec/containers/0/securityContext/capabilities/add")
        .and_then(Value::as_array)
        .context("no capabilities")?;
    added
        .iter()
        .map(|name| name.as_str().map(str::to_owned).context("not a name"))
        .collect()
}

fn validate(manifest: &Path, version: &str) -> Result<Output> {
    Ok(Command::new(prerequisite::python("kubernetes-validate")?)
        .args(["--kubernetes-version", version, "--strict"])
        .arg(manifest)
        .output()?)
}

#[test]
fn kubernetes_schema_accepts_the_manifest() -> Result<()> {
    for version in KUBERNETES {
        let output = validate(&deploy("daemonset.yaml"), version)?;
        ensure!(output.status.success(), "{version}: {}", text_of(&output));
    }
    // A misspelt key, so that the acceptance above says something.
    let (_folder, path) = changed("daemonset.yaml", |text| text.replace("hostPID", "hostPid"))?;
    let output = validate(&path, KUBERNETES[0])?;
    ensure!(!output.status.success() && text_of(&output).contains("hostPid"));
    Ok(())
}

#[test]
fn the_manifests_parts_fit_together() -> Result<()> {
    let objects = manifest()?;
    let set = object(&objects, "DaemonSet")?;
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    ensure!(
        pod["hostPID"] == true,
        "kernel events carry the node's pids"
    );
    ensure!(container["securityContext"]["privileged"] == false);
    ensure!(pod["serviceAccountName"] == object(&objects, "ServiceAccount")?["metadata"]["name"]);
    let map = object(&objects, "ConfigMap")?;
    ensure!(pod["volumes"][0]["configMap"]["name"] == map["metadata"]["name"]);
    let policy = object(&objects, "NetworkPolicy")?;
    ensure!(policy["spec"]["podSelector"] == set["spec"]["selector"]);
    // The port of the configuration is the one that is scraped and probed.
    let yaml = map["data"]["telltale.yaml"]
        .as_str()
        .context("no configuration")?;
    let config: Value = serde_saphyr::from_str(yaml)?;
    let port = &container["ports"][0];
    let listen = format!("0.0.0.0:{}", port["containerPort"]);
    ensure!(config["listen"] == *listen, "{config}");
    let annotations = &set["spec"]["template"]["metadata"]["annotations"];
    ensure!(annotations["prometheus.io/port"] == *port["containerPort"].to_string());
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        ensure!(
            container[probe]["httpGet"]["port"] == port["name"],
            "{probe}"
        );
    }
    Ok(())
}

/// `telltale check` with a configuration.
fn check_with(config: &str) -> Result<Finished> {
    Agent::command()?
        .subcommand("check")
        .config(config)
        .run_to_end(QUICKLY)
}

#[test]
fn the_agent_accepts_the_configurations() -> Result<()> {
    let objects = manifest()?;
    let map = object(&objects, "ConfigMap")?["data"]["telltale.yaml"].as_str();
    for config in [
        map.context("no configuration")?,
        &read("telltale.example.yaml")?,
    ] {
        let finished = check_with(config)?;
        ensure!(finished.status.success(), "{}", finished.output);
    }
    let finished = check_with("listn: 127.0.0.1:1\n")?;
    ensure!(finished.status.code() == Some(2), "{}", finished.output);
    Ok(())
}

/// An agent that has these capabilities and nothing else: no root, no way to become it.
fn confined(binary: &Path, capabilities: &BTreeSet<String>) -> Result<AgentCommand> {
    let names: String = capabilities
        .iter()
        .map(|name| format!(",+{}", name.to_lowercase()))
        .collect();
    let sets = ["--inh-caps", "--ambient-caps", "--bounding-set"];
    let sets = sets.map(|set| format!("{set}=-all{names}"));
    let mut through = vec![
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--no-new-privs",
    ];
    through.extend(sets.iter().map(String::as_str));
    Ok(Agent::command()?.binary(binary).through(&through))
}

#[test]
fn the_named_capabilities_are_enough_and_needed() -> Result<()> {
    let capabilities = capabilities()?;
    // A readable copy, wherever the build folder is.
    let folder = tempfile::tempdir()?;
    let binary = folder.path().join("telltale");
    std::fs::copy(prerequisite::agent()?, &binary)?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;

    // A program that was replaced while it runs, as an upgrade leaves it.
    let program = folder.path().join("upgraded");
    std::fs::copy(env!("CARGO_BIN_EXE_axum_server"), &program)?;
    let server = Server::axum(&program.to_string_lossy())?;
    std::fs::remove_file(&program)?;
    let agent = confined(&binary, &capabilities)?.start()?;
    for _ in 0..10 {
        let response = Client::once(server.address, &Request::new("GET", "/items/1"))?;
        ensure!(
            response.status == 200,
            "the workload answers {}",
            response.status
        );
    }
    // The service's name is in the environment of another user's process.
    let labels = [("service_name", server.service.as_str())];
    e2e::eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics()?;
        let count = metrics.sum("http_server_request_duration_seconds_count", &labels);
        ensure!(count == 10.0, "{count} requests of {}", server.service);
        Ok(())
    })?;
    let targets: Value = serde_json::from_str(&agent.get("/targets")?.text())?;
    let target = targets["targets"]
        .as_array()
        .and_then(|targets| targets.iter().find(|target| target["pid"] == server.pid()))
        .context("the service is not among the targets")?;
    ensure!(
        target["executable"]
            .as_str()
            .is_some_and(|path| path.ends_with("/upgraded (deleted)")),
        "{target}"
    );
    let folded = profile_under_load(&agent, &server)?;
    ensure!(
        folded.contains("do_syscall_64"),
        "no kernel symbols: {folded}"
    );
    ensure!(
        folded.contains("tokio::runtime"),
        "no symbols of the program: {folded}"
    );
    drop(agent);

    for needed in ["BPF", "PERFMON"] {
        let mut fewer = capabilities.clone();
        ensure!(fewer.remove(needed), "{needed} is not in the manifest");
        let finished = confined(&binary, &fewer)?.run_to_end(QUICKLY)?;
        ensure!(finished.status.code() == Some(1), "{}", finished.output);
        let says_why = [needed, "not permitted"]
            .iter()
            .any(|reason| finished.output.contains(reason));
        ensure!(says_why, "{}", finished.output);
    }
    Ok(())
}

/// A profile of `server`, two seconds of it, while it is busy.
fn profile_under_load(agent: &Agent, server: &Server) -> Result<String> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            let mut client = Client::connect(server.address)?;
            while !stop.load(Relaxed) {
                client.send(&Request::new("GET", "/items/1"))?;
            }
            Ok(())
        });
        let target = format!(
            "/debug/pprof/flamegraph?service={}&seconds=2&hz=499&format=folded",
            server.service
        );
        let response = agent.get(&target);
        stop.store(true, Relaxed);
        load.join()
            .map_err(|_| anyhow::anyhow!("the load died"))??;
        Ok(response?.text())
    })
}

#[test]
fn the_unit_names_the_same_capabilities() -> Result<()> {
    let expected = capabilities()?;
    for set in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        let unit = read("telltale.service")?;
        let line = unit.lines().find_map(|line| line.strip_prefix(set));
        let found: BTreeSet<String> = line
            .context(set)?
            .split(' ')
            .map(|name| name.trim_start_matches("CAP_").to_owned())
            .collect();
        ensure!(
            found == expected,
            "{set}{found:?}, the DaemonSet has {expected:?}"
        );
    }
    Ok(())
}

fn verify_unit(path: &Path) -> Result<Output> {
    Ok(Command::new(prerequisite::on_path("systemd-analyze")?)
        .args(["verify", "--man=no"])
        .arg(path)
        .output()?)
}

#[test]
fn systemd_accepts_the_unit() -> Result<()> {
    // The agent is not installed here, and systemd looks whether the program exists.
    let agent = prerequisite::agent()?.display().to_string();
    let installed = |text: &str| text.replace("/usr/local/bin/telltale", &agent);
    let (_folder, path) = changed("telltale.service", installed)?;
    let output = verify_unit(&path)?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        text_of(&output)
    );
    let (_folder, path) = changed("telltale.service", |text| {
        installed(text).replace("ProtectSystem=", "ProtectSytem=")
    })?;
    let output = verify_unit(&path)?;
    ensure!(
        text_of(&output).contains("ProtectSytem"),
        "{}",
        text_of(&output)
    );
    Ok(())
}
