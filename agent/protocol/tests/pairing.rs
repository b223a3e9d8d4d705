//! Which answer goes to which request: pipelining, records out of order, records lost.

mod wire;

use protocol::observation::{Exchange, Outcome};
use protocol::{CloseReason, Cursor, Direction, Limits, Loss, LossReason};
use wire::Wire;

/// A request and its answer that tell by their path and status that they belong together.
fn request(index: u16) -> Vec<u8> {
    format!("GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

fn response(index: u16) -> Vec<u8> {
    let status = 400 + index;
    format!("HTTP/1.1 {status} X\r\nContent-Length: 4\r\n\r\nbody").into_bytes()
}

fn joined(messages: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    messages.flatten().collect()
}

fn outcomes(exchanges: &[Exchange]) -> Vec<(u16, Outcome)> {
    let index = |exchange: &Exchange| exchange.path[1..].parse().expect("a number");
    exchanges
        .iter()
        .inspect(|exchange| assert_well_paired(exchange))
        .map(|exchange| (index(exchange), exchange.outcome))
        .collect()
}

/// An answer's status says which request it is for.
fn assert_well_paired(exchange: &Exchange) {
    if let Some(status) = exchange.status {
        assert_eq!(&*exchange.path, format!("/{}", status - 400));
    }
}

fn matched(indices: impl Iterator<Item = u16>) -> Vec<(u16, Outcome)> {
    indices.map(|index| (index, Outcome::Matched)).collect()
}

#[test]
fn pipelined_requests_in_one_segment() {
    let mut wire = Wire::server();
    wire.request(&joined((0..20).map(request)));
    assert_eq!(wire.connection.in_flight(), 20);
    wire.response(&joined((0..7).map(response)));
    wire.response(&joined((7..20).map(response)));
    assert_eq!(outcomes(&wire.exchanges()), matched(0..20));
    wire.assert_nothing_lost();
}

#[test]
fn answers_in_the_same_segment_as_a_long_body_ends() {
    let mut wire = Wire::server();
    wire.request(&joined((0..2).map(request)));
    wire.response(b"HTTP/1.1 400 X\r\nContent-Length: 5000\r\n\r\n");
    wire.advance(false, 4998);
    let mut end = b"xx".to_vec();
    end.extend(response(1));
    wire.response(&end);
    assert_eq!(outcomes(&wire.exchanges()), matched(0..2));
    wire.assert_nothing_lost();
}

#[test]
fn a_response_whose_record_comes_before_its_request_s() {
    let mut wire = Wire::server();
    for index in 0..3 {
        let before_request = wire.advance(true, request(index).len() as u64);
        let request_ns = wire.now_ns;
        let before_response = wire.advance(false, response(index).len() as u64);
        let response_ns = wire.now_ns;
        let bytes = response(index);
        wire.show(
            false,
            before_response,
            &bytes,
            bytes.len(),
            &[],
            response_ns,
        );
        assert!(wire.exchanges().is_empty());
        let bytes = request(index);
        wire.show(true, before_request, &bytes, bytes.len(), &[], request_ns);
        assert_eq!(outcomes(&wire.exchanges()), matched(index..=index));
    }
    wire.assert_nothing_lost();
}

/// A client's write returns, and is timed, after another thread has read the answer.
fn race(wire: &mut Wire, index: u16) {
    let before_request = wire.advance(true, request(index).len() as u64);
    let before_response = wire.advance(false, response(index).len() as u64);
    let (bytes, response_ns) = (response(index), wire.now_ns);
    wire.show(
        false,
        before_response,
        &bytes,
        bytes.len(),
        &[],
        response_ns,
    );
    let bytes = request(index);
    wire.now_ns += 5;
    let request_ns = wire.now_ns;
    wire.show(true, before_request, &bytes, bytes.len(), &[], request_ns);
}

#[test]
fn a_response_that_the_clock_has_before_its_request() {
    let mut wire = Wire::client();
    wire.request(&request(0));
    wire.response(&response(0));
    race(&mut wire, 1);
    race(&mut wire, 2);
    wire.request(&request(3));
    wire.response(&response(3));
    let exchanges = wire.exchanges();
    assert_eq!(outcomes(&exchanges), matched(0..4));
    let times = exchanges[1].times;
    assert_eq!(Some(times.request_first_ns), times.response_first_ns);
    wire.assert_nothing_lost();
}

#[test]
fn a_connection_seen_from_its_first_byte_has_no_orphans() {
    let mut wire = Wire::client();
    wire.connection.handle_open();
    race(&mut wire, 0);
    assert_eq!(outcomes(&wire.exchanges()), matched(0..1));
    wire.assert_nothing_lost();
}

#[test]
fn a_first_response_that_the_clock_has_before_its_request_never_shifts_the_rest() {
    let mut wire = Wire::client();
    race(&mut wire, 0);
    for index in 1..4 {
        wire.request(&request(index));
        wire.response(&response(index));
    }
    assert_eq!(
        outcomes(&wire.exchanges()),
        [
            (0, Outcome::Resynchronized),
            (1, Outcome::Resynchronized),
            (2, Outcome::Matched),
            (3, Outcome::Matched)
        ]
    );
}

#[test]
fn a_response_to_what_came_before_the_agent_is_told_from_an_orphan() {
    let older: fn(&mut Wire) = |_| {};
    let in_the_middle: fn(&mut Wire) = |wire| wire.request(b"rest of an upload");
    let lost: fn(&mut Wire) = |wire| {
        wire.advance(true, request(0).len() as u64);
    };
    for (before, reason) in [
        (older, LossReason::BeforeAgent),
        (in_the_middle, LossReason::BeforeAgent),
        (lost, LossReason::OrphanResponse),
    ] {
        let mut wire = Wire::client();
        before(&mut wire);
        wire.response(&response(0));
        wire.request(&request(1));
        wire.response(&response(1));
        assert_eq!(outcomes(&wire.exchanges()), matched(1..2));
        let losses = wire.losses();
        let told = losses.iter().find(|loss| loss.reason == reason);
        assert_eq!(told.map(|loss| loss.count), Some(1), "{losses:?}");
    }
}

#[test]
fn orphans_are_each_counted() {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
    let orphans = [chunked.to_vec(), response(1), empty.to_vec(), response(2)];
    for size in [7, 50, 1000] {
        let mut wire = Wire::server();
        wire.request(&request(0));
        wire.response(&response(0));
        wire.advance(true, 4 * request(0).len() as u64);
        for segment in orphans.concat().chunks(size) {
            wire.response(segment);
        }
        wire.request(&request(5));
        wire.response(&response(5));
        assert_eq!(
            outcomes(&wire.exchanges()),
            [matched(0..1), matched(5..6)].concat()
        );
        let orphaned = |loss: &&Loss| loss.reason == LossReason::OrphanResponse;
        let losses = wire.losses();
        let count = losses.iter().find(orphaned).map(|loss| loss.count);
        assert_eq!(count, Some(4), "{losses:?}");
    }
}

#[test]
fn a_connection_that_the_agent_meets_in_the_middle_of_a_body() {
    let mut wire = Wire::server();
    wire.request(b"rest of an upload that began before");
    wire.response(&response(0));
    for index in 1..3 {
        wire.request(&request(index));
        wire.response(&response(index));
    }
    assert_eq!(outcomes(&wire.exchanges()), matched(1..3));
}

#[test]
fn a_response_that_nothing_explains_does_not_wait_for_ever() {
    let mut wire = Wire::server();
    for _ in 0..20 {
        wire.response(&response(0));
    }
    wire.close(CloseReason::Fin);
    assert!(wire.exchanges().is_empty());
    let told: Vec<_> = wire
        .losses()
        .iter()
        .map(|loss| (loss.reason, loss.count))
        .collect();
    assert_eq!(told, [(LossReason::BeforeAgent, 20)]);
    assert!(wire.connection.is_idle());
}

#[test]
fn a_lost_response_ends_its_request_alone() {
    let mut wire = Wire::server();
    for index in 0..3 {
        wire.request(&request(index));
        if index == 1 {
            wire.advance(false, response(index).len() as u64);
        } else {
            wire.response(&response(index));
        }
    }
    assert_eq!(
        outcomes(&wire.exchanges()),
        [
            (0, Outcome::Matched),
            (1, Outcome::Resynchronized),
            (2, Outcome::Matched)
        ]
    );
    assert_eq!(wire.losses()[0].reason, LossReason::Gap);
}

#[test]
fn a_lost_request_leaves_an_orphan() {
    let mut wire = Wire::server();
    for index in 0..4 {
        if index == 1 {
            wire.advance(true, request(index).len() as u64);
        } else {
            wire.request(&request(index));
        }
        wire.response(&response(index));
    }
    assert_eq!(
        outcomes(&wire.exchanges()),
        [
            (0, Outcome::Matched),
            (2, Outcome::Matched),
            (3, Outcome::Matched)
        ]
    );
    let reasons: Vec<_> = wire.losses().iter().map(|loss| loss.reason).collect();
    assert_eq!(reasons, [LossReason::Gap, LossReason::OrphanResponse]);
}

#[test]
fn a_lost_exchange_leaves_its_neighbours_alone() {
    let mut wire = Wire::server();
    for index in 0..4 {
        if index == 1 {
            wire.advance(true, request(index).len() as u64);
            wire.advance(false, response(index).len() as u64);
        } else {
            wire.request(&request(index));
            wire.response(&response(index));
        }
    }
    assert_eq!(
        outcomes(&wire.exchanges()),
        [
            (0, Outcome::Matched),
            (2, Outcome::Matched),
            (3, Outcome::Matched)
        ]
    );
}

#[test]
fn a_lost_interim_response_does_not_cost_the_answer() {
    let mut wire = Wire::server();
    wire.request(&request(0));
    wire.advance(false, 25);
    wire.response(&response(0));
    assert_eq!(outcomes(&wire.exchanges()), matched(0..1));
}

#[test]
fn pipelined_requests_with_a_lost_answer_are_never_mispaired() {
    let mut wire = Wire::server();
    wire.request(&joined((0..4).map(request)));
    wire.response(&response(0));
    wire.advance(false, response(1).len() as u64);
    wire.response(&response(2));
    wire.response(&response(3));
    assert_eq!(
        outcomes(&wire.exchanges()),
        [
            (0, Outcome::Matched),
            (1, Outcome::Resynchronized),
            (2, Outcome::Resynchronized),
            (3, Outcome::Resynchronized)
        ]
    );
    // The next batch begins when all is answered.
    wire.request(&joined((4..6).map(request)));
    wire.response(&joined((4..6).map(response)));
    assert_eq!(outcomes(&wire.exchanges()), matched(4..6));
}

#[test]
fn pipelined_requests_with_a_lost_request_are_never_mispaired() {
    let mut wire = Wire::server();
    wire.request(&joined((0..2).map(request)));
    wire.advance(true, request(2).len() as u64);
    wire.request(&request(3));
    wire.response(&joined((0..2).map(response)));
    wire.response(&joined((2..4).map(response)));
    assert_eq!(
        outcomes(&wire.exchanges()),
        [
            (0, Outcome::Matched),
            (1, Outcome::Matched),
            (3, Outcome::Resynchronized)
        ]
    );
    wire.request(&joined((4..6).map(request)));
    wire.response(&joined((4..6).map(response)));
    assert_eq!(outcomes(&wire.exchanges()), matched(4..6));
}

#[test]
fn a_batch_longer_than_what_is_captured() {
    let mut wire = Wire::server();
    for batch in 0..2 {
        let indices = batch * 100..batch * 100 + 100;
        let requests = joined(indices.clone().map(request));
        wire.send(true, &requests, 1000, 0);
        let seen = wire.connection.in_flight();
        assert!((20..60).contains(&seen), "{seen}");
        for index in indices.clone() {
            wire.response(&response(index));
        }
        let exchanges = wire.exchanges();
        let matched = exchanges.iter().filter(|e| e.outcome == Outcome::Matched);
        assert!(matched.count() + 1 >= seen);
        exchanges.iter().for_each(assert_well_paired);
    }
}

#[test]
fn a_client_that_never_pauses_is_given_up_after_a_loss() {
    let mut wire = Wire::client();
    for index in 0..10 {
        wire.request(&request(index + 1));
        if index == 5 {
            wire.advance(true, request(99).len() as u64);
        }
        if index > 0 {
            wire.response(&response(index));
        }
    }
    let exchanges = wire.exchanges();
    exchanges.iter().for_each(assert_well_paired);
    assert!(
        exchanges
            .iter()
            .any(|e| e.outcome == Outcome::Resynchronized)
    );
}

#[test]
fn a_full_queue_is_given_up_as_a_whole() {
    let limits = Limits {
        requests_in_flight: 4,
        ..Limits::default()
    };
    let mut wire = Wire::new(Direction::Egress, limits);
    wire.request(&joined((0..6).map(request)));
    assert_eq!(wire.connection.in_flight(), 2);
    wire.response(&joined((0..6).map(response)));
    let exchanges = wire.exchanges();
    exchanges.iter().for_each(assert_well_paired);
    let evicted = exchanges.iter().filter(|e| e.outcome == Outcome::Evicted);
    assert_eq!(evicted.count(), 4);
    assert_eq!(exchanges.len(), 6);
}

#[test]
fn segments_without_captured_bytes() {
    let mut wire = Wire::server();
    wire.send(true, &request(0), 0, 0);
    wire.send(false, &response(0), 0, 0);
    wire.request(&request(1));
    wire.response(&response(1));
    assert_eq!(outcomes(&wire.exchanges()), matched(1..2));
}

#[test]
fn offsets_at_the_end_of_their_range() {
    let mut wire = Wire::server();
    let previous = Cursor {
        offset_bytes: u64::MAX - 3,
        last_ns: 1,
    };
    wire.show(true, previous, &request(0), 10, &[b'x'; 16], u64::MAX);
    wire.show(true, previous, &request(0), 10, &[b'x'; 16], u64::MAX);
    wire.close(CloseReason::Fin);
}
