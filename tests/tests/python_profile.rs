//! Stacks of Python, mixed with native ones: programs whose split of CPU time, depth and calls are
//! known, on every interpreter that is at hand.
//!
//! `TELLTALE_PYTHONS` names further ones, separated by `:`, beside `python3` of `PATH`, Debian's own,
//! which is linked statically and stripped, and CPython 3.14 with a shared library.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::traces::{Trace, Traces};
use e2e::{Agent, Child, Client, Request, Server, prerequisite};

/// Share of the CPU time that each function and what it calls are given.
const SHARES: [(&str, f64); 3] = [
    ("nest_fifty", 0.5),
    ("nest_thirty", 0.3),
    ("nest_twenty", 0.2),
];

/// Nested calls of each.
const DEPTH: usize = 20;

/// Share of the stacks that have to be whole.
const COMPLETE: f64 = 0.999;

/// Who calls whom in `workloads/calls.py`, by the last part of their names.
const CALLS: [(&str, &[&str]); 29] = [
    ("<module>", &["worker", "spin"]),
    ("worker", &["all_calls"]),
    (
        "all_calls",
        &[
            "<listcomp>",
            "<genexpr>",
            "<lambda>",
            "<module>",
            "__init__",
            "__lt__",
            "doubled",
            "made",
            "by_sorted",
            "by_reduce",
            "by_json",
            "by_re",
            "all_tasks",
            "task",
            "closure",
            "with_closure",
            "delegating",
            "wrapper",
            "caught",
            "recursive",
        ],
    ),
    ("<listcomp>", &["__init__"]),
    ("<genexpr>", &["delegating"]),
    ("<lambda>", &["spin"]),
    ("__init__", &["by_constructor"]),
    ("__lt__", &["by_operator"]),
    ("doubled", &["spin"]),
    ("made", &["spin"]),
    ("by_constructor", &["spin"]),
    ("by_operator", &["spin"]),
    ("by_sorted", &["spin"]),
    ("by_reduce", &["spin"]),
    ("by_json", &["spin"]),
    ("by_re", &["spin"]),
    ("delegating", &["generator"]),
    ("generator", &["spin"]),
    ("all_tasks", &["numbers", "task"]),
    ("with_closure", &[]),
    ("numbers", &["spin"]),
    ("task", &["awaited"]),
    ("awaited", &["spin"]),
    ("closure", &["spin"]),
    ("wrapper", &["decorated"]),
    ("decorated", &["spin"]),
    ("caught", &["raising", "spin"]),
    ("raising", &["spin"]),
    ("recursive", &["recursive", "spin"]),
];

/// Functions that C calls on behalf of their caller.
const BY_NATIVE: [&str; 5] = ["by_sorted", "by_reduce", "by_json", "by_re", "__lt__"];

/// An interpreter.
struct Python {
    path: PathBuf,
    minor: u32,
}

impl Python {
    /// Those at hand, each once.
    fn all() -> Result<Vec<Self>> {
        let further = env::var_os("TELLTALE_PYTHONS").unwrap_or_default();
        let paths = env::split_paths(&further)
            .filter(|path| !path.as_os_str().is_empty())
            .chain(
                [PathBuf::from("/usr/bin/python3")]
                    .into_iter()
                    .filter(|path| path.exists()),
            )
            .chain([
                prerequisite::on_path("python3")?,
                prerequisite::newest_python()?,
            ]);
        let mut pythons = BTreeMap::new();
        for path in paths {
            let output = Command::new(&path)
                .args([
                    "-c",
                    "import sys; print(sys.version_info[1], sys.executable)",
                ])
                .output()
                .with_context(|| path.display().to_string())?;
            let text = String::from_utf8(output.stdout)?;
            let (minor, executable) = text.trim().split_once(' ').context("no version")?;
            let path = fs::canonicalize(executable)?;
            let minor = minor.parse()?;
            pythons.insert(path.clone(), Self { path, minor });
        }
        Ok(pythons.into_values().collect())
    }

    fn start(&self, script: &str, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(&self.path);
        command.arg(prerequisite::workload(script)).args(arguments);
        ready(Child::spawn(script, command, tempfile::tempdir()?)?)
    }
}

/// The child once it has said that it is at work.
fn ready(mut child: Child) -> Result<Child> {
    let log = child.folder().join("output.log");
    child.wait_until(Duration::from_secs(10), || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
    })?;
    Ok(child)
}

