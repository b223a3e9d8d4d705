use protocol::observation::Outcome;

use super::*;
use crate::sink::fixtures::{lasting, observation, search};

/// An exchange that ended so long after the start.
fn at(mut observation: Observation, start_ns: u64, ended_seconds: f64) -> Observation {
    let duration_ns = semantics::duration_ns(&observation.exchange);
    let times = &mut observation.exchange.times;
    times.request_first_ns = start_ns + (ended_seconds * 1e9) as u64 - duration_ns;
    times.response_last_ns = Some(times.request_first_ns + duration_ns);
    observation
}

const START_NS: u64 = 7_000 * SECOND_NS;

fn get() -> Observation {
    observation("shop", Role::Server, "/items/{id}")
}

fn close(value: f64, expected: f64) -> bool {
    (value - expected).abs() <= expected * 0.01
}

#[test]
fn percentiles_are_within_one_percent_of_the_truth() {
    let summary = Summary::starting_at(START_NS);
    let (mut one, mut other) = (summary.worker(), summary.worker());
    // 1 to 1000 ms, each once, over two workers.
    for milliseconds in 1..=1000 {
        let worker = if milliseconds % 2 == 0 {
            &mut one
        } else {
            &mut other
        };
        worker.observe(&at(lasting(get(), milliseconds), START_NS, 5.0));
    }
    let snapshot = summary.snapshot_at(START_NS + 20 * SECOND_NS);
    let [service] = &snapshot.services[..] else {
        panic!("{snapshot:?}")
    };
    assert_eq!((&*service.service, service.role), ("shop", Role::Server));
    let Traffic {
        count,
        rate,
        error_share,
        duration,
    } = service.traffic;
    assert_eq!((count, error_share), (1000, 0.0));
    assert!(close(rate, 50.0), "1000 in 20 s are {rate} /s");
    assert!(
        close(duration.p50, 0.5) && close(duration.p95, 0.95) && close(duration.p99, 0.99),
        "{duration:?}"
    );
}

#[test]
fn errors_are_a_share_by_what_the_metrics_call_errors() {
    let summary = Summary::starting_at(START_NS);
    let mut worker = summary.worker();
    let mut observe = |change: fn(&mut Observation)| {
        let mut one = at(get(), START_NS, 1.0);
        change(&mut one);
        worker.observe(&one);
    };
    observe(|_| {});
    observe(|it| it.exchange.status = Some(404));
    observe(|it| it.exchange.status = Some(500));
    observe(|it| it.exchange.outcome = Outcome::Reset);
    // Not an observation at all.
    observe(|it| it.exchange.outcome = Outcome::Evicted);
    let snapshot = summary.snapshot_at(START_NS + 2 * SECOND_NS);
    assert_eq!(snapshot.services[0].traffic.count, 4);
    assert_eq!(snapshot.services[0].traffic.error_share, 0.5);
}

#[test]
fn what_is_older_than_the_window_is_forgotten() {
    let summary = Summary::starting_at(START_NS);
    let mut worker = summary.worker();
    let mut failed = get();
    failed.exchange.status = Some(500);
    worker.observe(&at(failed, START_NS, 1.0));
    worker.observe(&at(get(), START_NS, 55.0));
    let count = |after: u64| {
        let snapshot = summary.snapshot_at(START_NS + after * SECOND_NS);
        snapshot
            .services
            .first()
            .map_or(0, |service| service.traffic.count)
    };
    assert_eq!(count(59), 2);
    assert_eq!(count(75), 1);
    assert_eq!(count(130), 0);
    // The slot of the first is used again, and keeps nothing of it.
    worker.observe(&at(get(), START_NS, 61.0));
    assert_eq!(count(65), 2);
    let snapshot = summary.snapshot_at(START_NS + 65 * SECOND_NS);
    assert_eq!(snapshot.services[0].traffic.error_share, 0.0);
}

#[test]
fn an_exchange_that_comes_too_late_spoils_nothing() {
    let summary = Summary::starting_at(START_NS);
    let mut worker = summary.worker();
    worker.observe(&at(get(), START_NS, 70.0));
    worker.observe(&at(get(), START_NS, 9.0));
    let snapshot = summary.snapshot_at(START_NS + 71 * SECOND_NS);
    assert_eq!(snapshot.services[0].traffic.count, 1);
}

