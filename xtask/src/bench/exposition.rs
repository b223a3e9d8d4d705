//! Metrics in Prometheus' text format, as far as the bench reads them.

use std::collections::BTreeMap;

/// Samples of a family: their labels and values.
pub(super) fn samples<'a>(text: &'a str, name: &str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (family, labels) = series.split_once('{').unwrap_or((series, ""));
            (family == name).then(|| Some((labels.trim_end_matches('}'), value.parse().ok()?)))?
        })
}

/// The sum of a family's samples whose labels are wanted.
pub(super) fn total(text: &str, name: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    samples(text, name)
        .filter(|(labels, _)| wanted(labels))
        .map(|(_, value)| value)
        .sum()
}

/// A label as the text format writes it.
pub(super) fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{value}\"")
}

/// Series of a family above zero, by their labels.
pub(super) fn above_zero(text: &str, name: &str) -> BTreeMap<String, u64> {
    let above_zero = samples(text, name).filter(|(_, value)| *value > 0.0);
    above_zero
        .map(|(labels, value)| (format!("{{{labels}}}"), value as u64))
        .collect()
}

/// What grew, and by how much.
pub(super) fn since(
    now: BTreeMap<String, u64>,
    before: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let grown = now.into_iter().map(|(labels, count)| {
        let count = count - before.get(&labels).copied().unwrap_or(0).min(count);
        (labels, count)
    });
    grown.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP a_count Of a.
a_count{service_name=\"nginx\",http_route=\"/a b\"} 3
a_count{service_name=\"wrk\"} 5
a_count_more 7
telltale_losses_total{reason=\"full\",stage=\"ring\"} 2
telltale_losses_total{reason=\"bad\",stage=\"ring\"} 0
";

    #[test]
    fn samples_are_summed_by_family_and_label() {
        assert_eq!(total(TEXT, "a_count", |_| true), 8.0);
        let nginx = label("service_name", "nginx");
        assert_eq!(
            total(TEXT, "a_count", |labels| labels.contains(&nginx)),
            3.0
        );
        assert_eq!(total(TEXT, "b_count", |_| true), 0.0);
    }

    #[test]
    fn only_what_happened_is_told() {
        let losses =
            |count| BTreeMap::from([("{reason=\"full\",stage=\"ring\"}".to_owned(), count)]);
        let told = above_zero(TEXT, "telltale_losses_total");
        assert_eq!(told, losses(2));
        assert_eq!(since(told.clone(), &losses(1)), losses(1));
        assert_eq!(since(told.clone(), &told), BTreeMap::new());
    }
}
