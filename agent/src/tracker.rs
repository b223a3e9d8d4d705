//! The connections of one ring: records in, observations out to the sinks.
//!
//! Records of a connection are in order within its ring, so that a tracker shares nothing with
//! the others but what it looks up: processes, routes, known clusters.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use ebpf_common::connection::{
    ConnectionClosed, ConnectionOpened, SocketData, busy_ticks, closed, data_flags,
};
use hashbrown::HashSet;
use protocol::observation::{Exchange, Outcome, Role};
use protocol::{CloseReason, Connection, Cursor, Direction, Limits, Resting, Segment};

use crate::clock::Ticks;
use crate::clusters::Clusters;
use crate::connections::{Answered, Awake, Connections, Origin, Tracked};
use crate::decode::{Event, decode};
use crate::kernel_side::KernelSide;
use crate::observation::{Delivery, Endpoint, Observation};
use crate::older_sockets::OlderSockets;
use crate::process::{Process, ProcessTable};
use crate::routes::Routes;
use crate::selection::Selection;
use crate::self_metrics::{Exchanges, InFlight, Losses};
use crate::sink::Sink;

/// What a tracker itself counts: stage and reason.
const LOSSES: [(&str, &str); 4] = [MALFORMED, WRONG_RING, CONNECTIONS_FULL, UNKNOWN_CONNECTION];
/// A record that no program of this version writes.
const MALFORMED: (&str, &str) = ("decode", "malformed");
/// A record of processes among those of sockets.
const WRONG_RING: (&str, &str) = ("decode", "wrong_ring");
/// A connection that had to go for another one.
const CONNECTIONS_FULL: (&str, &str) = ("worker", "connections_full");
/// A record of a connection whose opening was lost and that the kernel has forgotten.
const UNKNOWN_CONNECTION: (&str, &str) = ("worker", "unknown_connection");

/// Early records that are kept at a time: each is of a connection that lived for microseconds.
const MAX_EARLY: usize = 64;

/// What all workers look things up in.
pub struct Shared {
    /// Who a pid is.
    pub processes: Arc<ProcessTable>,
    /// Which processes are observed.
    pub selection: Selection,
    /// Route templates by service.
    pub routes: Routes,
    /// Endpoints known to be clusters.
    pub clusters: Clusters,
    /// Which sockets were there before the agent saw traffic; empty until that is known.
    pub older_sockets: OnceLock<OlderSockets>,
    /// What the kernel side tells beside the rings' records.
    pub kernel: Arc<dyn KernelSide>,
    /// Whatever is seen and not reported.
    pub losses: Losses,
    /// Exchanges by outcome, and in flight.
    pub exchanges: Exchanges,
    /// How long the kernel's ticks are.
    pub ticks: Ticks,
    /// Bounds of one connection.
    pub limits: Arc<Limits>,
    /// Set when the agent ends.
    pub stop: AtomicBool,
}

/// See the module's description.
pub struct Tracker {
    connections: Connections,
    /// Records of connections whose opening is not known yet, the oldest first.
    early: VecDeque<Early>,
    outlet: Outlet,
}

/// Where what a connection has finished goes.
struct Outlet {
    shared: Arc<Shared>,
    sinks: Vec<Box<dyn Sink>>,
    /// Connections with a body whose end only the kernel's cursor tells.
    awaiting: HashSet<u64>,
    in_flight: InFlight,
}

/// Two threads of a process may move the first bytes of a connection at the same time: the one that
/// was second may find it in the kernel's map, and send its record, before the first one has told of
/// the opening.
struct Early {
    id: u64,
    record: Box<[u8]>,
    /// The ring has been drained since.
    is_late: bool,
}

impl Tracker {
    /// Follows at most `capacity` connections and tells `sinks` of their exchanges.
    #[must_use]
    pub fn new(shared: Arc<Shared>, sinks: Vec<Box<dyn Sink>>, capacity: usize) -> Self {
        let in_flight = shared.exchanges.worker();
        let connections = Connections::new(Arc::clone(&shared.limits), capacity);
        // A reason that never was shows as zero.
        for reason in protocol::LossReason::ALL {
            shared.losses.add("protocol", reason.as_str(), 0);
        }
        for (stage, reason) in LOSSES {
            shared.losses.add(stage, reason, 0);
        }
        Self {
            connections,
            early: VecDeque::new(),
            outlet: Outlet {
                shared,
                sinks,
                awaiting: HashSet::new(),
                in_flight,
            },
        }
    }

    /// Ids and sockets of the connections with a body whose end only the kernel's cursor tells.
    pub fn awaited(&self) -> impl Iterator<Item = (u64, u64)> {
        let ids = self.outlet.awaiting.iter();
        ids.filter_map(|&id| Some((id, self.connections.get(id)?.socket)))
    }

