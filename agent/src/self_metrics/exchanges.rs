//! Exchanges by outcome, and those that are under way.

use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use protocol::observation::{Outcome, Role};

/// `telltale_http_request_heads_total`, `telltale_http_exchanges_total`,
/// `telltale_http_exchanges_in_flight` and `http_server_active_requests`. Clones share the values.
#[derive(Clone)]
pub struct Exchanges {
    heads: [IntCounter; 2],
    by_outcome: [[IntCounter; Outcome::ALL.len()]; 2],
    in_flight: [IntGauge; 2],
    active: IntGaugeVec,
}

impl Exchanges {
    /// Registers the metrics; every role and outcome shows from the start.
    ///
    /// # Errors
    ///
    /// When the registry has one of them already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let heads = IntCounterVec::new(
            Opts::new(
                "telltale_http_request_heads_total",
                "HTTP request heads seen: each is in flight, or an exchange that ended.",
            ),
            &["role"],
        )?;
        let total = IntCounterVec::new(
            Opts::new(
                "telltale_http_exchanges_total",
                "HTTP exchanges by how they ended: every request head ends in exactly one outcome.",
            ),
            &["role", "outcome"],
        )?;
        let in_flight = IntGaugeVec::new(
            Opts::new(
                "telltale_http_exchanges_in_flight",
                "HTTP exchanges whose request head was seen and whose end was not.",
            ),
            &["role"],
        )?;
        let active = IntGaugeVec::new(
            Opts::new(
                "http_server_active_requests",
                "HTTP requests that a server is answering.",
            ),
            &["service_name", "http_request_method"],
        )?;
        registry.register(Box::new(heads.clone()))?;
        registry.register(Box::new(total.clone()))?;
        registry.register(Box::new(in_flight.clone()))?;
        registry.register(Box::new(active.clone()))?;
        let of_role = |role: Role| {
            Outcome::ALL.map(|outcome| total.with_label_values(&[role.as_str(), outcome.as_str()]))
        };
        Ok(Self {
            heads: [Role::Client, Role::Server]
                .map(|role| heads.with_label_values(&[role.as_str()])),
            by_outcome: [of_role(Role::Client), of_role(Role::Server)],
            in_flight: [Role::Client, Role::Server]
                .map(|role| in_flight.with_label_values(&[role.as_str()])),
            active,
        })
    }

    /// Counts `n` request heads.
    pub fn seen(&self, role: Role, n: u64) {
        self.heads[role as usize].inc_by(n);
    }

    /// Counts `n` exchanges that ended so. The Prometheus sink counts those that it observes; call
    /// this only for those that become no observation.
    pub fn ended(&self, role: Role, outcome: Outcome, n: u64) {
        self.by_outcome[role as usize][outcome as usize].inc_by(n);
    }

    /// The gauge of the exchanges in flight.
    #[must_use]
    pub fn in_flight(&self, role: Role) -> &IntGauge {
        &self.in_flight[role as usize]
    }

    /// A handle for one worker.
    #[must_use]
    pub fn worker(&self) -> InFlight {
        InFlight {
            exchanges: self.clone(),
            known: HashMap::new(),
            gauges: Vec::new(),
            methods: Vec::new(),
        }
    }
}

/// One worker's handle on what is under way: it knows the gauges that it has used, so that a request
/// that begins or ends takes no lock.
pub struct InFlight {
    exchanges: Exchanges,
    /// Places in `gauges`.
    known: HashMap<ActiveKey, usize>,
    gauges: Vec<IntGauge>,
    /// Scratch.
    methods: Vec<&'static str>,
}

/// What the gauges count of one connection.
#[derive(Debug, Default)]
pub struct Counted {
    role: Option<Role>,
    service: Option<Arc<str>>,
    methods: Vec<&'static str>,
    /// A server's gauges, one a method: places in [`InFlight::gauges`].
    places: Vec<usize>,
}

impl InFlight {
    /// Brings the gauges up to date with a connection of `service`, on which requests of these
    /// `methods` are under way. Call it with none before the connection is forgotten.
    pub fn update(
        &mut self,
        counted: &mut Counted,
        role: Role,
        service: &Arc<str>,
        methods: impl Iterator<Item = &'static str>,
    ) {
        self.methods.clear();
        self.methods.extend(methods);
        let is_same = counted.role == Some(role)
            && counted.service.as_ref() == Some(service)
            && counted.methods == self.methods;
        if is_same {
            return;
        }
        self.take_back(counted);
        counted.methods.extend_from_slice(&self.methods);
        counted.role = Some(role);
        if counted.service.as_ref() != Some(service) {
            counted.service = Some(Arc::clone(service));
        }
        self.exchanges.in_flight(role).add(length(&counted.methods));
        if role == Role::Server {
            for index in 0..counted.methods.len() {
                let place = self.place(service, counted.methods[index]);
                self.gauges[place].inc();
                counted.places.push(place);
            }
        }
    }

    fn take_back(&self, counted: &mut Counted) {
        if let Some(role) = counted.role {
            self.exchanges.in_flight(role).sub(length(&counted.methods));
        }
        for place in counted.places.drain(..) {
            self.gauges[place].dec();
        }
        counted.methods.clear();
    }

    fn place(&mut self, service: &Arc<str>, method: &'static str) -> usize {
        if let Some(&place) = self.known.get(&ActiveKeyRef { service, method }) {
            return place;
        }
        let (service, method) = if self.known.len() < MAX_ACTIVE {
            (Arc::clone(service), method)
        } else {
            (Arc::from(OVERFLOW), OVERFLOW)
        };
        let gauge = self
            .exchanges
            .active
            .with_label_values(&[&*service, method]);
        *self
            .known
            .entry(ActiveKey { service, method })
            .or_insert_with(|| {
                self.gauges.push(gauge);
                self.gauges.len() - 1
            })
    }
}

