//! Any bytes of a ring are an event or an error, for the reason that it tells; an event holds what
//! its record does. The connections that such events tell of keep their account.
#![no_main]

use std::collections::HashMap;

use ebpf_common::RecordKind;
use ebpf_common::connection::{ConnectionClosed, ConnectionOpened, SocketData};
use ebpf_common::process::{ProcessExec, ProcessExit};
use libfuzzer_sys::fuzz_target;
use protocol::{CloseReason, Connection, Direction, Limits, Segment};

/// The agent's own module: with the whole agent, a target would take minutes to build.
#[path = "../../src/decode.rs"]
mod decode;

use decode::{DecodeError, Event};

/// Connections that are followed at a time.
const MAX_CONNECTIONS: usize = 8;

fuzz_target!(|input: &[u8]| {
    let mut connections = HashMap::new();
    let mut left = input;
    // The ring tells each record's length.
    while let Some((len, rest)) = left.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        let (record, behind) = rest.split_at(len);
        left = behind;
        let decoded = decode::decode(record);
        check(record, &decoded);
        if let Ok(event) = decoded {
            follow(&mut connections, event);
        }
    }
    for followed in connections.values_mut() {
        followed
            .connection
            .handle_close(true, true, CloseReason::Fin, u64::MAX);
        followed.settle();
        assert_eq!(followed.heads, followed.ended);
    }
});

fn check(record: &[u8], decoded: &Result<Event<'_>, DecodeError>) {
    let kind = record.first().copied();
    let word = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().expect("eight bytes"));
    let half = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("four bytes"));
    match decoded {
        Ok(Event::ConnectionOpened(opened)) => {
            assert_eq!(kind, Some(RecordKind::ConnectionOpened as u8));
            assert_eq!((opened.connection_id, opened.pid), (word(8), half(40)));
            assert_eq!(opened.remote_address, record[64..80]);
        }
        Ok(Event::SocketData(data, captured)) => {
            assert_eq!(kind, Some(RecordKind::SocketData as u8));
            assert_eq!((data.connection_id, data.busy_ticks), (word(8), half(88)));
            let header = size_of::<SocketData>();
            assert_eq!(*captured, &record[header..header + half(4) as usize]);
        }
        Ok(Event::ConnectionClosed(closed)) => {
            assert_eq!(kind, Some(RecordKind::ConnectionClosed as u8));
            assert_eq!((closed.connection_id, closed.time_ns), (word(8), word(16)));
            assert_eq!(closed.cursors[1].last_ns, word(48));
        }
        Ok(Event::ProcessExec(exec, command_line)) => {
            assert_eq!(kind, Some(RecordKind::ProcessExec as u8));
            let header = size_of::<ProcessExec>();
            let len = exec.command_line_len as usize;
            assert_eq!(*command_line, &record[header..header + len]);
        }
        Ok(Event::ProcessExit(_)) => assert_eq!(kind, Some(RecordKind::ProcessExit as u8)),
        Err(DecodeError::UnknownKind(unknown)) => {
            assert_eq!(kind, Some(*unknown));
            assert!(RecordKind::from_raw(*unknown).is_none());
        }
        Err(DecodeError::CutOff(len)) => {
            assert_eq!(*len, record.len());
            assert!(kind.is_none_or(|kind| *len < promised_len(kind, record)));
        }
    }
}

/// How long a record of this kind has to be, by its own header.
fn promised_len(kind: u8, record: &[u8]) -> usize {
    let with_bytes = |header: usize, at: usize| {
        let len = record.get(at..at + 4).filter(|_| record.len() >= header);
        let len = len.map(|len| u32::from_ne_bytes(len.try_into().expect("four bytes")));
        header + len.unwrap_or(0) as usize
    };
    match RecordKind::from_raw(kind).expect("a kind that is known") {
        RecordKind::ConnectionOpened => size_of::<ConnectionOpened>(),
        RecordKind::SocketData => with_bytes(size_of::<SocketData>(), 4),
        RecordKind::ConnectionClosed => size_of::<ConnectionClosed>(),
        RecordKind::ProcessExec => with_bytes(
            size_of::<ProcessExec>(),
            std::mem::offset_of!(ProcessExec, command_line_len),
        ),
        RecordKind::ProcessExit => size_of::<ProcessExit>(),
    }
}

/// A connection and its account.
struct Followed {
    connection: Connection,
    heads: u64,
    ended: u64,
}

impl Followed {
    fn new() -> Self {
        Self {
            connection: Connection::new(Limits::default()),
            heads: 0,
            ended: 0,
        }
    }

    /// Takes out what came of the connection.
    fn settle(&mut self) {
        let connection = &mut self.connection;
        self.heads +=
            std::iter::from_fn(|| connection.poll_heads().map(|(_, heads)| heads)).sum::<u64>();
        while let Some(exchange) = connection.poll_observation() {
            self.ended += 1;
            connection.recycle(exchange);
        }
        while connection.poll_loss().is_some() {}
        assert_eq!(self.heads, self.ended + connection.in_flight() as u64);
        if let Some(resting) = connection.rest() {
            connection.resume(resting);
        }
    }
}

fn follow(connections: &mut HashMap<u64, Followed>, event: Event<'_>) {
    let id = match &event {
        Event::ConnectionOpened(opened) => opened.connection_id,
        Event::SocketData(data, _) => data.connection_id,
        Event::ConnectionClosed(closed) => closed.connection_id,
        Event::ProcessExec(..) | Event::ProcessExit(_) => return,
    };
    if connections.len() >= MAX_CONNECTIONS && !connections.contains_key(&id) {
        return;
    }
    let followed = connections.entry(id).or_insert_with(Followed::new);
    let connection = &mut followed.connection;
    match event {
        Event::ConnectionOpened(_) if connection.is_idle() => *followed = Followed::new(),
        Event::SocketData(data, captured) => {
            let Some(direction) = Direction::from_raw(data.direction) else {
                return;
            };
            connection.handle_progress(direction.opposite(), data.opposite);
            connection.handle_request_turn(Some(data.busy_ticks.into()), data.time_ns);
            connection.handle_segment(&Segment {
                direction,
                offset_bytes: data.offset_bytes,
                len_bytes: data.len_bytes,
                captured,
                tail: &[],
                time_ns: data.time_ns,
                previous_ns: data.previous_ns,
                arrived_ns: Some(data.arrived_ns),
            });
        }
        Event::ConnectionClosed(closed) => {
            let [ingress, egress] = closed.cursors;
            connection.handle_progress(Direction::Ingress, ingress);
            connection.handle_progress(Direction::Egress, egress);
            let reason = CloseReason::from_raw(closed.reason).unwrap_or(CloseReason::Fin);
            let (ingress, egress) = (closed.directions & 1 != 0, closed.directions & 2 != 0);
            connection.handle_close(ingress, egress, reason, closed.time_ns);
        }
        _ => {}
    }
    followed.settle();
}
