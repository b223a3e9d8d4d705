//! Flamegraphs as a person uses them, in a real browser: on the page and as drawings by themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::flames::{check_table, frame, frames, is_near, width};
use e2e::requests::Load;
use e2e::{Agent, Browser, Folded, Server, Split, eventually, now_s};

/// Where workloads are told to end by themselves, should the test die.
const LIFE: Duration = Duration::from_secs(120);

const SPLIT: [(&str, f64); 3] = [
    ("nest_fifty", 50.0),
    ("nest_thirty", 30.0),
    ("nest_twenty", 20.0),
];

#[test]
fn flamegraphs_are_searched_magnified_and_filtered() -> Result<()> {
    let agent = Agent::command()?
        .config("profile: {continuous: {hz: 199, window: 1s}}")
        .start()?;
    let split = Split::start(LIFE)?;
    let threads = Split::threads(LIFE)?;
    let server = Server::gunicorn_requests(1)?;
    // Until a process's unwind rows are loaded, its stacks may have another outermost frame.
    let begin_s = eventually(Duration::from_secs(10), || {
        let begin_s = now_s()?;
        let of_all = Folded::of(&agent, &format!("service={}&from=now-1s", split.service))?;
        let is_whole = |stack: &Vec<String>| stack.get(1).is_some_and(|name| name == "_start");
        ensure!(
            of_all.0.iter().all(|(stack, _)| is_whole(stack)),
            "stacks are cut"
        );
        Ok(begin_s)
    })?;
    let load = Load {
        paths: &["/a", "/b"],
        connections: 2,
        closing: true,
    };
    let mut browser = Browser::start(agent.address())?;
    load.during(&server, || check_button(&mut browser, &split))?;
    let kept = format!("from={begin_s}&to={}", now_s()?);
    // The window ends that is being filled.
    std::thread::sleep(Duration::from_secs(1));
    drop((split.child, threads.child));
    let of = |service: &str| format!("service={service}&{kept}");
    let split = of(&split.service);
    check_flamegraph(&mut browser, &agent, &split)?;
    check_svg(&mut browser, &agent, &split)?;
    check_filters(
        &mut browser,
        &agent,
        "thread",
        &of(&threads.service),
        &[
            ("spinner-one", "thread=spinner-one"),
            ("spinner-other", "thread=spinner-other"),
        ],
    )?;
    check_filters(
        &mut browser,
        &agent,
        "work",
        &of(&server.service),
        &[
            ("GET /a/{id}", "method=GET&route=/a/%7Bid%7D"),
            ("GET /b/{id}", "method=GET&route=/b/%7Bid%7D"),
        ],
    )?;
    let both = format!("{}&base_service={}", of(&server.service), threads.service);
    check_difference(&mut browser, &agent, &both)?;
    let waits = Split::compile("waits.c")?.run(LIFE)?;
    check_waits(&mut browser, &waits)?;
    browser.check_no_complaints()
}

/// From the front page to a profile of the next seconds.
fn check_button(browser: &mut Browser, split: &Split) -> Result<()> {
    browser.open("/")?;
    browser.click("document.querySelector('summary')")?;
    let button = format!(
        "document.querySelector('a.flame[href*=\"pid={}&\"]')",
        split.child.pid()
    );
    browser.follow(|browser| {
        browser.click(&button)?;
        let label: String = browser.get(&format!("{button}.innerText"))?;
        ensure!(label == "Sampling 5 s…", "{label}");
        Ok(())
    })?;
    let frames = frames(browser)?;
    for (name, expected) in SPLIT {
        let width = width(&frames, name);
        ensure!((width - expected).abs() < 5.0, "{name}: {width}");
    }
    browser.close()?;
    browser.until(&format!("{button}.innerText === 'Flamegraph'"))
}

