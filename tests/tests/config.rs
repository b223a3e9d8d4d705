//! What the configuration promises, seen from outside.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::accounts::{Side, check_exported, key};
use e2e::{Agent, Client, NginxOptions, Request, Server};

const AXUM: &str = env!("CARGO_BIN_EXE_axum_server");
const COUNT: &str = "http_server_request_duration_seconds_count";

#[test]
fn configured_route_templates_win_over_learned_ones() -> Result<()> {
    let agent = Agent::command()?
        .config(
            "routes:\n  templates:\n    'e2e-nginx-*': ['/files/{name}', '/users/{user}/posts']\n",
        )
        .start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    let mut client = Client::connect(nginx.address)?;
    for name in ["alpha.txt", "beta.txt", "gamma"] {
        client.send(&Request::new("GET", format!("/files/{name}")))?;
        client.send(&Request::new("GET", format!("/users/{name}/posts")))?;
        client.send(&Request::new("GET", "/elsewhere/12345"))?;
    }
    let counts = BTreeMap::from([
        (key("GET", "/files/{name}", "404"), 3),
        (key("GET", "/users/{user}/posts", "404"), 3),
        // None of the templates fits.
        (key("GET", "/elsewhere/{id}", "404"), 3),
    ]);
    check_exported(&agent, Side::Server(&nginx), &counts)?;
    Ok(())
}

#[test]
fn only_selected_services_are_observed() -> Result<()> {
    let chosen = Server::axum(AXUM)?;
    let left_out = Server::axum(AXUM)?;
    let excluded = Server::express()?;
    let by_port = Server::nginx(NginxOptions::default())?;
    let agent = Agent::command()?
        .config(format!(
            "targets:\n  include:\n  - service: '{}'\n  - service: 'e2e-express-*'\n  \
             - port: {}\n  exclude:\n  - service: '{}'\n",
            chosen.service,
            by_port.address.port(),
            excluded.service
        ))
        .start()?;
    for server in [&left_out, &excluded, &by_port, &chosen] {
        let mut client = Client::connect(server.address)?;
        for _ in 0..5 {
            client.send(&Request::new("GET", "/fail"))?;
        }
    }
    let counts = |status| BTreeMap::from([(key("GET", "/fail", status), 5)]);
    check_exported(&agent, Side::Server(&by_port), &counts("404"))?;
    let metrics = check_exported(&agent, Side::Server(&chosen), &counts("500"))?;
    for server in [&left_out, &excluded] {
        let seen = metrics.sum(COUNT, &[("service_name", &server.service)]);
        ensure!(seen == 0.0, "{} was to be left out: {seen}", server.service);
    }
    // This process is a client of all of them, and no rule takes it in.
    for server in [&left_out, &excluded, &by_port, &chosen] {
        let seen = Side::Client(server).sum(&metrics, "request_duration_seconds_count");
        ensure!(seen.is_empty(), "a client of {}: {seen:?}", server.service);
    }
    Ok(())
}

#[test]
fn buckets_are_those_of_the_config() -> Result<()> {
    let agent = Agent::command()?
        .config(
            "metrics:\n  buckets:\n    http_server_request_duration_seconds: [0.0001, 0.001, 2]\n",
        )
        .start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    Client::once(nginx.address, &Request::new("GET", "/return"))?;
    let counts = BTreeMap::from([(key("GET", "/return", "200"), 1)]);
    let metrics = check_exported(&agent, Side::Server(&nginx), &counts)?;
    let name = "http_server_request_duration_seconds_bucket";
    let service = [("service_name", nginx.service.as_str())];
    let bounds: Vec<_> = metrics
        .select(name, &service)
        .map(|sample| sample.label("le"))
        .collect();
    assert_eq!(bounds, ["0.0001", "0.001", "2", "+Inf"]);
    // Those of the other metrics stay.
    let name = "http_client_request_duration_seconds_bucket";
    let port = nginx.address.port().to_string();
    let client = [("server_port", port.as_str())];
    let bounds: Vec<_> = metrics
        .select(name, &client)
        .map(|sample| sample.label("le").parse().unwrap_or(f64::INFINITY))
        .collect();
    let defaults = [
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    ];
    assert_eq!(bounds, [&defaults[..], &[f64::INFINITY]].concat());
    Ok(())
}

/// Flag over environment over file.
#[test]
fn flags_win_over_the_environment_and_that_over_the_file() -> Result<()> {
    let log = |command: e2e::AgentCommand| Ok::<_, anyhow::Error>(command.start()?.stop()?.output);
    let file = "log:\n  format: json\n  level: info\n";
    let json = log(Agent::command()?.config(file))?;
    ensure!(!json.trim().is_empty());
    for line in json.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(event["level"].is_string(), "{line}");
    }
    let from_environment = Agent::command()?
        .config(file)
        .env("TELLTALE_LOG_FORMAT", "text");
    let text = log(from_environment)?;
    ensure!(!text.starts_with('{') && text.contains("INFO"), "{text}");
    let from_flag = Agent::command()?
        .config(file)
        .env("TELLTALE_LOG_FORMAT", "text")
        .arg("--log-format")
        .arg("json");
    ensure!(log(from_flag)?.starts_with('{'));
    Ok(())
}
