//! Records of connections whose opening is not known yet.
//!
//! Two threads of a process may move the first bytes of a connection at the same time: the one that
//! was second may find it in the kernel's map, and send its record, before the first one has told of
//! the opening. Where the kernel has forgotten the connection by the time that the ring is read,
//! only the order of the records was wrong, and the opening follows.

use std::collections::VecDeque;

/// Records that are kept at a time: each is of a connection that lived for less than a worker sleeps.
const MAX_RECORDS: usize = 64;

/// See the module's description. At most `MAX_RECORDS`.
#[derive(Debug, Default)]
pub struct EarlyRecords {
    /// The oldest first.
    records: VecDeque<EarlyRecord>,
}

#[derive(Debug)]
struct EarlyRecord {
    connection_id: u64,
    bytes: Box<[u8]>,
    /// The ring has been drained since.
    is_late: bool,
}

impl EarlyRecords {
    /// Keeps a record; returns how many had to go for it, which are lost.
    pub fn keep(&mut self, connection_id: u64, bytes: &[u8]) -> usize {
        let is_full = self.records.len() >= MAX_RECORDS;
        if is_full {
            self.records.pop_front();
        }
        self.records.push_back(EarlyRecord {
            connection_id,
            bytes: bytes.into(),
            is_late: false,
        });
        usize::from(is_full)
    }

    /// Takes out the records of a connection that was opened, in their order.
    #[must_use]
    pub fn take(&mut self, connection_id: u64) -> Vec<Box<[u8]>> {
        let is_own = |record: &EarlyRecord| record.connection_id == connection_id;
        if !self.records.iter().any(is_own) {
            return Vec::new();
        }
        let (own, others): (VecDeque<_>, _) = self.records.drain(..).partition(is_own);
        self.records = others;
        own.into_iter().map(|record| record.bytes).collect()
    }

    /// The ring was drained. What was here at the time before will not be explained any more:
    /// returns how many those are, which are lost.
    pub fn end_round(&mut self) -> usize {
        let before = self.records.len();
        self.records.retain(|record| !record.is_late);
        for record in &mut self.records {
            record.is_late = true;
        }
        before - self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_in_time_is_given_back_in_order() {
        let mut early = EarlyRecords::default();
        for (id, record) in [(1, "a"), (2, "b"), (1, "c")] {
            assert_eq!(early.keep(id, record.as_bytes()), 0);
        }
        assert_eq!(early.end_round(), 0);
        assert_eq!(
            early.take(1),
            [b"a".as_slice().into(), b"c".as_slice().into()]
        );
        assert!(early.take(1).is_empty());
        assert_eq!(early.end_round(), 1);
        assert_eq!(early.end_round(), 0);
    }

    #[test]
    fn they_are_bounded() {
        let mut early = EarlyRecords::default();
        let lost: usize = (0..100).map(|id| early.keep(id, &[0])).sum();
        assert_eq!(lost, 100 - MAX_RECORDS);
        assert!(early.take(0).is_empty());
        assert_eq!(early.take(99).len(), 1);
    }
}
