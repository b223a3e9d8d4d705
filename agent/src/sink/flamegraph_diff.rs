//! What two profiles differ by, as a differential flamegraph: as wide as the second one is, red
//! where it has more samples than the first, blue where it has fewer
//! (<https://www.brendangregg.com/blog/2014-11-09/differential-flame-graphs.html>).

use std::io;

use inferno::differential;
use inferno::flamegraph::{self, Options};
use profile::Profile;

use super::flamegraph::{empty_svg, folded, folded_below};

/// A form that a difference can be had in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffFormat {
    /// A differential flamegraph.
    Svg,
    /// Folded stacks, each with its samples in the first profile and in the second.
    Folded,
}

/// A profile and what a person reads above it.
type Titled<'a> = (&'a Profile, &'a str);

impl DiffFormat {
    /// Media type of the encoded difference.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Svg => "image/svg+xml",
            Self::Folded => "text/plain; charset=utf-8",
        }
    }

    /// Encodes what `after` differs by from `before`. In the drawing, `before` is scaled to as many
    /// samples as `after` has: what is told apart are shares, whatever the spans of time. Counts in
    /// folded stacks are those that were sampled.
    ///
    /// # Errors
    /// None that writing into memory could give.
    pub fn encode(self, before: Titled<'_>, after: Titled<'_>) -> io::Result<Vec<u8>> {
        match self {
            Self::Svg => svg(before, after),
            Self::Folded => lines(before.0, after.0, false),
        }
    }
}

/// `stack before after`, one a line, in alphabetical order.
fn lines(before: &Profile, after: &Profile, scaled: bool) -> io::Result<Vec<u8>> {
    let options = differential::Options {
        normalize: scaled,
        ..differential::Options::default()
    };
    // The roots of two services would have nothing in common.
    let fold = match (only_service(before), only_service(after)) {
        (Some(one), Some(other)) if one != other => {
            |profile: &Profile| folded_below(profile, |_| "all")
        }
        _ => folded,
    };
    let (before, after) = (fold(before), fold(after));
    let mut unsorted = Vec::new();
    differential::from_readers(options, before.as_bytes(), after.as_bytes(), &mut unsorted)?;
    let mut lines: Vec<&[u8]> = unsorted.split_inclusive(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    Ok(lines.concat())
}

/// The service of all samples, where it is one.
fn only_service(profile: &Profile) -> Option<&str> {
    let mut services = profile.samples.iter().map(|sample| &*sample.service);
    let first = services.next()?;
    services.all(|service| service == first).then_some(first)
}

fn svg(before: Titled<'_>, after: Titled<'_>) -> io::Result<Vec<u8>> {
    let title = after.1.to_owned();
    let samples = [before.0, after.0].map(Profile::sample_count);
    if samples[1] == 0 {
        return Ok(empty_svg(&title));
    }
    let lines = lines(before.0, after.0, true)?;
    let mut options = Options::default();
    options.title = title;
    options.subtitle = Some(format!(
        "{} samples in {:.0} s · compared with {}: {} samples in {:.0} s, scaled to as many · red has \
         more than it, blue less",
        samples[1],
        after.0.duration.as_secs_f64(),
        before.1,
        samples[0],
        before.0.duration.as_secs_f64(),
    ));
    options.count_name = "samples".to_owned();
    let lines = String::from_utf8_lossy(&lines);
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.lines(), &mut svg)?;
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::profile_fixture::profile;

    fn folded_diff(before: &Profile, after: &Profile) -> String {
        let encoded = DiffFormat::Folded.encode((before, "before"), (after, "after"));
        String::from_utf8(encoded.unwrap()).unwrap()
    }

    #[test]
    fn each_stack_has_both_counts() {
        let (before, mut after) = (profile(), profile());
        after.samples[0].count = 7;
        after.samples.remove(1);
        assert_eq!(
            folded_diff(&before, &after),
            "shop;main <&>: x;[shop:1] 1 0\nshop;main <&>: x;work;inlined;vfs_read_[k] 3 7\n"
        );
    }

    #[test]
    fn two_services_share_their_root() {
        let (before, mut after) = (profile(), profile());
        for sample in &mut after.samples {
            sample.service = "store".into();
        }
        assert_eq!(
            folded_diff(&before, &after),
            "all;main <&>: x;[shop:1] 1 1\nall;main <&>: x;work;inlined;vfs_read_[k] 3 3\n"
        );
    }

    #[test]
    fn what_takes_a_larger_share_is_red_and_a_smaller_one_blue() {
        let (before, mut after) = (profile(), profile());
        // Twice as long, but the first stack has four times the samples.
        after.samples[0].count = 12;
        after.samples[1].count = 2;
        let svg = DiffFormat::Svg.encode((&before, "CPU of a"), (&after, "CPU of b"));
        let svg = String::from_utf8(svg.unwrap()).unwrap();
        assert!(
            svg.contains(">CPU of b<") && svg.contains("compared with CPU of a: "),
            "{svg}"
        );
        let colour = |name: &str| {
            let (_, rest) = svg.split_once(&format!("<title>{name} (")).unwrap();
            let (_, rest) = rest.split_once("fill=\"rgb(").unwrap();
            let rgb = rest.split_once(')').unwrap().0;
            let parts: Vec<u8> = rgb.split(',').map(|part| part.parse().unwrap()).collect();
            (parts[0], parts[2])
        };
        let (red, blue) = colour("vfs_read");
        assert!(red > blue, "{red} {blue}");
        let (red, blue) = colour("[shop:1]");
        assert!(red < blue, "{red} {blue}");
    }

    #[test]
    fn nothing_compared_with_something_says_so() {
        let mut after = profile();
        after.samples.clear();
        let svg = DiffFormat::Svg.encode((&profile(), "a"), (&after, "b"));
        assert!(
            String::from_utf8(svg.unwrap())
                .unwrap()
                .contains("No samples")
        );
    }
}
