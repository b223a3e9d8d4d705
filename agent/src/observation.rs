//! What the sinks receive: an exchange, and whose it was.

use std::net::SocketAddr;
use std::sync::Arc;

use protocol::observation::Exchange;

use crate::process::Process;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP over IPv4 or IPv6; IPv4-mapped addresses are given as IPv4.
    Inet(SocketAddr),
    /// A Unix stream socket.
    Unix,
}

impl Endpoint {
    /// TCP port; 0 on a Unix socket.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Inet(address) => address.port(),
            Self::Unix => 0,
        }
    }
}

/// How long an answer waited for its peer to acknowledge it. Told when the next request comes, or at
/// the connection's end, when its exchange has long been observed.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The server's process.
    pub process: Arc<Process>,
    /// `http.route` of the exchange.
    pub route: Arc<str>,
    /// Its method.
    pub method: &'static str,
    /// For how long some of the answer's bytes were written and not yet acknowledged, nanoseconds,
    /// as finely as the kernel's ticks are.
    pub took_ns: u64,
}

/// A finished exchange with its process, its route and its two ends.
#[derive(Clone, Debug)]
pub struct Observation {
    /// What happened.
    pub exchange: Exchange,
    /// Route template: `http.route` of a server, `url.template` of a client. Never a raw path.
    pub route: Arc<str>,
    /// The process on whose side the exchange was seen.
    pub process: Arc<Process>,
    /// The process's own end.
    pub local: Endpoint,
    /// The other end.
    pub remote: Endpoint,
}
