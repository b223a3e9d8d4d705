//! A scanner of JSON that may end anywhere.
//!
//! It reads the members of objects that somebody asks for and skips the rest without keeping anything.
//! What it yields was read whole: a number counts only with the delimiter that follows it, so that the
//! captured `"took":12` of a `"took":123` is nothing rather than 12.

use memchr::memchr2;

use super::nesting;

/// A scalar, or the beginning of something larger that has been skipped or is still to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    String,
    Number,
    True,
    False,
    Null,
}

/// What ends a number or a literal.
const WORD_END: u8 = 1;
/// Whitespace.
const SPACE: u8 = 2;

/// What each byte is, for loops that look at one after the other.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'}' | b']' | b',' => WORD_END,
            b' ' | b'\t' | b'\n' | b'\r' => WORD_END | SPACE,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

const fn is(byte: u8, class: u8) -> bool {
    CLASSES[byte as usize] & class != 0
}

/// A position in a JSON text (RFC 8259). Every method gives `None` where the text ends early or is no
/// JSON; nothing more is to be read then.
#[derive(Clone, Debug)]
pub(super) struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    pub(super) const fn new(text: &'a [u8]) -> Self {
        Self { rest: text }
    }

    /// What comes next, without going past it.
    pub(super) fn peek(&mut self) -> Option<Kind> {
        self.skip_whitespace();
        Some(match self.rest.first()? {
            b'{' => Kind::Object,
            b'[' => Kind::Array,
            b'"' => Kind::String,
            b'-' | b'0'..=b'9' => Kind::Number,
            b't' => Kind::True,
            b'f' => Kind::False,
            b'n' => Kind::Null,
            _ => return None,
        })
    }

    /// Reads an object. `member` gets each key (raw: escapes not undone) with the scanner at its value,
    /// which it must read or [`skip`](Self::skip) whole.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>,
    ) -> Option<()> {
        self.expect(b'{')?;
        self.skip_whitespace();
        if self.take(b'}') {
            return Some(());
        }
        loop {
            self.skip_whitespace();
            let key = self.raw_string()?;
            self.skip_whitespace();
            self.expect(b':')?;
            self.skip_whitespace();
            member(self, key)?;
            self.skip_whitespace();
            if self.take(b'}') {
                return Some(());
            }
            self.expect(b',')?;
        }
    }

    /// Reads an array. `element` gets the scanner at each element, which it must read or
    /// [`skip`](Self::skip) whole.
    pub(super) fn array(&mut self, mut element: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.expect(b'[')?;
        self.skip_whitespace();
        if self.take(b']') {
            return Some(());
        }
        loop {
            self.skip_whitespace();
            element(self)?;
            self.skip_whitespace();
            if self.take(b']') {
                return Some(());
            }
            self.expect(b',')?;
        }
    }

    /// Enters the array that is the member `name` of the object that comes next.
    pub(super) fn enter_array(&mut self, name: &[u8]) -> Option<()> {
        let mut array = None;
        self.object(|value, key| {
            if key == name && value.peek()? == Kind::Array {
                array = Some(value.clone());
                return None;
            }
            value.skip()
        });
        *self = array?;
        self.expect(b'[')
    }

    /// Goes to the next element of an array that was entered; `false` behind the last one.
    pub(super) fn element(&mut self) -> Option<bool> {
        self.skip_whitespace();
        if self.take(b']') {
            return Some(false);
        }
        self.take(b',');
        self.skip_whitespace();
        (!self.rest.is_empty()).then_some(true)
    }

    /// Bytes that are left.
    pub(super) const fn len_bytes(&self) -> usize {
        self.rest.len()
    }

    /// A string's bytes between the quotes, escapes not undone.
    pub(super) fn raw_string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let mut len = 0;
        loop {
            len += end_of_plain(self.rest.get(len..)?)?;
            if self.rest[len] == b'"' {
                let (string, rest) = self.rest.split_at(len);
                self.rest = &rest[1..];
                return Some(string);
            }
            len += 2;
        }
    }

    /// A number's or literal's bytes, when a delimiter shows that they are all.
    pub(super) fn word(&mut self) -> Option<&'a [u8]> {
        let len = self.rest.iter().position(|byte| is(*byte, WORD_END))?;
        let (word, rest) = self.rest.split_at(len);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    /// Goes past a value of any kind. Brackets are counted, not matched in kind.
    pub(super) fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            Kind::String => self.raw_string().map(drop),
            Kind::Object | Kind::Array => self.skip_nested(),
            Kind::Number | Kind::True | Kind::False | Kind::Null => self.word().map(drop),
        }
    }

    fn skip_nested(&mut self) -> Option<()> {
        let len = nesting::len_bytes(self.rest)?;
        self.rest = &self.rest[len..];
        Some(())
    }

    fn skip_whitespace(&mut self) {
        if !self.rest.first().is_some_and(|byte| is(*byte, SPACE)) {
            return;
        }
        let mut bytes = self.rest.iter();
        let at = bytes
            .position(|byte| !is(*byte, SPACE))
            .unwrap_or(self.rest.len());
        self.rest = &self.rest[at..];
    }

    fn take(&mut self, byte: u8) -> bool {
        let taken = self.rest.first() == Some(&byte);
        if taken {
            self.rest = &self.rest[1..];
        }
        taken
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.take(byte).then_some(())
    }
}

/// Where the first quote or backslash is.
fn end_of_plain(text: &[u8]) -> Option<usize> {
    /// Most strings are short: calling for a vectorized search would cost more than they do.
    const SHORT_BYTES: usize = 16;
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\');
    let (beginning, rest) = text.split_at(text.len().min(SHORT_BYTES));
    beginning
        .iter()
        .position(ends)
        .or_else(|| memchr2(b'"', b'\\', rest).map(|at| at + SHORT_BYTES))
}
