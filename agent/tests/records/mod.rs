//! A worker's connections with the agent's own sinks, and records of exchanges as the kernel
//! programs write them.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the tests and the benchmark compile this module, and each uses a part of it"
)]

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use ebpf_common::RecordKind;
use ebpf_common::connection::{ConnectionState, busy_ticks, family};
use prometheus::Registry;
use protocol::{Cursor, Direction, Limits};
use telltale::clock::Ticks;
use telltale::clusters::Clusters;
use telltale::config::Config;
use telltale::kernel_side::KernelSide;
use telltale::process::ProcessTable;
use telltale::requests::Requests;
use telltale::routes::Routes;
use telltale::selection::Selection;
use telltale::self_metrics::SelfMetrics;
use telltale::sink::prometheus::{PrometheusOptions, PrometheusSink};
use telltale::sink::slow::SlowCalls;
use telltale::sink::summary::Summary;
use telltale::tracker::{Shared, Tracker};

const REQUEST: &[u8] = b"GET /users/7?fields=name HTTP/1.1\r\nHost: shop.example:8080\r\n\
    User-Agent: test\r\nAccept: */*\r\nX-Request-ID: 550e8400-e29b-41d4-a716-446655440000\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
    Content-Length: 13\r\n\r\n{\"name\":\"ab\"}";

/// From one call to the next.
const STEP_NS: u64 = 50_000;

/// Nothing but the records tells of the connections.
struct NoMaps;

impl KernelSide for NoMaps {
    fn connection(&self, _socket: u64, _id: u64) -> Option<ConnectionState> {
        None
    }

    fn has_seen_every_connection(&self) -> bool {
        true
    }

    fn drain_process_events(&self) {}
}

/// A worker's part behind the ring, and what it counted.
pub struct Setup {
    pub tracker: Tracker,
    /// What the profiler is told.
    pub requests: Arc<Requests>,
    registry: Registry,
}

impl Setup {
    pub fn new() -> Self {
        let registry = Registry::new();
        let metrics = SelfMetrics::new(&registry).expect("an empty registry");
        let prometheus = PrometheusSink::new(&registry, &PrometheusOptions::default(), &metrics)
            .expect("no metric of that name yet");
        let config = Config::default();
        let requests = Arc::new(Requests::new(1));
        let shared = Arc::new(Shared {
            processes: Arc::new(ProcessTable::default()),
            selection: Selection::new(&config.targets).expect("no patterns"),
            routes: Routes::new(&config.routes).expect("no templates"),
            clusters: Clusters::new(&[], None),
            older_sockets: OnceLock::new(),
            kernel: Arc::new(NoMaps),
            losses: metrics.losses.clone(),
            exchanges: metrics.exchanges,
            ticks: Ticks::of_kernel(),
            requests: Arc::clone(&requests),
            limits: Arc::new(Limits::default()),
            stop: AtomicBool::new(false),
        });
        let sinks: Vec<Box<dyn telltale::sink::Sink>> = vec![
            Box::new(prometheus.worker()),
            Box::new(Summary::new().worker()),
            Box::new(SlowCalls::default().worker()),
        ];
        let tracker = Tracker::new(shared, 0, sinks, 1_000_000);
        Self {
            tracker,
            requests,
            registry,
        }
    }

    /// The sum of a counter's series.
    pub fn total(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let series = family.expect("a metric of that name").get_metric();
        series.iter().map(|it| it.get_counter().get_value()).sum()
    }
}

/// One connection of this process. Its records are made in place, so that only what handles them
/// can allocate.
pub struct Wire {
    id: u64,
    requests: Direction,
    cursors: [Cursor; 2],
    now_ns: u64,
    record: Vec<u8>,
}

impl Wire {
    /// Tells a worker of a new connection on which requests go in that direction.
    pub fn open(tracker: &mut Tracker, id: u64, requests: Direction) -> Self {
        let wire = Self::new(id, requests);
        tracker.handle(&wire.record);
        wire
    }

    /// A new connection of which nobody was told; its record is [`Self::last_record`].
    pub fn new(id: u64, requests: Direction) -> Self {
        let mut wire = Self {
            id,
            requests,
            cursors: [Cursor::default(); 2],
            now_ns: 1_000_000_000_000,
            record: Vec::with_capacity(4096),
        };
        let record = &mut wire.record;
        record.extend([RecordKind::ConnectionOpened as u8, 0]);
        for word in [family::INET, 8080, 40_000] {
            record.extend(word.to_ne_bytes());
        }
        for word in [id, id, 0, wire.now_ns] {
            record.extend(word.to_ne_bytes());
        }
        for word in [std::process::id(), 0] {
            record.extend(word.to_ne_bytes());
        }
        for _ in 0..2 {
            record.extend([127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
        wire
    }

    /// What was told last.
    pub fn last_record(&self) -> Vec<u8> {
        self.record.clone()
    }

    /// A request and its answer, as the kernel side tells of small ones: a record each.
    pub fn exchange(&mut self, tracker: &mut Tracker) {
        self.request(tracker);
        self.answer(tracker);
    }

    pub fn request(&mut self, tracker: &mut Tracker) {
        // A server's read of a request takes along what is known of the last answer's delivery.
        let busy = match self.requests {
            Direction::Ingress => 3,
            Direction::Egress => busy_ticks::UNASKED,
        };
        self.segment(tracker, self.requests, REQUEST, busy);
    }

    pub fn answer(&mut self, tracker: &mut Tracker) {
        let direction = self.requests.opposite();
        self.segment(tracker, direction, RESPONSE, busy_ticks::UNASKED);
    }

    fn segment(&mut self, tracker: &mut Tracker, direction: Direction, bytes: &[u8], busy: u32) {
        self.now_ns += STEP_NS;
        let opposite = self.cursors[direction.opposite() as usize];
        let cursor = &mut self.cursors[direction as usize];
        let previous = *cursor;
        let len = bytes.len() as u64;
        cursor.offset_bytes += len;
        cursor.last_ns = self.now_ns;
        let record = &mut self.record;
        record.clear();
        record.extend([RecordKind::SocketData as u8, direction as u8, 0, 0]);
        record.extend((bytes.len() as u32).to_ne_bytes());
        record.extend(self.id.to_ne_bytes());
        for word in [std::process::id(), std::process::id()] {
            record.extend(word.to_ne_bytes());
        }
        let arrived_ns = match direction {
            Direction::Ingress => self.now_ns - STEP_NS / 10,
            Direction::Egress => 0,
        };
        for word in [
            previous.offset_bytes,
            len,
            self.now_ns,
            previous.last_ns,
            opposite.offset_bytes,
            opposite.last_ns,
            self.id,
            arrived_ns,
        ] {
            record.extend(word.to_ne_bytes());
        }
        for word in [busy, 0] {
            record.extend(word.to_ne_bytes());
        }
        record.extend_from_slice(bytes);
        tracker.handle(record);
    }
}
