//! What holds for any exchanges, however their bytes are cut, captured, delayed and lost.

mod wire;

use proptest::collection::vec;
use proptest::prelude::*;
use protocol::observation::{Exchange, Outcome, Role};
use protocol::{CloseReason, Connection, Cursor, Direction, Limits, Loss, LossReason, Segment};
use wire::Wire;
use wire::kernel::{Fate, Kernel};

/// Answers tell by their status which request they are for.
const FIRST_STATUS: u16 = 400;

/// Paths are of one length, so that a cut one is known.
fn path(index: u16) -> String {
    format!("/{}", index + 10)
}

#[derive(Clone, Debug)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunked { chunks: Vec<Vec<u8>>, trailer: bool },
}

#[derive(Clone, Debug)]
struct Planned {
    method: &'static str,
    request: Body,
    answer: Body,
    interim: bool,
    request_cuts: Vec<prop::sample::Index>,
    answer_cuts: Vec<prop::sample::Index>,
}

impl Body {
    fn fields(&self) -> String {
        match self {
            Self::None => "Content-Length: 0\r\n".into(),
            Self::Length(content) => format!("Content-Length: {}\r\n", content.len()),
            Self::Chunked { trailer: false, .. } => "Transfer-Encoding: chunked\r\n".into(),
            Self::Chunked { trailer: true, .. } => {
                "Transfer-Encoding: chunked\r\nTrailer: X-End\r\n".into()
            }
        }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Length(content) => bytes.extend_from_slice(content),
            Self::Chunked { chunks, trailer } => {
                for chunk in chunks {
                    bytes.extend_from_slice(format!("{:X};x\r\n", chunk.len()).as_bytes());
                    bytes.extend_from_slice(chunk);
                    bytes.extend_from_slice(b"\r\n");
                }
                let end: &[u8] = if *trailer {
                    b"0\r\nX-End: 1\r\n\r\n"
                } else {
                    b"0\r\n\r\n"
                };
                bytes.extend_from_slice(end);
            }
        }
    }

    fn content_bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Length(content) => content.len() as u64,
            Self::Chunked { chunks, .. } => chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        }
    }

    /// Chunk framing that nobody captured leaves the size unknown; a length never does.
    fn allows(&self, observed: Option<u64>) -> bool {
        observed == Some(self.content_bytes())
            || observed.is_none() && matches!(self, Self::Chunked { .. })
    }
}

impl Planned {
    fn request_bytes(&self, index: u16) -> Vec<u8> {
        let (method, fields) = (self.method, self.request.fields());
        let mut bytes = format!("{method} {}?q HTTP/1.1\r\n{fields}\r\n", path(index)).into_bytes();
        self.request.write(&mut bytes);
        bytes
    }

    fn answer_bytes(&self, index: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.interim {
            bytes.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        }
        let (status, fields) = (FIRST_STATUS + index, self.answer.fields());
        bytes.extend_from_slice(format!("HTTP/1.1 {status} X\r\n{fields}\r\n").as_bytes());
        if self.method != "HEAD" {
            self.answer.write(&mut bytes);
        }
        bytes
    }

    fn answer_head_at(&self) -> usize {
        let bytes = self.answer_bytes(0);
        let head = format!("HTTP/1.1 {FIRST_STATUS} ").into_bytes();
        bytes
            .windows(head.len())
            .position(|window| window == head)
            .expect("a head")
    }

    fn assert_observed(&self, index: u16, exchange: &Exchange) {
        assert_eq!(exchange.outcome, Outcome::Matched);
        assert_eq!(exchange.method, self.method);
        assert_eq!(*exchange.path, *path(index));
        assert_eq!(exchange.status, Some(FIRST_STATUS + index));
        assert!(self.request.allows(exchange.request_body_bytes));
        if self.method == "HEAD" {
            assert_eq!(exchange.response_body_bytes, Some(0));
        } else {
            assert!(self.answer.allows(exchange.response_body_bytes));
        }
    }
}

/// The kernel side looks at so many bytes to recognize the beginning of a message.
const BEGINNING_BYTES: usize = 8;

/// Cuts `bytes` into segments, none of them empty.
fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    cut_between(bytes, cuts, 0, bytes.len())
}

/// Cuts `bytes` where the kernel side can follow: not in a head's first bytes.
fn cut_visibly<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    cut_between(bytes, cuts, BEGINNING_BYTES, bytes.len())
}