/// Checks that enough stacks are whole; gives the number of all but the first ones, which may come
/// before what is known of the interpreter's file is loaded: on a busy machine, that takes a moment.
fn check_complete(what: &str, profile: &Traces) -> Result<f64> {
    let total = profile.count(|_| true);
    let early = profile.count(|trace| trace.unwind == "unverified");
    let complete = profile.count(|trace| trace.unwind == "complete") / (total - early);
    println!("{what}: {total} samples, {:?}", profile.outcomes());
    ensure!(
        total >= 300.0,
        "{what}: {total} samples are too few to tell"
    );
    ensure!(
        complete >= COMPLETE && early <= 0.3 * total,
        "{what}: {complete:.4} complete: {:?}; others: {:?}",
        profile.outcomes(),
        profile
            .traces
            .iter()
            .filter(|trace| !["complete", "unverified"].contains(&&*trace.unwind))
            .collect::<Vec<_>>()
    );
    Ok(total - early)
}

/// Checks `workloads/split.py`: shares and depth.
fn check_split(what: &str, profile: &Traces) -> Result<()> {
    let total = check_complete(what, profile)?;
    for (name, expected) in SHARES {
        let share = profile.count(|trace| trace.has(name)) / total;
        println!("{what}: {name} {share:.4}");
        ensure!(
            (share - expected).abs() <= e2e::share_tolerance(),
            "{what}: {name} has {share:.4} of {total} samples; expected {expected}"
        );
    }
    check_depth(what, profile)
}

/// Checks that each of its stacks is as deep as written, and that nothing else has its file.
fn check_depth(what: &str, profile: &Traces) -> Result<()> {
    let known = [
        "<module>",
        "spin",
        "nest_fifty",
        "nest_thirty",
        "nest_twenty",
    ];
    for trace in &profile.traces {
        let own: Vec<_> = trace
            .functions
            .iter()
            .zip(&trace.places)
            .filter(|(_, place)| place.contains("split.py:"))
            .map(|(name, _)| &**name)
            .collect();
        let depth = own.iter().filter(|name| name.starts_with("nest")).count();
        let is_as_written = own.iter().all(|name| known.contains(name))
            && own.last() == Some(&"<module>")
            && (!trace.has("spin") || depth == DEPTH && own.len() == DEPTH + 2);
        ensure!(
            is_as_written || trace.unwind != "complete",
            "{what}: {trace:?}"
        );
    }
    Ok(())
}

#[test]
fn shares_and_depth_are_those_of_the_program() -> Result<()> {
    let agent = Agent::for_profiles()?;
    for python in Python::all()? {
        let child = python.start("split.py", &["60"])?;
        let profile = Traces::take_warm(&agent, child.pid(), 4, child.folder())?;
        check_split(&python.path.display().to_string(), &profile)?;
    }
    Ok(())
}

#[test]
fn every_call_is_one_that_the_program_makes() -> Result<()> {
    let source = fs::read_to_string(prerequisite::workload("calls.py"))?;
    let source: Vec<_> = source.lines().collect();
    let agent = Agent::for_profiles()?;
    for python in Python::all()? {
        let what = python.path.display().to_string();
        let child = python.start("calls.py", &["60", "2"])?;
        let profile = Traces::take_warm(&agent, child.pid(), 4, child.folder())?;
        let total = check_complete(&what, &profile)?;
        for trace in &profile.traces {
            check_calls(trace, &source, python.minor)
                .with_context(|| format!("{what}: {trace:?}"))?;
        }
        let names = CALLS.iter().flat_map(|(_, callees)| *callees);
        // Makes a function, and is done.
        let names = names.filter(|name| **name != "with_closure");
        // Comprehensions are no functions any more.
        for name in names.filter(|name| python.minor < 12 || **name != "<listcomp>") {
            let found =
                profile.count(|trace| trace.functions.iter().any(|f| last_part(f) == *name));
            ensure!(found > 0.0, "{what}: no sample of {total} has {name}");
        }
        if python.minor >= 11 {
            for name in ["Item.doubled", "with_closure.<locals>.closure"] {
                ensure!(
                    profile.count(|trace| trace.has(name)) > 0.0,
                    "{what}: no {name}"
                );
            }
        }
    }
    Ok(())
}

