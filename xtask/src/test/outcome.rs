//! Runs `cargo test` and counts what it says.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::command::shown;

/// Tests counted by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// What a run of tests gave.
pub(crate) struct Outcome {
    name: String,
    counts: Counts,
    succeeded: bool,
    elapsed: Duration,
}

impl Outcome {
    /// Runs the command with its output shown, and counts.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn of(name: &str, mut command: Command) -> Result<Self> {
        println!("\n== {name}\n$ {}", shown(&command));
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", shown(&command)))?;
        let mut counts = Counts::default();
        if let Some(stdout) = child.stdout.take() {
            // Tests may print what is no UTF-8.
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line?;
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                counts.add(&line);
            }
        }
        let succeeded = child.wait()?.success();
        if !succeeded && counts.failed == 0 {
            // It did not build, or a test program died before it could tell.
            counts.failed = 1;
        }
        Ok(Self {
            name: name.to_owned(),
            counts,
            succeeded,
            elapsed: start.elapsed(),
        })
    }
}

impl Counts {
    /// Adds libtest's line `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        // A test that ran with `--nocapture` can have left its own words before it.
        let Some((_, result)) = line.split_once("test result: ") else {
            return;
        };
        let Some((_, numbers)) = result.split_once(". ") else {
            return;
        };
        for part in numbers.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

/// Prints a table of the outcomes and the total; the exit status says whether all succeeded.
pub(crate) fn print_summary(outcomes: &[Outcome]) -> ExitCode {
    println!(
        "\n{:<28} {:>7} {:>7} {:>8} {:>8}",
        "", "passed", "failed", "skipped", "seconds"
    );
    let mut total = Counts::default();
    for Outcome {
        name,
        counts,
        succeeded,
        elapsed,
    } in outcomes
    {
        let Counts {
            passed,
            failed,
            skipped,
        } = counts;
        let mark = if *succeeded { "" } else { "  FAILED" };
        let seconds = elapsed.as_secs();
        println!("{name:<28} {passed:>7} {failed:>7} {skipped:>8} {seconds:>8}{mark}");
        total.passed += passed;
        total.failed += failed;
        total.skipped += skipped;
    }
    println!(
        "\n{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    if outcomes.iter().all(|outcome| outcome.succeeded) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_summed() {
        let mut counts = Counts::default();
        counts.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s");
        counts.add("x: test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        counts.add("test tests::some ... ok");
        assert_eq!(
            counts,
            Counts {
                passed: 4,
                failed: 2,
                skipped: 1
            }
        );
    }

    #[test]
    fn a_run_that_dies_without_a_word_counts_as_a_failure() {
        let mut command = Command::new("sh");
        command.args(["-c", "kill -9 $$"]);
        let outcome = Outcome::of("dies", command).unwrap();
        assert_eq!(outcome.counts.failed, 1);
        assert!(!outcome.succeeded);
    }
}
