//! A profile as gzipped pprof protobuf (`proto/profile.proto` of github.com/google/pprof).

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use pprof::protos::{self, Message};
use profile::{Frame, Kind, Mapping, Profile, Sample, SymbolizedFrame};

/// Encodes `profile`: what `go tool pprof`, Pyroscope, Parca and speedscope open.
///
/// # Errors
/// None that compressing into memory could give.
pub fn encode(profile: &Profile) -> io::Result<Vec<u8>> {
    let message = Encoder::default().encode(profile);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&message.encode_to_vec())?;
    gzip.finish()
}

/// Strings and functions are written once and referred to by number.
struct Encoder {
    strings: Vec<String>,
    by_string: HashMap<String, i64>,
    functions: Vec<protos::Function>,
    by_function: HashMap<(i64, i64), u64>,
}

impl Default for Encoder {
    fn default() -> Self {
        // String 0 is the empty one.
        Self {
            strings: vec![String::new()],
            by_string: HashMap::from([(String::new(), 0)]),
            functions: Vec::new(),
            by_function: HashMap::new(),
        }
    }
}

impl Encoder {
    fn encode(mut self, profile: &Profile) -> protos::Profile {
        let measured = match profile.kind {
            Kind::Cpu => "cpu",
            Kind::OffCpu => "off_cpu",
        };
        let mut sample_type = vec![self.value_type(measured, "nanoseconds")];
        if profile.kind == Kind::Cpu {
            sample_type.insert(0, self.value_type("samples", "count"));
        }
        let mapping = self.mappings(profile);
        let location = (1..)
            .zip(&profile.frames)
            .map(|(id, frame)| self.location(id, frame))
            .collect();
        let sample = profile
            .samples
            .iter()
            .map(|sample| self.sample(sample, profile))
            .collect();
        let comment = self.comments(profile);
        protos::Profile {
            sample_type,
            sample,
            mapping,
            location,
            time_nanos: nanos(
                profile
                    .started
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default(),
            ),
            duration_nanos: nanos(profile.duration),
            period_type: Some(self.value_type(measured, "nanoseconds")),
            period: signed(profile.period_ns),
            comment,
            default_sample_type: self.string(measured),
            drop_frames: 0,
            keep_frames: 0,
            function: self.functions,
            string_table: self.strings,
        }
    }

    fn mappings(&mut self, profile: &Profile) -> Vec<protos::Mapping> {
        let mut known = vec![Known::default(); profile.mappings.len()];
        for frame in &profile.frames {
            if let Some(known) = frame.mapping.and_then(|mapping| known.get_mut(mapping)) {
                known.note(frame);
            }
        }
        let mappings = (1..).zip(profile.mappings.iter().zip(known));
        mappings
            .map(|(id, (mapping, known))| self.mapping(id, mapping, known))
            .collect()
    }

    fn mapping(&mut self, id: u64, mapping: &Mapping, known: Known) -> protos::Mapping {
        protos::Mapping {
            id,
            memory_start: mapping.start,
            memory_limit: mapping.end,
            file_offset: mapping.file_offset,
            filename: self.string(&mapping.path),
            build_id: mapping
                .build_id
                .as_ref()
                .map_or(0, |id| self.string(&id.to_string())),
            has_functions: known.functions,
            has_filenames: known.files,
            has_line_numbers: known.lines,
            has_inline_frames: known.inlined,
        }
    }

    fn location(&mut self, id: u64, frame: &Frame) -> protos::Location {
        let is_native = !frame.is_interpreted();
        let line = frame.functions.iter().map(|function| protos::Line {
            function_id: self.function(function, is_native),
            line: function.line.map_or(0, i64::from),
        });
        protos::Location {
            id,
            // 0 stands for none.
            mapping_id: frame.mapping.map_or(0, |mapping| mapping as u64 + 1),
            address: frame.address,
            line: line.collect(),
            is_folded: false,
        }
    }

