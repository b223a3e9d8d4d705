//! What a request waits for while its server is busy, and its answer while its reader is.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2e::accounts::EXPORT_DELAY;
use e2e::otlp::{Collector, Span};
use e2e::script::{converse, listen, read_head};
use e2e::{Agent, Child, Client, NginxOptions, Request, Server, eventually, prerequisite};
use rustix::net::sockopt::set_socket_recv_buffer_size;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The test's own servers alone, and no profiles: nothing else of the agent is to take processors
/// from those whose waiting is measured.
const CONFIG: &str = "
targets: {include: [{service: 'e2e-*'}]}
profile: {continuous: {hz: 0}}
http: {queue_time: always}
";

/// All that runs.
const ALWAYS: &str = "http: {queue_time: always}";

const CLIENTS: u64 = 20;
const ROUNDS: u64 = 8;
const BLOCK_MS: u64 = 50;

/// Each client sends its next request once it has its answer; every other one opens a connection
/// for each, which has to be accepted by the loop that is held up.
fn block_the_loop(server: SocketAddr, prefix: &str) -> Result<BTreeMap<String, Duration>> {
    let client = |number: u64| -> Result<Vec<(String, Duration)>> {
        let mut connection = Client::connect(server)?;
        let mut measured = Vec::new();
        for round in 0..ROUNDS {
            let path = format!("{prefix}{:03}", number * ROUNDS + round);
            let request = Request::new("GET", &path);
            let start = Instant::now();
            if number % 2 == 1 {
                connection = Client::connect(server)?;
            }
            ensure!(connection.send(&request)?.status == 200);
            measured.push((path, start.elapsed()));
        }
        Ok(measured)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        let mut all = BTreeMap::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a client died"))??);
        }
        Ok(all)
    })
}

/// From the arrival of the request to the end of its answer, and from the read that took it.
fn told(span: &Span) -> Result<(Duration, Duration)> {
    let mut events = span.events.iter();
    let (_, arrived_ns) = events
        .find(|(name, _)| name == "request.arrived")
        .with_context(|| format!("{span:?} does not tell the arrival"))?;
    let since = |start_ns| Duration::from_nanos(span.end_unix_ns - start_ns);
    Ok((since(*arrived_ns), since(span.start_unix_ns)))
}

