//! Each way in which a message can be framed, through the public interface.

mod wire;

use protocol::observation::{Outcome, Role};
use protocol::{CloseReason, Direction, Limits, LossReason};
use wire::Wire;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: example.org\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn keep_alive_with_content_length() {
    let mut wire = Wire::server();
    for _ in 0..3 {
        wire.request(b"GET /a?secret=1 HTTP/1.1\r\nHost: example.org\r\n\r\n");
        wire.response(OK);
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
fn the_arrival_is_that_of_the_segment_that_a_request_begins() {
    let arrivals = |wire: &mut Wire| -> Vec<_> {
        let exchanges = wire.exchanges().into_iter();
        exchanges.map(|e| e.times.request_arrived_ns).collect()
    };
    let mut wire = Wire::server();
    // A head in two segments: the second one's arrival is that of its rest.
    wire.arrived_ns = Some(3);
    wire.request(&GET[..9]);
    wire.arrived_ns = Some(12);
    wire.request(&GET[9..]);
    wire.response(OK);
    assert_eq!(arrivals(&mut wire), [Some(3)]);
    // One that is not told, and a body whose arrival is not the next request's.
    wire.request(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n");
    wire.arrived_ns = Some(wire.now_ns + 1);
    wire.request(b"body");
    wire.response(OK);
    wire.request(GET);
    wire.response(OK);
    assert_eq!(arrivals(&mut wire), [None, None]);
    // Of two that were read together, the second one may have come later.
    let arrived_ns = wire.now_ns + 4;
    wire.arrived_ns = Some(arrived_ns);
    wire.request(&[GET, GET].concat());
    wire.response(OK);
    wire.response(OK);
    assert_eq!(arrivals(&mut wire), [Some(arrived_ns), None]);

    let mut client = Wire::client();
    client.arrived_ns = Some(1);
    client.request(GET);
    client.response(OK);
    assert_eq!(arrivals(&mut client), [None]);
}

#[test]
fn times_are_those_of_the_first_and_last_bytes() {
    let mut wire = Wire::client();
    for part in [
        &b"POST / HT"[..],
        b"TP/1.1\r\nContent-Length: 2\r\n\r\na",
        b"b",
    ] {
        wire.request(part);
    }
    assert_eq!(wire.connection.in_flight(), 1);
    assert_eq!(
        wire.connection.methods_in_flight().collect::<Vec<_>>(),
        ["POST"]
    );
    for part in [
        &b"HTTP/1.1 201 Created\r\nContent-Le"[..],
        b"ngth: 3\r\n\r\na",
        b"bc",
    ] {
        wire.response(part);
    }
    let exchange = wire.exchange();
    assert_eq!(exchange.role, Role::Client);
    assert_eq!(exchange.times.request_first_ns, 10);
    assert_eq!(exchange.times.request_last_ns, 30);
    assert_eq!(exchange.times.response_first_ns, Some(40));
    assert_eq!(exchange.times.response_last_ns, Some(60));
    assert_eq!(wire.connection.in_flight(), 0);
}

#[test]
fn fields_that_leave_the_head() {
    let mut wire = Wire::server();
    wire.request(
        b"GET http://user:pw@other.org/p?q HTTP/1.1\r\nHOST: example.org\r\n\
          Authorization: secret\r\nX-Request-ID: r-1\r\nx-correlation-id: c-1\r\n\
          traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n",
    );
    wire.response(OK);
    let exchange = wire.exchange();
    assert_eq!(exchange.host.as_deref(), Some("other.org"));
    assert_eq!(exchange.request_id.as_deref(), Some("r-1"));
    assert_eq!(exchange.correlation_id.as_deref(), Some("c-1"));
    assert_eq!(exchange.trace_parent.map(|parent| parent.flags), Some(1));
    let all = format!("{exchange:?}");
    assert!(!all.contains("secret") && !all.contains("pw"), "{all}");
}

#[test]
fn a_long_body_that_nobody_captured_ends_with_the_cursor() {
    let mut wire = Wire::server();
    wire.request(GET);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
    wire.response(head);
    wire.advance(false, 400_000);
    wire.poll_progress();
    assert!(wire.exchanges().is_empty());
    assert!(wire.connection.awaits_progress());
    wire.advance(false, 600_000);
    let last_ns = wire.now_ns;
    wire.now_ns += 1000;
    wire.poll_progress();
    let exchange = wire.exchange();
    assert_eq!(exchange.times.response_last_ns, Some(last_ns));
    assert_eq!(exchange.response_body_bytes, Some(1_000_000));
    assert!(!wire.connection.awaits_progress());
    wire.assert_nothing_lost();
}

#[test]
fn a_long_upload_ends_where_the_next_record_says() {
    let mut wire = Wire::client();
    wire.request(b"PUT /f HTTP/1.1\r\nContent-Length: 1000\r\n\r\n");
    wire.advance(true, 1000);
    let last_ns = wire.now_ns;
    wire.response(b"HTTP/1.1 204 No Content\r\n\r\n");
    let exchange = wire.exchange();
    assert_eq!(exchange.times.request_last_ns, last_ns);
    assert_eq!(exchange.request_body_bytes, Some(1000));
}

#[test]
fn a_body_whose_end_was_overtaken_takes_its_time_from_the_next_record() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    wire.request(GET);
    wire.advance(false, 100);
    let last_ns = wire.now_ns;
    // The record of the second response comes after one that tells of its bytes already.
    let previous = wire.advance(false, OK.len() as u64);
    let second_ns = wire.now_ns;
    wire.poll_progress();
    assert!(wire.exchanges().is_empty());
    wire.show(false, previous, OK, OK.len(), &[], second_ns);
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(exchanges[0].times.response_last_ns, Some(last_ns));
    assert_eq!(exchanges[1].times.response_first_ns, Some(second_ns));
    wire.assert_nothing_lost();
}

#[test]
fn a_body_whose_end_was_overtaken_does_not_wait_for_ever() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    wire.advance(false, 150);
    wire.poll_progress();
    assert!(wire.exchanges().is_empty());
    wire.poll_progress();
    assert_eq!(wire.exchange().outcome, Outcome::Matched);
}

#[test]
fn a_body_whose_end_was_overtaken_before_a_lost_record() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    wire.request(GET);
    wire.advance(false, 150);
    let overtaken_ns = wire.now_ns;
    wire.poll_progress();
    wire.advance(false, 50);
    wire.response(OK);
    let exchange = &wire.exchanges()[0];
    assert_eq!(exchange.response_body_bytes, Some(100));
    assert_eq!(exchange.times.response_last_ns, Some(overtaken_ns));
}

