//! Records that come before that of their connection's opening.

mod records;

use protocol::Direction;
use records::{Setup, Wire};

#[test]
fn a_connection_may_be_opened_after_its_first_bytes() {
    let mut setup = Setup::new();
    let mut wire = Wire::new(1, Direction::Egress);
    let opening = wire.last_record();
    wire.request(&mut setup.tracker);
    // The ring was read up to there.
    setup.tracker.end_round();
    setup.tracker.handle(&opening);
    wire.answer(&mut setup.tracker);
    setup.tracker.end_round();
    assert_eq!(setup.total("telltale_http_request_heads_total"), 1.0);
    assert_eq!(setup.total("telltale_http_exchanges_total"), 1.0);
    assert_eq!(setup.total("telltale_losses_total"), 0.0);
}

#[test]
fn bytes_of_a_connection_that_nobody_opens_are_lost() {
    let mut setup = Setup::new();
    Wire::new(1, Direction::Egress).answer(&mut setup.tracker);
    assert_eq!(setup.total("telltale_losses_total"), 0.0);
    for _ in 0..3 {
        setup.tracker.end_round();
    }
    assert_eq!(setup.total("telltale_losses_total"), 1.0);
    assert_eq!(setup.total("telltale_http_exchanges_total"), 0.0);
}

#[test]
fn an_opening_that_is_told_twice_is_one() {
    let mut setup = Setup::new();
    let mut wire = Wire::open(&mut setup.tracker, 1, Direction::Egress);
    let opening = wire.last_record();
    wire.request(&mut setup.tracker);
    setup.tracker.handle(&opening);
    wire.answer(&mut setup.tracker);
    assert_eq!(setup.total("telltale_http_exchanges_total"), 1.0);
    assert_eq!(setup.total("telltale_losses_total"), 0.0);
}
