//! Off-CPU profiles: where a program waits, and for how long.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{Agent, Folded, Split};

const LIFE: Duration = Duration::from_secs(60);

/// Microseconds by stack.
fn waits(agent: &Agent, query: &str) -> Result<Folded> {
    Folded::of(agent, &format!("type=off_cpu&{query}"))
}

#[test]
fn waits_have_the_programs_shares_depth_and_length() -> Result<()> {
    let agent = Agent::start()?;
    let program = Split::compile("waits.c")?.run(LIFE)?;
    let pid = program.child.pid();
    let begin = Instant::now();
    let waits_of = waits(&agent, &format!("pid={pid}&seconds=4"))?;
    let lasted_us = begin.elapsed().as_micros() as f64;
    let total = waits_of.total();
    println!("{total} µs of waiting in {lasted_us}");
    for (function, expected) in [("wait_long", 0.75), ("wait_short", 0.25)] {
        let share = waits_of.within(function) as f64 / total as f64;
        println!("{function}: {share:.3}");
        ensure!((share - expected).abs() < 0.05, "{function}: {share:.3}");
    }
    // It does nothing else; what it waited when the profile began is not seen.
    ensure!(total as f64 > 3.7e6, "{total} µs of waiting");
    ensure!(total as f64 <= lasted_us, "{total} µs of waiting");
    let nested = |stack: &[String]| stack.iter().filter(|name| *name == "wait_long").count();
    let deepest = waits_of.0.iter().map(|(stack, _)| nested(stack)).max();
    ensure!(deepest == Some(20), "{deepest:?} nested calls");
    ensure!(waits_of.within("main") == total, "a stack is cut");

    let longer = waits(&agent, &format!("pid={pid}&seconds=1&min_us=20000"))?;
    ensure!(
        longer.within("wait_long") > 500_000 && longer.within("wait_short") == 0,
        "{longer:?}"
    );
    Ok(())
}

#[test]
fn one_at_a_time_and_beside_samples() -> Result<()> {
    let agent = Agent::start()?;
    let waiting = Split::compile("waits.c")?.run(LIFE)?;
    let busy = Split::start(LIFE)?;
    std::thread::scope(|scope| {
        let first =
            scope.spawn(|| waits(&agent, &format!("pid={}&seconds=3", waiting.child.pid())));
        std::thread::sleep(Duration::from_millis(500));
        let second = agent.get("/debug/pprof/profile?type=off_cpu&seconds=1")?;
        ensure!(second.status == 429, "{}", second.text());
        // Samples of the processor meanwhile neither get into the waits nor end them.
        let pid = busy.child.pid();
        let samples = agent.get(&format!(
            "/debug/pprof/flamegraph?format=folded&pid={pid}&seconds=1"
        ))?;
        ensure!(samples.text().contains("nest_fifty"), "{}", samples.text());
        let first = first.join().expect("no panic")?;
        ensure!(first.within("wait_long") > 1_500_000, "{first:?}");
        ensure!(first.within("nest_fifty") == 0, "{first:?}");
        Ok(())
    })
}
