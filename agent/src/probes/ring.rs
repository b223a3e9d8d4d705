//! Draining a ring: hand every record to a closure.
//!
//! The kernel's ring buffer as `kernel/bpf/ringbuf.c` lays it out for user space: a page with the
//! reader's position, a page with the writers' position, the records. A reader of our own for two
//! reasons. A writer looks at the reader's position for every record: where it is stored for every
//! record as well, that cache line travels between the two CPUs all the time. And a record that
//! goes round the end is put together here, so that the pages are mapped once, not twice.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Map, MapData, MapError};
use memmap2::{MmapOptions, MmapRaw};

/// `BPF_RINGBUF_BUSY_BIT`: the record is still being written.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: the writer changed its mind.
const DISCARDED: u32 = 1 << 30;
/// `BPF_RINGBUF_HDR_SZ`: length and page offset before each record.
const HEADER_BYTES: u64 = 8;

/// Bytes that stay mapped of a ring that is read seldom: continuous profiling's of a few seconds.
const WINDOW_BYTES: usize = if cfg!(test) { 8 * 1024 } else { 128 * 1024 };

/// One ring buffer and its only reader.
pub struct Ring {
    /// Programs that are loaded later name the map by this descriptor.
    _map: MapData,
    reader: Reader,
}

/// A ring that is read now and then, of which a window is mapped at a time: a ring's pages count as the
/// process's memory as soon as they are. To map all of 2 MiB ten times a second took a third of the
/// profiler's thread in continuous profiling, and to map what waited each time a fifth.
pub struct SeldomRing {
    map: MapData,
    reader: Reader,
}

/// A ring's memory.
struct Reader {
    /// The reader's position, the one page that may be written.
    position: MmapRaw,
    /// The writers' position.
    end: MmapRaw,
    /// The records, or a piece of them.
    records: Option<MmapRaw>,
    /// Where in the ring the piece begins.
    mapped_from: usize,
    page_bytes: usize,
    /// A power of two.
    capacity_bytes: u64,
    /// Bytes read since the ring was made.
    consumed: u64,
    /// A record that goes round the end.
    joined: Vec<u8>,
}

/// A map of the object is not what the agent takes it for.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The object has no such map, or it was taken already.
    #[error("the object has no map `{0}`")]
    NoMap(String),
    /// No second descriptor of a map could be had.
    #[error("cannot copy the descriptor of map `{name}`: {source}")]
    Descriptor {
        /// The map's name.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The ring could not be mapped into memory.
    #[error("cannot map ring `{name}`: {source}")]
    Memory {
        /// The map's name.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The map is of another kind, or the kernel does not tell what it is.
    #[error("cannot use map `{name}`: {source}")]
    Map {
        /// The map's name.
        name: String,
        /// What went wrong.
        source: MapError,
    },
}

impl Ring {
    /// Takes the ring of that name out of the object.
    ///
    /// # Errors
    /// Where there is none, or it cannot be mapped.
    pub fn take(ebpf: &mut Ebpf, name: &str) -> Result<Self, RingError> {
        let Some(Map::RingBuf(data)) = ebpf.take_map(name) else {
            return Err(RingError::NoMap(name.to_owned()));
        };
        let error = |source: MapError| RingError::Map {
            name: name.to_owned(),
            source,
        };
        let capacity = data.info().map_err(error)?.max_entries();
        let mapped = Reader::new(data.fd().as_fd(), capacity).and_then(|mut reader| {
            reader.map_all(data.fd().as_fd())?;
            Ok(reader)
        });
        let reader = mapped.map_err(|source| RingError::Memory {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self { _map: data, reader })
    }

    /// Hands at most `limit` waiting records to `handle`; returns how many there were.
    pub fn drain(&mut self, limit: usize, handle: impl FnMut(&[u8])) -> usize {
        let produced = self.reader.produced();
        self.reader.drain(produced, limit, handle)
    }
}

impl SeldomRing {
    /// The ring that `map` is.
    ///
    /// # Errors
    /// Where the kernel does not tell its size, or the positions cannot be mapped.
    pub(super) fn new(map: MapData) -> Result<Self, MapError> {
        let capacity_bytes = map.info()?.max_entries();
        let reader = Reader::new(map.fd().as_fd(), capacity_bytes)?;
        Ok(Self { map, reader })
    }

    /// Hands all waiting records to `handle`.
    ///
    /// # Errors
    /// Where they cannot be mapped.
    pub(super) fn drain(&mut self, handle: impl FnMut(&[u8])) -> std::io::Result<()> {
        self.reader.drain_seldom(self.map.fd().as_fd(), handle)
    }
}

#[expect(
    clippy::cast_ptr_alignment,
    reason = "mappings begin at a page, records at a multiple of eight bytes"
)]
impl Reader {
    /// A ring of `capacity_bytes`, a power of two. Its records are not mapped yet.
    fn new(ring: BorrowedFd<'_>, capacity_bytes: u32) -> std::io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        let mut page = MmapOptions::new();
        page.len(page_bytes);
        let position = page.map_raw(&ring)?;
        page.offset(page_bytes as u64);
        let mut reader = Self {
            position,
            end: page.map_raw_read_only(&ring)?,
            records: None,
            mapped_from: 0,
            page_bytes,
            capacity_bytes: u64::from(capacity_bytes),
            consumed: 0,
            joined: Vec::new(),
        };
        reader.consumed = reader.stored().load(Ordering::Relaxed);
        Ok(reader)
    }