fn check_flamegraph(browser: &mut Browser, agent: &Agent, query: &str) -> Result<()> {
    let folded = Folded::of(agent, query)?;
    browser.open(&format!("/flamegraph?{query}"))?;
    check_table(browser, &folded)?;
    let whole = frames(browser)?;
    for (name, (_, total)) in folded.functions() {
        let drawn = width(&whole, name);
        // Slivers are not drawn, of which some functions have many.
        let hidden = if SPLIT.iter().any(|(one, _)| name == *one) {
            0.5
        } else {
            3.0
        };
        let is_right = drawn < total + 0.1 && drawn > total - hidden;
        ensure!(is_right, "{name}: {drawn}, {total}");
    }
    browser.check_looks("flamegraph")?;

    // A click magnifies, and the table is of what is seen.
    let fifty = frame("nest_fifty\n");
    browser.hover(&fifty)?;
    let dimmed = browser.value(&format!("getComputedStyle({fifty}).filter !== 'none'"))?;
    ensure!(dimmed == true, "nothing tells which frame the mouse is at");
    browser.click(&fifty)?;
    let magnified = frames(browser)?;
    ensure!(width(&magnified, "nest_fifty") > 99.9, "{magnified:?}");
    ensure!(width(&magnified, "nest_thirty") == 0.0, "{magnified:?}");
    let percent = folded.percent(|name| name == "nest_fifty");
    let status = "document.getElementById('status').textContent";
    let told: String = browser.get(status)?;
    ensure!(
        told.ends_with(" nest_fifty") && is_near(&told, percent),
        "{told}, {percent}"
    );
    check_table(browser, &folded.below("nest_fifty"))?;
    browser.check_looks("magnified")?;
    browser.click("document.getElementById('reset')")?;
    ensure!(frames(browser)? == whole, "it is not the whole again");

    // What is looked for is marked, and nothing else.
    for needle in ["Spend_Thirty", "nest_", "no such function", ""] {
        browser.type_into("document.getElementById('search')", needle)?;
        let needle = needle.to_lowercase();
        let is_it = |name: &str| !needle.is_empty() && name.to_lowercase().contains(&needle);
        for frame in frames(browser)? {
            ensure!(frame.found == is_it(&frame.name), "{needle:?}: {frame:?}");
        }
        let told: String = browser.get(status)?;
        let percent = folded.percent(is_it);
        let is_told = if needle.is_empty() {
            told.is_empty()
        } else {
            is_near(&told, percent)
        };
        ensure!(is_told, "{needle:?}: {told:?}, {percent}");
    }
    browser.press("f", 2)?;
    let has_focus = browser.value("document.activeElement.id === 'search'")?;
    ensure!(has_focus == true, "Ctrl-F does not search");

    // A function of the table is found in the graph, and a heading sorts.
    browser.click("document.querySelector('#top thead th:nth-child(2)')")?;
    let totals: Vec<String> = browser.get(
        "[...document.querySelectorAll('#top td:nth-child(2)')].map((cell) => cell.textContent)",
    )?;
    let totals: Vec<_> = totals
        .iter()
        .map(|text| told_percent(text))
        .collect::<Result<_>>()?;
    ensure!(totals.is_sorted_by(|one, next| one >= next), "{totals:?}");
    let sorts: Vec<Option<String>> = browser
        .get("[...document.querySelectorAll('#top thead th')].map((head) => head.ariaSort)")?;
    ensure!(
        sorts == [None, Some("descending".to_owned()), None],
        "{sorts:?}"
    );
    browser.click("[...document.querySelectorAll('#top tbody th')].find((name) => name.textContent === 'nest_twenty')")?;
    for frame in frames(browser)? {
        ensure!(frame.found == (frame.name == "nest_twenty"), "{frame:?}");
    }
    browser.press("Escape", 0)?;
    ensure!(frames(browser)? == whole, "Escape leaves something");

    // Other times of the same service.
    browser.click("[...document.querySelectorAll('.ranges a')].find((range) => range.innerText === 'last 5 minutes')")?;
    browser.wait_for_page()?;
    let current: Vec<String> = browser
        .get("[...document.querySelectorAll('[aria-current]')].map((range) => range.innerText)")?;
    ensure!(current == ["last 5 minutes"], "{current:?}");
    ensure!(
        width(&frames(browser)?, "nest_fifty") > 40.0,
        "another service"
    );
    Ok(())
}

fn told_percent(text: &str) -> Result<f64> {
    let number = text.strip_suffix(" %").context("no percentage")?;
    Ok(number.parse()?)
}

/// What the page draws of one thread, or of one kind of work, is what the agent would give of it.
fn check_filters(
    browser: &mut Browser,
    agent: &Agent,
    id: &str,
    query: &str,
    options: &[(&str, &str)],
) -> Result<()> {
    browser.open(&format!("/flamegraph?{query}"))?;
    let whole = frames(browser)?;
    let select = format!("document.getElementById('{id}')");
    for (option, filter) in options {
        browser.choose(&select, option)?;
        let folded = Folded::of(agent, &format!("{query}&{filter}"))?;
        ensure!(
            folded.total() > 50,
            "{} samples of {option}",
            folded.total()
        );
        check_table(browser, &folded)?;
        let functions = folded.functions();
        let drawn = frames(browser)?;
        let mut names = drawn.iter().map(|frame| &*frame.name).skip(2);
        ensure!(
            names.all(|name| functions.contains_key(name)),
            "{option}: {drawn:?}"
        );
    }
    browser.check_looks(id)?;
    browser.choose(&select, "all ")?;
    ensure!(frames(browser)? == whole, "it is not the whole again");
    Ok(())
}

