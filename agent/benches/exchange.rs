//! What a small exchange costs a worker, from its two records in the ring to the metrics.

#[path = "../tests/records/mod.rs"]
mod records;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use protocol::Direction;
use records::{Setup, Wire};

/// One connection all the time, and as many in turn as a busy host has: more than caches hold.
const CONNECTIONS: [usize; 2] = [1, 20_000];

fn exchange(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exchange");
    group.throughput(Throughput::Elements(1));
    for connections in CONNECTIONS {
        let mut setup = Setup::new();
        let mut wires: Vec<_> = (0..connections as u64)
            .map(|id| Wire::open(&mut setup.tracker, id, Direction::Ingress))
            .collect();
        let mut next = 0;
        group.bench_function(format!("{connections} connections"), |bencher| {
            bencher.iter(|| {
                wires[next].exchange(&mut setup.tracker);
                next = (next + 1) % connections;
            });
        });
    }
    group.finish();
}

criterion_group!(benches, exchange);
criterion_main!(benches);
