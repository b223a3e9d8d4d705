//! Which processes run V8, and the elements of its builds in the kernel's map.

use std::collections::HashMap;
use std::sync::Arc;

use ebpf_common::v8::{MAX_V8_LAYOUTS, V8Layout};
use profile::v8::{V8, V8Error};

use super::super::v8::{Known, V8Processes};
use crate::probes::unwind_maps::UnwindMaps;

/// See the module.
pub(super) struct Scripts {
    /// Processes that are alike share one.
    elements: HashMap<V8Layout, u32>,
    by_pid: HashMap<u32, (u64, u32)>,
    told: V8Processes,
}

impl Scripts {
    pub(super) fn new(told: V8Processes) -> Self {
        Self {
            elements: HashMap::new(),
            by_pid: HashMap::new(),
            told,
        }
    }

    /// Takes note of a process image that has V8 mapped.
    pub(super) fn note(
        &mut self,
        maps: &UnwindMaps,
        pid: u32,
        image: u64,
        v8: &Arc<Result<V8, V8Error>>,
    ) {
        if self.by_pid.get(&pid).is_some_and(|known| known.0 == image) {
            return;
        }
        let element = match &**v8 {
            Ok(v8) => self.element_of(maps, v8.layout),
            Err(error) => {
                tracing::info!(pid, %error, "a process runs V8, but its functions are not read");
                0
            }
        };
        self.by_pid.insert(pid, (image, element));
        let v8 = Arc::clone(v8);
        self.told.set(pid, Known { image, v8 });
    }

    /// The element of a layout, which is in the kernel's map then; 0 where there is no room.
    fn element_of(&mut self, maps: &UnwindMaps, layout: V8Layout) -> u32 {
        if let Some(element) = self.elements.get(&layout) {
            return *element;
        }
        let element = self.elements.len() as u32 + 1;
        if element as usize >= MAX_V8_LAYOUTS {
            tracing::warn!("no room for one more build of V8");
            return 0;
        }
        if let Err(error) = maps.set_v8(element, layout) {
            tracing::warn!(%error, "functions of V8 are not read");
            return 0;
        }
        self.elements.insert(layout, element);
        element
    }

    /// The element of a process image; 0 where it has none.
    pub(super) fn element(&self, pid: u32, image: u64) -> u32 {
        match self.by_pid.get(&pid) {
            Some((known, element)) if *known == image => *element,
            _ => 0,
        }
    }

    pub(super) fn forget(&mut self, pid: u32) {
        if self.by_pid.remove(&pid).is_some() {
            self.told.remove(pid);
        }
    }
}