/// Waits: the table is of the functions that wait, by how long.
fn check_waits(browser: &mut Browser, waits: &Split) -> Result<()> {
    browser.open(&format!(
        "/flamegraph?pid={}&seconds=2&type=off_cpu",
        waits.child.pid()
    ))?;
    let current: Vec<String> = browser
        .get("[...document.querySelectorAll('[aria-current]')].map((range) => range.innerText)")?;
    ensure!(current == ["next 5 s off the CPU"], "{current:?}");
    let drawn = frames(browser)?;
    for (name, expected) in [("wait_long", 75.0), ("wait_short", 25.0)] {
        let width = width(&drawn, name);
        ensure!((width - expected).abs() < 5.0, "{name}: {width}");
        let total = format!(
            "[...document.querySelectorAll('#top tbody tr')].find((row) => \
             row.cells[2].textContent === '{name}').cells[1].textContent"
        );
        let total: String = browser.get(&total)?;
        let difference = told_percent(&total)? - width;
        ensure!(difference.abs() < 0.1, "{name}: {total}, {width}");
    }
    browser.check_looks("waits")
}

/// A frame of a drawing.
fn drawn(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('#frames g')].find((frame) => \
         frame.querySelector('title').textContent.startsWith('{name} ('))"
    )
}

/// The drawing by itself: what was found and magnified is so again when it is loaded anew.
fn check_svg(browser: &mut Browser, agent: &Agent, query: &str) -> Result<()> {
    let folded = Folded::of(agent, query)?;
    let needle = "spend_thirty";
    let share = folded.percent(|name| name == needle);
    browser.open(&format!("/debug/pprof/flamegraph?{query}"))?;
    let marked = "[...document.querySelectorAll('#frames rect')].filter((rect) => \
        rect.getAttribute('fill') === 'rgb(230,0,230)').map((rect) => \
        rect.parentElement.querySelector('title').textContent.split(' (')[0])";
    let matched = "document.getElementById('matched').textContent";
    let width = format!(
        "{}.querySelector('rect').getBoundingClientRect().width",
        drawn("nest_thirty")
    );
    let part: f64 = browser.get(&width)?;
    browser.will_answer(needle);
    browser.click("document.getElementById('search')")?;
    let told: String = browser.get(matched)?;
    let percent = told.strip_prefix("Matched: ");
    let percent = percent.and_then(|told| told.strip_suffix('%'));
    ensure!(
        is_near(percent.unwrap_or_default(), share),
        "{told}, {share}"
    );
    browser.click(&drawn("nest_thirty"))?;
    // The second time with the parameters that the drawing's script has put into its address.
    for _ in 0..2 {
        let names: BTreeSet<String> = browser.get(marked)?;
        ensure!(names.iter().eq([needle]), "{names:?}");
        let magnified: f64 = browser.get(&width)?;
        ensure!(
            magnified > part * 3.0 && magnified > 1_000.0,
            "{part}, then {magnified}"
        );
        browser.value("location.reload()")?;
        browser.wait_for_page()?;
        browser.until("typeof searching !== 'undefined'")?;
        browser.value("new Promise((done) => setTimeout(done, 50))")?;
    }
    browser.click("document.getElementById('unzoom')")?;
    let again: f64 = browser.get(&width)?;
    ensure!((again - part).abs() < 1.0, "{part}, then {again}");
    Ok(())
}

/// Only what two services differ in is coloured.
fn check_difference(browser: &mut Browser, agent: &Agent, query: &str) -> Result<()> {
    let policy = agent.get(&format!("/debug/pprof/diff?{query}"))?;
    let policy = policy.header("content-security-policy").unwrap_or_default();
    ensure!(policy.starts_with("default-src 'none'"), "{policy:?}");
    browser.open(&format!("/debug/pprof/diff?{query}"))?;
    let width = format!(
        "{}.querySelector('rect').getBoundingClientRect().width",
        drawn("spend_a")
    );
    let part: f64 = browser.get(&width)?;
    let [red, green, blue]: [f64; 3] = browser.get(&format!(
        "{}.querySelector('rect').getAttribute('fill').match(/\\d+/g).map(Number)",
        drawn("spend_a")
    ))?;
    // The base never ran it.
    ensure!(red > green && red > blue, "{red} {green} {blue}");
    browser.click(&drawn("spend_a"))?;
    let magnified: f64 = browser.get(&width)?;
    ensure!(
        magnified > part * 1.5 && magnified > 1_000.0,
        "{part}, then {magnified}"
    );
    Ok(())
}