    fn function(&mut self, function: &SymbolizedFrame, is_native: bool) -> u64 {
        let name = self.string(&function.name);
        let filename = function.file.as_ref().map_or(0, |file| self.string(file));
        *self.by_function.entry((name, filename)).or_insert_with(|| {
            let id = self.functions.len() as u64 + 1;
            self.functions.push(protos::Function {
                id,
                name,
                // Readers demangle a name that is also the system's: of `<module>` that would
                // leave nothing.
                system_name: if is_native { name } else { 0 },
                filename,
                start_line: 0,
            });
            id
        })
    }

    fn sample(&mut self, sample: &Sample, profile: &Profile) -> protos::Sample {
        let ns = signed(sample.count.saturating_mul(profile.period_ns));
        protos::Sample {
            location_id: sample
                .frames
                .iter()
                .map(|frame| *frame as u64 + 1)
                .collect(),
            value: match profile.kind {
                Kind::Cpu => vec![signed(sample.count), ns],
                Kind::OffCpu => vec![ns],
            },
            label: self.labels(sample),
        }
    }

    fn labels(&mut self, sample: &Sample) -> Vec<protos::Label> {
        let mut labels = vec![
            self.number("pid", sample.pid),
            self.number("tid", sample.tid),
            self.text("thread", &sample.thread),
            self.text("service", &sample.service),
            self.text("unwind", sample.unwind.label()),
        ];
        if let Some(request) = &sample.work.request {
            labels.push(self.text("http_method", request.method));
            labels.push(self.text("http_route", &request.route));
        }
        if let Some(operation) = sample.work.operation {
            labels.push(self.text("db_operation", operation));
        }
        labels
    }

    /// What a reader of the file should know and the format has no field for.
    fn comments(&mut self, profile: &Profile) -> Vec<i64> {
        let mut comments = vec![concat!("telltale ", env!("CARGO_PKG_VERSION")).to_owned()];
        comments.extend(profile.lost());
        comments
            .iter()
            .map(|comment| self.string(comment))
            .collect()
    }

    fn number(&mut self, key: &str, value: u32) -> protos::Label {
        protos::Label {
            key: self.string(key),
            num: i64::from(value),
            ..protos::Label::default()
        }
    }

    fn text(&mut self, key: &str, value: &str) -> protos::Label {
        protos::Label {
            key: self.string(key),
            str: self.string(value),
            ..protos::Label::default()
        }
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> protos::ValueType {
        protos::ValueType {
            ty: self.string(kind),
            unit: self.string(unit),
        }
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.by_string.get(text) {
            return *index;
        }
        let index = self.strings.len() as i64;
        self.strings.push(text.to_owned());
        self.by_string.insert(text.to_owned(), index);
        index
    }
}

/// What the frames of a mapping tell. A reader leaves a file alone that is known already.
#[derive(Clone, Copy, Default)]
struct Known {
    functions: bool,
    files: bool,
    lines: bool,
    inlined: bool,
}

impl Known {
    fn note(&mut self, frame: &Frame) {
        self.functions |= !frame.functions.is_empty();
        self.files |= frame
            .functions
            .iter()
            .any(|function| function.file.is_some());
        self.lines |= frame
            .functions
            .iter()
            .any(|function| function.line.is_some());
        self.inlined |= frame.functions.len() > 1;
    }
}

/// The format has signed numbers alone.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use profile::{Request, Work};

    use super::*;
    use crate::sink::profile_fixture::profile;

    fn decoded() -> protos::Profile {
        decoded_of(&profile())
    }

