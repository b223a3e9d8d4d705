//! Where things are in a checkout.

use std::env;
use std::path::{Path, PathBuf};

/// Root of the checkout that `cargo xtask` was called in.
pub(crate) fn root() -> PathBuf {
    // Asked at run time first: clones that share one target folder share this binary as well.
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir
        .parent()
        .map_or(manifest_dir.clone(), Path::to_path_buf)
}

/// Cargo's target folder for the workspace.
pub(crate) fn target() -> PathBuf {
    let configured = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty());
    // A relative folder is relative to where cargo was called, as for cargo itself.
    configured.map_or_else(|| root().join("target"), |dir| absolute(Path::new(&dir)))
}

/// Folder of the kernel programs' workspace.
pub(crate) fn ebpf() -> PathBuf {
    root().join("ebpf")
}

/// Cargo's home: its registry holds the sources of dependencies.
pub(crate) fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(
        || {
            env::home_dir()
                .unwrap_or_else(|| PathBuf::from("/root"))
                .join(".cargo")
        },
        |dir| absolute(Path::new(&dir)),
    )
}

/// The toolchain of the kernel programs: `.toolchain` in the checkout, or where
/// `TELLTALE_TOOLCHAIN` says, so that several checkouts can share one.
pub(crate) fn toolchain() -> PathBuf {
    env::var_os("TELLTALE_TOOLCHAIN")
        .filter(|dir| !dir.is_empty())
        .map_or_else(
            || root().join(".toolchain"),
            |dir| absolute(Path::new(&dir)),
        )
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