/// A function of Python in a stack.
struct Call<'a> {
    name: &'a str,
    /// Its line, as written; none of code that was given as text.
    line: Option<&'a str>,
    /// Place in the stack.
    at: usize,
}

/// Checks a stack of `workloads/calls.py` from the outside in.
fn check_calls(trace: &Trace, source: &[&str], minor: u32) -> Result<()> {
    let functions = trace.functions.iter().zip(&trace.places).enumerate();
    let mut calls: Vec<_> = functions
        .filter_map(|(at, (name, place))| {
            let (file, line) = place.rsplit_once(':')?;
            let is_own = file.ends_with("calls.py");
            let line: usize = line.parse().ok()?;
            let name = last_part(name);
            (is_own || file == "<string>").then_some(Call {
                name,
                line: source.get(line.checked_sub(1)?).copied().filter(|_| is_own),
                at,
            })
        })
        .collect();
    calls.reverse();
    for pair in calls.windows(2) {
        let [caller, callee] = pair else { continue };
        let (_, callees) = CALLS
            .iter()
            .find(|(name, _)| *name == caller.name)
            .with_context(|| format!("`{}` is not in the program", caller.name))?;
        ensure!(
            callees.contains(&callee.name),
            "`{}` does not call `{}`",
            caller.name,
            callee.name
        );
        let is_written = !["__", "<"]
            .iter()
            .any(|begin| callee.name.starts_with(begin))
            && !["task", "closure", "wrapper", "decorated"].contains(&callee.name);
        if is_written && let Some(line) = caller.line {
            ensure!(
                line.contains(callee.name),
                "`{}` calls `{}`, but not in `{line}`",
                caller.name,
                callee.name
            );
        }
        let between = &trace.places[callee.at + 1..caller.at];
        let native = between
            .iter()
            .filter(|place| !place.contains(".py:"))
            .count();
        let is_by_native = match callee.name {
            "recursive" => caller.name == "recursive",
            name => BY_NATIVE.contains(&name),
        };
        if is_by_native {
            ensure!(native > 0, "no native frame before `{}`", callee.name);
        } else if minor >= 11 && callee.name == "all_calls" {
            ensure!(
                native == 0,
                "{native} native frames before `{}`",
                callee.name
            );
        }
    }
    let root = calls.first().map_or("", |call| call.name);
    // Threads begin in the standard library.
    ensure!(
        ["<module>", "worker", ""].contains(&root) || trace.unwind != "complete",
        "`{root}` was called by nobody"
    );
    Ok(())
}

/// `closure` of `with_closure.<locals>.closure`, as versions before 3.11 call it.
fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[test]
fn functions_that_are_gone_have_no_names_but_never_wrong_ones() -> Result<()> {
    for python in Python::all()? {
        let child = python.start("churn.py", &["60"])?;
        let profile = Traces::take(child.pid(), 3, child.folder())?;
        let total = profile.count(|_| true);
        let mut named = 0;
        for trace in &profile.traces {
            for (name, place) in trace.functions.iter().zip(&trace.places) {
                if let Some(number) = name.strip_prefix("churn_") {
                    let expected = format!("<churn_{number}>:");
                    ensure!(place.starts_with(&expected), "{name} in {place}");
                    named += trace.count;
                }
            }
        }
        println!("{}: {named} of {total} named", python.path.display());
        ensure!(
            named > 0 && (named as f64) < 0.95 * total,
            "{named} of {total}"
        );
    }
    Ok(())
}

#[test]
fn a_process_that_has_just_begun_is_there_and_so_is_one_in_a_pid_namespace() -> Result<()> {
    let python = prerequisite::python("python")?;
    let mut command = Command::new(&python);
    command.arg(prerequisite::workload("split.py")).arg("60");
    let child = Child::spawn("split", command, tempfile::tempdir()?)?;
    thread::sleep(Duration::from_millis(100));
    let profile = Traces::take(child.pid(), 2, child.folder())?;
    let total = profile.count(|_| true);
    let nested = profile.count(|trace| SHARES.iter().any(|(name, _)| trace.has(name)));
    println!("100 ms old: {nested} of {total}, {:?}", profile.outcomes());
    // It may still have been starting.
    ensure!(nested >= 0.9 * total, "{nested} of {total}");

    let mut command = Command::new(prerequisite::on_path("unshare")?);
    command.args(["--pid", "--fork", "--kill-child", "--"]);
    command.arg(&python).arg(prerequisite::workload("split.py"));
    command.arg("60");
    let child = ready(Child::spawn("split", command, tempfile::tempdir()?)?)?;
    let unshare = child.pid();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
    let pid = children.trim().parse().context("a child")?;
    let profile = Traces::take(pid, 2, child.folder())?;
    check_complete("in a pid namespace", &profile)?;
    check_depth("in a pid namespace", &profile)
}