    /// Ids and sockets of the connections that have moved nothing since `since_ns`.
    #[must_use]
    pub fn silent_since(&self, since_ns: u64) -> Vec<(u64, u64)> {
        self.connections
            .select(|tracked| tracked.last_ns < since_ns)
    }

    /// Takes one record of the ring in.
    pub fn handle(&mut self, record: &[u8]) {
        match decode(record) {
            Ok(Event::SocketData(data, captured)) => {
                if self.is_known(&data) {
                    self.handle_data(&data, captured);
                } else {
                    self.keep_early(data.connection_id, record);
                }
            }
            Ok(Event::ConnectionOpened(opened)) => self.handle_opened(&opened),
            Ok(Event::ConnectionClosed(event)) => self.handle_closed(&event),
            Ok(_) => self.lose(WRONG_RING),
            Err(_) => self.lose(MALFORMED),
        }
    }

    fn lose(&self, (stage, reason): (&'static str, &'static str)) {
        self.outlet.shared.losses.add(stage, reason, 1);
    }

    /// The ring was drained: what was early at the time before will not be explained any more.
    pub fn end_round(&mut self) {
        while self.early.front().is_some_and(|early| early.is_late) {
            self.early.pop_front();
            self.lose(UNKNOWN_CONNECTION);
        }
        for early in &mut self.early {
            early.is_late = true;
        }
    }

    fn keep_early(&mut self, id: u64, record: &[u8]) {
        if self.early.len() >= MAX_EARLY {
            self.early.pop_front();
            self.lose(UNKNOWN_CONNECTION);
        }
        self.early.push_back(Early {
            id,
            record: record.into(),
            is_late: false,
        });
    }

    fn handle_opened(&mut self, opened: &ConnectionOpened) {
        let id = opened.connection_id;
        if self.connections.get(id).is_some() {
            // A record of its bytes came first, and the kernel's map told the same.
            return;
        }
        self.open(id, &Origin::from(opened));
        if self.early.iter().any(|early| early.id == id) {
            let (own, others) = self.early.drain(..).partition(|early| early.id == id);
            self.early = others;
            let own: VecDeque<Early> = own;
            for early in own {
                self.handle(&early.record);
            }
        }
    }

    fn open(&mut self, id: u64, origin: &Origin) {
        if self.connections.is_full()
            && let Some(oldest) = self.connections.oldest_of_some()
        {
            self.lose(CONNECTIONS_FULL);
            self.evict(oldest, origin.opened_ns);
        }
        let shared = &self.outlet.shared;
        shared.kernel.drain_process_events();
        let process = shared.processes.lookup(origin.pid);
        let selected = self.is_selected(&process, origin.ends.local().port());
        let tracked = Tracked::new(origin, process, selected);
        let resting = if self.is_seen_from_start(origin) {
            Resting::opened()
        } else {
            Resting::default()
        };
        self.connections.insert(id, tracked, resting);
    }

    /// Whether no byte moved before the record of the opening. While the kernel's map is full, a
    /// connection has to wait for its place in it.
    fn is_seen_from_start(&self, origin: &Origin) -> bool {
        let shared = &self.outlet.shared;
        let older = shared.older_sockets.get();
        older.zip(origin.inode).is_some_and(|(older, inode)| {
            older.is_younger(inode) && shared.kernel.has_seen_every_connection()
        })
    }

    fn is_selected(&self, process: &Process, port: u16) -> bool {
        let shared = &self.outlet.shared;
        let mut ports = if shared.selection.depends_on_ports() {
            shared.processes.ports(process.pid)
        } else {
            Vec::new()
        };
        if port != 0 {
            ports.push(port);
        }
        shared.selection.selects(process, &ports)
    }

    /// Whether a record's connection is followed, of the record's process from now on. Where the
    /// record of its opening was lost, the kernel's map knows the same.
    fn is_known(&mut self, data: &SocketData) -> bool {
        let id = data.connection_id;
        match self.connections.get(id) {
            Some(tracked) if tracked.process.pid == data.pid => {}
            Some(_) => self.follow_process(id, data.pid),
            None => {
                let Some(state) = self.outlet.shared.kernel.connection(data.socket, id) else {
                    return false;
                };
                self.open(id, &Origin::of_state(data.socket, &state));
                self.follow_process(id, data.pid);
            }
        }
        true
    }

