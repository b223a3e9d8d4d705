//! CPU profiles of a program whose split of CPU time is known, read back by `go tool pprof`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::traces::Traces;
use e2e::{Agent, Split, prerequisite};

/// Share of the CPU time that each function and what it calls are given by
/// `workloads/split.c`.
const SHARES: [(&str, f64); 3] = [
    ("nest_fifty", 0.5),
    ("nest_thirty", 0.3),
    ("nest_twenty", 0.2),
];

/// A sampling error of three standard deviations at 2000 samples.
const TOLERANCE: f64 = 0.03;

/// Where the workload is told to end by itself, should the test die.
const LIFE: Duration = Duration::from_secs(120);

/// What `go tool pprof` says about a profile.
fn pprof(arguments: &[&str], profile: &Path) -> Result<String> {
    let output = Command::new(prerequisite::on_path("go")?)
        .args(["tool", "pprof"])
        .args(arguments)
        .arg(profile)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "go tool pprof {arguments:?}: {errors}"
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Samples in which each function is somewhere on the stack, and all samples.
fn cumulative_samples(profile: &Path) -> Result<(BTreeMap<String, f64>, f64)> {
    let top = pprof(
        &[
            "-top",
            "-cum",
            "-sample_index=samples",
            "-nodefraction=0",
            "-nodecount=100000",
        ],
        profile,
    )?;
    let total = top
        .lines()
        .find_map(|line| line.split_once("Total samples = "))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .with_context(|| format!("no total: {top}"))?;
    let mut samples = BTreeMap::new();
    for line in top
        .lines()
        .skip_while(|line| !line.contains("flat%"))
        .skip(1)
    {
        // flat flat% sum% cum cum% name
        let fields: Vec<_> = line.split_whitespace().collect();
        if let [_, _, _, cumulative, _, name @ ..] = fields.as_slice() {
            let name = name.join(" ");
            let name = name.trim_end_matches(" (inline)");
            samples.insert(name.to_owned(), cumulative.parse()?);
        }
    }
    Ok((samples, total.parse()?))
}

fn check_shares(profile: &Path) -> Result<()> {
    let (samples, total) = cumulative_samples(profile)?;
    // The other suites read profiles by themselves.
    let read = Traces::read(profile)?;
    // What has no name is listed by its file.
    for (name, count) in samples.iter().filter(|(name, _)| !name.starts_with('[')) {
        let own = read.count(|trace| trace.has(name));
        ensure!(own == *count, "{name}: {own} samples, by pprof {count}");
    }
    ensure!(total >= 500.0, "{total} samples are too few to tell");
    for (name, expected) in SHARES {
        let share = samples.get(name).copied().unwrap_or_default() / total;
        println!("{name}: {share:.3} of {total} samples");
        ensure!(
            (share - expected).abs() < TOLERANCE,
            "{name} has {share:.3} of {total} samples; expected {expected}"
        );
    }
    Ok(())
}

/// `telltale profile` with these flags, to its end.
fn profile_command(flags: &[&str], output: &Path) -> Result<e2e::Finished> {
    let mut command = Agent::command()?.subcommand("profile");
    for flag in flags {
        command = command.arg(*flag);
    }
    let output = output.to_str().context("a path in UTF-8")?;
    command
        .arg("-o")
        .arg(output)
        .run_to_end(Duration::from_secs(60))
}

fn take_profile(flags: &[&str], output: &Path) -> Result<()> {
    let finished = profile_command(flags, output)?;
    ensure!(
        finished.status.success(),
        "{}: {}",
        finished.status,
        finished.output
    );
    Ok(())
}

#[test]
fn a_profile_by_command_has_the_programs_shares() -> Result<()> {
    let split = Split::start(LIFE)?;
    let file = split.child.folder().join("x.pb.gz");
    take_profile(
        &[
            "--pid",
            &split.child.pid().to_string(),
            "--seconds",
            "8",
            "--hz",
            "499",
        ],
        &file,
    )?;
    check_shares(&file)?;

    let raw = pprof(&["-raw"], &file)?;
    println!("{}", raw.lines().take(20).collect::<Vec<_>>().join("\n"));
    ensure!(raw.contains("PeriodType: cpu nanoseconds"));
    ensure!(raw.contains(&format!("Period: {}", 1_000_000_000 / 499)));
    ensure!(raw.contains("samples/count cpu/nanoseconds"));
    for label in [
        format!("pid:[{}]", split.child.pid()),
        format!("tid:[{}]", split.child.pid()),
        format!("service:[{}]", split.service),
        // The kernel cuts names of threads at 15 bytes.
        format!(
            "thread:[{}]",
            split.service.get(..15).unwrap_or(&split.service)
        ),
        "unwind:[complete]".to_owned(),
    ] {
        ensure!(raw.contains(&label), "no {label}");
    }
    check_build_id(&raw, &split.child.folder().join(&split.service))?;
    check_inlined(&raw)
}

/// The mapping of the program has the build id that the program has.
fn check_build_id(raw: &str, binary: &Path) -> Result<()> {
    let output = Command::new(prerequisite::on_path("readelf")?)
        .arg("-n")
        .arg(binary)
        .output()?;
    let notes = String::from_utf8_lossy(&output.stdout);
    let build_id = notes
        .lines()
        .find_map(|line| line.trim().strip_prefix("Build ID: "))
        .context("the program has no build id")?;
    let name = binary.display().to_string();
    ensure!(
        raw.lines()
            .any(|line| line.contains(&name) && line.contains(build_id)),
        "no mapping of {name} with build id {build_id}"
    );
    Ok(())
}

/// `spin` is inlined into `burn`, and that into each of the three functions: they are three lines
/// of one location, the innermost first.
fn check_inlined(raw: &str) -> Result<()> {
    let lines: Vec<_> = raw.lines().collect();
    let found = lines.windows(3).any(|lines| {
        let named = ["spin", "burn", "spend_fifty"];
        let mut places = lines.iter().zip(named);
        places.all(|(line, name)| line.contains(&format!(" {name} ")))
            && lines.iter().all(|line| line.contains("split.c:"))
    });
    ensure!(
        found,
        "no location where `spin` is inlined into `burn` into `spend_fifty`"
    );
    Ok(())
}

#[test]
fn a_function_that_the_compiler_split_has_its_name() -> Result<()> {
    let program = Split::compile("parts.c")?.run(LIFE)?;
    let pid = program.child.pid();
    let profile = Traces::take(pid, 1, program.child.folder())?;
    let total = profile.count(|_| true);
    let named = profile.count(|trace| trace.has("in_two_parts"));
    println!("{named} of {total}");
    ensure!(
        total >= 200.0 && named >= 0.99 * total,
        "{named} of {total}"
    );
    let place = |trace: &e2e::traces::Trace| {
        let at = trace
            .functions
            .iter()
            .position(|name| name == "in_two_parts");
        at.is_some_and(|at| trace.places[at].contains("parts.c:"))
    };
    ensure!(profile.count(place) == named, "some have no line");
    Ok(())
}

#[test]
fn a_profile_over_http_has_the_programs_shares() -> Result<()> {
    let agent = Agent::start()?;
    let split = Split::start(LIFE)?;
    let target = format!(
        "/debug/pprof/profile?seconds=8&hz=499&pid={}",
        split.child.pid()
    );
    let response = agent.get(&target)?;
    ensure!(
        response.status == 200,
        "{}: {}",
        response.status,
        response.text()
    );
    let file = split.child.folder().join("x.pb.gz");
    std::fs::write(&file, &response.body)?;
    check_shares(&file)?;

    let metrics = agent.get("/metrics")?.text();
    let complete = metrics
        .lines()
        .find_map(|line| line.strip_prefix("telltale_profile_samples_total{outcome=\"complete\"} "))
        .context("no count of samples")?;
    ensure!(complete.parse::<f64>()? >= 500.0, "{complete}");
    Ok(())
}

#[test]
fn a_flamegraph_of_a_service_shows_its_functions() -> Result<()> {
    let split = Split::start(LIFE)?;
    let agent = Agent::start()?;
    let graph = |format: &str| -> Result<String> {
        let service = &split.service;
        let target =
            format!("/debug/pprof/flamegraph?seconds=2&hz=199&service={service}&format={format}");
        let response = agent.get(&target)?;
        ensure!(
            response.status == 200,
            "{}: {}",
            response.status,
            response.text()
        );
        Ok(response.text())
    };
    let svg = graph("svg")?;
    let folded = graph("folded")?;
    let speedscope: serde_json::Value = serde_json::from_str(&graph("speedscope")?)?;
    ensure!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"));
    for name in [
        "main",
        "nest_fifty",
        "spend_fifty",
        "spend_thirty",
        "spend_twenty",
        "burn",
        "spin",
    ] {
        ensure!(
            svg.contains(&format!("<title>{name} (")),
            "{name} is not drawn"
        );
        let frames = speedscope["shared"]["frames"]
            .as_array()
            .context("frames")?;
        ensure!(
            frames.iter().any(|frame| frame["name"] == name),
            "{name} is not listed"
        );
    }
    // 25 nested calls are 25 frames.
    let stack = format!("main{};spend_fifty;burn;spin ", ";nest_fifty".repeat(25));
    ensure!(
        folded.lines().any(|line| line.contains(&stack)),
        "no whole stack:\n{folded}"
    );
    ensure!(
        folded.lines().all(|line| line.starts_with(&split.service)),
        "a stack of another service:\n{folded}"
    );
    Ok(())
}

#[test]
fn a_program_that_is_deleted_and_ends_meanwhile_keeps_its_names() -> Result<()> {
    let split = Split::start(Duration::from_secs(2))?;
    std::fs::remove_file(split.child.folder().join(&split.service))?;
    let file = split.child.folder().join("x.folded");
    let pid = split.child.pid().to_string();
    take_profile(&["--pid", &pid, "--seconds", "5", "--hz", "199"], &file)?;
    let folded = std::fs::read_to_string(&file)?;
    ensure!(
        folded.contains("nest_fifty;spend_fifty;burn;spin "),
        "{folded}"
    );
    Ok(())
}

#[test]
fn every_run_of_the_sampler_is_a_sample_or_a_loss() -> Result<()> {
    // Continuous profiling runs it too, and its samples are counted when they are asked for.
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 0}}\nmetrics: {program_statistics: always}")
        .start()?;
    let response = agent.get("/debug/pprof/flamegraph?seconds=4&hz=997&format=folded")?;
    ensure!(
        response.status == 200,
        "{}: {}",
        response.status,
        response.text()
    );
    let metrics = agent.metrics()?;
    let runs = metrics.sum("telltale_bpf_runs_total", &[("program", "sample")]);
    let counted = metrics.sum("telltale_profile_samples_total", &[]);
    println!("{runs} runs, {counted} samples");
    ensure!(
        runs > 0.0 && runs == counted,
        "{runs} runs, but {counted} samples"
    );
    ensure!(samples(&response.text())? as f64 <= counted);
    Ok(())
}

