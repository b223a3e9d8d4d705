//! Kernels from Debian's archive, without touching the system's packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{output, run};

/// The flavour for virtual machines: the drivers of the others are not needed.
const FLAVOUR: &str = "-cloud-amd64";

/// An unpacked kernel.
pub(crate) struct Kernel {
    pub(crate) version: String,
    pub(crate) image: PathBuf,
}

/// The newest kernel of a suite, downloaded into `folder` unless it is there.
///
/// # Errors
/// When apt knows no mirror of Debian, or the suite has no such kernel.
pub(crate) fn newest_kernel(suite: &str, folder: &Path) -> Result<Kernel> {
    if let Some(kernel) = downloaded(folder)? {
        return Ok(kernel);
    }
    let archive = Archive::open(suite, folder)?;
    let names = archive.names()?;
    let package =
        newest(&names).with_context(|| format!("{suite} has no linux-image-*{FLAVOUR}"))?;
    // From 7.x on the image is split: the package of that name only depends on these two.
    let version = package.trim_start_matches("linux-image-");
    let parts = [
        format!("linux-binary-{version}"),
        format!("linux-base-{version}"),
    ];
    let parts = parts.iter().filter(|part| names.contains(part));
    let unpacked = tempfile::tempdir_in(folder)?;
    run(archive
        .apt("apt-get")
        .arg("download")
        .arg(package)
        .args(parts)
        .current_dir(unpacked.path()))?;
    for file in fs::read_dir(unpacked.path())? {
        run(Command::new("dpkg-deb")
            .arg("-x")
            .arg(file?.path())
            .arg(unpacked.path().join("root")))?;
    }
    let found = output(
        Command::new("find")
            .arg(unpacked.path())
            .args(["-name", "vmlinuz*"]),
    )?;
    let image = found
        .lines()
        .next()
        .with_context(|| format!("{package} holds no vmlinuz"))?;
    fs::copy(image, folder.join(format!("vmlinuz-{version}")))?;
    downloaded(folder)?.context("the kernel was copied and is not there")
}

fn downloaded(folder: &Path) -> Result<Option<Kernel>> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let image = entry?.path();
        let name = image
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            return Ok(Some(Kernel {
                version: version.to_owned(),
                image,
            }));
        }
    }
    Ok(None)
}

/// apt with lists and a cache of its own, for one suite.
struct Archive {
    config: PathBuf,
}

impl Archive {
    fn open(suite: &str, folder: &Path) -> Result<Self> {
        let apt = folder.join("apt");
        fs::create_dir_all(apt.join("lists/partial"))?;
        fs::create_dir_all(apt.join("cache/archives/partial"))?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let sources = format!("deb [signed-by={keyring}] {} {suite} main\n", mirror()?);
        fs::write(apt.join("sources.list"), sources)?;
        let apt_folder = apt.display();
        let config = apt.join("apt.conf");
        fs::write(
            &config,
            format!(
                "Dir::Etc::SourceList \"{apt_folder}/sources.list\";\n\
                 Dir::Etc::SourceParts \"/dev/null\";\n\
                 Dir::State::Lists \"{apt_folder}/lists\";\n\
                 Dir::State::Status \"/dev/null\";\n\
                 Dir::Cache \"{apt_folder}/cache\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::Check-Valid-Until \"false\";\n\
                 APT::Sandbox::User \"root\";\n"
            ),
        )?;
        let archive = Self { config };
        run(archive.apt("apt-get").arg("update"))?;
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).arg("-qq");
        command
    }

    /// Names of packages that can be parts of a kernel.
    fn names(&self) -> Result<Vec<String>> {
        let names = output(self.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }
}

/// The mirror of Debian that this machine uses.
fn mirror() -> Result<String> {
    let targets =
        output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    match targets
        .lines()
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
    {
        Some(uri) => Ok(uri.to_owned()),
        None => bail!("apt's sources name no mirror of Debian"),
    }
}

/// The image package with the highest version; its name holds it.
fn newest(names: &[String]) -> Option<&String> {
    let images = names.iter().filter(|name| {
        let version = name
            .strip_prefix("linux-image-")
            .and_then(|name| name.strip_suffix(FLAVOUR));
        // The others are metapackages, and variants such as `rt`.
        version.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
    });
    images.max_by_key(|name| numbers(name))
}

/// All numbers in a version, in order: enough to compare kernels of one suite.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_found_by_its_numbers() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-37-cloud-amd64",
            "linux-image-6.1.0-38-cloud-amd64-unsigned",
            "linux-image-6.1.0-39-amd64",
            "linux-image-cloud-amd64",
        ];
        let names = names.map(str::to_owned);
        assert_eq!(newest(&names), Some(&names[1]));
    }
}
