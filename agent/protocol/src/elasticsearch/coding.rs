//! Content codings that are undone piece by piece.

use std::io::Write as _;
use std::mem;

use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use super::zstd;

/// Decoded at a time: to a thousand times as much at most by gzip and deflate.
pub(super) const PIECE_BYTES: usize = 1024;

/// What a piece is decoded to at most by zstd, which may keep 8 MiB of what comes out until a frame's end.
const MAX_PIECE_BYTES: usize = 16 * 1024 * 1024;

const ZLIB_HEADER_BYTES: usize = 2;

/// A content coding that is undone on the way (RFC 9110, section 8.4.1).
#[derive(Debug)]
pub(super) enum Coding {
    Identity,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    /// `deflate`, of which too little was read to tell whether it has a zlib header.
    Undecided(Vec<u8>),
    Zlib(Box<ZlibDecoder<Vec<u8>>>),
    Deflate(Box<DeflateDecoder<Vec<u8>>>),
    Zstd(Box<zstd::Decoder>),
}

impl Coding {
    /// `None` for one that is not undone piece by piece.
    pub(super) fn new(content_encoding: Option<&[u8]>) -> Option<Self> {
        let coding = content_encoding.unwrap_or_default().trim_ascii();
        let is = |name: &str| coding.eq_ignore_ascii_case(name.as_bytes());
        Some(if coding.is_empty() || is("identity") {
            Self::Identity
        } else if is("gzip") || is("x-gzip") {
            Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))
        } else if is("deflate") {
            Self::Undecided(Vec::new())
        } else if is("zstd") {
            Self::Zstd(Box::new(zstd::Decoder::new()))
        } else {
            return None;
        })
    }

    /// The next bytes decoded, and whether the coding is intact still.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        match self {
            Self::Identity => (bytes.to_vec(), true),
            Self::Undecided(beginning) => {
                beginning.extend_from_slice(bytes);
                if beginning.len() < ZLIB_HEADER_BYTES {
                    return (Vec::new(), true);
                }
                let beginning = mem::take(beginning);
                *self = if has_zlib_header(&beginning) {
                    Self::Zlib(Box::new(ZlibDecoder::new(Vec::new())))
                } else {
                    Self::Deflate(Box::new(DeflateDecoder::new(Vec::new())))
                };
                self.decode(&beginning)
            }
            Self::Gzip(decoder) => {
                let intact = decoder.write_all(bytes).is_ok();
                (mem::take(decoder.get_mut()), intact)
            }
            Self::Zlib(decoder) => {
                let intact = decoder.write_all(bytes).is_ok();
                (mem::take(decoder.get_mut()), intact)
            }
            Self::Deflate(decoder) => {
                let intact = decoder.write_all(bytes).is_ok();
                (mem::take(decoder.get_mut()), intact)
            }
            Self::Zstd(decoder) => {
                let mut text = Vec::new();
                let intact = decoder.decode(bytes, &mut text, MAX_PIECE_BYTES).is_ok();
                (text, intact)
            }
        }
    }

    /// The last bytes decoded, and whether the coding's own end was reached.
    pub(super) fn finish(&mut self) -> (Vec<u8>, bool) {
        match self {
            Self::Identity => (Vec::new(), true),
            Self::Undecided(_) => (Vec::new(), false),
            Self::Zstd(decoder) => (Vec::new(), decoder.has_ended()),
            Self::Gzip(decoder) => {
                let ended = decoder.try_finish().is_ok();
                (mem::take(decoder.get_mut()), ended)
            }
            Self::Zlib(decoder) => {
                let ended = decoder.try_finish().is_ok();
                (mem::take(decoder.get_mut()), ended)
            }
            Self::Deflate(decoder) => {
                let ended = decoder.try_finish().is_ok();
                (mem::take(decoder.get_mut()), ended)
            }
        }
    }
}

/// RFC 1950 section 2.2: method 8, and the two bytes a multiple of 31.
pub(super) fn has_zlib_header(body: &[u8]) -> bool {
    matches!(body, [cmf, flg, ..]
        if cmf & 0x0f == 8 && (u16::from(*cmf) << 8 | u16::from(*flg)).is_multiple_of(31))
}
