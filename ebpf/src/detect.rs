//! What the first eight bytes of a run say.

/// How a run begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// A message of HTTP/1, request or response.
    Message,
    /// A TLS record: handshake, or application data of a session older than the agent.
    Tls,
    /// Anything else, or nothing readable.
    Other,
}

/// `word` with its first byte (in memory) in the most significant place, cut to `N` bytes.
const fn prefix<const N: usize>(word: u64) -> u64 {
    word >> (64 - 8 * N)
}

const fn text<const N: usize>(text: &[u8; N]) -> u64 {
    let mut word = 0;
    let mut index = 0;
    while index < N {
        word = word << 8 | text[index] as u64;
        index += 1;
    }
    word
}

/// Whether a response begins here, by the first bytes as loaded on a little-endian machine.
#[inline(always)]
pub const fn is_response(first_word: u64) -> bool {
    prefix::<5>(first_word.swap_bytes()) == text(b"HTTP/")
}

/// Whether `len` bytes are too few to tell what begins with them: they are part of a method's name,
/// or of a response's version.
#[inline(always)]
pub const fn is_undecided(first_word: u64, len: u32) -> bool {
    if len == 0 || len >= 8 {
        return false;
    }
    let unknown = 64 - 8 * len;
    let word = first_word.swap_bytes() >> unknown;
    word == text(b"HTTP/1. ") >> unknown
        || word == text(b"GET     ") >> unknown
        || word == text(b"POST    ") >> unknown
        || word == text(b"PUT     ") >> unknown
        || word == text(b"HEAD    ") >> unknown
        || word == text(b"DELETE  ") >> unknown
        || word == text(b"PATCH   ") >> unknown
        || word == text(b"OPTIONS ") >> unknown
        || word == text(b"CONNECT ") >> unknown
        || word == text(b"TRACE   ") >> unknown
}

/// Reads the first bytes as loaded on a little-endian machine.
#[inline(always)]
pub const fn beginning(first_word: u64) -> Beginning {
    let word = first_word.swap_bytes();
    if prefix::<7>(word) == text(b"HTTP/1.")
        || prefix::<4>(word) == text(b"GET ")
        || prefix::<5>(word) == text(b"POST ")
        || prefix::<4>(word) == text(b"PUT ")
        || prefix::<5>(word) == text(b"HEAD ")
        || prefix::<7>(word) == text(b"DELETE ")
        || prefix::<6>(word) == text(b"PATCH ")
        || prefix::<8>(word) == text(b"OPTIONS ")
        || prefix::<8>(word) == text(b"CONNECT ")
        || prefix::<6>(word) == text(b"TRACE ")
    {
        return Beginning::Message;
    }
    // Content type 20 to 23, version 3.0 to 3.4 (RFC 8446, section 5.1).
    let (content, major, minor) = (
        prefix::<1>(word),
        prefix::<2>(word) & 0xff,
        prefix::<3>(word) & 0xff,
    );
    if content >= 20 && content <= 23 && major == 3 && minor <= 4 {
        return Beginning::Tls;
    }
    Beginning::Other
}
