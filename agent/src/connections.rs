//! The connections of one worker: who owns them, what they speak, where they lead.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ebpf_common::connection::{ConnectionOpened, ConnectionState, family};
use hashbrown::HashMap;
use protocol::{Connection, Limits, Resting};

use crate::observation::Endpoint;
use crate::process::Process;
use crate::requests::OpenStint;
use crate::routes::ServiceRoutes;
use crate::self_metrics::Counted;

/// Connections that are not in use and keep their memory for those that wake next, a worker. As many
/// as commonly have an exchange under way at the same moment.
const MAX_SPARES: usize = 64;

/// A connection as its worker knows it, whether something is under way or not.
pub struct Tracked {
    /// Address of the kernel's `struct sock`.
    pub socket: u64,
    /// Where it leads.
    pub ends: Ends,
    /// The process that moved the last bytes.
    pub process: Arc<Process>,
    /// Whether the configuration selects that process.
    pub selected: bool,
    /// Routes of the process's service, once it had an exchange.
    pub routes: Option<ServiceRoutes>,
    /// When it last moved bytes: `CLOCK_MONOTONIC`, nanoseconds.
    pub last_ns: u64,
    /// What was known of clusters when this connection last asked.
    pub clusters_generation: u64,
    /// Whether the process table was told what it speaks.
    pub noted: bool,
    /// The exchange whose answer was the last to end, until it is known when it had been delivered.
    pub answered: Option<Answered>,
    /// Directions that have ended, as [`ebpf_common::connection::closed`].
    pub closed: u8,
}

/// What is told of an answer when it has been delivered, but whose it was.
pub struct Answered {
    /// `http.route` of the exchange.
    pub route: Arc<str>,
    /// Its method.
    pub method: &'static str,
}

/// What a connection has while something of it is under way.
pub struct Awake {
    /// What is understood of its bytes.
    pub connection: Connection,
    /// Its exchanges in flight, as the gauges count them.
    pub counted: Counted,
    /// Its exchange in flight, and the thread that it is on.
    pub stint: Option<OpenStint>,
}

impl Tracked {
    /// A connection that has had no exchange yet.
    #[must_use]
    pub fn new(origin: &Origin, process: Arc<Process>, selected: bool) -> Self {
        Self {
            socket: origin.socket,
            ends: origin.ends,
            process,
            selected,
            routes: None,
            last_ns: origin.opened_ns,
            clusters_generation: 0,
            noted: false,
            answered: None,
            closed: 0,
        }
    }
}

/// Where a connection leads: from its opening record, or from the kernel's map where that record
/// was lost.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Address of the kernel's `struct sock`.
    pub socket: u64,
    /// The process's end and the other one.
    pub ends: Ends,
    /// The process that brought it to notice.
    pub pid: u32,
    /// When that was.
    pub opened_ns: u64,
    /// The socket's inode number; `None` where earlier records may have been lost.
    pub inode: Option<u64>,
}

impl From<&ConnectionOpened> for Origin {
    fn from(opened: &ConnectionOpened) -> Self {
        Self {
            socket: opened.socket,
            ends: Ends {
                family: opened.family,
                ports: [opened.local_port, opened.remote_port],
                addresses: [opened.local_address, opened.remote_address],
            },
            pid: opened.pid,
            opened_ns: opened.time_ns,
            inode: Some(opened.inode),
        }
    }
}

impl Origin {
    /// From the kernel's own record of the connection on `socket`.
    #[must_use]
    pub fn of_state(socket: u64, state: &ConnectionState) -> Self {
        Self {
            socket,
            ends: Ends {
                family: state.family.into(),
                ports: state.ports,
                addresses: state.addresses,
            },
            pid: state.pid,
            opened_ns: state.opened_ns,
            inode: None,
        }
    }
}

/// The two ends of a connection as the kernel side tells of them, in half the room of their
/// [`Endpoint`]s.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    family: u16,
    /// The process's own, the other one's.
    ports: [u16; 2],
    addresses: [[u8; 16]; 2],
}

impl Ends {
    /// The process's own end.
    #[must_use]
    pub fn local(&self) -> Endpoint {
        endpoint(self.family, self.addresses[0], self.ports[0])
    }

    /// The other end.
    #[must_use]
    pub fn remote(&self) -> Endpoint {
        endpoint(self.family, self.addresses[1], self.ports[1])
    }
}

fn endpoint(family: u16, address: [u8; 16], port: u16) -> Endpoint {
    match family {
        family::INET => {
            let [a, b, c, d, ..] = address;
            Endpoint::Inet(SocketAddr::new(IpAddr::from([a, b, c, d]), port))
        }
        family::INET6 => {
            // A dual-stack socket shows IPv4 peers as mapped addresses.
            Endpoint::Inet(SocketAddr::new(
                Ipv6Addr::from(address).to_canonical(),
                port,
            ))
        }
        _ => Endpoint::Unix,
    }
}

