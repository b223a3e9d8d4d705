//! What a sample takes in the kernel.

use std::process::Command;

use anyhow::{Result, ensure};

use super::programs::Turns;
use super::{ON_DEMAND, Setting, stacks};
use crate::bench::exposition::total;
use crate::bench::figure::{Figure, Reach};
use crate::bench::pairs::median;
use crate::bench::server::Kept;

/// The program runs whenever a clock ticks while anything has the processor, and leaves at once where that
/// is not the target: what such a run takes is measured with a target that never runs, and subtracted.
///
/// # Errors
/// When the program cannot be compiled, or the agent does not start or answer.
pub(super) fn measure(setting: &Setting) -> Result<Vec<Figure>> {
    let turns = Turns::new(setting.folder.path())?;
    let agent = setting.agent(ON_DEMAND)?;
    let busy = turns.start(&setting.processors.server, 60)?;
    let asleep = Kept(Command::new("sleep").arg("60").spawn()?);
    // Its rows are there then.
    setting.profile(&agent, &busy, 1, 997)?;
    let measure = |child: &Kept, seconds: u32| -> Result<Ran> {
        let before = Ran::of(&agent.metrics()?, 0);
        let folded = setting.profile(&agent, child, seconds, 997)?;
        let samples = stacks(&folded).map(|(_, count)| count).sum();
        Ok(Ran::of(&agent.metrics()?, samples).since(&before))
    };
    let others = measure(&asleep, 3)?;
    ensure!(others.runs > 0.0, "the sampling program did not run");
    let idle_us = others.seconds * 1e6 / others.runs;
    let mut all = Vec::new();
    for _ in 0..4 {
        let ran = measure(&busy, 3)?;
        ensure!(ran.samples > 0, "no samples of a busy program");
        let of_others = (ran.runs - ran.samples as f64).max(0.0);
        all.push((ran.seconds * 1e6 - of_others * idle_us) / ran.samples as f64);
    }
    agent.stop()?;
    let us = median(all.iter().copied());
    let (low, high) = (
        all.iter().copied().fold(f64::MAX, f64::min),
        all.iter().copied().fold(f64::MIN, f64::max),
    );
    Ok(vec![
        Figure::new(
            "kernel time a sample of 70 native frames",
            us,
            "µs",
            format!(
                "{us:.2} µs ({low:.2} – {high:.2}, four profiles of 3 s); {idle_us:.2} µs where another process runs"
            ),
        )
        .reach(Reach::AtMost(8.0)),
    ])
}

/// What the sampling program did meanwhile, by the kernel's statistics.
struct Ran {
    seconds: f64,
    runs: f64,
    /// Of the target.
    samples: u64,
}

impl Ran {
    fn of(metrics: &str, samples: u64) -> Self {
        let of = |name| total(metrics, name, |labels| labels.contains("program=\"sample"));
        Self {
            seconds: of("telltale_bpf_run_seconds_total"),
            runs: of("telltale_bpf_runs_total"),
            samples,
        }
    }

    fn since(self, before: &Self) -> Self {
        Self {
            seconds: self.seconds - before.seconds,
            runs: self.runs - before.runs,
            samples: self.samples,
        }
    }
}
