//! A request that was seen, and what is known of its exchange so far.

use crate::elasticsearch::{self, Counted, Side, Streamed};
use crate::http1::head::{Content, RequestHead, ResponseHead};
use crate::http1::method;
use crate::observation::{Exchange, Outcome, Role, SearchProduct, Times};
use crate::segment::Limits;

/// How far the answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No final response yet.
    Awaited,
    /// Its head was seen.
    Begun,
    /// Its last byte was seen.
    Done,
}

#[derive(Debug)]
pub(crate) struct InFlight {
    exchange: Exchange,
    pub(crate) request_done: bool,
    pub(crate) answer: Answer,
    pub(crate) expects_continue: bool,
    /// Set for good when a head was not parsed.
    verdict: Option<Outcome>,
    /// Requests may be missing before this one, so that the next answer may be one of theirs.
    pub(crate) ambiguous: bool,
    /// Requests may have gone unseen right before this one.
    pub(crate) follows_unseen: bool,
    /// A response came before this request did by the clock: to an unseen request, or to this one.
    pub(crate) doubtful: bool,
    search: Option<Box<SearchDraft>>,
}

impl InFlight {
    /// `spare`: an exchange that is over, for its memory.
    pub(crate) fn new(
        role: Role,
        head: &RequestHead<'_>,
        first_ns: u64,
        last_ns: u64,
        spare: Option<Exchange>,
    ) -> Self {
        let mut in_flight = Self::unparsed(role, first_ns, last_ns);
        let exchange = &mut in_flight.exchange;
        let spare = spare.map(|it| (it.path, it.host, it.request_id, it.correlation_id));
        let (path, host, request_id, correlation_id) = spare.unwrap_or_default();
        exchange.method = head.method;
        exchange.path = refill(path, head.target.path);
        exchange.http_minor_version = head.minor_version;
        exchange.host = refill_if(host, head.host);
        exchange.trace_parent = head.trace_parent;
        exchange.request_id = refill_if(request_id, head.request_id);
        exchange.correlation_id = refill_if(correlation_id, head.correlation_id);
        in_flight.expects_continue = head.expects_continue;
        in_flight.verdict = head.framing.is_none().then_some(Outcome::NotParsed);
        in_flight
    }

    /// A request whose head does not parse.
    pub(crate) fn unparsed(role: Role, first_ns: u64, last_ns: u64) -> Self {
        Self {
            exchange: Exchange {
                role,
                outcome: Outcome::Matched,
                method: method::OTHER,
                path: String::new(),
                status: None,
                http_minor_version: 1,
                times: Times {
                    request_arrived_ns: None,
                    request_first_ns: first_ns,
                    request_last_ns: last_ns,
                    response_first_ns: None,
                    response_last_ns: None,
                },
                request_body_bytes: None,
                response_body_bytes: None,
                host: None,
                trace_parent: None,
                request_id: None,
                correlation_id: None,
                elasticsearch: None,
            },
            request_done: false,
            answer: Answer::Awaited,
            expects_continue: false,
            verdict: Some(Outcome::NotParsed),
            ambiguous: false,
            follows_unseen: false,
            doubtful: false,
            search: None,
        }
    }

    /// Keeps what the recognition of a cluster's calls needs, when this may be one.
    pub(crate) fn watch_search(&mut self, head: &RequestHead<'_>, known: bool) {
        if known || elasticsearch::is_candidate(head.method, head.target.path) {
            self.search = Some(Box::new(SearchDraft {
                query: head.target.query.map(Into::into),
                request: Message::new(head.content),
                is_bulk: elasticsearch::may_be_bulk(head.target.path),
                ..SearchDraft::default()
            }));
        }
    }