/// The value below which the share lies.
fn quantile(values: impl IntoIterator<Item = Duration>, share: f64) -> Duration {
    let mut sorted: Vec<_> = values.into_iter().collect();
    sorted.sort();
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// What threads of the test wait for a processor after their answer came is not the server's: a busy
/// machine may need another attempt, which a wrong measure fails as well.
fn attempt(times: u32, mut test: impl FnMut(u32) -> Result<()>) -> Result<()> {
    for number in 1..times {
        match test(number) {
            Ok(()) => return Ok(()),
            Err(error) => println!("attempt {number}: {error:#}"),
        }
    }
    test(times)
}

/// Has this test, and all that it starts from here on, go before whatever else the machine does: what
/// somebody waits for a processor is not what is measured. For the same reason no processor sleeps:
/// a virtual one takes longer to wake up than an idle server to read.
fn go_first() -> Result<Vec<Child>> {
    let chrt = prerequisite::on_path("chrt")?;
    let own_pid = std::process::id().to_string();
    let all = ["--fifo", "--all-tasks", "--pid", "1", &own_pid];
    ensure!(Command::new(&chrt).args(all).status()?.success());
    let processors = 0..thread::available_parallelism()?.get();
    processors
        .map(|_| {
            let mut command = Command::new(&chrt);
            command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
            Child::spawn("awake", command, tempfile::tempdir()?)
        })
        .collect()
}

#[test]
fn a_held_up_event_loop_shows_as_queue_time() -> Result<()> {
    let _awake = go_first()?;
    let collector = Collector::start()?;
    let agent = Agent::command()?
        .config(CONFIG)
        .arg("--otlp-endpoint")
        .arg(collector.grpc_endpoint())
        .start()?;
    let server = Server::uvicorn()?;
    attempt(3, |number| {
        let prefix = format!("/block/{BLOCK_MS}/{number}");
        let measured = block_the_loop(server.address, &prefix)?;
        let spans = eventually(EXPORT_DELAY, || {
            let spans = collector.spans()?.into_iter();
            let spans: BTreeMap<_, _> = spans
                .map(|span| (span.attribute("url.path").to_owned(), span))
                .filter(|(path, _)| measured.contains_key(path))
                .collect();
            let missing: Vec<_> = measured
                .keys()
                .filter(|path| !spans.contains_key(*path))
                .collect();
            ensure!(missing.is_empty(), "no span of {missing:?}");
            Ok(spans)
        })?;
        compare(&measured, &spans)
    })?;
    drop(agent);
    Ok(())
}

/// Whether what the server's side tells is what the clients measured.
fn compare(measured: &BTreeMap<String, Duration>, spans: &BTreeMap<String, Span>) -> Result<()> {
    const NEAR: Duration = Duration::from_millis(2);
    let told: BTreeMap<_, _> = spans
        .iter()
        .map(|(path, span)| Ok((path, told(span)?)))
        .collect::<Result<_>>()?;
    for share in [0.5, 0.99] {
        let waited = quantile(measured.values().copied(), share);
        let server_side = quantile(
            told.values().map(|(since_arrival, _)| *since_arrival),
            share,
        );
        let duration = quantile(told.values().map(|(_, duration)| *duration), share);
        println!(
            "{share}: clients {waited:?}, arrival to end {server_side:?}, read to end {duration:?}"
        );
        ensure!(
            waited.abs_diff(server_side) < NEAR,
            "quantile {share}: clients waited {waited:?}, the server's side tells {server_side:?}"
        );
        // What every measure that begins with the read leaves out.
        let block = Duration::from_millis(BLOCK_MS);
        ensure!(duration + block < waited, "hardly anything was queued");
    }
    let differences = measured.iter().map(|(path, waited)| {
        let (since_arrival, _) = told[path];
        waited.abs_diff(since_arrival)
    });
    let difference = quantile(differences, 0.5);
    println!("of one exchange, in the middle: {difference:?}");
    ensure!(difference < NEAR, "of one exchange: {difference:?}");
    Ok(())
}

/// The queue time of a service's route, once it has as many requests as that: the sum, and how many
/// were read within 100 µs.
fn queue_time(agent: &Agent, labels: &[(&str, &str)], requests: u64) -> Result<(Duration, u64)> {
    let metrics = eventually(EXPORT_DELAY, || {
        let metrics = agent.metrics()?;
        let count = metrics.sum("http_server_queue_time_seconds_count", labels);
        ensure!(
            count == requests as f64,
            "queue time of {count} of {requests}"
        );
        Ok(metrics)
    })?;
    let sum = metrics.sum("http_server_queue_time_seconds_sum", labels);
    let within = [labels, &[("le", "0.0001")]].concat();
    let quick = metrics.sum("http_server_queue_time_seconds_bucket", &within);
    Ok((Duration::from_secs_f64(sum), quick as u64))
}

/// Requests one after the other, with pauses in which the server goes to sleep.
fn ask_an_idle_server(address: SocketAddr, requests: u64) -> Result<()> {
    let mut client = Client::connect(address)?;
    for _ in 0..requests {
        thread::sleep(Duration::from_millis(5));
        ensure!(client.send(&Request::new("GET", "/items/7"))?.status == 200);
    }
    Ok(())
}

#[test]
fn an_idle_server_has_no_queue() -> Result<()> {
    const REQUESTS: u64 = 100;
    let _awake = go_first()?;
    let agent = Agent::command()?.config(CONFIG).start()?;
    let uvicorn = Server::uvicorn()?;
    let (nginx, gunicorn) = Server::gunicorn_behind_nginx()?;
    attempt(5, |number| {
        let sent = u64::from(number) * REQUESTS;
        ask_an_idle_server(uvicorn.address, REQUESTS)?;
        ask_an_idle_server(nginx.address, REQUESTS)?;
        // Of TCP and of Unix sockets, every request is told.
        for server in [&uvicorn, &nginx, &gunicorn] {
            let labels = [("service_name", server.service.as_str())];
            let (sum, quick) = queue_time(&agent, &labels, sent)?;
            println!(
                "{}: {quick} of {sent} within 100 µs, {sum:?}",
                server.service
            );
            // An interpreter takes its time from the wake-up to the read, and gunicorn has another
            // thread read.
            let is_quick = match server.service == nginx.service {
                true => quick > sent / 2,
                false => sum < Duration::from_millis(1) * u32::try_from(sent)?,
            };
            ensure!(is_quick, "{}: {quick} of {sent}, {sum:?}", server.service);
        }
        Ok(())
    })
}

/// Sends one request to a server that accepts late, or to one that has accepted long ago.
fn ask_once(route: &str, accept_after: Duration, ask_after: Duration) -> Result<()> {
    let (listener, address) = listen()?;
    thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<()> {
            thread::sleep(accept_after);
            let (mut stream, _) = listener.accept()?;
            read_head(&mut stream)?;
            Ok(stream.write_all(ANSWER)?)
        });
        let mut client = Client::connect(address)?;
        thread::sleep(ask_after);
        ensure!(client.send(&Request::new("GET", route))?.status == 200);
        server.join().map_err(|_| anyhow!("the server died"))?
    })
}

