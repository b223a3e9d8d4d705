//! A worker's side: which connections have an exchange in flight, and on which thread.

use std::collections::VecDeque;
use std::sync::Arc;

use profile::Request;
use protocol::Connection;
use protocol::observation::{Outcome, Role};

use super::{IN_FLIGHT, Name, Requests, Stint};
use crate::clock::monotonic_ns;
use crate::connections::{Awake, Connections, Tracked};
use crate::observation::Observation;
use crate::process::Runtime;

/// How long an exchange is in flight before it is named, which most exchanges never come to.
const NAMED_AFTER_NS: u64 = 10_000_000;

/// By how much a record may lie in its ring later than the time that it bears.
const LATE_NS: u64 = 2_000_000;

/// [`OpenStint::place`] of one that was told, or that nobody wants.
const NOT_LISTED: u32 = u32::MAX;

/// A connection's exchange in flight.
#[derive(Clone, Copy, Debug)]
pub struct OpenStint {
    from_ns: u64,
    tid: u32,
    /// Where it stands in [`StintLog::opened`].
    place: u32,
    requests: u8,
    moved: bool,
}

impl OpenStint {
    /// Takes note that a thread moved bytes of it.
    pub const fn touch(&mut self, tid: u32) {
        self.moved |= self.tid != tid;
    }
}

/// What became of a connection's exchanges with one record.
#[derive(Debug, Default)]
pub struct News {
    /// Request heads that were seen.
    requests: u64,
    ended: u64,
    from_ns: u64,
    to_ns: u64,
    name: Name,
}

impl News {
    /// Takes note of request heads.
    pub const fn note_requests(&mut self, heads: u64) {
        self.requests += heads;
    }

    /// Takes note of an exchange that has ended.
    pub fn note_end(&mut self, observation: &Observation) {
        let exchange = &observation.exchange;
        let times = &exchange.times;
        self.ended += 1;
        self.from_ns = times.request_first_ns;
        let last_ns = times.response_last_ns.unwrap_or(times.request_last_ns);
        self.to_ns = self.to_ns.max(last_ns).max(times.request_last_ns);
        let call = exchange.elasticsearch.as_ref();
        self.name = match exchange.role {
            _ if self.ended > 1 || exchange.outcome != Outcome::Matched => Name::None,
            Role::Server => Name::Request(Request {
                route: Arc::clone(&observation.route),
                method: exchange.method,
            }),
            Role::Client => {
                let operation = call.and_then(|call| call.operation);
                operation.map_or(Name::None, Name::Operation)
            }
        };
    }
}

/// A connection, by its id too.
type Of<'a> = (u64, &'a Tracked, &'a Connection);

/// Tells the profiler what one worker sees.
#[derive(Debug)]
pub struct StintLog {
    requests: Arc<Requests>,
    worker: usize,
    /// The want that stints are told for, or 0.
    want: u64,
    batch: Vec<Stint>,
    /// Connections whose stints began since the last telling and go on.
    opened: Vec<Option<u64>>,
    /// Connections of stints in flight that were told and are not named, with their begin.
    unnamed: VecDeque<(u64, u64)>,
    /// When the last round began.
    round_ns: u64,
}

impl StintLog {
    /// Of the worker of this number.
    #[must_use]
    pub const fn new(requests: Arc<Requests>, worker: usize) -> Self {
        Self {
            requests,
            worker,
            want: 0,
            batch: Vec::new(),
            opened: Vec::new(),
            unnamed: VecDeque::new(),
            round_ns: 0,
        }
    }

    /// Takes in what a record of the connection `id` brought; `tid` is the thread that moved its bytes.
    pub fn note(
        &mut self,
        id: u64,
        (tracked, connection): (&Tracked, &Connection),
        open: &mut Option<OpenStint>,
        news: News,
        tid: Option<u32>,
    ) {
        let in_flight = connection.in_flight();
        if news.requests > 0 {
            let heads = u8::try_from(news.requests).unwrap_or(u8::MAX);
            match (&mut *open, tid) {
                (Some(stint), _) => stint.requests = stint.requests.saturating_add(heads),
                (None, Some(tid)) => {
                    let first = connection.oldest_in_flight();
                    let from_ns = first.map_or(news.from_ns, |(_, _, first_ns)| first_ns);
                    *open = Some(OpenStint {
                        from_ns,
                        tid,
                        place: self.list(id),
                        requests: heads,
                        // Goroutines move from thread to thread at any time. Of an exchange that ends
                        // with the record it begins with, the other thread is not known.
                        moved: tracked.process.runtime == Runtime::Go || in_flight == 0,
                    });
                }
                (None, None) => {}
            }
        }
        if in_flight == 0
            && let Some(stint) = open.take()
        {
            let is_one = stint.requests == 1 && news.ended == 1;
            let name = if is_one { news.name } else { Name::None };
            let to_ns = if news.ended > 0 {
                news.to_ns
            } else {
                tracked.last_ns
            };
            self.close((id, tracked, connection), stint, name, to_ns);
        }
    }

