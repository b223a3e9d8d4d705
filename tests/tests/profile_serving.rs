//! Profiles of the past and of the next seconds: continuous profiling, ranges, differences,
//! selection, requests at the same time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Agent, Folded, Split};

/// Where the workload is told to end by itself, should the test die.
const LIFE: Duration = Duration::from_secs(120);

/// What is asked of the agent.
fn get(agent: &Agent, query: &str) -> Result<String> {
    let response = agent.get(&format!("/debug/pprof/{query}"))?;
    ensure!(
        response.status == 200,
        "{query}: {}: {}",
        response.status,
        response.text()
    );
    Ok(response.text())
}

/// CPU time that the process has had, seconds.
fn cpu_s(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("stat")?.1;
    let ticks = |field: usize| -> Result<f64> {
        let field = fields.split_ascii_whitespace().nth(field - 3);
        Ok(field.context("stat")?.parse()?)
    };
    Ok((ticks(14)? + ticks(15)?) / 100.0)
}

#[test]
fn what_ran_is_kept_and_has_the_programs_shares() -> Result<()> {
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 97, window: 1s}}")
        .start()?;
    let split = Split::start(LIFE)?;
    let pid = split.child.pid();
    let begin_s = cpu_s(pid)?;
    std::thread::sleep(Duration::from_secs(10));
    let used_s = cpu_s(pid)? - begin_s;
    let service = split.service.clone();
    // Ended and gone: only what is kept can tell.
    drop(split);
    let kept = Folded::of(&agent, &format!("service={service}&from=now-1m"))?;
    let total = kept.total() as f64;
    println!("{total} samples of {used_s:.2} s of CPU time");
    ensure!(
        (total / 97.0 / used_s - 1.0).abs() < 0.08,
        "{total} samples"
    );
    for (name, expected) in [
        ("nest_fifty", 0.5),
        ("nest_thirty", 0.3),
        ("nest_twenty", 0.2),
    ] {
        let share = kept.within(name) as f64 / total;
        println!("{name}: {share:.3}");
        ensure!((share - expected).abs() < 0.05, "{name}: {share:.3}");
    }
    ensure!(
        kept.0.iter().all(|(stack, _)| stack[0] == service),
        "another service's stack"
    );
    Ok(())
}

#[test]
fn ranges_of_time_are_told_apart() -> Result<()> {
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 97, window: 1s}}")
        .start()?;
    let mut earlier = Split::start(Duration::from_secs(3))?;
    earlier.child.wait(LIFE)?;
    std::thread::sleep(Duration::from_millis(1500));
    let between = e2e::now_s()?;
    std::thread::sleep(Duration::from_millis(1500));
    let later = Split::start(LIFE)?;
    std::thread::sleep(Duration::from_secs(4));
    let recent = Folded::of(&agent, &format!("from={between}"))?;
    let before = Folded::of(&agent, &format!("from=now-1m&to={between}"))?;
    let of = |folded: &Folded, split: &Split| folded.within(&split.service);
    for (range, absent, present) in [(&recent, &earlier, &later), (&before, &later, &earlier)] {
        let counts = (of(range, absent), of(range, present));
        ensure!(counts.0 == 0 && counts.1 > 100, "{counts:?}: {range:?}");
    }

    let services = format!("service={}&base_service={}", later.service, earlier.service);
    let diff = get(
        &agent,
        &format!("diff?{services}&from=now-1m&format=folded"),
    )?;
    // Until a process's unwind rows are loaded, its stacks have an outermost frame of their own.
    let mut counts = [0; 2];
    for line in diff.lines() {
        if line.starts_with("all;") && line.contains(";spend_fifty;burn;spin ") {
            let mut last = line.rsplit(' ').map(str::parse::<u64>);
            for count in counts.iter_mut().rev() {
                *count += last.next().context("two counts a line")??;
            }
        }
    }
    ensure!(counts.iter().all(|count| *count > 30), "{counts:?}: {diff}");
    let svg = get(&agent, &format!("diff?{services}&from=now-1m"))?;
    ensure!(svg.contains("compared with CPU of") && svg.contains("<title>spend_fifty ("));

    let windows = format!("base_from=now-1m&base_to={between}&from={between}");
    let diff = get(&agent, &format!("diff?{windows}&format=folded"))?;
    let line_of = |split: &Split| {
        let mut lines = diff.lines().filter(|line| line.starts_with(&split.service));
        lines.find(|line| line.contains("spend_fifty;burn;spin "))
    };
    ensure!(
        line_of(&earlier).is_some_and(|line| line.ends_with(" 0")),
        "{diff}"
    );
    ensure!(
        line_of(&later).is_some_and(|line| line.contains(" 0 ")),
        "{diff}"
    );
    Ok(())
}

