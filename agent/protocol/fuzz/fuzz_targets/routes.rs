//! Any templates and paths: no panic, a bounded number of routes, and one answer for one path.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::routes::RouteTable;

/// Small, so that it is full soon.
const MAX_ROUTES: usize = 20;

fuzz_target!(|input: (Vec<String>, Vec<&str>)| {
    let (templates, paths) = input;
    let Ok(mut table) = RouteTable::new(&templates, MAX_ROUTES) else {
        return;
    };
    for path in &paths {
        let route = table.route(path);
        assert_eq!(route, table.route(path));
        assert!(table.learned_routes() <= MAX_ROUTES);
    }
});
