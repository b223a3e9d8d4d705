//! Stacks of code that a runtime compiled while it ran: Node and Java programs whose split of CPU
//! time and whose depth are known; LuaJIT and PyPy, whose functions have no names.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::traces::{Trace, Traces};
use e2e::{Agent, Child, prerequisite, recursion};

/// Share of the CPU time that each function and what it calls are given.
const SHARES: [(&str, f64); 3] = [("nestFifty", 0.5), ("nestThirty", 0.3), ("nestTwenty", 0.2)];

/// Lines where the functions of `workloads/split.js` begin.
const LINES: [(&str, u32); 7] = [
    ("(anonymous)", 1),
    ("cpuMicroseconds", 9),
    ("spin", 14),
    ("burn", 20),
    ("nestFifty", 31),
    ("nestThirty", 37),
    ("nestTwenty", 43),
];

/// Nested calls of each.
const DEPTH: usize = 20;

/// Largest error of a share, at 997 samples a second.
const TOLERANCE: f64 = 0.01;

/// The same where others had the CPU as well, and few samples are left, by their number's root.
const NOISE: f64 = 0.5;

/// Share of the stacks that have to be whole.
const COMPLETE: f64 = 0.999;

/// Who calls whom in `workloads/calls.js`.
const CALLS: [(&str, &[&str]); 33] = [
    (
        "main",
        &[
            "Shape",
            "area",
            "get size",
            "make",
            "open",
            "method",
            "inner",
            "anon",
            "generator",
            "asynchronous",
            "closureMaker",
            "closure",
            "ünïcode",
            "日本",
            "mapped",
            "sorted",
            "replaced",
            "json",
            "evaluated",
            "(anonymous)",
            "size",
        ],
    ),
    ("Shape", &["constructorCalls"]),
    ("area", &["methodCalls"]),
    ("get size", &["getterCalls"]),
    ("size", &["getterCalls"]),
    ("make", &["staticCalls"]),
    ("open", &["#secret"]),
    ("#secret", &["privateCalls"]),
    ("constructorCalls", &["spin"]),
    ("methodCalls", &["spin"]),
    ("getterCalls", &["spin"]),
    ("staticCalls", &["spin"]),
    ("privateCalls", &["spin"]),
    ("computedCalls", &["spin"]),
    ("method", &["arrow"]),
    ("arrow", &["spin"]),
    ("inner", &["spin"]),
    ("anon", &["spin"]),
    ("generator", &["spin"]),
    ("asynchronous", &["spin"]),
    ("closure", &["spin"]),
    ("ünïcode", &["spin"]),
    ("日本", &["spin"]),
    ("mapped", &["mapper"]),
    ("mapper", &["spin"]),
    ("sorted", &["comparator"]),
    ("comparator", &["spin"]),
    ("replaced", &["replacer"]),
    ("replacer", &["spin"]),
    ("json", &["toJSON"]),
    ("toJSON", &["spin"]),
    ("evaluated", &["spin"]),
    // The script itself, what `new Function` makes, and a method whose name is computed.
    ("(anonymous)", &["main", "spin", "computedCalls"]),
];

/// What stands for a function of JavaScript whose name could not be read.
const UNNAMED: [&str; 2] = ["[jit node]", "Builtins_InterpreterEntryTrampoline"];

/// Where a program ends by itself, should the test die: seconds.
const LIFE: &str = "60";

/// A program that runs; what its runtime wrote to `/tmp` goes with it.
struct Program {
    child: Child,
}

impl Program {
    fn node(flags: &[&str], script: &str) -> Result<Self> {
        let mut command = Command::new(prerequisite::on_path("node")?);
        command
            .args(flags)
            .arg(prerequisite::workload(script))
            .arg(LIFE);
        Self::start("node", command, tempfile::tempdir()?)
    }

    fn java(flags: &[&str], class: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let output = Command::new(prerequisite::on_path("javac")?)
            .arg("-d")
            .arg(folder.path())
            .arg(prerequisite::workload(&format!("{class}.java")))
            .output()?;
        ensure!(
            output.status.success(),
            "javac: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut command = Command::new(prerequisite::on_path("java")?);
        command
            .args(flags)
            .arg("-cp")
            .arg(folder.path())
            .args([class, LIFE]);
        Self::start("java", command, folder)
    }

    fn start(name: &str, mut command: Command, folder: tempfile::TempDir) -> Result<Self> {
        // Node writes a log beside the perf map.
        command.current_dir(folder.path());
        let mut child = Child::spawn(name, command, folder)?;
        let log = child.folder().join("output.log");
        child.wait_until(Duration::from_secs(10), || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
        })?;
        Ok(Self { child })
    }

