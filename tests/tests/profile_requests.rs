//! Profiles by request: which route the samples of real servers carry, where each route spends the
//! processor in a function of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::requests::{Counts, Load, ROUTES, Route, calls, get, worker};
use e2e::traces::Traces;
use e2e::{Agent, Client, Request, Server};

/// How long requests come before what is kept is asked for.
const LOADED: Duration = Duration::from_secs(4);

/// A connection a request, on so many at a time.
const fn closing(connections: usize) -> Load<'static> {
    Load {
        paths: &["/a", "/b"],
        connections,
        closing: true,
    }
}

#[test]
fn threads_that_serve_one_request_at_a_time_are_labelled() -> Result<()> {
    let agent = Agent::for_profiles()?;
    for threads in [1, 3] {
        let server = Server::gunicorn_requests(threads)?;
        let pid = worker(&server)?;
        closing(4).during(&server, || {
            let all = Traces::of(&agent, &format!("pid={pid}&seconds=3&hz=499"))?;
            let counts = Counts::of(&all, &ROUTES);
            ensure!(counts.right > 200 && counts.wrong == 0, "{counts:?}");
            ensure!(counts.labelled() >= 0.99, "{counts:?}");
            Ok(())
        })?;
    }
    let metrics = agent.metrics()?;
    let labelled = metrics.sum("telltale_profile_labels_total", &[("outcome", "labelled")]);
    ensure!(labelled > 400.0, "{labelled}");
    Ok(())
}

#[test]
fn an_event_loop_is_labelled_where_one_request_was_alone() -> Result<()> {
    let agent = Agent::for_profiles()?;
    let profile = |connections, paths: &[&str]| {
        let server = Server::uvicorn_requests()?;
        let pid = server.pid();
        let load = Load {
            paths,
            connections,
            closing: false,
        };
        load.during(&server, || {
            let all = Traces::of(&agent, &format!("pid={pid}&seconds=3&hz=499"))?;
            let counts = Counts::of(&all, &ROUTES);
            ensure!(counts.wrong == 0, "{counts:?}");
            Ok(counts)
        })
    };
    let alone = profile(1, &["/a", "/b"])?;
    ensure!(alone.right > 200 && alone.labelled() >= 0.98, "{alone:?}");
    for connections in [2, 20] {
        let many = profile(connections, &["/a", "/b"])?;
        ensure!(many.right + many.none > 200, "{many:?}");
    }
    // Read by the loop, served by other threads.
    let pool = profile(3, &["/threads/a", "/threads/b"])?;
    ensure!(pool.none > 200 && pool.right == 0, "{pool:?}");
    Ok(())
}

/// As long as a request waits in `requests_app.py`.
const WAIT_NS: u64 = 5_000_000;

#[test]
fn waits_are_labelled_too() -> Result<()> {
    const ROUTES: [Route; 2] = [("/waits/a/{id}", "wait_a"), ("/waits/b/{id}", "wait_b")];
    const REQUESTS: u64 = 80;
    let agent = Agent::for_profiles()?;
    for threads in [1, 3] {
        let server = Server::gunicorn_requests(threads)?;
        let pid = worker(&server)?;
        let profile = |query: &str| {
            let query = format!("pid={pid}&seconds=2&type=off_cpu{query}");
            let profile = || Traces::of(&agent, &query);
            std::thread::scope(|scope| {
                let profile = scope.spawn(profile);
                std::thread::sleep(Duration::from_millis(500));
                for number in 0..REQUESTS {
                    let path = ["a", "b"][number as usize % 2];
                    let request = Request::new("GET", format!("/waits/{path}/{number}"))
                        .header("Connection: close");
                    let response = Client::once(server.address, &request)?;
                    ensure!(response.status == 200, "{}", response.text());
                }
                profile.join().expect("no panic")
            })
        };
        let counts = Counts::of(&profile("")?, &ROUTES);
        ensure!(counts.wrong == 0 && counts.none == 0, "{counts:?}");
        let least = REQUESTS * WAIT_NS;
        ensure!(
            counts.right >= least && counts.right < 2 * least,
            "{counts:?}"
        );
        if threads == 1 {
            continue;
        }
        let of_route = profile("&route=/waits/a/{id}")?;
        let counts = Counts::of(&of_route, &ROUTES[..1]);
        ensure!(
            counts.right >= least / 2 && counts.right < least,
            "{counts:?}"
        );
        // What a worker waits for before a request comes is none's.
        ensure!(of_route.count(|trace| trace.route != ROUTES[0].0) == 0.0);
        ensure!(of_route.count(|trace| calls(trace, "wait_b")) == 0.0);
    }
    Ok(())
}

