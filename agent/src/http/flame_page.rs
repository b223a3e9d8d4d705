//! The page at `/flamegraph`: a profile to look into. The table is made on the server; a small
//! script draws the flamegraph, searches, magnifies and filters by thread and request.

use std::time::{Duration, SystemTime};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use profile::{Kind, Profile};

use crate::profiler::{ProfileRequest, ProfileTime};
use crate::sink::flame_data::FlameData;
use crate::sink::top;

/// Rows of the table when it is made on the server; the script makes it anew for what is shown.
const ROWS: usize = 100;

/// Nothing but the page's own style and script. The data is no script, and a form may only ask
/// for this page again.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Ranges of time that the page offers.
const RANGES: [(&str, &str); 5] = [
    ("from=now-1m", "last minute"),
    ("from=now-5m", "last 5 minutes"),
    ("from=now-1h", "last hour"),
    ("seconds=5&hz=199", "next 5 s at 199 Hz"),
    ("seconds=5&type=off_cpu", "next 5 s off the CPU"),
];

/// The page of a profile. `query` says what was asked for, as it was written.
pub(super) fn page(
    profile: &Profile,
    request: &ProfileRequest,
    query: &[(String, String)],
) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    let markup = render(profile, request, query);
    (headers, markup.into_string()).into_response()
}

pub(super) async fn style() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
    (headers, include_str!("flame_page.css")).into_response()
}

pub(super) async fn script() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")];
    (headers, include_str!("flame_page.js")).into_response()
}

fn render(profile: &Profile, request: &ProfileRequest, query: &[(String, String)]) -> Markup {
    let what = match profile.kind {
        Kind::Cpu => "CPU",
        Kind::OffCpu => "Waits",
    };
    let title = format!("{what} of {}", request.selector);
    let samples = profile.sample_count();
    let rows = top::rows(profile);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Telltale" }
                link rel="icon" href=(super::page::ICON);
                link rel="stylesheet" href="/page.css";
                link rel="stylesheet" href="/flamegraph.css";
                script src="/flamegraph.js" defer {}
            }
            body.flames {
                header {
                    a.brand href="/" { (super::page::mark()) span { "Telltale" } }
                    p.host title=(title) { (title) }
                    p.window { (summary(profile, samples)) }
                }
                (ranges(request, query))
                main {
                    @if samples == 0 {
                        section.empty {
                            h1 { "No samples" }
                            p {
                                @match profile.kind {
                                    _ if !request.selector.work.is_any() => {
                                        "Nothing that was sampled is proven to be of that request."
                                    }
                                    Kind::Cpu => "It did not run on a CPU while it was watched.",
                                    Kind::OffCpu => "It did not wait while it was watched.",
                                }
                            }
                        }
                    } @else {
                        section.graph {
                            p.tools {
                                input #search type="search" placeholder="Search functions" aria-label="Search functions";
                                select #thread aria-label="Thread" { option value="" { "all threads" } }
                                select #work aria-label="Request" hidden { option value="" { "all requests" } }
                                button #reset type="button" { "Whole" }
                                output #status {}
                            }
                            div #graph role="img" aria-label={ "Flamegraph: " (title) } {
                                noscript { p.hint {
                                    "The graph is drawn by a script. Without one: "
                                    a href=(download("flamegraph", query, "&format=svg")) { "as SVG" }
                                } }
                            }
                        }
                        section.top {
                            table #top {
                                thead { tr {
                                    th.number scope="col" { "Self" }
                                    th.number scope="col" { "Total" }
                                    th scope="col" { "Function" }
                                } }
                                tbody {
                                    @for row in rows.iter().take(ROWS) { tr {
                                        td.number { (percent(row.own, samples)) }
                                        td.number { (percent(row.total, samples)) }
                                        th scope="row" title=(row.name) { (row.name) }
                                    } }
                                }
                            }
                            p #more .hint hidden[rows.len() <= ROWS] {
                                "and " (rows.len().saturating_sub(ROWS)) " more functions"
                            }
                        }
                        script #data type="application/json" { (data(profile)) }
                    }
                }
                footer {
                    nav {
                        a href=(download("profile", query, "")) { "pprof" }
                        a href=(download("flamegraph", query, "&format=svg")) { "SVG" }
                        a href=(download("flamegraph", query, "&format=speedscope")) { "speedscope" }
                        a href=(download("flamegraph", query, "&format=folded")) { "folded" }
                    }
                }
            }
        }
    }
}

