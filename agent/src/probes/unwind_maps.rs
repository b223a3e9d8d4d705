//! The maps that the kernel side walks user stacks by, written in batches: one system call each
//! for a few hundred elements.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{ArrayOfMaps, HashMap as BpfHashMap, Map, MapData, MapError};
use aya_obj::generated::bpf_map_type;
use ebpf_common::python::PythonProcess;
use ebpf_common::unwind::{
    CHUNK_BLOCKS, CHUNK_PAGES, RowBlock, UnwindMapping, UnwindProcess, UnwindRule,
};
use ebpf_common::v8::V8Layout;

use super::sampler::SamplerError;

/// Handle on the maps.
pub struct UnwindMaps {
    rows: Chunks,
    pages: Chunks,
    rules: MapData,
    mappings: MapData,
    python: MapData,
    v8: MapData,
    processes: BpfHashMap<MapData, u32, UnwindProcess>,
}

impl UnwindMaps {
    /// Takes the maps out of the object.
    ///
    /// # Errors
    /// When the object lacks one.
    pub fn take(ebpf: &mut aya::Ebpf) -> Result<Self, SamplerError> {
        let rows = Chunks::take::<RowBlock>(ebpf, "UNWIND_ROWS", CHUNK_BLOCKS)?;
        let pages = Chunks::take::<u64>(ebpf, "UNWIND_PAGES", CHUNK_PAGES)?;
        let mut array = |name: &'static str| match ebpf.take_map(name) {
            Some(Map::Array(data)) => Ok(data),
            _ => Err(SamplerError::Missing(name)),
        };
        Ok(Self {
            rows,
            pages,
            rules: array("UNWIND_RULES")?,
            mappings: array("UNWIND_MAPPINGS")?,
            python: array("PYTHON_PROCESSES")?,
            v8: array("V8_LAYOUTS")?,
            processes: ebpf
                .take_map("UNWIND_PROCESSES")
                .ok_or(SamplerError::Missing("UNWIND_PROCESSES"))?
                .try_into()?,
        })
    }

    /// Writes blocks of rows; `indexes` says which.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_rows(&mut self, indexes: &[u32], blocks: &[RowBlock]) -> io::Result<()> {
        self.rows.update(indexes, blocks)
    }

    /// Writes pages from index `first` on.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_pages(&mut self, first: u32, pages: &[u64]) -> io::Result<()> {
        self.pages.update(&indexes_from(first, pages.len()), pages)
    }

    /// Writes rules from index `first` on.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_rules(&self, first: u32, rules: &[UnwindRule]) -> io::Result<()> {
        update_range(&self.rules, first, rules)
    }

    /// Writes executable ranges from index `first` on.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_mappings(&self, first: u32, mappings: &[UnwindMapping]) -> io::Result<()> {
        update_range(&self.mappings, first, mappings)
    }

    /// Says where the interpreter of element `index` keeps its frames.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_python(&self, index: u32, process: PythonProcess) -> io::Result<()> {
        update(&self.python, &[index], &[process])
    }

    /// Says where the V8 of element `index` keeps its functions.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_v8(&self, index: u32, layout: V8Layout) -> io::Result<()> {
        update(&self.v8, &[index], &[layout])
    }

    /// Makes a process known; from now on it is walked by its rows.
    ///
    /// # Errors
    /// The kernel's answer: the map may be full.
    pub fn set_process(&mut self, pid: u32, process: UnwindProcess) -> Result<(), MapError> {
        self.processes.insert(pid, process, 0)
    }

    /// Forgets a process; one that is not there is forgotten already.
    pub fn remove_process(&mut self, pid: u32) {
        let _ = self.processes.remove(&pid);
    }
}

/// An array in chunks of equal length, each a map that is made when it is first written to: rows of
/// a host's executables take between one MiB and dozens.
struct Chunks {
    outer: ArrayOfMaps<MapData, MapData>,
    /// Those that were made, by their indexes.
    inner: BTreeMap<u32, MapData>,
    name: &'static str,
    /// Elements of each.
    len: u32,
    value_bytes: u32,
}

impl Chunks {
    fn take<T: Pod>(
        ebpf: &mut aya::Ebpf,
        name: &'static str,
        len: usize,
    ) -> Result<Self, SamplerError> {
        let outer = ebpf.take_map(name).ok_or(SamplerError::Missing(name))?;
        Ok(Self {
            outer: outer.try_into()?,
            inner: BTreeMap::new(),
            name,
            len: len as u32,
            value_bytes: size_of::<T>() as u32,
        })
    }

    /// Writes each of `values` at the index that `indexes` has in its place; neighbours in one call.
    fn update<T: Pod>(&mut self, indexes: &[u32], values: &[T]) -> io::Result<()> {
        let len = self.len;
        let mut values = values;
        for keys in indexes.chunk_by(|one, next| one / len == next / len) {
            let (these, rest) = values.split_at_checked(keys.len()).ok_or_else(unfit)?;
            values = rest;
            let chunk = self.chunk(keys[0] / len)?;
            let keys: Vec<_> = keys.iter().map(|key| key % len).collect();
            update(chunk, &keys, these)?;
        }
        Ok(())
    }

    fn chunk(&mut self, index: u32) -> io::Result<&MapData> {
        Ok(match self.inner.entry(index) {
            Entry::Occupied(chunk) => chunk.into_mut(),
            Entry::Vacant(place) => {
                let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
                let key_bytes = size_of::<u32>() as u32;
                let chunk =
                    aya_obj::Map::new_from_params(kind, key_bytes, self.value_bytes, self.len, 0);
                let chunk = MapData::create(chunk, self.name, None).map_err(io::Error::other)?;
                let set = self.outer.set(index, &chunk, 0);
                set.map_err(io::Error::other)?;
                place.insert(chunk)
            }
        })
    }
}

/// `BPF_MAP_UPDATE_BATCH` (5.6+, array maps included).
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// Elements of one call: the kernel works through them without giving up the CPU.
const BATCH: usize = 4096;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

const _: () = assert!(size_of::<BatchAttr>() == 56);

fn update_range<T: Pod>(map: &MapData, first: u32, values: &[T]) -> io::Result<()> {
    update(map, &indexes_from(first, values.len()), values)
}

fn indexes_from(first: u32, count: usize) -> Vec<u32> {
    (first..u32::MAX).take(count).collect()
}

fn unfit() -> io::Error {
    io::Error::other("values that do not fit their map")
}

/// Writes each of `values` at the index that `keys` has in its place.
fn update<T: Pod>(map: &MapData, keys: &[u32], values: &[T]) -> io::Result<()> {
    let value_size = map
        .info()
        .map(|info| info.value_size())
        .map_err(io::Error::other)?;
    if keys.len() != values.len() || value_size as usize != size_of::<T>() {
        return Err(unfit());
    }
    for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
        let attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: `attr` is as long as is said; it points at `count` keys of the arrays' four bytes
        // and as many values of the map's own size, and the kernel reads them before it returns.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_UPDATE_BATCH,
                &raw const attr,
                size_of::<BatchAttr>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