#[test]
fn an_upload_that_nobody_captured_lasted_as_long_as_the_cursor_says() {
    let mut wire = Wire::server();
    wire.request(b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n");
    wire.advance(true, 3);
    wire.send(true, b"junk", 0, 0);
    wire.advance(true, 1000);
    let last_ns = wire.now_ns;
    wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
    // The rest of the answer, and of the next exchange, is told by one record.
    wire.advance(false, 9);
    wire.advance(true, GET.len() as u64);
    wire.response(OK);
    assert_eq!(wire.exchanges()[0].times.request_last_ns, last_ns);
}

#[test]
fn chunked_with_extensions_and_trailers() {
    let mut wire = Wire::server();
    for _ in 0..2 {
        wire.request(
            b"POST /c HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
              3;x=1\r\nabc\r\n0\r\nDigest: none\r\n\r\n",
        );
        wire.response(format!("{CHUNKED}5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n").as_bytes());
    }
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(exchanges[1].request_body_bytes, Some(3));
    assert_eq!(exchanges[1].response_body_bytes, Some(11));
    wire.assert_nothing_lost();
}

#[test]
fn an_uncaptured_chunked_body_ends_with_its_tail() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.response(format!("{CHUNKED}5\r\nhello\r\n").as_bytes());
    wire.advance(false, 70_000);
    wire.send(false, b"4\r\nlast\r\n0\r\n\r\n", 0, 12);
    let last_ns = wire.now_ns;
    let exchange = wire.exchange();
    assert_eq!(exchange.outcome, Outcome::Matched);
    assert_eq!(exchange.response_body_bytes, None);
    assert_eq!(exchange.times.response_last_ns, Some(last_ns));
    // The connection is in step again.
    wire.request(GET);
    wire.response(OK);
    assert_eq!(wire.exchange().response_body_bytes, Some(5));
    wire.assert_nothing_lost();
}

