use std::io::Write as _;
use std::process::{Command, Stdio};

use prometheus::TextEncoder;
use protocol::observation::{
    BulkAction, BulkItems, BulkOutcome, ClusterHealth, ClusterReport, ElasticsearchCall, Outcome,
    SearchProduct,
};

use super::*;
use crate::observation::{Endpoint, Observation};
use crate::sink::fixtures::{lasting, observation, search};

struct Setup {
    registry: Registry,
    sink: PrometheusSink,
    /// Keeps the counters that the assertions read.
    _self_metrics: SelfMetrics,
}

impl Setup {
    fn new(options: &PrometheusOptions) -> Self {
        let registry = Registry::new();
        let self_metrics = SelfMetrics::new(&registry).unwrap();
        let sink = PrometheusSink::new(&registry, options, &self_metrics).unwrap();
        Self {
            registry,
            sink,
            _self_metrics: self_metrics,
        }
    }

    fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap()
    }

    /// The traffic metrics: what is left without the agent's own, whose values change by the run.
    fn traffic(&self) -> String {
        let text = self.text();
        let lines = text.lines().filter(|line| {
            let name = line
                .trim_start_matches("# HELP ")
                .trim_start_matches("# TYPE ");
            !name.starts_with("process_") && !name.starts_with("telltale_build_info")
        });
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// The value of the sample that begins so.
    fn value(&self, sample: &str) -> f64 {
        let text = self.text();
        let line = text.lines().find(|line| {
            line.strip_prefix(sample)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        let line = line.unwrap_or_else(|| panic!("{sample} is missing in\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// One exchange of each kind that the metrics tell apart.
fn every_kind() -> Vec<Observation> {
    let mut answered = observation("shop", Role::Server, "/items/{id}");
    answered.exchange.request_body_bytes = Some(2048);
    answered.exchange.method = "POST";
    let times = &mut answered.exchange.times;
    times.request_arrived_ns = Some(times.request_first_ns - 700_000);

    let mut failed = lasting(observation("shop", Role::Server, "/items/{id}"), 300);
    failed.exchange.status = Some(503);

    let mut reset = observation("shop", Role::Server, "/items/{id}");
    reset.exchange.outcome = Outcome::Reset;
    reset.exchange.status = None;
    reset.exchange.times.response_first_ns = None;
    reset.exchange.response_body_bytes = None;

    let mut evicted = observation("shop", Role::Server, "/items/{id}");
    evicted.exchange.outcome = Outcome::Evicted;

    let mut nameless = observation("shop", Role::Client, "/stock/{id}");
    nameless.exchange.host = None;
    nameless.remote = Endpoint::Inet("[::1]:9000".parse().unwrap());

    let mut health = search("shop");
    let call = health.exchange.elasticsearch.as_mut().unwrap();
    call.operation = Some("cluster.health");
    call.collection = "".into();
    call.took_ms = None;
    call.cluster = Some(Box::new(ClusterReport {
        name: Some("main".into()),
        health: Some(ClusterHealth::Yellow),
        nodes: Some(3),
        ..ClusterReport::default()
    }));

    let mut bulk = search("shop");
    let call = bulk.exchange.elasticsearch.as_mut().unwrap();
    call.operation = Some("bulk");
    let items = |action, outcome, count| BulkItems {
        action,
        outcome,
        count,
    };
    call.bulk_items = vec![
        items(BulkAction::Index, BulkOutcome::Succeeded, 7),
        items(BulkAction::Create, BulkOutcome::Conflict, 2),
    ];

    let mut missing = search("shop");
    missing.exchange.status = Some(404);
    let call = missing.exchange.elasticsearch.as_mut().unwrap();
    call.took_ms = None;
    call.error_type = Some("index_not_found_exception".into());

    let mut served = search("opensearch");
    served.exchange.role = Role::Server;
    served.local = Endpoint::Inet(([127, 0, 0, 1], 9200).into());

    vec![
        served,
        answered,
        failed,
        reset,
        evicted,
        nameless,
        search("shop"),
        health,
        bulk.clone(),
        bulk,
        missing,
    ]
}

#[test]
fn the_text_is_as_promised() {
    let setup = Setup::new(&PrometheusOptions::default());
    let mut worker = setup.sink.worker();
    for observation in every_kind() {
        worker.observe(&observation);
    }
    insta::assert_snapshot!(setup.traffic());
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let setup = Setup::new(&PrometheusOptions::default());
    let mut worker = setup.sink.worker();
    for observation in every_kind() {
        worker.observe(&observation);
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed (Debian: prometheus)");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(setup.text().as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{told}");
}

#[test]
fn a_first_exchange_and_a_cached_one_count_alike() {
    let setup = Setup::new(&PrometheusOptions::default());
    let (mut one, mut other) = (setup.sink.worker(), setup.sink.worker());
    let observation = observation("shop", Role::Server, "/items/{id}");
    one.observe(&observation);
    one.observe(&observation);
    other.observe(&observation);
    let labels = r#"{error_type="",http_request_method="GET",http_response_status_code="200",http_route="/items/{id}",service_name="shop"}"#;
    assert_eq!(
        setup.value(&format!(
            "http_server_request_duration_seconds_count{labels}"
        )),
        3.0
    );
    assert_eq!(
        setup.value(&format!("http_server_request_duration_seconds_sum{labels}")),
        0.03
    );
    assert_eq!(
        setup.value(r#"telltale_http_exchanges_total{outcome="matched",role="server"}"#),
        3.0
    );
}

/// A call, and what differs from it in one label each.
fn variants_of_a_call() -> Vec<Observation> {
    let base = search("shop");
    let vary = |change: fn(&mut Observation)| {
        let mut variant = base.clone();
        change(&mut variant);
        variant
    };
    fn call(observation: &mut Observation) -> &mut ElasticsearchCall {
        observation.exchange.elasticsearch.as_mut().unwrap()
    }
    vec![
        base.clone(),
        vary(|it| it.exchange.status = Some(500)),
        vary(|it| it.exchange.status = Some(201)),
        vary(|it| it.exchange.outcome = Outcome::TimedOut),
        vary(|it| it.exchange.host = Some("es2.example:9200".into())),
        vary(|it| it.exchange.host = Some("es.example:9201".into())),
        vary(|it| it.route = "/_search".into()),
        vary(|it| it.exchange.method = "GET"),
        vary(|it| it.process = Arc::new(crate::sink::fixtures::process("other", 7))),
        vary(|it| call(it).operation = None),
        vary(|it| call(it).collection = "other".into()),
        vary(|it| call(it).product = SearchProduct::OpenSearch),
        vary(|it| call(it).error_type = Some("circuit_breaking_exception".into())),
    ]
}

#[test]
fn borrowed_keys_are_equal_where_owned_ones_are() {
    let variants = variants_of_a_call();
    let server = |it: &Observation| {
        let mut scratch = String::new();
        let (host, port) = semantics::server_of(it, &mut scratch);
        (host.to_owned(), port)
    };
    let mut equal = [0, 0];
    for one in &variants {
        for other in &variants {
            let (server, other_server) = (server(one), server(other));
            let (server, other_server) =
                ((&*server.0, server.1), (&*other_server.0, other_server.1));
            let key = HttpKeyRef::new(one, Some(server));
            let other_key = HttpKey::from(&HttpKeyRef::new(other, Some(other_server)));
            assert_eq!(key.equivalent(&other_key), HttpKey::from(&key) == other_key);
            equal[0] += usize::from(key.equivalent(&other_key));

            let key = database_key(one, server);
            let other_key = DatabaseKey::from(&database_key(other, other_server));
            assert_eq!(
                key.equivalent(&other_key),
                DatabaseKey::from(&key) == other_key
            );
            equal[1] += usize::from(key.equivalent(&other_key));
        }
    }
    // Four variants are the same request, and two others the same call.
    assert_eq!(equal, [8 + 5 * 5, 10 + 3 * 3]);
}

fn database_key<'a>(it: &'a Observation, server: semantics::Server<'a>) -> DatabaseKeyRef<'a> {
    let call = it.exchange.elasticsearch.as_ref().unwrap();
    DatabaseKeyRef::new(&it.process.service, call, &it.exchange, Some(server))
}

#[test]
fn what_differs_in_a_label_is_another_series_in_the_cache_too() {
    let setup = Setup::new(&PrometheusOptions::default());
    let mut worker = setup.sink.worker();
    let variants = variants_of_a_call();
    for _ in 0..2 {
        for variant in &variants {
            worker.observe(variant);
        }
    }
    // Four variants are the same request; route and method are no labels of a call.
    for (metric, expected) in [
        (
            "http_client_request_duration_seconds_count",
            vec![2, 2, 2, 2, 2, 2, 2, 2, 10],
        ),
        (
            "db_client_operation_duration_seconds_count",
            vec![2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 6],
        ),
    ] {
        let text = setup.text();
        let of_line = |line: &str| -> u64 { line.rsplit(' ').next().unwrap().parse().unwrap() };
        let mut counts: Vec<u64> = text
            .lines()
            .filter(|line| line.starts_with(metric))
            .map(of_line)
            .collect();
        counts.sort_unstable();
        assert_eq!(counts, expected, "{metric}");
    }
}

#[test]
fn series_beyond_the_bound_are_counted_and_not_lost() {
    let setup = Setup::new(&PrometheusOptions {
        max_series: 3,
        ..PrometheusOptions::default()
    });
    let mut worker = setup.sink.worker();
    for round in 0..2 {
        for route in 0..10 {
            let mut one = observation("shop", Role::Server, &format!("/r{route}"));
            one.exchange.request_body_bytes = None;
            one.exchange.response_body_bytes = None;
            one.exchange.times.response_first_ns = None;
            worker.observe(&one);
        }
        assert_eq!(
            lock(&worker.table).http.len(),
            3,
            "round {round}: what overflows is not cached"
        );
    }
    let overflow = "http_server_request_duration_seconds_count{error_type=\"_overflow\",\
        http_request_method=\"_overflow\",http_response_status_code=\"_overflow\",\
        http_route=\"_overflow\",service_name=\"_overflow\"}";
    assert_eq!(setup.value(overflow), 14.0);
    assert_eq!(
        setup.value(r#"telltale_losses_total{reason="series_limit",stage="prometheus"}"#),
        14.0
    );
    assert_eq!(
        setup.value(r#"telltale_http_exchanges_total{outcome="matched",role="server"}"#),
        20.0
    );
}

#[test]
fn buckets_come_from_the_options() {
    let metric = "http_server_request_duration_seconds";
    let buckets = BTreeMap::from([(metric.to_owned(), vec![0.0001, 0.02])]);
    let setup = Setup::new(&PrometheusOptions {
        buckets,
        ..PrometheusOptions::default()
    });
    setup
        .sink
        .worker()
        .observe(&observation("shop", Role::Server, "/"));
    let text = setup.text();
    let bounds: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("http_server_request_duration_seconds_bucket"))
        .map(|line| {
            line.split("le=\"")
                .nth(1)
                .unwrap()
                .split('"')
                .next()
                .unwrap()
        })
        .collect();
    assert_eq!(bounds, ["0.0001", "0.02", "+Inf"]);
}

#[test]
fn overhead_is_never_negative() {
    let setup = Setup::new(&PrometheusOptions::default());
    let mut call = search("shop");
    call.exchange.elasticsearch.as_mut().unwrap().took_ms = Some(11);
    setup.sink.worker().observe(&call);
    let labels = r#"{db_collection_name="docs",db_operation_name="search",service_name="shop"}"#;
    assert_eq!(
        setup.value(&format!("elasticsearch_overhead_seconds_sum{labels}")),
        0.0
    );
    assert_eq!(
        setup.value(&format!("elasticsearch_took_seconds_sum{labels}")),
        0.011
    );
}

#[test]
fn a_series_that_was_forgotten_begins_again() {
    let setup = Setup::new(&PrometheusOptions::default());
    let mut worker = setup.sink.worker();
    let observation = observation("shop", Role::Server, "/");
    worker.observe(&observation);
    let count = r#"http_server_request_duration_seconds_count{error_type="",http_request_method="GET",http_response_status_code="200",http_route="/",service_name="shop"}"#;
    let start = Instant::now();
    setup.sink.traffic.forget_idle(start + FORGET_EVERY);
    worker.observe(&observation);
    assert_eq!(setup.value(count), 2.0, "in use: it stays");
    setup.sink.traffic.forget_idle(start + 2 * FORGET_EVERY);
    setup
        .sink
        .traffic
        .forget_idle(start + 3 * FORGET_EVERY + IDLE_AFTER);
    assert!(!setup.text().contains("shop"), "an hour without a value");
    worker.observe(&observation);
    assert_eq!(setup.value(count), 1.0, "and back at the first");
}

#[test]
fn what_a_worker_met_is_told_after_its_end() {
    let setup = Setup::new(&PrometheusOptions::default());
    setup
        .sink
        .worker()
        .observe(&observation("shop", Role::Server, "/"));
    assert!(
        setup
            .text()
            .contains("http_server_request_duration_seconds_count")
    );
}

#[test]
fn scrapes_beside_busy_workers_lose_nothing_and_never_go_back() {
    const WORKERS: u64 = 3;
    const EACH: u64 = 5_000;
    let setup = Setup::new(&PrometheusOptions::default());
    let count = || -> u64 {
        let text = setup.text();
        let of_line = |line: &str| -> u64 { line.rsplit(' ').next().unwrap().parse().unwrap() };
        let counts = text
            .lines()
            .filter(|it| it.starts_with("http_client_request_duration_seconds_count"));
        counts.map(of_line).sum()
    };
    let mut last = 0;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let mut worker = setup.sink.worker();
                scope.spawn(move || {
                    let observations = [search("shop"), search("other")];
                    for n in 0..EACH {
                        worker.observe(&observations[n as usize % 2]);
                    }
                })
            })
            .collect();
        while !workers
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            // Caches are let go of as well, as after a series that was forgotten.
            for table in lock(&setup.sink.traffic.0.tables).iter() {
                lock(table).clear();
            }
            let now = count();
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
    });
    assert_eq!(count(), WORKERS * EACH);
}