    pub(crate) const fn method(&self) -> &'static str {
        self.exchange.method
    }

    pub(crate) fn path(&self) -> &str {
        &self.exchange.path
    }

    /// Whether requests with this method hardly ever have a body (RFC 9110, section 9.3).
    pub(crate) fn is_bodiless(&self) -> bool {
        ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT"].contains(&self.exchange.method)
    }

    /// Notes when the request's first byte arrived.
    pub(crate) const fn set_arrival(&mut self, arrived_ns: Option<u64>) {
        self.exchange.times.request_arrived_ns = arrived_ns;
    }

    pub(crate) const fn request_first_ns(&self) -> u64 {
        self.exchange.times.request_first_ns
    }

    /// Whether the answer had begun by `time_ns`.
    pub(crate) fn is_answered_at(&self, time_ns: u64) -> bool {
        let first_ns = self.exchange.times.response_first_ns;
        first_ns.is_some_and(|first_ns| first_ns <= time_ns)
    }

    /// When the answer's first byte moved, if one did.
    pub(crate) const fn answer_first_ns(&self) -> Option<u64> {
        self.exchange.times.response_first_ns
    }

    /// When the answer's last byte moved; `None` when it is not over.
    pub(crate) fn answered_ns(&self) -> Option<u64> {
        let done = self.answer == Answer::Done;
        self.exchange.times.response_last_ns.filter(|_| done)
    }

    pub(crate) fn end_request(&mut self, last_ns: u64, content_bytes: Option<u64>) {
        self.request_done = true;
        self.exchange.times.request_last_ns = last_ns;
        self.exchange.request_body_bytes = content_bytes;
    }

    /// Ends a request whose size is unknown, where it was last seen.
    pub(crate) const fn end_cut_request(&mut self) {
        self.request_done = true;
    }

    /// Notes that the request has come so far, without being over.
    pub(crate) fn extend_request(&mut self, last_ns: u64) {
        let times = &mut self.exchange.times;
        times.request_last_ns = times.request_last_ns.max(last_ns);
    }

    pub(crate) fn begin_answer(&mut self, head: &ResponseHead<'_>, first_ns: u64, last_ns: u64) {
        self.answer = Answer::Begun;
        self.exchange.times.request_first_ns = self.request_first_ns().min(first_ns);
        self.exchange.status = Some(head.status);
        self.exchange.http_minor_version = head.minor_version;
        self.exchange.times.response_first_ns = Some(first_ns);
        self.exchange.times.response_last_ns = Some(last_ns);
        if head.product.is_some() && self.search.is_none() {
            // The request's body was not kept, for nothing told yet what it was.
            self.search = Some(Box::new(SearchDraft {
                request: Message::missed(),
                ..SearchDraft::default()
            }));
        }
        if let Some(search) = &mut self.search {
            search.product = head.product;
            search.cluster = head.handled_by.cluster.map(Into::into);
            search.node = head.handled_by.node.map(Into::into);
            search.response = Message::new(head.content);
        }
    }

    /// Notes an answer whose head does not parse.
    pub(crate) const fn spoil_answer(&mut self, first_ns: u64, last_ns: u64) {
        self.verdict = Some(Outcome::NotParsed);
        self.answer = Answer::Done;
        self.exchange.times.response_first_ns = Some(first_ns);
        self.exchange.times.response_last_ns = Some(last_ns);
    }

    pub(crate) const fn end_answer(&mut self, last_ns: u64, content_bytes: Option<u64>) {
        self.answer = Answer::Done;
        self.exchange.times.response_last_ns = Some(last_ns);
        self.exchange.response_body_bytes = content_bytes;
    }

    pub(crate) fn keep_request_content(&mut self, content: Option<&[u8]>, limit: usize) {
        if let Some(search) = &mut self.search {
            let side = search.is_bulk.then_some(Side::Request);
            search.request.keep(content, limit, side);
        }
    }

    pub(crate) fn keep_answer_content(&mut self, content: Option<&[u8]>, limit: usize) {
        if let Some(search) = &mut self.search {
            let side = search.is_bulk.then_some(Side::Answer);
            search.response.keep(content, limit, side);
        }
    }

    /// Ends the exchange. An answer that is complete counts, even where its request was cut short:
    /// the server has decided not to read on.
    ///
    /// `ended_ns`: when the connection ended, for exchanges that it ended.
    pub(crate) fn finish(
        mut self,
        outcome: Outcome,
        ended_ns: Option<u64>,
        known: Option<&elasticsearch::Cluster>,
        limits: &Limits,
    ) -> Exchange {
        let natural = match self.answer {
            Answer::Done if outcome != Outcome::Upgraded => Outcome::Matched,
            _ => outcome,
        };
        self.exchange.outcome = self.verdict.unwrap_or(natural);
        if self.answer != Answer::Done && ended_ns.is_some() {
            self.exchange.times.response_last_ns = ended_ns;
        }
        if let Some(search) = self.search.take() {
            self.exchange.elasticsearch =
                search.observe(&self.exchange, known, limits).map(Box::new);
        }
        self.exchange
    }
}

