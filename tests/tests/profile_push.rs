//! Continuous profiles sent to Pyroscope's and Parca's ingest.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Agent, Child, Split, eventually, free_port, prerequisite};
use serde_json::Value;

/// A receiver and where it listens.
struct Receiver {
    child: Child,
    pyroscope: u16,
    parca: u16,
}

impl Receiver {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (pyroscope, parca) = (free_port()?, free_port()?);
        let mut command = Command::new(prerequisite::python("python")?);
        command
            .arg(prerequisite::workload("profile_receiver.py"))
            .args([pyroscope.to_string(), parca.to_string()])
            .arg(folder.path());
        let mut child = Child::spawn("receiver", command, folder)?;
        let address = ([127, 0, 0, 1], pyroscope).into();
        child.wait_for_port(address, Duration::from_secs(20))?;
        Ok(Self {
            child,
            pyroscope,
            parca,
        })
    }

    /// The profiles that came from one of the two, with what was told of each.
    fn received(&self, server: &str) -> Result<Vec<Value>> {
        let lines = std::fs::read_to_string(self.child.folder().join("received.jsonl"));
        let lines = lines.unwrap_or_default();
        let told: Vec<Value> = lines
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?;
        Ok(told
            .into_iter()
            .filter(|told| told["server"] == server)
            .collect())
    }

    fn config(&self) -> String {
        format!(
            "profile:\n  continuous: {{hz: 97, window: 1s}}\n  push:\n    interval: 2s\n    \
             headers: {{X-Scope-OrgID: e2e}}\n    pyroscope: http://127.0.0.1:{}\n    \
             parca: http://127.0.0.1:{}\n",
            self.pyroscope, self.parca
        )
    }
}

/// Samples of each function, and of all, as `go tool pprof` counts them.
fn cumulative(file: &Path) -> Result<(BTreeMap<String, f64>, f64)> {
    let output = Command::new(prerequisite::on_path("go")?)
        .args(["tool", "pprof", "-top", "-cum", "-sample_index=samples"])
        .args(["-nodefraction=0", "-nodecount=100000"])
        .arg(file)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "go tool pprof: {errors}");
    let top = String::from_utf8(output.stdout)?;
    let total = top
        .lines()
        .find_map(|line| line.split_once("Total samples = "))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .with_context(|| format!("no total: {top}"))?;
    let rows = top
        .lines()
        .skip_while(|line| !line.contains("flat%"))
        .skip(1);
    let samples = rows.filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, cumulative, _, name, ..] = fields.as_slice() else {
            return None;
        };
        Some(((*name).to_owned(), cumulative.parse().ok()?))
    });
    Ok((samples.collect(), total.parse()?))
}

fn files(told: &[Value]) -> impl Iterator<Item = &Path> {
    told.iter()
        .filter_map(|told| told["file"].as_str())
        .map(Path::new)
}

#[test]
fn each_sample_is_sent_once_to_both() -> Result<()> {
    let receiver = Receiver::start()?;
    let agent = Agent::command()?.config(receiver.config()).start()?;
    let split = Split::start(Duration::from_secs(6))?;
    let service = &split.service;
    let of_pyroscope = || -> Result<Vec<Value>> {
        let mut told = receiver.received("pyroscope")?;
        let name = format!("{service}{{hostname=");
        told.retain(|told| {
            told["name"]
                .as_str()
                .is_some_and(|told| told.starts_with(&name))
        });
        Ok(told)
    };
    let of_parca = || -> Result<Vec<Value>> {
        let mut told = receiver.received("parca")?;
        told.retain(|told| told["labels"]["service"] == **service);
        Ok(told)
    };
    // Until it has ended, and what it did last was sent: two intervals without a further profile.
    let begin = Instant::now();
    let mut last = (0, Instant::now());
    while last.0 == 0 || last.1.elapsed() < Duration::from_secs(6) {
        let sent = of_pyroscope()?.len() + of_parca()?.len();
        if sent != last.0 {
            last = (sent, Instant::now());
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(60),
            "{sent} profiles so far"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let (pyroscope, parca) = (of_pyroscope()?, of_parca()?);
    println!("{:#?}\n{:#?}", pyroscope.first(), parca.first());
    for told in &pyroscope {
        ensure!(told["format"] == "pprof" && told["sampleRate"] == "97" && told["tenant"] == "e2e");
        let time = |key: &str| -> Result<u64> { Ok(told[key].as_str().context("time")?.parse()?) };
        ensure!(
            (1..=20).contains(&(time("until")? - time("from")?)),
            "{told}"
        );
    }
    for told in &parca {
        ensure!(
            told["normalized"] == true && told["tenant"] == "e2e",
            "{told}"
        );
        ensure!(told["labels"]["__name__"] == "process_cpu" && told["labels"]["node"] != "");
    }
    for told in [&pyroscope, &parca] {
        let (mut total, mut fifty) = (0.0, 0.0);
        for file in files(told) {
            let (samples, all) = cumulative(file)?;
            total += all;
            fifty += samples.get("nest_fifty").copied().unwrap_or_default();
        }
        println!("{total} samples, {fifty} of nest_fifty");
        // Six seconds of CPU time, and what it took to start.
        ensure!((total / (97.0 * 6.0) - 1.0).abs() < 0.1, "{total} samples");
        ensure!((fifty / total - 0.5).abs() < 0.06, "{fifty} of {total}");
    }
    let metrics = agent.metrics()?;
    let lost = metrics.sum("telltale_losses_total", &[("stage", "profile_push")]);
    ensure!(lost == 0.0, "{lost} samples were not sent");
    Ok(())
}

#[test]
fn what_cannot_be_sent_is_counted_and_told() -> Result<()> {
    let receiver = Receiver::start()?;
    let agent = Agent::command()?.config(receiver.config()).start()?;
    // A process that is there to be sampled.
    let _split = Split::start(Duration::from_secs(60))?;
    drop(receiver);
    eventually(Duration::from_secs(30), || {
        let metrics = agent.metrics()?;
        for server in ["pyroscope", "parca"] {
            let labels = [("stage", "profile_push"), ("reason", server)];
            let lost = metrics.sum("telltale_losses_total", &labels);
            ensure!(lost > 0.0, "nothing lost to {server}");
        }
        let health: Value = serde_json::from_str(&agent.get("/health/detailed")?.text())?;
        let part = &health["subsystems"]["profile_push"];
        ensure!(part["status"] == "degraded", "{part}");
        Ok(())
    })
}