    /// Takes note that a connection is forgotten.
    pub fn forget(&mut self, id: u64, tracked: &Tracked, awake: &mut Awake) {
        if let Some(stint) = awake.stint.take() {
            let of = (id, tracked, &awake.connection);
            self.close(of, stint, Name::None, tracked.last_ns);
        }
    }

    /// Ends a round that began at `round_ns`: what is new is told. `name` names what a connection has in
    /// flight.
    pub fn tell(
        &mut self,
        connections: &mut Connections,
        round_ns: u64,
        name: impl Fn(&mut Tracked, &Connection) -> Option<Name>,
    ) {
        let want = self.requests.wanted();
        if want != 0 && want != self.want {
            // Those that ended in this round are left out.
            self.requests.begin(self.worker, want, monotonic_ns());
            self.opened.clear();
            for id in connections.ids() {
                self.tell_open(id, connections);
            }
        } else if want != 0 {
            for id in std::mem::take(&mut self.opened).into_iter().flatten() {
                self.tell_open(id, connections);
            }
            self.name_old(connections, round_ns, name);
        } else if self.want != 0 {
            *self = Self::new(Arc::clone(&self.requests), self.worker);
        }
        self.want = want;
        // The end of a body that no record tells is asked for a round after it was begun.
        let handled_ns = self.round_ns.saturating_sub(LATE_NS);
        self.requests.tell(self.worker, &mut self.batch, handled_ns);
        self.round_ns = round_ns;
    }

    fn list(&mut self, id: u64) -> u32 {
        let place = u32::try_from(self.opened.len()).unwrap_or(NOT_LISTED);
        if self.want == 0 || place == NOT_LISTED {
            return NOT_LISTED;
        }
        self.opened.push(Some(id));
        place
    }

    fn close(&mut self, of: Of<'_>, stint: OpenStint, name: Name, to_ns: u64) {
        if let Some(listed) = self.opened.get_mut(stint.place as usize) {
            *listed = None;
        }
        if self.want != 0 {
            self.push(of, stint, name, to_ns);
        }
    }

    fn push(
        &mut self,
        (id, tracked, connection): Of<'_>,
        stint: OpenStint,
        name: Name,
        to_ns: u64,
    ) {
        let Some(role) = connection.role() else {
            return;
        };
        let process = &tracked.process;
        self.batch.push(Stint {
            key: (id, stint.from_ns),
            process: (process.pid, process.start_ticks),
            tid: stint.tid,
            role,
            to_ns,
            moved: stint.moved,
            name,
        });
    }

    fn tell_open(&mut self, id: u64, connections: &mut Connections) {
        if let Some((tracked, awake)) = connections.awake_mut(id)
            && let Some(stint) = &mut awake.stint
        {
            stint.place = NOT_LISTED;
            let (of, stint) = ((id, &*tracked, &awake.connection), *stint);
            self.push(of, stint, Name::Awaited, IN_FLIGHT);
            self.unnamed.push_back((stint.from_ns, id));
        }
    }

    /// Names what has been in flight for long.
    fn name_old(
        &mut self,
        connections: &mut Connections,
        now_ns: u64,
        name: impl Fn(&mut Tracked, &Connection) -> Option<Name>,
    ) {
        while let Some((from_ns, id)) = self.unnamed.front().copied() {
            if from_ns.saturating_add(NAMED_AFTER_NS) > now_ns {
                return;
            }
            self.unnamed.pop_front();
            if let Some((tracked, awake)) = connections.awake_mut(id)
                && let Some(stint) = awake.stint.filter(|stint| stint.from_ns == from_ns)
                && stint.requests == 1
                && let Some(name) = name(tracked, &awake.connection)
            {
                self.push((id, tracked, &awake.connection), stint, name, IN_FLIGHT);
            }
        }
    }
}
