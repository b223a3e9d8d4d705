//! `ebpf/telltale.bpf.toolchain`: which tools gave the committed object.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::paths;

/// Tools and their versions, in the order of the file.
pub(crate) type Versions = Vec<(&'static str, String)>;

const HEADER: &str = "\
# The tools that built telltale.bpf.o: written by `cargo xtask ebpf build`,
# compared by `cargo xtask ebpf verify`.
";

/// Where the record is.
pub(crate) fn path() -> PathBuf {
    paths::ebpf().join("telltale.bpf.toolchain")
}

/// The record's text for these versions.
pub(crate) fn text(versions: &Versions) -> String {
    versions
        .iter()
        .fold(HEADER.to_owned(), |mut text, (tool, version)| {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{tool} {version}");
            text
        })
}

/// The committed record's text.
///
/// # Errors
/// When there is none.
pub(crate) fn committed() -> Result<String> {
    fs::read_to_string(path()).with_context(|| format!("cannot read {}", path().display()))
}

/// The lines in which two records differ, as `recorded … here …`.
pub(crate) fn differences(recorded: &str, here: &str) -> Vec<String> {
    let lines = |text: &str| {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (recorded, here) = (lines(recorded), lines(here));
    let missing = recorded.iter().filter(|line| !here.contains(line));
    let added = here.iter().filter(|line| !recorded.contains(line));
    missing
        .map(|line| format!("recorded: {line}"))
        .chain(added.map(|line| format!("here:     {line}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tools_that_differ_are_told() {
        let versions =
            |linker: &str| vec![("rustc", "1".to_owned()), ("linker", linker.to_owned())];
        let (recorded, here) = (text(&versions("2")), text(&versions("3")));
        assert_eq!(differences(&recorded, &recorded), Vec::<String>::new());
        assert_eq!(
            differences(&recorded, &here),
            ["recorded: linker 2", "here:     linker 3"]
        );
    }
}
