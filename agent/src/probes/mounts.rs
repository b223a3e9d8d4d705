//! The kernel's file systems that some probes are attached through.

use std::ffi::CString;
use std::io;
use std::path::Path;

/// A file system that the agent may mount where it is absent.
#[derive(Clone, Copy, Debug)]
pub struct KernelFilesystem {
    /// Type, as `mount -t` takes it.
    pub kind: &'static str,
    /// Where it belongs.
    pub target: &'static str,
    /// An entry that only the mounted file system has.
    pub witness: &'static str,
}

/// Tracing events and uprobes; pinned maps.
pub const WANTED: [KernelFilesystem; 2] = [
    KernelFilesystem {
        kind: "tracefs",
        target: "/sys/kernel/tracing",
        witness: "events",
    },
    KernelFilesystem {
        kind: "bpf",
        target: "/sys/fs/bpf",
        witness: "",
    },
];

impl KernelFilesystem {
    /// Whether it is mounted.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        if !self.witness.is_empty() {
            return Path::new(self.target).join(self.witness).exists();
        }
        // An empty bpffs looks like the empty folder under it; the mount table knows.
        std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
            mounts.lines().any(|line| {
                let mut fields = line.split(' ').skip(1);
                fields.next() == Some(self.target) && fields.next() == Some(self.kind)
            })
        })
    }

    /// Mounts it where it is absent.
    ///
    /// # Errors
    /// What the system said; the caller decides whether it can do without.
    pub fn ensure(&self) -> io::Result<()> {
        if self.is_mounted() {
            return Ok(());
        }
        let text = |text: &str| CString::new(text).map_err(io::Error::other);
        let (kind, target) = (text(self.kind)?, text(self.target)?);
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        // SAFETY: all pointers are to NUL-terminated strings that outlive the call; no data.
        let result = unsafe {
            libc::mount(
                kind.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                flags,
                std::ptr::null(),
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