#[test]
fn requests_at_the_same_time_have_each_their_own_rate() -> Result<()> {
    let agent = Agent::start()?;
    let split = Split::start(LIFE)?;
    let pid = split.child.pid();
    let began = Instant::now();
    let begin_s = cpu_s(pid)?;
    let count = |delay_s: u64, seconds: u64, hz: u32| -> Result<f64> {
        std::thread::sleep(Duration::from_secs(delay_s));
        let begin_s = cpu_s(pid)?;
        let folded = Folded::of(&agent, &format!("seconds={seconds}&hz={hz}&pid={pid}"))?;
        // As much as the process was given, whatever else the machine does.
        let used_s = (cpu_s(pid)? - begin_s).min(seconds as f64);
        let per_second = folded.total() as f64 / used_s;
        println!("{hz} Hz: {} samples of {used_s:.2} s", folded.total());
        ensure!(
            (per_second / f64::from(hz) - 1.0).abs() < 0.12,
            "{per_second:.1} samples a second at {hz} Hz"
        );
        Ok(per_second)
    };
    let panicked = |_| anyhow::anyhow!("a request panicked");
    std::thread::scope(|scope| {
        let requests = [
            scope.spawn(|| count(0, 4, 499)),
            scope.spawn(|| count(1, 4, 99)),
            scope.spawn(|| count(2, 3, 51)),
        ];
        for request in requests {
            request.join().map_err(panicked)??;
        }
        anyhow::Ok(())
    })?;
    // Continuous profiling went on beside them, at its own rate.
    let seconds = began.elapsed().as_secs() + 1;
    let kept = Folded::of(&agent, &format!("pid={pid}&from=now-{seconds}s"))?;
    let used_s = cpu_s(pid)? - begin_s;
    println!("{} kept samples of {used_s:.2} s", kept.total());
    let per_second = kept.total() as f64 / used_s;
    // The default rate, but for what the first window had before.
    ensure!(
        (15.0..24.0).contains(&per_second),
        "{per_second:.1} kept samples a second"
    );
    Ok(())
}

#[test]
fn samples_are_selected_by_thread_and_by_cgroup() -> Result<()> {
    let agent = Agent::start()?;
    let threads = Split::threads(LIFE)?;
    let service = &threads.service;
    let log = threads.child.output();
    let tid = log
        .lines()
        .find_map(|line| line.strip_prefix("spinner-other "))
        .context("no thread")?;
    let functions = |query: &str| -> Result<(u64, u64)> {
        let folded = Folded::of(&agent, &format!("seconds=1&hz=199&{query}"))?;
        ensure!(
            folded.0.iter().all(|(stack, _)| stack[0] == *service),
            "{query}: another service"
        );
        let counts = ["spin_one", "spin_other"].map(|function| folded.within(function));
        println!("{query}: {counts:?}");
        Ok((counts[0], counts[1]))
    };
    let (one, other) = functions(&format!("service={service}"))?;
    ensure!(one > 20 && other > 20, "{one} {other}");
    let (one, other) = functions(&format!("service={service}&thread=spinner-one"))?;
    ensure!(one > 20 && other == 0, "{one} {other}");
    let (one, other) = functions(&format!("tid={tid}"))?;
    ensure!(one == 0 && other > 20, "{one} {other}");

    let cgroup = Cgroup::of(threads.child.pid())?;
    let (one, other) = functions(&format!("cgroup={}", cgroup.name))?;
    ensure!(one > 20 && other > 20, "{one} {other}");
    let refused = agent.get("/debug/pprof/profile?seconds=1&cgroup=/e2e-none")?;
    ensure!(refused.status == 404, "{}", refused.text());
    Ok(())
}

/// A cgroup with one process.
struct Cgroup {
    name: String,
    folder: PathBuf,
    home: PathBuf,
    pid: u32,
}

