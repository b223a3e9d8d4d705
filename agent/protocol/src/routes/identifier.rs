//! Which segments of a path identify one thing among many.

/// A segment longer than this names no part of an interface.
const WORD_BYTES: usize = 48;
/// From so many hexadecimal digits on, a digit among them makes an identifier: `3f2a9c1b`.
const HEX_BYTES: usize = 8;
/// So many words with hyphens between them are a title: `how-to-tell-a-slug-from-a-word`. Of some
/// 800 segments of public APIs, the longest has five.
const TITLE_WORDS: usize = 6;
/// So many decimal digits in a row make one, whatever stands beside them: `INV-10023`.
const DIGITS: usize = 4;

/// Whether a segment looks like an identifier rather than a word.
///
/// Words stay, also with a number in them: `health`, `v1`, `oauth2`, `get_complete_tree`,
/// `apple-touch-icon.png`. Identifiers are numbers, UUIDs, ULIDs, hexadecimal and random strings,
/// dates, locales with a region, e-mail addresses, titles, percent-encoded and overlong text, and
/// names that hold one of these: `main.3f2a9c1b.js`.
pub(super) fn is_identifier(segment: &str) -> bool {
    segment.len() > WORD_BYTES
        || segment.contains(['@', '%', '{', '}', '*'])
        || is_number(segment)
        || is_date(segment)
        || is_locale(segment)
        || is_title(segment)
        || has_long_number(segment)
        || segment
            .split(['.', '-', '_', '~', ':', ',', ';', '=', '+'])
            .any(|piece| is_hex(piece) || is_random(piece))
}

fn is_number(segment: &str) -> bool {
    let digits = segment.strip_prefix('-').unwrap_or(segment);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A year and a month at least; ISO 8601 with separators.
fn is_date(segment: &str) -> bool {
    let mut parts = segment.splitn(3, '-').map(|part| part.as_bytes());
    let (Some(year), Some(month)) = (parts.next(), parts.next()) else {
        return false;
    };
    let numeric = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    year.len() == 4 && numeric(year) && month.len() == 2 && numeric(month)
}

/// A language and a region (RFC 5646), as in `en-US`, `pt_BR` and `es-419`. A language alone may be
/// a word.
fn is_locale(segment: &str) -> bool {
    let Some((language, region)) = segment.split_once(['-', '_']) else {
        return false;
    };
    let region = region.as_bytes();
    language.len() == 2
        && language.bytes().all(|byte| byte.is_ascii_lowercase())
        && (region.len() == 2 && region.iter().all(u8::is_ascii_uppercase)
            || region.len() == 3 && region.iter().all(u8::is_ascii_digit))
}

fn is_title(segment: &str) -> bool {
    let words = segment.split('-');
    words.clone().all(|word| !word.is_empty()) && words.count() >= TITLE_WORDS
}

/// Enough digits in a row, among other things.
fn has_long_number(segment: &str) -> bool {
    segment
        .split(|character: char| !character.is_ascii_digit())
        .any(|run| run.len() >= DIGITS)
}

fn is_hex(piece: &str) -> bool {
    piece.len() >= HEX_BYTES
        && piece.bytes().all(|byte| byte.is_ascii_hexdigit())
        && (piece.bytes().any(|byte| byte.is_ascii_digit()) || piece.len() >= 2 * HEX_BYTES)
}

/// Whether digits and both cases alternate as they don't in words: `dQw4w9WgXcQ`, ULIDs, base64.
/// Without a digit nothing tells random letters from `camelCase`.
fn is_random(piece: &str) -> bool {
    const RANDOM_BYTES: usize = 8;
    const CHANGES: usize = 3;
    let class = |byte: &u8| match byte {
        b'0'..=b'9' => 0,
        b'A'..=b'Z' => 1,
        b'a'..=b'z' => 2,
        _ => 3,
    };
    let bytes = piece.as_bytes();
    let changes = bytes
        .windows(2)
        .filter(|pair| class(&pair[0]) != class(&pair[1]))
        .count();
    let has_digit = bytes.iter().any(u8::is_ascii_digit);
    bytes.len() >= RANDOM_BYTES && has_digit && changes >= CHANGES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay() {
        for word in [
            "health",
            "healthz",
            "v1",
            "v2beta1",
            "api",
            "users",
            "get_complete_tree",
            "get_document_with_context",
            "getCompleteTree",
            "XMLHttpRequest",
            "oauth2",
            "sha256",
            "base64",
            "ipv4",
            "s3",
            "deadbeef",
            "facade",
            "_search",
            "_cat",
            ".well-known",
            "openid-configuration",
            "favicon.ico",
            "apple-touch-icon.png",
            "robots.txt",
            "1.0",
            "step-12",
            "jquery-3.6.min.js",
            "größe",
            "wp-login.php",
            "AddToCart",
            "Greeter",
            "SayHello",
            "grpc.health.v1.Health",
            "x86_64",
            "de",
            "ip-ab",
            "fork-pr-workflows-private-repos",
            "get_document_with_context_and_siblings",
        ] {
            assert!(!is_identifier(word), "{word}");
        }
    }

    #[test]
    fn identifiers_go() {
        for identifier in [
            "1",
            "-7",
            "1234567890",
            "550e8400-e29b-41d4-a716-446655440000",
            "{550e8400-e29b-41d4-a716-446655440000}",
            "3f2a9c1b",
            "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709",
            "2024-02-29",
            "2024-02",
            "2024-02-29T10:00:00Z",
            "20240229",
            "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "dQw4w9WgXcQ",
            "a1b2c3d4",
            "en-US",
            "pt_BR",
            "es-419",
            "how-to-tell-a-title-apart",
            "INV-10023",
            "order_2024001",
            "user12345",
            "someone@example.org",
            "hello%20world",
            "main.3f2a9c1b.js",
            "app-5d41402abc4b2a76.css",
            "eyJhbGciOiJIUzI1NiJ9.e30.abc",
            "cus_NffrFeUfNV2Hib",
            "a-title-of-an-article-that-goes-on-for-longer-than-words-do",
        ] {
            assert!(is_identifier(identifier), "{identifier}");
        }
    }
}
