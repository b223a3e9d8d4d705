//! One worker: drains one ring and owns all connections that hash onto it.
//!
//! Records of a connection are in order within its ring, so that a worker shares nothing with
//! the others but what it looks up: processes, routes, known clusters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ebpf_common::connection::{ConnectionClosed, SocketData, closed, data_flags};
use protocol::observation::{Exchange, Role};
use protocol::{CloseReason, Direction, Limits, Segment};

use crate::clock::monotonic_ns;
use crate::clusters::Clusters;
use crate::connections::{Connections, Origin, Tracked};
use crate::decode::{Event, decode};
use crate::observation::{Endpoint, Observation};
use crate::probes;
use crate::probes::ring::Ring;
use crate::process::{Process, ProcessTable};
use crate::process_events::ProcessEvents;
use crate::routes::Routes;
use crate::selection::Selection;
use crate::self_metrics::{Exchanges, InFlight, Losses};
use crate::sink::Sink;

/// How long a worker sleeps where nothing wakes it: the longest that a finished exchange waits.
const TICK: Duration = Duration::from_millis(20);

/// Records handled before timers are looked at again.
const BATCH: usize = 4096;

/// How often silent connections are compared with the kernel's map.
const SWEEP_NS: u64 = 10_000_000_000;

/// Silence after which a connection is compared.
const SILENT_NS: u64 = 30_000_000_000;

/// What all workers look things up in.
pub struct Shared {
    /// Who a pid is.
    pub processes: Arc<ProcessTable>,
    /// Brings the process table up to date.
    pub process_events: ProcessEvents,
    /// Which processes are observed.
    pub selection: Selection,
    /// Route templates by service.
    pub routes: Routes,
    /// Endpoints known to be clusters.
    pub clusters: Clusters,
    /// How far the kernel has seen connections come.
    pub kernel: probes::maps::Connections,
    /// Whatever is seen and not reported.
    pub losses: Losses,
    /// Exchanges by outcome, and in flight.
    pub exchanges: Exchanges,
    /// Bounds of one connection.
    pub limits: Limits,
    /// Set when the agent ends.
    pub stop: AtomicBool,
}

/// See the module's description.
pub struct Worker {
    ring: Ring,
    shared: Arc<Shared>,
    sinks: Vec<Box<dyn Sink>>,
    connections: Connections,
    in_flight: InFlight,
    next_sweep_ns: u64,
}

impl Worker {
    /// A worker on `ring` that follows at most `capacity` connections.
    #[must_use]
    pub fn new(
        ring: Ring,
        shared: Arc<Shared>,
        sinks: Vec<Box<dyn Sink>>,
        capacity: usize,
    ) -> Self {
        let connections = Connections::new(capacity);
        let in_flight = shared.exchanges.worker();
        Self {
            ring,
            shared,
            sinks,
            connections,
            in_flight,
            next_sweep_ns: monotonic_ns() + SWEEP_NS,
        }
    }

    /// Works until the agent ends; what is still in flight then is counted as evicted.
    pub fn run(mut self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            self.ring.wait(TICK);
            // A cursor is only read before the ring is emptied: then every record of the bytes
            // below it has been handled when it is applied.
            let awaited = self.read_awaited();
            self.drain();
            for (id, state) in awaited {
                self.apply_progress(id, state.as_ref());
            }
            let now_ns = monotonic_ns();
            if now_ns >= self.next_sweep_ns {
                self.next_sweep_ns = now_ns + SWEEP_NS;
                self.sweep(now_ns);
            }
        }
        self.drain();
        let now_ns = monotonic_ns();
        for id in self.connections.ids() {
            self.evict(id, now_ns);
        }
    }

    fn drain(&mut self) {
        // The ring is borrowed while a record of it is handled.
        let Self {
            ring,
            shared,
            sinks,
            connections,
            in_flight,
            ..
        } = self;
        let mut handler = Handler {
            shared,
            sinks,
            connections,
            in_flight,
        };
        while ring.drain(BATCH, |record| handler.handle(record)) == BATCH {
            if shared.stop.load(Ordering::Acquire) {
                break;
            }
        }
    }

    fn handler(&mut self) -> Handler<'_> {
        let Self {
            shared,
            sinks,
            connections,
            in_flight,
            ..
        } = self;
        Handler {
            shared,
            sinks,
            connections,
            in_flight,
        }
    }

    /// The kernel's view of each connection whose body's end is awaited.
    fn read_awaited(&self) -> Vec<(u64, Option<ebpf_common::connection::ConnectionState>)> {
        let awaited = self.connections.select(|tracked| tracked.awaits_progress);
        let read = awaited.into_iter();
        read.map(|(id, socket)| (id, self.shared.kernel.get(socket, id)))
            .collect()
    }

    fn apply_progress(
        &mut self,
        id: u64,
        state: Option<&ebpf_common::connection::ConnectionState>,
    ) {
        let mut handler = self.handler();
        let Some(tracked) = handler.connections.get_mut(id) else {
            return;
        };
        if let Some(state) = state {
            let [ingress, egress] = state.cursors;
            tracked
                .connection
                .handle_progress(Direction::Ingress, ingress);
            tracked
                .connection
                .handle_progress(Direction::Egress, egress);
            handler.settle(id);
        } else {
            handler.close_unseen(id);
        }
    }

    /// Lets go of connections whose end was lost with a record.
    fn sweep(&mut self, now_ns: u64) {
        self.shared.process_events.drain();
        let silent = self
            .connections
            .select(|tracked| now_ns.saturating_sub(tracked.last_ns) > SILENT_NS);
        for (id, socket) in silent {
            if self.shared.kernel.get(socket, id).is_none() {
                self.handler().close_unseen(id);
            }
        }
    }

    fn evict(&mut self, id: u64, now_ns: u64) {
        self.handler().evict(id, now_ns);
    }
}

