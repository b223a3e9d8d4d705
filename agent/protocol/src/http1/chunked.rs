//! The chunked transfer coding (RFC 9112, section 7.1).

/// How far the decoder has come within the coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// In the hexadecimal size of a chunk, with the digits so far.
    Size { value: u64, digits: u8 },
    /// Behind the size: an extension, or the line's end.
    Extension { value: u64 },
    /// In a chunk's data.
    Data { remaining: u64 },
    /// Behind a chunk's data, before the end of its line.
    DataEnd,
    /// In the trailer section; `empty` while the present line holds nothing.
    Trailer { empty: bool },
    /// Behind the last line.
    Done,
}

/// Finds chunks and the end of a body. Knows only what it was shown.
#[derive(Clone, Debug)]
pub(crate) struct Chunked {
    step: Step,
}

/// What [`Chunked::decode`] found at the beginning of the bytes that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// So many bytes of framing.
    Framing(usize),
    /// So many bytes of content.
    Content(usize),
    /// Nothing that the coding allows.
    Invalid,
}

impl Chunked {
    pub(crate) const fn new() -> Self {
        Self {
            step: Step::Size {
                value: 0,
                digits: 0,
            },
        }
    }

    /// Whether the body is over.
    pub(crate) fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// Reads the next stretch of framing or content from `bytes`, which must not be empty.
    pub(crate) fn decode(&mut self, bytes: &[u8]) -> Found {
        if let Step::Data { remaining } = self.step {
            let len = usize::try_from(remaining).map_or(bytes.len(), |len| len.min(bytes.len()));
            self.pass_content(len as u64);
            return Found::Content(len);
        }
        let mut read = 0;
        for byte in bytes {
            if matches!(self.step, Step::Data { .. } | Step::Done) {
                break;
            }
            match self.read_framing(*byte) {
                Some(next) => self.step = next,
                None => return Found::Invalid,
            }
            read += 1;
        }
        Found::Framing(read)
    }

    /// Passes over `len` bytes that nobody captured. False when they hold framing, so that what
    /// follows can't be told any longer.
    pub(crate) fn skip(&mut self, len: u64) -> bool {
        match self.step {
            Step::Data { remaining } if len <= remaining => {
                self.pass_content(len);
                true
            }
            _ => false,
        }
    }

    fn pass_content(&mut self, len: u64) {
        if let Step::Data { remaining } = self.step {
            self.step = match remaining.saturating_sub(len) {
                0 => Step::DataEnd,
                remaining => Step::Data { remaining },
            };
        }
    }

    /// The step behind one byte of framing; `None` where the byte can't stand there. A bare LF ends
    /// a line as well: recipients may take it so (RFC 9112, section 2.2), and many do.
    fn read_framing(&self, byte: u8) -> Option<Step> {
        /// Sixteen digits fill 64 bits.
        const MAX_DIGITS: u8 = 16;
        let line_end = |value| match value {
            0 => Step::Trailer { empty: true },
            remaining => Step::Data { remaining },
        };
        match self.step {
            Step::Size { value, digits } => match char::from(byte).to_digit(16) {
                Some(digit) if digits < MAX_DIGITS => Some(Step::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                }),
                Some(_) => None,
                None if digits == 0 => None,
                None => match byte {
                    b'\n' => Some(line_end(value)),
                    b'\r' | b';' | b' ' | b'\t' => Some(Step::Extension { value }),
                    _ => None,
                },
            },
            Step::Extension { value } => Some(match byte {
                b'\n' => line_end(value),
                _ => self.step,
            }),
            Step::DataEnd => match byte {
                b'\r' => Some(self.step),
                b'\n' => Some(Step::Size {
                    value: 0,
                    digits: 0,
                }),
                _ => None,
            },
            Step::Trailer { empty } => Some(match byte {
                b'\n' if empty => Step::Done,
                b'\n' => Step::Trailer { empty: true },
                b'\r' => self.step,
                _ => Step::Trailer { empty: false },
            }),
            Step::Data { .. } | Step::Done => Some(self.step),
        }
    }
}

