//! Perf maps: functions that JIT compilers list as `START SIZE NAME`, numbers in hexadecimal
//! (Linux, `tools/perf/Documentation/jit-interface.txt`).

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use profile::SymbolizedFrame;

use super::image::PerfMapFile;
use super::names::Functions;

/// Most bytes that are read of one perf map.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Most bytes of one line; longer ones are cut.
const MAX_LINE_BYTES: u64 = 4096;

/// Functions at `addresses`, which are sorted. An address that the list does not hold, or that got
/// another name while the profile was taken, has none: code may have moved in between, and which
/// of the two was sampled cannot be told.
#[must_use]
pub fn functions(perf_map: &PerfMapFile, addresses: &[u64]) -> Vec<Functions> {
    let mut file = &perf_map.file;
    let names = match file.seek(SeekFrom::Start(0)) {
        Ok(_) => lookup(
            BufReader::new(file.take(MAX_BYTES)),
            perf_map.len_when_found,
            addresses,
        ),
        Err(_) => HashMap::new(),
    };
    let function = |name: &Arc<str>| SymbolizedFrame {
        name: Arc::clone(name),
        file: None,
        line: None,
    };
    addresses
        .iter()
        .map(|address| names.get(address).map(function).into_iter().collect())
        .collect()
}

/// Name of each address that has one.
fn lookup(
    mut list: impl BufRead,
    len_when_found: u64,
    addresses: &[u64],
) -> HashMap<u64, Arc<str>> {
    let mut names: HashMap<u64, Option<Arc<str>>> = HashMap::new();
    let mut offset = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        match list
            .by_ref()
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => break,
            Ok(read) => offset += read as u64,
        }
        // A line that is not ended yet is being written.
        let Some((start, size, name)) = line.strip_suffix(b"\n").and_then(parse_line) else {
            continue;
        };
        let first = addresses.partition_point(|address| *address < start);
        let last = addresses.partition_point(|address| *address < start.saturating_add(size));
        if first >= last {
            continue;
        }
        let name: Arc<str> = name.into();
        for address in &addresses[first..last] {
            let known = names
                .entry(*address)
                .or_insert_with(|| Some(Arc::clone(&name)));
            let replaced = known.as_ref() != Some(&name);
            if replaced {
                let written_before = offset <= len_when_found;
                *known = written_before.then(|| Arc::clone(&name));
            }
        }
    }
    names
        .into_iter()
        .filter_map(|(address, name)| Some((address, name?)))
        .collect()
}

/// `START SIZE NAME`; the name may hold spaces.
fn parse_line(line: &[u8]) -> Option<(u64, u64, &str)> {
    let mut fields = std::str::from_utf8(line).ok()?.splitn(3, ' ');
    let start = parse_hex(fields.next()?)?;
    let size = parse_hex(fields.next()?)?;
    let name = fields.next()?.trim();
    (!name.is_empty()).then_some((start, size, name))
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(list: &str, len_when_found: usize, addresses: &[u64]) -> Vec<(u64, String)> {
        let found = lookup(list.as_bytes(), len_when_found as u64, addresses);
        let mut names: Vec<_> = found
            .into_iter()
            .map(|(a, name)| (a, name.to_string()))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_address_has_the_name_of_its_range() {
        let list = "1000 10 f one\n0x2000 20 g\nnonsense\n3000 10 h";
        assert_eq!(
            names(
                list,
                list.len(),
                &[0xfff, 0x1000, 0x100f, 0x1010, 0x2010, 0x3001]
            ),
            [
                (0x1000, "f one".into()),
                (0x100f, "f one".into()),
                (0x2010, "g".into())
            ]
        );
    }

    #[test]
    fn code_that_was_replaced_before_the_profile_has_its_last_name() {
        let list = "1000 10 old\n1000 10 new\n";
        assert_eq!(names(list, list.len(), &[0x1001]), [(0x1001, "new".into())]);
    }

    #[test]
    fn code_that_was_replaced_during_the_profile_has_no_name() {
        let list = "1000 10 old\n1000 10 new\n";
        assert_eq!(names(list, 12, &[0x1001]), []);
        // Written again under the same name, it is still itself.
        let list = "1000 10 same\n1000 10 same\n";
        assert_eq!(names(list, 13, &[0x1001]), [(0x1001, "same".into())]);
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = lookup(text.as_slice(), 100, &[0, 1, u64::MAX]);
        }
    }
}
