//! Hash maps that take memory as elements come, where the kernel can do that.
//!
//! Until 6.1 an element that is not allocated beforehand comes from `kmalloc`, which a tracing program
//! may have interrupted: kernels call that unsafe. Since then hash maps have an allocator of their own that
//! programs can call anywhere (`bpf_mem_alloc`, kernel commit fba1a1c6c912).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};
use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};

use super::btf::Btf;

/// Whether this kernel's hash maps have the allocator.
pub(super) fn is_safe_on_demand(btf: &Btf) -> bool {
    btf.offset("bpf_htab", "ma").is_ok()
}

/// Has the hash map `name` take memory as elements come: `max_entries` of them at most, or as many as it
/// was made for. To be called before a program is loaded.
///
/// The loader knows no way to set a map's flags. But programs find a map by its descriptor's number:
/// another map gets that number, and what the loader made is gone.
///
/// # Errors
/// Where the object has no such hash map, or the kernel makes none.
pub(super) fn allocate_on_demand(
    ebpf: &mut Ebpf,
    name: &str,
    max_entries: Option<u32>,
) -> Result<(), MapError> {
    let Some(Map::HashMap(made)) = ebpf.map_mut(name) else {
        return Err(MapError::InvalidName {
            name: name.to_owned(),
        });
    };
    let info = made.info()?;
    let map = MapData::create(
        aya_obj::Map::new_from_params(
            bpf_map_type::BPF_MAP_TYPE_HASH as u32,
            info.key_size(),
            info.value_size(),
            max_entries.unwrap_or(info.max_entries()),
            BPF_F_NO_PREALLOC,
        ),
        name,
        None,
    )?;
    let (new, old) = (map.fd().as_fd(), made.fd().as_fd());
    // SAFETY: both descriptors are open, and whoever owns the old one owns a map of the same kind, key
    // and value afterwards.
    if unsafe { libc::dup3(new.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
        return Err(MapError::IoError(io::Error::last_os_error()));
    }
    Ok(())
}
