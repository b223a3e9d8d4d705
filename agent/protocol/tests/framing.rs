//! Each way in which a message can be framed, through the public interface.

mod wire;

use protocol::CloseReason;
use protocol::observation::{Outcome, Role};
use wire::Wire;

#[test]
fn keep_alive_with_content_length() {
    let mut wire = Wire::server();
    for _ in 0..3 {
        wire.request(b"GET /a?secret=1 HTTP/1.1\r\nHost: example.org\r\n\r\n");
        wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    }
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 3);
    let first = &exchanges[0];
    assert_eq!(first.role, Role::Server);
    assert_eq!(first.outcome, Outcome::Matched);
    assert_eq!(first.method, "GET");
    assert_eq!(&*first.path, "/a");
    assert_eq!(first.status, Some(200));
    assert_eq!(first.request_body_bytes, Some(0));
    assert_eq!(first.response_body_bytes, Some(5));
    assert_eq!(first.host.as_deref(), Some("example.org"));
    assert_eq!(first.times.request_first_ns, 10);
    assert_eq!(first.times.request_last_ns, 10);
    assert_eq!(first.times.response_first_ns, Some(20));
    assert_eq!(first.times.response_last_ns, Some(20));
    wire.assert_nothing_lost();
    assert!(wire.connection.is_idle());
}

#[test]
fn until_close() {
    let mut wire = Wire::client();
    wire.request(b"GET / HTTP/1.0\r\n\r\n");
    wire.response(b"HTTP/1.0 200 OK\r\n\r\npart");
    wire.response(b"another");
    assert!(wire.exchanges().is_empty());
    wire.close(CloseReason::Fin);
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 1);
    assert_eq!(exchanges[0].outcome, Outcome::Matched);
    assert_eq!(exchanges[0].role, Role::Client);
    assert_eq!(exchanges[0].http_minor_version, 0);
    assert_eq!(exchanges[0].response_body_bytes, Some(11));
    assert_eq!(exchanges[0].times.response_last_ns, Some(30));
    wire.assert_nothing_lost();
}
