//! What runs a process's code: told by the executable's name, else by its ELF file.

use std::fs::File;
use std::path::Path;

use object::read::ReadCache;
use object::{Object, ObjectSection};

use super::Runtime;

/// Largest `.dynstr` that is searched; those of real programs are well below.
const MAX_STRINGS_BYTES: u64 = 8 << 20;

/// The runtime by the executable's path alone; `None` where the name tells nothing.
pub(super) fn by_name(executable: &Path) -> Option<Runtime> {
    let name = executable.file_name()?.to_str()?;
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    let is = |stem: &str| {
        name.strip_prefix(stem).is_some_and(|version| {
            version
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
    };
    if is("python") {
        Some(Runtime::Python)
    } else if is("node") || is("nodejs") {
        Some(Runtime::Node)
    } else if is("java") {
        Some(Runtime::Java)
    } else {
        None
    }
}

/// The runtime by the ELF file: its section headers, its compilers' comment and the names of the
/// libraries that it needs. `Unknown` where it cannot be read.
pub(super) fn by_file(file: File) -> Runtime {
    let cache = ReadCache::new(file);
    let Ok(elf) = object::File::parse(&cache) else {
        return Runtime::Unknown;
    };
    // The Go linker writes it into every program (`debug/buildinfo`).
    if elf.section_by_name(".go.buildinfo").is_some() {
        return Runtime::Go;
    }
    let holds = |section: &str, text: &[u8]| {
        elf.section_by_name(section)
            .filter(|section| section.size() <= MAX_STRINGS_BYTES)
            .and_then(|section| section.data().ok())
            .is_some_and(|data| memchr::memmem::find(data, text).is_some())
    };
    // `DT_NEEDED` points into these strings.
    if holds(".dynstr", b"libpython") {
        Runtime::Python
    } else if holds(".dynstr", b"libjvm.so") {
        Runtime::Java
    } else if holds(".dynstr", b"libnode.so") {
        Runtime::Node
    } else if holds(".comment", b"rustc version ") {
        Runtime::Rust
    } else {
        Runtime::Native
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interpreters() {
        for (path, expected) in [
            ("/usr/bin/python3.11", Some(Runtime::Python)),
            ("/srv/venv/bin/python", Some(Runtime::Python)),
            ("/usr/bin/python3.12 (deleted)", Some(Runtime::Python)),
            ("/usr/bin/node", Some(Runtime::Node)),
            ("/opt/jdk/bin/java", Some(Runtime::Java)),
            ("/usr/bin/node_exporter", None),
            ("/usr/bin/javac", None),
            ("/usr/sbin/nginx", None),
            ("", None),
        ] {
            assert_eq!(by_name(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn a_rust_program_is_told_by_its_compiler() {
        let this_test = File::open("/proc/self/exe").unwrap();
        assert_eq!(by_file(this_test), Runtime::Rust);
    }

    #[test]
    fn other_machine_code_is_native() {
        assert_eq!(by_file(File::open("/bin/sh").unwrap()), Runtime::Native);
    }

    #[test]
    fn what_is_no_elf_file_is_unknown() {
        assert_eq!(by_file(File::open("Cargo.toml").unwrap()), Runtime::Unknown);
    }
}
