//! A common exchange allocates nothing, from its records in the ring to the metrics.

mod records;

use protocol::Direction;
use records::{Setup, Wire};

/// Exchanges whose allocations are counted.
const EXCHANGES: usize = 1000;

/// What is new to the agent costs memory: a service, a route, a histogram's first value. A
/// connection that is new costs its place in the table. After its first exchange, nothing does.
#[test]
fn the_second_exchange_of_a_connection_and_all_after_it_allocate_nothing() {
    for requests in [Direction::Ingress, Direction::Egress] {
        let mut setup = Setup::new();
        let mut first = Wire::open(&mut setup.tracker, 1, requests);
        for _ in 0..3 {
            first.exchange(&mut setup.tracker);
        }
        let mut wire = Wire::open(&mut setup.tracker, 2, requests);
        wire.exchange(&mut setup.tracker);
        let counted = allocation_counter::measure(|| {
            for _ in 0..EXCHANGES {
                wire.exchange(&mut setup.tracker);
            }
        });
        let exchanges = setup.total("telltale_http_exchanges_total");
        assert_eq!(exchanges, (EXCHANGES + 4) as f64);
        assert_eq!(counted.count_total, 0, "{requests:?}: {counted:?}");
    }
}

/// As many as are under way at the same moment have memory of their own; the next ones use it.
#[test]
fn connections_that_take_turns_allocate_nothing() {
    let mut setup = Setup::new();
    let mut wires: Vec<_> = (0..50)
        .map(|id| Wire::open(&mut setup.tracker, id, Direction::Ingress))
        .collect();
    let mut round = |setup: &mut Setup| {
        for wire in &mut wires {
            wire.request(&mut setup.tracker);
        }
        for wire in &mut wires {
            wire.answer(&mut setup.tracker);
        }
    };
    for _ in 0..3 {
        round(&mut setup);
    }
    let counted = allocation_counter::measure(|| round(&mut setup));
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
