//! The page at `/`: what the services of this host did in the last minute.
//!
//! It is made on the server; without scripts it reloads itself, with them it replaces its content.
//! The content security policy allows nothing but the page's own style and script, so that a name
//! taken from traffic could not run as code even if it were not escaped (maud escapes all text).

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::observation::Role;

use super::Shared;
use crate::health::{Report, Status};
use crate::process::Target;
use crate::sink::slow::SlowCall;
use crate::sink::summary::{
    CallSummary, Percentiles, ServiceSummary, Snapshot, Traffic, WINDOW_SECONDS,
};

/// Rows of a table; the rest is in `/metrics` and `/targets`.
const MAX_ROWS: usize = 200;

/// Rows of the table of slow calls.
const MAX_SLOW_ROWS: usize = 10;

/// Length of the profile behind a button.
const PROFILE_SECONDS: u32 = 5;

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn show(State(state): State<Arc<Shared>>) -> Response {
    let targets = match state.targets().await {
        Ok(targets) => targets,
        Err(error) => return super::internal_error(&error),
    };
    let api = &state.api;
    let markup = render(
        &api.host_name,
        &api.health.report(),
        &api.summary.snapshot(),
        &api.slow.report().calls,
        &targets,
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, markup.into_string()).into_response()
}

pub(super) async fn style() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
    (headers, include_str!("page.css")).into_response()
}

pub(super) async fn script() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")];
    (headers, include_str!("page.js")).into_response()
}

fn render(
    host_name: &str,
    health: &Report,
    snapshot: &Snapshot,
    slow: &[SlowCall],
    targets: &[Target],
) -> Markup {
    let of_role = |role| {
        snapshot
            .services
            .iter()
            .filter(move |service| service.role == role)
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Telltale · " (host_name) }
                link rel="icon" href=(ICON);
                link rel="stylesheet" href="/page.css";
                script src="/page.js" defer {}
                noscript { meta http-equiv="refresh" content="10"; }
            }
            body {
                (heading(host_name, health, snapshot))
                main {
                    (troubles(health))
                    @if snapshot.services.is_empty() {
                        (nothing_yet(health.ready, targets.len()))
                    } @else {
                        (service_table("Services", "requests that they answer", of_role(Role::Server)))
                        (call_table(&snapshot.calls))
                        (slow_table(slow))
                        (service_table("Outgoing requests", "that services send to others", of_role(Role::Client)))
                    }
                    (target_table(targets))
                }
                (footer(health.version))
            }
        }
    }
}

fn heading(host_name: &str, health: &Report, snapshot: &Snapshot) -> Markup {
    let (class, word) = match (health.ready, health.status) {
        (false, _) => ("waiting", "starting"),
        (true, Status::Healthy) => ("good", "observing"),
        (true, Status::Degraded) => ("fair", "degraded"),
        (true, Status::Unhealthy) => ("bad", "unhealthy"),
    };
    html! {
        header {
            a.brand href="/" { (mark()) span { "Telltale" } }
            p.host title=(host_name) { (host_name) }
            p.window { "last " (snapshot.covered_seconds.round()) " s" }
            a class={ "state " (class) } href="/health/detailed" { (word) }
        }
    }
}

/// Two threads in the wind: what a telltale is on a sail.
pub(super) fn mark() -> Markup {
    html! {
        svg.mark viewBox="0 0 28 20" aria-hidden="true" {
            circle cx="4" cy="10" r="2.4" {}
            path d="M6 9c4-6 8-6 11-3s6 3 9-1" {}
            path d="M6 11.5c4 5 8 5 11 2.5s6-2.5 9 1" {}
        }
    }
}

fn troubles(health: &Report) -> Markup {
    let told = health
        .subsystems
        .iter()
        .filter(|(_, part)| part.status != Status::Healthy);
    html! {
        @for (name, part) in told {
            p.trouble.bad[part.status == Status::Unhealthy] role="status" {
                strong { (name) } " "
                @for reason in &part.reasons { span { (reason) } " " }
            }
        }
    }
}

fn nothing_yet(is_ready: bool, watched: usize) -> Markup {
    html! {
        section.empty {
            (mark())
            @if is_ready {
                h1 { "No HTTP exchange in the last minute" }
                p {
                    "Telltale watches " (watched) " processes on this host. "
                    "Send any of them a request, and it shows here a moment after its answer:"
                }
                pre { code { "curl http://localhost:8080/" } }
                p.hint {
                    "Still nothing? "
                    code { "telltale check" } " tells what this kernel allows, and "
                    a href="/health/detailed" { "the health page" } " what the agent lacks."
                }
            } @else {
                h1 { "Attaching" }
                p { "The kernel programs are being loaded. This takes a second or two." }
            }
        }
    }
}