#[test]
fn the_trend_has_each_whole_second() {
    let summary = Summary::starting_at(START_NS);
    let mut worker = summary.worker();
    for second in [10.5, 11.2, 11.9, 12.3] {
        worker.observe(&at(get(), START_NS, second));
    }
    let snapshot = summary.snapshot_at(START_NS + 12 * SECOND_NS + SECOND_NS / 2);
    let trend = &snapshot.services[0].per_second;
    assert_eq!(trend.len(), WINDOW_SECONDS);
    assert_eq!(
        trend[WINDOW_SECONDS - 2..],
        [1, 2],
        "the running second is left out"
    );
    assert_eq!(trend.iter().sum::<u32>(), 3);
}

#[test]
fn calls_tell_the_wire_and_the_server_apart() {
    let summary = Summary::starting_at(START_NS);
    let mut worker = summary.worker();
    worker.observe(&at(search("shop"), START_NS, 1.0));
    let snapshot = summary.snapshot_at(START_NS + 2 * SECOND_NS);
    assert_eq!(
        snapshot.services[0].role,
        Role::Client,
        "a call is an outgoing request too"
    );
    let [call] = &snapshot.calls[..] else {
        panic!("{snapshot:?}")
    };
    assert_eq!((&*call.service, call.operation), ("shop", "search"));
    assert!(close(call.traffic.duration.p50, 0.010), "{call:?}");
    assert!(close(call.took.unwrap().p50, 0.006), "{call:?}");
}

#[test]
fn calls_are_ordered_by_the_time_that_they_took_in_all() {
    let summary = Summary::starting_at(START_NS);
    let (mut one, mut other) = (summary.worker(), summary.worker());
    // Ten milliseconds each; the busiest is told by two workers, the name before it has fewer.
    for (service, calls) in [("idle", 1), ("shop", 7), ("billing", 4), ("archive", 1)] {
        for number in 0..calls {
            let worker = if number % 2 == 0 {
                &mut one
            } else {
                &mut other
            };
            worker.observe(&at(search(service), START_NS, 1.0));
        }
    }
    let calls = summary.snapshot_at(START_NS + 2 * SECOND_NS).calls;
    let services: Vec<_> = calls.iter().map(|call| &*call.service).collect();
    assert_eq!(services, ["shop", "billing", "archive", "idle"]);
}

#[test]
fn services_are_bounded_and_none_goes_uncounted() {
    let summary = Summary::starting_at(START_NS);
    let mut worker = summary.worker();
    for service in 0..MAX_KEYS + 50 {
        let name = format!("s{service}");
        worker.observe(&at(observation(&name, Role::Server, "/"), START_NS, 1.0));
    }
    let snapshot = summary.snapshot_at(START_NS + 2 * SECOND_NS);
    assert_eq!(snapshot.services.len(), MAX_KEYS + 1);
    let total: u64 = snapshot
        .services
        .iter()
        .map(|service| service.traffic.count)
        .sum();
    assert_eq!(total, MAX_KEYS as u64 + 50);
    assert!(
        snapshot
            .services
            .iter()
            .any(|service| &*service.service == OVERFLOW)
    );
    // Once they are idle they make room.
    worker.observe(&at(observation("late", Role::Server, "/"), START_NS, 200.0));
    let snapshot = summary.snapshot_at(START_NS + 201 * SECOND_NS);
    assert_eq!(&*snapshot.services[0].service, "late");
    assert_eq!(lock(&worker.table).windows.len(), 1);
}

#[test]
fn absurd_durations_do_not_panic() {
    let summary = Summary::starting_at(0);
    let mut worker = summary.worker();
    let mut endless = get();
    endless.exchange.times.request_first_ns = 0;
    endless.exchange.times.response_last_ns = Some(u64::MAX);
    worker.observe(&endless);
    let mut backwards = get();
    backwards.exchange.times.response_last_ns = Some(0);
    worker.observe(&backwards);
    let _ = summary.snapshot_at(u64::MAX);
    let _ = summary.snapshot_at(0);
}