/// Deeper than is captured: the stacks are there, with what is, and say that something is missing.
#[test]
fn calls_beyond_those_that_are_captured_are_told() -> Result<()> {
    for python in Python::all()? {
        let what = python.path.display();
        let child = python.start("deep.py", &["60", "900", "spin"])?;
        let profile = Traces::take(child.pid(), 2, child.folder())?;
        println!("{what}: {:?}", profile.outcomes());
        let is_cut = |trace: &Trace| ["interpreter", "truncated"].contains(&&*trace.unwind);
        let is_deep = |trace: &Trace| {
            let calls = trace.functions.iter().filter(|name| *name == "nested");
            calls.count() >= 100
        };
        let cut = profile.count(is_cut);
        let deep = profile.count(|trace| is_cut(trace) && is_deep(trace));
        // The others are those of the start, which is long on an emulated machine.
        let least = if e2e::is_emulated() { 0.5 } else { 0.99 };
        ensure!(
            cut >= 200.0 && deep >= least * cut,
            "{what}: {deep} of {cut}, {:?}",
            profile.outcomes()
        );
        let whole = |trace: &&Trace| trace.unwind == "complete" && trace.has("spin");
        let wrong = profile.traces.iter().find(whole);
        ensure!(wrong.is_none(), "{what}: {wrong:?}");
    }
    Ok(())
}

#[test]
fn waits_have_their_frames_too() -> Result<()> {
    let agent = Agent::for_profiles()?;
    for python in Python::all()? {
        let what = python.path.display();
        let child = python.start("deep.py", &["60", "20", "sleep"])?;
        let query = format!("type=off_cpu&seconds=1&pid={}", child.pid());
        let waits = Traces::of(&agent, &query)?;
        let total = waits.count(|_| true);
        let whole = waits.count(|trace| {
            let nested = trace.functions.iter().filter(|name| *name == "nested");
            trace.unwind == "complete" && trace.has("<module>") && nested.count() == 20
        });
        println!("{what}: {whole} of {total}, {:?}", waits.outcomes());
        ensure!(whole >= 0.95 * total, "{what}: {:?}", waits.outcomes());
    }
    Ok(())
}

/// The same interpreter, but by its own word of a version that nobody knows.
#[test]
fn an_interpreter_whose_frames_are_not_read_is_told() -> Result<()> {
    let python = Python::all()?
        .into_iter()
        .find(|python| python.minor < 13 && python.path.starts_with("/usr/bin"))
        .context("Debian's Python")?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("python");
    let mut bytes = fs::read(&python.path)?;
    let output = Command::new(&python.path)
        .args(["-c", "import sys; print(sys.hexversion)"])
        .output()?;
    let version: u64 = String::from_utf8(output.stdout)?.trim().parse()?;
    let (known, unknown) = (version.to_le_bytes(), (version ^ 0x40_0000).to_le_bytes());
    for word in bytes.as_chunks_mut::<8>().0 {
        if *word == known {
            *word = unknown;
        }
    }
    fs::write(&copy, bytes)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new(&copy);
    command.arg(prerequisite::workload("split.py")).arg("60");
    let child = ready(Child::spawn("split", command, folder)?)?;
    let agent = Agent::for_profiles()?;
    let query = format!("seconds=1&hz=997&pid={}", child.pid());
    Traces::of(&agent, &query)?;
    let profile = Traces::of(&agent, &query)?;
    let total = profile.count(|_| true);
    let told = profile.count(|trace| trace.unwind == "interpreter");
    println!("{told} of {total}, {:?}", profile.outcomes());
    ensure!(
        told >= 0.99 * total && profile.count(|trace| trace.has("<module>")) == 0.0,
        "{:?}",
        profile.outcomes()
    );
    Ok(())
}

