//! Scripted conversations: each exchange has a route of its own, and has to be found once on the
//! server's side and once on the client's, with its method, status, sizes and times.
//!
//! Client and server are threads of the test that write and read the same steps. A step's first
//! byte is written by one and read by the other; both look at the clock, so that each time that the
//! agent tells lies between two that the test has taken.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::accounts::EXPORT_DELAY;
use e2e::script::{converse, listen};
use e2e::{Agent, Metrics, eventually};

/// One piece of the conversation: written by one side in one call where it fits, read by the other.
enum Step {
    Client(Vec<u8>),
    Server(Vec<u8>),
}

/// What one exchange of a conversation has to look like.
struct Expected {
    method: &'static str,
    route: &'static str,
    status: &'static str,
    /// `None` where nobody can tell.
    request_bytes: Option<usize>,
    response_bytes: Option<usize>,
    /// The steps with the request's first byte, the response's first and its last.
    steps: [usize; 3],
}

struct Script {
    name: &'static str,
    steps: Vec<Step>,
    expected: Vec<Expected>,
}

/// When one side was at a step: before its call, behind the one with the first byte, behind the last.
#[derive(Clone, Copy)]
struct Stamp {
    before: Instant,
    first: Instant,
    after: Instant,
}

fn client(bytes: impl AsRef<[u8]>) -> Step {
    Step::Client(bytes.as_ref().to_vec())
}

fn server(bytes: impl AsRef<[u8]>) -> Step {
    Step::Server(bytes.as_ref().to_vec())
}

fn walk(stream: &mut TcpStream, steps: &[Step], is_server: bool) -> Result<Vec<Stamp>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stamps = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let (bytes, writes) = match step {
            Step::Client(bytes) => (bytes, !is_server),
            Step::Server(bytes) => (bytes, is_server),
        };
        if writes {
            // So that steps are told apart by their times, and are segments of their own.
            thread::sleep(Duration::from_millis(3));
        }
        let before = Instant::now();
        let mut first = before;
        if writes {
            stream.write_all(bytes)?;
        } else {
            let mut room = vec![0; bytes.len()];
            let mut read = 0;
            while read < room.len() {
                let more = stream.read(&mut room[read..])?;
                ensure!(more > 0, "the connection ended in step {index}");
                if read == 0 {
                    first = Instant::now();
                }
                read += more;
            }
            ensure!(room == *bytes, "step {index} arrived otherwise");
        }
        let after = Instant::now();
        let first = if writes { after } else { first };
        stamps.push(Stamp {
            before,
            first,
            after,
        });
    }
    Ok(stamps)
}

/// Plays a script; returns the client's stamps and the server's.
fn play(listener: TcpListener, address: SocketAddr, steps: &[Step]) -> Result<[Vec<Stamp>; 2]> {
    let mut of_server = Vec::new();
    let mut of_client = Vec::new();
    converse(
        listener,
        |mut stream| {
            of_server = walk(&mut stream, steps, true)?;
            Ok(())
        },
        || {
            let mut stream = TcpStream::connect(address)?;
            of_client = walk(&mut stream, steps, false)?;
            Ok(())
        },
    )?;
    Ok([of_client, of_server])
}

/// Between which moments `side` had a step's first byte, and its last one.
fn bounds(stamps: &[Vec<Stamp>; 2], steps: &[Step], index: usize, side: usize) -> [Instant; 3] {
    let writer = usize::from(matches!(steps[index], Step::Server(_)));
    let (wrote, own) = (stamps[writer][index], stamps[side][index]);
    [wrote.before, own.first, own.after]
}

