//! Between two exchanges: what has to be remembered of a connection, and no more.
//!
//! Most connections are idle most of the time, and there are many of them; few have an exchange
//! under way at any moment. So one [`Connection`] serves many, one after the other: it takes up what
//! it is told of the one and gives it back when nothing is under way. It keeps the memory that it
//! came to need, so that an exchange like most allocates nothing.

use ebpf_common::connection::Direction;

use super::Connection;
use crate::delivery::Delivery;
use crate::elasticsearch::Cluster;
use crate::pairing::Past;
use crate::stream::RestingStream;

/// A connection with nothing under way.
#[derive(Debug)]
pub struct Resting {
    ingress: RestingStream,
    egress: RestingStream,
    request_direction: Option<Direction>,
    past: Past,
    search_cluster: Option<Cluster>,
    delivery: Delivery,
}

impl Default for Resting {
    /// One of which nothing was seen yet, as [`Connection::new`].
    fn default() -> Self {
        Self {
            ingress: RestingStream::FIRST,
            egress: RestingStream::FIRST,
            request_direction: None,
            past: Past::default(),
            search_cluster: None,
            delivery: Delivery::default(),
        }
    }
}

impl Resting {
    /// One that is seen from its very first byte, see [`Connection::handle_open`].
    #[must_use]
    pub fn opened() -> Self {
        Self {
            past: Past::WHOLE,
            ..Self::default()
        }
    }
}

impl Connection {
    /// Gives back what has to be remembered of the connection, if nothing of it is under way and all
    /// that came of it was taken out. What stays is fit for [`Self::resume`] alone.
    pub fn rest(&mut self) -> Option<Resting> {
        let is_told =
            self.observations.is_empty() && self.losses.is_empty() && self.heads == [0; 2];
        if !is_told || !self.parking.is_empty() || self.request_open {
            return None;
        }
        Some(Resting {
            ingress: self.ingress.rest()?,
            egress: self.egress.rest()?,
            request_direction: self.request_direction,
            past: self.pairing.past()?,
            search_cluster: self.search_cluster.take(),
            delivery: self.delivery,
        })
    }

    /// Takes a connection up: one of which nothing was seen, or where [`Self::rest`] left it. To be
    /// called on a new one, or behind `rest`.
    pub fn resume(&mut self, resting: Resting) {
        self.request_direction = resting.request_direction;
        let expected = [Direction::Ingress, Direction::Egress].map(|it| self.kind(it));
        self.ingress.resume(&resting.ingress, expected[0]);
        self.egress.resume(&resting.egress, expected[1]);
        self.pairing.resume(resting.past);
        self.search_cluster = resting.search_cluster;
        self.delivery = resting.delivery;
    }
}