    fn handle_data(&mut self, data: &SocketData, captured: &[u8]) {
        let Some(direction) = Direction::from_raw(data.direction) else {
            self.lose(MALFORMED);
            return;
        };
        let id = data.connection_id;
        let Some((tracked, awake)) = self.connections.wake(id) else {
            return;
        };
        tracked.last_ns = data.time_ns;
        if tracked.selected {
            self.outlet.pass(tracked, awake, data, direction, captured);
            self.outlet.settle(id, tracked, awake);
        }
        self.connections.settle(id);
    }

    /// A connection may be passed to another process (prefork servers).
    fn follow_process(&mut self, id: u64, pid: u32) {
        let Some(tracked) = self.connections.get(id) else {
            return;
        };
        if tracked.process.pid == pid {
            return;
        }
        let port = tracked.ends.local().port();
        let shared = &self.outlet.shared;
        shared.kernel.drain_process_events();
        let process = shared.processes.lookup(pid);
        let selected = self.is_selected(&process, port);
        if let Some(tracked) = self.connections.get_mut(id) {
            if tracked.process.service != process.service {
                tracked.answered = None;
            }
            tracked.process = process;
            tracked.selected = selected;
            tracked.routes = None;
            tracked.noted = false;
        }
    }

    fn handle_closed(&mut self, event: &ConnectionClosed) {
        let id = event.connection_id;
        let Some((tracked, awake)) = self.connections.wake(id) else {
            return;
        };
        let reason = CloseReason::from_raw(event.reason).unwrap_or(CloseReason::Fin);
        progress(&mut awake.connection, event.cursors);
        awake.connection.handle_close(
            event.directions & closed::INGRESS != 0,
            event.directions & closed::EGRESS != 0,
            reason,
            event.time_ns,
        );
        tracked.closed |= event.directions;
        self.outlet.settle(id, tracked, awake);
        if reason == CloseReason::Fin
            && let Some(busy_ns) = self.outlet.shared.ticks.busy_ns(event.busy_ticks)
        {
            let took_ns = awake.connection.handle_acknowledged(busy_ns);
            self.outlet.deliver(tracked, took_ns);
        }
        if tracked.closed == closed::BOTH {
            self.forget(id);
        } else {
            self.connections.settle(id);
        }
    }

    /// Takes in how far the kernel has seen ingress and egress of a connection come. Every record
    /// of the bytes below must have been handled.
    pub fn handle_progress(&mut self, id: u64, cursors: [Cursor; 2]) {
        if let Some((tracked, awake)) = self.connections.wake(id) {
            progress(&mut awake.connection, cursors);
            self.outlet.settle(id, tracked, awake);
            self.connections.settle(id);
        }
    }

    /// The kernel no longer knows a connection, and no record told of its end.
    pub fn close_unseen(&mut self, id: u64) {
        if let Some((tracked, awake)) = self.connections.wake(id) {
            let last_ns = tracked.last_ns;
            awake
                .connection
                .handle_close(true, true, CloseReason::Fin, last_ns);
            self.outlet.settle(id, tracked, awake);
            self.forget(id);
        }
    }

    /// Forgets every connection: the agent ends.
    pub fn evict_all(&mut self, now_ns: u64) {
        // None is early any more.
        self.end_round();
        self.end_round();
        for id in self.connections.ids() {
            self.evict(id, now_ns);
        }
    }

    fn evict(&mut self, id: u64, now_ns: u64) {
        if let Some((tracked, awake)) = self.connections.wake(id) {
            awake.connection.handle_evict(now_ns);
            self.outlet.settle(id, tracked, awake);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        // The outlet settled before, so that the gauges no longer count it.
        self.connections.settle(id);
        self.connections.remove(id);
        self.outlet.awaiting.remove(&id);
    }
}

impl Outlet {
    /// Passes a record of bytes to its connection.
    fn pass(
        &mut self,
        tracked: &mut Tracked,
        awake: &mut Awake,
        data: &SocketData,
        direction: Direction,
        captured: &[u8],
    ) {
        learn_cluster(tracked, &mut awake.connection, &self.shared.clusters);
        let is_tail = data.flags & data_flags::TAIL != 0;
        let (captured, tail) = if is_tail {
            (&[][..], captured)
        } else {
            (captured, &[][..])
        };
        awake
            .connection
            .handle_progress(direction.opposite(), data.opposite);
        if data.busy_ticks != busy_ticks::UNASKED {
            let busy_ns = self.shared.ticks.busy_ns(data.busy_ticks);
            let took_ns = awake.connection.handle_request_turn(busy_ns, data.time_ns);
            self.deliver(tracked, took_ns);
        }
        awake.connection.handle_segment(&Segment {
            direction,
            offset_bytes: data.offset_bytes,
            len_bytes: data.len_bytes,
            captured,
            tail,
            time_ns: data.time_ns,
            previous_ns: data.previous_ns,
            arrived_ns: arrival_ns(data).filter(|_| !is_tail),
        });
    }

