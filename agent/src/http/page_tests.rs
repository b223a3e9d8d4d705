use std::sync::Arc;

use super::*;
use crate::health::Health;
use crate::process::Target;
use crate::sink::Sink as _;
use crate::sink::fixtures::{observation, process, search};
use crate::sink::slow::SlowCalls;
use crate::sink::summary::Summary;

/// What somebody would name a service, an operation or an index to get a script onto the page.
const EVIL: &str = r#"<script>alert(1)</script>"'&?x=1"#;

fn page_of(services: &[&str], targets: &[Target]) -> String {
    let summary = Summary::new();
    let slow = SlowCalls::default();
    let (mut worker, mut slow_worker) = (summary.worker(), slow.worker());
    for service in services {
        let now_ns = crate::clock::monotonic_ns();
        for mut one in [observation(service, Role::Server, "/"), search(service)] {
            one.exchange.times.request_first_ns = now_ns;
            one.exchange.times.response_last_ns = Some(now_ns + 1_000_000);
            if let Some(call) = &mut one.exchange.elasticsearch {
                call.query_text = Some(format!("{{{service}:?}}").into());
            }
            worker.observe(&one);
            slow_worker.observe(&one);
        }
    }
    let health = Health::new();
    health.set_ready(true);
    render(
        "host",
        &health.report(),
        &summary.snapshot(),
        &slow.report().calls,
        targets,
    )
    .into_string()
}

#[test]
fn names_from_traffic_are_text_wherever_they_appear() {
    let mut hostile = process(EVIL, 7);
    hostile.executable = format!("/tmp/{EVIL}").into();
    let targets = [Target {
        process: Arc::new(hostile),
        ports: vec![80],
        protocols: vec!["http/1.1"],
        interpreter: None,
    }];
    let page = page_of(&[EVIL], &targets);
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
        "{page}"
    );
    // The page's own script is the only one, and no attribute ends early.
    assert_eq!(page.matches("<script").count(), 1, "{page}");
    assert!(!page.contains(r#"</script>"'"#), "{page}");
    assert!(page.contains(
        "flamegraph?service=%3Cscript%3Ealert%281%29%3C%2Fscript%3E%22%27%26%3Fx%3D1&amp;seconds=5"
    ));
}

#[test]
fn reasons_of_health_are_text_as_well() {
    let health = Health::new();
    health.set("otlp", Status::Degraded, EVIL);
    let page = render(EVIL, &health.report(), &Snapshot::default(), &[], &[]).into_string();
    assert_eq!(page.matches("<script").count(), 1, "{page}");
    assert!(page.contains("Attaching"), "not ready yet");
}

#[test]
fn every_service_and_call_has_its_row() {
    let page = page_of(&["catalogue", "checkout"], &[]);
    for service in ["catalogue", "checkout"] {
        // As a server, as a caller, as a client of Elasticsearch, as one that waited.
        assert_eq!(
            page.matches(&format!(">{service}<")).count(),
            4,
            "{service} in {page}"
        );
        assert_eq!(
            page.matches(&format!("flamegraph?service={service}&amp;"))
                .count(),
            2
        );
    }
    assert!(
        page.contains(">search<") && page.contains("6.0 ms"),
        "took is told: {page}"
    );
}

#[test]
fn a_took_of_zero_is_not_told_as_a_microsecond() {
    assert_eq!(whole_milliseconds(0.000_001), "< 1 ms");
    assert_eq!(whole_milliseconds(0.006), "6.0 ms");
}

#[test]
fn without_traffic_the_page_says_what_to_do() {
    let page = page_of(&[], &[]);
    assert!(
        page.contains("No HTTP exchange") && page.contains("telltale check"),
        "{page}"
    );
}

#[test]
fn long_lists_are_cut_and_say_so() {
    let names: Vec<String> = (0..MAX_ROWS + 5).map(|pid| format!("s{pid}")).collect();
    let targets: Vec<Target> = (0..)
        .zip(&names)
        .map(|(pid, name)| Target {
            process: Arc::new(process(name, pid)),
            ports: vec![],
            protocols: vec![],
            interpreter: None,
        })
        .collect();
    let page = page_of(&[], &targets);
    assert_eq!(page.matches("flamegraph?pid=").count(), MAX_ROWS);
    assert!(page.contains("and 5 more"), "{page}");
}

#[test]
fn numbers_are_told_with_what_matters_of_them() {
    assert_eq!(seconds(0.000_000_4), "0 µs");
    assert_eq!(seconds(0.000_412), "412 µs");
    assert_eq!(seconds(0.003_44), "3.4 ms");
    assert_eq!(seconds(0.099_6), "100 ms");
    assert_eq!(seconds(0.999_4), "999 ms");
    assert_eq!(seconds(0.999_6), "1.0 s");
    assert_eq!(seconds(3_600.0), "3600 s");
    assert_eq!(rate(0.033), "0.03 /s");
    assert_eq!(rate(12.4), "12 /s");
    assert_eq!(rate(120_000.0), "120.0 k/s");
    assert_eq!(share(0.0), "0 %");
    assert_eq!(share(0.000_2), "< 0.1 %");
    assert_eq!(share(0.012), "1.2 %");
    assert_eq!(share(1.0), "100 %");
}

#[test]
fn a_trend_draws_a_second_a_step() {
    let svg = trend(&[0, 5, 10]).into_string();
    assert!(svg.contains("M0 19.0L1 10.5L2 2.0"), "{svg}");
    // None at all is a flat line, not a division by zero.
    assert!(trend(&[0, 0]).into_string().contains("M0 19.0L1 19.0"));
}