    /// Has a Java program list the functions that it has compiled.
    fn list(&self) -> Result<()> {
        let output = Command::new(prerequisite::on_path("jcmd")?)
            .args([&self.child.pid().to_string(), "Compiler.perfmap"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(file_exists(&self.perf_map()), "jcmd: {text}");
        Ok(())
    }

    fn perf_map(&self) -> PathBuf {
        format!("/tmp/perf-{}.map", self.child.pid()).into()
    }

    fn profile(&self, seconds: u32) -> Result<Traces> {
        Traces::take(self.child.pid(), seconds, self.child.folder())
    }

    /// By a running agent, which knows the process's files from one profile to the next.
    fn profile_by(&self, agent: &Agent, seconds: u32) -> Result<Traces> {
        let pid = self.child.pid();
        Traces::of(agent, &format!("seconds={seconds}&hz=997&pid={pid}"))
    }

    /// Waits until the agent knows what the process runs.
    fn wait_until_known(&self, agent: &Agent) -> Result<String> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.profile_by(agent, 1)?;
            let targets: serde_json::Value = serde_json::from_str(&agent.get("/targets")?.text())?;
            let targets = targets["targets"].as_array().context("targets")?;
            let own = |target: &&serde_json::Value| target["pid"] == self.child.pid();
            let interpreter = targets.iter().find(own).map(|own| &own["interpreter"]);
            if let Some(interpreter) = interpreter.and_then(|text| text.as_str()) {
                return Ok(interpreter.to_owned());
            }
            ensure!(Instant::now() < end, "the interpreter stays unknown");
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.perf_map());
    }
}

/// Is the function named so? `name` as Node's perf maps, Java's and V8's own frames have it.
fn is_named(function: &str, name: &str) -> bool {
    let words = || function.split([' ', '.', '(', '*', '~', '^', ':', '+']);
    words().any(|word| word == name)
}

fn has(trace: &Trace, name: &str) -> bool {
    trace
        .functions
        .iter()
        .any(|function| is_named(function, name))
}

/// Samples of the split alone: the runtime's own threads have some as well.
fn check_shares(what: &str, profile: &Traces) -> Result<f64> {
    let total = profile.count(|trace| SHARES.iter().any(|(name, _)| has(trace, name)));
    println!("{what}: {total} samples, {:?}", profile.outcomes());
    ensure!(
        total >= 200.0,
        "{what}: {total} samples are too few to tell"
    );
    for (name, expected) in SHARES {
        let share = profile.count(|trace| has(trace, name)) / total;
        println!("{what}: {name} {share:.4}");
        ensure!(
            (share - expected).abs() <= TOLERANCE.max(NOISE / total.sqrt()),
            "{what}: {name} has {share:.4} of {total} samples; expected {expected}"
        );
    }
    Ok(total)
}

/// The stacks of the split end at the thread's entry, but for the first ones, which may come before
/// the rows of the runtime's file are loaded.
fn check_complete(what: &str, profile: &Traces, is_split: impl Fn(&Trace) -> bool) -> Result<()> {
    let total = profile.count(&is_split);
    let is_early = |trace: &Trace| ["unverified", "interpreter"].contains(&&*trace.unwind);
    let early = profile.count(|trace| is_split(trace) && is_early(trace));
    let whole = profile.count(|trace| is_split(trace) && trace.unwind == "complete");
    ensure!(
        whole >= COMPLETE * (total - early) && early <= 0.3 * total,
        "{what}: {:?}",
        profile.outcomes()
    );
    Ok(())
}

fn depth_of(trace: &Trace, name: &str) -> usize {
    let functions = trace.functions.iter();
    functions
        .filter(|function| is_named(function, name))
        .count()
}

fn file_exists(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

#[test]
fn functions_that_node_lists_have_their_names() -> Result<()> {
    let program = Program::node(&["--perf-basic-prof"], "split.js")?;
    ensure!(file_exists(&program.perf_map()), "node wrote no perf map");
    let profile = program.profile(3)?;
    check_shares("node --perf-basic-prof", &profile)?;
    check_complete("node --perf-basic-prof", &profile, |trace| {
        has(trace, "burn")
    })?;
    for trace in &profile.traces {
        for (name, _) in SHARES {
            let depth = depth_of(trace, name);
            ensure!(
                !has(trace, "burn") || depth == 0 || depth == DEPTH,
                "{depth} calls of {name}: {trace:?}"
            );
        }
    }
    Ok(())
}

/// What is checked without flags goes one after the other, so that the agent reads the file once.
#[test]
fn node_needs_no_flags() -> Result<()> {
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 0}}")
        .start()?;
    check_split_without_flags(&agent)?;
    check_calls(&agent, &["--no-turbo-inlining"], false)?;
    check_calls(&agent, &[], true)?;
    check_short_lives(&agent)
}

