//! What stands for code that a runtime compiled while it ran, where nothing tells the function:
//! `[jit]`, with the runtime's name where the process's mappings tell it.

use std::sync::Arc;

/// The mark of every such frame.
const PREFIX: &str = "[jit";

/// Runtimes by the files that they are in: the name's begin, and whether a version may follow at
/// once (`luajit-2.1`, `pypy3.9`) or a library's suffixes (`libnode.so.108`).
const FILES: [(&str, Follows, &str); 9] = [
    ("node", Follows::Version, "node"),
    ("nodejs", Follows::Version, "node"),
    ("libnode", Follows::Library, "node"),
    ("libjvm", Follows::Library, "java"),
    ("libcoreclr", Follows::Library, "dotnet"),
    ("luajit", Follows::Version, "luajit"),
    ("libluajit-5.1", Follows::Library, "luajit"),
    ("pypy", Follows::Version, "pypy"),
    ("libpypy3", Follows::Library, "pypy"),
];

/// What may follow the begin of a file's name.
#[derive(Clone, Copy)]
enum Follows {
    /// A version, or nothing.
    Version,
    /// `.so`, with a version before or behind it, or nothing.
    Library,
}

impl Follows {
    fn accepts(self, rest: &str) -> bool {
        let is_version = |text: &str| {
            let number = text.trim_start_matches(['.', '-']);
            text.is_empty() || number.starts_with(|first: char| first.is_ascii_digit())
        };
        match self {
            Self::Version => is_version(rest),
            Self::Library => rest.split_once(".so").is_some_and(|(before, after)| {
                is_version(before.trim_end_matches("-c")) && is_version(after)
            }),
        }
    }
}

/// The mark of a process that has files of these paths mapped. A process with two runtimes, or none
/// that is known, has the plain one.
#[must_use]
pub fn mark<'a>(paths: impl IntoIterator<Item = &'a str>) -> Arc<str> {
    let mut found = None;
    for runtime in paths.into_iter().filter_map(runtime) {
        if found.is_some_and(|found| found != runtime) {
            return format!("{PREFIX}]").into();
        }
        found = Some(runtime);
    }
    match found {
        Some(runtime) => format!("{PREFIX} {runtime}]").into(),
        None => format!("{PREFIX}]").into(),
    }
}

/// Is there Node in a file of this path?
#[must_use]
pub fn is_node(path: &str) -> bool {
    runtime(path) == Some("node")
}

/// Is it the mark of Node's functions?
#[must_use]
pub fn is_node_mark(name: &str) -> bool {
    let runtime = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(']'));
    runtime == Some(" node")
}

/// Is it such a mark, and thus no function's name?
#[must_use]
pub fn is_mark(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(']')
}

fn runtime(path: &str) -> Option<&'static str> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let name = path.rsplit('/').next()?;
    let runtime = FILES.iter().find(|(begin, follows, _)| {
        name.strip_prefix(begin)
            .is_some_and(|rest| follows.accepts(rest))
    });
    runtime.map(|(_, _, runtime)| *runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_told_by_their_files() {
        for (path, expected) in [
            ("/usr/bin/node", "[jit node]"),
            ("/opt/node20/bin/node (deleted)", "[jit node]"),
            ("/usr/lib/x86_64-linux-gnu/libnode.so.108", "[jit node]"),
            ("/usr/lib/jvm/x/lib/server/libjvm.so", "[jit java]"),
            ("/usr/share/dotnet/shared/x/libcoreclr.so", "[jit dotnet]"),
            ("/usr/bin/luajit-2.1.0-beta3", "[jit luajit]"),
            (
                "/usr/lib/x86_64-linux-gnu/libluajit-5.1.so.2.1.0",
                "[jit luajit]",
            ),
            ("/usr/bin/pypy3.9", "[jit pypy]"),
            ("/usr/lib/libpypy3-c.so", "[jit pypy]"),
            ("/usr/lib/libpypy3.9-c.so", "[jit pypy]"),
            ("/usr/bin/node_exporter", "[jit]"),
            ("/usr/bin/nodemon", "[jit]"),
            ("/srv/libjvmti.so", "[jit]"),
            ("", "[jit]"),
        ] {
            assert_eq!(&*mark([path]), expected, "{path}");
        }
    }

    #[test]
    fn of_two_runtimes_none_is_told() {
        let both = ["/usr/bin/node", "/lib/libc.so.6", "/opt/libjvm.so"];
        assert_eq!(&*mark(both), "[jit]");
        assert_eq!(&*mark(["/bin/node", "/lib/libnode.so.1"]), "[jit node]");
        assert!(is_mark(&mark(both)) && is_mark("[jit node]"));
        assert!(!is_mark("[java]") && !is_mark("jit"));
        assert!(is_node_mark("[jit node]") && !is_node_mark("[jit java]"));
    }
}
