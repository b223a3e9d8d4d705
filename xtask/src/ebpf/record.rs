//! `ebpf/telltale.bpf.toolchain`: which tools and sources gave the committed object.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::sources;
use super::toolchain::Toolchain;
use crate::paths;

const HEADER: &str = "\
# What telltale.bpf.o was built from: written by `cargo xtask ebpf build`,
# compared by `cargo xtask ebpf verify`.
";

/// The name of the line with the sources' fingerprint.
const SOURCES: &str = "sources";

/// Where the record is.
pub(crate) fn path() -> PathBuf {
    paths::ebpf().join("telltale.bpf.toolchain")
}

/// The record's text for this toolchain and the sources as they are.
///
/// # Errors
/// When a tool does not run or a source cannot be read.
pub(crate) fn here(toolchain: &Toolchain) -> Result<String> {
    let mut lines = toolchain.versions()?;
    lines.push((SOURCES, sources::fingerprint()?));
    Ok(text(&lines))
}

/// The committed record's text.
///
/// # Errors
/// When there is none.
pub(crate) fn committed() -> Result<String> {
    fs::read_to_string(path()).with_context(|| format!("cannot read {}", path().display()))
}

/// What differs between the record and this build.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Differences {
    /// The sources changed after the object was built.
    pub(crate) sources: bool,
    /// Tools of another version, as `recorded … here …`.
    pub(crate) tools: Vec<String>,
}

/// Compares two records.
pub(crate) fn differences(recorded: &str, here: &str) -> Differences {
    let lines = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let (recorded, here) = (lines(recorded), lines(here));
    let missing = recorded.iter().filter(|line| !here.contains(line));
    let added = here.iter().filter(|line| !recorded.contains(line));
    let (sources, tools): (Vec<_>, Vec<_>) = missing
        .map(|line| ("recorded", line))
        .chain(added.map(|line| ("here", line)))
        .partition(|(_, line)| line.starts_with(SOURCES));
    let tools = tools
        .into_iter()
        .map(|(whose, line)| format!("{whose:<9} {line}"));
    Differences {
        sources: !sources.is_empty(),
        tools: tools.collect(),
    }
}

fn text(lines: &[(&str, String)]) -> String {
    lines
        .iter()
        .fold(HEADER.to_owned(), |mut text, (name, value)| {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{name} {value}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_tools_are_told_apart() {
        let record = |linker: &str, sources: &str| {
            text(&[
                ("rustc", "1".into()),
                ("linker", linker.into()),
                (SOURCES, sources.into()),
            ])
        };
        let same = differences(&record("2", "a"), &record("2", "a"));
        assert_eq!(
            same,
            Differences {
                sources: false,
                tools: vec![]
            }
        );
        let tools = vec![
            "recorded  linker 2".to_owned(),
            "here      linker 3".to_owned(),
        ];
        let other_tools = differences(&record("2", "a"), &record("3", "a"));
        assert_eq!(
            other_tools,
            Differences {
                sources: false,
                tools: tools.clone()
            }
        );
        let both = differences(&record("2", "a"), &record("3", "b"));
        assert_eq!(
            both,
            Differences {
                sources: true,
                tools
            }
        );
    }
}
