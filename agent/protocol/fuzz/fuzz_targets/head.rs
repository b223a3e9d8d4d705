//! Any bytes as the head of a request and as that of its answer: what is told of them is bounded and
//! holds nothing that must stay where it is: no query, no fragment, no user's name or password.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{CloseReason, Connection, Direction, Limits, Segment};

fuzz_target!(|input: (&[u8], &[u8])| {
    let (request, response) = input;
    let mut connection = Connection::new(Limits::default());
    connection.handle_open();
    for (direction, head, time_ns) in [
        (Direction::Ingress, request, 1),
        (Direction::Egress, response, 2),
    ] {
        let bytes = [head, b"\r\n\r\n"].concat();
        connection.handle_segment(&Segment {
            direction,
            offset_bytes: 0,
            len_bytes: bytes.len() as u64,
            captured: &bytes,
            tail: &[],
            time_ns,
            previous_ns: 0,
            arrived_ns: None,
        });
    }
    connection.handle_close(true, true, CloseReason::Fin, 3);
    while let Some(exchange) = connection.poll_observation() {
        assert!(exchange.path.len() <= 1024);
        assert!(!exchange.path.contains(['?', '#']));
        assert!(exchange.status.is_none_or(|status| status < 1000));
        let host = exchange.host.unwrap_or_default();
        assert!(host.len() <= 256 && !host.contains('@'));
        for id in [exchange.request_id, exchange.correlation_id]
            .into_iter()
            .flatten()
        {
            assert!(id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
    assert_eq!(connection.in_flight(), 0);
});
