//! What an interpreter runs: the script, module or class that a person would name the service by.

mod application;
mod java;

use std::path::{Component, Path, PathBuf};

use application::{application, application_argument, module_of, without_generic_tail};

/// What a command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// A name.
    Named(String),
    /// A worker that the parent started and named itself: Python's multiprocessing.
    AsParent,
    /// Not an interpreter, or code that has no name (`sh -c …`).
    None,
}

impl From<Option<String>> for Script {
    fn from(name: Option<String>) -> Self {
        name.map_or(Self::None, Self::Named)
    }
}

/// File stems that every second project has: the folder tells more.
const GENERIC_STEMS: [&str; 13] = [
    "__init__",
    "__main__",
    "app",
    "application",
    "artisan",
    "asgi",
    "cli",
    "index",
    "main",
    "manage",
    "run",
    "start",
    "wsgi",
];
/// Folders within a project: the one above tells more.
const GENERIC_FOLDERS: [&str; 10] = [
    "bin", "build", "cmd", "dist", "lib", "out", "public", "scripts", "server", "src",
];

/// Reads a command line. `executable` is the program's path, `working_directory` what relative
/// paths are relative to, where that is known.
pub(super) fn script(
    executable: &Path,
    arguments: &[String],
    working_directory: Option<&Path>,
) -> Script {
    let titled;
    let mut arguments = arguments;
    // `setproctitle` and Node's `process.title` leave one argument with spaces.
    if let [title] = arguments
        && let Some((first, _)) = title.split_once(' ')
    {
        if let Some(name) = bracketed_title(title) {
            return Script::Named(name);
        }
        titled = title
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        arguments = &titled;
        if interpreter(Path::new(first)).is_none() && interpreter(executable).is_some() {
            let word = first.trim_end_matches([':', ',']);
            return Some(file_name(word).to_owned()).into();
        }
    }
    let Some((program, rest)) = arguments.split_first() else {
        return Script::None;
    };
    let find = Finder { working_directory };
    // `argv[0]` tells what a multi-call executable is (`busybox` as `sh`), the executable what
    // `argv[0]` hides (`-bash`, `java` renamed by a wrapper).
    let known = interpreter(executable).or_else(|| interpreter(Path::new(program)));
    match known {
        Some(Interpreter::Python) => find.python(rest),
        Some(Interpreter::Node) => find.node(rest).into(),
        Some(Interpreter::Java) => java::java(rest).into(),
        Some(Interpreter::Shell) => find.shell(rest).into(),
        Some(Interpreter::Ruby) => find.ruby(rest).into(),
        Some(Interpreter::Php) => find
            .first_file(rest, &["-d", "-c"], &["-r", "-S", "-f"])
            .into(),
        Some(Interpreter::Perl) => find.first_file(rest, &["-I"], &["-e", "-E"]).into(),
        Some(Interpreter::Dotnet) => find.first_file(rest, &[], &[]).into(),
        None => find.launcher(file_name(program), rest).into(),
    }
}

#[derive(Clone, Copy)]
enum Interpreter {
    Python,
    Node,
    Java,
    Shell,
    Ruby,
    Php,
    Perl,
    Dotnet,
}

fn interpreter(program: &Path) -> Option<Interpreter> {
    let name = program.file_name()?.to_str()?;
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let name = name.strip_prefix('-').unwrap_or(name);
    let stem =
        name.trim_end_matches(|character: char| character.is_ascii_digit() || character == '.');
    Some(match stem {
        "python" | "pypy" => Interpreter::Python,
        "node" | "nodejs" | "bun" | "deno" => Interpreter::Node,
        "java" => Interpreter::Java,
        "sh" | "bash" | "dash" | "ash" | "zsh" | "ksh" => Interpreter::Shell,
        "ruby" => Interpreter::Ruby,
        "php" => Interpreter::Php,
        "perl" => Interpreter::Perl,
        "dotnet" => Interpreter::Dotnet,
        _ => return None,
    })
}

