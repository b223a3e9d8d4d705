//! The page as a person uses it, in a real browser: what it tells beside what the agent's other answers say,
//! and names that would be markup if they could.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Node, OPENSEARCH};
use e2e::flames::frames;
use e2e::{
    Agent, Browser, Child, Client, Folded, Metrics, Request, Server, eventually, free_port,
    prerequisite,
};

fn get(address: SocketAddr, path: &str) -> Result<()> {
    let request = Request::new("GET", path).header("Connection: close");
    Client::once(address, &request)?;
    Ok(())
}

/// The numbers that a text like `13.8 ms` stands for, from the least to the greatest, in seconds, a second
/// or as a share.
fn told(text: &str) -> Result<(f64, f64)> {
    let (number, unit) = text.split_once(' ').context("no unit")?;
    let factor = match unit {
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" | "/s" => 1.0,
        "%" => 0.01,
        _ => anyhow::bail!("{text}: an unknown unit"),
    };
    let digits = number.split_once('.').map_or(0, |(_, digits)| digits.len());
    let half = 0.5 / 10_f64.powi(i32::try_from(digits)?);
    let number: f64 = number.parse().with_context(|| text.to_owned())?;
    Ok(((number - half) * factor, (number + half) * factor))
}

fn check_told(text: &str, least: f64, greatest: f64) -> Result<()> {
    let (from, to) = told(text)?;
    // Bounds are exact to a digit more than any text.
    ensure!(
        from <= greatest * 1.0001 && to >= least * 0.9999,
        "{text} is not {least} to {greatest}"
    );
    Ok(())
}

/// Rows of the tables on the page, by the table's heading and by the first cells.
type Tables = BTreeMap<String, Vec<BTreeMap<String, String>>>;

const TABLES: &str = "Object.fromEntries([...document.querySelectorAll('main section')].map((section) => \
    [section.querySelector('h2').firstChild.data.trim(), (() => { \
        const heads = [...section.querySelectorAll('thead th')].map((head) => head.innerText); \
        return [...section.querySelectorAll('tbody tr')].map((row) => \
            Object.fromEntries([...row.cells].map((cell, at) => [heads[at], cell.innerText])))})()]))";

/// Compares what a row says of its traffic with a histogram of the metrics.
fn check_traffic(
    row: &BTreeMap<String, String>,
    metrics: &Metrics,
    (name, labels): (&str, &[(&str, &str)]),
    covered_s: (f64, f64),
) -> Result<()> {
    let count = metrics.sum(&format!("{name}_count"), labels);
    ensure!(count > 0.0, "no {name} with {labels:?}");
    check_told(&row["Rate"], count / covered_s.1, count / covered_s.0)?;
    let failed = [labels, &[("error_type", "500")]].concat();
    let errors = metrics.sum(&format!("{name}_count"), &failed) / count;
    check_told(&row["Errors"], errors, errors)?;
    let mut buckets: Vec<(f64, f64)> = metrics
        .sum_by(&format!("{name}_bucket"), labels, ["le"])
        .into_iter()
        .map(|([le], count)| Ok((le.replace("+Inf", "inf").parse()?, count)))
        .collect::<Result<_>>()?;
    buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
    for (column, quantile) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        let rank = (quantile * count).ceil();
        let at = buckets.iter().position(|(_, below)| *below >= rank);
        let at = at.context("no bucket")?;
        let least = if at == 0 { 0.0 } else { buckets[at - 1].0 };
        // Percentiles are exact to 1 %.
        check_told(&row[column], least * 0.99, buckets[at].0 * 1.01)
            .with_context(|| format!("{column} of {labels:?}"))?;
    }
    Ok(())
}

