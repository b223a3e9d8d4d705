//! What a user does wrong, and what breaks around the agent: one clear line, the right exit
//! status, nothing lost silently.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Agent, AgentCommand, Client, Finished, NginxOptions, Request, Server, free_port};

const QUICKLY: Duration = Duration::from_secs(10);

/// Checks that the run was refused: the exit status, and one line with every one of `words`.
fn check_refused(command: AgentCommand, code: i32, words: &[&str]) -> Result<()> {
    let finished = command.run_to_end(QUICKLY)?;
    check_told(&finished, code, words)?;
    let lines = finished
        .output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    ensure!(
        lines == 1,
        "{lines} lines instead of one:\n{}",
        finished.output
    );
    Ok(())
}

fn check_told(finished: &Finished, code: i32, words: &[&str]) -> Result<()> {
    let Finished { status, output } = finished;
    ensure!(
        status.code() == Some(code),
        "{status} instead of {code}:\n{output}"
    );
    for word in words {
        ensure!(output.contains(word), "`{word}` is not in:\n{output}");
    }
    ensure!(!output.contains("panicked"), "{output}");
    Ok(())
}

#[test]
fn an_unknown_key_is_refused() -> Result<()> {
    check_refused(
        Agent::command()?.config("lisen: 127.0.0.1:1\n"),
        2,
        &["lisen", "listen"],
    )?;
    check_refused(
        Agent::command()?.config("otlp:\n  endpont: http://127.0.0.1:4317\n"),
        2,
        &["otlp.endpont", "endpoint"],
    )
}

#[test]
fn a_bad_value_is_refused_with_its_key_and_what_is_allowed() -> Result<()> {
    for (yaml, words) in [
        ("listen: nowhere\n", &["listen", "nowhere"][..]),
        ("log:\n  level: loud\n", &["log.level", "loud", "info"]),
        ("capture:\n  rings: many\n", &["capture.rings", "many"]),
        ("capture:\n  bytes: 17\n", &["capture.bytes", "17", "256"]),
        (
            "otlp:\n  endpoint: not a url\n",
            &["otlp.endpoint", "not a url"],
        ),
        ("otlp:\n  interval: soon\n", &["otlp.interval", "soon"]),
        ("listen: [\n", &["telltale.yaml"]),
    ] {
        check_refused(Agent::command()?.config(yaml), 2, words).context(yaml)?;
    }
    Ok(())
}

#[test]
fn a_bad_flag_is_refused() -> Result<()> {
    check_refused(
        Agent::command()?.arg("--no-such-flag"),
        2,
        &["--no-such-flag"],
    )?;
    check_refused(
        Agent::command()?.arg("--log-level").arg("loud"),
        2,
        &["loud", "--log-level"],
    )?;
    check_refused(
        Agent::command()?.arg("--otlp-endpoint").arg("not a url"),
        2,
        &["--otlp-endpoint", "not a url"],
    )?;
    check_refused(Agent::command()?.subcommand("walk"), 2, &["walk"])
}

#[test]
fn a_bad_environment_variable_is_refused() -> Result<()> {
    check_refused(
        Agent::command()?.env("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
        2,
        &["OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon", "grpc"],
    )
}

#[test]
fn a_missing_config_file_is_refused() -> Result<()> {
    let path = "/nowhere/telltale.yaml";
    check_refused(
        Agent::command()?.arg("--config").arg(path),
        2,
        &[path, "No such file"],
    )
}

#[test]
fn a_taken_port_is_refused() -> Result<()> {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port()?))?;
    let address = holder.local_addr()?;
    // The configuration is right, the machine is not: 1, not 2.
    check_refused(
        Agent::command()?.listen(address),
        1,
        &[&address.to_string(), "in use"],
    )
}

/// An ordinary user: told which privileges are missing and what to do.
#[test]
fn without_privileges_it_says_which_it_needs() -> Result<()> {
    const NOBODY: [&str; 4] = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    // A readable copy, wherever the build folder is.
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("telltale");
    std::fs::copy(e2e::prerequisite::agent()?, &copy)?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open)?;
    let run = || Ok::<_, anyhow::Error>(Agent::command()?.binary(&copy).through(&NOBODY));
    let finished = run()?.run_to_end(QUICKLY)?;
    check_told(&finished, 1, &["CAP_BPF"])?;
    let finished = run()?.subcommand("check").run_to_end(QUICKLY)?;
    check_told(&finished, 1, &["CAP_BPF"])
}

#[test]
fn check_as_root_says_that_the_main_job_can_run() -> Result<()> {
    let finished = Agent::command()?.subcommand("check").run_to_end(QUICKLY)?;
    check_told(&finished, 0, &["tap", "BTF", "steps verified"])
}

/// The collector is not there: the agent runs on and counts what it could not send.
#[test]
fn spans_for_an_unreachable_collector_are_counted() -> Result<()> {
    for protocol in ["grpc", "http/protobuf"] {
        let agent = Agent::command()?
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .arg("--otlp-endpoint")
            .arg(format!("http://127.0.0.1:{}", free_port()?))
            .config(
                "otlp:\n  queue_spans: 100\n  batch_spans: 50\n  interval: 100ms\n  timeout: 1s\n",
            )
            .start()?;
        let nginx = Server::nginx(NginxOptions::default())?;
        let mut client = Client::connect(nginx.address)?;
        for _ in 0..1000 {
            client.send(&Request::new("GET", "/return"))?;
        }
        e2e::eventually(Duration::from_secs(20), || {
            let metrics = agent.metrics()?;
            let seen = metrics.sum(
                "http_server_request_duration_seconds_count",
                &[("service_name", &nginx.service)],
            );
            ensure!(seen == 1000.0, "{protocol}: {seen} requests in the metrics");
            // Both sides make a span; at most what the queue and one batch hold is not yet lost.
            let lost = metrics.sum("telltale_losses_total", &[("stage", "otlp")]);
            ensure!(
                lost >= 2000.0 - 150.0,
                "{protocol}: {lost} spans counted as lost"
            );
            Ok(())
        })?;
        ensure!(agent.get("/healthz")?.status == 200);
        // Told once the first batch's retries have ended.
        e2e::eventually(Duration::from_secs(20), || {
            let health = agent.get("/health/detailed")?.text();
            ensure!(health.contains("degraded"), "{protocol}: {health}");
            Ok(())
        })?;
        // A collector that does not answer must not hold up the end.
        let start = std::time::Instant::now();
        let finished = agent.stop()?;
        ensure!(finished.status.code() == Some(0), "{}", finished.status);
        ensure!(
            start.elapsed() < QUICKLY,
            "{protocol}: it took {:?} to end",
            start.elapsed()
        );
    }
    Ok(())
}
