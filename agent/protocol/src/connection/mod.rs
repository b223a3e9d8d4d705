//! A connection: segments in, exchanges out.

mod messages;
mod reading;
mod resting;

use std::collections::VecDeque;
use std::sync::Arc;

use ebpf_common::connection::{CloseReason, Cursor, Direction};

use crate::delivery::Delivery;
use crate::elasticsearch::Cluster;
use crate::http1::decoder::Decoder;
use crate::http1::method::Kind;
use crate::in_flight::InFlight;
use crate::loss::{Loss, Losses};
use crate::observation::{Exchange, Outcome, Role, SearchProduct};
use crate::pairing::Pairing;
use crate::parking::Parking;
use crate::segment::{Limits, Segment};
use crate::stream::Stream;

pub use resting::Resting;

/// What is known of one connection.
///
/// Feed it with the `handle_…` methods in the order in which the kernel side sends, then take out
/// what came of it with [`Self::poll_observation`] and [`Self::poll_loss`] until both are `None`.
#[derive(Debug)]
pub struct Connection {
    /// One for all connections, of which there are many.
    limits: Arc<Limits>,
    ingress: Stream,
    egress: Stream,
    /// Which way requests go; `None` until a head told.
    request_direction: Option<Direction>,
    pairing: Pairing,
    parking: Parking,
    /// The newest request is under way.
    request_open: bool,
    search_cluster: Option<Cluster>,
    delivery: Delivery,
    /// Request heads that [`Self::poll_heads`] has not told of, by role.
    heads: [u64; 2],
    observations: VecDeque<Exchange>,
    /// An exchange that is over, for the memory of its texts.
    spare: Option<Exchange>,
    losses: Losses,
}

impl Connection {
    /// A connection of which nothing was seen yet. Its first bytes may be the middle of a message.
    #[must_use]
    pub fn new(limits: impl Into<Arc<Limits>>) -> Self {
        let limits = limits.into();
        Self {
            ingress: Stream::new(Decoder::new(limits.head_bytes)),
            egress: Stream::new(Decoder::new(limits.head_bytes)),
            limits,
            request_direction: None,
            pairing: Pairing::default(),
            parking: Parking::default(),
            request_open: false,
            search_cluster: None,
            delivery: Delivery::default(),
            heads: [0; 2],
            observations: VecDeque::new(),
            spare: None,
            losses: Losses::default(),
        }
    }

    /// Takes note that the connection is seen from its very first byte, so that no request can have
    /// gone before. To be called before anything else, if at all.
    pub const fn handle_open(&mut self) {
        self.pairing.begin();
    }

    /// Takes the next segment of a direction.
    pub fn handle_segment(&mut self, segment: &Segment<'_>) {
        let direction = segment.direction;
        self.stream(direction).see(Cursor {
            offset_bytes: segment.end_bytes(),
            last_ns: segment.time_ns,
        });
        if self.parking.holds(direction) {
            self.parking.park(segment);
            if self.parking.is_full(&self.limits) {
                self.replay_parked();
            }
            return;
        }
        if self.parking.holds(direction.opposite()) && self.begins_response(segment) {
            // Only one direction carries responses: what is parked is none, or to nothing.
            self.replay_parked();
        }
        self.read_segment(segment, true);
        if !self.parking.is_empty() && self.pairing.awaited() > 0 {
            self.replay_parked();
        }
    }

    /// Takes note that `direction` has come as far as `cursor`, whether captured or not.
    pub fn handle_progress(&mut self, direction: Direction, cursor: Cursor) {
        self.stream(direction).see(cursor);
        if self.parking.holds(direction) {
            return;
        }
        if let Some(piece) = self.stream(direction).unseen_body_end() {
            self.read_piece(piece, direction, None);
        }
    }

    /// Takes note that a server begins to read what may be a request, at `time_ns`, and for how long
    /// in all the connection has had bytes that the peer had not acknowledged, nanoseconds; `None`
    /// where it has some now. To be called before the segment is handled.
    ///
    /// Gives how long the last answer that was told of waited for the peer's acknowledgement, from
    /// its first byte to its last one, nanoseconds; `None` where that can't be told.
    pub fn handle_request_turn(&mut self, busy_ns: Option<u64>, time_ns: u64) -> Option<u64> {
        let answers_bytes = self.egress.seen().offset_bytes;
        self.delivery.begin(busy_ns, time_ns, answers_bytes)
    }

    /// Takes note for how long in all the connection has had such bytes when it ended in good order.
    /// To be called after [`Self::handle_close`], and when its observations are taken out.
    ///
    /// Gives the same as [`Self::handle_request_turn`].
    pub fn handle_acknowledged(&mut self, busy_ns: u64) -> Option<u64> {
        let answers_bytes = self.egress.seen().offset_bytes;
        self.delivery.take(busy_ns, answers_bytes)
    }

