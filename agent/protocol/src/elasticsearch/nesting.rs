//! Where an object or array ends, eight bytes at a time.
//!
//! Most of an answer is skipped, so that what skipping costs is what an answer costs.

/// 1 in each byte.
const ONES: u64 = u64::from_ne_bytes([1; 8]);
/// The highest bit of each byte: what is told of a byte is told there.
const HIGH: u64 = ONES << 7;
/// What `{` and `[`, `}` and `]` differ in.
const BRACE: u64 = ONES * (b'{' ^ b'[') as u64;

/// How far reading has come.
#[derive(Debug, Default)]
struct State {
    depth: u64,
    is_in_string: bool,
    /// The byte before was a backslash in a string.
    is_escaped: bool,
}

/// Bytes of the object or array at the beginning of `text`; `None` where it does not end. Brackets are
/// counted, not matched in kind, and not looked for in strings.
pub(super) fn len_bytes(text: &[u8]) -> Option<usize> {
    let mut state = State::default();
    let (words, rest) = text.as_chunks::<8>();
    for (number, bytes) in words.iter().enumerate() {
        if let Some(end) = state.read_word(*bytes) {
            return Some(number * 8 + end);
        }
    }
    let end = state.read(rest)?;
    Some(words.len() * 8 + end)
}

impl State {
    /// The position behind the last bracket, if it is in there.
    fn read_word(&mut self, bytes: [u8; 8]) -> Option<usize> {
        let word = u64::from_le_bytes(bytes);
        if self.is_escaped || equal(word, b'\\') != 0 {
            return self.read(&bytes);
        }
        // Each bit becomes the parity of the quotes up to it: a string from its first quote on.
        let mut string = equal(word, b'"');
        string ^= string << 8;
        string ^= string << 16;
        string ^= string << 32;
        if self.is_in_string {
            string = !string;
        }
        self.is_in_string = string >> 63 == 1;
        let folded = word & !BRACE;
        let begin = equal(folded, b'[') & !string;
        let end = equal(folded, b']') & !string;
        let mut brackets = begin | end;
        if brackets == 0 {
            return None;
        }
        let ends = count(end);
        if ends < self.depth {
            self.depth = self.depth + count(begin) - ends;
            return None;
        }
        while brackets != 0 {
            let at = brackets.trailing_zeros();
            if begin >> at & 1 == 1 {
                self.depth = self.depth.saturating_add(1);
            } else {
                self.depth = self.depth.saturating_sub(1);
            }
            if self.depth == 0 {
                return Some(at as usize / 8 + 1);
            }
            brackets &= brackets - 1;
        }
        None
    }

    /// The same, a byte at a time.
    fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            if std::mem::take(&mut self.is_escaped) {
                continue;
            }
            match byte {
                b'"' => self.is_in_string = !self.is_in_string,
                b'\\' => self.is_escaped = self.is_in_string,
                _ if self.is_in_string => {}
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// How many bytes have their highest bit, of a word that has no other bits.
const fn count(word: u64) -> u64 {
    // Their sum is that of the products that meet in the highest byte.
    (word >> 7).wrapping_mul(ONES) >> 56
}

/// Which bytes of `word` are `byte`.
const fn equal(word: u64, byte: u8) -> u64 {
    let different = word ^ (ONES * byte as u64);
    // No carry leaves its byte: the highest bit is out of the sum.
    let low = (different & !HIGH) + !HIGH;
    !(low | different) & HIGH
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_is_found_wherever_it_stands() {
        for (text, len) in [
            ("{}", Some(2)),
            ("[[],[]],", Some(7)),
            (r#"{"a":"}]"}, {"#, Some(10)),
            (r#"{"a\"}":"\\"}}"#, Some(13)),
            (r#"{"a":"\\\"}", "b": [1,{}]} "#, Some(26)),
            (r#"{"a":[1,2,3"#, None),
            (r#"{"never ends}}}}}}}}}}}}}}}}"#, None),
            ("", None),
        ] {
            assert_eq!(len_bytes(text.as_bytes()), len, "{text}");
        }
    }

    proptest! {
        /// Of bytes that matter, and neighbours of theirs in value.
        #[test]
        fn words_tell_what_bytes_tell(tail in "[\\[\\]{}\"\\\\a;Z\\|^_ü ]{0,64}") {
            for text in [format!("{{{tail}"), format!("[{tail}]")] {
                prop_assert_eq!(len_bytes(text.as_bytes()), State::default().read(text.as_bytes()));
            }
        }
    }
}
