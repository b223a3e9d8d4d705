//! Which answer the kernel's sums belong to, and where that can't be told.

mod wire;

use protocol::{CloseReason, Direction};
use wire::Wire;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: example.org\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A request begins when the sum is `busy_ns`; gives what the answer before took.
fn request(wire: &mut Wire, busy_ns: impl Into<Option<u64>>, bytes: &[u8]) -> Option<u64> {
    let time_ns = wire.now_ns + 10;
    let took_ns = wire.connection.handle_request_turn(busy_ns.into(), time_ns);
    wire.request(bytes);
    took_ns
}

#[test]
fn each_answer_has_what_the_sum_grew_by() {
    let mut wire = Wire::server();
    assert_eq!(request(&mut wire, 7, GET), None);
    wire.response(OK);
    assert_eq!(request(&mut wire, 11, GET), Some(4));
    wire.response(&OK[..20]);
    wire.response(&OK[20..]);
    assert_eq!(request(&mut wire, 11, GET), Some(0));
    wire.response(OK);
    wire.close_directions(false, true, CloseReason::Fin);
    assert_eq!(wire.connection.handle_acknowledged(31), Some(20));
    // Once.
    assert_eq!(wire.connection.handle_acknowledged(41), None);
}

#[test]
fn an_answer_that_ends_with_the_connection_has_its_time() {
    let mut wire = Wire::server();
    request(&mut wire, 0, GET);
    wire.response(b"HTTP/1.1 200 OK\r\n\r\nuntil the end");
    assert_eq!(wire.connection.handle_acknowledged(5), None);
    wire.close_directions(false, true, CloseReason::Fin);
    assert_eq!(wire.connection.handle_acknowledged(9), Some(9));
}

#[test]
fn a_body_announced_with_expect_is_read_between() {
    let mut wire = Wire::server();
    let head = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    request(&mut wire, 0, head);
    wire.response(b"HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(request(&mut wire, 3, b"body"), None);
    wire.response(OK);
    assert_eq!(request(&mut wire, 8, GET), Some(5));
}

#[test]
fn what_cannot_be_told_apart_is_not_told() {
    // Two answers between two readings.
    let mut wire = Wire::server();
    request(&mut wire, 0, &[GET, GET].concat());
    wire.response(OK);
    wire.response(OK);
    assert_eq!(request(&mut wire, 8, GET), None);
    // The next request before the answer was acknowledged: neither its time nor the next one's.
    wire.response(OK);
    assert_eq!(request(&mut wire, None, GET), None);
    wire.response(OK);
    assert_eq!(request(&mut wire, 20, GET), None);
    wire.response(OK);
    assert_eq!(request(&mut wire, 21, GET), Some(1));
    // An answer that began before the request was read whole: 413 while the upload goes on.
    let upload = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n";
    wire.response(OK);
    request(&mut wire, 22, upload);
    wire.response(OK);
    assert_eq!(request(&mut wire, 25, b"body"), None);
    assert_eq!(request(&mut wire, 26, GET), None);
    // Bytes behind the answer that are none of it.
    wire.response(&[OK, b"what?"].concat());
    assert_eq!(request(&mut wire, 30, GET), None);
    // An answer that went unseen.
    wire.response(OK);
    wire.advance(true, 100);
    wire.advance(false, 100);
    wire.poll_progress();
    assert_eq!(request(&mut wire, 40, GET), None);
}

#[test]
fn a_broken_exchange_mixes_with_the_next() {
    let mut wire = Wire::new(Direction::Ingress, protocol::Limits::default());
    request(&mut wire, 0, GET);
    wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello");
    wire.close(CloseReason::Reset);
    assert_eq!(wire.connection.handle_acknowledged(9), None);
}
