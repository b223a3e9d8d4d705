//! The Prometheus text format, read back.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// One sample line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name as written: histograms appear as `…_bucket`, `…_sum` and `…_count`.
    pub name: String,
    /// Labels with their unescaped values.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

impl Sample {
    /// A label's value; empty when the label is absent, as Prometheus sees it.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The text as it was served.
    pub text: String,
    /// Every sample of it, in order.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Reads one scrape.
    ///
    /// # Errors
    /// On the first line that is not of the format.
    pub fn parse(text: &str) -> Result<Self> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| parse_sample(line).with_context(|| format!("bad sample line `{line}`")))
            .collect::<Result<_>>()?;
        Ok(Self {
            text: text.to_owned(),
            samples,
        })
    }

    /// The samples of `name` whose labels have all the given values.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.label(key) == *value)
        })
    }

    /// Sum over [`Self::select`]; 0 when nothing matches.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // An empty f64 sum is -0.0, which prints badly.
        self.select(name, labels)
            .map(|sample| sample.value)
            .sum::<f64>()
            + 0.0
    }

    /// What was lost at a stage for a reason.
    #[must_use]
    pub fn lost(&self, stage: &str, reason: &str) -> f64 {
        let labels = [("stage", stage), ("reason", reason)];
        self.sum("telltale_losses_total", &labels)
    }

    /// [`Self::sum`] by the values of the labels `by`; sums of 0 are left out.
    #[must_use]
    pub fn sum_by<const N: usize>(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        by: [&str; N],
    ) -> BTreeMap<[String; N], f64> {
        let mut sums = BTreeMap::new();
        for sample in self.select(name, labels) {
            *sums
                .entry(by.map(|key| sample.label(key).to_owned()))
                .or_insert(0.0) += sample.value;
        }
        sums.retain(|_, sum| *sum != 0.0);
        sums
    }

    /// The lines whose name begins with one of `prefixes`, for diagnostics.
    #[must_use]
    pub fn excerpt(&self, prefixes: &[&str]) -> String {
        let chosen = self.text.lines().filter(|line| {
            !line.contains("_bucket{") && prefixes.iter().any(|prefix| line.starts_with(prefix))
        });
        chosen.fold(String::new(), |text, line| text + line + "\n")
    }
}

fn parse_sample(line: &str) -> Result<Sample> {
    let name_end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        while !inside.starts_with('}') {
            let (key, after) = inside.split_once("=\"").context("label without a value")?;
            let (value, after) = parse_label_value(after)?;
            labels.insert(key.to_owned(), value);
            inside = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &inside[1..];
    }
    let mut fields = rest.split_ascii_whitespace();
    let value = match fields.next().context("no value")? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse()?,
    };
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// Unescapes up to the closing quote; returns what follows it.
fn parse_label_value(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next().context("ends in a backslash")?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            other => value.push(other),
        }
    }
    bail!("label value without an end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_with_escapes_and_sums_by_them() {
        let text =
            "# TYPE a counter\na{x=\"1\",y=\"q\\\"{}, \\\\\"} 2\na{x=\"1\",y=\"\"} 3.5e0\nb 7\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.samples[0].label("y"), "q\"{}, \\");
        assert_eq!(metrics.sum("a", &[("x", "1")]), 5.5);
        assert_eq!(metrics.sum("a", &[("x", "2")]), 0.0);
        assert_eq!(metrics.sum("b", &[]), 7.0);
        let by = metrics.sum_by("a", &[], ["x", "y"]);
        assert_eq!(by[&["1".to_owned(), String::new()]], 3.5);
    }

    #[test]
    fn refuses_what_is_not_the_format() {
        assert!(Metrics::parse("a{x=\"1} 2").is_err());
        assert!(Metrics::parse("a one").is_err());
        assert!(Metrics::parse("a").is_err());
    }
}