/// `text` in the memory of another one.
fn refill(mut memory: String, text: &str) -> String {
    memory.clear();
    memory.push_str(text);
    memory
}

/// The same of a text that may be absent.
fn refill_if(memory: Option<String>, text: Option<&str>) -> Option<String> {
    text.map(|text| refill(memory.unwrap_or_default(), text))
}

/// What [`elasticsearch::observe`] is asked with. None of it leaves the crate otherwise.
#[derive(Debug, Default)]
struct SearchDraft {
    query: Option<Box<str>>,
    /// Its bodies are read beyond what is kept of them.
    is_bulk: bool,
    request: Message,
    product: Option<SearchProduct>,
    /// Who answered, where the answer's head says so.
    cluster: Option<Box<str>>,
    node: Option<Box<str>>,
    response: Message,
}

impl SearchDraft {
    fn observe(
        mut self,
        exchange: &Exchange,
        known: Option<&elasticsearch::Cluster>,
        limits: &Limits,
    ) -> Option<crate::observation::ElasticsearchCall> {
        let mut counted = Counted::default();
        for (message, body_bytes) in [
            (&mut self.request, exchange.request_body_bytes),
            (&mut self.response, exchange.response_body_bytes),
        ] {
            if let Some(streamed) = message.streamed.take() {
                streamed.finish(body_bytes, &mut counted);
            }
        }
        let request = elasticsearch::Request {
            method: exchange.method,
            path: &exchange.path,
            query: self.query.as_deref(),
            content_type: self.request.content_type.as_deref(),
            content_encoding: self.request.encoding.as_deref(),
            body: &self.request.body,
            body_complete: self.request.is_whole(exchange.request_body_bytes),
        };
        let response = elasticsearch::Response {
            status: exchange.status,
            product: self.product,
            handled_by: elasticsearch::HandledBy {
                cluster: self.cluster.as_deref(),
                node: self.node.as_deref(),
            },
            content_type: self.response.content_type.as_deref(),
            content_encoding: self.response.encoding.as_deref(),
            body: &self.response.body,
            body_complete: self.response.is_whole(exchange.response_body_bytes),
        };
        let query_bytes = limits.query_text_bytes;
        elasticsearch::observe_counted(&request, &response, &counted, known, query_bytes)
    }
}

/// The beginning of a message's body, and how to read it.
#[derive(Debug, Default)]
struct Message {
    content_type: Option<Box<[u8]>>,
    encoding: Option<Box<[u8]>>,
    /// Contiguous from the body's first byte.
    body: Vec<u8>,
    /// Nothing can be added any longer.
    cut: bool,
    /// All of a bulk request's or answer's body that is longer than what is kept.
    streamed: Option<Box<Streamed>>,
}

impl Message {
    fn new(content: Content<'_>) -> Self {
        Self {
            content_type: content.content_type.map(Into::into),
            encoding: content.encoding.map(Into::into),
            body: Vec::new(),
            cut: false,
            streamed: None,
        }
    }

    /// A message of whose body nothing was kept.
    fn missed() -> Self {
        Self {
            cut: true,
            ..Self::default()
        }
    }

    /// Takes in what follows of the body; `None` where it went unseen. `side`: it is a bulk request's.
    fn keep(&mut self, content: Option<&[u8]>, limit: usize, side: Option<Side>) {
        match (content, &mut self.streamed) {
            (Some(content), Some(streamed)) => streamed.read(content),
            (None, Some(streamed)) => streamed.lose(),
            (Some(content), None) if !self.cut => {
                let room = limit.saturating_sub(self.body.len()).min(content.len());
                let (kept, beyond) = content.split_at(room);
                self.body.extend_from_slice(kept);
                self.cut = !beyond.is_empty();
                if let (true, Some(side)) = (self.cut, side) {
                    let streamed = Streamed::begin(side, self.encoding.as_deref(), &self.body);
                    self.streamed = streamed.map(Box::new);
                    self.keep(Some(beyond), limit, Some(side));
                }
            }
            _ => self.cut = true,
        }
    }

    fn is_whole(&self, body_bytes: Option<u64>) -> bool {
        !self.cut && body_bytes == Some(self.body.len() as u64)
    }
}
