//! The requests that every application server is loaded with.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::client::Request;
use crate::load::Tally;

/// One of each: methods, statuses, framings. With the route that each belongs to.
#[must_use]
pub fn application_plan() -> Vec<(Request, &'static str)> {
    vec![
        (Request::new("GET", "/items/7"), "/items/{id}"),
        (Request::new("GET", "/items/123456?limit=5"), "/items/{id}"),
        (Request::new("GET", "/items/8?limit=many"), "/items/{id}"),
        (Request::new("HEAD", "/items/9"), "/items/{id}"),
        (
            Request::new("POST", "/items").body(vec![b'x'; 3000]),
            "/items",
        ),
        (Request::new("DELETE", "/items/10"), "/items/{id}"),
        (
            Request::new(
                "GET",
                "/get_complete_tree/6f1c2f9e-52a1-4c5a-9a35-1c1b2f0a7d11",
            ),
            "/get_complete_tree/{id}",
        ),
        (Request::new("GET", "/cached"), "/cached"),
        (
            Request::new("GET", "/cached").header("If-None-Match: \"1\""),
            "/cached",
        ),
        (Request::new("GET", "/nowhere"), "/nowhere"),
        (Request::new("GET", "/fail"), "/fail"),
        (Request::new("GET", "/sleep/25"), "/sleep/{id}"),
    ]
}

/// Whether a server's own account has the same counts as the client's, and handler times that fit
/// into the client's.
///
/// # Errors
/// The first difference.
pub fn assert_handlers_agree(
    handlers: &BTreeMap<[String; 3], (u64, f64)>,
    tally: &Tally,
) -> Result<()> {
    let counts = handlers
        .iter()
        .map(|(key, (count, _))| (key.clone(), *count))
        .collect();
    assert_same_counts("the server's account", &counts, &tally.counts)?;
    for (key, (_, seconds)) in handlers {
        let client = tally.durations[key].as_secs_f64();
        ensure!(
            *seconds <= client,
            "{key:?}: handlers took {seconds} s, the client saw {client} s"
        );
    }
    Ok(())
}

/// Whether `found` has exactly the counts that were sent.
///
/// # Errors
/// Every key whose counts differ.
pub fn assert_same_counts(
    what: &str,
    found: &BTreeMap<[String; 3], u64>,
    sent: &BTreeMap<[String; 3], u64>,
) -> Result<()> {
    let mut differences = String::new();
    for key in found
        .keys()
        .chain(sent.keys().filter(|key| !found.contains_key(*key)))
    {
        let (left, right) = (found.get(key), sent.get(key));
        if left != right {
            let (left, right) = (left.unwrap_or(&0), right.unwrap_or(&0));
            differences += &format!("\n  {}: {left}, sent {right}", key.join(" "));
        }
    }
    ensure!(differences.is_empty(), "{what} differs:{differences}");
    Ok(())
}
