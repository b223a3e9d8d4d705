//! The guests' root folder.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{output, run};
use crate::host;

/// Parts of Python's standard library that no service needs.
const LEFT_OUT: [&str; 9] = [
    "__pycache__",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
];

/// Where Python is, what it is, and where its standard library lies.
const ABOUT_PYTHON: &str = "import os, sys, sysconfig
print(os.path.realpath(sys.executable))
print(sysconfig.get_path('stdlib'))
print(sysconfig.get_path('platstdlib'))";

/// What a guest finds, each file where this machine has it.
pub(super) struct Root {
    folder: tempfile::TempDir,
    pythons: Vec<String>,
}

impl Root {
    /// Busybox, the agent and the two scripts.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub(super) fn new(agent: &Path) -> Result<Self> {
        let root = Self {
            folder: tempfile::tempdir()?,
            pythons: Vec::new(),
        };
        for folder in ["proc", "sys", "dev", "tmp", "run", "etc"] {
            fs::create_dir(root.at(Path::new(folder)))?;
        }
        let busybox = host::find("busybox").context("busybox is not installed")?;
        root.add(&busybox, Path::new("/bin/busybox"))?;
        root.add(agent, Path::new("/bin/telltale"))?;
        root.write("/init", include_str!("init.sh"))?;
        fs::set_permissions(
            root.at(Path::new("init")),
            fs::Permissions::from_mode(0o755),
        )?;
        root.write("/payload.sh", include_str!("payload.sh"))?;
        Ok(root)
    }

    /// A path of the guest.
    fn at(&self, path: &Path) -> PathBuf {
        self.folder
            .path()
            .join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A file with this text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.at(Path::new(path)), text)?)
    }

    /// A copy of a file.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub(super) fn add(&self, file: &Path, path: &Path) -> Result<()> {
        let to = self.at(path);
        fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        fs::copy(file, &to).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// The files of a folder that are wanted by their paths, its own folders too.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub(super) fn add_folder(
        &self,
        folder: &Path,
        wanted: impl Fn(&Path) -> bool + Copy,
    ) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if !LEFT_OUT.contains(&&*name) {
                    self.add_folder(&path, wanted)?;
                }
            } else if wanted(&path) && path.exists() {
                self.add(&path, &path)?;
            }
        }
        Ok(())
    }

    /// The shared libraries of a program that was linked with some.
    fn add_libraries(&self, program: &Path) -> Result<()> {
        // Static programs have none, which `ldd` calls a failure.
        let Ok(libraries) = output(Command::new("ldd").arg(program)) else {
            return Ok(());
        };
        let words = libraries.split_whitespace();
        for library in words.filter(|word| word.starts_with('/')) {
            self.add(Path::new(library), Path::new(library))?;
        }
        Ok(())
    }

    /// The programs that the tests would compile, in `/programs`, by the program that does so.
    ///
    /// # Errors
    /// When a compiler is missing.
    pub(super) fn add_programs(&self, compiler: &Path) -> Result<()> {
        let folder = self.at(Path::new("programs"));
        fs::create_dir(&folder)?;
        run(Command::new(compiler).arg(&folder))?;
        for program in fs::read_dir(&folder)? {
            self.add_libraries(&program?.path())?;
        }
        Ok(())
    }

    /// Debian's Python, 3.14 and those of `TELLTALE_PYTHONS`, with their standard libraries.
    ///
    /// # Errors
    /// When one does not tell where it lies.
    pub(super) fn add_pythons(&mut self) -> Result<()> {
        host::install_packages(&BTreeSet::from(["python3"]))?;
        let further = env::var_os("TELLTALE_PYTHONS").unwrap_or_default();
        let pythons = env::split_paths(&further).filter(|path| !path.as_os_str().is_empty());
        let newest = crate::test::newest_python()?;
        self.write("/python-3.14", &newest.display().to_string())?;
        for python in pythons.chain([newest, PathBuf::from("/usr/bin/python3")]) {
            let about = output(Command::new(&python).args(["-c", ABOUT_PYTHON]))?;
            let [program, pure, native] = about.lines().collect::<Vec<_>>()[..] else {
                bail!("{}: {about}", python.display());
            };
            self.add(Path::new(program), Path::new(program))?;
            self.add_libraries(Path::new(program))?;
            for library in BTreeSet::from([pure, native]) {
                let is_module = |path: &Path| {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    name.ends_with(".py") || name.ends_with(".so")
                };
                self.add_folder(Path::new(library), is_module)?;
                self.compile_modules(&python, library)?;
            }
            self.pythons.push(program.to_owned());
        }
        Ok(())
    }

    /// Compiles a library's modules: the guests would take long.
    fn compile_modules(&self, python: &Path, library: &str) -> Result<()> {
        let copy = self.at(Path::new(library));
        // The code names the files as the guest will find them.
        let status = Command::new(python)
            .args(["-m", "compileall", "-q", "-s"])
            .arg(self.folder.path())
            .args(["-p", "/", "--invalidation-mode", "unchecked-hash"])
            .arg(copy)
            .status()?;
        if !status.success() {
            bail!("{} compiles no modules: {status}", python.display());
        }
        Ok(())
    }

    /// Packs the folder into an archive for the kernel.
    ///
    /// # Errors
    /// When cpio fails.
    pub(super) fn pack(self, folder: &Path) -> Result<PathBuf> {
        let python = self.at(Path::new("/usr/bin/python3"));
        if let Some(program) = self.pythons.last()
            && !python.exists()
        {
            symlink(program, python)?;
        }
        self.write("/pythons", &self.pythons.join(":"))?;
        fs::create_dir_all(folder)?;
        let initramfs = folder.join("initramfs.cpio");
        let status = Command::new("sh")
            .args(["-c", "find . | cpio --create --format=newc --quiet"])
            .current_dir(self.folder.path())
            .stdout(File::create(&initramfs)?)
            .status()?;
        if !status.success() {
            bail!("cpio failed: {status}");
        }
        Ok(initramfs)
    }
}
