//! One direction: heads, contents and ends, out of captured and unseen bytes.

use std::borrow::Cow;

use super::body::{Body, Framing, Read};
use super::method::{Beginning, Kind, beginning, begins_any_request};
use crate::loss::LossReason;

/// Consecutive bytes of one direction that moved at the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) content: Content<'a>,
    /// When the last of them moved.
    pub(crate) time_ns: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    Captured(&'a [u8]),
    /// So many bytes that nobody captured.
    Unseen(u64),
}

impl<'a> Piece<'a> {
    pub(crate) const fn len_bytes(&self) -> u64 {
        match self.content {
            Content::Captured(bytes) => bytes.len() as u64,
            Content::Unseen(len) => len,
        }
    }

    /// Passes over `len` bytes, and returns how many those are.
    fn advance(&mut self, len: u64) -> u64 {
        match &mut self.content {
            Content::Captured(bytes) => {
                let len = usize::try_from(len).map_or(bytes.len(), |len| len.min(bytes.len()));
                *bytes = &bytes[len..];
            }
            Content::Unseen(unseen) => *unseen = unseen.saturating_sub(len),
        }
        len
    }

    fn take(&mut self) -> u64 {
        self.advance(self.len_bytes())
    }
}

/// What happened in the stream.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A head, whose message goes on as [`Decoder::begin_body`] is told.
    Head(HeadBytes<'a>),
    /// Content of a body.
    Content(&'a [u8]),
    /// Content that nobody captured.
    ContentUnseen,
    /// The message is over.
    End {
        last_ns: u64,
        /// `None` when the body's framing was lost, or when it was left unfinished.
        content_bytes: Option<u64>,
    },
    /// The stream is out of step: these bytes should have begun a message.
    OutOfStep { reason: LossReason, bytes: u64 },
    /// More bytes of the same.
    StillOutOfStep { reason: LossReason, bytes: u64 },
    /// The chunk framing broke; the end of the body is unknown from here.
    ChunkInvalid,
}

/// The bytes of a head, and when the first and last of them moved.
#[derive(Debug)]
pub(crate) struct HeadBytes<'a> {
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    /// Whether the empty line at its end is there.
    pub(crate) complete: bool,
}

/// What the direction is at.
#[derive(Debug)]
enum State {
    /// In step: a head comes next, or the rest of the one in the buffer.
    Head,
    Body(Body),
    /// Waits for a segment that begins a message.
    OutOfStep {
        reason: LossReason,
        /// Whether an event told of it.
        told: bool,
        /// How the message is framed that is passed over, if all is as it seems: a head that begins
        /// right behind it is one, without a segment of its own.
        passed: Option<Body>,
    },
    /// No longer HTTP.
    Opaque,
}

/// What a direction is at while nothing is under way in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// See [`State::Head`].
    Head,
    /// See [`State::OutOfStep`].
    OutOfStep { reason: LossReason, told: bool },
    /// See [`State::Opaque`].
    Opaque,
}

impl Pause {
    /// What comes first may be the middle of a message.
    pub(crate) const FIRST: Self = Self::OutOfStep {
        reason: LossReason::NotHttp,
        told: false,
    };
}

impl From<Pause> for State {
    fn from(pause: Pause) -> Self {
        match pause {
            Pause::Head => Self::Head,
            Pause::OutOfStep { reason, told } => Self::OutOfStep {
                reason,
                told,
                passed: None,
            },
            Pause::Opaque => Self::Opaque,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// The beginning of a head whose end is still to come.
    buffer: Vec<u8>,
    buffer_limit: usize,
    /// When the first byte of the buffer moved.
    first_ns: u64,
    /// When the last byte of the present message moved.
    last_ns: u64,
    expected: Option<Kind>,
}

impl Decoder {
    /// A decoder that waits for its first message: what comes before may be the middle of one.
    pub(crate) fn new(buffer_limit: usize) -> Self {
        Self {
            state: Pause::FIRST.into(),
            buffer: Vec::new(),
            buffer_limit,
            first_ns: 0,
            last_ns: 0,
            expected: None,
        }
    }

    /// What the direction is at, if nothing is under way in it.
    pub(crate) fn pause(&self) -> Option<Pause> {
        match self.state {
            State::Head if self.buffer.is_empty() => Some(Pause::Head),
            State::OutOfStep {
                reason,
                told,
                passed: None,
            } => Some(Pause::OutOfStep { reason, told }),
            State::Opaque => Some(Pause::Opaque),
            State::Head | State::Body(_) | State::OutOfStep { .. } => None,
        }
    }

    /// Goes on where a decoder paused that carried messages of the `expected` kind.
    pub(crate) fn resume(&mut self, pause: Pause, expected: Option<Kind>) {
        self.state = pause.into();
        self.expected = expected;
    }

    /// Tells which kind of message this direction carries.
    pub(crate) const fn expect(&mut self, kind: Kind) {
        self.expected = Some(kind);
    }

    /// The kind of message that `bytes` begin, if this direction may carry it.
    pub(crate) fn message_at(&self, bytes: &[u8]) -> Option<Kind> {
        // RFC 9112, section 2.2: empty lines before a request line are ignored.
        let blank = bytes.iter().take_while(|b| b"\r\n".contains(b)).count();
        let skipped = if self.is_out_of_step() { blank } else { 0 };
        match beginning(&bytes[skipped..]) {
            Beginning::Message(kind) if self.expected.is_none_or(|expected| expected == kind) => {
                Some(kind)
            }
            _ => None,
        }
    }

    /// Whether `bytes` are too few to tell that they don't begin a message.
    pub(crate) fn may_begin_message(bytes: &[u8]) -> bool {
        !bytes.is_empty() && beginning(bytes) == Beginning::Perhaps
    }

    /// In step, between two messages.
    pub(crate) fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Head) && self.buffer.is_empty()
    }