    fn map_all(&mut self, ring: BorrowedFd<'_>) -> std::io::Result<()> {
        self.map(ring, 0, self.capacity_bytes as usize)
    }

    /// Maps `len` bytes of the records, from a page on.
    fn map(&mut self, ring: BorrowedFd<'_>, from: usize, len: usize) -> std::io::Result<()> {
        let mut records = MmapOptions::new();
        let offset = (2 * self.page_bytes + from) as u64;
        records.offset(offset).len(len);
        self.records = Some(records.map_raw_read_only(&ring)?);
        self.mapped_from = from;
        Ok(())
    }

    /// Hands the records that wait to `handle`. Where they are not mapped, a window from there on is
    /// mapped before, or all of them, and that is let go of.
    fn drain_seldom(
        &mut self,
        ring: BorrowedFd<'_>,
        handle: impl FnMut(&[u8]),
    ) -> std::io::Result<()> {
        let produced = self.produced();
        let waiting = produced - self.consumed;
        if waiting == 0 {
            return Ok(());
        }
        let first = self.place(self.consumed);
        let end = first + waiting as usize;
        let capacity_bytes = self.capacity_bytes as usize;
        if end > capacity_bytes {
            self.map_all(ring)?;
        } else if self.mapped(first, waiting as usize).is_none() {
            let from = first - first % self.page_bytes;
            let len = end.next_multiple_of(self.page_bytes) - from;
            self.map(ring, from, len.max(WINDOW_BYTES).min(capacity_bytes - from))?;
        }
        self.drain(produced, usize::MAX, handle);
        self.records.take_if(|records| records.len() > WINDOW_BYTES);
        Ok(())
    }

    /// Hands at most `limit` records to `handle`, of those below `produced`, which are mapped.
    fn drain(&mut self, produced: u64, limit: usize, mut handle: impl FnMut(&[u8])) -> usize {
        // Writers find room again well before the ring is read to its end.
        let stride = self.capacity_bytes / 16;
        let mut stored = self.consumed;
        let mut count = 0;
        while count < limit
            && self.consumed < produced
            && let Some(header) = self.header()
        {
            let len = u64::from(header & !(BUSY | DISCARDED)).min(self.capacity_bytes);
            if header & DISCARDED == 0 {
                handle(self.record(len));
                count += 1;
            }
            self.consumed += (HEADER_BYTES + len).next_multiple_of(8);
            if self.consumed - stored >= stride {
                stored = self.consumed;
                self.store();
            }
        }
        if self.consumed != stored {
            self.store();
        }
        count
    }

