//! The bodies of bulk requests and of their answers beyond what is kept of a body: read as they come,
//! so that a long one needs no more memory than another.

use memchr::memchr;

use crate::observation::BulkAction;

use super::bulk::{self, Actions, Tally};
use super::coding::{self, Coding};
use super::json::Scanner;

/// Longest line with an action, longest item of an answer, most that stands before the items.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// What a body is decoded to at most: one that is compressed well must not cost much time.
const MAX_DECODED_BYTES: u64 = 64 * 1024 * 1024;

/// Whose body it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Answer,
}

/// What was counted in bodies that were not kept whole.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Operations of the request, where it was read to its end.
    pub(super) requested: Option<Actions>,
    /// Items of the answer, and whether those are all.
    pub(super) items: Option<(Tally, bool)>,
}

/// A body that is read as it comes.
#[derive(Debug)]
pub(crate) struct Streamed {
    coding: Coding,
    reader: Reader,
    /// Bytes of the body that were read, before and after its content coding was undone.
    body_bytes: u64,
    decoded_bytes: u64,
    /// Nothing more can be read.
    stopped: bool,
}

#[derive(Debug)]
enum Reader {
    Lines(Lines),
    Items(Items),
}

impl Streamed {
    /// A body with this `Content-Encoding` that begins with `beginning`. `None` for a coding that is
    /// not undone piece by piece.
    pub(crate) fn begin(
        side: Side,
        content_encoding: Option<&[u8]>,
        beginning: &[u8],
    ) -> Option<Self> {
        let mut streamed = Self {
            coding: Coding::new(content_encoding)?,
            reader: match side {
                Side::Request => Reader::Lines(Lines::default()),
                Side::Answer => Reader::Items(Items::default()),
            },
            body_bytes: 0,
            decoded_bytes: 0,
            stopped: false,
        };
        streamed.read(beginning);
        Some(streamed)
    }

    /// Takes in what follows.
    pub(crate) fn read(&mut self, content: &[u8]) {
        self.body_bytes += content.len() as u64;
        if matches!(self.coding, Coding::Identity) {
            self.take(content);
            return;
        }
        for coded in content.chunks(coding::PIECE_BYTES) {
            if self.stopped {
                return;
            }
            let (text, intact) = self.coding.decode(coded);
            self.take(&text);
            self.stopped |= !intact;
        }
    }

    fn take(&mut self, text: &[u8]) {
        self.decoded_bytes += text.len() as u64;
        if self.stopped || self.decoded_bytes > MAX_DECODED_BYTES {
            self.stopped = true;
            return;
        }
        match &mut self.reader {
            Reader::Lines(lines) => lines.read(text),
            Reader::Items(items) => items.read(text),
        }
    }

    /// Some of the body went unseen. What was counted before it holds.
    pub(crate) const fn lose(&mut self) {
        self.stopped = true;
    }

    /// Notes what was counted. `body_bytes`: length of the whole body, where that is known.
    pub(crate) fn finish(mut self, body_bytes: Option<u64>, counted: &mut Counted) {
        let mut ended = !self.stopped && body_bytes == Some(self.body_bytes);
        if ended {
            let (text, intact) = self.coding.finish();
            self.take(&text);
            ended = intact && !self.stopped;
        }
        match self.reader {
            Reader::Lines(lines) if ended => counted.requested = lines.finish(),
            Reader::Lines(_) => {}
            Reader::Items(items) => counted.items = Some(items.finish()),
        }
    }
}

/// Counts operations in the lines of a request, as [`bulk::count_operations`] does in all of them.
#[derive(Debug, Default)]
struct Lines {
    counts: Actions,
    /// The beginning of a line that may name an action.
    line: Vec<u8>,
    /// The action whose document the present line is.
    document_of: Option<BulkAction>,
    invalid: bool,
}

impl Lines {
    fn read(&mut self, mut text: &[u8]) {
        while let Some(end) = memchr(b'\n', text) {
            self.extend(&text[..end]);
            self.end_line();
            text = &text[end + 1..];
        }
        self.extend(text);
    }

    fn extend(&mut self, text: &[u8]) {
        if self.invalid || self.document_of.is_some() {
            return;
        }
        self.invalid = self.line.len() + text.len() > MAX_TEXT_BYTES;
        if !self.invalid {
            self.line.extend_from_slice(text);
        }
    }

