//! The framing of `protocol` beside that of hyper: the same bytes, the same messages.
//!
//! hyper answers generated requests as a server, and reads generated answers as a client. What it
//! received and sent is then shown to a [`Connection`], cut into segments at random.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{HeaderMap, HeaderValue, TRAILER};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use protocol::observation::{Exchange, Outcome};
use protocol::{CloseReason, Connection, Direction, Limits, Loss, Segment};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What an implementation says of an exchange.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    method: String,
    path: String,
    status: u16,
    request_bytes: u64,
    response_bytes: u64,
}

impl Seen {
    fn by_telltale(exchange: &Exchange) -> Self {
        assert_eq!(exchange.outcome, Outcome::Matched);
        Self {
            method: exchange.method.to_owned(),
            path: exchange.path.to_string(),
            status: exchange.status.expect("a status"),
            request_bytes: exchange.request_body_bytes.expect("the request's size"),
            response_bytes: exchange.response_body_bytes.expect("the response's size"),
        }
    }
}

/// A body as it is framed on the wire.
#[derive(Clone, Debug)]
enum Framed {
    Nothing,
    Length(Vec<u8>),
    Chunks(Vec<Vec<u8>>),
}

impl Framed {
    fn pieces(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Length(content) => vec![content.clone()],
            Self::Chunks(chunks) => chunks.clone(),
        }
    }

    fn len(&self) -> u64 {
        self.pieces().concat().len() as u64
    }

    /// The same as hyper is given it to send.
    fn parts(&self) -> Parts {
        let pieces = self.pieces().into_iter();
        Parts {
            frames: pieces.map(|piece| Frame::data(piece.into())).collect(),
            len: (!matches!(self, Self::Chunks(_))).then(|| self.len()),
        }
    }

    /// Fields and content, as an implementation with habits of its own might write them.
    fn wire(&self, extension: &str, trailer: &str) -> (String, Vec<u8>) {
        match self {
            Self::Nothing => (String::new(), Vec::new()),
            Self::Length(content) => {
                let field = format!("content-length:  {}\r\n", content.len());
                (field, content.clone())
            }
            Self::Chunks(chunks) => {
                let mut bytes = Vec::new();
                for chunk in chunks {
                    bytes.extend(format!("{:x}{extension}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(format!("0{extension}\r\n{trailer}\r\n").bytes());
                ("Transfer-Encoding: chunked\r\n".to_owned(), bytes)
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Planned {
    method: &'static str,
    target: String,
    request: Framed,
    status: u16,
    answer: Framed,
    extension: &'static str,
    trailer: &'static str,
}

impl Planned {
    /// Whether the answer may have a body on the wire.
    fn has_answer_body(&self) -> bool {
        self.method != "HEAD" && !matches!(self.status, 204 | 304)
    }

    fn seen(&self) -> Seen {
        let answer_bytes = self.answer.len();
        Seen {
            method: self.method.to_owned(),
            path: self.target.split('?').next().unwrap_or_default().to_owned(),
            status: self.status,
            request_bytes: self.request.len(),
            response_bytes: if self.has_answer_body() {
                answer_bytes
            } else {
                0
            },
        }
    }

    fn request_bytes(&self) -> Vec<u8> {
        let (method, target) = (self.method, &self.target);
        let (fields, content) = self.request.wire(self.extension, self.trailer);
        let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        [head.into_bytes(), content].concat()
    }

    fn answer_bytes(&self) -> Vec<u8> {
        let (mut fields, mut content) = self.answer.wire(self.extension, self.trailer);
        if !self.has_answer_body() {
            content.clear();
        } else if fields.is_empty() {
            // Without a length, the answer would last until the connection's end.
            fields.push_str("Content-Length: 0\r\n");
        }
        let head = format!("HTTP/1.1 {} X\r\n{fields}\r\n", self.status);
        [head.into_bytes(), content].concat()
    }

    fn response(&self) -> Response<Parts> {
        let mut body = self.answer.parts();
        let mut response = Response::builder().status(self.status);
        if body.len.is_none() && !self.trailer.is_empty() {
            response = response.header(TRAILER, "x-end");
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", HeaderValue::from_static("1"));
            body.frames.push_back(Frame::trailers(trailers));
        }
        response.body(body).expect("a response")
    }
}

fn framed() -> impl Strategy<Value = Framed> {
    let content = || {
        prop_oneof![
            vec(any::<u8>(), 1..60),
            Just(b"GET /false HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
            Just(b"HTTP/1.1 200 False\r\nContent-Length: 3\r\n\r\n".to_vec()),
            Just(b"0\r\n\r\n".to_vec()),
        ]
    };
    prop_oneof![
        Just(Framed::Nothing),
        content().prop_map(Framed::Length),
        vec(content(), 0..4).prop_map(Framed::Chunks),
    ]
}

fn planned() -> impl Strategy<Value = Planned> {
    let parts = (
        select(vec!["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"]),
        "/[a-z]{1,8}(/[0-9]{1,3})?([?][a-z=&]{0,6})?",
        framed(),
        select(vec![200_u16, 201, 204, 304, 404, 500]),
        framed(),
        select(vec!["", ";a", ";a=\"b;c\"", " ;x=y"]),
        select(vec!["", "X-End: 1\r\n"]),
    );
    parts.prop_map(
        |(method, target, request, status, answer, extension, trailer)| Planned {
            method,
            target,
            request,
            status,
            answer,
            extension,
            trailer,
        },
    )
}

/// A body that hyper sends.
struct Parts {
    frames: VecDeque<Frame<Bytes>>,
    len: Option<u64>,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.frames.pop_front().map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        self.len.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// Reads a body that hyper receives.
async fn body_len(mut body: Incoming) -> hyper::Result<u64> {
    let mut len = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        len += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(len)
}

/// Lets hyper serve `requests`; returns what it received and the bytes that it sent.
async fn serve_by_hyper(plan: &[Planned], requests: &[u8]) -> (Vec<Seen>, Vec<u8>) {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let received = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let received = Rc::clone(&received);
        async move {
            let index = received.borrow().len();
            let planned = &plan[index.min(plan.len() - 1)];
            let (head, body) = request.into_parts();
            let request_bytes = body_len(body).await?;
            received.borrow_mut().push(Seen {
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                request_bytes,
                ..planned.seen()
            });
            Ok::<_, hyper::Error>(planned.response())
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let serve = server
        .half_close(true)
        .serve_connection(TokioIo::new(far), service);
    let talk = async {
        near.write_all(requests).await.expect("room");
        near.shutdown().await.expect("an open stream");
        let mut answers = Vec::new();
        near.read_to_end(&mut answers)
            .await
            .expect("an orderly end");
        answers
    };
    // A damaged stream ends in an error, which is not what is compared.
    let (_, answers) = tokio::join!(serve, talk);
    (received.take(), answers)
}

/// Lets hyper ask for generated answers; returns what it received, and each request's bytes.
async fn ask_by_hyper(plan: &[Planned]) -> (Vec<Seen>, Vec<Vec<u8>>) {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let client = hyper::client::conn::http1::handshake(TokioIo::new(near));
    let (mut sender, connection) = client.await.expect("a connection");
    let ask = async {
        let mut received = Vec::new();
        for planned in plan {
            let request = Request::builder()
                .method(planned.method)
                .uri(&*planned.target)
                .header("host", "a")
                .body(planned.request.parts())
                .expect("a request");
            let answer = sender.send_request(request).await.expect("an answer");
            received.push(Seen {
                status: answer.status().as_u16(),
                response_bytes: body_len(answer.into_body()).await.expect("a whole body"),
                ..planned.seen()
            });
        }
        drop(sender);
        received
    };
    let answer = async {
        let mut requests = Vec::new();
        for planned in plan {
            requests.push(read_request(&mut far, planned).await);
            far.write_all(&planned.answer_bytes()).await.expect("room");
        }
        requests
    };
    let (connected, received, requests) = tokio::join!(connection, ask, answer);
    connected.expect("an orderly end");
    (received, requests)
}

/// Reads a request of hyper's, of which the plan tells how long its body is.
async fn read_request(from: &mut DuplexStream, planned: &Planned) -> Vec<u8> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(from.read_u8().await.expect("more of the head"));
    }
    let head = String::from_utf8_lossy(&request).to_lowercase();
    let mut body_bytes = planned.request.len() as usize;
    if head.contains("transfer-encoding: chunked") {
        let pieces = planned.request.pieces();
        let sizes = pieces
            .iter()
            .map(|piece| format!("{:x}\r\n\r\n", piece.len()).len());
        body_bytes += sizes.sum::<usize>() + "0\r\n\r\n".len();
    }
    let mut body = vec![0; body_bytes];
    from.read_exact(&mut body).await.expect("the whole body");
    [request, body].concat()
}

/// Shows the bytes of both directions to a connection.
struct Wire {
    connection: Connection,
    offsets: [u64; 2],
    now_ns: u64,
}

impl Wire {
    fn new() -> Self {
        Self {
            connection: Connection::new(Limits::default()),
            offsets: [0; 2],
            now_ns: 0,
        }
    }

    fn send(&mut self, direction: Direction, bytes: &[u8], cuts: &[Index]) {
        let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        at.dedup();
        for pair in at.windows(2) {
            let segment = &bytes[pair[0]..pair[1]];
            let offset_bytes = self.offsets[direction as usize];
            self.offsets[direction as usize] += segment.len() as u64;
            self.now_ns += 10;
            self.connection.handle_segment(&Segment {
                direction,
                offset_bytes,
                len_bytes: segment.len() as u64,
                captured: segment,
                tail: &[],
                time_ns: self.now_ns,
                previous_ns: self.now_ns - 10,
                arrived_ns: None,
            });
        }
    }

    fn finish(mut self) -> (Vec<Exchange>, Vec<Loss>) {
        let connection = &mut self.connection;
        connection.handle_close(true, true, CloseReason::Fin, self.now_ns + 10);
        let exchanges = std::iter::from_fn(|| connection.poll_observation()).collect();
        let losses = std::iter::from_fn(|| connection.poll_loss()).collect();
        (exchanges, losses)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// hyper as a server, which takes pipelined requests.
    #[test]
    fn requests_as_hyper_reads_them_and_answers_as_it_writes_them(
        plan in vec(planned(), 1..6),
        request_cuts in vec(any::<Index>(), 0..12),
        answer_cuts in vec(any::<Index>(), 0..12),
    ) {
        let requests: Vec<u8> = plan.iter().flat_map(Planned::request_bytes).collect();
        let (by_hyper, answers) = block_on(serve_by_hyper(&plan, &requests));
        prop_assert_eq!(by_hyper.len(), plan.len());
        let mut wire = Wire::new();
        wire.send(Direction::Ingress, &requests, &request_cuts);
        wire.send(Direction::Egress, &answers, &answer_cuts);
        let (exchanges, losses) = wire.finish();
        let by_telltale: Vec<_> = exchanges.iter().map(Seen::by_telltale).collect();
        prop_assert_eq!(by_telltale, by_hyper);
        prop_assert!(losses.is_empty(), "{:?}", losses);
    }

    /// hyper as a client, which waits for each answer.
    #[test]
    fn answers_as_hyper_reads_them_and_requests_as_it_writes_them(
        plan in vec(planned(), 1..6),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let mut plan = plan;
        for planned in &mut plan {
            // hyper sends no body of unknown length with these.
            if matches!((planned.method, &planned.request), ("GET" | "HEAD", Framed::Chunks(_))) {
                planned.request = Framed::Nothing;
            }
        }
        let (by_hyper, requests) = block_on(ask_by_hyper(&plan));
        let mut wire = Wire::new();
        for (planned, request) in plan.iter().zip(&requests) {
            wire.send(Direction::Egress, request, &cuts);
            wire.send(Direction::Ingress, &planned.answer_bytes(), &cuts);
        }
        let (exchanges, losses) = wire.finish();
        let by_telltale: Vec<_> = exchanges.iter().map(Seen::by_telltale).collect();
        prop_assert_eq!(by_telltale, by_hyper);
        prop_assert!(losses.is_empty(), "{:?}", losses);
    }

    /// Bytes that are wrong somewhere: whatever hyper takes for a request, the agent does alike.
    #[test]
    fn damaged_requests_are_read_as_hyper_reads_them(
        plan in vec(planned(), 1..5),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let mut requests: Vec<u8> = plan.iter().flat_map(Planned::request_bytes).collect();
        // The first line tells the agent what the connection speaks.
        let first_line = requests.iter().position(|byte| *byte == b'\n').unwrap_or(0) + 1;
        for (index, byte) in damage {
            let index = first_line + index.index(requests.len() - first_line);
            // On a line that ends otherwise, recipients differ (RFC 9112, section 2.2).
            if ![requests[index], byte].iter().any(|byte| b"\r\n".contains(byte)) {
                requests[index] = byte;
            }
        }
        let (by_hyper, answers) = block_on(serve_by_hyper(&plan, &requests));
        let mut wire = Wire::new();
        wire.send(Direction::Ingress, &requests, &cuts);
        wire.send(Direction::Egress, &answers, &[]);
        let (exchanges, _) = wire.finish();
        prop_assert!(exchanges.len() >= by_hyper.len(), "{:?}", exchanges);
        for (exchange, seen) in exchanges.iter().zip(&by_hyper) {
            let method = exchange.method;
            let bytes = exchange.request_body_bytes;
            prop_assert!(
                (method == "_OTHER" || method == seen.method)
                    // hyper takes a target that is no path for an authority.
                    && (!exchange.path.starts_with('/') || *exchange.path == *seen.path)
                    && bytes == Some(seen.request_bytes),
                "{:?}\n{:?}\n{}",
                exchange,
                seen,
                requests.escape_ascii()
            );
        }
    }
}
