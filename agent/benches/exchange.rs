//! What a small exchange costs a worker, from its two records in the ring to the metrics.

#[path = "../tests/records/mod.rs"]
mod records;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use protocol::Direction;
use records::{Setup, Wire};

/// One connection all the time, and as many in turn as a busy host has: more than caches hold.
const CONNECTIONS: [usize; 2] = [1, 20_000];

/// Exchanges of one round of a worker, after which it tells the profiler which threads serve what.
const ROUND: u64 = 1024;

fn exchange(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exchange");
    group.throughput(Throughput::Elements(1));
    let cases = CONNECTIONS.map(|connections| [(connections, false), (connections, true)]);
    for (connections, is_profiled) in cases.into_iter().flatten() {
        let mut setup = Setup::new();
        setup.requests.want(is_profiled);
        let mut wires: Vec<_> = (0..connections as u64)
            .map(|id| Wire::open(&mut setup.tracker, id, Direction::Ingress))
            .collect();
        let (mut next, mut count) = (0, 0_u64);
        let profiled = if is_profiled { ", profiled" } else { "" };
        group.bench_function(format!("{connections} connections{profiled}"), |bencher| {
            bencher.iter(|| {
                wires[next].exchange(&mut setup.tracker);
                next = (next + 1) % connections;
                count += 1;
                if count.is_multiple_of(ROUND) {
                    setup.tracker.tell_stints(count);
                    drop(setup.requests.take());
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, exchange);
criterion_main!(benches);