    fn end_line(&mut self) {
        if self.invalid {
            return;
        }
        if let Some(action) = self.document_of.take() {
            self.counts[action as usize] += 1;
            return;
        }
        let line = self.line.trim_ascii();
        if !line.is_empty() {
            match bulk::action_of(line) {
                Some(BulkAction::Delete) => self.counts[BulkAction::Delete as usize] += 1,
                Some(action) => self.document_of = Some(action),
                None => self.invalid = true,
            }
        }
        self.line.clear();
    }

    fn finish(mut self) -> Option<Actions> {
        self.end_line();
        (!self.invalid && self.document_of.is_none()).then_some(self.counts)
    }
}

/// Counts the items of an answer.
#[derive(Debug, Default)]
struct Items {
    tally: Tally,
    at: At,
    /// What was not understood yet: what stands before the items, or the beginning of one.
    text: Vec<u8>,
    /// Length from which on it is looked at again: not for every few bytes.
    wanted_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the items.
    #[default]
    Beginning,
    /// Among them.
    Items,
    /// All of them were read.
    End,
    /// It is no answer of a cluster's.
    Invalid,
}

impl Items {
    fn read(&mut self, text: &[u8]) {
        if matches!(self.at, At::End | At::Invalid) {
            return;
        }
        self.text.extend_from_slice(text);
        if self.text.len() >= self.wanted_bytes {
            self.advance();
        }
    }

    fn advance(&mut self) {
        let mut scanner = Scanner::new(&self.text);
        if self.at == At::Beginning && scanner.enter_array(b"items").is_some() {
            self.at = At::Items;
        }
        let mut understood = 0;
        if self.at == At::Items {
            loop {
                understood = self.text.len() - scanner.len_bytes();
                let mut next = scanner.clone();
                match next.element() {
                    Some(true) if self.tally.read_item(&mut next, None).is_some() => {
                        scanner = next;
                    }
                    Some(false) => {
                        self.at = At::End;
                        break;
                    }
                    _ => break,
                }
            }
        }
        self.text.drain(..understood);
        self.wanted_bytes = 2 * self.text.len();
        if self.text.len() > MAX_TEXT_BYTES {
            self.at = At::Invalid;
        }
        if matches!(self.at, At::End | At::Invalid) {
            self.text = Vec::new();
        }
    }

