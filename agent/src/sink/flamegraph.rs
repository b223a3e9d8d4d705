//! A profile as a flamegraph: folded stacks (`service;outermost;…;leaf count`, the format of
//! Brendan Gregg's stackcollapse), and the SVG that inferno draws of them.

use std::collections::BTreeMap;
use std::io;

use inferno::flamegraph::color::{MultiPalette, Palette};
use inferno::flamegraph::{self, Options};
use profile::{Frame, Kind, Profile, Sample};

/// Ends the name of a kernel function, as flamegraphs of other profilers do.
pub(super) const KERNEL_SUFFIX: &str = "_[k]";

/// Folded stacks, one a line, in alphabetical order; each ends with its number of samples.
#[must_use]
pub fn folded(profile: &Profile) -> String {
    folded_below(profile, |sample| &sample.service)
}

/// Folded stacks, each below what `root` calls its sample.
pub(super) fn folded_below<'a>(
    profile: &'a Profile,
    root: impl Fn(&'a Sample) -> &'a str,
) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for sample in &profile.samples {
        *counts
            .entry(fold(profile, sample, root(sample)))
            .or_default() += sample.count;
    }
    counts
        .iter()
        .map(|(stack, count)| format!("{stack} {count}\n"))
        .collect()
}

/// An SVG to look at in a browser: a click magnifies a frame, Ctrl-F searches.
///
/// # Errors
/// None that writing into memory could give.
pub fn svg(profile: &Profile, title: &str) -> io::Result<Vec<u8>> {
    let samples = profile.sample_count();
    if samples == 0 {
        return Ok(empty_svg(title));
    }
    let mut options = Options::default();
    options.title = title.to_owned();
    options.subtitle = Some(subtitle(profile, samples));
    options.count_name = profile.kind.unit().to_owned();
    options.colors = Palette::Multi(MultiPalette::Java);
    options.hash = true;
    let folded = folded(profile);
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, folded.lines(), &mut svg)?;
    Ok(svg)
}

/// Name of a frame's function number `index`; frames without any are called by their file.
#[must_use]
pub fn names(profile: &Profile, frame: &Frame) -> Vec<String> {
    let mapping = frame
        .mapping
        .and_then(|mapping| profile.mappings.get(mapping));
    if frame.functions.is_empty() {
        let file = mapping.and_then(|mapping| mapping.path.rsplit('/').next());
        return vec![match file.unwrap_or_default() {
            "" => "[unknown]".to_owned(),
            name if name.starts_with('[') => name.to_owned(),
            name => format!("[{name}]"),
        }];
    }
    let suffix = match mapping {
        Some(mapping) if mapping.path.starts_with("[kernel") => KERNEL_SUFFIX,
        _ => "",
    };
    frame
        .functions
        .iter()
        .map(|function| format!("{}{suffix}", function.name))
        .collect()
}

/// The stack's names, outermost first, after the root's.
fn fold(profile: &Profile, sample: &Sample, root: &str) -> String {
    let mut line = String::new();
    push_name(&mut line, root);
    for frame in sample
        .frames
        .iter()
        .rev()
        .filter_map(|frame| profile.frames.get(*frame))
    {
        for name in names(profile, frame).iter().rev() {
            line.push(';');
            push_name(&mut line, name);
        }
    }
    line
}

/// Appends a name without what would end it.
fn push_name(line: &mut String, name: &str) {
    line.extend(name.chars().map(|character| match character {
        ';' => ':',
        character if character.is_control() => ' ',
        character => character,
    }));
}

fn subtitle(profile: &Profile, samples: u64) -> String {
    let counted_s = samples as f64 * profile.period_ns as f64 / 1e9;
    let seconds = profile.duration.as_secs_f64();
    let mut line = match profile.kind {
        Kind::Cpu => {
            let hz = 1e9 / profile.period_ns as f64;
            format!(
                "{samples} samples at {hz:.0} Hz: {counted_s:.2} s of CPU time in {seconds:.1} s"
            )
        }
        Kind::OffCpu => format!("{counted_s:.3} s of waiting in {seconds:.1} s"),
    };
    if let Some(lost) = profile.lost() {
        line.push_str(&format!(", {lost}"));
    }
    line
}

/// What there is to see when nothing ran.
pub(super) fn empty_svg(title: &str) -> Vec<u8> {
    let title: String = title
        .chars()
        .filter(|c| !matches!(c, '<' | '>' | '&'))
        .collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1200\" height=\"80\" font-family=\"monospace\">\
         <text x=\"600\" y=\"30\" text-anchor=\"middle\" font-size=\"17\">{title}</text>\
         <text x=\"600\" y=\"58\" text-anchor=\"middle\" font-size=\"12\">\
         No samples: it did not run on a CPU while it was watched.</text></svg>\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::profile_fixture::profile;

    #[test]
    fn stacks_are_folded_outermost_first() {
        assert_eq!(
            folded(&profile()),
            "shop;main <&>: x;[shop;1] 1\nshop;main <&>: x;work;inlined;vfs_read_[k] 3\n"
                .replace("[shop;1]", "[shop:1]")
        );
    }

    #[test]
    fn equal_stacks_of_two_threads_are_one_line() {
        let mut profile = profile();
        let mut other = profile.samples[0].clone();
        other.tid += 1;
        profile.samples.push(other);
        assert!(folded(&profile).contains("vfs_read_[k] 6\n"));
    }

    #[test]
    fn the_svg_names_every_function() {
        let svg = String::from_utf8(svg(&profile(), "a <title>").unwrap()).unwrap();
        for name in [
            "work",
            "inlined",
            "vfs_read (",
            "[shop:1]",
            "main &lt;&amp;&gt;: x",
        ] {
            assert!(svg.contains(name), "{name} is missing");
        }
        assert!(svg.contains("4 samples at 100 Hz: 0.04 s of CPU time in 2.0 s"));
    }

    #[test]
    fn a_profile_without_samples_says_so() {
        let mut profile = profile();
        profile.samples.clear();
        let svg = String::from_utf8(svg(&profile, "t").unwrap()).unwrap();
        assert!(svg.contains("No samples"));
        assert_eq!(folded(&profile), "");
    }
}