fn cut_between<'a>(
    bytes: &'a [u8],
    cuts: &[prop::sample::Index],
    from: usize,
    to: usize,
) -> Vec<&'a [u8]> {
    let index = |cut: &prop::sample::Index| from + cut.index(to - from);
    let mut at: Vec<_> = cuts.iter().map(index).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.dedup();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 1..40),
        (1..3000_usize).prop_map(|len| vec![b'x'; len]),
        // What looks like a head must not be taken for one.
        Just(b"GET /false HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        Just(b"HTTP/1.1 299 False\r\nContent-Length: 3\r\n\r\n".to_vec()),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(Body::None),
        content().prop_map(Body::Length),
        (vec(content(), 0..5), any::<bool>())
            .prop_map(|(chunks, trailer)| Body::Chunked { chunks, trailer }),
    ]
}

fn planned() -> impl Strategy<Value = Planned> {
    let cuts = || vec(any::<prop::sample::Index>(), 0..4);
    (
        prop::sample::select(vec!["GET", "POST", "PUT", "HEAD"]),
        body(),
        body(),
        any::<bool>(),
        cuts(),
        cuts(),
    )
        .prop_map(
            |(method, request, answer, interim, request_cuts, answer_cuts)| Planned {
                method,
                request,
                answer,
                interim,
                request_cuts,
                answer_cuts,
            },
        )
}

/// Whether the ring is full.
fn lost() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.2)
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)]
}