    /// Bytes written since the ring was made, records under way among them.
    fn produced(&self) -> u64 {
        // SAFETY: the mapping begins with this aligned word, which the kernel writes atomically.
        unsafe { &*self.end.as_ptr().cast::<AtomicU64>() }.load(Ordering::Acquire)
    }

    /// Tells writers how far the ring has been read.
    fn store(&self) {
        self.stored().store(self.consumed, Ordering::Release);
    }

    /// How far writers know the ring to have been read.
    fn stored(&self) -> &AtomicU64 {
        // SAFETY: the mapping begins with this aligned word, and nobody else writes it.
        unsafe { &*self.position.as_mut_ptr().cast::<AtomicU64>() }
    }

    /// Length and flags of the next record; `None` while it is being written.
    fn header(&self) -> Option<u32> {
        let at = self.place(self.consumed);
        // SAFETY: records are aligned to eight bytes, so that a header lies within the ring.
        let word = unsafe { &*self.mapped(at, HEADER_BYTES as usize)?.cast::<AtomicU32>() };
        let header = word.load(Ordering::Acquire);
        (header & BUSY == 0).then_some(header)
    }

    /// The `len` bytes of the next record, which is complete.
    fn record(&mut self, len: u64) -> &[u8] {
        let at = self.place(self.consumed + HEADER_BYTES);
        let until_end = self.capacity_bytes as usize - at;
        let len = len as usize;
        if len <= until_end {
            return self.piece(at, len);
        }
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        joined.extend_from_slice(self.piece(at, until_end));
        joined.extend_from_slice(self.piece(0, len - until_end));
        self.joined = joined;
        &self.joined
    }

    /// The `len` bytes at a place of the ring; none where they are not mapped.
    fn piece(&self, at: usize, len: usize) -> &[u8] {
        match self.mapped(at, len) {
            // SAFETY: so many bytes are mapped, and nobody writes a complete record until the reader's
            // position has passed it.
            Some(start) => unsafe { std::slice::from_raw_parts(start, len) },
            None => &[],
        }
    }

    /// The `len` bytes at a place of the ring, if all of them are mapped.
    fn mapped(&self, at: usize, len: usize) -> Option<*const u8> {
        let records = self.records.as_ref()?;
        let offset = at.checked_sub(self.mapped_from)?;
        // SAFETY: within the mapping.
        (offset + len <= records.len()).then(|| unsafe { records.as_ptr().add(offset) })
    }