/// Whether the last bytes of a segment are those of a chunked body: the last chunk, then trailer
/// fields, if any, then an empty line. The line of the last chunk has to begin within `suffix`, behind
/// the end of another line, unless there is nothing before it.
pub(crate) fn ends_body(suffix: &[u8]) -> bool {
    let Some(mut lines) = suffix.strip_suffix(EMPTY_LINE) else {
        return false;
    };
    while let Some(end) = memchr::memmem::rfind(lines, b"\r\n") {
        let line = &lines[end + 2..];
        if is_last_chunk(line) {
            return true;
        }
        if !may_be_field(line) {
            return false;
        }
        lines = &lines[..end];
    }
    // What the line of the last chunk begins with could be the end of a larger number.
    lines == b"0"
}

/// Whether the bytes end with an empty line, as every chunked body does.
pub(crate) fn ends_line(suffix: &[u8]) -> bool {
    suffix.ends_with(EMPTY_LINE)
}

const EMPTY_LINE: &[u8] = b"\r\n\r\n";

/// A size of zero, and perhaps an extension.
fn is_last_chunk(line: &[u8]) -> bool {
    let zeroes = line.iter().take_while(|byte| **byte == b'0').count();
    zeroes > 0 && line.get(zeroes).is_none_or(|byte| b"; \t".contains(byte))
}

/// Field lines have a name, then a colon.
fn may_be_field(line: &[u8]) -> bool {
    memchr::memchr(b':', line)
        .is_some_and(|colon| colon > 0 && line[..colon].iter().all(u8::is_ascii_graphic))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode_all(mut bytes: &[u8]) -> (Vec<u8>, bool, usize) {
        let mut chunked = Chunked::new();
        let mut content = Vec::new();
        while !bytes.is_empty() && !chunked.is_done() {
            match chunked.decode(bytes) {
                Found::Framing(len) => bytes = &bytes[len..],
                Found::Content(len) => {
                    content.extend_from_slice(&bytes[..len]);
                    bytes = &bytes[len..];
                }
                Found::Invalid => return (content, false, bytes.len()),
            }
        }
        (content, chunked.is_done(), bytes.len())
    }

    #[test]
    fn chunks_extensions_and_trailers() {
        let body = b"4;name=\"v\"\r\nWiki\r\n5 \r\npedia\r\n0\r\nExpires: never\r\nA: b\r\n\r\nGET";
        assert_eq!(decode_all(body), (b"Wikipedia".to_vec(), true, 3));
    }

    #[test]
    fn bare_line_feeds() {
        assert_eq!(decode_all(b"2\nok\n0\n\n"), (b"ok".to_vec(), true, 0));
    }

    #[test]
    fn what_is_no_size_is_invalid() {
        assert!(!decode_all(b"\r\n").1);
        assert!(!decode_all(b"xyz\r\n").1);
        assert!(!decode_all(b"2\r\nokay").1);
        assert!(!decode_all(b"11111111111111111\r\n").1);
    }

    #[test]
    fn skipping_inside_a_chunk_keeps_step_and_beyond_it_does_not() {
        let mut chunked = Chunked::new();
        assert_eq!(chunked.decode(b"a\r\n"), Found::Framing(3));
        assert!(chunked.skip(4));
        assert!(!chunked.clone().skip(7));
        assert!(chunked.skip(6));
        assert_eq!(chunked.decode(b"\r\n0\r\n\r\n"), Found::Framing(7));
        assert!(chunked.is_done());
    }

    #[test]
    fn terminators() {
        for end in [
            &b"data\r\n0\r\n\r\n"[..],
            b"0\r\n\r\n",
            b"a\r\n000;last=1\r\n\r\n",
            b"a\r\n0\r\nX-End: 1\r\nDigest: a:b\r\n\r\n",
        ] {
            assert!(ends_body(end), "{}", end.escape_ascii());
        }
        for other in [
            &b""[..],
            b"\r\n",
            b"\r\n\r\n",
            b"100\r\n\r\n",
            b"a\r\n10\r\n\r\n",
            b"X-End: 1\r\n\r\n",
            b"a\r\n0\r\nno field\r\n\r\n",
            b"a\r\n0\r\n\r\nX-End: 1\r\n\r\n",
        ] {
            assert!(!ends_body(other), "{}", other.escape_ascii());
        }
    }
}
