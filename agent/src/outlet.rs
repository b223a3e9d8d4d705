//! What a worker has besides its connections: it passes them what concerns them, and what they
//! finish goes to the sinks and gauges.

use std::sync::Arc;

use ebpf_common::connection::{SocketData, busy_ticks, data_flags};
use hashbrown::HashSet;
use profile::Request;
use protocol::observation::{Exchange, Outcome, Role};
use protocol::{Connection, Direction, Segment};

use crate::clusters::Clusters;
use crate::connections::{Answered, Awake, Tracked};
use crate::observation::{Delivery, Endpoint, Observation};
use crate::requests::log::News;
use crate::requests::{Name, StintLog};
use crate::routes::Routes;
use crate::self_metrics::InFlight;
use crate::sink::Sink;
use crate::tracker::Shared;

/// See the module's description.
pub(crate) struct Outlet {
    pub(crate) shared: Arc<Shared>,
    pub(crate) sinks: Vec<Box<dyn Sink>>,
    /// Connections with a body whose end only the kernel's cursor tells.
    pub(crate) awaiting: HashSet<u64>,
    pub(crate) in_flight: InFlight,
    pub(crate) stints: StintLog,
}

impl Outlet {
    /// Passes a record of bytes to its connection.
    pub(crate) fn pass(
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

    /// Hands on what a connection has finished, and brings the gauges up to date. `tid` is the thread
    /// whose record brought it, if one did.
    pub(crate) fn settle(
        &mut self,
        id: u64,
        tracked: &mut Tracked,
        awake: &mut Awake,
        tid: Option<u32>,
    ) {
        let Awake {
            connection,
            counted,
            stint,
        } = awake;
        let mut news = News::default();
        while let Some((role, heads)) = connection.poll_heads() {
            self.shared.exchanges.seen(role, heads);
            news.note_requests(heads);
        }
        while let Some(exchange) = connection.poll_observation() {
            let observation = observe(tracked, exchange, &self.shared);
            if observation.exchange.role == Role::Server {
                tracked.answered = answered(&observation);
            }
            news.note_end(&observation);
            for sink in &mut self.sinks {
                sink.observe(&observation);
            }
            connection.recycle(observation.exchange);
        }
        self.stints
            .note(id, (tracked, connection), stint, news, tid);
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
    pub(crate) fn deliver(&mut self, tracked: &mut Tracked, took_ns: Option<u64>) {
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

/// The name of the request that a server has in flight. What a cluster serves is called by its answer.
pub(crate) fn name_in_flight(
    tracked: &mut Tracked,
    connection: &Connection,
    routes: &Routes,
) -> Option<Name> {
    if connection.role() != Some(Role::Server) || connection.search_product().is_some() {
        return None;
    }
    let (path, method, _) = connection.oldest_in_flight()?;
    let service = &tracked.process.service;
    let routes = tracked
        .routes
        .get_or_insert_with(|| routes.of(service, Role::Server));
    Some(Name::Request(Request {
        route: routes.route(path),
        method,
    }))
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
