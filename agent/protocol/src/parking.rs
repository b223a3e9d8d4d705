//! Responses that came before their request's record did.
//!
//! Two threads that serve one socket write their records one after the other, but not always in the
//! order of the calls. A response to nothing waits here for the next record of the other direction.

use crate::segment::{Limits, Segment};

#[derive(Debug)]
pub(crate) struct Parked {
    segment: Segment<'static>,
    captured: Box<[u8]>,
    tail: Box<[u8]>,
}

impl Parked {
    pub(crate) fn new(segment: &Segment<'_>) -> Self {
        Self {
            segment: Segment {
                captured: &[],
                tail: &[],
                ..*segment
            },
            captured: segment.captured.into(),
            tail: segment.tail.into(),
        }
    }

    pub(crate) fn segment(&self) -> Segment<'_> {
        Segment {
            captured: &self.captured,
            tail: &self.tail,
            ..self.segment
        }
    }
}

/// Segments of one direction, in order.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    segments: Vec<Parked>,
    bytes: usize,
}

impl Parking {
    /// Whether segments of this direction have to wait behind others.
    pub(crate) fn holds(&self, direction: ebpf_common::connection::Direction) -> bool {
        self.segments
            .first()
            .is_some_and(|parked| parked.segment.direction == direction)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(crate) fn park(&mut self, segment: &Segment<'_>) {
        self.bytes += segment.captured.len() + segment.tail.len();
        self.segments.push(Parked::new(segment));
    }

    pub(crate) fn is_full(&self, limits: &Limits) -> bool {
        self.segments.len() > limits.parked_segments || self.bytes > limits.parked_bytes
    }

    pub(crate) fn take(&mut self) -> Vec<Parked> {
        self.bytes = 0;
        std::mem::take(&mut self.segments)
    }
}
