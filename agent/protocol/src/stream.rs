//! One direction of a connection: offsets, gaps, and how far the kernel side says it has come.

use ebpf_common::connection::Cursor;

use crate::http1::decoder::{Content, Decoder, Event, Pause, Piece};
use crate::http1::method::Kind;
use crate::segment::Segment;

/// Value of [`Stream::older_until_ns`]: nothing was captured yet, or not the very first segment.
const OLDER_UNKNOWN: u64 = 0;
/// The same: the first segment began inside a message, and no head has come.
const OLDER_STILL: u64 = u64::MAX;

/// A direction in which nothing is under way, and all that passed was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestingStream {
    at: Cursor,
    /// Heads may have been among the last bytes, see [`Stream::note_gap`].
    has_gap: bool,
    older_until_ns: u64,
    pause: Pause,
}

impl RestingStream {
    /// Nothing was seen yet.
    pub(crate) const FIRST: Self = Self {
        at: Cursor {
            offset_bytes: 0,
            last_ns: 0,
        },
        has_gap: false,
        older_until_ns: OLDER_UNKNOWN,
        pause: Pause::FIRST,
    };
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) decoder: Decoder,
    /// Offset of the first byte that the decoder has not had.
    position_bytes: u64,
    /// When the byte before it moved.
    last_ns: u64,
    /// How far the direction is known to have come; ahead of the position where bytes went unseen
    /// or their record is still on its way.
    seen: Cursor,
    /// The first time at which `seen` lay behind the end of the body under way.
    overtaken_ns: Option<u64>,
    /// When the last byte moved of those that may have held heads and could not be read.
    gap_ns: Option<u64>,
    /// Until when all that moved was sent before the connection was first seen: when the very first
    /// segment moved, or the first head behind one that began inside a message.
    older_until_ns: u64,
    /// When the last segment was read that a message may begin with, and when its first byte had
    /// arrived.
    arrival: Option<(u64, u64)>,
}

impl Stream {
    pub(crate) const fn new(decoder: Decoder) -> Self {
        Self {
            decoder,
            position_bytes: 0,
            last_ns: 0,
            seen: Cursor {
                offset_bytes: 0,
                last_ns: 0,
            },
            overtaken_ns: None,
            gap_ns: None,
            older_until_ns: OLDER_UNKNOWN,
            arrival: None,
        }
    }

    /// What to remember of the direction, if nothing is under way in it.
    pub(crate) fn rest(&self) -> Option<RestingStream> {
        let at = Cursor {
            offset_bytes: self.position_bytes,
            last_ns: self.last_ns,
        };
        let is_last = |gap_ns| gap_ns == at.last_ns;
        let is_read = self.seen == at && self.gap_ns.is_none_or(is_last);
        // An arrival is of use to a message that begins with the same segment alone.
        let is_idle = is_read && self.overtaken_ns.is_none();
        is_idle.then_some(RestingStream {
            at,
            has_gap: self.gap_ns.is_some(),
            older_until_ns: self.older_until_ns,
            pause: self.decoder.pause()?,
        })
    }

    /// Goes on where a direction rested that carries messages of the `expected` kind.
    pub(crate) fn resume(&mut self, resting: &RestingStream, expected: Option<Kind>) {
        self.decoder.resume(resting.pause, expected);
        self.position_bytes = resting.at.offset_bytes;
        self.last_ns = resting.at.last_ns;
        self.seen = resting.at;
        self.overtaken_ns = None;
        self.gap_ns = resting.has_gap.then_some(resting.at.last_ns);
        self.older_until_ns = resting.older_until_ns;
        self.arrival = None;
    }

    /// Notes when a segment's first byte arrived, if a message may begin with it.
    pub(crate) fn note_arrival(&mut self, segment: &Segment<'_>, arrived_ns: u64) {
        if self.decoder.is_between_messages() && self.position_bytes == segment.offset_bytes {
            self.arrival = Some((segment.time_ns, arrived_ns));
        }
    }

    /// When the first byte arrived of the message whose first byte was read at `first_ns`; told
    /// once, for of messages that were read together only the first one is known.
    pub(crate) fn take_arrival_ns(&mut self, first_ns: u64) -> Option<u64> {
        let (read_ns, arrived_ns) = self.arrival.take()?;
        (read_ns == first_ns).then_some(arrived_ns)
    }

    pub(crate) const fn position_bytes(&self) -> u64 {
        self.position_bytes
    }

    pub(crate) const fn last_ns(&self) -> u64 {
        self.last_ns
    }

    pub(crate) const fn seen(&self) -> Cursor {
        self.seen
    }

