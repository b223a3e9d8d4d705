//! Stacks of code without frame pointers: programs whose split of CPU time and whose depth are
//! known, by several compilers, stripped and not.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::programs::{self, Recipe, recipe};
use e2e::traces::{Trace, Traces};
use e2e::{Agent, Child, recursion};

/// Share of the CPU time that each function and what it calls are given.
const SHARES: [(&str, f64); 3] = [
    ("nest_fifty", 0.5),
    ("nest_thirty", 0.3),
    ("nest_twenty", 0.2),
];

/// Nested calls of each.
const DEPTH: usize = 60;

/// Least share of the samples that the three functions have together.
const OF_SPLIT: f64 = 0.95;

/// Flags of C and C++ by other compilers.
const FLAGS: [&str; 3] = ["-O2", "-fomit-frame-pointer", "-DDEPTH=60"];

/// Where a program is told to end by itself, should the test die: seconds of CPU time.
const LIFE: &str = "120";

/// A program that runs.
struct Program {
    child: Child,
    name: String,
}

impl Program {
    /// Makes the program under a name of its own and runs it.
    fn start(recipe: &Recipe, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let name = format!("e2e-unwind-{}", e2e::free_port()?);
        let binary = folder.path().join(&name);
        recipe.make(&binary)?;
        let mut command = Command::new(binary);
        command.args(arguments);
        let mut child = Child::spawn("unwind", command, folder)?;
        let log = child.folder().join("output.log");
        child.wait_until(Duration::from_secs(10), || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
        })?;
        Ok(Self { child, name })
    }

    fn profile(&self, agent: &Agent, seconds: u32) -> Result<Traces> {
        Traces::take_warm(agent, self.child.pid(), seconds, self.child.folder())
    }

    /// By an agent that knows nothing of it yet.
    fn profile_cold(&self, seconds: u32) -> Result<Traces> {
        Traces::take(self.child.pid(), seconds, self.child.folder())
    }
}

/// Go's names begin with the package's path.
fn is_named(function: &str, name: &str) -> bool {
    function.strip_prefix("main.").unwrap_or(function) == name
}

fn is_in(sample: &Trace, name: &str) -> bool {
    let mut functions = sample.functions.iter();
    functions.any(|function| is_named(function, name))
}

/// What the programs of `split.*` are made to be.
trait KnownSplit {
    /// Samples outside of the three functions, by the innermost and the outermost call.
    fn others(&self) -> BTreeMap<[&str; 2], u64>;

    /// Checks that shares and depth are that.
    fn check(&self, what: &str, complete: f64) -> Result<()>;
}

impl KnownSplit for Traces {
    fn others(&self) -> BTreeMap<[&str; 2], u64> {
        let mut others = BTreeMap::new();
        for trace in &self.traces {
            if !SHARES.iter().any(|(name, _)| is_in(trace, name)) {
                let ends = [trace.functions.first(), trace.functions.last()];
                let ends = ends.map(|function| function.map_or("", String::as_str));
                *others.entry(ends).or_default() += trace.count;
            }
        }
        others
    }

