//! Any bytes as a chunked body: decoded in one piece or cut anywhere, framing, content and the end
//! are the same, and nothing behind the end is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The decoder's own module, which `protocol` keeps to itself.
#[expect(dead_code, reason = "the agent uses more of it than this does")]
#[path = "../../src/http1/chunked.rs"]
mod chunked;

use chunked::{Chunked, Found};

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (cuts, body) = input;
    let whole = decode([body].into_iter());
    let mut rest = body;
    let pieces = cuts.iter().map(|cut| {
        let (piece, behind) = rest.split_at(usize::from(*cut).min(rest.len()));
        rest = behind;
        piece
    });
    let mut pieces: Vec<_> = pieces.collect();
    pieces.push(rest);
    assert_eq!(decode(pieces.into_iter()), whole);
    assert!(whole.consumed <= body.len());
    // Behind the end of a body that ends as it should stands nothing that matters.
    if whole.is_done {
        assert_eq!(decode([&body[..whole.consumed]].into_iter()), whole);
    }
    let _ = (chunked::ends_body(body), chunked::ends_line(body));
});

#[derive(Debug, Default, PartialEq)]
struct Decoded {
    content: Vec<u8>,
    consumed: usize,
    is_done: bool,
    is_invalid: bool,
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut decoded) = (Chunked::new(), Decoded::default());
    for mut piece in pieces {
        while !piece.is_empty() && !decoder.is_done() && !decoded.is_invalid {
            let taken = match decoder.decode(piece) {
                Found::Framing(len) => len,
                Found::Content(len) => {
                    decoded.content.extend(&piece[..len]);
                    len
                }
                Found::Invalid => {
                    decoded.is_invalid = true;
                    break;
                }
            };
            assert!(taken > 0, "no way on");
            decoded.consumed += taken;
            piece = &piece[taken..];
        }
    }
    if decoded.is_invalid {
        // How far it came before depends on where the pieces ended.
        decoded.consumed = 0;
    }
    decoded.is_done = decoder.is_done();
    decoded
}
