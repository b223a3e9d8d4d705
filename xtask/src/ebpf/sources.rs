//! A fingerprint of the kernel programs' sources.
//!
//! The object's bytes depend on the compiler too. When the recorded one can no longer be had, the
//! fingerprint still tells whether the sources changed after the object was built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::paths;

/// Fingerprint of all sources, manifests and the lock file in `ebpf`.
///
/// # Errors
/// When one of them cannot be read.
pub(crate) fn fingerprint() -> Result<String> {
    let root = paths::ebpf();
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    let mut hash = Fnv1a::default();
    for file in files {
        // Names count as well, and relative ones are the same in every checkout.
        hash.add(file.strip_prefix(&root)?.as_os_str().as_encoded_bytes());
        hash.add(&fs::read(&file).with_context(|| file.display().to_string())?);
    }
    Ok(format!("{:016x}", hash.0))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path
            .extension()
            .is_some_and(|end| end == "rs" || end == "toml" || end == "lock")
        {
            files.push(path);
        }
    }
    Ok(())
}

/// 64-bit FNV-1a: stable between releases of Rust, and nobody attacks it here.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Adds bytes and their number, so that two files do not run into each other.
    fn add(&mut self, bytes: &[u8]) {
        let length = (bytes.len() as u64).to_le_bytes();
        for byte in bytes.iter().chain(&length) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_a_byte_from_one_file_to_the_next_changes_the_fingerprint() {
        let hash = |parts: [&str; 2]| {
            let mut hash = Fnv1a::default();
            for part in parts {
                hash.add(part.as_bytes());
            }
            hash.0
        };
        assert_eq!(hash(["ab", "c"]), hash(["ab", "c"]));
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
    }
}
