//! From captured bytes to text: media types and content codings.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::StreamingDecoder;

/// What a body is decoded to at most: one that is compressed well must not cost much memory or time.
pub(super) const MAX_DECODED_BYTES: usize = 256 * 1024;

/// Largest window that a zstd frame may ask memory for (RFC 9659 allows HTTP 8 MiB).
const MAX_ZSTD_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// The beginning of a body with its content coding undone.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    /// Whether `bytes` is all of it.
    pub(super) complete: bool,
}

/// Whether a `Content-Type` promises JSON or lines of it. CBOR, SMILE and YAML, which the servers
/// speak too (`application/vnd.elasticsearch+cbor`), are none.
pub(super) fn is_json(content_type: Option<&[u8]>) -> bool {
    let Some(value) = content_type else {
        return false;
    };
    let end = value
        .iter()
        .position(|byte| *byte == b';')
        .unwrap_or(value.len());
    let media_type = value[..end].trim_ascii();
    let ends_with = |suffix: &[u8]| {
        let at = media_type.len().checked_sub(suffix.len());
        at.is_some_and(|at| media_type[at..].eq_ignore_ascii_case(suffix))
    };
    [&b"/json"[..], b"+json", b"/x-ndjson", b"+x-ndjson"]
        .into_iter()
        .any(ends_with)
}

/// Undoes a `Content-Encoding` (RFC 9110 section 8.4). What can be decoded of a cut or broken body is
/// given, as incomplete. `None` for a coding that isn't known here.
pub(super) fn decoded<'a>(
    content_encoding: Option<&[u8]>,
    body: &'a [u8],
    complete: bool,
) -> Option<Text<'a>> {
    let coding = content_encoding.unwrap_or_default().trim_ascii();
    if coding.is_empty() || coding.eq_ignore_ascii_case(b"identity") {
        let bytes = &body[..body.len().min(MAX_DECODED_BYTES)];
        let complete = complete && bytes.len() == body.len();
        return Some(Text {
            bytes: Cow::Borrowed(bytes),
            complete,
        });
    }
    let (bytes, ended) =
        if coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip") {
            read_bounded(MultiGzDecoder::new(body))
        } else if coding.eq_ignore_ascii_case(b"zstd") {
            read_zstd(body)
        } else if !coding.eq_ignore_ascii_case(b"deflate") {
            return None;
        } else if has_zlib_header(body) {
            read_bounded(ZlibDecoder::new(body))
        } else {
            // Some senders leave out the zlib wrapper (RFC 9110 section 8.4.1.2, note).
            read_bounded(DeflateDecoder::new(body))
        };
    Some(Text {
        bytes: Cow::Owned(bytes),
        complete: complete && ended,
    })
}

pub(super) const ZLIB_HEADER_BYTES: usize = 2;

/// RFC 1950 section 2.2: method 8, and the two bytes a multiple of 31.
pub(super) fn has_zlib_header(body: &[u8]) -> bool {
    matches!(body, [cmf, flg, ..]
        if cmf & 0x0f == 8 && (u16::from(*cmf) << 8 | u16::from(*flg)).is_multiple_of(31))
}

/// A frame that was cut gives nothing: its content comes in blocks of up to 128 KiB.
fn read_zstd(body: &[u8]) -> (Vec<u8>, bool) {
    let is_bounded = zstd_window_bytes(body).is_some_and(|bytes| bytes <= MAX_ZSTD_WINDOW_BYTES);
    let decoder = is_bounded.then(|| StreamingDecoder::new(body));
    match decoder {
        Some(Ok(decoder)) => read_bounded(decoder),
        _ => (Vec::new(), false),
    }
}

/// What the first frame's header asks memory for: RFC 8878, section 3.1.1.1.
fn zstd_window_bytes(frame: &[u8]) -> Option<u64> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let (descriptor, rest) = frame.get(4..)?.split_first()?;
    if descriptor & SINGLE_SEGMENT == 0 {
        let window = *rest.first()?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    let dictionary_id_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = rest.get(dictionary_id_bytes..)?;
    let size = size.get(..1 << (descriptor >> 6))?;
    let mut bytes = [0; 8];
    bytes[..size.len()].copy_from_slice(size);
    Some(u64::from_le_bytes(bytes))
}

/// Reads up to the bound; the second value tells whether the coding's own end was reached.
fn read_bounded(mut decoder: impl Read) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() < MAX_DECODED_BYTES {
        let room = buffer.len().min(MAX_DECODED_BYTES - bytes.len());
        match decoder.read(&mut buffer[..room]) {
            Ok(0) => return (bytes, true),
            Ok(len) => bytes.extend_from_slice(&buffer[..len]),
            Err(_) => return (bytes, false),
        }
    }
    (bytes, false)
}
