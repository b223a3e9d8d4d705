//! What `workloads/recursion.*` are made to be.

use anyhow::{Result, ensure};

use crate::traces::{Trace, Traces};

/// A function, and who alone calls it; but for the outermost one.
const CALLS: [[&str; 2]; 3] = [["last", "even"], ["even", "odd"], ["odd", "even"]];

/// That one.
const OUTERMOST: &str = "even";

/// Checks that of each stack no caller was left out: wherever the function was, also before it had a frame and
/// after.
///
/// # Errors
/// When one was, or a function has few samples.
pub fn check(what: &str, profile: &Traces) -> Result<()> {
    let innermost = |trace: &Trace| trace.functions.iter().find_map(|function| call(function));
    for call in &CALLS {
        let count = profile.count(|trace| innermost(trace) == Some(call));
        println!("{what}: {count} in {}", call[0]);
        // An emulated machine is interrupted between pieces of code, seldom in one that is so small.
        let least = if crate::is_emulated() { 1.0 } else { 20.0 };
        ensure!(count >= least, "{what}: {count} samples in {}", call[0]);
    }
    // Another one calls the outermost of them; and what has no name may be any.
    let may_follow = |[name, caller]: &[&str; 2], next: &str| match call(next) {
        Some([next, _]) => next == caller,
        None => *name == OUTERMOST || next.starts_with("[jit"),
    };
    let has_gap = |trace: &Trace| {
        let mut pairs = trace.functions.windows(2);
        pairs.any(|pair| call(&pair[0]).is_some_and(|call| !may_follow(call, &pair[1])))
    };
    let wrong = profile.traces.iter().find(|trace| has_gap(trace));
    ensure!(
        wrong.is_none(),
        "{what}: {} of {} lack a caller: {wrong:?}",
        profile.count(has_gap),
        profile.count(|_| true)
    );
    Ok(())
}

/// The call of a function, named as C, V8, Node's perf maps and Java's have it.
fn call(function: &str) -> Option<&'static [&'static str; 2]> {
    let words = || function.split([' ', '.', '(', '*', '~', '^', ':', '+']);
    CALLS
        .iter()
        .find(|[name, _]| words().any(|word| word == *name))
}