    /// Where in the ring the byte at a position of the stream of records is.
    fn place(&self, position: u64) -> usize {
        (position & (self.capacity_bytes - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use proptest::prelude::*;

    use super::*;

    const CAPACITY: u32 = 4 * 4096;

    /// What the kernel's side does, in a file of the same layout.
    struct Writer {
        file: std::fs::File,
        page: u64,
        produced: u64,
    }

    impl Writer {
        fn new() -> Self {
            let file = tempfile::tempfile().expect("a file");
            let page = rustix::param::page_size() as u64;
            file.set_len(2 * page + u64::from(CAPACITY)).expect("room");
            Self {
                file,
                page,
                produced: 0,
            }
        }

        fn reader(&self) -> Reader {
            let mut reader = Reader::new(self.file.as_fd(), CAPACITY).expect("the positions");
            reader.map_all(self.file.as_fd()).expect("a mapping");
            reader
        }

        /// Whether there was room.
        fn write(&mut self, record: &[u8], flags: u32) -> bool {
            let mut consumed = [0; 8];
            self.file.read_exact_at(&mut consumed, 0).expect("a word");
            let end = (self.produced + HEADER_BYTES + record.len() as u64).next_multiple_of(8);
            if end - u64::from_ne_bytes(consumed) > u64::from(CAPACITY) {
                return false;
            }
            self.write_header(self.produced, record.len() as u32 | flags);
            self.put(self.produced + HEADER_BYTES, record);
            self.produced = end;
            self.file
                .write_all_at(&end.to_ne_bytes(), self.page)
                .expect("the position");
            true
        }

        fn write_header(&self, position: u64, header: u32) {
            self.put(position, &header.to_ne_bytes());
        }

        fn put(&self, position: u64, bytes: &[u8]) {
            let at = position % u64::from(CAPACITY);
            let until_end = bytes.len().min((u64::from(CAPACITY) - at) as usize);
            for (at, piece) in [(at, &bytes[..until_end]), (0, &bytes[until_end..])] {
                let written = self.file.write_all_at(piece, 2 * self.page + at);
                written.expect("a write");
            }
        }
    }

    fn drained(reader: &mut Reader, limit: usize) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let produced = reader.produced();
        let count = reader.drain(produced, limit, |record| records.push(record.to_vec()));
        assert_eq!(count, records.len());
        records
    }

    #[test]
    fn a_record_under_way_holds_up_those_behind_it() {
        let mut writer = Writer::new();
        let mut reader = writer.reader();
        assert!(writer.write(b"first", 0));
        assert!(writer.write(b"second", BUSY));
        assert!(writer.write(b"third", 0));
        assert_eq!(drained(&mut reader, 9), [b"first"]);
        assert!(drained(&mut reader, 9).is_empty());
        writer.write_header(16, 6);
        assert_eq!(drained(&mut reader, 9), [&b"second"[..], b"third"]);
    }

    proptest! {
        /// Any records, some of them discarded, read in any portions, are read as they were
        /// written, round the ring's end too, and make room again.
        #[test]
        fn reads_what_was_written(
            steps in proptest::collection::vec((0_usize..1500, any::<bool>(), 0_usize..6), 1..200),
        ) {
            let mut writer = Writer::new();
            let mut reader = writer.reader();
            let mut expected = std::collections::VecDeque::new();
            for (index, (len, is_discarded, limit)) in steps.into_iter().enumerate() {
                if index % 7 == 6 {
                    // Another reader goes on where the one before was.
                    reader = writer.reader();
                }
                let record: Vec<u8> = (index..index + len).map(|byte| byte as u8).collect();
                let flags = if is_discarded { DISCARDED } else { 0 };
                if !writer.write(&record, flags) {
                    let records = drained(&mut reader, usize::MAX);
                    prop_assert_eq!(records, expected.drain(..).collect::<Vec<_>>());
                    prop_assert!(writer.write(&record, flags));
                }
                if !is_discarded {
                    expected.push_back(record);
                }
                for record in drained(&mut reader, limit) {
                    prop_assert_eq!(Some(record), expected.pop_front());
                }
            }
        }

        /// The same where a window is mapped.
        #[test]
        fn reads_what_was_written_though_little_is_mapped(
            steps in proptest::collection::vec((0_usize..6000, any::<bool>()), 1..200),
        ) {
            let mut writer = Writer::new();
            let ring = writer.file.try_clone().expect("a descriptor");
            let mut reader = Reader::new(ring.as_fd(), CAPACITY).expect("the positions");
            let mut expected = Vec::new();
            for (index, (len, is_read)) in steps.into_iter().enumerate() {
                let record: Vec<u8> = (index..index + len).map(|byte| byte as u8).collect();
                let is_written = writer.write(&record, 0);
                if is_written {
                    expected.push(record);
                }
                if is_read || !is_written {
                    let mut records = Vec::new();
                    let drained = reader.drain_seldom(ring.as_fd(), |record| records.push(record.to_vec()));
                    prop_assert!(drained.is_ok());
                    prop_assert_eq!(records, std::mem::take(&mut expected));
                    let mapped = reader.records.as_ref().map_or(0, MmapRaw::len);
                    prop_assert!(mapped <= WINDOW_BYTES);
                }
            }
        }
    }
}