fn samples(folded: &str) -> Result<u64> {
    folded
        .lines()
        .map(|line| {
            let count = line.rsplit(' ').next().context("an empty line")?;
            count.parse::<u64>().context("no count")
        })
        .sum()
}

#[test]
fn what_cannot_be_profiled_is_refused() -> Result<()> {
    let agent = Agent::start()?;
    for (query, status, word) in [
        ("seconds=0", 400, "seconds"),
        ("hz=1000", 400, "997"),
        ("hz=fast", 400, "\"fast\""),
        ("format=png", 400, "speedscope"),
        ("rate=1", 400, "\"rate\""),
        ("pid=1&service=x", 400, "more than one"),
        ("pid=4194305&seconds=1", 404, "4194305"),
        ("service=e2e-none&seconds=1", 404, "known: "),
        ("container=0123456789&seconds=1", 404, "0123456789"),
    ] {
        let response = agent.get(&format!("/debug/pprof/flamegraph?{query}"))?;
        ensure!(
            response.status == status,
            "{query}: {} {}",
            response.status,
            response.text()
        );
        let reason = response.text();
        ensure!(
            reason.contains(word) && reason.lines().count() == 1,
            "{query}: {reason}"
        );
    }
    Ok(())
}

#[test]
fn a_command_that_fails_says_why_and_leaves_files_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kept: PathBuf = folder.path().join("kept.svg");
    std::fs::write(&kept, "earlier")?;
    for (flags, output, code, word) in [
        (&["--all"][..], folder.path().join("x.png"), 2, ".pb.gz"),
        (
            &["--all", "--hz", "998"],
            folder.path().join("x.svg"),
            2,
            "998",
        ),
        (&[], folder.path().join("x.svg"), 2, "--pid"),
        (
            &["--all", "--route", "users"],
            folder.path().join("x.svg"),
            2,
            "--route is \"users\"",
        ),
        (
            &["--cgroup", "system.slice"],
            folder.path().join("x.svg"),
            2,
            "--cgroup is",
        ),
        (&["--pid", "4194305"], kept.clone(), 1, "4194305"),
        (
            &["--service", "e2e-none"],
            folder.path().join("x.svg"),
            1,
            "known: ",
        ),
        (
            &["--all"],
            PathBuf::from("/nowhere/x.svg"),
            1,
            "/nowhere/x.svg",
        ),
    ] {
        let finished = profile_command(flags, &output)?;
        let said = finished.output.trim();
        if finished.status.code() != Some(code) || !said.contains(word) || said.lines().count() != 1
        {
            bail!("{flags:?}: {}: {said}", finished.status);
        }
    }
    ensure!(
        std::fs::read_to_string(&kept)? == "earlier",
        "a file was overwritten by nothing"
    );
    ensure!(
        !folder.path().join("x.svg").exists(),
        "a file without a profile"
    );
    Ok(())
}