impl Cgroup {
    /// Moves the process below the cgroup that it is in.
    fn of(pid: u32) -> Result<Self> {
        let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/mounts")?;
        // The unified hierarchy, or on hybrid hosts one that every process is in.
        let found = own.lines().find_map(|line| {
            let (number, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let mount = mounts.lines().find_map(|mount| {
                let fields: Vec<_> = mount.split(' ').collect();
                let [_, folder, kind, options, ..] = fields.as_slice() else {
                    return None;
                };
                let is_it = if number == "0" {
                    *kind == "cgroup2"
                } else {
                    let name = controllers.split(',').next()?;
                    *kind == "cgroup" && options.split(',').any(|option| option == name)
                };
                let writable = options.split(',').any(|option| option == "rw");
                (is_it && writable).then(|| PathBuf::from(folder))
            })?;
            Some((mount.join(path.trim_start_matches('/')), path.to_owned()))
        });
        let (home, path) = found.context("no cgroup that can be written to")?;
        let name = format!("e2e-{pid}");
        let folder = home.join(&name);
        std::fs::create_dir(&folder).with_context(|| format!("{}", folder.display()))?;
        let cgroup = Self {
            name: format!("{}/{name}", path.trim_end_matches('/')),
            folder,
            home,
            pid,
        };
        std::fs::write(cgroup.folder.join("cgroup.procs"), pid.to_string())?;
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // An error means that the process has ended.
        let _ = std::fs::write(self.home.join("cgroup.procs"), self.pid.to_string());
        let _ = std::fs::remove_dir(&self.folder);
    }
}

#[test]
fn a_process_that_began_just_now_is_in_it_and_a_second_takes_a_second() -> Result<()> {
    let agent = Agent::start()?;
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        let program = Split::compile("split.c")?;
        let split = program.spawn(LIFE)?;
        std::thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        let folded = Folded::of(&agent, &format!("seconds=1&service={}", split.service))?;
        quickest = quickest.min(begin.elapsed());
        let whole = folded.within("spin");
        ensure!(whole > 20, "{whole} samples of a new process: {folded:?}");
    }
    println!("a second took {quickest:?}");
    ensure!(
        quickest < Duration::from_millis(1200),
        "a second took {quickest:?}"
    );
    Ok(())
}

#[test]
fn the_page_shows_what_was_kept() -> Result<()> {
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 97, window: 1s}}")
        .start()?;
    let threads = Split::threads(LIFE)?;
    std::thread::sleep(Duration::from_secs(3));
    let response = agent.get(&format!("/flamegraph?service={}", threads.service))?;
    let page = response.text();
    ensure!(response.status == 200, "{} {page}", response.status);
    let policy = response
        .header("content-security-policy")
        .unwrap_or_default();
    ensure!(
        policy.contains("script-src 'self'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let (_, table) = page.split_once("<tbody>").context("no table")?;
    let (table, rest) = table
        .split_once("</tbody>")
        .context("no end of the table")?;
    ensure!(
        table.contains(">spin_one</th>") && table.contains(">spin_other</th>"),
        "{table}"
    );
    let (_, json) = rest
        .split_once("type=\"application/json\">")
        .context("no data")?;
    let (json, _) = json.split_once("</script>").context("no end of the data")?;
    let data: serde_json::Value = serde_json::from_str(json)?;
    for thread in ["spinner-one", "spinner-other"] {
        let names = data["threads"].as_array().context("threads")?;
        ensure!(
            names.iter().any(|name| name == thread),
            "{thread}: {names:?}"
        );
    }
    for part in ["/flamegraph.js", "/flamegraph.css"] {
        ensure!(
            page.contains(part) && agent.get(part)?.status == 200,
            "{part}"
        );
    }
    Ok(())
}

#[test]
fn what_is_not_kept_is_refused() -> Result<()> {
    let agent = Agent::start()?;
    let off = Agent::command()?
        .config("profile: {continuous: {hz: 0}}")
        .start()?;
    let refusals: BTreeMap<&str, (u16, &str)> = BTreeMap::from([
        ("profile?from=now-2h&to=now-1h", (404, "oldest")),
        ("profile?from=now&to=now-1h", (400, "before")),
        ("profile?from=yesterday", (400, "\"yesterday\"")),
        ("profile?from=now-1m&hz=50", (400, "hz")),
        ("profile?from=now-1m&service=e2e-none", (404, "known: ")),
        ("diff?service=a", (400, "the same")),
        ("diff?service=a&base_servce=b", (400, "\"base_servce\"")),
        ("diff?service=a&base_service=b&format=png", (400, "folded")),
    ]);
    for (query, (status, word)) in refusals {
        let response = agent.get(&format!("/debug/pprof/{query}"))?;
        let reason = response.text();
        ensure!(
            response.status == status && reason.contains(word) && reason.lines().count() == 1,
            "{query}: {} {reason}",
            response.status
        );
    }
    let response = off.get("/debug/pprof/profile?from=now-1m")?;
    ensure!(
        response.status == 404 && response.text().contains("is off"),
        "{}",
        response.text()
    );
    Ok(())
}
