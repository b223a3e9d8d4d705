//! Stacks of code without frame pointers: programs whose split of CPU time and whose depth are
//! known, by several compilers, stripped and not, read back by `go tool pprof`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::traces::{Trace, Traces};
use e2e::{Agent, Child, prerequisite};

/// Share of the CPU time that each function and what it calls are given.
const SHARES: [(&str, f64); 3] = [
    ("nest_fifty", 0.5),
    ("nest_thirty", 0.3),
    ("nest_twenty", 0.2),
];

/// Nested calls of each.
const DEPTH: usize = 60;

/// Largest error of a share, at 997 samples a second.
const TOLERANCE: f64 = 0.01;

/// Where a program is told to end by itself, should the test die: seconds of CPU time.
const LIFE: &str = "120";

/// Flags of every C and C++ compiler.
const FLAGS: [&str; 3] = ["-O2", "-fomit-frame-pointer", "-DDEPTH=60"];

/// How a program is made.
struct Recipe {
    compiler: &'static str,
    flags: &'static [&'static str],
    source: &'static str,
    /// Without symbols, but for those of dynamic linking.
    is_stripped: bool,
}

const fn recipe(
    compiler: &'static str,
    source: &'static str,
    flags: &'static [&'static str],
) -> Recipe {
    Recipe {
        compiler,
        flags,
        source,
        is_stripped: false,
    }
}

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
        let mut command = Command::new(prerequisite::on_path(recipe.compiler)?);
        match recipe.compiler {
            "go" => _ = command.arg("build"),
            "rustc" => {}
            _ => _ = command.args(FLAGS),
        }
        command
            .args(recipe.flags)
            .arg("-o")
            .arg(&binary)
            .arg(prerequisite::workload(recipe.source));
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        if recipe.is_stripped {
            let status = Command::new(prerequisite::on_path("strip")?)
                .arg(&binary)
                .status()?;
            ensure!(status.success(), "strip: {status}");
        }
        let mut command = Command::new(binary);
        command.args(arguments);
        let mut child = Child::spawn("unwind", command, folder)?;
        let log = child.folder().join("output.log");
        child.wait_until(Duration::from_secs(10), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
        })?;
        Ok(Self { child, name })
    }

    fn profile(&self, seconds: u32) -> Result<Traces> {
        Traces::take(self.child.pid(), seconds, self.child.folder())
    }
}

/// What the programs of `split.*` are made to be.
trait KnownSplit {
    /// Checks that shares and depth are that.
    fn check(&self, what: &str, complete: f64) -> Result<()>;
}