/// Links to the same threads at other times.
fn ranges(request: &ProfileRequest, query: &[(String, String)]) -> Markup {
    let of_time = ["from", "to", "seconds", "hz", "type", "min_us"];
    let others: Vec<_> = query
        .iter()
        .filter(|(key, _)| !of_time.contains(&key.as_str()))
        .cloned()
        .collect();
    let selected = encoded(&others);
    let now = SystemTime::now();
    let is_shown = |range: &str| match request.time {
        ProfileTime::Next { .. } => range.contains("hz="),
        ProfileTime::Waits { .. } => range.contains("off_cpu"),
        ProfileTime::Past { from, to } => {
            let ends_now = now.duration_since(to).unwrap_or_default() < Duration::from_secs(20);
            let seconds = to.duration_since(from).unwrap_or_default().as_secs();
            ends_now
                && match range {
                    "from=now-1m" => seconds == 60,
                    "from=now-5m" => seconds == 300,
                    _ => seconds == 3600,
                }
        }
    };
    html! {
        nav.ranges aria-label="Time" {
            @for (range, name) in RANGES {
                @let separator = if selected.is_empty() { "" } else { "&" };
                a href={ "/flamegraph?" (range) (separator) (selected) }
                    aria-current=[is_shown(range).then_some("true")] { (name) }
            }
        }
    }
}

fn summary(profile: &Profile, samples: u64) -> String {
    let counted_s = samples as f64 * profile.period_ns as f64 / 1e9;
    let seconds = profile.duration.as_secs_f64();
    let mut line = match profile.kind {
        Kind::Cpu => format!(
            "{samples} samples at {:.0} Hz · {counted_s:.2} s of CPU in {seconds:.0} s",
            1e9 / profile.period_ns as f64
        ),
        Kind::OffCpu => format!("{counted_s:.3} s of waiting in {seconds:.0} s"),
    };
    if let Some(lost) = profile.lost() {
        line.push_str(&format!(" · {lost}"));
    }
    line
}

fn percent(count: u64, of: u64) -> String {
    format!("{:.1} %", count as f64 * 100.0 / of.max(1) as f64)
}

/// The same profile in another form.
fn download(endpoint: &str, query: &[(String, String)], format: &str) -> String {
    format!("/debug/pprof/{endpoint}?{}{format}", encoded(query))
}

fn encoded(query: &[(String, String)]) -> String {
    let pairs: Vec<_> = query
        .iter()
        .map(|(key, value)| {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            format!("{}={value}", utf8_percent_encode(key, NON_ALPHANUMERIC))
        })
        .collect();
    pairs.join("&")
}

/// JSON in a page: nothing in it may end the element that holds it.
fn data(profile: &Profile) -> PreEscaped<String> {
    let json = serde_json::to_string(&FlameData::of(profile)).unwrap_or_default();
    PreEscaped(json.replace('<', "\\u003c").replace('&', "\\u0026"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiler::Target;
    use crate::sink::profile_fixture::profile;

    fn rendered(profile: &Profile) -> String {
        let request = ProfileRequest {
            selector: Target::Service("<b>".into()).into(),
            time: ProfileTime::Next {
                duration: Duration::from_secs(5),
                hz: 99,
            },
        };
        let query = [
            ("service".to_owned(), "<b>&".to_owned()),
            ("seconds".to_owned(), "5".to_owned()),
        ];
        render(profile, &request, &query).into_string()
    }

    #[test]
    fn the_table_is_there_without_a_script() {
        let page = rendered(&profile());
        assert!(
            page.contains("4 samples at 100 Hz · 0.04 s of CPU in 2 s"),
            "{page}"
        );
        let row = "<td class=\"number\">75.0 %</td><td class=\"number\">75.0 %</td>\
                   <th scope=\"row\" title=\"vfs_read_[k]\">";
        assert!(page.contains(row), "{page}");
        let link = "/debug/pprof/flamegraph?service=%3Cb%3E%26&amp;seconds=5&amp;format=svg";
        assert!(page.contains(link), "{page}");
    }

    #[test]
    fn names_end_no_element() {
        let mut profile = profile();
        profile.frames[0].functions[0].name = "</script><script>alert(1)//&lt;".into();
        let page = rendered(&profile);
        assert!(!page.contains("</script><script>alert"), "{page}");
        assert!(!page.contains("<b>"), "{page}");
        let (_, rest) = page.split_once("type=\"application/json\">").unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        let data: serde_json::Value = serde_json::from_str(json).unwrap();
        let names = data["names"].as_array().unwrap();
        assert!(
            names
                .iter()
                .any(|name| name == "</script><script>alert(1)//&lt;_[k]")
        );
    }

    #[test]
    fn a_profile_without_samples_says_so() {
        let mut profile = profile();
        profile.samples.clear();
        let page = rendered(&profile);
        assert!(page.contains("No samples") && !page.contains("application/json"));
    }
}