proptest! {
    /// A client that waits for its answers: every exchange is told, with its exact times and sizes,
    /// whatever of it was captured, and when the record of a request comes late.
    #[test]
    fn any_cut_and_any_capture_tell_the_same(
        plan in vec((planned(), any::<bool>()), 1..8),
        capture_bytes in 400..6000_usize,
        requests in direction(),
    ) {
        let mut kernel = Kernel::new(requests, capture_bytes);
        let mut times = Vec::new();
        for (index, (planned, late)) in (0..).zip(&plan) {
            let (request, answer) = (planned.request_bytes(index), planned.answer_bytes(index));
            let segments = cut_visibly(&request, &planned.request_cuts);
            let first_ns = kernel.wire.now_ns + 10;
            for (number, segment) in segments.iter().enumerate() {
                let last = number + 1 == segments.len();
                kernel.send(true, segment, if last && *late { Fate::Late } else { Fate::Shown });
            }
            let last_ns = kernel.wire.now_ns;
            let mut head_ns = None;
            let mut sent = 0;
            for segment in cut_visibly(&answer, &planned.answer_cuts) {
                kernel.send(false, segment, Fate::Shown);
                sent += segment.len();
                if sent > planned.answer_head_at() {
                    head_ns.get_or_insert(kernel.wire.now_ns);
                }
            }
            times.push((first_ns, last_ns, head_ns, Some(kernel.wire.now_ns)));
        }
        kernel.close(CloseReason::Fin);
        let exchanges = kernel.wire.exchanges();
        prop_assert_eq!(exchanges.len(), plan.len(), "{:#?}", exchanges);
        for (index, ((planned, _), exchange)) in (0..).zip(plan.iter().zip(&exchanges)) {
            planned.assert_observed(index, exchange);
            let observed = exchange.times;
            prop_assert_eq!(
                (
                    observed.request_first_ns,
                    observed.request_last_ns,
                    observed.response_first_ns,
                    observed.response_last_ns,
                ),
                times[usize::from(index)]
            );
        }
        prop_assert!(kernel.wire.connection.is_idle());
    }

    /// A client that pipelines: all is captured, and cut anywhere.
    #[test]
    fn pipelined_exchanges_cut_anywhere(
        batches in vec(vec(planned(), 1..6), 1..4),
        requests in direction(),
    ) {
        let mut wire = Wire::new(requests, Limits::default());
        let mut index = 0;
        for batch in &batches {
            let (mut request, mut answer) = (Vec::new(), Vec::new());
            let (mut request_cuts, mut answer_cuts) = (Vec::new(), Vec::new());
            for planned in batch {
                request.extend(planned.request_bytes(index));
                answer.extend(planned.answer_bytes(index));
                request_cuts.extend(&planned.request_cuts);
                answer_cuts.extend(&planned.answer_cuts);
                index += 1;
            }
            for segment in cut(&request, &request_cuts) {
                wire.request(segment);
            }
            for segment in cut(&answer, &answer_cuts) {
                wire.response(segment);
            }
        }
        let exchanges = wire.exchanges();
        prop_assert_eq!(exchanges.len(), usize::from(index));
        for (index, (planned, exchange)) in (0..).zip(batches.iter().flatten().zip(&exchanges)) {
            planned.assert_observed(index, exchange);
        }
        wire.assert_nothing_lost();
        prop_assert!(wire.connection.is_idle());
    }

    /// A client that waits for its answers, and a ring that loses records: nothing is mispaired,
    /// and every request that was seen ends once.
    #[test]
    fn lost_records_never_mispair(
        plan in vec((planned(), vec(lost(), 10)), 1..12),
        capture_bytes in 400..6000_usize,
        requests in direction(),
    ) {
        let mut kernel = Kernel::new(requests, capture_bytes);
        let mut seen = Vec::new();
        for (index, (planned, lost)) in (0..).zip(&plan) {
            // The same without what looks like a head: only framing tells those apart.
            let planned = &without_false_heads(planned);
            let mut lost = lost.iter().map(|lost| if *lost { Fate::Lost } else { Fate::Shown });
            let mut fate = || lost.next().unwrap_or(Fate::Shown);
            let request = planned.request_bytes(index);
            for (number, segment) in cut_visibly(&request, &planned.request_cuts).into_iter().enumerate() {
                let shown = kernel.send(true, segment, fate());
                if number == 0 && shown && segment.len() > "POST /10?q".len() {
                    seen.push(path(index));
                }
            }
            for segment in cut_visibly(&planned.answer_bytes(index), &planned.answer_cuts) {
                kernel.send(false, segment, fate());
            }
        }
        kernel.close(CloseReason::Fin);
        let exchanges = kernel.wire.exchanges();
        let mut told: Vec<String> = Vec::new();
        for exchange in exchanges.iter().filter(|exchange| exchange.path.len() == path(0).len()) {
            let index = exchange.path[1..].parse::<u16>().unwrap() - 10;
            if let Some(status) = exchange.status {
                prop_assert_eq!(status, FIRST_STATUS + index);
            }
            told.push(exchange.path.to_string());
        }
        let ambiguous: u64 = kernel
            .wire
            .losses()
            .iter()
            .filter(|loss| loss.reason == LossReason::AmbiguousHead)
            .map(|loss| loss.count)
            .sum();
        let missing = seen.iter().filter(|path| !told.contains(path)).count() as u64;
        prop_assert!(missing <= ambiguous, "{:?} {:?}", seen, told);
        told.sort();
        let count = told.len();
        told.dedup();
        prop_assert_eq!(told.len(), count, "an exchange was told twice");
        prop_assert!(kernel.wire.connection.is_idle());
    }

    /// A client that pipelines in batches, and a ring that loses records, once it is known to
    /// pipeline: nothing is mispaired.
    #[test]
    fn lost_records_never_mispair_pipelined_exchanges(
        batches in vec(vec((lost(), lost()), 2..6), 1..8),
        requests in direction(),
    ) {
        let mut kernel = Kernel::new(requests, 4096);
        let fate = |lost| if lost { Fate::Lost } else { Fate::Shown };
        let mut index = 0;
        let whole = vec![(false, false); 2];
        for batch in std::iter::once(&whole).chain(&batches) {
            let first = index;
            for (lost, _) in batch {
                let request = format!("GET {} HTTP/1.1\r\n\r\n", path(index));
                kernel.send(true, request.as_bytes(), fate(*lost));
                index += 1;
            }
            for (index, (_, lost)) in (first..).zip(batch) {
                let status = FIRST_STATUS + index;
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok");
                kernel.send(false, answer.as_bytes(), fate(*lost));
            }
        }
        kernel.close(CloseReason::Fin);
        for exchange in kernel.wire.exchanges() {
            if let Some(status) = exchange.status {
                prop_assert_eq!(&*exchange.path, path(status - FIRST_STATUS));
            }
        }
    }

    /// Whatever comes, nothing panics, nothing stays, and what is in flight is bounded.
    #[test]
    fn any_input_ends(steps in vec(step(), 0..60), reason in reason()) {
        let limits = Limits { requests_in_flight: 4, head_bytes: 200, ..Limits::default() };
        let mut connection = Connection::new(limits);
        let (mut heads, mut ended) = (0, 0);
        for step in &steps {
            step.apply(&mut connection);
            while let Some((_, more)) = connection.poll_heads() {
                heads += more;
            }
            while connection.poll_observation().is_some() {
                ended += 1;
            }
            prop_assert_eq!(heads, ended + connection.in_flight() as u64);
            prop_assert!(connection.in_flight() <= 4);
            prop_assert_eq!(connection.in_flight(), connection.methods_in_flight().count());
            while connection.poll_loss().is_some() {}
        }
        connection.handle_close(true, true, reason, u64::MAX);
        prop_assert_eq!(connection.in_flight(), 0);
        prop_assert!(connection.is_idle());
    }

    /// A connection that rests whenever it can tells the same as one that never does.
    #[test]
    fn rest_changes_nothing(steps in vec(step(), 0..60), reason in reason()) {
        let mut restless = Connection::new(Limits::default());
        let mut turns = [Connection::new(Limits::default()), Connection::new(Limits::default())];
        for (index, step) in steps.iter().enumerate() {
            step.apply(&mut restless);
            step.apply(&mut turns[0]);
            prop_assert_eq!(outcome(&mut restless), outcome(&mut turns[0]), "step {}", index);
            if let Some(resting) = turns[0].rest() {
                turns.reverse();
                turns[0].resume(resting);
            }
        }
        restless.handle_close(true, true, reason, u64::MAX);
        turns[0].handle_close(true, true, reason, u64::MAX);
        prop_assert_eq!(outcome(&mut restless), outcome(&mut turns[0]));
    }
}

