//! What is seen and not reported has a reason: those that connections of threads and an orderly
//! agent (suite `accounting`) do not bring about. The accounting identity holds with each of them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::accounts::{EXPORT_DELAY, check_identity};
use e2e::script::{check_both_sides, converse, listen, read_head};
use e2e::{Agent, AgentCommand, Client, Metrics, Request, Split, eventually, prerequisite};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An agent that observes this suite's own process and the C programs that it starts.
fn agent(more: &str) -> Result<AgentCommand> {
    let only_us =
        "targets: { include: [{ executable: 'losses-*' }, { executable: 'e2e-split-*' }] }\n";
    Ok(Agent::command()?.config(format!("{only_us}{more}")))
}

/// Exchanges of a route by a role, as they are labelled.
fn exchanges(metrics: &Metrics, role: &str, route: &str, more: &[(&str, &str)]) -> f64 {
    let label = if role == "server" {
        "http_route"
    } else {
        "url_template"
    };
    let labels = [&[(label, route)], more].concat();
    metrics.sum(
        &format!("http_{role}_request_duration_seconds_count"),
        &labels,
    )
}

/// Calls of which the tap knows how many bytes they move and not which; memory that is gone when it
/// looks; and a connection whose first bytes two threads move at once, which loses nothing.
#[test]
fn what_cannot_be_read_is_counted() -> Result<()> {
    let program = Split::compile("losses.c")?;
    let agent = agent("")?.start()?;
    let mut program = program.spawn(Duration::ZERO)?;
    let log = program.child.folder().join("output.log");
    eventually(Duration::from_secs(20), || {
        let faults = agent.metrics()?.lost("tap", "read_fault");
        ensure!(faults > 0.0, "no fault");
        Ok(())
    })?;
    program.child.signal(Signal::USR1)?;
    let read_log = || std::fs::read_to_string(&log).unwrap_or_default();
    program
        .child
        .wait_until(Duration::from_secs(20), || read_log().contains("done"))?;
    let log = read_log();
    let told = |name: &str| -> Result<f64> {
        let line = log.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.context("a number")?.parse()?)
    };
    let (faulty, at_once) = (told("faulty: ")?, told("at once: ")?);
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(&agent)?;
        // The other side of each is seen.
        for route in ["/within", "/aside"] {
            let seen = exchanges(&metrics, "server", route, &[("error_type", "")]);
            ensure!(seen == 1.0, "{route}: {seen}");
        }
        let seen = exchanges(&metrics, "server", "/faulty", &[]);
        ensure!(seen == faulty, "{seen} of {faulty} faulty");
        for role in ["client", "server"] {
            let seen = exchanges(&metrics, role, "/at-once", &[]);
            ensure!(seen == at_once, "{role}: {seen} of {at_once} at once");
        }
        let answered = [("http_response_status_code", "200")];
        let answered = exchanges(&metrics, "client", "/at-once", &answered);
        ensure!(answered == at_once, "{answered} of {at_once} answered");
        for reason in ["unknown_syscall", "no_syscall"] {
            ensure!(metrics.lost("tap", reason) > 0.0, "no {reason}");
        }
        // Answers to requests that went unseen.
        let faults = metrics.lost("tap", "read_fault");
        let orphans = metrics.lost("protocol", "orphan_response");
        println!("{faults} faults, {orphans} orphans");
        ensure!(orphans >= 2.0, "{orphans} orphans");
        ensure!(metrics.lost("worker", "unknown_connection") == 0.0);
        Ok(())
    })
}

/// Ids of an agent's rings by their names, as far as the kernel keeps those.
fn rings(agent: &Agent) -> Result<Vec<(String, u64)>> {
    let mut rings = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", agent.pid()))? {
        // A descriptor may be closed in between.
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let Some(id) = text.lines().find_map(|line| line.strip_prefix("map_id:")) else {
            continue;
        };
        let map: Value = serde_json::from_str(&bpftool(&["map", "show", "id", id.trim()])?)?;
        if map["type"] == "ringbuf" {
            let name = map["name"].as_str().context("a map's name")?;
            rings.push((name.to_owned(), map["id"].as_u64().context("id")?));
        }
    }
    Ok(rings)
}