#[test]
fn a_tail_of_a_segment_whose_beginning_was_captured_comes_in_a_record_of_its_own() {
    let mut wire = Wire::server();
    wire.request(GET);
    let body = format!("{CHUNKED}1000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x1000));
    let previous = wire.advance(false, body.len() as u64);
    let time_ns = wire.now_ns;
    wire.show(false, previous, body.as_bytes(), 100, &[], time_ns);
    assert!(wire.exchanges().is_empty());
    wire.show(
        false,
        previous,
        body.as_bytes(),
        0,
        &body.as_bytes()[body.len() - 8..],
        time_ns,
    );
    assert_eq!(wire.exchange().outcome, Outcome::Matched);
    wire.assert_nothing_lost();
}

#[test]
fn a_tail_that_continues_the_framing_leaves_the_size_known() {
    let mut wire = Wire::server();
    wire.request(GET);
    let body = format!("{CHUNKED}1000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x1000));
    wire.send(false, body.as_bytes(), 100, 16);
    assert_eq!(wire.exchange().response_body_bytes, Some(0x1000));
}

#[test]
fn an_uncaptured_chunked_body_without_a_tail_ends_where_the_next_response_begins() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.response(CHUNKED.as_bytes());
    wire.advance(false, 70_000);
    let last_ns = wire.now_ns;
    wire.request(GET);
    wire.response(OK);
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(exchanges[0].times.response_last_ns, Some(last_ns));
    assert_eq!(exchanges[1].response_body_bytes, Some(5));
    wire.assert_nothing_lost();
}

#[test]
fn an_uncaptured_chunked_upload_ends_with_its_answer() {
    let mut wire = Wire::server();
    for _ in 0..2 {
        wire.request(b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
        wire.advance(true, 70_000);
        wire.response(OK);
    }
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(exchanges[0].outcome, Outcome::Matched);
    assert_eq!(exchanges[0].request_body_bytes, None);
    assert_eq!(exchanges[0].times.request_last_ns, 20);
    wire.assert_nothing_lost();
}

#[test]
fn a_chunked_answer_that_breaks_off_is_not_whole() {
    let mut wire = Wire::client();
    wire.request(GET);
    wire.response(format!("{CHUNKED}5\r\nhel").as_bytes());
    wire.close(CloseReason::Fin);
    let exchange = wire.exchange();
    assert_eq!(exchange.outcome, Outcome::ClosedEarly);
    assert_eq!(exchange.status, Some(200));
    assert_eq!(exchange.times.response_last_ns, Some(30));
}

#[test]
fn broken_chunk_framing_is_counted() {
    let mut wire = Wire::client();
    wire.request(GET);
    wire.response(format!("{CHUNKED}zz\r\n").as_bytes());
    wire.close(CloseReason::Fin);
    assert_eq!(wire.exchange().outcome, Outcome::ClosedEarly);
    assert_eq!(wire.losses()[0].reason, LossReason::ChunkInvalid);
}

#[test]
fn head_answers_have_no_body_whatever_they_say() {
    let mut wire = Wire::server();
    for _ in 0..2 {
        wire.request(b"HEAD /a HTTP/1.1\r\n\r\n");
        wire.response(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n");
    }
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(exchanges[0].response_body_bytes, Some(0));
    wire.assert_nothing_lost();
}

#[test]
fn statuses_without_a_body() {
    let mut wire = Wire::server();
    for status in ["204 No Content", "304 Not Modified"] {
        wire.request(GET);
        wire.response(format!("HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\n").as_bytes());
        assert_eq!(wire.exchange().response_body_bytes, Some(0));
    }
    wire.assert_nothing_lost();
}

#[test]
fn interim_responses_are_not_the_answer() {
    let mut wire = Wire::client();
    wire.request(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    wire.response(b"HTTP/1.1 100 Continue\r\n\r\n");
    wire.request(b"ok");
    wire.response(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    wire.response(OK);
    let exchange = wire.exchange();
    assert_eq!(exchange.status, Some(200));
    assert_eq!(exchange.times.response_first_ns, Some(50));
    wire.assert_nothing_lost();
}

#[test]
fn a_body_that_was_never_sent_after_expect() {
    let mut wire = Wire::client();
    wire.request(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 200\r\n\r\n");
    wire.response(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n");
    wire.request(GET);
    wire.response(OK);
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(
        (exchanges[0].method, exchanges[0].status),
        ("POST", Some(417))
    );
    assert_eq!(
        (exchanges[1].method, exchanges[1].status),
        ("GET", Some(200))
    );
    wire.assert_nothing_lost();
}

#[test]
fn switching_protocols_leaves_http() {
    let mut wire = Wire::server();
    wire.request(b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    wire.response(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi");
    wire.request(b"GET /not-http HTTP/1.1\r\n\r\n");
    wire.close(CloseReason::Fin);
    let exchange = wire.exchange();
    assert_eq!(exchange.outcome, Outcome::Upgraded);
    assert_eq!(exchange.status, Some(101));
    wire.assert_nothing_lost();
}

#[test]
fn connect_becomes_a_tunnel_when_it_succeeds() {
    let mut wire = Wire::client();
    wire.request(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n");
    wire.response(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    wire.request(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n");
    wire.response(b"HTTP/1.1 200 Connection Established\r\n\r\n");
    wire.request(b"\x16\x03\x01");
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(exchanges[0].outcome, Outcome::Matched);
    assert_eq!(exchanges[1].outcome, Outcome::Upgraded);
    assert_eq!(&*exchanges[1].path, "example.org:443");
    wire.assert_nothing_lost();
}

#[test]
fn until_close() {
    let mut wire = Wire::client();
    wire.request(b"GET / HTTP/1.0\r\n\r\n");
    wire.response(b"HTTP/1.0 200 OK\r\n\r\npart");
    wire.response(b"another");
    assert!(wire.exchanges().is_empty());
    wire.close(CloseReason::Fin);
    let exchange = wire.exchange();
    assert_eq!(exchange.outcome, Outcome::Matched);
    assert_eq!(exchange.http_minor_version, 0);
    assert_eq!(exchange.response_body_bytes, Some(11));
    assert_eq!(exchange.times.response_last_ns, Some(30));
    wire.assert_nothing_lost();
}

#[test]
fn a_reset_in_an_answer_until_close() {
    let mut wire = Wire::client();
    wire.request(GET);
    wire.response(b"HTTP/1.1 200 OK\r\n\r\npart");
    wire.close(CloseReason::Reset);
    assert_eq!(wire.exchange().outcome, Outcome::Reset);
}

#[test]
fn http_1_0_with_keep_alive() {
    let mut wire = Wire::server();
    for _ in 0..2 {
        wire.request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        wire.response(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
    }
    assert_eq!(wire.exchanges().len(), 2);
    wire.assert_nothing_lost();
}

#[test]
fn an_early_answer_waits_for_the_request() {
    let mut wire = Wire::server();
    wire.request(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345");
    wire.response(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n");
    assert!(wire.exchanges().is_empty());
    wire.request(b"67890");
    let exchange = wire.exchange();
    assert_eq!(exchange.outcome, Outcome::Matched);
    assert_eq!(exchange.times.request_last_ns, 30);
    assert_eq!(exchange.times.response_last_ns, Some(20));
}

#[test]
fn an_early_answer_stands_when_the_upload_is_cut_off() {
    let mut wire = Wire::server();
    wire.request(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345");
    wire.response(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n");
    wire.close(CloseReason::Reset);
    let exchange = wire.exchange();
    assert_eq!(exchange.outcome, Outcome::Matched);
    assert_eq!(exchange.status, Some(413));
    assert_eq!(exchange.request_body_bytes, None);
}

#[test]
fn bare_line_feeds_and_leading_empty_lines() {
    let mut wire = Wire::server();
    wire.request(b"\r\nGET /a HTTP/1.1\nHost: a\n\n");
    wire.response(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok");
    wire.request(b"\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
    wire.response(OK);
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    assert_eq!(exchanges[0].host.as_deref(), Some("a"));
    assert_eq!(&*exchanges[1].path, "/b");
    wire.assert_nothing_lost();
}

#[test]
fn an_asterisk_and_a_method_of_ones_own() {
    let mut wire = Wire::server();
    wire.request(b"OPTIONS * HTTP/1.1\r\n\r\n");
    wire.response(OK);
    wire.request(b"PURGE /cache HTTP/1.1\r\n\r\n");
    wire.response(OK);
    let exchanges = wire.exchanges();
    assert_eq!(&*exchanges[0].path, "*");
    assert_eq!(exchanges[1].method, "_OTHER");
    assert_eq!(&*exchanges[1].path, "/cache");
}

#[test]
fn conflicting_lengths_are_not_parsed() {
    let mut wire = Wire::server();
    wire.request(b"POST /s HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd");
    wire.response(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let exchange = wire.exchange();
    assert_eq!(exchange.outcome, Outcome::NotParsed);
    assert_eq!((exchange.method, exchange.status), ("POST", Some(400)));
    // The connection is in step again at the next segment that begins a message.
    wire.request(GET);
    wire.response(OK);
    assert_eq!(wire.exchange().outcome, Outcome::Matched);
}

#[test]
fn a_head_that_does_not_parse_keeps_its_answer() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.response(OK);
    wire.request(b"GET /x HTTP/1.1\r\nbroken\r\n\r\n");
    wire.response(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    wire.request(GET);
    wire.response(OK);
    let outcomes: Vec<_> = wire
        .exchanges()
        .iter()
        .map(|e| (e.outcome, e.status))
        .collect();
    assert_eq!(
        outcomes,
        [
            (Outcome::Matched, Some(200)),
            (Outcome::NotParsed, Some(400)),
            (Outcome::Matched, Some(200)),
        ]
    );
}

#[test]
fn a_head_that_was_cut_is_told_by_what_was_captured() {
    let mut wire = Wire::server();
    let head = format!(
        "GET /big?a=1 HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n",
        "c".repeat(9000)
    );
    for _ in 0..2 {
        wire.send(true, head.as_bytes(), 4096, 0);
        wire.response(OK);
    }
    let exchanges = wire.exchanges();
    assert_eq!(exchanges.len(), 2);
    for exchange in exchanges {
        assert_eq!(exchange.outcome, Outcome::Matched);
        assert_eq!(&*exchange.path, "/big");
        assert_eq!(exchange.request_body_bytes, None);
        assert_eq!(exchange.response_body_bytes, Some(5));
    }
    let losses = wire.losses();
    assert_eq!(losses.len(), 1);
    assert_eq!(
        (losses[0].reason, losses[0].count),
        (LossReason::HeadCut, 2)
    );
}

#[test]
fn a_head_longer_than_the_limit_is_cut_there() {
    let limits = Limits {
        head_bytes: 100,
        ..Limits::default()
    };
    let mut wire = Wire::new(Direction::Ingress, limits);
    let head = format!(
        "GET /big HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n",
        "c".repeat(200)
    );
    let (first, second) = head.as_bytes().split_at(60);
    wire.request(first);
    wire.request(second);
    wire.response(OK);
    let exchange = wire.exchange();
    assert_eq!(
        (&*exchange.path, exchange.host.as_deref()),
        ("/big", Some("a"))
    );
    assert_eq!(wire.losses()[0].reason, LossReason::HeadCut);
}

#[test]
fn false_heads_inside_bodies() {
    let mut wire = Wire::server();
    wire.request(b"POST / HTTP/1.1\r\nContent-Length: 29\r\n\r\n");
    wire.request(b"GET /false HTTP/1.1\r\nHost: a\r\n");
    let body = "HTTP/1.1 500 False\r\n\r\n";
    wire.response(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    wire.response(body.as_bytes());
    let exchange = wire.exchange();
    assert_eq!((exchange.method, exchange.status), ("POST", Some(200)));
    wire.assert_nothing_lost();
}

/// A body that goes on with what looks like a head, in a record that comes behind the answer's: by
/// the clock, nothing had been answered yet.
#[test]
fn a_false_head_whose_record_comes_late() {
    let mut wire = Wire::server();
    let head = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = b"20\r\n";
    wire.send(true, &[&head[..], chunk].concat(), head.len(), 0);
    let body = b"GET /false HTTP/1.1\r\nHost: a\r\n\r\n";
    let previous = wire.advance(true, body.len() as u64);
    let time_ns = wire.now_ns;
    wire.response(OK);
    wire.show(true, previous, body, body.len(), &[], time_ns);
    wire.close(CloseReason::Fin);
    assert_eq!(&*wire.exchange().path, "/a");
}

#[test]
fn connections_that_end() {
    for (reason, outcome) in [
        (CloseReason::Fin, Outcome::ClosedEarly),
        (CloseReason::Reset, Outcome::Reset),
        (CloseReason::Timeout, Outcome::TimedOut),
        (CloseReason::Replaced, Outcome::Evicted),
    ] {
        let mut wire = Wire::server();
        wire.request(GET);
        wire.close(reason);
        let exchange = wire.exchange();
        assert_eq!(exchange.outcome, outcome);
        assert_eq!(exchange.status, None);
        assert_eq!(exchange.times.response_first_ns, None);
        assert_eq!(exchange.times.response_last_ns, Some(20));
    }
}

#[test]
fn a_client_that_closes_its_half_still_gets_its_answer() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.close_directions(true, false, CloseReason::Fin);
    assert!(wire.exchanges().is_empty());
    wire.response(OK);
    assert_eq!(wire.exchange().outcome, Outcome::Matched);
    wire.close_directions(false, true, CloseReason::Fin);
    assert!(wire.exchanges().is_empty());
    wire.assert_nothing_lost();
}

#[test]
fn a_head_that_never_ended_is_an_exchange_too() {
    let mut wire = Wire::server();
    wire.request(b"GET /slow HTTP/1.1\r\nHost");
    wire.close(CloseReason::Timeout);
    let exchange = wire.exchange();
    assert_eq!(
        (exchange.outcome, &*exchange.path),
        (Outcome::TimedOut, "/slow")
    );
}

#[test]
fn what_the_agent_forgets_is_evicted() {
    let mut wire = Wire::server();
    wire.request(GET);
    wire.connection.handle_evict(99);
    assert_eq!(wire.exchange().outcome, Outcome::Evicted);
    assert!(wire.connection.is_idle());
}

#[test]
fn what_is_not_http_leaves_nothing_but_a_count() {
    let mut wire = Wire::server();
    wire.request(b"*1\r\n$4\r\nPING\r\n");
    wire.response(b"+PONG\r\n");
    wire.close(CloseReason::Fin);
    assert!(wire.exchanges().is_empty());
    assert_eq!(wire.connection.role(), None);
    let losses = wire.losses();
    assert_eq!(losses.len(), 1);
    assert_eq!(
        (losses[0].reason, losses[0].bytes),
        (LossReason::NotHttp, 21)
    );
}