/// Takes out what came of a connection.
fn outcome(connection: &mut Connection) -> (Vec<Exchange>, Vec<Loss>, Vec<(Role, u64)>) {
    (
        std::iter::from_fn(|| connection.poll_observation()).collect(),
        std::iter::from_fn(|| connection.poll_loss()).collect(),
        std::iter::from_fn(|| connection.poll_heads()).collect(),
    )
}

fn without_false_heads(planned: &Planned) -> Planned {
    let clean = |content: &Vec<u8>| vec![b'x'; content.len()];
    let clean = |body: &Body| match body {
        Body::None => Body::None,
        Body::Length(content) => Body::Length(clean(content)),
        Body::Chunked { chunks, trailer } => Body::Chunked {
            chunks: chunks.iter().map(clean).collect(),
            trailer: *trailer,
        },
    };
    Planned {
        request: clean(&planned.request),
        answer: clean(&planned.answer),
        ..planned.clone()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Segment {
        direction: Direction,
        offset_bytes: u64,
        len_bytes: u64,
        captured: Vec<u8>,
        tail: Vec<u8>,
        time_ns: u64,
    },
    Progress(Direction, u64, u64),
    Close(bool, bool),
    Evict,
}

impl Step {
    fn apply(&self, connection: &mut Connection) {
        match self {
            Self::Segment {
                direction,
                offset_bytes,
                len_bytes,
                captured,
                tail,
                time_ns,
            } => connection.handle_segment(&Segment {
                direction: *direction,
                offset_bytes: *offset_bytes,
                len_bytes: *len_bytes,
                captured,
                tail,
                time_ns: *time_ns,
                previous_ns: time_ns.saturating_sub(1),
                arrived_ns: time_ns.checked_sub(1),
            }),
            Self::Progress(direction, offset_bytes, last_ns) => {
                let cursor = Cursor {
                    offset_bytes: *offset_bytes,
                    last_ns: *last_ns,
                };
                connection.handle_progress(*direction, cursor);
            }
            Self::Close(ingress, egress) => {
                connection.handle_close(*ingress, *egress, CloseReason::Fin, 1);
            }
            Self::Evict => connection.handle_evict(1),
        }
    }
}

fn reason() -> impl Strategy<Value = CloseReason> {
    prop::sample::select(vec![
        CloseReason::Fin,
        CloseReason::Reset,
        CloseReason::Timeout,
        CloseReason::Replaced,
    ])
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..300_u64, 1 => any::<u64>()]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<Vec<u8>> = [
        &b"GET /a HTTP/1.1\r\n\r\n"[..],
        b"POST /b HTTP/1.1\r\nContent-Length: 30\r\n\r\n",
        b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /d HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET /e HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 X\r\n\r\n",
        b"HTTP/1.1 999\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    prop_oneof![
        4 => vec(prop::sample::select(known), 1..4).prop_map(|parts| parts.concat()),
        1 => vec(any::<u8>(), 0..50),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (direction(), number(), message(), number(), vec(any::<u8>(), 0..8), number())
            .prop_map(|(direction, offset_bytes, captured, extra, tail, time_ns)| {
                // At most the length that the kernel side promises to keep to.
                let len_bytes = (captured.len() as u64).saturating_add(extra % 40);
                Step::Segment { direction, offset_bytes, len_bytes, captured, tail, time_ns }
            }),
        4 => (direction(), number(), number())
            .prop_map(|(direction, offset, last_ns)| Step::Progress(direction, offset, last_ns)),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(a, b)| Step::Close(a, b)),
        1 => Just(Step::Evict),
    ]
}