fn check_split_without_flags(agent: &Agent) -> Result<()> {
    let program = Program::node(&[], "split.js")?;
    let interpreter = program.wait_until_known(agent)?;
    ensure!(interpreter.starts_with("V8 1"), "{interpreter}");
    let profile = program.profile_by(agent, 2)?;
    let total = check_shares("node", &profile)?;
    check_complete("node", &profile, |trace| has(trace, "burn"))?;
    let burning = profile.count(|trace| trace.has("burn") || trace.has("[jit node]"));
    ensure!(total >= 0.95 * burning, "{total} of {burning} have names");
    for trace in profile.traces.iter().filter(|trace| trace.has("burn")) {
        let own = trace.functions.iter().zip(&trace.places);
        let own: Vec<_> = own
            .filter(|(_, place)| place.contains("split.js:"))
            .collect();
        let depth = own
            .iter()
            .filter(|(name, _)| name.starts_with("nest"))
            .count();
        let places_are_right = own.iter().all(|(name, place)| {
            let line = LINES.iter().find(|(known, _)| known == name);
            line.is_some_and(|(_, line)| place.ends_with(&format!("/split.js:{line}")))
        });
        ensure!(depth == DEPTH && places_are_right, "{trace:?}");
    }
    Ok(())
}

/// Each function of a stack was called by the one below, or by one that V8 compiled into that.
fn check_calls(agent: &Agent, flags: &[&str], may_be_inlined: bool) -> Result<()> {
    let program = Program::node(flags, "calls.js")?;
    let profile = program.profile_by(agent, 2)?;
    let calls = |caller: &str| CALLS.iter().find(|(name, _)| *name == caller);
    let mut seen = HashSet::new();
    for trace in &profile.traces {
        let own = trace.functions.iter().zip(&trace.places);
        // What is evaluated has no file, but a line. Between what has no name, somebody else may be.
        let own: Vec<_> = own
            .filter_map(|(name, place)| {
                if UNNAMED.contains(&&**name) {
                    return Some(UNNAMED[0]);
                }
                (place.starts_with(':') || place.contains("calls.js:")).then_some(&**name)
            })
            .collect();
        for pair in own.windows(2).filter(|pair| !pair.contains(&UNNAMED[0])) {
            let (callee, caller) = (pair[0], pair[1]);
            let mut reached = vec![caller];
            let mut next = 0;
            while next < reached.len() && (may_be_inlined || next == 0) {
                let callees = calls(reached[next]).map_or(&[][..], |(_, callees)| callees);
                let new: Vec<_> = callees
                    .iter()
                    .filter(|name| !reached.contains(name))
                    .collect();
                reached.extend(new);
                next += 1;
            }
            ensure!(
                reached[1..].contains(&callee),
                "`{caller}` does not call `{callee}`: {trace:?}"
            );
        }
        let named = own.into_iter().filter(|name| *name != UNNAMED[0]);
        seen.extend(named.map(str::to_owned));
    }
    println!(
        "node {flags:?}: {} functions, {:?}",
        seen.len(),
        profile.outcomes()
    );
    let least = if may_be_inlined { 10 } else { 25 };
    ensure!(seen.len() >= least, "{seen:?}");
    Ok(())
}

/// Functions that are gone when their names are read have none, but never another one's.
fn check_short_lives(agent: &Agent) -> Result<()> {
    let program = Program::node(&["--max-semi-space-size=1"], "churn.js")?;
    let profile = program.profile_by(agent, 2)?;
    let mut named = 0;
    for trace in &profile.traces {
        for (name, place) in trace.functions.iter().zip(&trace.places) {
            if let Some(number) = name.strip_prefix("churn_") {
                let file = format!("<churn_{number}>");
                let line = number.parse::<u32>()? % 7 + 1;
                ensure!(
                    *place == file || *place == format!("{file}:{line}"),
                    "{name} in {place}"
                );
                named += trace.count;
            }
        }
    }
    let total = profile.count(|_| true);
    println!("short lives: {named} of {total} named");
    ensure!(named as f64 >= 0.2 * total, "{named} of {total} named");
    Ok(())
}

#[test]
fn functions_that_java_lists_while_it_is_sampled_have_their_names() -> Result<()> {
    let program = Program::java(&["-XX:+PreserveFramePointer"], "Split")?;
    // Its functions are compiled by then.
    std::thread::sleep(Duration::from_secs(1));
    let unlisted = program.profile(1)?;
    let profile = std::thread::scope(|scope| {
        let listed = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            program.list()
        });
        let profile = program.profile(4);
        listed.join().expect("no panic")?;
        profile
    })?;
    let marked = |trace: &Trace| trace.has("[jit java]") && trace.has("JavaMain");
    ensure!(
        unlisted.count(marked) >= 0.8 * unlisted.count(|_| true),
        "before the list: {:?}",
        unlisted.traces
    );
    check_complete("java, unlisted", &unlisted, marked)?;
    check_shares("java", &profile)?;
    check_complete("java", &profile, |trace| has(trace, "burn"))
}