    /// Takes note that one or both directions have ended. A reset, a timeout and a replacement end
    /// both, whichever is named.
    pub fn handle_close(&mut self, ingress: bool, egress: bool, reason: CloseReason, time_ns: u64) {
        self.replay_parked();
        let outcome = match reason {
            CloseReason::Fin => Outcome::ClosedEarly,
            CloseReason::Reset => Outcome::Reset,
            CloseReason::Timeout => Outcome::TimedOut,
            CloseReason::Replaced => Outcome::Evicted,
        };
        let orderly = reason == CloseReason::Fin;
        let ingress = ingress || !orderly;
        let egress = egress || !orderly;
        // Requests first: one that the end cuts short has to be known before its answer ends.
        let first = self.request_direction.unwrap_or(Direction::Ingress);
        for direction in [first, first.opposite()] {
            let ends = match direction {
                Direction::Ingress => ingress,
                Direction::Egress => egress,
            };
            if ends {
                self.end_direction(direction, orderly);
            }
        }
        let answers_end = match self.request_direction {
            Some(Direction::Ingress) => egress,
            Some(Direction::Egress) => ingress,
            None => ingress && egress,
        };
        if answers_end {
            self.finish_all(outcome, time_ns);
        }
    }

    /// Takes note that the agent forgets the connection: whatever is in flight ends here.
    pub fn handle_evict(&mut self, time_ns: u64) {
        self.replay_parked();
        let first = self.request_direction.unwrap_or(Direction::Ingress);
        for direction in [first, first.opposite()] {
            self.end_direction(direction, false);
        }
        self.finish_all(Outcome::Evicted, time_ns);
    }

    /// The next exchange that has ended; `None` when there is none.
    pub fn poll_observation(&mut self) -> Option<Exchange> {
        self.observations.pop_front()
    }

    /// Takes an exchange back that [`Self::poll_observation`] gave, when all have been told of it: the
    /// next one needs no memory of its own then.
    pub fn recycle(&mut self, exchange: Exchange) {
        self.spare = Some(exchange);
    }

    /// How many request heads were seen since the last call, one role at a time; `None` when there
    /// is nothing more. Each of them is in flight, or has been an exchange.
    pub fn poll_heads(&mut self) -> Option<(Role, u64)> {
        [Role::Client, Role::Server].into_iter().find_map(|role| {
            let heads = std::mem::take(&mut self.heads[role as usize]);
            (heads > 0).then_some((role, heads))
        })
    }

    /// What was seen and is not reported, since the last call, one reason at a time; `None` when
    /// there is nothing more.
    pub fn poll_loss(&mut self) -> Option<Loss> {
        self.losses.poll()
    }

    /// Whether a body is under way whose end nothing but the kernel side's cursor may tell, so that
    /// [`Self::handle_progress`] should be called from time to time.
    #[must_use]
    pub fn awaits_progress(&self) -> bool {
        self.ingress.awaits_progress() || self.egress.awaits_progress()
    }

    /// Whether no exchange is under way, in part or as a whole.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pairing.len() == 0
            && self.parking.is_empty()
            && self.ingress.decoder.is_idle()
            && self.egress.decoder.is_idle()
    }

    /// Requests whose exchange has not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pairing.len()
    }

    /// The methods of the requests whose exchange has not ended, oldest first.
    pub fn methods_in_flight(&self) -> impl Iterator<Item = &'static str> {
        self.pairing.iter().map(InFlight::method)
    }

    /// Path, method and first byte (`CLOCK_MONOTONIC`, nanoseconds) of the oldest of them.
    #[must_use]
    pub fn oldest_in_flight(&self) -> Option<(&str, &'static str, u64)> {
        let oldest = self.pairing.iter().next()?;
        Some((oldest.path(), oldest.method(), oldest.request_first_ns()))
    }

    /// The side that the observed process is on; `None` until a message was seen.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        self.request_direction.map(role)
    }

    /// Tells what is known of the cluster that the connection leads to.
    pub fn set_search_cluster(&mut self, cluster: Cluster) {
        self.search_cluster = Some(cluster);
    }

    /// The search product that the connection's answers told of, or that was set.
    #[must_use]
    pub fn search_product(&self) -> Option<SearchProduct> {
        self.search_cluster.as_ref().map(|cluster| cluster.product)
    }

    fn note_search_product(&mut self, product: SearchProduct) {
        match &mut self.search_cluster {
            Some(cluster) => cluster.product = product,
            None => self.search_cluster = Some(product.into()),
        }
    }

    const fn stream(&mut self, direction: Direction) -> &mut Stream {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }

    fn kind(&self, direction: Direction) -> Option<Kind> {
        self.request_direction.map(|requests| {
            if requests == direction {
                Kind::Request
            } else {
                Kind::Response
            }
        })
    }
}

/// Who sends requests is the client.
const fn role(request_direction: Direction) -> Role {
    match request_direction {
        Direction::Ingress => Role::Server,
        Direction::Egress => Role::Client,
    }
}
