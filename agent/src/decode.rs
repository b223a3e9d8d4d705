//! Ring bytes → events. Total: any bytes give an event or an error, never a panic.

use ebpf_common::RecordKind;
use ebpf_common::connection::{ConnectionClosed, ConnectionOpened, SocketData};
use ebpf_common::process::{ProcessExec, ProcessExit};
use zerocopy::FromBytes;

/// One record of a ring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// A connection was seen for the first time.
    ConnectionOpened(ConnectionOpened),
    /// Bytes moved; those that were captured.
    SocketData(SocketData, &'a [u8]),
    /// One or both directions of a connection ended.
    ConnectionClosed(ConnectionClosed),
    /// A process has a new image; its command line, arguments separated by NUL.
    ProcessExec(ProcessExec, &'a [u8]),
    /// A process ended.
    ProcessExit(ProcessExit),
}

/// A record that no program of this version writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record is shorter than its kind says.
    #[error("record of {0} bytes is cut off")]
    CutOff(usize),
    /// No such kind.
    #[error("record of unknown kind {0}")]
    UnknownKind(u8),
}

/// Reads one record.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(record: &[u8]) -> Result<Event<'_>, DecodeError> {
    let cut_off = DecodeError::CutOff(record.len());
    let kind = *record.first().ok_or(cut_off)?;
    Ok(
        match RecordKind::from_raw(kind).ok_or(DecodeError::UnknownKind(kind))? {
            RecordKind::ConnectionOpened => Event::ConnectionOpened(header(record)?.0),
            RecordKind::SocketData => {
                let (data, rest): (SocketData, _) = header(record)?;
                Event::SocketData(data, rest.get(..data.captured_len as usize).ok_or(cut_off)?)
            }
            RecordKind::ConnectionClosed => Event::ConnectionClosed(header(record)?.0),
            RecordKind::ProcessExec => {
                let (exec, rest): (ProcessExec, _) = header(record)?;
                Event::ProcessExec(
                    exec,
                    rest.get(..exec.command_line_len as usize).ok_or(cut_off)?,
                )
            }
            RecordKind::ProcessExit => Event::ProcessExit(header(record)?.0),
        },
    )
}

/// Splits a record into its fixed part and the bytes behind it.
fn header<T: FromBytes>(record: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(record).map_err(|_| DecodeError::CutOff(record.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_kernel_side_writes() {
        let mut record = vec![0; size_of::<SocketData>()];
        record[0] = RecordKind::SocketData as u8;
        record[1] = 1;
        record[4..8].copy_from_slice(&5u32.to_ne_bytes());
        record[8..16].copy_from_slice(&77u64.to_ne_bytes());
        record.extend_from_slice(b"GET /and the ring's padding");
        let Ok(Event::SocketData(data, captured)) = decode(&record) else {
            panic!("{:?}", decode(&record));
        };
        assert_eq!(
            (data.direction, data.connection_id, captured),
            (1, 77, &b"GET /"[..])
        );
    }

    #[test]
    fn tells_what_is_wrong() {
        assert_eq!(decode(&[]), Err(DecodeError::CutOff(0)));
        assert_eq!(decode(&[99; 100]), Err(DecodeError::UnknownKind(99)));
        assert_eq!(decode(&[2; 20]), Err(DecodeError::CutOff(20)));
    }

    proptest! {
        #[test]
        fn never_panics(record in proptest::collection::vec(any::<u8>(), 0..700), kind in 0u8..7) {
            let mut record = record;
            if let Some(first) = record.first_mut() { *first = kind; }
            let _ = decode(&record);
        }
    }
}