fn service_table<'a>(
    title: &str,
    note: &str,
    services: impl Iterator<Item = &'a ServiceSummary>,
) -> Markup {
    let services: Vec<_> = services.collect();
    html! {
        @if !services.is_empty() {
            section {
                h2 { (title) " " small { (note) } }
                table {
                    thead { tr {
                        th scope="col" { "Service" }
                        th.trend scope="col" { "Last minute" }
                        (traffic_headings())
                        th { span.unseen { "Profile" } }
                    } }
                    tbody {
                        @for service in services.iter().take(MAX_ROWS) { tr {
                            th scope="row" title=(service.service) { (service.service) }
                            td.trend { (trend(&service.per_second)) }
                            (traffic_cells(&service.traffic))
                            td.action { (flame_button("service", &service.service)) }
                        } }
                    }
                }
                (more(services.len(), "/metrics"))
            }
        }
    }
}

fn call_table(calls: &[CallSummary]) -> Markup {
    html! {
        @if !calls.is_empty() {
            section {
                h2 { "Elasticsearch " small { "calls on the wire, and what the server says it took" } }
                table.calls {
                    thead { tr {
                        th scope="col" { "Operation" }
                        th scope="col" { "Service" }
                        (traffic_headings())
                        th.number scope="col" { "took p50" }
                        th.number scope="col" { "took p95" }
                    } }
                    tbody {
                        @for call in calls.iter().take(MAX_ROWS) { tr {
                            th scope="row" title=(call.product.as_str()) {
                                @if call.operation.is_empty() { "not known" } @else { (call.operation) }
                            }
                            (name_cell("service", &call.service))
                            (traffic_cells(&call.traffic))
                            td.number data-label="took p50" { (took(call, |took| took.p50)) }
                            td.number data-label="took p95" { (took(call, |took| took.p95)) }
                        } }
                    }
                }
                (more(calls.len(), "/metrics"))
            }
        }
    }
}

fn slow_table(calls: &[SlowCall]) -> Markup {
    html! {
        @if !calls.is_empty() {
            section {
                h2 { "Slowest Elasticsearch calls " small { "of the last minutes, on the wire" } }
                table.calls {
                    thead { tr {
                        th scope="col" { "Call" }
                        th scope="col" { "Service" }
                        th.number scope="col" { "Count" }
                        th.number scope="col" { "Slowest" }
                        th.number scope="col" { "took" }
                        th.number scope="col" { "Mean" }
                    } }
                    tbody {
                        @for call in calls.iter().take(MAX_SLOW_ROWS) { tr {
                            th scope="row" title=[call.query.as_deref()] {
                                @if call.operation.is_empty() { "not known" } @else { (call.operation) }
                                " " (call.collection)
                                @if let Some(query) = &call.query { " " small { (query) } }
                            }
                            (name_cell("service", &call.service))
                            td.number data-label="count" { (call.count) }
                            td.number data-label="slowest" { (seconds(call.max_seconds)) }
                            td.number data-label="took" {
                                (call.max_took_seconds.map_or_else(|| "–".to_owned(), whole_milliseconds))
                            }
                            td.number data-label="mean" { (seconds(call.mean_seconds)) }
                        } }
                    }
                }
                @if calls.len() > MAX_SLOW_ROWS {
                    p.hint {
                        "and " (calls.len() - MAX_SLOW_ROWS) " more in "
                        a href="/api/elasticsearch/slow" { "/api/elasticsearch/slow" }
                    }
                }
            }
        }
    }
}

fn took(call: &CallSummary, choose: impl Fn(&Percentiles) -> f64) -> String {
    call.took
        .as_ref()
        .map_or_else(|| "–".to_owned(), |took| whole_milliseconds(choose(took)))
}

/// What a server tells as a whole number of milliseconds, cut off.
fn whole_milliseconds(value: f64) -> String {
    if value < 0.001 {
        "< 1 ms".to_owned()
    } else {
        seconds(value)
    }
}

fn traffic_headings() -> Markup {
    html! {
        th.number scope="col" { "Rate" }
        th.number scope="col" { "Errors" }
        th.number scope="col" { "p50" }
        th.number scope="col" { "p95" }
        th.number scope="col" { "p99" }
    }
}

fn traffic_cells(traffic: &Traffic) -> Markup {
    html! {
        td.number data-label="rate" { (rate(traffic.rate)) }
        td.number.error[traffic.error_share > 0.0] data-label="errors" { (share(traffic.error_share)) }
        td.number data-label="p50" { (seconds(traffic.duration.p50)) }
        td.number data-label="p95" { (seconds(traffic.duration.p95)) }
        td.number data-label="p99" { (seconds(traffic.duration.p99)) }
    }
}