fn bpftool(arguments: &[&str]) -> Result<String> {
    output(
        Command::new(prerequisite::on_path("bpftool")?)
            .arg("--json")
            .args(arguments),
    )
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}{}",
        said(&output.stdout),
        said(&output.stderr)
    );
    Ok(said(&output.stdout))
}

/// A program that writes into a ring which it did not make; gone with the value.
struct Foreign(PathBuf);

impl Foreign {
    fn load(object: &Path, ring: u64) -> Result<Self> {
        let pin = PathBuf::from(format!("/sys/fs/bpf/e2e-{}-{ring}", std::process::id()));
        let foreign = Self(pin);
        let (ring, object) = (ring.to_string(), object.display().to_string());
        bpftool(&[
            "prog",
            "load",
            &object,
            foreign.pin(),
            "map",
            "name",
            "ring",
            "id",
            &ring,
        ])?;
        Ok(foreign)
    }

    fn pin(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Writes a record that begins as told.
    fn write(&self, beginning: &[u8], folder: &Path) -> Result<()> {
        let mut record = beginning.to_vec();
        record.resize(64, 0);
        let packet = folder.join("packet");
        std::fs::write(&packet, record)?;
        let packet = packet.display().to_string();
        let run: Value = serde_json::from_str(&bpftool(&[
            "prog",
            "run",
            "pinned",
            self.pin(),
            "data_in",
            &packet,
        ])?)?;
        ensure!(run["retval"] == 0, "{run}");
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Records that no program of the agent writes, written by one that is not the agent's.
#[test]
fn foreign_records_are_counted() -> Result<()> {
    // Kinds of records (`ebpf/common`); one of the second has more than the 64 bytes.
    const CONNECTION_CLOSED: u8 = 3;
    const SOCKET_DATA: u8 = 2;
    const PROCESS_EXIT: u8 = 5;
    let folder = tempfile::tempdir()?;
    let object = folder.path().join("foreign.bpf.o");
    output(
        Command::new(prerequisite::on_path("clang")?)
            .args(["-target", "bpf", "-O2", "-g", "-c", "-o"])
            .arg(&object)
            .arg(prerequisite::workload("foreign.bpf.c")),
    )?;
    let agent = agent("")?.start()?;
    let (mut wrong, mut malformed) = (0.0, 0.0);
    for (name, ring) in rings(&agent)? {
        // The others have no reader where there are few processors, or are those of the log.
        if !["PROCESS_RING", "SOCKET_RING_0"].contains(&name.as_str()) {
            continue;
        }
        let foreign = Foreign::load(&object, ring)?;
        let is_of_processes = name == "PROCESS_RING";
        let other = [PROCESS_EXIT, CONNECTION_CLOSED][usize::from(is_of_processes)];
        foreign.write(&[other], folder.path())?;
        // Of no kind, and one that is shorter than its kind.
        foreign.write(&[0xff; 64], folder.path())?;
        foreign.write(&[SOCKET_DATA], folder.path())?;
        (wrong, malformed) = (wrong + 1.0, malformed + 2.0);
    }
    ensure!(wrong == 2.0, "{wrong} rings");
    let (listener, address) = listen()?;
    exchange(&listener, address, "/beside-foreign")?;
    check_both_sides(&agent, "/beside-foreign", "200", 1)?;
    let metrics = check_identity(&agent)?;
    for (reason, written) in [("wrong_ring", wrong), ("malformed", malformed)] {
        let lost = metrics.lost("decode", reason);
        ensure!(lost == written, "{reason}: {lost} of {written}");
    }
    Ok(())
}

/// One exchange on a connection of its own.
fn exchange(listener: &TcpListener, address: SocketAddr, path: &str) -> Result<()> {
    converse(
        listener.try_clone()?,
        |mut stream| {
            read_head(&mut stream)?;
            Ok(stream.write_all(OK)?)
        },
        || {
            let answer = Client::once(address, &Request::new("GET", path))?;
            ensure!(answer.status == 200);
            Ok(())
        },
    )
}

#[test]
fn encrypted_connections_are_counted() -> Result<()> {
    let agent = agent("")?.start()?;
    let (listener, address) = listen()?;
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 506]].concat();
    converse(
        listener,
        |mut stream| Ok(stream.read_exact(&mut vec![0; hello.len()])?),
        || Ok(TcpStream::connect(address)?.write_all(&hello)?),
    )?;
    eventually(EXPORT_DELAY, || {
        // Of all that the machine does.
        let tls = check_identity(&agent)?.lost("tap", "tls");
        ensure!(tls >= 2.0, "{tls}");
        Ok(())
    })
}

/// Runs `during` while the agent stands still.
fn stopped<T>(agent: &Agent, during: impl FnOnce() -> Result<T>) -> Result<T> {
    let pid = Pid::from_raw(i32::try_from(agent.pid())?).context("a pid")?;
    kill_process(pid, Signal::STOP)?;
    let result = during();
    kill_process(pid, Signal::CONT)?;
    result
}

/// Processes begin while nobody takes note, more than their ring holds; one of them is gone when
/// its connection is found.
#[test]
fn processes_that_nobody_took_note_of_are_counted() -> Result<()> {
    let agent = agent("")?.start()?;
    let (listener, address) = listen()?;
    let programs = ["true", "curl"].map(prerequisite::on_path);
    let [nothing, curl] = programs;
    let (nothing, curl) = (nothing?, curl?);
    stopped(&agent, || {
        // The ring holds 256 KiB.
        let mut many = Command::new("sh");
        many.args(["-c", "seq 700 | xargs -n 1 -P 4 \"$0\" \"$1\""]);
        output(many.arg(&nothing).arg("x".repeat(4000)))?;
        converse(
            listener.try_clone()?,
            |mut stream| {
                read_head(&mut stream)?;
                Ok(stream.write_all(OK)?)
            },
            || {
                let url = format!("http://{address}/of-nobody");
                output(Command::new(&curl).args(["--silent", "--noproxy", "*", &url]))?;
                Ok(())
            },
        )
    })?;
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(&agent)?;
        let seen = exchanges(&metrics, "server", "/of-nobody", &[]);
        let lost = metrics.lost("process", "ring_full");
        let unknown = metrics.lost("process", "unknown");
        ensure!(
            seen == 1.0 && lost > 0.0 && unknown >= 1.0,
            "{seen} seen, {lost} records lost, {unknown} unknown"
        );
        Ok(())
    })?;
    exchange(&listener, address, "/of-somebody")?;
    check_both_sides(&agent, "/of-somebody", "200", 1)
}

