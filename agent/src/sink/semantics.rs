//! What the sinks agree on: which exchanges are observed, how long one took, what its error is and
//! what a client's server is called.

use std::fmt::Write as _;

use protocol::observation::{Exchange, Outcome, Role};

use crate::observation::{Endpoint, Observation};

/// `error_type`: empty, a 5xx status, or what happened on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ErrorType {
    None,
    Status,
    Reset,
    ClosedEarly,
    Timeout,
}

impl ErrorType {
    /// The error of an exchange. A broken connection tells more than a status that had come before.
    pub(super) fn of(exchange: &Exchange) -> Self {
        match exchange.outcome {
            Outcome::Reset => Self::Reset,
            Outcome::ClosedEarly => Self::ClosedEarly,
            Outcome::TimedOut => Self::Timeout,
            _ if exchange.status.is_some_and(|status| status >= 500) => Self::Status,
            _ => Self::None,
        }
    }

    /// The label's value; `status` is the status label of the same series.
    pub(super) fn as_label(self, status: &str) -> &str {
        match self {
            Self::None => "",
            Self::Status => status,
            Self::Reset => "reset",
            Self::ClosedEarly => "closed_early",
            Self::Timeout => "timeout",
        }
    }
}

/// The status label: empty where none came.
pub(super) fn status_label(status: Option<u16>) -> String {
    status.map(|status| status.to_string()).unwrap_or_default()
}

/// Whether the duration of an exchange that ended so is the duration of a request.
///
/// A request that was answered, switched protocols (the handshake is a request with its 101), or
/// lost its connection was a request as its user saw it. After a resynchronization, an eviction or
/// a head that could not be parsed the times are the agent's, not the request's: those are in
/// `telltale_http_exchanges_total` alone.
pub(super) fn is_observed(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Matched
        | Outcome::Upgraded
        | Outcome::Reset
        | Outcome::ClosedEarly
        | Outcome::TimedOut => true,
        Outcome::Resynchronized | Outcome::Evicted | Outcome::NotParsed => false,
    }
}

/// From the request's first byte to the end of the exchange, nanoseconds.
pub(super) fn duration_ns(exchange: &Exchange) -> u64 {
    let times = &exchange.times;
    let end = times.response_last_ns.unwrap_or(times.request_last_ns);
    end.saturating_sub(times.request_first_ns)
}

/// From the arrival of the request's first byte to the read that took it, nanoseconds; `None` where
/// the arrival is not known.
pub(super) fn queued_ns(exchange: &Exchange) -> Option<u64> {
    let times = &exchange.times;
    let arrived_ns = times.request_arrived_ns?;
    Some(times.request_first_ns.saturating_sub(arrived_ns))
}

/// Host and port of a server.
pub(super) type Server<'a> = (&'a str, Option<u16>);

/// The server of an exchange as the client calls it: `Host`, with the port of the server's end
/// where it names none; the address of that end where there is no `Host`. A Unix socket without
/// `Host` has neither.
pub(super) fn server_of<'a>(observation: &'a Observation, scratch: &'a mut String) -> Server<'a> {
    let end = match observation.exchange.role {
        Role::Client => observation.remote,
        Role::Server => observation.local,
    };
    let end_port = match end {
        Endpoint::Inet(address) => Some(address.port()),
        Endpoint::Unix => None,
    };
    if let Some(host) = &observation.exchange.host {
        let (name, port) = split_host(host);
        return (name, port.or(end_port));
    }
    scratch.clear();
    if let Endpoint::Inet(address) = end {
        // Writing to a String cannot fail.
        let _ = write!(scratch, "{}", address.ip());
    }
    (scratch, end_port)
}

/// Splits `Host` into the host (IPv6 without its brackets) and the port, if it names one. A port
/// that is none stays part of the host: it is what the client sent.
fn split_host(host: &str) -> (&str, Option<u16>) {
    if let Some(rest) = host.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => {
                match port.strip_prefix(':').and_then(|port| port.parse().ok()) {
                    Some(port) => (address, Some(port)),
                    None => (host, None),
                }
            }
            None => (host, None),
        };
    }
    match host.rsplit_once(':') {
        // More than one colon without brackets is an IPv6 address that names no port.
        Some((name, port)) if !name.contains(':') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (host, None),
        },
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_are_split() {
        assert_eq!(split_host("es.example"), ("es.example", None));
        assert_eq!(split_host("es.example:9200"), ("es.example", Some(9200)));
        assert_eq!(split_host("127.0.0.1:80"), ("127.0.0.1", Some(80)));
        assert_eq!(split_host("[::1]:9200"), ("::1", Some(9200)));
        assert_eq!(split_host("[::1]"), ("::1", None));
        assert_eq!(split_host("fe80::1"), ("fe80::1", None));
        assert_eq!(split_host("a:b"), ("a:b", None));
        assert_eq!(split_host("a:99999"), ("a:99999", None));
        assert_eq!(split_host("[::1"), ("[::1", None));
        assert_eq!(split_host(""), ("", None));
    }

    proptest! {
        #[test]
        fn no_host_panics_and_nothing_is_made_up(host in ".{0,40}") {
            let (name, _) = split_host(&host);
            prop_assert!(host.contains(name));
        }
    }
}
