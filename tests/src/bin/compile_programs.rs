//! Compiles what suites in guests need: `compile_programs FOLDER`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use e2e::programs;

fn main() -> Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).context("no folder")?.into();
    for recipe in programs::FOR_GUESTS {
        recipe.compile(&folder.join(recipe.name()))?;
    }
    Ok(())
}