#[test]
fn a_connection_that_waits_to_be_accepted_is_queued() -> Result<()> {
    const LONG: Duration = Duration::from_millis(300);
    const SHORT: Duration = Duration::from_millis(100);
    let agent = Agent::command()?.config(ALWAYS).start()?;
    // Asked at once: waits from then on. Asked while it waits already: from the connection on.
    ask_once("/at-once", LONG, Duration::ZERO)?;
    ask_once("/while-waiting", LONG, SHORT)?;
    for route in ["/at-once", "/while-waiting"] {
        let (waited, _) = queue_time(&agent, &[("http_route", route)], 1)?;
        ensure!(
            waited > LONG - Duration::from_millis(20),
            "{route}: {waited:?}"
        );
        ensure!(waited < LONG + SHORT, "{route}: {waited:?}");
    }
    // Connected ahead of time, as browsers do: only the request counts.
    ask_once("/ahead-of-time", Duration::ZERO, LONG)?;
    let (waited, _) = queue_time(&agent, &[("http_route", "/ahead-of-time")], 1)?;
    ensure!(waited < SHORT, "{waited:?}");
    Ok(())
}

/// A request's queue time is that of its own bytes, whatever came before on the connection.
#[test]
fn neither_bodies_nor_silence_are_the_next_requests_queue() -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(150);
    let agent = Agent::command()?.config(ALWAYS).start()?;
    let (listener, address) = listen()?;
    let serve = |mut stream: TcpStream| {
        for body in [1000, 0, 0] {
            read_head(&mut stream)?;
            std::io::copy(&mut (&stream).take(body), &mut std::io::sink())?;
            stream.write_all(ANSWER)?;
        }
        Ok(())
    };
    converse(listener, serve, || {
        let mut client = Client::connect(address)?;
        let upload = Request::new("POST", "/upload").body(vec![b'x'; 1000]);
        client.write(&upload.head())?;
        for piece in upload.body.chunks(250) {
            thread::sleep(Duration::from_millis(20));
            client.write_more(piece)?;
        }
        client.read_response("POST")?;
        for _ in 0..2 {
            thread::sleep(PAUSE);
            client.send(&Request::new("GET", "/after"))?;
        }
        Ok(())
    })?;
    for (route, requests) in [("/upload", 1), ("/after", 2)] {
        let (waited, _) = queue_time(&agent, &[("http_route", route)], requests)?;
        ensure!(waited < PAUSE / 2, "{route}: {waited:?}");
    }
    Ok(())
}

/// One second out of seven, of which the first begins with the agent.
#[test]
fn arrivals_are_watched_now_and_then() -> Result<()> {
    let agent = Agent::start()?;
    ask_once("/within", Duration::ZERO, Duration::ZERO)?;
    queue_time(&agent, &[("http_route", "/within")], 1)?;
    thread::sleep(Duration::from_millis(1500));
    for route in ["/between", "/later"] {
        ask_once(route, Duration::ZERO, Duration::ZERO)?;
        let labels = [("http_route", route)];
        let metrics = eventually(EXPORT_DELAY, || {
            let metrics = agent.metrics()?;
            let count = metrics.sum("http_server_request_duration_seconds_count", &labels);
            ensure!(count == 1.0, "{count} of 1");
            Ok(metrics)
        })?;
        let told = metrics.sum("http_server_queue_time_seconds_count", &labels);
        assert_eq!(told, 0.0, "{route}");
    }
    // The second one.
    eventually(Duration::from_secs(8), || {
        ask_once("/again", Duration::ZERO, Duration::ZERO)?;
        let told = agent.metrics()?;
        let told = told.sum(
            "http_server_queue_time_seconds_count",
            &[("http_route", "/again")],
        );
        ensure!(told > 0.0, "no second window");
        Ok(())
    })
}

#[test]
fn waiting_can_be_left_alone() -> Result<()> {
    let agent = Agent::command()?
        .config("http: {queue_time: off, delivery_time: false}\n")
        .start()?;
    ask_once("/unwatched", Duration::ZERO, Duration::ZERO)?;
    let labels = [("http_route", "/unwatched")];
    let metrics = eventually(EXPORT_DELAY, || {
        let metrics = agent.metrics()?;
        let count = metrics.sum("http_server_request_duration_seconds_count", &labels);
        ensure!(count == 1.0, "{count} of 1");
        Ok(metrics)
    })?;
    for name in ["http_server_queue_time_seconds", DELIVERY] {
        assert_eq!(
            metrics.sum(&format!("{name}_count"), &labels),
            0.0,
            "{name}"
        );
    }
    let mut programs = metrics.select("telltale_bpf_runs_total", &[]);
    assert!(programs.all(|sample| sample.label("program") != "sk_data_ready"));
    Ok(())
}

