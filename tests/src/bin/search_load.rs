//! A service that asks a cluster many things at once, as `search_load.py` does, with the official Rust
//! client: `search_load URL plain|gzip CALLS`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use elasticsearch::http::request::JsonBody;
use elasticsearch::http::response::Response;
use elasticsearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use elasticsearch::params::Refresh;
use elasticsearch::{
    BulkParts, CountParts, DeleteParts, Elasticsearch, ExistsParts, GetParts, IndexParts,
    SearchParts,
};
use serde_json::{Value, json};

const WORKERS: usize = 8;

/// What the answers said, as `search_load.py` prints it.
#[derive(Default)]
struct Tally {
    calls: BTreeMap<[String; 3], u64>,
    took: BTreeMap<[String; 2], [u64; 2]>,
    items: BTreeMap<[String; 3], u64>,
}

impl Tally {
    fn add(&mut self, operation: &str, index: &str, status: u16, body: &str) {
        let key = [operation.to_owned(), index.to_owned(), status.to_string()];
        *self.calls.entry(key).or_default() += 1;
        let facts: Value = serde_json::from_str(body).unwrap_or_default();
        if let Some(took_ms) = facts["took"].as_u64() {
            let key = [operation.to_owned(), index.to_owned()];
            let [count, sum_ms] = self.took.entry(key).or_default();
            *count += 1;
            *sum_ms += took_ms;
        }
        let items = facts["items"].as_array().into_iter().flatten();
        for (action, told) in items.filter_map(|item| item.as_object()?.iter().next()) {
            let outcome = match told["status"].as_u64() {
                Some(0..300) => "succeeded",
                Some(404) => "not_found",
                Some(409) => "conflict",
                Some(429) => "rejected",
                _ => "failed",
            };
            let key = [index.to_owned(), action.clone(), outcome.to_owned()];
            *self.items.entry(key).or_default() += 1;
        }
    }

    fn told(&self) -> Value {
        let counts = |map: &BTreeMap<[String; 3], u64>| -> Vec<Value> {
            let entries = map.iter();
            entries
                .map(|([first, second, third], count)| json!([first, second, third, count]))
                .collect()
        };
        let took: Vec<_> = self
            .took
            .iter()
            .map(|([operation, index], [count, sum_ms])| json!([operation, index, count, sum_ms]))
            .collect();
        json!({ "calls": counts(&self.calls), "took": took, "items": counts(&self.items) })
    }
}

async fn call(
    client: &Elasticsearch,
    worker: usize,
    number: usize,
    tally: &Mutex<Tally>,
) -> Result<()> {
    let index = format!("load-rust-{}", worker % 2);
    let (index, id) = (index.as_str(), format!("{worker}-{}", number / 7));
    let query = json!({ "query": { "match": { "title": "telltale" } } });
    let (operation, answer): (_, Response) = match number % 7 {
        0 => {
            let parts = IndexParts::IndexId(index, &id);
            let body = json!({ "title": "telltale" });
            (
                "index",
                client
                    .index(parts)
                    .body(body)
                    .refresh(Refresh::False)
                    .send()
                    .await?,
            )
        }
        1 => (
            "get",
            client.get(GetParts::IndexId(index, &id)).send().await?,
        ),
        2 => {
            let parts = SearchParts::Index(&[index]);
            ("search", client.search(parts).body(query).send().await?)
        }
        3 => {
            let mut body: Vec<JsonBody<Value>> = Vec::new();
            for item in 0..20 {
                body.push(json!({ "index": { "_id": format!("{id}-{item}") } }).into());
                body.push(json!({ "title": "telltale" }).into());
            }
            body.push(json!({ "delete": { "_id": "missing" } }).into());
            (
                "bulk",
                client
                    .bulk(BulkParts::Index(index))
                    .body(body)
                    .send()
                    .await?,
            )
        }
        4 => {
            let parts = CountParts::Index(&[index]);
            ("count", client.count(parts).body(query).send().await?)
        }
        5 => (
            "exists",
            client
                .exists(ExistsParts::IndexId(index, "missing"))
                .send()
                .await?,
        ),
        _ => (
            "delete",
            client
                .delete(DeleteParts::IndexId(index, &id))
                .send()
                .await?,
        ),
    };
    let status = answer.status_code().as_u16();
    let body = answer.text().await?;
    let mut tally = tally
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    tally.add(operation, index, status, &body);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, coding, calls] = &arguments[..] else {
        anyhow::bail!("search_load URL plain|gzip CALLS");
    };
    let calls = calls.parse::<usize>()? / WORKERS;
    let pool = SingleNodeConnectionPool::new(url.parse()?);
    let mut transport = TransportBuilder::new(pool).disable_proxy();
    if coding == "gzip" {
        transport = transport.request_body_compression(true);
    }
    let transport: Transport = transport.build()?;
    let client = Elasticsearch::new(transport);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let (client, tally) = (client.clone(), Arc::clone(&tally));
        workers.spawn(async move {
            for number in 0..calls {
                call(&client, worker, number, &tally).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked")??;
    }
    let tally = tally
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("{}", tally.told());
    Ok(())
}