    /// No message is under way, as far as can be told.
    pub(crate) fn is_idle(&self) -> bool {
        !matches!(self.state, State::Body(_)) && self.buffer.is_empty()
    }

    pub(crate) const fn is_out_of_step(&self) -> bool {
        matches!(self.state, State::OutOfStep { .. })
    }

    pub(crate) const fn body(&self) -> Option<&Body> {
        match &self.state {
            State::Body(body) => Some(body),
            _ => None,
        }
    }

    /// Notes that the body under way, if any, has come to an empty line.
    pub(crate) const fn note_empty_line(&mut self) {
        if let State::Body(body) = &mut self.state {
            body.note_empty_line();
        }
    }

    /// The next event; `None` when the piece is used up.
    pub(crate) fn decode<'a>(&mut self, piece: &mut Piece<'a>) -> Option<Event<'a>> {
        if let State::Body(body) = &self.state
            && body.is_done()
        {
            let content_bytes = body.content_bytes();
            self.state = State::Head;
            return Some(Event::End {
                last_ns: self.last_ns,
                content_bytes,
            });
        }
        if piece.len_bytes() == 0 {
            return None;
        }
        match &mut self.state {
            State::Head => match piece.content {
                Content::Captured(bytes) => self.decode_head(bytes, piece),
                Content::Unseen(_) => self.miss_head(piece),
            },
            State::Body(body) => {
                self.last_ns = piece.time_ns;
                match piece.content {
                    Content::Captured(bytes) => match body.read(bytes) {
                        Read::Framing(len) => {
                            piece.advance(len as u64);
                            self.decode(piece)
                        }
                        Read::Content(len) => {
                            piece.advance(len as u64);
                            Some(Event::Content(&bytes[..len]))
                        }
                        Read::Invalid => Some(Event::ChunkInvalid),
                    },
                    Content::Unseen(len) => {
                        piece.advance(body.skip(len));
                        Some(Event::ContentUnseen)
                    }
                }
            }
            State::OutOfStep {
                reason,
                told,
                passed,
            } => {
                let reason = *reason;
                let told = std::mem::replace(told, true);
                let (mut body, content) = (passed.take(), piece.content);
                let behind = match (&mut body, content) {
                    (Some(body), Content::Captured(bytes)) => pass_over(body, bytes),
                    _ => None,
                };
                let bytes = match (behind, content) {
                    (Some(at), Content::Captured(bytes)) if at < bytes.len() => {
                        if may_begin_response(&bytes[at..]) {
                            self.state = State::Head;
                            piece.advance(at as u64)
                        } else {
                            piece.take()
                        }
                    }
                    (Some(_), _) => {
                        *passed = body;
                        piece.take()
                    }
                    (None, _) => piece.take(),
                };
                Some(if told {
                    Event::StillOutOfStep { reason, bytes }
                } else {
                    Event::OutOfStep { reason, bytes }
                })
            }
            State::Opaque => {
                piece.take();
                None
            }
        }
    }

    /// Goes on behind a head: with a body, which may be empty.
    pub(crate) fn begin_body(&mut self, framing: Framing) {
        self.state = State::Body(Body::new(framing));
    }

    /// Goes on behind a head that does not tell what follows: whatever comes is lost until a
    /// segment begins a message. `told`: whether the loss was counted.
    pub(crate) fn lose_step(&mut self, reason: LossReason, told: bool) {
        self.buffer = Vec::new();
        self.state = State::OutOfStep {
            reason,
            told,
            passed: None,
        };
    }

    /// The same behind a head that is passed over and was counted. `framing`: that of its body, if
    /// its request was like most.
    pub(crate) fn lose_step_behind(&mut self, reason: LossReason, framing: Option<Framing>) {
        self.buffer = Vec::new();
        self.state = State::OutOfStep {
            reason,
            told: true,
            passed: framing.map(Body::new),
        };
    }

    /// The connection has left HTTP.
    pub(crate) fn become_opaque(&mut self) {
        self.buffer = Vec::new();
        self.state = State::Opaque;
    }

    /// A message begins here, whatever was under way: ends the body that was, at `last_ns`.
    pub(crate) fn interrupt(&mut self, last_ns: u64) -> Option<Event<'static>> {
        match std::mem::replace(&mut self.state, State::Head) {
            State::Body(_) => Some(Event::End {
                last_ns,
                content_bytes: None,
            }),
            State::Head | State::OutOfStep { .. } => None,
            State::Opaque => {
                self.state = State::Opaque;
                None
            }
        }
    }

    /// The direction ends here: what was under way ends with it, whole or not.
    pub(crate) fn close(&mut self) -> Closed {
        let last_ns = self.last_ns;
        match std::mem::replace(&mut self.state, State::Opaque) {
            State::Head if !self.buffer.is_empty() => Closed::InHead(self.take_cut_head()),
            State::Body(body) => Closed::InBody {
                last_ns,
                content_bytes: body.content_bytes(),
                whole: body.ends_with_connection(),
            },
            State::Head | State::OutOfStep { .. } | State::Opaque => Closed::Between,
        }
    }

    fn decode_head<'a>(&mut self, mut bytes: &'a [u8], piece: &mut Piece<'a>) -> Option<Event<'a>> {
        if self.buffer.is_empty() {
            // RFC 9112, section 2.2: an empty line before a request line is ignored.
            let blank = bytes.iter().take_while(|b| b"\r\n".contains(b)).count();
            piece.advance(blank as u64);
            bytes = &bytes[blank..];
            if bytes.is_empty() {
                return None;
            }
            self.first_ns = piece.time_ns;
        }
        let buffered = self.buffer.len();
        let room = self.buffer_limit.saturating_sub(buffered);
        let whole: Cow<'a, [u8]> = if buffered == 0 {
            Cow::Borrowed(&bytes[..bytes.len().min(room)])
        } else {
            self.buffer
                .extend_from_slice(&bytes[..bytes.len().min(room)]);
            Cow::Owned(std::mem::take(&mut self.buffer))
        };
        if !self.may_be_head(&whole) {
            piece.take();
            let lost = (buffered + bytes.len()) as u64;
            return Some(self.fall_out_of_step(LossReason::Garbage, lost));
        }
        self.last_ns = piece.time_ns;
        // The end may straddle what was buffered before: `\n`, `\r`, `\n`.
        let end = head_end(&whole, buffered.saturating_sub(3));
        let len = end.unwrap_or(whole.len());
        piece.advance(len.saturating_sub(buffered) as u64);
        if end.is_none() && whole.len() < self.buffer_limit {
            self.buffer = whole.into_owned();
            return None;
        }
        let bytes = match whole {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[..len]),
            Cow::Owned(mut bytes) => {
                bytes.truncate(len);
                Cow::Owned(bytes)
            }
        };
        Some(Event::Head(HeadBytes {
            bytes,
            first_ns: self.first_ns,
            last_ns: piece.time_ns,
            complete: end.is_some(),
        }))
    }

    /// Unseen bytes where a head should be, or the rest of one.
    fn miss_head<'a>(&mut self, piece: &mut Piece<'a>) -> Option<Event<'a>> {
        if self.buffer.is_empty() {
            return Some(self.fall_out_of_step(LossReason::Gap, piece.take()));
        }
        Some(Event::Head(self.take_cut_head()))
    }

    fn fall_out_of_step<'a>(&mut self, reason: LossReason, bytes: u64) -> Event<'a> {
        self.lose_step(reason, true);
        Event::OutOfStep { reason, bytes }
    }

    fn take_cut_head(&mut self) -> HeadBytes<'static> {
        HeadBytes {
            bytes: Cow::Owned(std::mem::take(&mut self.buffer)),
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            complete: false,
        }
    }

    fn may_be_head(&self, bytes: &[u8]) -> bool {
        match beginning(bytes) {
            Beginning::Message(kind) => self.expected.is_none_or(|expected| expected == kind),
            Beginning::Perhaps => true,
            Beginning::Nothing => self.expected == Some(Kind::Request) && begins_any_request(bytes),
        }
    }
}

/// What [`Decoder::close`] found under way.
#[derive(Debug)]
pub(crate) enum Closed {
    /// Nothing.
    Between,
    /// A head, as far as it came.
    InHead(HeadBytes<'static>),
    /// A body.
    InBody {
        last_ns: u64,
        content_bytes: Option<u64>,
        /// Whether an orderly end of the connection ends the body as well.
        whole: bool,
    },
}

fn may_begin_response(bytes: &[u8]) -> bool {
    matches!(
        beginning(bytes),
        Beginning::Message(Kind::Response) | Beginning::Perhaps
    )
}

/// How many of `bytes` belong to `body`, which goes on with them; `None` when its framing is broken.
fn pass_over(body: &mut Body, bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < bytes.len() && !body.is_done() {
        at += match body.read(&bytes[at..]) {
            Read::Framing(len) | Read::Content(len) => len,
            Read::Invalid => return None,
        };
    }
    Some(at)
}

/// Offset behind the empty line that ends a head, looked for from `from` on.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &bytes[from..])
        .map(|index| from + index + 1)
        .find_map(|line| match bytes.get(line..)? {
            [b'\n', ..] => Some(line + 1),
            [b'\r', b'\n', ..] => Some(line + 2),
            _ => None,
        })
}
