//! A profile as speedscope's JSON
//! (<https://www.speedscope.app/file-format-schema.json>).

use std::collections::HashMap;

use profile::Profile;
use serde::Serialize;

use super::flamegraph::names;

/// Encodes `profile` under `name`.
///
/// # Errors
/// None that writing JSON into memory could give.
pub fn encode(profile: &Profile, name: &str) -> serde_json::Result<Vec<u8>> {
    let mut frames = FrameTable::default();
    let mut samples = Vec::with_capacity(profile.samples.len());
    let mut weights = Vec::with_capacity(profile.samples.len());
    for sample in &profile.samples {
        // Outermost first, below the service.
        let mut stack = vec![frames.index(&sample.service, None, None)];
        for frame in sample
            .frames
            .iter()
            .rev()
            .filter_map(|frame| profile.frames.get(*frame))
        {
            for (place, name) in names(profile, frame).iter().enumerate().rev() {
                let function = frame.functions.get(place);
                let file = function.and_then(|function| function.file.as_deref());
                stack.push(frames.index(name, file, function.and_then(|function| function.line)));
            }
        }
        samples.push(stack);
        weights.push(sample.count.saturating_mul(profile.period_ns));
    }
    serde_json::to_vec(&File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        name,
        exporter: concat!("telltale ", env!("CARGO_PKG_VERSION")),
        shared: Shared {
            frames: &frames.frames,
        },
        profiles: [Sampled {
            kind: "sampled",
            name,
            unit: "nanoseconds",
            start_value: 0,
            end_value: weights.iter().sum(),
            samples,
            weights,
        }],
    })
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'a str,
    name: &'a str,
    exporter: &'a str,
    shared: Shared<'a>,
    profiles: [Sampled<'a>; 1],
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: &'a [JsonFrame],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    name: &'a str,
    unit: &'a str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
struct JsonFrame {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

/// Frames are written once and referred to by number.
#[derive(Default)]
struct FrameTable {
    frames: Vec<JsonFrame>,
    by_frame: HashMap<JsonFrame, usize>,
}

impl FrameTable {
    fn index(&mut self, name: &str, file: Option<&str>, line: Option<u32>) -> usize {
        let frame = JsonFrame {
            name: name.to_owned(),
            file: file.map(str::to_owned),
            line,
        };
        *self.by_frame.entry(frame).or_insert_with_key(|frame| {
            self.frames.push(frame.clone());
            self.frames.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sink::profile_fixture::profile;

    #[test]
    fn stacks_are_indices_outermost_first() {
        let file: Value = serde_json::from_slice(&encode(&profile(), "p").unwrap()).unwrap();
        let frames = file["shared"]["frames"].as_array().unwrap();
        let sampled = &file["profiles"][0];
        let stack: Vec<_> = sampled["samples"][0]
            .as_array()
            .unwrap()
            .iter()
            .map(|index| &frames[usize::try_from(index.as_u64().unwrap()).unwrap()])
            .collect();
        let expected = [
            &json!({"name": "shop"}),
            &json!({"name": "main <&>; x"}),
            &json!({"name": "work", "file": "a.c", "line": 40}),
            &json!({"name": "inlined", "file": "a.c", "line": 7}),
            &json!({"name": "vfs_read_[k]"}),
        ];
        assert_eq!(stack, expected);
        assert_eq!(sampled["weights"], json!([30_000_000, 10_000_000]));
        assert_eq!(sampled["endValue"], 40_000_000);
    }
}