    fn check(&self, what: &str, complete: f64) -> Result<()> {
        let total = self.count(|_| true);
        let outcomes = self.outcomes();
        let whole = self.count(|sample| sample.unwind == "complete") / total;
        // The others are the start's, which is long on an emulated machine, and the runtime's own.
        let of_split = self.count(|sample| SHARES.iter().any(|(name, _)| is_in(sample, name)));
        println!("{what}: {total} samples, {of_split} in the three, {outcomes:?}");
        ensure!(
            total >= 1000.0,
            "{what}: {total} samples are too few to tell"
        );
        // Go's scheduler and its watching thread, on stacks of their own: the slower system calls are, the more.
        let is_scheduler = |sample: &Trace| {
            let outermost = sample.functions.last();
            e2e::is_emulated() && outermost.is_some_and(|name| name.starts_with("runtime.m"))
        };
        let expected = whole * total - self.count(is_scheduler);
        ensure!(
            whole >= complete && of_split >= OF_SPLIT * expected,
            "{what}: {whole:.4} complete, {of_split} in the three: {outcomes:?}; others: {:?}",
            self.others()
        );
        let is_meant = |sample: &Trace| e2e::is_emulated() || sample.unwind == "complete";
        let all = if e2e::is_emulated() {
            of_split
        } else {
            whole * total
        };
        for (name, expected) in SHARES {
            let share = self.count(|sample| is_meant(sample) && is_in(sample, name)) / all;
            println!("{what}: {name} {share:.4}");
            ensure!(
                (share - expected).abs() <= e2e::share_tolerance(),
                "{what}: {name} has {share:.4} of {all} samples; expected {expected}"
            );
            let bottoms = [name.replace("nest", "spend"), "main.burn".to_owned()];
            for sample in self.traces.iter().filter(|sample| is_in(sample, name)) {
                let functions = &sample.functions;
                let depth = functions.iter().filter(|function| is_named(function, name));
                let depth = depth.count();
                // While the nest is entered or left, it is less deep.
                let at_bottom = functions.iter().any(|function| bottoms.contains(function));
                ensure!(
                    !at_bottom || sample.unwind != "complete" || depth == DEPTH,
                    "{what}: {depth} nested calls of {name}: {functions:?}"
                );
            }
        }
        Ok(())
    }
}

/// Programs that run at the same time share the CPUs; each is profiled by itself.
fn check_shares(what: &str, recipe: &Recipe, complete: f64) -> Result<()> {
    let program = Program::start(recipe, &[LIFE])?;
    let profile = program.profile(&Agent::for_profiles()?, 10)?;
    ensure!(
        profile.count(|sample| sample.functions.iter().any(|name| name == "main")) > 0.0,
        "{what}: {} was not reached",
        program.name
    );
    profile.check(what, complete)
}

#[test]
fn c_by_gcc_has_its_shares_and_depth() -> Result<()> {
    check_shares("gcc", &programs::SPLIT, 0.999)
}

#[test]
fn c_by_clang_has_its_shares_and_depth() -> Result<()> {
    check_shares("clang", &recipe("clang", "split.c", &FLAGS), 0.999)
}

#[test]
fn a_stripped_program_has_its_shares_and_depth() -> Result<()> {
    check_shares("stripped", &programs::SPLIT_STRIPPED, 0.999)
}

#[test]
fn a_static_program_with_musl_has_its_shares_and_depth() -> Result<()> {
    // Debian's musl has no unwind rows; stacks that end in its `clock_gettime` are cut short.
    let flags = &[FLAGS[0], FLAGS[1], FLAGS[2], "-static"];
    check_shares("musl", &recipe("musl-gcc", "split.c", flags), 0.9)
}

#[test]
fn cpp_with_exceptions_has_its_shares_and_depth() -> Result<()> {
    // While an exception is on its way, the unwinder itself switches stacks, which no rule tells.
    check_shares("g++", &recipe("g++", "split.cpp", &FLAGS), 0.99)
}

#[test]
fn rust_has_its_shares_and_depth() -> Result<()> {
    let program = Program::start(&programs::SPLIT_RUST, &[LIFE])?;
    program
        .profile(&Agent::for_profiles()?, 10)?
        .check("rustc", 0.999)
}

#[test]
fn go_without_symbols_has_its_shares_and_depth() -> Result<()> {
    let program = Program::start(&programs::SPLIT_GO, &[LIFE])?;
    let profile = program.profile(&Agent::for_profiles()?, 10)?;
    let main = profile
        .traces
        .iter()
        .filter(|sample| sample.has("main.main"));
    let mut places = main.flat_map(|sample| &sample.places);
    ensure!(
        places.any(|place| place.contains("split.go:")),
        "no lines: {:?}",
        profile.traces
    );
    profile.check("go", 0.999)
}

