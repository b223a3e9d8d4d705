//! What is in an object file of kernel programs.

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

/// Names of the kernel programs in an object: functions with a section of their own kind.
/// `.text` holds what programs call.
///
/// # Errors
/// When the bytes are no ELF object.
pub(crate) fn programs(bytes: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(bytes).context("not an object file")?;
    let mut names: Vec<String> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_global())
        .filter(|symbol| {
            let section = symbol
                .section_index()
                .and_then(|i| file.section_by_index(i).ok());
            section.is_some_and(|section| {
                section.kind() == SectionKind::Text && section.name() != Ok(".text")
            })
        })
        .filter_map(|symbol| symbol.name().ok().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}