/// Compares the table of slow calls with what the agent answers to programs.
fn check_slow(rows: &[BTreeMap<String, String>], answer: &str, service: &str) -> Result<()> {
    let answer: serde_json::Value = serde_json::from_str(answer)?;
    let text =
        |call: &serde_json::Value, key: &str| call[key].as_str().unwrap_or_default().to_owned();
    let calls = answer["calls"].as_array().context("calls")?;
    let is_hostile = |call: &&serde_json::Value| text(call, "collection").contains("svg");
    ensure!(calls.iter().any(|call| is_hostile(&call)), "{answer}");
    let ours = calls
        .iter()
        .filter(|call| call["service"] == service || is_hostile(call));
    for call in ours {
        let words = ["operation", "collection", "query"].map(|key| text(call, key));
        let title = words.join(" ").trim().to_owned();
        let mut named = rows.iter().filter(|row| row["Call"] == title);
        let row = named.find(|row| call["service"] == *row["Service"]);
        let row = row.with_context(|| format!("no {title} in {rows:#?}"))?;
        let count: u64 = row["Count"].parse()?;
        ensure!(call["count"] == count, "{row:?}");
        for (column, key) in [
            ("Slowest", "max_seconds"),
            ("Mean", "mean_seconds"),
            ("took", "max_took_seconds"),
        ] {
            match call[key].as_f64() {
                Some(seconds) => check_told(&row[column], seconds, seconds)?,
                None => ensure!(row[column] == "–", "{row:?}"),
            }
        }
    }
    Ok(())
}

/// An index that somebody searches in.
const HOSTILE_INDEX: &str = "%3Csvg%20onload=alert(4)%3E";

#[test]
fn tables_tell_what_the_metrics_tell_and_stay_up_to_date() -> Result<()> {
    let node = Node::start(&OPENSEARCH)?;
    let agent = Agent::command()?
        .config("elasticsearch: {query_text: true}")
        .start()?;
    let searching = Server::gunicorn_search_requests(node.address, 3)?;
    let failing = Server::gunicorn()?;
    for number in 0..30 {
        for route in ["a", "b", "c"] {
            get(searching.address, &format!("/{route}/{number}"))?;
        }
        get(failing.address, "/items/1")?;
        get(failing.address, "/items/2")?;
        get(failing.address, "/fail")?;
    }
    get(node.address, &format!("/{HOSTILE_INDEX}/_search"))?;
    let duration = "http_server_request_duration_seconds";
    let outgoing = "http_client_request_duration_seconds";
    let metrics = eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics()?;
        for (name, service, expected) in [
            (duration, &failing.service, 90.0),
            (duration, &searching.service, 90.0),
            // It has put a document there first.
            (outgoing, &searching.service, 91.0),
        ] {
            let count = metrics.sum(&format!("{name}_count"), &[("service_name", service)]);
            ensure!(
                count == expected,
                "{name} of {service}: {count} of {expected}"
            );
        }
        Ok(metrics)
    })?;

    let mut browser = Browser::start(agent.address())?;
    browser.open("/")?;
    let tables: Tables = browser.get(TABLES)?;
    let window: String = browser.get("document.querySelector('.window').innerText")?;
    let covered_s = told(window.strip_prefix("last ").context(window.clone())?)?;
    let row = |table: &str, column: &str, name: &str, service: &str| {
        let mut rows = tables[table].iter();
        rows.find(|row| row[column] == name && row["Service"] == service)
            .with_context(|| format!("no {name} of {service} in {tables:#?}"))
    };
    for server in [&searching.service, &failing.service] {
        let row = row("Services", "Service", server, server)?;
        let labels = [("service_name", &**server)];
        check_traffic(row, &metrics, (duration, &labels), covered_s)?;
    }
    let asking = &*searching.service;
    let row_of_client = row("Outgoing requests", "Service", asking, asking)?;
    let labels = [("service_name", asking)];
    check_traffic(row_of_client, &metrics, (outgoing, &labels), covered_s)?;
    for operation in ["search", "count", "index"] {
        let call = row("Elasticsearch", "Operation", operation, asking)?;
        let labels = [("service_name", asking), ("db_operation_name", operation)];
        let name = "db_client_operation_duration_seconds";
        check_traffic(call, &metrics, (name, &labels), covered_s)?;
    }
    let slow = agent.get("/api/elasticsearch/slow")?.text();
    check_slow(&tables["Slowest Elasticsearch calls"], &slow, asking)?;
    check_nothing_injected(&mut browser, 1)?;
    browser.value("document.querySelector('details').open = true")?;
    browser.check_looks("page")?;

    // It stays up to date by itself, and what was opened stays open.
    browser.value("window.isSame = true")?;
    for _ in 0..90 {
        get(failing.address, "/fail")?;
    }
    let row = format!(
        "[...document.querySelectorAll('main section tr')].find((row) => row.cells[0].innerText === '{}')",
        failing.service
    );
    browser.until(&format!(
        "{row}.querySelector('.error').innerText === '67 %'"
    ))?;
    let is_same = browser.value("window.isSame && document.querySelector('details').open")?;
    ensure!(is_same == true, "the page was loaded anew");
    browser.check_no_complaints()?;
    drop(agent);
    browser.until("document.querySelector('.state').innerText === 'unreachable'")
}