    /// Notes how far the direction has come.
    pub(crate) const fn see(&mut self, cursor: Cursor) {
        if cursor.offset_bytes > self.seen.offset_bytes {
            self.seen = cursor;
        }
    }

    /// Whether all that moved before `at_ns` was sent before the connection was first seen: nothing
    /// was seen until then, or the rest of a message that had begun.
    pub(crate) fn is_older_at(&self, at_ns: u64) -> bool {
        match self.older_until_ns {
            OLDER_UNKNOWN => self.seen.offset_bytes == 0,
            until_ns => at_ns < until_ns,
        }
    }

    /// Notes that heads may have been among the bytes up to the position.
    pub(crate) const fn note_gap(&mut self) {
        self.gap_ns = Some(self.last_ns);
    }

    /// When the last of the bytes moved that [`Self::note_gap`] told of; told once.
    pub(crate) const fn take_gap_ns(&mut self) -> Option<u64> {
        self.gap_ns.take()
    }

    /// Decodes the next event out of `piece`, which begins at the position.
    pub(crate) fn next<'a>(&mut self, piece: &mut Piece<'a>) -> Option<Event<'a>> {
        let before = piece.len_bytes();
        let is_captured = matches!(piece.content, Content::Captured(_));
        if self.position_bytes == 0 && before > 0 && is_captured {
            self.older_until_ns = if self.decoder.is_out_of_step() {
                OLDER_STILL
            } else {
                piece.time_ns
            };
        }
        let event = self.decoder.decode(piece);
        let passed = before - piece.len_bytes();
        if passed > 0 {
            self.position_bytes = self.position_bytes.saturating_add(passed);
            self.last_ns = piece.time_ns;
        }
        match &event {
            Some(Event::End { .. }) => self.overtaken_ns = None,
            Some(Event::Head(head)) if self.older_until_ns == OLDER_STILL => {
                self.older_until_ns = head.first_ns;
            }
            _ => {}
        }
        event
    }

    /// The bytes from the position to `offset_bytes`, which nobody captured and of which the last
    /// moved at `last_ns`: the rest of a body with a known end, then what lies behind it.
    pub(crate) fn unseen_until(&self, offset_bytes: u64, last_ns: u64) -> [Piece<'static>; 2] {
        let len = offset_bytes.saturating_sub(self.position_bytes);
        let body = self.body_remaining_bytes().unwrap_or(0).min(len);
        let body_last_ns = match self.overtaken_ns {
            Some(overtaken_ns) if body < len => overtaken_ns.min(last_ns),
            _ => last_ns,
        };
        [(body, body_last_ns), (len - body, last_ns)].map(|(len, time_ns)| Piece {
            content: Content::Unseen(len),
            time_ns,
        })
    }

    /// The rest of the body under way, once the kernel side says that it has passed unseen.
    ///
    /// Where more than the body has passed, the record of what follows is on its way and tells the
    /// time of the body's last byte exactly. It is awaited until the next call.
    pub(crate) fn unseen_body_end(&mut self) -> Option<Piece<'static>> {
        let remaining = self.body_remaining_bytes().filter(|bytes| *bytes > 0)?;
        let end = self.position_bytes.saturating_add(remaining);
        let time_ns = if self.seen.offset_bytes == end {
            self.seen.last_ns
        } else if self.seen.offset_bytes > end {
            let Some(overtaken_ns) = self.overtaken_ns else {
                self.overtaken_ns = Some(self.seen.last_ns);
                return None;
            };
            overtaken_ns
        } else {
            return None;
        };
        Some(Piece {
            content: Content::Unseen(remaining),
            time_ns,
        })
    }

    /// Whether a body is under way of which nothing but the kernel side's cursor may tell the end.
    pub(crate) fn awaits_progress(&self) -> bool {
        self.body_remaining_bytes().is_some_and(|bytes| bytes > 0)
    }

    /// Whether heads may have gone unseen since the last one, or their record is on its way.
    pub(crate) fn may_hide_heads(&self) -> bool {
        self.gap_ns.is_some() || self.has_unread_bytes()
    }

    /// Whether bytes passed that were not read and can't be those of the body under way.
    pub(crate) fn hides_heads(&self) -> bool {
        let endless = self.decoder.body().is_some() && self.body_remaining_bytes().is_none();
        !endless && self.has_unread_bytes()
    }

    fn has_unread_bytes(&self) -> bool {
        let known = self.body_remaining_bytes().unwrap_or(0);
        self.seen.offset_bytes > self.position_bytes.saturating_add(known)
    }

    fn body_remaining_bytes(&self) -> Option<u64> {
        self.decoder.body()?.remaining_bytes()
    }
}