#[test]
fn go_is_followed_from_one_stack_to_another() -> Result<()> {
    // The collector of garbage works on the stack of the thread, called from the goroutine's.
    let program = Program::start(&programs::GARBAGE_GO, &[LIFE])?;
    let profile = program.profile(&Agent::for_profiles()?, 5)?;
    let total = profile.count(|_| true);
    let whole = profile.count(|sample| sample.unwind == "complete");
    let across = profile.count(|sample| {
        let calls = sample.functions.windows(2);
        // The one that asked for the other stack is there as well.
        let mut across = calls.filter(|pair| {
            pair[0].starts_with("runtime.systemstack") && pair[1] == "runtime.gcBgMarkWorker"
        });
        sample.unwind == "complete" && across.next().is_some() && sample.has("runtime.goexit")
    });
    println!(
        "garbage: {total} samples, {:?}, {across} across",
        profile.outcomes()
    );
    ensure!(
        total >= 500.0 && whole >= 0.999 * total,
        "{:?}",
        profile.outcomes()
    );
    ensure!(across >= 0.02 * total, "{across} of {total}");
    Ok(())
}

/// A stack on another stack, a library that is loaded later, an exec, depth, layouts of files.
struct Case {
    name: &'static str,
    recipe: Recipe,
    arguments: &'static [&'static str],
    /// Functions that a complete stack has, each so often.
    frames: &'static [(&'static str, usize)],
}

const CASES: [Case; 6] = [
    Case {
        name: "signal handler on a stack of its own",
        recipe: programs::STACKS,
        arguments: &["signal"],
        frames: &[
            ("in_handler", 6),
            ("handler", 1),
            ("nested", 61),
            ("main", 1),
        ],
    },
    Case {
        name: "signal handler, position-dependent",
        recipe: programs::STACKS_NO_PIE,
        arguments: &["signal"],
        frames: &[
            ("in_handler", 6),
            ("handler", 1),
            ("nested", 61),
            ("main", 1),
        ],
    },
    Case {
        name: "signal handler, static and position-independent",
        recipe: programs::STACKS_STATIC,
        arguments: &["signal"],
        frames: &[
            ("in_handler", 6),
            ("handler", 1),
            ("nested", 61),
            ("main", 1),
        ],
    },
    Case {
        name: "900 calls deep",
        recipe: programs::STACKS,
        arguments: &["deep", "900"],
        frames: &[("nested", 901), ("main", 1)],
    },
    Case {
        name: "through the C library and back",
        recipe: programs::STACKS,
        arguments: &["sort"],
        frames: &[("compare", 1), ("sort", 1), ("main", 1)],
    },
    Case {
        name: "an image that was executed meanwhile",
        recipe: programs::STACKS,
        arguments: &["exec"],
        frames: &[("nested", 61), ("main", 1)],
    },
];

#[test]
fn stacks_are_whole_where_it_is_hard() -> Result<()> {
    let agent = Agent::for_profiles()?;
    for case in &CASES {
        let program = Program::start(&case.recipe, case.arguments)?;
        // What happens meanwhile does so soon after the start.
        let is_changing = case.arguments[0] == "exec";
        let profile = if is_changing {
            program.profile_cold(3)?
        } else {
            program.profile(&agent, 3)?
        };
        let total = profile.count(|_| true);
        let whole = profile.count(|sample| sample.unwind == "complete");
        let as_expected = profile.count(|sample| {
            sample.unwind == "complete"
                && case.frames.iter().all(|(name, times)| {
                    let found = sample.functions.iter().filter(|function| function == name);
                    found.count() == *times
                })
        });
        println!(
            "{}: {total} samples, {:?}, {as_expected} as expected",
            case.name,
            profile.outcomes()
        );
        ensure!(total >= 300.0, "{}: {total} samples", case.name);
        // The exec takes place half way, and its first samples come before its rows.
        let share = if is_changing { 0.8 } else { 0.999 };
        ensure!(
            whole >= share * total,
            "{}: {:?}",
            case.name,
            profile.outcomes()
        );
        ensure!(
            as_expected >= 0.3 * total,
            "{}: {as_expected} of {total}",
            case.name
        );
    }
    Ok(())
}