impl KnownSplit for Traces {
    fn check(&self, what: &str, complete: f64) -> Result<()> {
        let total = self.count(|_| true);
        let outcomes = self.outcomes();
        let whole = self.count(|sample| sample.unwind == "complete") / total;
        println!("{what}: {total} samples, {outcomes:?}");
        ensure!(
            total >= 1000.0,
            "{what}: {total} samples are too few to tell"
        );
        ensure!(
            whole >= complete,
            "{what}: {whole:.4} complete, {outcomes:?}"
        );
        for (name, expected) in SHARES {
            // Go's names begin with the package's path.
            let names = [name.to_owned(), format!("main.{name}")];
            let is_in = |sample: &Trace| {
                sample
                    .functions
                    .iter()
                    .any(|function| names.contains(function))
            };
            let share =
                self.count(|sample| sample.unwind == "complete" && is_in(sample)) / (whole * total);
            println!("{what}: {name} {share:.4}");
            ensure!(
                (share - expected).abs() <= TOLERANCE,
                "{what}: {name} has {share:.4} of {total} samples; expected {expected}"
            );
            let bottoms = [name.replace("nest", "spend"), "main.burn".to_owned()];
            for sample in self.traces.iter().filter(|sample| is_in(sample)) {
                let functions = &sample.functions;
                let depth = functions.iter().filter(|function| names.contains(function));
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
    let profile = program.profile(10)?;
    ensure!(
        profile.count(|sample| sample.functions.iter().any(|name| name == "main")) > 0.0,
        "{what}: {} was not reached",
        program.name
    );
    profile.check(what, complete)
}

#[test]
fn c_by_gcc_has_its_shares_and_depth() -> Result<()> {
    check_shares("gcc", &recipe("gcc", "split.c", &[]), 0.999)
}

#[test]
fn c_by_clang_has_its_shares_and_depth() -> Result<()> {
    check_shares("clang", &recipe("clang", "split.c", &[]), 0.999)
}

#[test]
fn a_stripped_program_has_its_shares_and_depth() -> Result<()> {
    let recipe = Recipe {
        is_stripped: true,
        ..recipe("gcc", "split.c", &["-rdynamic"])
    };
    check_shares("stripped", &recipe, 0.999)
}

#[test]
fn a_static_program_with_musl_has_its_shares_and_depth() -> Result<()> {
    // Debian's musl has no unwind rows; stacks that end in its `clock_gettime` are cut short.
    check_shares("musl", &recipe("musl-gcc", "split.c", &["-static"]), 0.9)
}

#[test]
fn cpp_with_exceptions_has_its_shares_and_depth() -> Result<()> {
    // While an exception is on its way, the unwinder itself switches stacks, which no rule tells.
    check_shares("g++", &recipe("g++", "split.cpp", &[]), 0.99)
}

#[test]
fn rust_has_its_shares_and_depth() -> Result<()> {
    let recipe = recipe(
        "rustc",
        "split.rs",
        &["--edition", "2024", "-C", "opt-level=3"],
    );
    let program = Program::start(&recipe, &[LIFE])?;
    program.profile(10)?.check("rustc", 0.999)
}

#[test]
fn go_without_symbols_has_its_shares_and_depth() -> Result<()> {
    let recipe = recipe("go", "split.go", &["-ldflags=-s -w"]);
    let program = Program::start(&recipe, &[LIFE])?;
    let profile = program.profile(10)?;
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
    let program = Program::start(&recipe("go", "garbage.go", &["-ldflags=-s -w"]), &[LIFE])?;
    let profile = program.profile(5)?;
    let total = profile.count(|_| true);
    let whole = profile.count(|sample| sample.unwind == "complete");
    let across = profile.count(|sample| {
        sample.unwind == "complete"
            && [
                "runtime.systemstack",
                "runtime.gcBgMarkWorker",
                "runtime.goexit",
            ]
            .iter()
            .all(|name| {
                sample
                    .functions
                    .iter()
                    .any(|function| function.starts_with(name))
            })
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
    flags: &'static [&'static str],
    arguments: &'static [&'static str],
    /// Functions that a complete stack has, each so often.
    frames: &'static [(&'static str, usize)],
}

const CASES: [Case; 6] = [
    Case {
        name: "signal handler on a stack of its own",
        flags: &[],
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
        flags: &["-no-pie"],
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
        flags: &["-static-pie"],
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
        flags: &[],
        arguments: &["deep", "900"],
        frames: &[("nested", 901), ("main", 1)],
    },
    Case {
        name: "through the C library and back",
        flags: &[],
        arguments: &["sort"],
        frames: &[("compare", 1), ("sort", 1), ("main", 1)],
    },
    Case {
        name: "an image that was executed meanwhile",
        flags: &[],
        arguments: &["exec"],
        frames: &[("nested", 61), ("main", 1)],
    },
];

#[test]
fn stacks_are_whole_where_it_is_hard() -> Result<()> {
    for case in &CASES {
        let program = Program::start(&recipe("gcc", "stacks.c", case.flags), case.arguments)?;
        let profile = program.profile(3)?;
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
        let share = if case.arguments[0] == "exec" {
            0.8
        } else {
            0.999
        };
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

#[test]
fn a_stack_that_is_too_deep_says_so() -> Result<()> {
    let program = Program::start(&recipe("gcc", "stacks.c", &[]), &["deep", "3000"])?;
    let profile = program.profile(1)?;
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
    let program = Program::start(&recipe("gcc", "stacks.c", &[]), &["wild"])?;
    let pid = program.child.pid();
    let target = format!("/debug/pprof/flamegraph?format=folded&seconds=2&hz=499&pid={pid}");
    let folded = agent.get(&target)?.text();
    println!("{folded}");
    let metrics = agent.metrics()?;
    let samples = |outcome| metrics.sum("telltale_profile_samples_total", &[("outcome", outcome)]);
    ensure!(samples("lost") == 0.0, "{} were lost", samples("lost"));
    ensure!(metrics.lost("sampler", "unread") == 0.0);
    let ended = samples("unverified");
    ensure!(ended >= 800.0, "{ended} of 998 ended there");
    Ok(())
}

#[test]
fn a_library_that_is_loaded_meanwhile_is_walked() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let library: PathBuf = folder.path().join("liblate.so");
    let mut command = Command::new(prerequisite::on_path("gcc")?);
    command
        .args(FLAGS)
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(prerequisite::workload("late.c"));
    ensure!(command.status()?.success(), "{command:?}");
    let path = library.to_str().context("a path in UTF-8")?;
    let program = Program::start(&recipe("gcc", "stacks.c", &[]), &["load", path])?;
    let profile = program.profile(4)?;
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