/// Connections whose opening found the ring full are looked up in the kernel's map; of those that
/// were closed by then, nothing is known.
#[test]
fn a_connection_without_a_beginning_is_counted() -> Result<()> {
    let agent = agent("capture: { rings: 1, ring_bytes: 64KiB }\n")?.start()?;
    let (listener, address) = listen()?;
    let open = || -> Result<_> { Ok((TcpStream::connect(address)?, listener.accept()?.0)) };
    let talk = |(client, server): &mut (TcpStream, TcpStream), path: &str| -> Result<()> {
        client.write_all(&Request::new("GET", path).head())?;
        read_head(server)?;
        server.write_all(OK)?;
        Ok(client.read_exact(&mut [0; OK.len()])?)
    };
    let mut pairs = stopped(&agent, || {
        let mut first = open()?;
        for _ in 0..400 {
            talk(&mut first, "/filled")?;
        }
        let mut pairs = (0..20).map(|_| open()).collect::<Result<Vec<_>>>()?;
        for pair in &mut pairs {
            talk(pair, "/unseen")?;
        }
        Ok(pairs)
    })?;
    check_identity(&agent)?;
    let last = pairs.split_off(15);
    for mut pair in pairs {
        // Gone before the worker looks again.
        talk(&mut pair, "/gone")?;
    }
    eventually(EXPORT_DELAY, || {
        let lost = check_identity(&agent)?.lost("worker", "unknown_connection");
        ensure!(lost >= 1.0, "{lost} records of unknown connections");
        Ok(())
    })?;
    for mut pair in last {
        talk(&mut pair, "/found")?;
        thread::sleep(Duration::from_millis(30));
    }
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(&agent)?;
        let lost = metrics.lost("tap", "ring_full");
        // All of them, unless others fill so small a ring.
        let found = exchanges(&metrics, "server", "/found", &[]);
        ensure!(lost > 0.0 && found > 0.0, "{lost} lost, {found} found");
        Ok(())
    })
}