    /// Hands on what a connection has finished, and brings the gauges up to date.
    fn settle(&mut self, id: u64, tracked: &mut Tracked, awake: &mut Awake) {
        let Awake {
            connection,
            counted,
        } = awake;
        while let Some((role, heads)) = connection.poll_heads() {
            self.shared.exchanges.seen(role, heads);
        }
        while let Some(exchange) = connection.poll_observation() {
            let observation = observe(tracked, exchange, &self.shared);
            if observation.exchange.role == Role::Server {
                tracked.answered = answered(&observation);
            }
            for sink in &mut self.sinks {
                sink.observe(&observation);
            }
            connection.recycle(observation.exchange);
        }
        while let Some(loss) = connection.poll_loss() {
            self.shared
                .losses
                .add("protocol", loss.reason.as_str(), loss.count);
        }
        if connection.awaits_progress() {
            self.awaiting.insert(id);
        } else if !self.awaiting.is_empty() {
            self.awaiting.remove(&id);
        }
        if let Some(role) = connection.role() {
            let service = &tracked.process.service;
            let methods = connection.methods_in_flight();
            self.in_flight.update(counted, role, service, methods);
        }
    }

    /// Tells how long the last answer took to reach its peer, where that is known.
    fn deliver(&mut self, tracked: &mut Tracked, took_ns: Option<u64>) {
        let answered = tracked.answered.take();
        if let (Some(Answered { route, method }), Some(took_ns)) = (answered, took_ns) {
            let delivery = Delivery {
                process: Arc::clone(&tracked.process),
                route,
                method,
                took_ns,
            };
            for sink in &mut self.sinks {
                sink.deliver(&delivery);
            }
        }
    }
}

/// Tells a connection how far its ingress and egress have come.
fn progress(connection: &mut Connection, [ingress, egress]: [Cursor; 2]) {
    connection.handle_progress(Direction::Ingress, ingress);
    connection.handle_progress(Direction::Egress, egress);
}

/// What will be told of the delivery of an exchange's answer, if it was answered.
fn answered(observation: &Observation) -> Option<Answered> {
    (observation.exchange.outcome == Outcome::Matched).then(|| Answered {
        route: Arc::clone(&observation.route),
        method: observation.exchange.method,
    })
}

/// An exchange with everything that the sinks need to know about it.
fn observe(tracked: &mut Tracked, exchange: Exchange, shared: &Shared) -> Observation {
    if !tracked.noted {
        tracked.noted = true;
        let port = Some(tracked.ends.local().port())
            .filter(|&port| exchange.role == Role::Server && port != 0);
        shared
            .processes
            .note_seen(tracked.process.pid, port, "http/1.1");
    }
    if let Some(call) = &exchange.elasticsearch {
        // The cluster's end, whichever side is watched.
        let end = match exchange.role {
            Role::Client => tracked.ends.remote(),
            Role::Server => tracked.ends.local(),
        };
        if let Endpoint::Inet(address) = end {
            shared.clusters.learn(address, call.product, &call.prefix);
        }
        for unknown in &call.unknown {
            shared.losses.add("elasticsearch", unknown.as_str(), 1);
        }
    }
    let routes = tracked
        .routes
        .get_or_insert_with(|| shared.routes.of(&tracked.process.service, exchange.role));
    Observation {
        route: match &exchange.elasticsearch {
            Some(call) => routes.route_of_call(&exchange.path, call),
            None => routes.route(&exchange.path),
        },
        exchange,
        process: Arc::clone(&tracked.process),
        local: tracked.ends.local(),
        remote: tracked.ends.remote(),
    }
}

/// When the first byte of a segment arrived that was read, where the kernel side knows. One from
/// before the last read is not its own: what some calls take out of a socket goes unseen.
fn arrival_ns(data: &SocketData) -> Option<u64> {
    let is_own = data.previous_ns < data.arrived_ns && data.arrived_ns <= data.time_ns;
    (data.arrived_ns != 0 && is_own).then_some(data.arrived_ns)
}

/// Tells a connection when one of its ends has turned out to be a cluster.
fn learn_cluster(tracked: &mut Tracked, connection: &mut Connection, clusters: &Clusters) {
    let generation = clusters.generation();
    if tracked.clusters_generation == generation {
        return;
    }
    tracked.clusters_generation = generation;
    for end in [tracked.ends.remote(), tracked.ends.local()] {
        if let Endpoint::Inet(address) = end
            && let Some(cluster) = clusters.at(address)
        {
            connection.set_search_cluster(cluster);
            return;
        }
    }
}