/// Series of `http_server_active_requests` that one worker makes; those beyond are one.
const MAX_ACTIVE: usize = 4096;

const OVERFLOW: &str = "_overflow";

#[derive(PartialEq, Eq, Hash)]
struct ActiveKey {
    service: Arc<str>,
    method: &'static str,
}

/// [`ActiveKey`], borrowed: hashes alike.
#[derive(Hash)]
struct ActiveKeyRef<'a> {
    service: &'a Arc<str>,
    method: &'static str,
}

impl Equivalent<ActiveKey> for ActiveKeyRef<'_> {
    fn equivalent(&self, key: &ActiveKey) -> bool {
        *self.service == key.service && self.method == key.method
    }
}

/// Gauges count in `i64`; no connection has that many requests.
fn length(methods: &[&'static str]) -> i64 {
    i64::try_from(methods.len()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    struct Setup {
        registry: Registry,
        exchanges: Exchanges,
    }

    impl Setup {
        fn new() -> Self {
            let registry = Registry::new();
            let exchanges = Exchanges::new(&registry).unwrap();
            Self {
                registry,
                exchanges,
            }
        }

        fn text(&self) -> String {
            TextEncoder::new()
                .encode_to_string(&self.registry.gather())
                .unwrap()
        }

        fn active(&self, service: &str, method: &str) -> i64 {
            self.exchanges
                .active
                .with_label_values(&[service, method])
                .get()
        }
    }

    #[test]
    fn every_outcome_shows_from_the_start() {
        let setup = Setup::new();
        setup.exchanges.ended(Role::Server, Outcome::NotParsed, 4);
        setup.exchanges.seen(Role::Client, 5);
        let told = setup.text();
        for line in [
            "telltale_http_request_heads_total{role=\"client\"} 5",
            "telltale_http_request_heads_total{role=\"server\"} 0",
        ] {
            assert!(told.contains(line), "{line} is missing in {told}");
        }
        for role in ["client", "server"] {
            for outcome in Outcome::ALL {
                let n = if role == "server" && outcome == Outcome::NotParsed {
                    4
                } else {
                    0
                };
                let line = format!(
                    "telltale_http_exchanges_total{{outcome=\"{}\",role=\"{role}\"}} {n}",
                    outcome.as_str()
                );
                assert!(told.contains(&line), "{line} is missing in {told}");
            }
        }
    }

    #[test]
    fn requests_under_way_are_counted_by_service_and_method() {
        let setup = Setup::new();
        let (shop, other): (Arc<str>, Arc<str>) = ("shop".into(), "other".into());
        let mut worker = setup.exchanges.worker();
        let (mut one, mut two) = (Counted::default(), Counted::default());
        worker.update(
            &mut one,
            Role::Server,
            &shop,
            ["GET", "GET", "POST"].into_iter(),
        );
        worker.update(
            &mut one,
            Role::Server,
            &shop,
            ["GET", "GET", "POST"].into_iter(),
        );
        worker.update(&mut two, Role::Server, &shop, ["GET"].into_iter());
        assert_eq!(setup.active("shop", "GET"), 3);
        assert_eq!(setup.active("shop", "POST"), 1);
        assert_eq!(setup.exchanges.in_flight(Role::Server).get(), 4);
        // The oldest was answered.
        worker.update(&mut one, Role::Server, &shop, ["GET", "POST"].into_iter());
        assert_eq!(setup.active("shop", "GET"), 2);
        // The connection is another process's now.
        worker.update(&mut one, Role::Server, &other, ["GET", "POST"].into_iter());
        assert_eq!(setup.active("shop", "POST"), 0);
        assert_eq!(setup.active("other", "POST"), 1);
        worker.update(&mut one, Role::Server, &other, [].into_iter());
        worker.update(&mut two, Role::Server, &shop, [].into_iter());
        assert_eq!(
            setup.active("shop", "GET") + setup.active("other", "GET"),
            0
        );
        assert_eq!(setup.exchanges.in_flight(Role::Server).get(), 0);
    }

    #[test]
    fn a_client_has_requests_in_flight_and_answers_none() {
        let setup = Setup::new();
        let mut counted = Counted::default();
        let mut worker = setup.exchanges.worker();
        worker.update(
            &mut counted,
            Role::Client,
            &"shop".into(),
            ["GET"].into_iter(),
        );
        assert_eq!(setup.exchanges.in_flight(Role::Client).get(), 1);
        assert!(!setup.text().contains("http_server_active_requests"));
    }

    #[test]
    fn services_beyond_the_bound_share_one_gauge() {
        let setup = Setup::new();
        let mut worker = setup.exchanges.worker();
        let mut connections = Vec::new();
        for service in 0..MAX_ACTIVE + 3 {
            let mut counted = Counted::default();
            let name: Arc<str> = format!("s{service}").into();
            worker.update(&mut counted, Role::Server, &name, ["GET"].into_iter());
            connections.push((counted, name));
        }
        assert_eq!(setup.active(OVERFLOW, OVERFLOW), 3);
        assert_eq!(worker.gauges.len(), MAX_ACTIVE + 1);
        for (mut counted, name) in connections {
            worker.update(&mut counted, Role::Server, &name, [].into_iter());
        }
        assert_eq!(setup.active(OVERFLOW, OVERFLOW), 0);
    }
}
