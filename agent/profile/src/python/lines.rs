//! From a place in a code object to a line: three formats.

/// How a code object tells its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineFormat {
    /// `co_lnotab`: pairs of a number of bytes and of lines (3.8, 3.9; `Objects/lnotab_notes.txt`).
    ByteDeltas,
    /// `co_linetable` of 3.10: pairs of a length in bytes and of lines (PEP 626).
    Ranges,
    /// `co_linetable` from 3.11 on (`Objects/locations.md`).
    Locations,
}

/// The line at byte `place` of the code. Before the first instruction, it is the first line; `None`
/// for code that has no line.
pub(super) fn line(format: LineFormat, table: &[u8], first_line: u32, place: i64) -> Option<u32> {
    let Ok(place) = u64::try_from(place) else {
        return Some(first_line);
    };
    let found = match format {
        LineFormat::ByteDeltas => Some(by_byte_deltas(table, i64::from(first_line), place)),
        LineFormat::Ranges => by_ranges(table, i64::from(first_line), place),
        LineFormat::Locations => by_locations(table, i64::from(first_line), place),
    };
    found
        .and_then(|line| u32::try_from(line).ok())
        .filter(|line| *line > 0)
}

fn by_byte_deltas(table: &[u8], mut line: i64, place: u64) -> i64 {
    let mut begin = 0;
    for [bytes, lines] in table.as_chunks::<2>().0 {
        begin += u64::from(*bytes);
        if begin > place {
            break;
        }
        line += i64::from(*lines as i8);
    }
    line
}

/// In place of a number of lines: there is none.
const NO_LINE: i8 = -128;

fn by_ranges(table: &[u8], mut line: i64, place: u64) -> Option<i64> {
    let mut end = 0;
    for [bytes, lines] in table.as_chunks::<2>().0 {
        end += u64::from(*bytes);
        let lines = *lines as i8;
        if lines != NO_LINE {
            line += i64::from(lines);
        }
        if place < end {
            return (lines != NO_LINE).then_some(line);
        }
    }
    None
}

/// Kinds of entries, in bits 3 to 6 of their first byte.
mod location {
    /// Up to this one: same line, columns in one more byte.
    pub(super) const LAST_SHORT: u8 = 9;
    /// From this one to the next but one: 0 to 2 lines further, columns in two bytes.
    pub(super) const FIRST_ONE_LINE: u8 = 10;
    pub(super) const LAST_ONE_LINE: u8 = 12;
    pub(super) const NO_COLUMNS: u8 = 13;
    pub(super) const LONG: u8 = 14;
}

fn by_locations(table: &[u8], mut line: i64, place: u64) -> Option<i64> {
    let mut bytes = table.iter().copied();
    let mut end = 0;
    while let Some(first) = bytes.next() {
        // Every first byte has the uppermost bit, and no other one has.
        if first & 0x80 == 0 {
            return None;
        }
        end += (u64::from(first & 7) + 1) * 2;
        let kind = first >> 3 & 15;
        let mut has_line = true;
        match kind {
            0..=location::LAST_SHORT => {
                bytes.next()?;
            }
            location::FIRST_ONE_LINE..=location::LAST_ONE_LINE => {
                line += i64::from(kind - location::FIRST_ONE_LINE);
                bytes.next()?;
                bytes.next()?;
            }
            location::NO_COLUMNS => line = line.checked_add(signed(&mut bytes)?)?,
            location::LONG => {
                line = line.checked_add(signed(&mut bytes)?)?;
                for _ in 0..3 {
                    unsigned(&mut bytes)?;
                }
            }
            _ => has_line = false,
        }
        if place < end {
            return has_line.then_some(line);
        }
    }
    None
}

/// Six bits a byte, the lowest first; bit 6 says that more follow.
fn unsigned(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..60).step_by(6) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 63) << shift;
        if byte & 64 == 0 {
            return Some(value);
        }
    }
    None
}

/// The lowest bit is the sign.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = unsigned(bytes)?;
    let magnitude = (value >> 1) as i64;
    Some(if value & 1 == 0 {
        magnitude
    } else {
        -magnitude
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // `def f(a):` on line 10, `x = a` on 11, `if x:` on 12, `g()` on 13, `return x` on 16, as each
    // version compiles it (`f.__code__.co_lnotab`, `.co_linetable`).

    #[test]
    fn byte_deltas_of_3_9() {
        let table = b"\x00\x01\x04\x01\x04\x01\x06\x03";
        let line = |place| line(LineFormat::ByteDeltas, table, 10, place);
        assert_eq!(
            [0, 2, 4, 8, 12, 14, 16].map(line),
            [11, 11, 12, 13, 13, 16, 16].map(Some)
        );
        assert_eq!(line(-1), Some(10));
    }

    #[test]
    fn ranges_of_3_10() {
        let table = b"\x04\x01\x04\x01\x06\x01\x04\x03\x02\x80";
        let line = |place| line(LineFormat::Ranges, table, 10, place);
        assert_eq!(
            [0, 2, 4, 8, 12, 14, 16].map(line),
            [11, 11, 12, 13, 13, 16, 16].map(Some)
        );
        assert_eq!((line(18), line(20), line(-2)), (None, None, Some(10)));
    }

    #[test]
    fn locations_of_3_11() {
        let table = b"\x80\x00\xd8\x05\x06\x80\x11\xd8\x04\x05\xf0\x00\x01\x02\x06\xdd\x02\x03\x81\x23\x84\x23\x80\x23\xf0\x06\x00\x09\x0a\x80\x18";
        let line = |place| line(LineFormat::Locations, table, 10, place);
        assert_eq!(
            [0, 2, 4, 6, 8, 10].map(line),
            [10, 11, 11, 12, 12, 13].map(Some)
        );
        assert_eq!([36, 38, 40].map(line), [13, 16, 16].map(Some));
        assert_eq!((line(42), line(-4)), (None, Some(10)));
        // Two units further without a line (kind 15), and one of three lines back without columns.
        let none = |place| super::line(LineFormat::Locations, b"\xf9\xe8\x07", 10, place);
        assert_eq!([0, 2, 4, 6].map(none), [None, None, Some(7), None]);
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(
            table in prop::collection::vec(any::<u8>(), 0..300),
            first: u32,
            place: i64,
        ) {
            for format in [LineFormat::ByteDeltas, LineFormat::Ranges, LineFormat::Locations] {
                let _ = line(format, &table, first, place);
            }
        }

        #[test]
        fn numbers_are_read_back(value in -(1_i64 << 40)..1 << 40) {
            let mut rest = value.unsigned_abs() << 1 | u64::from(value < 0);
            let mut bytes = Vec::new();
            loop {
                let more = rest > 63;
                bytes.push((rest & 63) as u8 | u8::from(more) << 6);
                rest >>= 6;
                if !more {
                    break;
                }
            }
            prop_assert_eq!(signed(&mut bytes.into_iter()), Some(value));
        }
    }
}