/// Wherever in its code a function is interrupted: its frame may not be there yet, or not any more.
#[test]
fn no_caller_is_left_out_in_compiled_code() -> Result<()> {
    let agent = Agent::for_profiles()?;
    // By all compilers: V8's optimizing one and the one before it.
    let flags: [(&str, &[&str]); 4] = [
        ("node", &["--no-turbo-inlining"]),
        ("node, baseline", &["--no-opt"]),
        (
            "node, listed",
            &["--no-turbo-inlining", "--perf-basic-prof"],
        ),
        ("node, baseline, listed", &["--no-opt", "--perf-basic-prof"]),
    ];
    for (what, flags) in flags {
        let program = Program::node(flags, "recursion.js")?;
        program.wait_until_known(&agent)?;
        recursion::check(what, &program.profile_by(&agent, 3)?)?;
    }
    // HotSpot's, likewise.
    for (what, flag) in [
        ("java", "-XX:+TieredCompilation"),
        ("java, C1", "-XX:TieredStopAtLevel=1"),
    ] {
        let separate = "-XX:CompileCommand=dontinline,Recursion.*";
        let flags = ["-XX:+PreserveFramePointer", separate, flag];
        let program = Program::java(&flags, "Recursion")?;
        std::thread::sleep(Duration::from_secs(2));
        program.list()?;
        recursion::check(what, &program.profile_by(&agent, 3)?)?;
    }
    Ok(())
}

/// Somebody asks for the list long after the agent has begun to look for one, and again after it was
/// deleted: names are there at once, also of what was sampled before.
#[test]
fn a_list_that_java_writes_late_is_found() -> Result<()> {
    let agent = Agent::start()?;
    let program = Program::java(&["-XX:+PreserveFramePointer"], "Split")?;
    let pid = program.child.pid();
    let kept = || Traces::of(&agent, &format!("pid={pid}&from=now-10s"));
    let named = |profile: &Traces| {
        let named = profile.count(|trace| SHARES.iter().any(|(name, _)| has(trace, name)));
        let all = profile.count(|trace| trace.has("JavaMain"));
        (named, all)
    };
    std::thread::sleep(Duration::from_secs(4));
    let (before, all) = named(&kept()?);
    ensure!(before == 0.0 && all >= 20.0, "{before} of {all} before");
    program.list()?;
    // What it compiled anew since then is on no list.
    for what in ["kept", "on demand", "kept after", "on demand after"] {
        if what == "kept after" {
            fs::remove_file(program.perf_map())?;
            program.list()?;
        }
        let profile = if what.starts_with("kept") {
            kept()?
        } else {
            program.profile_by(&agent, 1)?
        };
        let (named, all) = named(&profile);
        println!("{what}: {named} of {all}");
        ensure!(named >= 0.7 * all, "{what}: {named} of {all}");
    }
    Ok(())
}

/// Without its flag, compiled code keeps no frame pointers: nothing tells how its stacks go on.
#[test]
fn stacks_that_end_in_javas_code_are_not_told_as_whole() -> Result<()> {
    let program = Program::java(&["-XX:-PreserveFramePointer"], "Split")?;
    std::thread::sleep(Duration::from_secs(1));
    let profile = program.profile(2)?;
    let compiled = |trace: &Trace| trace.has("[jit java]");
    let total = profile.count(compiled);
    let whole = profile.count(|trace| compiled(trace) && trace.unwind == "complete");
    println!("{whole} of {total}, {:?}", profile.outcomes());
    ensure!(
        total >= 200.0 && whole <= 0.01 * total,
        "{whole} of {total}"
    );
    Ok(())
}

/// What tells nothing of its functions is marked with its name.
#[test]
fn what_luajit_and_pypy_compile_is_marked() -> Result<()> {
    for (runtime, script, mark) in [
        ("luajit", "spin.lua", "[jit luajit]"),
        ("pypy3", "spin.py", "[jit pypy]"),
    ] {
        let mut command = Command::new(prerequisite::on_path(runtime)?);
        command.arg(prerequisite::workload(script)).arg(LIFE);
        let program = Program::start(runtime, command, tempfile::tempdir()?)?;
        // The loop is compiled by then.
        std::thread::sleep(Duration::from_millis(500));
        let profile = program.profile(1)?;
        let total = profile.count(|_| true);
        let marked = profile.count(|trace| trace.has(mark));
        println!("{runtime}: {marked} of {total}, {:?}", profile.outcomes());
        ensure!(
            total >= 200.0 && marked >= 0.8 * total,
            "{runtime}: {marked} of {total} in {mark}"
        );
    }
    Ok(())
}
