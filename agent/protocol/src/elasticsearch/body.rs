//! From captured bytes to text: media types and content codings.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use super::coding::has_zlib_header;
use super::zstd;

/// What a body is decoded to at most: one that is compressed well must not cost much memory or time.
pub(super) const MAX_DECODED_BYTES: usize = 256 * 1024;

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

/// A frame that was cut gives little: what is decoded stays within its window until its end.
fn read_zstd(body: &[u8]) -> (Vec<u8>, bool) {
    let mut decoder = zstd::Decoder::new();
    let mut text = Vec::new();
    let intact = decoder.decode(body, &mut text, MAX_DECODED_BYTES).is_ok();
    text.truncate(MAX_DECODED_BYTES);
    (text, intact && decoder.has_ended())
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
