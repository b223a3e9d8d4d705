//! Installs what the tables of [`super::prerequisites`] name, telling it before.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::prerequisites::{FOLDERS, Folder, PROGRAMS, Recipe, workloads};
use crate::command::{output, run};
use crate::{host, paths};

/// A variable for the tests and what it names.
pub(crate) type Variable = (&'static str, PathBuf);

/// Sees to it that the suites find what they need, and returns the variables that lead there.
/// With `install` false, a lack is told and left: the tests that need it fail and say so.
///
/// # Errors
/// When something cannot be installed.
pub(crate) fn prepare(suites: &[String], install: bool) -> Result<Vec<Variable>> {
    let wanted = |of: &[&str]| {
        of.iter()
            .any(|suite| suites.iter().any(|name| name == suite))
    };
    let programs = PROGRAMS.iter().filter(|program| wanted(program.suites));
    let missing: Vec<_> = programs
        .filter(|program| host::find(program.name).is_none())
        .collect();
    let folders: Vec<_> = FOLDERS
        .iter()
        .filter(|folder| wanted(folder.suites) && workloads().join(folder.sources[0]).exists())
        .collect();
    let stale: Vec<_> = folders.iter().filter(|folder| !folder.is_fresh()).collect();

    if !missing.is_empty() || !stale.is_empty() {
        println!("The end-to-end tests need what is not here yet:");
        for program in &missing {
            println!("  {:<12} Debian package {}", program.name, program.package);
        }
        for folder in &stale {
            let from = folder.sources.join(", ");
            println!(
                "  {:<12} {}, from tests/workloads/{from}",
                folder.recipe.tool(),
                folder.what
            );
        }
        if install {
            println!(
                "The packages go into the system, the rest into {}.",
                tools().display()
            );
        } else {
            println!("Installing nothing, as told: tests that need these fail.");
        }
    }
    if install {
        host::install_packages(&missing.iter().map(|program| program.package).collect())?;
        for folder in stale {
            folder
                .make()
                .with_context(|| format!("cannot make: {}", folder.what))?;
        }
    }
    Ok(folders
        .iter()
        .map(|folder| (folder.variable, folder.value()))
        .collect())
}

/// The Python environment with the servers of the tests, made where it is not there.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn python_environment() -> Result<PathBuf> {
    let mut folders = FOLDERS.iter();
    let folder = folders
        .find(|folder| matches!(folder.recipe, Recipe::Python))
        .context("no Python environment is listed")?;
    if !folder.is_fresh() {
        println!("making {}: {}", folder.path().display(), folder.what);
        folder.make()?;
    }
    Ok(folder.value())
}

/// CPython 3.14, made where it is not there.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn newest_python() -> Result<PathBuf> {
    let mut folders = FOLDERS.iter();
    let folder = folders
        .find(|folder| matches!(folder.recipe, Recipe::MavenPython))
        .context("no such Python is listed")?;
    if !folder.is_fresh() {
        host::install_packages(&BTreeSet::from(["maven"]))?;
        println!("making {}: {}", folder.path().display(), folder.what);
        folder.make()?;
    }
    Ok(folder.value())
}

/// Folder of all that the tests need and the system does not hold.
fn tools() -> PathBuf {
    paths::target().join("test-tools")
}

impl Folder {
    fn path(&self) -> PathBuf {
        tools().join(self.name)
    }

    /// What its variable holds.
    fn value(&self) -> PathBuf {
        match self.recipe {
            Recipe::Python => self.path(),
            Recipe::Node => self.path().join("node_modules"),
            Recipe::Go => self.path().join("otelcol"),
            Recipe::Maven => self.path().join("classpath"),
            Recipe::MavenPython => {
                let unpacked = "org/bytedeco/cpython/linux-x86_64/bin/python3.14";
                self.path().join(unpacked)
            }
        }
    }

    fn stamp(&self) -> PathBuf {
        self.path().join("made-from")
    }

    fn is_fresh(&self) -> bool {
        let made_from = fs::read(self.stamp());
        made_from.is_ok_and(|stamp| self.content().is_ok_and(|content| content == stamp))
    }

    /// All of its sources, one after the other.
    fn content(&self) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        for source in self.sources {
            let path = workloads().join(source);
            content.extend(fs::read(&path).with_context(|| path.display().to_string())?);
        }
        Ok(content)
    }

    fn make(&self) -> Result<()> {
        let folder = self.path();
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        match self.recipe {
            Recipe::Python => {
                // Debian ships Python without what makes environments.
                let check = ["-c", "import ensurepip"];
                if output(Command::new("python3").args(check)).is_err() {
                    host::install_packages(&BTreeSet::from(["python3-venv"]))?;
                }
                run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
                let requirements = workloads().join(self.sources[0]);
                run(Command::new(folder.join("bin/pip"))
                    .args([
                        "install",
                        "--quiet",
                        "--disable-pip-version-check",
                        "--requirement",
                    ])
                    .arg(requirements))?;
            }
            Recipe::Node => {
                for source in self.sources {
                    fs::copy(workloads().join(source), folder.join(source))?;
                }
                let flags = [
                    "ci",
                    "--no-audit",
                    "--no-fund",
                    "--ignore-scripts",
                    "--prefix",
                ];
                run(Command::new("npm").args(flags).arg(&folder))?;
            }
            Recipe::Go => {
                run(Command::new("go")
                    .args(["build", "-trimpath", "-o"])
                    .arg(self.value())
                    .arg(".")
                    .current_dir(self.source_folder()?))?;
            }
            Recipe::Maven => {
                run(Command::new("mvn")
                    .args(["--batch-mode", "--quiet", "dependency:build-classpath"])
                    .arg(format!("-Dmdep.outputFile={}", self.value().display()))
                    .current_dir(self.source_folder()?))?;
            }
            Recipe::MavenPython => {
                run(Command::new("mvn")
                    .args(["--batch-mode", "--quiet"])
                    .arg("dependency:unpack-dependencies")
                    .arg(format!("-DoutputDirectory={}", folder.display()))
                    .current_dir(self.source_folder()?))?;
                // An archive of Java's tells of no permissions.
                let executable = fs::Permissions::from_mode(0o755);
                fs::set_permissions(self.value(), executable)?;
            }
        }
        // Last: what was interrupted is made anew.
        fs::write(self.stamp(), self.content()?)?;
        Ok(())
    }

    fn source_folder(&self) -> Result<PathBuf> {
        let first = workloads().join(self.sources[0]);
        match first.parent().map(Path::to_path_buf) {
            Some(folder) => Ok(folder),
            None => bail!("{} is in no folder", first.display()),
        }
    }
}

impl Recipe {
    fn tool(self) -> &'static str {
        match self {
            Self::Python => "pip",
            Self::Node => "npm",
            Self::Go => "go",
            Self::Maven | Self::MavenPython => "mvn",
        }
    }
}