fn target_table(targets: &[Target]) -> Markup {
    html! {
        @if !targets.is_empty() {
            details {
                summary { "Watched processes " small { (targets.len()) } }
                table.targets {
                    thead { tr {
                        th scope="col" { "Service" }
                        th.number scope="col" { "Pid" }
                        th scope="col" { "Executable" }
                        th scope="col" { "Ports" }
                        th { span.unseen { "Profile" } }
                    } }
                    tbody {
                        @for target in targets.iter().take(MAX_ROWS) { tr {
                            th scope="row" title=(target.process.service) { (target.process.service) }
                            td.number data-label="pid" { (target.process.pid) }
                            (name_cell("executable", &target.process.executable.to_string_lossy()))
                            (name_cell("ports", &ports(&target.ports)))
                            td.action { (flame_button("pid", &target.process.pid.to_string())) }
                        } }
                    }
                }
                (more(targets.len(), "/targets"))
            }
        }
    }
}

/// A text that may be longer than its column.
fn name_cell(label: &str, text: &str) -> Markup {
    html! { td.name data-label=(label) title=(text) { (text) } }
}

fn flame_button(key: &str, value: &str) -> Markup {
    let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
    let link = format!("/flamegraph?{key}={value}&seconds={PROFILE_SECONDS}");
    html! {
        a.flame href=(link) target="_blank" rel="noopener" data-seconds=(PROFILE_SECONDS)
            title={ "Sample its CPU for " (PROFILE_SECONDS) " s and draw a flamegraph" } { "Flamegraph" }
    }
}

fn more(rows: usize, link: &str) -> Markup {
    html! {
        @if rows > MAX_ROWS {
            p.hint { "and " (rows - MAX_ROWS) " more in " a href=(link) { (link) } }
        }
    }
}

fn footer(version: &str) -> Markup {
    html! {
        footer {
            nav {
                a href="/metrics" { "metrics" }
                a href="/targets" { "targets" }
                a href="/health/detailed" { "health" }
                a href="/flamegraph?seconds=5" { "flamegraph of the host" }
                a href="/debug/pprof/profile?seconds=5" { "pprof of the host" }
            }
            p { "Telltale " (version) }
        }
    }
}

/// Requests a second as a line over an area, the highest second at the top.
fn trend(per_second: &[u32]) -> Markup {
    const HEIGHT: f64 = 20.0;
    let highest = per_second.iter().copied().max().unwrap_or(0).max(1);
    let mut line = String::new();
    for (second, count) in per_second.iter().enumerate() {
        let y = HEIGHT - 1.0 - f64::from(*count) / f64::from(highest) * (HEIGHT - 3.0);
        // Writing to a String cannot fail.
        let _ = write!(
            line,
            "{}{second} {y:.1}",
            if second == 0 { 'M' } else { 'L' }
        );
    }
    let last = WINDOW_SECONDS - 1;
    let area = format!("{line}L{last} {HEIGHT}L0 {HEIGHT}Z");
    html! {
        svg viewBox={ "0 0 " (last) " " (HEIGHT) } preserveAspectRatio="none" role="img"
            aria-label={ "at most " (highest) " requests a second" } {
            path.area d=(area) {}
            path.line d=(line) {}
        }
    }
}

/// Three digits and a unit that suits.
fn seconds(value: f64) -> String {
    match value {
        value if value < 0.001 => format!("{:.0} µs", value * 1e6),
        value if value < 0.0995 => format!("{:.1} ms", value * 1e3),
        value if value < 0.9995 => format!("{:.0} ms", value * 1e3),
        value if value < 99.95 => format!("{value:.1} s"),
        value => format!("{value:.0} s"),
    }
}

fn rate(per_second: f64) -> String {
    match per_second {
        value if value < 0.1 => format!("{value:.2} /s"),
        value if value < 10.0 => format!("{value:.1} /s"),
        value if value < 10_000.0 => format!("{value:.0} /s"),
        value => format!("{:.1} k/s", value / 1e3),
    }
}

fn share(value: f64) -> String {
    match value * 100.0 {
        percent if percent <= 0.0 => "0 %".to_owned(),
        percent if percent < 0.1 => "< 0.1 %".to_owned(),
        percent if percent < 10.0 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

fn ports(ports: &[u16]) -> String {
    let told: Vec<String> = ports.iter().map(u16::to_string).collect();
    told.join(", ")
}

/// The mark in the accent colour, for the tab.
pub(super) const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 -4 28 28' \
    fill='none' stroke='%230f766e' stroke-width='2.6' stroke-linecap='round'%3E%3Ccircle cx='4' cy='10' \
    r='2.4' fill='%230f766e' stroke='none'/%3E%3Cpath d='M6 9c4-6 8-6 11-3s6 3 9-1'/%3E%3Cpath \
    d='M6 11.5c4 5 8 5 11 2.5s6-2.5 9 1'/%3E%3C/svg%3E";

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
