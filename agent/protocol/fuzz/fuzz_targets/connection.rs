//! Segments, cursors and ends in any order, with any offsets, never panic; what is in flight stays
//! within its bound, nothing is in flight when the connection has ended, and every request head is
//! one exchange by then. A connection that rests whenever it can tells the same.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use protocol::observation::Exchange;
use protocol::{CloseReason, Connection, Cursor, Direction, Limits, Loss, Segment};

#[derive(Debug, arbitrary::Arbitrary)]
enum Step<'a> {
    Segment {
        egress: bool,
        /// Bytes that went unseen before it; negative where it overlaps what came before.
        gap_bytes: i8,
        captured: &'a [u8],
        uncaptured_bytes: u16,
        tail: &'a [u8],
    },
    /// A segment anywhere.
    Stray {
        egress: bool,
        offset_bytes: u64,
        len_bytes: u64,
        captured: &'a [u8],
        time_ns: u64,
    },
    Progress {
        egress: bool,
        bytes: u16,
    },
    Close {
        ingress: bool,
        egress: bool,
        reason: u8,
    },
    Evict,
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let limits = Limits {
        requests_in_flight: 8,
        head_bytes: 512,
        ..Limits::default()
    };
    let mut connection = Connection::new(limits);
    // Take turns with what the connection is whenever it rests.
    let mut turns = [Connection::new(limits), Connection::new(limits)];
    // Some connections are seen from their first byte.
    if steps.len() % 2 == 0 {
        connection.handle_open();
        turns[0].handle_open();
    }
    let mut cursors = [Cursor::default(); 2];
    let mut now_ns = 0;
    let (mut heads, mut ended) = (0, 0);
    for step in &steps {
        now_ns += 1;
        apply(step, &mut turns[0], &mut cursors.clone(), now_ns);
        apply(step, &mut connection, &mut cursors, now_ns);
        assert!(connection.in_flight() <= limits.requests_in_flight);
        let told = take_out(&mut connection);
        assert_eq!(told, take_out(&mut turns[0]));
        let (exchanges, _, more) = told;
        assert!(exchanges.iter().all(|it| it.path.len() <= 1024));
        ended += exchanges.len() as u64;
        heads += more;
        assert_eq!(heads, ended + connection.in_flight() as u64);
        if let Some(resting) = turns[0].rest() {
            turns.reverse();
            turns[0].resume(resting);
        }
    }
    connection.handle_close(true, true, CloseReason::Fin, now_ns);
    assert_eq!(connection.in_flight(), 0);
    assert!(connection.is_idle());
});

/// What came of a connection: exchanges, losses, and request heads.
fn take_out(connection: &mut Connection) -> (Vec<Exchange>, Vec<Loss>, u64) {
    (
        std::iter::from_fn(|| connection.poll_observation()).collect(),
        std::iter::from_fn(|| connection.poll_loss()).collect(),
        std::iter::from_fn(|| connection.poll_heads().map(|(_, heads)| heads)).sum(),
    )
}

fn apply(step: &Step<'_>, connection: &mut Connection, cursors: &mut [Cursor; 2], now_ns: u64) {
    match step {
        Step::Segment {
            egress,
            gap_bytes,
            captured,
            uncaptured_bytes,
            tail,
        } => {
            let cursor = &mut cursors[usize::from(*egress)];
            let previous = *cursor;
            let offset_bytes = previous
                .offset_bytes
                .saturating_add_signed((*gap_bytes).into());
            let len_bytes = captured.len() as u64 + u64::from(*uncaptured_bytes);
            cursor.offset_bytes = offset_bytes + len_bytes;
            cursor.last_ns = now_ns;
            connection.handle_segment(&Segment {
                direction: direction(*egress),
                offset_bytes,
                len_bytes,
                captured,
                tail,
                time_ns: now_ns,
                previous_ns: previous.last_ns,
                arrived_ns: Some(now_ns),
            });
        }
        Step::Stray {
            egress,
            offset_bytes,
            len_bytes,
            captured,
            time_ns,
        } => connection.handle_segment(&Segment {
            direction: direction(*egress),
            offset_bytes: *offset_bytes,
            len_bytes: *len_bytes,
            captured,
            tail: &[],
            time_ns: *time_ns,
            previous_ns: 0,
            arrived_ns: Some(*time_ns),
        }),
        Step::Progress { egress, bytes } => {
            let cursor = &mut cursors[usize::from(*egress)];
            cursor.offset_bytes += u64::from(*bytes);
            cursor.last_ns = now_ns;
            connection.handle_progress(direction(*egress), *cursor);
        }
        Step::Close {
            ingress,
            egress,
            reason,
        } => {
            let reason = CloseReason::from_raw(*reason).unwrap_or(CloseReason::Fin);
            connection.handle_close(*ingress, *egress, reason, now_ns);
        }
        Step::Evict => connection.handle_evict(now_ns),
    }
}

fn direction(egress: bool) -> Direction {
    if egress {
        Direction::Egress
    } else {
        Direction::Ingress
    }
}