    fn decoded_of(profile: &Profile) -> protos::Profile {
        let bytes = encode(profile).unwrap();
        let mut message = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice())
            .read_to_end(&mut message)
            .unwrap();
        protos::Profile::decode(message.as_slice()).unwrap()
    }

    #[test]
    fn values_and_times_are_those_of_the_profile() {
        let decoded = decoded();
        let text = |index: i64| decoded.string_table[usize::try_from(index).unwrap()].as_str();
        let types: Vec<_> = decoded
            .sample_type
            .iter()
            .map(|t| (text(t.ty), text(t.unit)))
            .collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(decoded.period, 10_000_000);
        assert_eq!(decoded.time_nanos, 1_500_000_000);
        assert_eq!(decoded.duration_nanos, 2_000_000_000);
        assert_eq!(decoded.sample[0].value, [3, 30_000_000]);
        assert_eq!(
            text(
                decoded
                    .string_table
                    .iter()
                    .position(|s| s == "telltale 0.1.0")
                    .unwrap() as i64
            ),
            "telltale 0.1.0"
        );
    }

    #[test]
    fn waits_are_nanoseconds_alone() {
        let mut profile = profile();
        profile.kind = Kind::OffCpu;
        profile.period_ns = 1000;
        let decoded = decoded_of(&profile);
        let text = |index: i64| decoded.string_table[usize::try_from(index).unwrap()].as_str();
        let types = decoded.sample_type.iter();
        let types: Vec<_> = types.map(|t| (text(t.ty), text(t.unit))).collect();
        assert_eq!(types, [("off_cpu", "nanoseconds")]);
        assert_eq!(text(decoded.default_sample_type), "off_cpu");
        assert_eq!(decoded.sample[0].value, [3000]);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let decoded = decoded();
        let locations: Vec<_> = decoded
            .location
            .iter()
            .map(|location| location.id)
            .collect();
        let functions: Vec<_> = decoded
            .function
            .iter()
            .map(|function| function.id)
            .collect();
        let mappings: Vec<_> = decoded.mapping.iter().map(|mapping| mapping.id).collect();
        for sample in &decoded.sample {
            assert!(sample.location_id.iter().all(|id| locations.contains(id)));
        }
        for location in &decoded.location {
            assert!(location.mapping_id == 0 || mappings.contains(&location.mapping_id));
            assert!(
                location
                    .line
                    .iter()
                    .all(|line| functions.contains(&line.function_id))
            );
        }
        assert_eq!(decoded.string_table[0], "");
        let mut strings = decoded.string_table.clone();
        strings.sort();
        strings.dedup();
        assert_eq!(
            strings.len(),
            decoded.string_table.len(),
            "a string was written twice"
        );
    }

    #[test]
    fn inlined_callees_are_lines_of_their_location_innermost_first() {
        let decoded = decoded();
        let text = |index: i64| decoded.string_table[usize::try_from(index).unwrap()].as_str();
        let function = |id: u64| decoded.function.iter().find(|f| f.id == id).unwrap();
        let lines: Vec<_> = decoded.location[1]
            .line
            .iter()
            .map(|line| (text(function(line.function_id).name), line.line))
            .collect();
        assert_eq!(lines, [("inlined", 7), ("work", 40)]);
        assert_eq!(decoded.location[1].mapping_id, decoded.mapping[1].id);
        assert_eq!(text(decoded.mapping[1].build_id), "abcd");
        assert!(decoded.mapping[1].has_inline_frames && !decoded.mapping[0].has_line_numbers);
    }

    #[test]
    fn labels_tell_whose_sample_it_is() {
        let mut profile = profile();
        profile.samples[1].work = Work {
            request: Some(Request {
                route: "/a/{id}".into(),
                method: "GET",
            }),
            operation: Some("search"),
        };
        let decoded = decoded_of(&profile);
        let text = |index: i64| decoded.string_table[usize::try_from(index).unwrap()].as_str();
        let labels = |sample: usize| -> Vec<_> {
            let labels = decoded.sample[sample].label.iter();
            labels.map(|l| (text(l.key), text(l.str), l.num)).collect()
        };
        let expected = [
            ("pid", "", 70),
            ("tid", "", 71),
            ("thread", "worker", 0),
            ("service", "shop", 0),
            ("unwind", "complete", 0),
        ];
        assert_eq!(labels(0), expected);
        let work = [
            ("http_method", "GET", 0),
            ("http_route", "/a/{id}", 0),
            ("db_operation", "search", 0),
        ];
        assert_eq!(labels(1)[5..], work);
    }
}