/// Of a service, whose processes the agent knows, from the first sample on: a second takes a second all
/// the same.
#[test]
fn the_first_second_of_a_service_is_whole() -> Result<()> {
    let agent = Agent::for_profiles()?;
    let program = Program::start(&programs::SPLIT, &[LIFE])?;
    let name = &program.name;
    let begin = Instant::now();
    let profile = Traces::of(&agent, &format!("seconds=1&hz=997&service={name}"))?;
    let lasted = begin.elapsed();
    let total = profile.count(|_| true);
    let whole = profile.count(|sample| sample.unwind == "complete");
    println!("{whole} of {total} in {lasted:?}, {:?}", profile.outcomes());
    ensure!(
        total >= 300.0 && (whole >= 0.99 * total || e2e::is_emulated()),
        "{:?}",
        profile.outcomes()
    );
    ensure!(
        lasted < Duration::from_millis(1500) || e2e::is_emulated(),
        "a second took {lasted:?}"
    );
    Ok(())
}

#[test]
fn no_caller_is_left_out_in_code_without_rows() -> Result<()> {
    let program = Program::start(&programs::RECURSION, &[LIFE])?;
    recursion::check("C", &program.profile(&Agent::for_profiles()?, 3)?)
}

#[test]
fn a_stack_that_is_too_deep_says_so() -> Result<()> {
    let program = Program::start(&programs::STACKS, &["deep", "3000"])?;
    let profile = program.profile(&Agent::for_profiles()?, 1)?;
    let truncated = profile.count(|sample| sample.unwind == "truncated");
    ensure!(
        truncated == profile.count(|_| true),
        "{:?}",
        profile.outcomes()
    );
    let deepest = profile.traces.iter().map(|sample| sample.functions.len());
    ensure!(deepest.max().unwrap_or_default() >= 512);
    Ok(())
}

#[test]
fn a_return_address_that_is_none_ends_a_stack_and_loses_nothing() -> Result<()> {
    let agent = Agent::start()?;
    let program = Program::start(&programs::STACKS, &["wild"])?;
    let pid = program.child.pid();
    let target = format!("/debug/pprof/flamegraph?format=folded&seconds=2&hz=499&pid={pid}");
    let folded = agent.get(&target)?.text();
    println!("{folded}");
    let metrics = agent.metrics()?;
    let samples = |outcome| metrics.sum("telltale_profile_samples_total", &[("outcome", outcome)]);
    ensure!(samples("lost") == 0.0, "{} were lost", samples("lost"));
    ensure!(metrics.lost("sampler", "unread") == 0.0);
    let counts = folded.lines().filter_map(|line| line.rsplit(' ').next());
    let taken: f64 = counts.flat_map(str::parse::<f64>).sum();
    let ended = samples("unverified");
    ensure!(
        taken >= 300.0 && ended >= 0.95 * taken,
        "{ended} of {taken} ended there"
    );
    Ok(())
}

#[test]
fn a_library_that_is_loaded_meanwhile_is_walked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let library: PathBuf = folder.path().join("liblate.so");
    programs::LATE.make(&library)?;
    let path = library.to_str().context("a path in UTF-8")?;
    let program = Program::start(&programs::STACKS, &["load", path])?;
    let profile = program.profile_cold(4)?;
    let whole = profile.count(|sample| {
        // GCC gives a function that other files may replace a second name.
        let late = sample
            .functions
            .iter()
            .filter(|name| name.starts_with("late"));
        sample.unwind == "complete" && late.count() == 21
    });
    let total = profile.count(|_| true);
    println!(
        "{total} samples, {:?}, {whole} in the library",
        profile.outcomes()
    );
    // It is loaded after a second of four.
    ensure!(
        whole >= 0.5 * total,
        "{whole} of {total}: {:?}",
        profile.outcomes()
    );
    Ok(())
}
