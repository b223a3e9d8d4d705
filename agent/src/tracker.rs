//! The connections of one ring: records in, observations out to the sinks.
//!
//! Records of a connection are in order within its ring, so that a tracker shares nothing with
//! the others but what it looks up: processes, routes, known clusters.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use ebpf_common::connection::{ConnectionClosed, ConnectionOpened, SocketData, closed};
use hashbrown::HashSet;
use protocol::{CloseReason, Connection, Cursor, Direction, Limits, Resting};

use crate::clock::Ticks;
use crate::clusters::Clusters;
use crate::connections::{Connections, Origin, Tracked};
use crate::decode::{Event, decode};
use crate::early::EarlyRecords;
use crate::kernel_side::KernelSide;
use crate::older_sockets::OlderSockets;
use crate::outlet::{Outlet, name_in_flight};
use crate::process::{Process, ProcessTable};
use crate::requests::{Requests, StintLog};
use crate::routes::Routes;
use crate::selection::Selection;
use crate::self_metrics::{Exchanges, Losses};
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
    /// Which thread serves which request.
    pub requests: Arc<Requests>,
    /// Bounds of one connection.
    pub limits: Arc<Limits>,
    /// Set when the agent ends.
    pub stop: AtomicBool,
}

/// See the module's description.
pub struct Tracker {
    connections: Connections,
    early: EarlyRecords,
    outlet: Outlet,
}

impl Tracker {
    /// Follows at most `capacity` connections, those of the worker `number`, and tells `sinks` of their
    /// exchanges.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        number: usize,
        sinks: Vec<Box<dyn Sink>>,
        capacity: usize,
    ) -> Self {
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
            early: EarlyRecords::default(),
            outlet: Outlet {
                stints: StintLog::new(Arc::clone(&shared.requests), number),
                shared,
                sinks,
                awaiting: HashSet::new(),
                in_flight,
            },
        }
    }

    /// Ends a round of records that began at `round_ns`: tells which threads serve what.
    pub fn tell_stints(&mut self, round_ns: u64) {
        let Outlet { stints, shared, .. } = &mut self.outlet;
        stints.tell(&mut self.connections, round_ns, |tracked, connection| {
            name_in_flight(tracked, connection, &shared.routes)
        });
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
                    let lost = self.early.keep(data.connection_id, record);
                    self.lose_unknown(lost);
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

    fn lose_unknown(&self, records: usize) {
        if records > 0 {
            let (stage, reason) = UNKNOWN_CONNECTION;
            self.outlet.shared.losses.add(stage, reason, records as u64);
        }
    }

    /// To be called when the ring was drained.
    pub fn end_round(&mut self) {
        let lost = self.early.end_round();
        self.lose_unknown(lost);
    }

    fn handle_opened(&mut self, opened: &ConnectionOpened) {
        let id = opened.connection_id;
        if self.connections.get(id).is_some() {
            // A record of its bytes came first, and the kernel's map told the same.
            return;
        }
        self.open(id, &Origin::from(opened));
        for record in self.early.take(id) {
            self.handle(&record);
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
            if let Some(stint) = &mut awake.stint {
                stint.touch(data.tid);
            }
            self.outlet.pass(tracked, awake, data, direction, captured);
            self.outlet.settle(id, tracked, awake, Some(data.tid));
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
        self.outlet.settle(id, tracked, awake, None);
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
            self.outlet.settle(id, tracked, awake, None);
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
            self.outlet.settle(id, tracked, awake, None);
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
            self.outlet.settle(id, tracked, awake, None);
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some((tracked, awake)) = self.connections.awake_mut(id) {
            self.outlet.stints.forget(id, tracked, awake);
        }
        // The outlet settled before, so that the gauges no longer count it.
        self.connections.settle(id);
        self.connections.remove(id);
        self.outlet.awaiting.remove(&id);
    }
}

/// Tells a connection how far its ingress and egress have come.
fn progress(connection: &mut Connection, [ingress, egress]: [Cursor; 2]) {
    connection.handle_progress(Direction::Ingress, ingress);
    connection.handle_progress(Direction::Egress, egress);
}