/// More sockets than the kernel's map holds.
#[test]
fn connections_that_find_no_room_are_counted() -> Result<()> {
    const ROOM: usize = 1024;
    let limit = Rlimit {
        current: Some(4 * ROOM as u64),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    setrlimit(Resource::Nofile, limit)?;
    let agent = agent(&format!("capture: {{ max_connections: {ROOM} }}\n"))?.start()?;
    let (listener, address) = listen()?;
    let mut pairs = Vec::with_capacity(ROOM);
    for _ in 0..ROOM {
        let mut client = TcpStream::connect(address)?;
        let mut server = listener.accept()?.0;
        client.write_all(b"GET /held HTTP/1.1\r\n\r\n")?;
        read_head(&mut server)?;
        pairs.push((client, server));
    }
    eventually(EXPORT_DELAY, || {
        let lost = check_identity(&agent)?.lost("tap", "connections_full");
        ensure!(lost >= ROOM as f64, "{lost} of {ROOM} and more");
        Ok(())
    })?;
    for (client, server) in &mut pairs {
        server.write_all(OK)?;
        client.read_exact(&mut [0; OK.len()])?;
    }
    drop(pairs);
    // There is room again.
    eventually(EXPORT_DELAY, || {
        exchange(&listener, address, "/afterwards")?;
        let metrics = check_identity(&agent)?;
        let seen = exchanges(&metrics, "server", "/afterwards", &[]);
        ensure!(seen > 0.0, "{seen} afterwards");
        let in_flight = metrics.sum("telltale_http_exchanges_in_flight", &[("role", "server")]);
        ensure!(in_flight == 0.0, "{in_flight} in flight");
        Ok(())
    })
}

/// More routes than series may be, and more waits than are walked.
#[test]
fn what_is_beyond_a_bound_is_counted() -> Result<()> {
    const ROUTES: usize = 150;
    let agent = agent("metrics: { max_series: 100 }\n")?.start()?;
    let (listener, address) = listen()?;
    converse(
        listener,
        |mut stream| {
            for _ in 0..ROUTES {
                read_head(&mut stream)?;
                stream.write_all(OK)?;
            }
            Ok(())
        },
        || {
            let mut client = Client::connect(address)?;
            let letters = "abcdefghij";
            for number in 0..ROUTES {
                let digits = number.to_string();
                let word: String = digits
                    .bytes()
                    .filter_map(|digit| letters.chars().nth((digit - b'0').into()))
                    .collect();
                client.send(&Request::new("GET", format!("/w{}/{word}", number % 10)))?;
            }
            Ok(())
        },
    )?;
    eventually(EXPORT_DELAY, || {
        let metrics = check_identity(&agent)?;
        let heads = metrics.sum("telltale_http_request_heads_total", &[("role", "server")]);
        let lost = metrics.lost("prometheus", "series_limit");
        ensure!(
            heads == ROUTES as f64 && lost > 0.0,
            "{heads} heads, {lost} lost"
        );
        Ok(())
    })?;

    let (mut one, mut other) = UnixStream::pair()?;
    let profile = format!(
        "/debug/pprof/flamegraph?type=off_cpu&format=folded&seconds=1&pid={}",
        std::process::id()
    );
    thread::scope(|scope| {
        // Each waits for the other, some ten thousand times a second.
        scope.spawn(
            move || while other.read_exact(&mut [0]).is_ok() && other.write_all(b"x").is_ok() {},
        );
        let profile = scope.spawn(|| agent.get(&profile));
        while !profile.is_finished() {
            one.write_all(b"x")?;
            one.read_exact(&mut [0])?;
        }
        one.shutdown(Shutdown::Both)?;
        let profile = profile
            .join()
            .map_err(|_| anyhow!("the profile's thread died"))??;
        ensure!(profile.status == 200, "{}", profile.text());
        Ok(())
    })?;
    eventually(EXPORT_DELAY, || {
        let skipped = check_identity(&agent)?.lost("sampler", "waits_skipped");
        ensure!(skipped > 0.0, "every wait was measured");
        Ok(())
    })
}