/// Checks one exchange as one side saw it.
fn check_side(
    metrics: &Metrics,
    expected: &Expected,
    script: &Script,
    stamps: &[Vec<Stamp>; 2],
    side: usize,
) -> Result<()> {
    let role = ["client", "server"][side];
    let label = ["url_template", "http_route"][side];
    let name = |rest: &str| format!("http_{role}_{rest}");
    let of_route = [(label, expected.route)];
    let labels = [
        (label, expected.route),
        ("http_request_method", expected.method),
        ("http_response_status_code", expected.status),
        (
            "error_type",
            if expected.status.starts_with('5') {
                expected.status
            } else {
                ""
            },
        ),
    ];
    let all = metrics.sum(&name("request_duration_seconds_count"), &of_route);
    let right = metrics.sum(&name("request_duration_seconds_count"), &labels);
    ensure!(
        all == 1.0 && right == 1.0,
        "{role}: {right} of {all} as expected"
    );
    for (what, bytes) in [
        ("request", expected.request_bytes),
        ("response", expected.response_bytes),
    ] {
        let count = metrics.sum(&name(&format!("{what}_body_size_bytes_count")), &of_route);
        let sum = metrics.sum(&name(&format!("{what}_body_size_bytes_sum")), &of_route);
        let (known, bytes) = (
            f64::from(u8::from(bytes.is_some())),
            bytes.unwrap_or(0) as f64,
        );
        ensure!(
            count == known && sum == bytes,
            "{role}: {what} body of {sum} bytes, {count} times; expected {bytes}, {known} times"
        );
    }
    let [begin, first, end] = expected
        .steps
        .map(|step| bounds(stamps, &script.steps, step, side));
    for (what, least, most) in [
        (
            "time_to_first_byte",
            first[0].saturating_duration_since(begin[1]),
            first[1] - begin[0],
        ),
        (
            "request_duration",
            end[0].saturating_duration_since(begin[1]),
            end[2] - begin[0],
        ),
    ] {
        let seconds = metrics.sum(&name(&format!("{what}_seconds_sum")), &of_route);
        // Written as decimal fractions.
        let slack = 1e-6;
        ensure!(
            seconds >= least.as_secs_f64() - slack && seconds <= most.as_secs_f64() + slack,
            "{role}: {what} {seconds} s is not in {least:?} to {most:?}"
        );
    }
    Ok(())
}

const PLAIN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An exchange that is request, answer, and nothing else.
fn simple(
    name: &'static str,
    route: &'static str,
    request: impl AsRef<[u8]>,
    response: impl AsRef<[u8]>,
    (method, status, sizes): (&'static str, &'static str, [usize; 2]),
) -> Script {
    Script {
        name,
        steps: vec![client(request), server(response)],
        expected: vec![Expected {
            method,
            route,
            status,
            request_bytes: Some(sizes[0]),
            response_bytes: Some(sizes[1]),
            steps: [0, 1, 1],
        }],
    }
}

/// What one segment holds.
fn simple_scripts() -> Vec<Script> {
    let false_head = "GET /false HTTP/1.1\r\nHost: a\r\n\r\n";
    let false_answer = "HTTP/1.1 500 False\r\nContent-Length: 3\r\n\r\n";
    vec![
        simple(
            "HEAD with the length of what is not sent",
            "/head",
            "HEAD /head HTTP/1.1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
            ("HEAD", "200", [0, 0]),
        ),
        simple(
            "204",
            "/empty",
            "DELETE /empty HTTP/1.1\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            ("DELETE", "204", [0, 0]),
        ),
        simple(
            "304 with the length of what is not sent",
            "/cached",
            "GET /cached HTTP/1.1\r\nIf-None-Match: \"1\"\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n",
            ("GET", "304", [0, 0]),
        ),
        simple(
            "chunks with extensions and trailers",
            "/chunked",
            "POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n\
             4;name=\"v\"\r\nWiki\r\n5 \r\npedia\r\n0\r\nX-End: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nA\r\n0123456789\r\n0;last\r\n\r\n",
            ("POST", "200", [9, 10]),
        ),
        simple(
            "bodies that look like heads",
            "/false-heads",
            format!(
                "POST /false-heads HTTP/1.1\r\nContent-Length: {}\r\n\r\n{false_head}",
                false_head.len()
            ),
            format!(
                "HTTP/1.1 201 X\r\nContent-Length: {}\r\n\r\n{false_answer}",
                false_answer.len()
            ),
            ("POST", "201", [false_head.len(), false_answer.len()]),
        ),
        simple(
            "bare line feeds behind an empty line",
            "/bare",
            "\r\nGET /bare HTTP/1.1\nHost: a\n\n",
            "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
            ("GET", "200", [0, 2]),
        ),
        simple(
            "absolute form with userinfo",
            "/absolute",
            "GET http://user:secret@example.org/absolute?token=secret HTTP/1.1\r\nHost: example.org\r\n\r\n",
            PLAIN,
            ("GET", "200", [0, 2]),
        ),
        simple(
            "asterisk form",
            "*",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            ("OPTIONS", "200", [0, 0]),
        ),
        simple(
            "a body until the end of an HTTP/1.0 connection",
            "/until-close",
            "GET /until-close HTTP/1.0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nall that comes",
            ("GET", "200", [0, 14]),
        ),
        simple(
            "an error",
            "/error",
            "GET /error HTTP/1.1\r\n\r\n",
            "HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n",
            ("GET", "503", [0, 0]),
        ),
        simple(
            "a method that no RFC knows",
            "/purge",
            "GET /before HTTP/1.1\r\n\r\nPURGE /purge HTTP/1.1\r\n\r\n",
            [PLAIN, PLAIN].concat(),
            ("_OTHER", "200", [0, 2]),
        ),
    ]
}