/// gunicorn: `gunicorn: worker [main:app]`; puma: `puma 6.4.2 (tcp://0.0.0.0:3000) [shop]`.
fn bracketed_title(title: &str) -> Option<String> {
    let server = title.split([':', ' ']).next()?;
    let inner = title.strip_suffix(']')?.rsplit_once('[')?.1;
    match server {
        "gunicorn" => Some(application(inner).unwrap_or_else(|| inner.to_owned())),
        "puma" => Some(inner.to_owned()),
        _ => None,
    }
}

struct Finder<'a> {
    working_directory: Option<&'a Path>,
}

impl Finder<'_> {
    fn python(&self, arguments: &[String]) -> Script {
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let Some(options) = argument.strip_prefix('-') else {
                return self.python_program(argument, rest.as_slice()).into();
            };
            if options.is_empty() {
                return Script::None; // the program comes from standard input
            }
            if options.starts_with('-') {
                if options == "-check-hash-based-pycs" {
                    rest.next();
                }
                continue;
            }
            // One-letter options may be joined; some take what follows.
            for (index, letter) in options.char_indices() {
                let joined = &options[index + 1..];
                match letter {
                    'm' => {
                        let module = if joined.is_empty() {
                            rest.next().map(String::as_str)
                        } else {
                            Some(joined)
                        };
                        return module
                            .and_then(|name| self.python_module(name, rest.as_slice()))
                            .into();
                    }
                    'c' => {
                        let code = if joined.is_empty() {
                            rest.next()
                        } else {
                            Some(argument)
                        };
                        let spawned = code.is_some_and(|code| code.contains("multiprocessing"));
                        return if spawned {
                            Script::AsParent
                        } else {
                            Script::None
                        };
                    }
                    'X' | 'W' => {
                        if joined.is_empty() {
                            rest.next();
                        }
                        break;
                    }
                    _ => {}
                }
            }
        }
        Script::None
    }

    fn python_program(&self, path: &str, arguments: &[String]) -> Option<String> {
        let name = file_name(path);
        let stem = name.strip_suffix(".py").unwrap_or(name);
        self.launcher(stem, arguments).or_else(|| self.file(path))
    }

    fn python_module(&self, module: &str, arguments: &[String]) -> Option<String> {
        let launched = module.split('.').next().unwrap_or(module);
        self.launcher(launched, arguments)
            .or_else(|| Some(without_generic_tail(module).to_owned()))
    }

    /// Programs that load somebody's application: the application is the service.
    fn launcher(&self, program: &str, arguments: &[String]) -> Option<String> {
        match program {
            "gunicorn" | "uvicorn" | "hypercorn" | "daphne" | "granian" | "waitress-serve"
            | "waitress" => application_argument(arguments),
            "celery" => option_value(arguments, &["-A", "--app"]).map(|app| module_of(&app)),
            "flask" => option_value(arguments, &["-A", "--app"])
                .and_then(|app| application(&app).or_else(|| self.file(&app))),
            "uwsgi" => option_value(arguments, &["-w", "--module", "--wsgi"])
                .map(|module| module_of(&module))
                .or_else(|| self.file(&option_value(arguments, &["--wsgi-file", "--file"])?)),
            // `streamlit run app.py`, `fastapi dev main.py`
            "streamlit" | "fastapi" => {
                let file = arguments
                    .iter()
                    .skip(1)
                    .find(|argument| argument.ends_with(".py"))?;
                self.file(file)
            }
            // In the project's own folder.
            "puma" | "rails" | "rackup" | "unicorn" | "thin" | "sidekiq" => self.project(),
            _ => None,
        }
    }

    fn node(&self, arguments: &[String]) -> Option<String> {
        let takes_value = [
            "-r",
            "--require",
            "--import",
            "--loader",
            "--experimental-loader",
            "-C",
            "--conditions",
            "--title",
            "--config",
            "--env-file",
            "--preload",
        ];
        let mut rest = arguments;
        // `deno run`, `bun run`, `bun x`
        if let Some(("run", after)) = rest
            .split_first()
            .map(|(first, after)| (first.as_str(), after))
        {
            rest = after;
        }
        let path = positional(rest, &takes_value, &["-e", "--eval", "-p", "--print"])?;
        if let Some((project, package)) = path.split_once("node_modules/") {
            let package = package
                .trim_start_matches(".bin/")
                .split('/')
                .next()
                .unwrap_or_default();
            // A tool that is installed for everyone names itself; one within a project runs it.
            return match project.trim_end_matches('/') {
                global if global.ends_with("/lib") => Some(package.to_owned()),
                "" | "." => self.project().or_else(|| Some(package.to_owned())),
                project => self.folder(Path::new(project)),
            };
        }
        self.file(path)
    }

    fn shell(&self, arguments: &[String]) -> Option<String> {
        let (first, rest) = arguments.split_first()?;
        // `busybox sh script`, which the executable alone does not tell from `sh script`.
        if interpreter(Path::new(first)).is_some() && rest.len() > 1 {
            return self.shell(rest);
        }
        // Letters may be joined: `-ec`, `-euo pipefail`.
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.strip_prefix(['-', '+']) {
                None => return self.file(argument),
                Some(long) if long.starts_with('-') => {}
                Some(letters) if letters.contains(['c', 's']) => return None,
                Some(letters) if letters.ends_with(['o', 'O']) => {
                    rest.next();
                }
                Some(_) => {}
            }
        }
        None
    }

    fn ruby(&self, arguments: &[String]) -> Option<String> {
        let path = positional(arguments, &["-I", "-r", "-C"], &["-e"])?;
        self.launcher(file_name(path), &[])
            .or_else(|| self.file(path))
    }

    fn first_file(
        &self,
        arguments: &[String],
        takes_value: &[&str],
        inline: &[&str],
    ) -> Option<String> {
        self.file(positional(arguments, takes_value, inline)?)
    }

    /// A name from a file: its stem, or its folder's name where the stem is one of everybody's.
    fn file(&self, path: &str) -> Option<String> {
        let name = file_name(path);
        let stem = match name.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() && is_script_extension(extension) => stem,
            _ => name,
        };
        if stem.is_empty() || stem == "." || stem == ".." {
            return self.folder(Path::new(path));
        }
        if !GENERIC_STEMS.contains(&stem) {
            return Some(stem.to_owned());
        }
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        self.folder(folder).or_else(|| Some(stem.to_owned()))
    }

    /// The name of a folder, or of the first one above it that is not one of everybody's.
    fn folder(&self, path: &Path) -> Option<String> {
        let mut folders: Vec<String> = Vec::new();
        for component in self.absolute(path).components() {
            match component {
                Component::Normal(name) => folders.push(name.to_string_lossy().into_owned()),
                Component::ParentDir => drop(folders.pop()),
                _ => {}
            }
        }
        let telling = folders
            .iter()
            .rev()
            .find(|name| !GENERIC_FOLDERS.contains(&name.as_str()));
        telling.or(folders.last()).cloned()
    }

    fn project(&self) -> Option<String> {
        self.working_directory?;
        self.folder(Path::new(""))
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        self.working_directory
            .map_or_else(|| path.to_owned(), |directory| directory.join(path))
    }
}

/// The first argument that is no option; `None` where `inline` code comes before.
fn positional<'a>(
    arguments: &'a [String],
    takes_value: &[&str],
    inline: &[&str],
) -> Option<&'a str> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if inline.contains(&argument.as_str()) {
            return None;
        }
        if !argument.starts_with('-') {
            return Some(argument);
        }
        if takes_value.contains(&argument.as_str()) {
            rest.next();
        }
    }
    None
}

fn option_value(arguments: &[String], names: &[&str]) -> Option<String> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if names.contains(&argument.as_str()) {
            return rest.next().cloned();
        }
        let joined = argument
            .split_once('=')
            .filter(|(name, _)| names.contains(name));
        if let Some((_, value)) = joined {
            return Some(value.to_owned());
        }
    }
    None
}

fn is_script_extension(extension: &str) -> bool {
    [
        "py", "pyc", "pyz", "js", "mjs", "cjs", "ts", "mts", "cts", "tsx", "jsx", "rb", "pl",
        "php", "sh", "bash", "dll", "ru",
    ]
    .contains(&extension)
}

/// The last component of a path, slashes at its end left out.
fn file_name(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(path)
}

#[cfg(test)]
mod tests;
