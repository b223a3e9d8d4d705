//! The layers, the example file, and what each refusal says.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::cli::{self, Command, Invocation, RunArgs};

const EXAMPLE: &str = include_str!("../../../deploy/telltale.example.yaml");

fn run_args(flags: &[&str]) -> RunArgs {
    let arguments = ["telltale", "run"].iter().chain(flags);
    match cli::parse(arguments.copied()).unwrap() {
        Invocation::Command(Command::Run(args)) => args,
        other => panic!("{other:?}"),
    }
}

fn load(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.yaml");
    std::fs::write(&path, file).unwrap();
    let mut args = run_args(flags);
    args.config = Some(path);
    Config::load(&args, |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

fn yaml(text: &str) -> Result<Config, ConfigError> {
    Config::from_yaml(text, Path::new("t.yaml"))
}

/// Every dotted key of a tree whose leaves are not mappings.
fn keys(value: &Value, prefix: &str, into: &mut BTreeSet<String>) {
    for (key, item) in value.as_object().into_iter().flatten() {
        let path = format!("{prefix}.{key}");
        keys(item, &path, into);
        into.insert(path);
    }
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    assert_eq!(yaml(EXAMPLE).unwrap(), Config::default());
    let (mut shown, mut existing) = (BTreeSet::new(), BTreeSet::new());
    keys(
        &serde_saphyr::from_str::<Value>(EXAMPLE).unwrap(),
        "",
        &mut shown,
    );
    keys(
        &serde_json::to_value(Config::default()).unwrap(),
        "",
        &mut existing,
    );
    assert_eq!(shown, existing);
    for histogram in HISTOGRAMS {
        assert!(EXAMPLE.contains(histogram), "{histogram}");
    }
}

#[test]
fn the_examples_own_examples_are_valid() {
    let config = yaml(
        r#"
targets:
  include:
    - executable: nginx
      command_line: "*uvicorn*"
      port: 8000
      service: "orders-*"
      container: 3f9a7c1be2d8
routes:
  templates:
    "orders-*": ["/orders/{id}", "/orders/{id}/items/{item}"]
metrics:
  buckets:
    http_server_request_duration_seconds: [.0001, .00025, .0005, .001, .0025, .005, .01, .1, 1]
otlp:
  headers: { authorization: Bearer x }
elasticsearch:
  endpoints: ["10.0.0.7:9200", "es.example:9200", "[::1]:9200", "proxy:80/es"]
  query_text: true
  body_bytes: 0
"#,
    )
    .unwrap();
    assert_eq!(config.targets.include[0].port, Some(8000));
    assert_eq!(config.routes.templates["orders-*"].len(), 2);
    let bounds = &config.metrics.buckets["http_server_request_duration_seconds"];
    assert_eq!((bounds[0], bounds[8]), (0.0001, 1.0));
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let file = "listen: 127.0.0.1:1\nlog: {level: error, format: json}\n";
    let variables = [
        ("TELLTALE_LISTEN", "127.0.0.1:2"),
        ("TELLTALE_LOG_LEVEL", "debug"),
    ];
    let listen = |config: Config| config.listen.port();
    assert_eq!(listen(load("", &[], &[]).unwrap()), 9464);
    assert_eq!(listen(load(file, &[], &[]).unwrap()), 1);
    assert_eq!(listen(load(file, &variables, &[]).unwrap()), 2);
    let config = load(file, &variables, &["--listen", "127.0.0.1:3"]).unwrap();
    assert_eq!(
        (config.listen.port(), config.log.level),
        (3, LogLevel::Debug)
    );
    assert_eq!(config.log.format, LogFormat::Json);
    let config = load(
        file,
        &variables,
        &["--log-level", "trace", "--log-format", "text"],
    )
    .unwrap();
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Trace, LogFormat::Text)
    );
    // Empty counts as unset.
    assert_eq!(
        listen(load(file, &[("TELLTALE_LISTEN", "")], &[]).unwrap()),
        1
    );
}