    fn finish(mut self) -> (Tally, bool) {
        self.advance();
        (self.tally, self.at == At::End)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    /// A request and its answer: of each item an action, a status, and how long its texts are.
    fn bodies(items: &[(usize, u64, usize)]) -> (String, String) {
        let mut request = String::new();
        let mut answer = String::from("{\"took\":7,\"errors\":true,\"items\":[");
        for (index, &(action, status, len)) in items.iter().enumerate() {
            let action = BulkAction::ALL[action];
            let (name, text) = (action.as_str(), "\\\"]}".repeat(len));
            let comma = if index == 0 { "" } else { "," };
            writeln!(request, "{{\"{name}\":{{\"_id\":\"{text}\"}}}}").unwrap();
            if action != BulkAction::Delete {
                writeln!(request, "{{\"items\":[{{\"delete\":\"{text}\"}}]}}").unwrap();
            }
            write!(
                answer,
                "{comma}{{\"{name}\":{{\"_id\":\"{text}\",\"error\":{{\"status\":1}},\"status\":{status}}}}}"
            )
            .unwrap();
        }
        answer.push_str("]}");
        (request, answer)
    }

    fn coded(coding: &str, text: &str) -> Vec<u8> {
        let level = Compression::fast();
        match coding {
            "gzip" => {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                encoder.write_all(text.as_bytes()).unwrap();
                encoder.finish().unwrap()
            }
            "deflate" => {
                let mut encoder = ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(text.as_bytes()).unwrap();
                encoder.finish().unwrap()
            }
            "zstd" => zstd::encode_all(text.as_bytes(), 1).unwrap(),
            _ => text.into(),
        }
    }

    fn streamed(side: Side, coding: &str, body: &[u8], pieces: &[usize]) -> Counted {
        let mut rest = body;
        let mut take = |len: usize| {
            let (piece, behind) = rest.split_at(len.min(rest.len()));
            rest = behind;
            piece
        };
        let mut sizes = pieces.iter().cycle();
        let first = take(*sizes.next().unwrap());
        let mut streamed = Streamed::begin(side, Some(coding.as_bytes()), first).unwrap();
        loop {
            let piece = take(*sizes.next().unwrap());
            if piece.is_empty() {
                break;
            }
            streamed.read(piece);
        }
        let mut counted = Counted::default();
        streamed.finish(Some(body.len() as u64), &mut counted);
        counted
    }

    proptest! {
        #[test]
        fn pieces_tell_what_the_whole_tells(
            items in prop::collection::vec((0..BulkAction::ALL.len(), 200..600_u64, 0..40_usize), 0..60),
            pieces in prop::collection::vec(1..900_usize, 1..8),
            coding in prop::sample::select(vec!["", "identity", "gzip", "deflate", "zstd"]),
        ) {
            let (request, answer) = bodies(&items);
            let expected = bulk::count_operations(request.as_bytes());
            prop_assert!(expected.is_some());
            let counted = streamed(Side::Request, coding, &coded(coding, &request), &pieces);
            prop_assert_eq!(counted.requested, expected);
            let mut tally = Tally::default();
            for &(action, status, _) in &items {
                tally.add(BulkAction::ALL[action], bulk::outcome_of(status), 1);
            }
            let counted = streamed(Side::Answer, coding, &coded(coding, &answer), &pieces);
            prop_assert_eq!(counted.items, Some((tally, true)));
        }

        #[test]
        fn a_cut_body_is_never_taken_for_a_whole_one(
            items in prop::collection::vec((0..BulkAction::ALL.len(), 200..600_u64, 0..40_usize), 1..40),
            cut in 1..200_usize,
            coding in prop::sample::select(vec!["", "gzip", "zstd"]),
        ) {
            let (request, answer) = bodies(&items);
            let whole = items.len() as u64;
            for (side, text) in [(Side::Request, request), (Side::Answer, answer)] {
                let body = coded(coding, &text);
                let kept = &body[..body.len().saturating_sub(cut).max(1)];
                let mut streamed = Streamed::begin(side, Some(coding.as_bytes()), kept).unwrap();
                streamed.lose();
                let mut counted = Counted::default();
                streamed.finish(Some(body.len() as u64), &mut counted);
                prop_assert_eq!(counted.requested, None);
                if let Some((tally, is_whole)) = counted.items {
                    prop_assert!(tally.total() <= whole);
                    prop_assert!(!is_whole || tally.total() == whole);
                }
            }
        }

        #[test]
        fn anything_is_survived(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20),
            coding in prop::sample::select(vec!["", "gzip", "deflate", "zstd"]),
            answer in any::<bool>(),
        ) {
            let side = if answer { Side::Answer } else { Side::Request };
            let mut streamed = Streamed::begin(side, Some(coding.as_bytes()), &pieces[0]).unwrap();
            for piece in &pieces[1..] {
                streamed.read(piece);
            }
            streamed.finish(None, &mut Counted::default());
        }
    }

    /// The limit of what is kept of a body may be this low.
    #[test]
    fn a_zlib_header_is_told_however_little_comes_first() {
        let (request, _) = bodies(&[(0, 200, 3)]);
        for first in 1..4 {
            let body = coded("deflate", &request);
            let counted = streamed(Side::Request, "deflate", &body, &[first]);
            assert!(counted.requested.is_some(), "{first} bytes first");
        }
    }

    #[test]
    fn a_text_without_end_is_given_up() {
        for (side, beginning) in [
            (Side::Request, "{\"index\":\""),
            (
                Side::Answer,
                "{\"took\":1,\"items\":[{\"index\":{\"_id\":\"",
            ),
        ] {
            let mut streamed = Streamed::begin(side, None, beginning.as_bytes()).unwrap();
            for _ in 0..1000 {
                streamed.read(&[b'x'; 1000]);
            }
            let kept = match &streamed.reader {
                Reader::Lines(lines) => lines.line.len(),
                Reader::Items(items) => items.text.len(),
            };
            assert!(kept <= 2 * MAX_TEXT_BYTES, "{kept}");
        }
    }
}