/// Tracked connections by their id; bounded. Most are idle most of the time, and there are many: only
/// those with something under way have a [`Connection`].
pub struct Connections {
    /// Boxed: two of five places are empty, and a table that grows is there twice.
    by_id: HashMap<u64, Box<Entry>>,
    #[expect(
        clippy::vec_box,
        reason = "they come from an entry and go into one, as they are"
    )]
    spares: Vec<Box<Awake>>,
    limits: Arc<Limits>,
    capacity: usize,
}

struct Entry {
    tracked: Tracked,
    state: State,
}

/// What an idle connection takes, beside its place in the table.
const _: () = assert!(size_of::<Entry>() <= 248);

enum State {
    Resting(Resting),
    Awake(Box<Awake>),
}

impl Connections {
    /// An empty table for at most `capacity` connections.
    #[must_use]
    pub fn new(limits: Arc<Limits>, capacity: usize) -> Self {
        Self {
            by_id: HashMap::new(),
            spares: Vec::new(),
            limits,
            capacity: capacity.max(1),
        }
    }

    /// What is known of the connection `id`.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Tracked> {
        self.by_id.get_mut(&id).map(|entry| &mut entry.tracked)
    }

    /// The same, to look at.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<&Tracked> {
        self.by_id.get(&id).map(|entry| &entry.tracked)
    }

    /// The connection `id`, for something that happens to it. [`Self::settle`] comes after.
    pub fn wake(&mut self, id: u64) -> Option<(&mut Tracked, &mut Awake)> {
        let entry = &mut **self.by_id.get_mut(&id)?;
        if let State::Resting(resting) = &mut entry.state {
            let mut awake = self.spares.pop().unwrap_or_else(|| {
                Box::new(Awake {
                    connection: Connection::new(Arc::clone(&self.limits)),
                    counted: Counted::default(),
                    stint: None,
                })
            });
            awake.connection.resume(std::mem::take(resting));
            entry.state = State::Awake(awake);
        }
        match &mut entry.state {
            State::Awake(awake) => Some((&mut entry.tracked, awake)),
            State::Resting(_) => None,
        }
    }

    /// The connection `id`, if something of it is under way.
    pub fn awake_mut(&mut self, id: u64) -> Option<(&mut Tracked, &mut Awake)> {
        let entry = &mut **self.by_id.get_mut(&id)?;
        match &mut entry.state {
            State::Awake(awake) => Some((&mut entry.tracked, awake)),
            State::Resting(_) => None,
        }
    }

    /// Lets the connection `id` rest, if nothing of it is under way any more.
    pub fn settle(&mut self, id: u64) {
        let Some(entry) = self.by_id.get_mut(&id) else {
            return;
        };
        let State::Awake(awake) = &mut entry.state else {
            return;
        };
        if let Some(resting) = awake.connection.rest()
            && let State::Awake(spare) =
                std::mem::replace(&mut entry.state, State::Resting(resting))
            && self.spares.len() < MAX_SPARES
        {
            self.spares.push(spare);
        }
    }

    /// Whether one more needs another one to go first.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.by_id.len() >= self.capacity
    }

    /// The connection that has been silent longest among a few: looking at all of them would cost
    /// more than the better choice is worth.
    #[must_use]
    pub fn oldest_of_some(&self) -> Option<u64> {
        const LOOKED_AT: usize = 64;
        let some = self.by_id.iter().take(LOOKED_AT);
        some.min_by_key(|(_, entry)| entry.tracked.last_ns)
            .map(|(&id, _)| id)
    }

    /// Takes a connection in.
    pub fn insert(&mut self, id: u64, tracked: Tracked, resting: Resting) {
        let state = State::Resting(resting);
        self.by_id.insert(id, Box::new(Entry { tracked, state }));
    }

    /// Takes a connection out.
    pub fn remove(&mut self, id: u64) {
        self.by_id.remove(&id);
    }

    /// Ids and sockets of the connections that `wanted` names.
    pub fn select(&self, wanted: impl Fn(&Tracked) -> bool) -> Vec<(u64, u64)> {
        let chosen = self
            .by_id
            .iter()
            .filter(|(_, entry)| wanted(&entry.tracked));
        chosen
            .map(|(&id, entry)| (id, entry.tracked.socket))
            .collect()
    }

    /// Every id.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.by_id.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_given_as_ipv4() {
        let mut address = [0; 16];
        address[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        let expected = Endpoint::Inet("127.0.0.1:80".parse().expect("an address"));
        assert_eq!(endpoint(family::INET6, address, 80), expected);
        assert_eq!(endpoint(family::UNIX, address, 0), Endpoint::Unix);
    }
}