/// While the kernel moves a page, nobody can read it: frames that are in it are missing, and nothing says that
/// there are none.
#[test]
fn frames_that_cannot_be_read_are_told() -> Result<()> {
    let agent = Agent::for_profiles()?;
    for python in Python::all()? {
        // The program knows where these have their frames.
        if python.minor < 11 {
            continue;
        }
        let what = python.path.display().to_string();
        let child = python.start("hidden.py", &["60"])?;
        let profile = Traces::take_warm(&agent, child.pid(), 2, child.folder())?;
        let total = profile.count(|_| true);
        let told = profile.count(|trace| trace.unwind == "interpreter");
        let early = profile.count(|trace| trace.unwind == "unverified");
        println!("{what}: {told} of {total}, {:?}", profile.outcomes());
        ensure!(
            total >= 300.0 && told + early == total && early <= 0.3 * total,
            "{what}: {:?}",
            profile.traces
        );
    }
    Ok(())
}

/// While one program after the other starts: who ran the interpreter has its frames, or says that they
/// are missing. Two things see to that, and it takes both to be gone for this to fail: the interpreter is
/// known before stacks can be walked, and a stack says whether it was.
#[test]
fn stacks_of_programs_that_start_are_told_as_whole_only_with_their_frames() -> Result<()> {
    let agent = Agent::for_profiles()?;
    let python = prerequisite::python("python")?;
    let profile = thread::scope(|scope| {
        let profile = scope.spawn(|| Traces::of(&agent, "seconds=4&hz=997"));
        let end = Instant::now() + Duration::from_millis(3500);
        while Instant::now() < end {
            let mut command = Command::new(&python);
            command.arg(prerequisite::workload("split.py")).arg("0.25");
            command.output()?;
        }
        profile.join().expect("no panic")
    })?;
    let nested = |trace: &Trace| SHARES.iter().any(|(name, _)| trace.has(name));
    let is_frameless = |trace: &Trace| {
        let loops = ["_PyEval_EvalFrameDefault", "_PyEval_EvalFrameDefault.cold"];
        loops.iter().any(|name| trace.has(name))
    };
    println!(
        "{} with frames, {} without, of which {} are told as whole",
        profile.count(nested),
        profile.count(is_frameless),
        profile.count(|trace| is_frameless(trace) && trace.unwind == "complete"),
    );
    ensure!(profile.count(nested) >= 500.0, "{:?}", profile.outcomes());
    let wrong = profile
        .traces
        .iter()
        .find(|trace| is_frameless(trace) && trace.unwind == "complete");
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}

#[test]
fn a_service_shows_its_handlers() -> Result<()> {
    let agent = Agent::start()?;
    let server = Server::uvicorn()?;
    let stop = AtomicBool::new(false);
    let profile = thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<()> {
            let mut client = Client::connect(server.address)?;
            while !stop.load(Relaxed) {
                client.send(&Request::new("GET", "/items/7?limit=2"))?;
            }
            Ok(())
        });
        let pid = server.pid();
        // Coroutines are entered all the time: two of 10,000 samples come while 3.11 sets up a call and has told
        // of it before anything in it is right. Long enough that chance does not make one of 1,000 of them.
        let profile = Traces::of(&agent, &format!("seconds=8&hz=997&pid={pid}"));
        stop.store(true, Relaxed);
        load.join()
            .map_err(|_| anyhow::anyhow!("the load died"))??;
        profile
    })?;
    let targets: serde_json::Value = serde_json::from_str(&agent.get("/targets")?.text())?;
    let targets = targets["targets"].as_array().context("targets")?;
    let target = targets.iter().find(|target| target["pid"] == server.pid());
    let interpreter = &target.context("the server is no target")?["interpreter"];
    ensure!(
        interpreter
            .as_str()
            .is_some_and(|text| text.starts_with("CPython 3.")),
        "{interpreter}"
    );
    let total = check_complete("uvicorn", &profile)?;
    let handled = profile.count(|trace| {
        let place = |name| trace.functions.iter().position(|f| last_part(f) == name);
        // Leaf first: the handler's middleware is called by uvicorn, that by the event loop.
        place("__call__") < place("run_asgi")
            && place("run_asgi") < place("<module>")
            && place("run_asgi").is_some()
    });
    println!("uvicorn: {handled} of {total} in the application");
    ensure!(
        handled >= 0.3 * total,
        "{handled} of {total} in the application"
    );
    Ok(())
}
