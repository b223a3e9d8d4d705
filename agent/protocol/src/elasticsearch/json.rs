//! A scanner of JSON that may end anywhere.
//!
//! It reads the members of objects that somebody asks for and skips the rest without keeping anything.
//! What it yields was read whole: a number counts only with the delimiter that follows it, so that the
//! captured `"took":12` of a `"took":123` is nothing rather than 12.

use memchr::memchr2;

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

    /// A string's bytes between the quotes, escapes not undone.
    pub(super) fn raw_string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let mut len = 0;
        loop {
            len += memchr2(b'"', b'\\', self.rest.get(len..)?)?;
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
        let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
        let len = self.rest.iter().position(ends)?;
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
        let mut depth = 0_usize;
        loop {
            let structural = |byte: &u8| matches!(byte, b'{' | b'[' | b'}' | b']' | b'"');
            let at = self.rest.iter().position(structural)?;
            self.rest = &self.rest[at..];
            match self.rest[0] {
                b'"' => {
                    self.raw_string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                _ => depth -= 1,
            }
            self.rest = &self.rest[1..];
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn skip_whitespace(&mut self) {
        let is_value = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        let at = self
            .rest
            .iter()
            .position(is_value)
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