/// Names that would be a script, or end an attribute, if they were taken for markup; each calls for a dialog.
fn hostile(number: u32) -> String {
    format!(
        "</script><svg/onload=alert({number})>\"'&é{}",
        "x".repeat(60)
    )
}

#[test]
fn names_of_others_are_text_and_nothing_runs() -> Result<()> {
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 199, window: 1s}}")
        .start()?;
    let (service, function, thread) = (hostile(1), hostile(2), "<b>\"'&é</b>");
    let path = "/<svg/onload=alert()>\"'&é";
    const ENCODED: &str = "/%3Csvg/onload%3Dalert()%3E%22'%26%C3%A9";
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut command = Command::new(prerequisite::python("python")?);
    command.arg(prerequisite::workload("hostile.py"));
    command.args([thread, &function]);
    command.env("PORT", address.port().to_string());
    command.env("OTEL_SERVICE_NAME", &service);
    let mut server = Child::spawn("hostile", command, tempfile::tempdir()?)?;
    server.wait_for_port(address, Duration::from_secs(10))?;
    // Until the agent knows the process as one of Python.
    eventually(Duration::from_secs(10), || {
        for _ in 0..20 {
            get(address, path)?;
        }
        let kept = Folded::of(
            &agent,
            &format!("pid={}&route={ENCODED}&from=now-1m", server.pid()),
        )?;
        ensure!(
            kept.percent(|name| name == function) > 10.0,
            "no {function}"
        );
        Ok(())
    })?;

    let mut browser = Browser::start(agent.address())?;
    browser.open("/")?;
    browser.value("document.querySelector('details').open = true")?;
    let row = format!(
        "[...document.querySelectorAll('main tr')].find((row) => row.cells[0].innerText === {service:?})"
    );
    let link: String = browser.get(&format!(
        "{row}.querySelector('a.flame').getAttribute('href')"
    ))?;
    check_nothing_injected(&mut browser, 1)?;
    browser.check_looks("names")?;
    let link = link.replace("seconds=5", "from=now-1m");
    browser.open(&link)?;
    let data: serde_json::Value =
        browser.get("JSON.parse(document.getElementById('data').textContent)")?;
    for (kind, name) in [
        ("threads", thread),
        ("work", &format!("GET {path}")),
        ("names", &function),
    ] {
        let names = data[kind].as_array().context(kind)?;
        ensure!(names.iter().any(|one| one == name), "{name}: {names:?}");
    }
    browser.choose("document.getElementById('thread')", thread)?;
    browser.choose("document.getElementById('work')", &format!("GET {path}"))?;
    let title: String = browser.get("document.title")?;
    ensure!(title.contains(&service), "{title}");
    browser.click(&format!(
        "[...document.querySelectorAll('#top tbody th')].find((name) => name.textContent === {function:?})"
    ))?;
    let found = frames(&mut browser)?;
    let found = found
        .iter()
        .find(|frame| frame.found)
        .context("no frame found")?;
    ensure!(found.name == function, "{found:?}");
    check_nothing_injected(&mut browser, 2)?;
    browser.check_looks("names-flamegraph")?;

    let svg = link.replace("/flamegraph", "/debug/pprof/flamegraph");
    browser.open(&svg)?;
    browser.hover(&format!(
        "[...document.querySelectorAll('#frames g')].find((frame) => \
         frame.querySelector('title').textContent.startsWith({function:?}))"
    ))?;
    let details: String = browser.get("document.getElementById('details').textContent")?;
    ensure!(details.contains(&function), "{details}");
    check_nothing_injected(&mut browser, 1)?;
    browser.check_no_complaints()
}

/// Nothing but the page's own: scripts, and one element with a handler at the root of a drawing.
fn check_nothing_injected(browser: &mut Browser, scripts: u32) -> Result<()> {
    let found: u32 =
        browser.get("document.scripts.length || document.querySelectorAll('script').length")?;
    ensure!(found == scripts, "{found} scripts");
    let injected: Vec<String> = browser.get(
        "[...document.querySelectorAll('b, :not(:root)[onload]')].map((one) => one.outerHTML)",
    )?;
    ensure!(injected.is_empty(), "{injected:?}");
    browser.check_no_complaints()
}