/// What takes several segments.
fn long_scripts() -> Vec<Script> {
    let one = |method, route, status, sizes: [usize; 2], steps| Expected {
        method,
        route,
        status,
        request_bytes: Some(sizes[0]),
        response_bytes: Some(sizes[1]),
        steps,
    };
    let cookies = "c".repeat(60_000);
    let long_head = format!("GET /long-head HTTP/1.1\r\nCookie: {cookies}\r\n\r\n").into_bytes();
    let cut = long_head.chunks(9_000).map(client);
    let cut_steps = cut.len();
    let upload = vec![b'u'; 40_000];
    let download = vec![b'd'; 300_000];
    vec![
        Script {
            name: "a head and a body in pieces, both ways",
            steps: vec![
                client("POST /piec"),
                client("es HTTP/1.1\r\nContent-Length: 6\r\n\r"),
                client("\nabc"),
                client("def"),
                server("HT"),
                server("TP/1.1 200 OK\r\nContent-Length: 4\r\n"),
                server("\r\n12"),
                server("34"),
            ],
            expected: vec![one("POST", "/pieces", "200", [6, 4], [0, 4, 7])],
        },
        Script {
            name: "103, then 100, then the answer",
            steps: vec![
                client("PUT /expect HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"),
                server("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
                server("HTTP/1.1 100 Continue\r\n\r\n"),
                client("abc"),
                server("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
            ],
            expected: vec![one("PUT", "/expect", "201", [3, 0], [0, 4, 4])],
        },
        Script {
            name: "an expectation that fails, and another request",
            steps: vec![
                client(
                    "PUT /refused HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
                ),
                server("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"),
                client("GET /behind-refused HTTP/1.1\r\n\r\n"),
                server(PLAIN),
            ],
            expected: vec![
                Expected {
                    request_bytes: None,
                    ..one("PUT", "/refused", "417", [0, 0], [0, 1, 1])
                },
                one("GET", "/behind-refused", "200", [0, 2], [2, 3, 3]),
            ],
        },
        Script {
            name: "a terminator in pieces",
            steps: vec![
                client("GET /terminator HTTP/1.1\r\n\r\n"),
                server("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
                server("0\r"),
                server("\n\r"),
                server("\n"),
            ],
            expected: vec![one("GET", "/terminator", "200", [0, 3], [0, 1, 4])],
        },
        Script {
            name: "HTTP/1.0 that stays open",
            steps: vec![
                client("GET /kept HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
                server("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na"),
                client("GET /kept-too HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
                server("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nb"),
            ],
            expected: vec![
                one("GET", "/kept", "200", [0, 1], [0, 1, 1]),
                one("GET", "/kept-too", "200", [0, 1], [2, 3, 3]),
            ],
        },
        Script {
            name: "pipelined, with an answer that has no body and one that has",
            steps: vec![
                client(
                    "HEAD /first HTTP/1.1\r\n\r\nPOST /second HTTP/1.1\r\nTransfer-Encoding: chu",
                ),
                client("nked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET /third HTTP/1.1\r\n\r\n"),
                server(
                    "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 4",
                ),
                server("04 Not Found\r\nContent-Length: 4\r\n\r\nnoneHTTP/1.1 204 X\r\n\r\n"),
            ],
            expected: vec![
                one("HEAD", "/first", "200", [0, 0], [0, 2, 2]),
                one("POST", "/second", "404", [1, 4], [0, 2, 3]),
                one("GET", "/third", "204", [0, 0], [1, 3, 3]),
            ],
        },
        Script {
            name: "a head of 60 KB",
            steps: cut.chain([server(PLAIN)]).collect(),
            expected: vec![one(
                "GET",
                "/long-head",
                "200",
                [0, 2],
                [0, cut_steps, cut_steps],
            )],
        },
        Script {
            name: "an answer before the upload's end",
            steps: vec![
                client(format!(
                    "POST /too-large HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
                    upload.len() + 3
                )),
                client(&upload),
                server("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"),
                client("end"),
                client("GET /behind-upload HTTP/1.1\r\n\r\n"),
                server(PLAIN),
            ],
            expected: vec![
                one(
                    "POST",
                    "/too-large",
                    "413",
                    [upload.len() + 3, 0],
                    [0, 2, 2],
                ),
                one("GET", "/behind-upload", "200", [0, 2], [4, 5, 5]),
            ],
        },
        Script {
            name: "a long download",
            steps: vec![
                client("GET /download HTTP/1.1\r\n\r\n"),
                server(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    2 * download.len()
                )),
                server(&download),
                server(&download),
            ],
            expected: vec![one(
                "GET",
                "/download",
                "200",
                [0, 2 * download.len()],
                [0, 1, 3],
            )],
        },
        Script {
            name: "101, then what looks like heads",
            steps: vec![
                client("GET /upgrade HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n"),
                server("HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\n\r\n"),
                client("GET /no-request HTTP/1.1\r\n\r\n"),
                server("HTTP/1.1 500 No Answer\r\nContent-Length: 0\r\n\r\n"),
            ],
            expected: vec![Expected {
                response_bytes: None,
                ..one("GET", "/upgrade", "101", [0, 0], [0, 1, 1])
            }],
        },
        Script {
            name: "CONNECT, then what looks like heads",
            steps: vec![
                client("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"),
                server("HTTP/1.1 200 Connected\r\n\r\n"),
                client("GET /no-request HTTP/1.1\r\n\r\n"),
                server("HTTP/1.1 500 No Answer\r\nContent-Length: 0\r\n\r\n"),
            ],
            expected: vec![Expected {
                response_bytes: None,
                ..one("CONNECT", "{authority}", "200", [0, 0], [0, 1, 1])
            }],
        },
    ]
}

#[test]
fn each_exchange_is_found_once_on_either_side() -> Result<()> {
    check_each_exchange("")
}

#[test]
fn the_walk_from_descriptor_to_socket_finds_the_same() -> Result<()> {
    check_each_exchange("tap: walk")
}

fn check_each_exchange(config: &str) -> Result<()> {
    let only_us = "targets: { include: [{ executable: 'exchanges-*' }] }";
    let agent = Agent::command()?
        .config(format!("{only_us}\n{config}"))
        .start()?;
    let mut played = Vec::new();
    for script in simple_scripts().into_iter().chain(long_scripts()) {
        let (listener, address) = listen()?;
        let stamps = play(listener, address, &script.steps).context(script.name)?;
        played.push((script, stamps));
    }
    for (script, stamps) in &played {
        for expected in &script.expected {
            eventually(EXPORT_DELAY, || {
                let metrics = agent.metrics()?;
                for side in 0..2 {
                    check_side(&metrics, expected, script, stamps, side)?;
                }
                Ok(())
            })
            .with_context(|| format!("{}: {}", script.name, expected.route))?;
        }
    }
    // What only looked like a request is none.
    let metrics = agent.metrics()?;
    for label in ["http_route", "url_template"] {
        for route in ["/false", "/no-request"] {
            let all = metrics
                .samples
                .iter()
                .filter(|sample| sample.label(label) == route);
            ensure!(all.count() == 0, "{route} was taken for a request");
        }
    }
    Ok(())
}