/// Reads that many bytes, or to the end, with `pause` after each piece; returns how long that took.
fn read_slowly(stream: &mut TcpStream, bytes: usize, pause: Duration) -> Result<Duration> {
    let start = Instant::now();
    let mut piece = vec![0; 128 << 10];
    let mut left = bytes;
    while left > 0 {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            break;
        }
        left = left.saturating_sub(read);
        thread::sleep(pause);
    }
    Ok(start.elapsed())
}

/// Sum and count of a histogram, once it has a value.
fn histogram(agent: &Agent, name: &str, labels: &[(&str, &str)]) -> Result<(Duration, f64)> {
    eventually(EXPORT_DELAY, || {
        let metrics = agent.metrics()?;
        let count = metrics.sum(&format!("{name}_count"), labels);
        ensure!(count > 0.0, "no {name} of {labels:?}");
        let sum = metrics.sum(&format!("{name}_sum"), labels);
        Ok((Duration::from_secs_f64(sum), count))
    })
}

const DELIVERY: &str = "http_server_delivery_time_seconds";

/// The server has long written all of its answer, and closed the connection.
#[test]
fn a_slow_reader_shows_as_delivery_time() -> Result<()> {
    const BODY: usize = 2 << 20;
    let agent = Agent::start()?;
    let (listener, address) = listen()?;
    let serve = |mut stream: TcpStream| {
        read_head(&mut stream)?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &vec![b'x'; BODY]].concat())?;
        Ok(())
    };
    let mut read_for = Duration::ZERO;
    converse(listener, serve, || {
        let mut client = TcpStream::connect(address)?;
        // Left alone, the kernel may come to hold all of the answer for its reader.
        set_socket_recv_buffer_size(&client, 128 << 10)?;
        client.write_all(&Request::new("GET", "/slowly").head())?;
        read_for = read_slowly(&mut client, usize::MAX, Duration::from_millis(60))?;
        Ok(())
    })?;
    let labels = [("http_route", "/slowly")];
    let (delivery, count) = histogram(&agent, DELIVERY, &labels)?;
    let (duration, _) = histogram(&agent, "http_server_request_duration_seconds", &labels)?;
    println!("read for {read_for:?}: duration {duration:?}, delivery {delivery:?}");
    assert_eq!(count, 1.0);
    ensure!(
        duration < Duration::from_millis(100),
        "duration {duration:?}"
    );
    // What the reader's kernel holds for it has been delivered.
    ensure!(
        delivery > read_for / 2,
        "delivery {delivery:?} of {read_for:?}"
    );
    ensure!(
        delivery < read_for + Duration::from_millis(50),
        "delivery {delivery:?}"
    );
    Ok(())
}

/// nginx writes as its reader reads: duration is delivery then, and time to first byte is not.
#[test]
fn nginx_delivers_a_file_as_slowly_as_it_is_read() -> Result<()> {
    const FILE: usize = 8 << 20;
    const SMALL: u64 = 20;
    let agent = Agent::start()?;
    let nginx = Server::nginx(NginxOptions::default())?;
    std::fs::write(nginx.folder().join("files/large"), vec![b'x'; FILE])?;
    let mut client = Client::connect(nginx.address)?;
    client.write(&Request::new("GET", "/files/large").head())?;
    let mut stream = client.stream().try_clone()?;
    // The head is a part of it, but for which the last piece comes early.
    let read_for = read_slowly(&mut stream, FILE, Duration::from_millis(20))?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // The next request tells of the answer before; the last one's is told by the end.
    for _ in 0..SMALL {
        ensure!(client.send(&Request::new("GET", "/return"))?.status == 200);
    }
    drop((client, stream));

    let of = |route| {
        [
            ("service_name", nginx.service.as_str()),
            ("http_route", route),
        ]
    };
    let (delivery, count) = histogram(&agent, DELIVERY, &of("/files/large"))?;
    let first_byte = "http_server_time_to_first_byte_seconds";
    let (first_byte, _) = histogram(&agent, first_byte, &of("/files/large"))?;
    println!("read for {read_for:?}: first byte {first_byte:?}, delivery {delivery:?}");
    assert_eq!(count, 1.0);
    ensure!(
        first_byte < Duration::from_millis(100),
        "first byte {first_byte:?}"
    );
    ensure!(
        delivery > read_for / 2,
        "delivery {delivery:?} of {read_for:?}"
    );
    ensure!(
        delivery < read_for + Duration::from_millis(50),
        "delivery {delivery:?}"
    );
    let delivery = eventually(EXPORT_DELAY, || {
        let (delivery, count) = histogram(&agent, DELIVERY, &of("/return"))?;
        ensure!(count == SMALL as f64, "{count} of {SMALL}");
        Ok(delivery)
    })?;
    // Acknowledged with the next request, or within what a kernel waits for one (40 ms).
    println!("{SMALL} small answers: {delivery:?}");
    ensure!(
        delivery < Duration::from_millis(45) * SMALL as u32,
        "{delivery:?}"
    );
    Ok(())
}
