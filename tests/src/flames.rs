//! Flamegraphs on the page, beside the folded stacks of the same samples.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::browser::Browser;
use crate::folded::Folded;

impl Folded {
    /// Each function's own samples and those of all that it called, in percent.
    #[must_use]
    pub fn functions(&self) -> BTreeMap<&str, (f64, f64)> {
        let share = 100.0 / self.total() as f64;
        let mut functions = BTreeMap::<_, (f64, f64)>::new();
        for (stack, count) in &self.0 {
            let names = &stack[1..];
            if let Some(leaf) = names.last() {
                functions.entry(&**leaf).or_default().0 += *count as f64 * share;
            }
            for name in names.iter().collect::<BTreeSet<_>>() {
                functions.entry(name).or_default().1 += *count as f64 * share;
            }
        }
        functions
    }

    /// What is at the outermost `function` and below it.
    #[must_use]
    pub fn below(&self, function: &str) -> Self {
        let within = |(stack, count): &(Vec<String>, u64)| {
            let at = stack.iter().position(|name| name == function)?;
            // The first name is the service's.
            Some((stack[at - 1..].to_vec(), *count))
        };
        Self(self.0.iter().filter_map(within).collect())
    }
}

/// Is it what a text like `13.8 %` says, to its last digit?
#[must_use]
pub fn is_near(text: &str, percent: f64) -> bool {
    let number = text.split(' ').next().unwrap_or_default().parse::<f64>();
    number.is_ok_and(|number| (number - percent).abs() < 0.051)
}

/// The table on the page says of every function what the folded stacks say.
///
/// # Errors
/// Where it does not.
pub fn check_table(browser: &mut Browser, folded: &Folded) -> Result<()> {
    let rows: Vec<[String; 3]> = browser.get(
        "[...document.querySelectorAll('#top tbody tr')].map((row) => \
         [...row.cells].map((cell) => cell.textContent))",
    )?;
    let functions = folded.functions();
    ensure!(
        rows.len() == functions.len().min(100),
        "{} rows",
        rows.len()
    );
    for [own, total, name] in &rows {
        let expected = functions.get(&**name).with_context(|| name.clone())?;
        ensure!(
            is_near(own, expected.0) && is_near(total, expected.1),
            "{name}: {own} and {total}, {expected:?}"
        );
    }
    let more: Option<String> =
        browser.get("document.querySelector('.top .hint:not([hidden])')?.textContent ?? null")?;
    let beyond = functions.len().saturating_sub(100);
    let expected = (beyond > 0).then(|| format!("and {beyond} more functions"));
    ensure!(more == expected, "{more:?}, {expected:?}");
    Ok(())
}

/// A rectangle of the flamegraph on the page.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Frame {
    /// The function, or what else it stands for.
    pub name: String,
    /// Its left edge, in pixels.
    pub x: f64,
    /// In pixels.
    pub width: f64,
    /// Is it marked as one that was looked for?
    pub found: bool,
}

/// All that the page shows.
///
/// # Errors
/// When it shows no flamegraph.
pub fn frames(browser: &mut Browser) -> Result<Vec<Frame>> {
    browser.get(
        "[...document.querySelectorAll('#graph div')].map((cell) => ({ name: cell.title.split('\\n')[0], \
         x: cell.getBoundingClientRect().x, width: cell.getBoundingClientRect().width, \
         found: cell.classList.contains('found') }))",
    )
}

/// The element of the first one of that name.
#[must_use]
pub fn frame(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('#graph div')].find((cell) => cell.title.startsWith({name:?}))"
    )
}

/// How much of the graph's width has frames of that name, in percent.
#[must_use]
pub fn width(frames: &[Frame], name: &str) -> f64 {
    let covered = |name: &str| {
        let (mut sum, mut end) = (0.0, 0.0);
        let named = frames.iter().filter(|frame| frame.name == name);
        let mut spans: Vec<_> = named
            .map(|frame| (frame.x, frame.x + frame.width))
            .collect();
        spans.sort_by(|one, other| one.0.total_cmp(&other.0));
        for (left, right) in spans {
            sum += f64::max(right - f64::max(left, end), 0.0);
            end = f64::max(end, right);
        }
        sum
    };
    covered(name) * 100.0 / covered("all")
}
