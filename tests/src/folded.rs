//! Folded stacks, as the agent gives them.

use anyhow::{Context as _, Result, ensure};

use crate::agent::Agent;

/// Stacks of names, outermost first, with their counts: samples, or microseconds of waiting.
#[derive(Debug)]
pub struct Folded(pub Vec<(Vec<String>, u64)>);

impl Folded {
    /// What the agent answers to a query of profiles.
    ///
    /// # Errors
    /// When that is not folded stacks.
    pub fn of(agent: &Agent, query: &str) -> Result<Self> {
        let path = format!("/debug/pprof/flamegraph?format=folded&{query}");
        let response = agent.get(&path)?;
        ensure!(response.status == 200, "{path}: {}", response.text());
        let lines = response.text();
        let stacks = lines.lines().map(|line| {
            let (stack, count) = line.rsplit_once(' ').context("a line without a count")?;
            Ok((
                stack.split(';').map(str::to_owned).collect(),
                count.parse()?,
            ))
        });
        Ok(Self(stacks.collect::<Result<_>>()?))
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// What has `function` somewhere on the stack.
    #[must_use]
    pub fn within(&self, function: &str) -> u64 {
        self.count(|name| name == function)
    }

    /// The same of any such name, in percent.
    pub fn percent(&self, is_it: impl Fn(&str) -> bool) -> f64 {
        self.count(is_it) as f64 * 100.0 / self.total() as f64
    }

    fn count(&self, is_it: impl Fn(&str) -> bool) -> u64 {
        let stacks = self.0.iter();
        let found = stacks.filter(|(stack, _)| stack.iter().any(|name| is_it(name)));
        found.map(|(_, count)| count).sum()
    }
}