/// The worker without its ring.
struct Handler<'a> {
    shared: &'a Shared,
    sinks: &'a mut Vec<Box<dyn Sink>>,
    connections: &'a mut Connections,
    in_flight: &'a mut InFlight,
}

impl Handler<'_> {
    fn handle(&mut self, record: &[u8]) {
        match decode(record) {
            Ok(Event::SocketData(data, captured)) => self.handle_data(&data, captured),
            Ok(Event::ConnectionOpened(opened)) => {
                self.open(opened.connection_id, &Origin::from(&opened));
            }
            Ok(Event::ConnectionClosed(event)) => self.handle_closed(&event),
            Ok(_) => self.shared.losses.add("decode", "wrong_ring", 1),
            Err(_) => self.shared.losses.add("decode", "malformed", 1),
        }
    }

    fn open(&mut self, id: u64, origin: &Origin) {
        if self.connections.is_full()
            && let Some(oldest) = self.connections.oldest_of_some()
        {
            self.shared.losses.add("worker", "connections_full", 1);
            self.evict(oldest, origin.opened_ns);
        }
        self.shared.process_events.drain();
        let process = self.shared.processes.lookup(origin.pid);
        let selected = self.is_selected(&process, local_port(origin.local));
        let tracked = Tracked::new(origin, process, selected, self.shared.limits);
        self.connections.insert(id, tracked);
    }

    fn is_selected(&self, process: &Process, port: u16) -> bool {
        let mut ports = if self.shared.selection.depends_on_ports() {
            self.shared.processes.ports(process.pid)
        } else {
            Vec::new()
        };
        if port != 0 {
            ports.push(port);
        }
        self.shared.selection.selects(process, &ports)
    }

    fn handle_data(&mut self, data: &SocketData, captured: &[u8]) {
        let Some(direction) = Direction::from_raw(data.direction) else {
            self.shared.losses.add("decode", "malformed", 1);
            return;
        };
        let id = data.connection_id;
        if self.connections.get_mut(id).is_none() {
            // The record of its opening was lost; the kernel's map knows the same.
            let Some(state) = self.shared.kernel.get(data.socket, id) else {
                self.shared.losses.add("worker", "unknown_connection", 1);
                return;
            };
            self.open(id, &Origin::of_state(data.socket, &state));
        }
        self.follow_process(id, data.pid);
        let Some(tracked) = self.connections.get_mut(id) else {
            return;
        };
        tracked.last_ns = data.time_ns;
        if !tracked.selected {
            return;
        }
        learn_product(tracked, &self.shared.clusters);
        let is_tail = data.flags & data_flags::TAIL != 0;
        let (captured, tail) = if is_tail {
            (&[][..], captured)
        } else {
            (captured, &[][..])
        };
        tracked
            .connection
            .handle_progress(direction.opposite(), data.opposite);
        tracked.connection.handle_segment(&Segment {
            direction,
            offset_bytes: data.offset_bytes,
            len_bytes: data.len_bytes,
            captured,
            tail,
            time_ns: data.time_ns,
            previous_ns: data.previous_ns,
        });
        self.settle(id);
    }

    /// A connection may be passed to another process (prefork servers).
    fn follow_process(&mut self, id: u64, pid: u32) {
        let Some(tracked) = self.connections.get_mut(id) else {
            return;
        };
        if tracked.process.pid == pid {
            return;
        }
        let port = tracked.local_port();
        self.shared.process_events.drain();
        let process = self.shared.processes.lookup(pid);
        let selected = self.is_selected(&process, port);
        if let Some(tracked) = self.connections.get_mut(id) {
            tracked.process = process;
            tracked.selected = selected;
            tracked.routes = None;
            tracked.noted = false;
        }
    }

    fn handle_closed(&mut self, event: &ConnectionClosed) {
        let id = event.connection_id;
        let Some(tracked) = self.connections.get_mut(id) else {
            return;
        };
        let reason = CloseReason::from_raw(event.reason).unwrap_or(CloseReason::Fin);
        let [ingress, egress] = event.cursors;
        tracked
            .connection
            .handle_progress(Direction::Ingress, ingress);
        tracked
            .connection
            .handle_progress(Direction::Egress, egress);
        tracked.connection.handle_close(
            event.directions & closed::INGRESS != 0,
            event.directions & closed::EGRESS != 0,
            reason,
            event.time_ns,
        );
        tracked.closed |= event.directions;
        let gone = tracked.closed == closed::BOTH;
        self.settle(id);
        if gone {
            self.forget(id);
        }
    }

    /// The kernel no longer knows a connection, and no record told of its end.
    fn close_unseen(&mut self, id: u64) {
        if let Some(tracked) = self.connections.get_mut(id) {
            let last_ns = tracked.last_ns;
            tracked
                .connection
                .handle_close(true, true, CloseReason::Fin, last_ns);
            self.settle(id);
            self.forget(id);
        }
    }

    fn evict(&mut self, id: u64, now_ns: u64) {
        if let Some(tracked) = self.connections.get_mut(id) {
            tracked.connection.handle_evict(now_ns);
            self.settle(id);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        // `settle` came before, so that the gauges no longer count it.
        self.connections.remove(id);
    }

    /// Hands on what a connection has finished, and brings the gauges up to date.
    fn settle(&mut self, id: u64) {
        let Some(tracked) = self.connections.get_mut(id) else {
            return;
        };
        while let Some(exchange) = tracked.connection.poll_observation() {
            let observation = observe(tracked, exchange, self.shared);
            for sink in self.sinks.iter_mut() {
                sink.observe(&observation);
            }
        }
        while let Some(loss) = tracked.connection.poll_loss() {
            self.shared
                .losses
                .add("protocol", loss.reason.as_str(), loss.count);
        }
        tracked.awaits_progress = tracked.connection.awaits_progress();
        if let Some(role) = tracked.connection.role() {
            let service = &tracked.process.service;
            let methods = tracked.connection.methods_in_flight();
            self.in_flight
                .update(&mut tracked.counted, role, service, methods);
        }
    }
}

