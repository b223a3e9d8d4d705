//! Where a message's body ends (RFC 9112, section 6.3).

use super::chunked::{Chunked, Found};

/// How a body is framed, as its head tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes; 0 where there is no body.
    Length(u64),
    /// Transfer coding; `trailer` when the head announces trailer fields.
    Chunked { trailer: bool },
    /// All that comes until the connection ends.
    UntilClose,
    /// The head does not tell, for it was cut.
    Unknown,
}

/// A body under way.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    progress: Progress,
    /// Content passed so far; meaningless once the framing is lost.
    content_bytes: u64,
    trailer: bool,
}

#[derive(Clone, Debug)]
enum Progress {
    Length {
        remaining: u64,
    },
    Chunked(Chunked),
    UntilClose,
    Unknown {
        chunked: bool,
        /// The last bytes were an empty line, as at the end of a chunked body.
        at_empty_line: bool,
    },
}

/// What [`Body::read`] found at the beginning of the bytes that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes of framing, or of a body whose framing is lost.
    Framing(usize),
    /// So many bytes of content.
    Content(usize),
    /// Chunk framing that is none: the body goes on, its end unknown.
    Invalid,
}

impl Progress {
    const fn lost(chunked: bool) -> Self {
        Self::Unknown {
            chunked,
            at_empty_line: false,
        }
    }
}

impl Body {
    pub(crate) const fn new(framing: Framing) -> Self {
        let (progress, trailer) = match framing {
            Framing::Length(remaining) => (Progress::Length { remaining }, false),
            Framing::Chunked { trailer } => (Progress::Chunked(Chunked::new()), trailer),
            Framing::UntilClose => (Progress::UntilClose, false),
            Framing::Unknown => (Progress::lost(false), false),
        };
        Self {
            progress,
            content_bytes: 0,
            trailer,
        }
    }

    /// Whether the last byte has passed.
    pub(crate) fn is_done(&self) -> bool {
        match &self.progress {
            Progress::Length { remaining } => *remaining == 0,
            Progress::Chunked(chunked) => chunked.is_done(),
            Progress::UntilClose | Progress::Unknown { .. } => false,
        }
    }

    /// Whether nothing but another message, a terminator or the connection's end can end it.
    pub(crate) const fn is_unknown(&self) -> bool {
        matches!(self.progress, Progress::Unknown { .. })
    }

    /// Whether its head was cut, so that there may be no body at all.
    pub(crate) const fn is_behind_cut_head(&self) -> bool {
        matches!(self.progress, Progress::Unknown { chunked: false, .. })
    }

    /// Bytes that are still to come; `None` where the framing does not tell.
    pub(crate) const fn remaining_bytes(&self) -> Option<u64> {
        match self.progress {
            Progress::Length { remaining } => Some(remaining),
            _ => None,
        }
    }

    /// Content so far, chunk framing not counted; `None` when its framing was lost.
    pub(crate) const fn content_bytes(&self) -> Option<u64> {
        match self.progress {
            Progress::Unknown { .. } => None,
            _ => Some(self.content_bytes),
        }
    }

    /// Whether the body is whole when its direction ends in good order here.
    pub(crate) fn ends_with_connection(&self) -> bool {
        match &self.progress {
            Progress::UntilClose => true,
            // The last chunk may have stood too far before its trailer fields to be seen.
            Progress::Unknown {
                chunked,
                at_empty_line,
            } => !chunked || *at_empty_line || self.trailer,
            Progress::Length { .. } | Progress::Chunked(_) => self.is_done(),
        }
    }

    /// Notes that the bytes read so far end with an empty line.
    pub(crate) const fn note_empty_line(&mut self) {
        if let Progress::Unknown { at_empty_line, .. } = &mut self.progress {
            *at_empty_line = true;
        }
    }

    /// Reads the next stretch from captured `bytes`, which must not be empty.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Read {
        let len = match &mut self.progress {
            Progress::Length { remaining } => {
                let len = usize::try_from(*remaining).map_or(bytes.len(), |r| r.min(bytes.len()));
                *remaining -= len as u64;
                len
            }
            Progress::Chunked(chunked) => match chunked.decode(bytes) {
                Found::Framing(len) => return Read::Framing(len),
                Found::Content(len) => len,
                Found::Invalid => {
                    self.progress = Progress::lost(true);
                    return Read::Invalid;
                }
            },
            Progress::UntilClose => bytes.len(),
            Progress::Unknown { at_empty_line, .. } => {
                *at_empty_line = false;
                return Read::Framing(bytes.len());
            }
        };
        self.content_bytes = self.content_bytes.saturating_add(len as u64);
        Read::Content(len)
    }

    /// Passes over at most `len` bytes that nobody captured and returns how many of them belong to
    /// the body.
    pub(crate) fn skip(&mut self, len: u64) -> u64 {
        let passed = match &mut self.progress {
            Progress::Length { remaining } => {
                let passed = len.min(*remaining);
                *remaining -= passed;
                passed
            }
            Progress::Chunked(chunked) => {
                if !chunked.skip(len) {
                    self.progress = Progress::lost(true);
                }
                len
            }
            Progress::Unknown { at_empty_line, .. } => {
                *at_empty_line = false;
                len
            }
            Progress::UntilClose => len,
        };
        self.content_bytes = self.content_bytes.saturating_add(passed);
        passed
    }
}