#[test]
fn a_profile_is_of_one_route() -> Result<()> {
    let agent = Agent::for_profiles()?;
    let server = Server::gunicorn_requests(1)?;
    let pid = worker(&server)?;
    closing(2).during(&server, || {
        let query = format!("pid={pid}&seconds=1&hz=499&method=GET&route=/a/{{id}}");
        let of_route = Traces::of(&agent, &query)?;
        ensure!(of_route.count(|trace| calls(trace, "spend_a")) > 0.0);
        ensure!(of_route.count(|trace| calls(trace, "spend_b")) == 0.0);
        ensure!(of_route.count(|trace| trace.route != "/a/{id}") == 0.0);
        for (query, status, reason) in [
            ("route=a", 400, "route is \"a\": a template"),
            ("method=get", 400, "method is \"get\""),
            ("operation=find", 400, "operation is \"find\""),
            (
                "method=PUT",
                404,
                "no sample of method PUT; those there are: GET /a/{id}",
            ),
        ] {
            let path = format!("/debug/pprof/profile?pid={pid}&seconds=1&{query}");
            let response = agent.get(&path)?;
            let text = response.text();
            ensure!(response.status == status && text.contains(reason), "{text}");
        }
        without_an_agent(pid)
    })
}

#[test]
fn what_is_kept_is_told_apart_by_route_too() -> Result<()> {
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 97, window: 1s}}")
        .start()?;
    let server = Server::gunicorn_requests(1)?;
    closing(2).during(&server, || {
        std::thread::sleep(LOADED);
        Ok(())
    })?;
    let service = &server.service;
    let query = format!("service={service}&from=now-1m");
    let all = Traces::of(&agent, &query)?;
    for (route, _) in ROUTES {
        let of_route = Traces::of(&agent, &format!("{query}&route={route}"))?;
        let (found, expected) = (
            of_route.count(|trace| trace.route == route),
            all.count(|trace| trace.route == route),
        );
        ensure!(
            found > 20.0 && found >= expected,
            "{route}: {found} of {expected}"
        );
        ensure!(
            of_route.count(|trace| trace.route != route) == 0.0,
            "{route}"
        );
    }
    let routes = "route=/b/{id}&base_route=/a/{id}";
    let diff = get(&agent, &format!("diff?{query}&{routes}&format=folded"))?;
    ensure!(!diff.is_empty());
    Ok(())
}

/// `telltale profile` watches HTTP itself where a route is asked for.
fn without_an_agent(pid: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("x.pb.gz");
    let output = file.to_str().context("a path in UTF-8")?;
    let pid = pid.to_string();
    let mut command = Agent::command()?.subcommand("profile");
    for argument in [
        "--pid",
        &pid,
        "--route",
        "/b/{id}",
        "--seconds",
        "2",
        "--hz",
        "499",
        "-o",
        output,
    ] {
        command = command.arg(argument);
    }
    let finished = command.run_to_end(Duration::from_secs(60))?;
    ensure!(finished.status.success(), "{}", finished.output);
    let of_route = Traces::read(&file)?;
    ensure!(of_route.count(|trace| calls(trace, "spend_b")) > 0.0);
    ensure!(of_route.count(|trace| calls(trace, "spend_a")) == 0.0);
    Ok(())
}