#[test]
fn where_spans_go_follows_the_opentelemetry_specification() {
    let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:4318/base/");
    let traces = (
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "http://traces:4318/mine",
    );
    let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    let file = "otlp: {traces_endpoint: 'http://file:4318/here'}";
    let flag = ["--otlp-endpoint", "http://flag:4318"];
    for (file, variables, flags, expected) in [
        ("", &[][..], &[][..], None),
        (file, &[http], &[], Some("http://file:4318/here")),
        (
            file,
            &[http, base],
            &[],
            Some("http://env:4318/base/v1/traces"),
        ),
        (
            file,
            &[http, base, traces],
            &[],
            Some("http://traces:4318/mine"),
        ),
        (
            file,
            &[http, base, traces],
            &flag,
            Some("http://flag:4318/v1/traces"),
        ),
        ("", &[base], &[], Some("http://env:4318/base/")),
        (
            "",
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "tempo:4317")],
            &[],
            Some("http://tempo:4317"),
        ),
    ] {
        let config = load(file, variables, flags).unwrap();
        assert_eq!(
            config.otlp.traces_url().as_deref(),
            expected,
            "{file} {variables:?}"
        );
    }
}

#[test]
fn the_exporters_other_variables_are_honoured() {
    let config = load(
        "otlp: {headers: {kept: 1a}}",
        &[
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%20cret, x = y"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ],
        &[],
    )
    .unwrap();
    let headers: Vec<_> = config
        .otlp
        .headers
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(headers, ["api-key=s cret", "kept=1a", "x=y"]);
    assert_eq!(config.otlp.timeout, Duration::from_millis(2500));
}

#[test]
fn a_key_without_a_value_keeps_the_default() {
    assert_eq!(yaml("").unwrap(), Config::default());
    assert_eq!(yaml("# nothing\n").unwrap(), Config::default());
    assert_eq!(yaml("otlp:\nlog:\n  level:\n").unwrap(), Config::default());
}

#[test]
fn off_is_a_word() {
    let off = "log: {level: off}\nmetrics: {program_statistics: off}\nhttp: {queue_time: off}\n";
    let config = yaml(off).unwrap();
    assert_eq!(config.log.level, LogLevel::Off);
    assert_eq!(config.metrics.program_statistics, Sampling::Off);
    assert_eq!(config.http.queue_time, Sampling::Off);
}

/// The text of a refusal, which has to be one line.
#[track_caller]
fn refusal(result: Result<Config, ConfigError>) -> String {
    let text = result.expect_err("it is refused").to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn refusals_name_the_key_the_value_and_what_is_allowed() {
    for (file, expected) in [
        (
            "listn: 127.0.0.1:1",
            "t.yaml: unknown key `listn`, did you mean `listen`?; allowed here: listen, log, otlp, \
             targets, routes, metrics, tap, capture, http, elasticsearch, profile",
        ),
        (
            "otlp: {endpont: x}",
            "t.yaml: unknown key `otlp.endpont`, did you mean `otlp.endpoint`?; allowed here: \
             endpoint, traces_endpoint, protocol, headers, timeout, queue_spans, batch_spans, interval",
        ),
        (
            "targets: {include: [{exe: nginx}]}",
            "t.yaml: unknown key `targets.include[0].exe`, did you mean `targets.include[0].executable`?; allowed here: executable, command_line, \
             port, service, container",
        ),
        (
            "listen: localhost:9464",
            "t.yaml: `listen` is `localhost:9464`; allowed: an IP address and a port \
             (`127.0.0.1:9464`, `[::]:9464`)",
        ),
        (
            "log: {level: loud}",
            "t.yaml: `log.level` is `loud`; allowed: one of off, error, warn, info, debug, trace",
        ),
        (
            "log: text",
            "t.yaml: `log` is `text`; allowed: a mapping of keys to values",
        ),
        (
            "- 1",
            "t.yaml: `the whole file` is `[1]`; allowed: a mapping of keys to values",
        ),
        (
            "otlp: {protocol: http/json}",
            "t.yaml: `otlp.protocol` is `http/json`; allowed: grpc or http/protobuf",
        ),
        (
            "otlp: {timeout: 10}",
            "t.yaml: `otlp.timeout` is `10`; allowed: a whole number with its unit: ms, s, m or h (`500ms`, `10s`)",
        ),
        (
            "otlp: {timeout: 0s}",
            "t.yaml: `otlp.timeout` is `0ns`; allowed: 1ms to 600s",
        ),
        (
            "otlp: {batch_spans: 9000}",
            "t.yaml: `otlp.batch_spans` is `9000`; allowed: 1 to 8192",
        ),
        (
            "otlp: {queue_spans: -1}",
            "t.yaml: `otlp.queue_spans` is `-1`; allowed: a whole number, 0 or more",
        ),
        (
            "otlp: {endpoint: 'ftp://x'}",
            "t.yaml: `otlp.endpoint` is `ftp://x`; allowed: http://host:port (TLS is not built in)",
        ),
        (
            "otlp: {headers: {'a b': c}}",
            "t.yaml: `otlp.headers.a b` is malformed (not shown, it may hold a credential); allowed: \
             header names and values as HTTP allows them (`key=value,…`)",
        ),
        (
            "capture: {bytes: 100}",
            "t.yaml: `capture.bytes` is `100`; allowed: 256 to 16384",
        ),
        (
            "capture: {bytes: 4KB}",
            "t.yaml: `capture.bytes` is `4KB`; allowed: a number of bytes, or one with KiB or MiB (`4096`, `4KiB`)",
        ),
        (
            "capture: {rings: 9}",
            "t.yaml: `capture.rings` is `9`; allowed: 0 to 8",
        ),
        (
            "capture: {ring_bytes: 3MiB}",
            "t.yaml: `capture.ring_bytes` is `3145728`; allowed: a power of two, 64KiB to 64MiB",
        ),
        (
            "elasticsearch: {body_bytes: 1KiB}",
            "t.yaml: `elasticsearch.body_bytes` is `1024`; allowed: 4096 to 16777216",
        ),
        (
            "tap: syscalls",
            "t.yaml: `tap` is `syscalls`; allowed: one of auto, socket, fentry, walk",
        ),
        (
            "targets: {exclude: [{}]}",
            "t.yaml: `targets.exclude[0]` is `{}`; allowed: at least one of executable, command_line, \
             port, service, container",
        ),
        (
            "targets: {include: [{port: 99999}]}",
            "t.yaml: `targets.include[0].port` is `99999`; allowed: a whole number, 0 to 65535",
        ),
        (
            "targets: {include: [{service: 'a['}]}",
            "t.yaml: `targets.include[0].service` is `a[`; allowed: a glob (error parsing glob 'a[': \
             unclosed character class; missing ']')",
        ),
        (
            "routes: {templates: {'*': [users]}}",
            "t.yaml: `routes.templates.*` is `users`; allowed: paths that begin with / and whose \
             variable segments are whole, in braces (`/users/{id}`)",
        ),
        (
            "metrics: {buckets: {elasticsearch_took_seconds: [1, 1]}}",
            "t.yaml: `metrics.buckets.elasticsearch_took_seconds` is `[1.0, 1.0]`; allowed: 1 to 64 \
             finite numbers above 0, each larger than the one before",
        ),
        (
            "log: [json]",
            "t.yaml: `log` is `[\"json\"]`; allowed: a mapping of keys to values",
        ),
        (
            "targets: {include: [[nginx]]}",
            "t.yaml: `targets.include[0]` is `[\"nginx\"]`; allowed: a mapping of keys to values",
        ),
        (
            "metrics: {buckets: {elasticsearch_took_seconds: [.inf]}}",
            "t.yaml: not valid YAML: non-finite float `.inf` rejected by the configured policy at line 1, column 50",
        ),
        (
            "elasticsearch: {poll: {endpoints: [\"https://es:9200\"]}}",
            "t.yaml: `elasticsearch.poll.endpoints[0]` is `https://es:9200`; allowed: http://host:port \
             (TLS is not built in)",
        ),
        (
            "elasticsearch: {poll: {interval: 1h}}",
            "t.yaml: `elasticsearch.poll.interval` is `3600s`; allowed: 1000ms to 120s",
        ),
        (
            "elasticsearch: {poll: {authorization_file: /nowhere}}",
            "t.yaml: `elasticsearch.poll.authorization_file` is `/nowhere`; allowed: a file",
        ),
        (
            "elasticsearch: {endpoints: [es]}",
            "t.yaml: `elasticsearch.endpoints[0]` is `es`; allowed: host:port or \
             host:port/prefix (`10.0.0.7:9200`, `proxy:80/es`)",
        ),
        (
            "profile: {max_duration: 2h}",
            "t.yaml: `profile.max_duration` is `7200s`; allowed: 1000ms to 600s",
        ),
    ] {
        assert_eq!(refusal(yaml(file)), expected);
    }
}

#[test]
fn a_metric_that_does_not_exist_is_refused() {
    let text = refusal(yaml("metrics: {buckets: {http_server_duration: [1]}}"));
    assert!(
        text.contains("unknown key `metrics.buckets.http_server_duration`"),
        "{text}"
    );
    assert!(text.contains("elasticsearch_took_seconds"), "{text}");
}

#[test]
fn a_file_that_is_not_yaml_is_refused_with_its_line() {
    let text = refusal(yaml("log:\n  level: [info\nlisten: x\n"));
    assert!(text.starts_with("t.yaml: not valid YAML: "), "{text}");
    assert!(text.contains("line "), "{text}");
    assert!(refusal(yaml("tap: auto\ntap: walk\n")).contains("duplicate"));
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    for path in ["/nonexistent/t.yaml", "/"] {
        let args = RunArgs {
            config: Some(path.into()),
            ..RunArgs::default()
        };
        let text = refusal(Config::load(&args, |_| None));
        assert!(
            text.starts_with(&format!("--config {path}: cannot read the file: ")),
            "{text}"
        );
    }
}

#[test]
fn environment_and_flags_are_named_in_their_refusals() {
    for (variables, flags, expected) in [
        (
            &[("TELLTALE_LISTEN", "9464")][..],
            &[][..],
            "environment: `TELLTALE_LISTEN` is `9464`; allowed: ",
        ),
        (
            &[("TELLTALE_LOG_FORMAT", "xml")],
            &[],
            "environment: `TELLTALE_LOG_FORMAT` is `xml`; allowed: text, json",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
            &[],
            "environment: `OTEL_EXPORTER_OTLP_PROTOCOL` is `http/json`; allowed: grpc, http/protobuf",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")],
            &[],
            "environment: `OTEL_EXPORTER_OTLP_TIMEOUT` is `10s`; allowed: milliseconds",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://")],
            &[],
            "environment: `OTEL_EXPORTER_OTLP_ENDPOINT` is `http://`; allowed: ",
        ),
        (
            &[("OTEL_EXPORTER_OTLP_HEADERS", "secret")],
            &[],
            "environment: `OTEL_EXPORTER_OTLP_HEADERS` is malformed (not shown",
        ),
        (
            &[],
            &["--listen", "nowhere"],
            "command line: `--listen` is `nowhere`; allowed: an IP address and a port",
        ),
        (
            &[],
            &["--otlp-endpoint", "http://h:99999"],
            "command line: `--otlp-endpoint` is `http://h:99999`; allowed: ",
        ),
    ] {
        let text = refusal(load("", variables, flags));
        assert!(text.starts_with(expected), "{text}");
    }
}

#[test]
fn command_lines_that_clap_refuses_are_one_line() {
    for (flags, expected) in [
        (
            &["run", "--lisen", "x"][..],
            "unexpected argument '--lisen' found tip: a similar argument exists: '--listen'",
        ),
        (
            &["run", "--log-format", "xml"],
            "invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]",
        ),
        (&["start"], "unrecognized subcommand 'start'"),
        (&[], "no command given; allowed: run, profile, check"),
        (
            &["profile"],
            "the following required arguments were not provided: <--pid <PID>|--service <NAME>|--tid <TID>|--container <ID>|--cgroup <PATH>|--all>",
        ),
        (
            &["profile", "--all", "--pid", "1"],
            "the argument '--all' cannot be used with '--pid <PID>'",
        ),
        (
            &["profile", "--all", "--hz", "0"],
            "invalid value '0' for '--hz <HZ>': 0 is not in 1..=997",
        ),
    ] {
        let arguments = ["telltale"].iter().chain(flags);
        let text = cli::parse(arguments.copied()).unwrap_err().to_string();
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let help = cli::parse(["telltale", "run", "--help"]).unwrap();
    assert!(matches!(help, Invocation::Print(text) if text.contains("--otlp-endpoint")));
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC*(\n\\PC*){0,5}|[\\x00-\\x7f]{0,100}") {
        let _ = yaml(&text);
    }

    #[test]
    fn any_value_of_any_key_is_survived_and_refused_in_one_line(
        key in prop::sample::select(vec![
            "listen", "log", "otlp", "targets", "routes", "metrics", "tap", "capture", "http", "elasticsearch",
            "profile", "elasticsearch.poll", "otlp.timeout", "otlp.headers", "otlp.endpoint", "capture.bytes", "capture.ring_bytes",
            "metrics.buckets", "targets.include", "routes.templates", "profile.max_duration", "nothing",
        ]),
        value in "[-0-9a-zA-Z.:/@\\[\\]{}'\", #&*!|>%]{0,24}|-?[0-9]{1,25}(ms|s|m|h|KiB|MiB)?",
    ) {
        let text = key.rsplit('.').fold(value, |inner, part| format!("{{{part}: {inner}}}"));
        if let Err(error) = yaml(&text) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn any_environment_is_survived(value in "\\PC{0,60}") {
        for name in ["TELLTALE_LISTEN", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TIMEOUT"] {
            let found = Config::load(&RunArgs::default(), |asked| (asked == name).then(|| value.clone()));
            if let Err(error) = found {
                prop_assert_eq!(error.to_string().lines().count(), 1);
            }
        }
    }
}
