//! The labels of requests on samples of servers in other languages than Python: nginx, Node, Java, Rust
//! and Go. What is labelled has the right label, always; what cannot be proven has none.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::requests::{Counts, Load, ROUTES, Route, worker};
use e2e::traces::Traces;
use e2e::{Agent, NginxOptions, Server, prerequisite};

/// Requests that let others have their turn.
const TURNS: [Route; 2] = [("/turns/a/{id}", "spend_a"), ("/turns/b/{id}", "spend_b")];

/// Share of the samples that have labels where all can: not those from before the workers tell, and not
/// those of what a handler still does when its answer is complete.
const LABELLED: f64 = 0.9;

/// Fewer samples tell nothing.
const LEAST: u64 = 200;

/// What a profile of a second of `server` counts under requests of `paths`.
fn profile(
    agent: &Agent,
    server: &Server,
    pid: u32,
    (paths, connections): (&[&str], usize),
    routes: &[Route],
) -> Result<Counts> {
    let load = Load {
        paths,
        connections,
        closing: false,
    };
    load.during(server, || {
        let all = Traces::of(agent, &format!("pid={pid}&seconds=1&hz=997"))?;
        let counts = Counts::of(&all, routes);
        let total = counts.right + counts.wrong + counts.none;
        ensure!(counts.wrong == 0 && total >= LEAST, "{counts:?}");
        Ok(counts)
    })
}

#[test]
fn nginx() -> Result<()> {
    let server = Server::nginx(NginxOptions::default())?;
    let text = (0..60_000_u64).map(|number| (number * number).to_string() + "\n");
    fs::write(
        server.folder().join("files/large"),
        text.collect::<String>(),
    )?;
    let agent = Agent::for_profiles()?;
    let routes = [("/a/{id}", "deflate"), ("/b/{id}", "pcre2_match_8")];
    let paths: &[&str] = &["/a", "/b"];
    let worker = worker(&server)?;
    let counts = profile(&agent, &server, worker, (paths, 4), &routes)?;
    ensure!(counts.labelled() > LABELLED, "{counts:?}");
    Ok(())
}

#[test]
fn node() -> Result<()> {
    let server = Server::express_requests()?;
    let agent = Agent::for_profiles()?;
    let pid = server.pid();
    let counts = profile(&agent, &server, pid, (&["/a", "/b"], 4), &ROUTES)?;
    ensure!(counts.labelled() > LABELLED, "{counts:?}");
    // Several requests are in flight on the loop.
    profile(&agent, &server, pid, (&["/turns/a", "/turns/b"], 3), &TURNS)?;
    Ok(())
}

#[test]
fn java() -> Result<()> {
    let server = Server::java_requests(3)?;
    let agent = Agent::for_profiles()?;
    let pid = server.pid();
    let load = Load {
        paths: &["/a", "/b"],
        connections: 3,
        closing: false,
    };
    // Its functions are compiled by then.
    load.during(&server, || {
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    let output = Command::new(prerequisite::on_path("jcmd")?)
        .args([&pid.to_string(), "Compiler.perfmap"])
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let counts = profile(&agent, &server, pid, (load.paths, 3), &ROUTES);
    fs::remove_file(format!("/tmp/perf-{pid}.map"))?;
    let counts = counts?;
    ensure!(counts.labelled() > LABELLED, "{counts:?}");
    Ok(())
}

#[test]
fn rust() -> Result<()> {
    let server = Server::axum(env!("CARGO_BIN_EXE_axum_server"))?;
    let agent = Agent::for_profiles()?;
    let pid = server.pid();
    // Tokio reads a request, has it answered and writes the answer on one thread, as long as nobody waits.
    let counts = profile(&agent, &server, pid, (&["/a", "/b"], 3), &ROUTES)?;
    ensure!(counts.labelled() > LABELLED, "{counts:?}");
    // What waits goes on with any thread: unlabelled from when that was seen, and it is soon.
    profile(&agent, &server, pid, (&["/turns/a", "/turns/b"], 6), &TURNS)?;
    let counts = profile(&agent, &server, pid, (&["/a", "/b"], 3), &ROUTES)?;
    ensure!(counts.right == 0, "{counts:?}");
    // Of a process that nothing was seen of, work that is handed to other threads.
    let server = Server::axum(env!("CARGO_BIN_EXE_axum_server"))?;
    let routes = [
        ("/threads/a/{id}", "spend_a"),
        ("/threads/b/{id}", "spend_b"),
    ];
    let paths: &[&str] = &["/threads/a", "/threads/b"];
    let counts = profile(&agent, &server, server.pid(), (paths, 3), &routes)?;
    ensure!(counts.right == 0, "{counts:?}");
    Ok(())
}

/// Goroutines move between threads at any time.
#[test]
fn go_has_no_labels() -> Result<()> {
    let server = Server::go_requests()?;
    let agent = Agent::for_profiles()?;
    let counts = profile(&agent, &server, server.pid(), (&["/a", "/b"], 3), &ROUTES)?;
    ensure!(counts.right == 0, "{counts:?}");
    Ok(())
}