/// An exchange with everything that the sinks need to know about it.
fn observe(tracked: &mut Tracked, exchange: Exchange, shared: &Shared) -> Observation {
    if !tracked.noted {
        tracked.noted = true;
        let port =
            Some(tracked.local_port()).filter(|&port| exchange.role == Role::Server && port != 0);
        shared
            .processes
            .note_seen(tracked.process.pid, port, "http/1.1");
    }
    if let (Role::Client, Some(call), Endpoint::Inet(remote)) =
        (exchange.role, &exchange.elasticsearch, tracked.remote)
    {
        shared.clusters.learn(remote, call.product);
    }
    let routes = tracked
        .routes
        .get_or_insert_with(|| shared.routes.of(&tracked.process.service, exchange.role));
    Observation {
        route: routes.route(&exchange.path),
        exchange,
        process: Arc::clone(&tracked.process),
        local: tracked.local,
        remote: tracked.remote,
    }
}

/// Tells a connection when its endpoint has turned out to be a cluster.
fn learn_product(tracked: &mut Tracked, clusters: &Clusters) {
    let generation = clusters.generation();
    if tracked.clusters_generation == generation {
        return;
    }
    tracked.clusters_generation = generation;
    if let Endpoint::Inet(remote) = tracked.remote
        && let Some(product) = clusters.product(remote)
    {
        tracked.connection.set_search_product(Some(product));
    }
}

fn local_port(local: Endpoint) -> u16 {
    match local {
        Endpoint::Inet(address) => address.port(),
        Endpoint::Unix => 0,
    }
}
