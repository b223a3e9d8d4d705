//! An HTTP/1.1 client with exact control over bytes, connections and timing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Names in lower case, with their values.
type Headers = Vec<(String, String)>;

/// A request to send.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: &'static str,
    /// Target as it goes into the request line, query included.
    pub target: String,
    /// Further header lines, without their line ends.
    pub headers: Vec<String>,
    /// Body; sent with `Content-Length` unless it is empty.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without headers of its own and without a body.
    #[must_use]
    pub fn new(method: &'static str, target: impl Into<String>) -> Self {
        Self {
            method,
            target: target.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Adds a header line.
    #[must_use]
    pub fn header(mut self, line: impl Into<String>) -> Self {
        self.headers.push(line.into());
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The request's head as it goes over the wire.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: localhost\r\n",
            self.method, self.target
        );
        for line in &self.headers {
            head += line;
            head += "\r\n";
        }
        if !self.body.is_empty() {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        head.into_bytes()
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code of the final response.
    pub status: u16,
    /// Status codes of the 1xx responses before it.
    pub interim: Vec<u16>,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// Body without chunk framing.
    pub body: Vec<u8>,
    /// From before the first write to the return of the first read of the final response.
    pub first_byte: Duration,
    /// From before the first write to the return of the last read.
    pub duration: Duration,
}

impl Response {
    /// The first header of that name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    // Read and not yet consumed.
    buffer: Vec<u8>,
    started: Instant,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        Self::over(TcpStream::connect(address)?)
    }

    /// Takes a connection over.
    ///
    /// # Errors
    /// When it is gone.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            started: Instant::now(),
        })
    }

    /// One request on a connection of its own, which is closed afterwards.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn once(address: SocketAddr, request: &Request) -> Result<Response> {
        Self::connect(address)?.send(request)
    }

    /// Sends a request in one write and reads the answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer is not HTTP.
    pub fn send(&mut self, request: &Request) -> Result<Response> {
        let mut bytes = request.head();
        bytes.extend_from_slice(&request.body);
        self.write(&bytes)?;
        self.read_response(request.method)
    }

    /// Writes bytes as they are and starts the clock of the next response.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.started = Instant::now();
        Ok(self.stream.write_all(bytes)?)
    }

    /// Writes more bytes of the same request.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn write_more(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Reads the next response, framed as RFC 9112 section 6.3 has it; `method` is that of its
    /// request.
    ///
    /// # Errors
    /// When the connection breaks or the answer is not HTTP.
    pub fn read_response(&mut self, method: &str) -> Result<Response> {
        let mut interim = Vec::new();
        loop {
            let (status, headers, first_byte) = self.read_head()?;
            if (100..200).contains(&status) && status != 101 {
                interim.push(status);
                continue;
            }
            let body = self.read_body(method, status, &headers)?;
            let duration = self.started.elapsed();
            return Ok(Response {
                status,
                interim,
                headers,
                body,
                first_byte,
                duration,
            });
        }
    }

    /// The stream, for what this client does not do.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn read_head(&mut self) -> Result<(u16, Headers, Duration)> {
        let mut first_byte = None;
        loop {
            if !self.buffer.is_empty() {
                first_byte.get_or_insert_with(|| self.started.elapsed());
                let mut headers = [httparse::EMPTY_HEADER; 64];
                let mut response = httparse::Response::new(&mut headers);
                if let httparse::Status::Complete(length) = response.parse(&self.buffer)? {
                    let status = response.code.context("a head has a status")?;
                    let headers = response
                        .headers
                        .iter()
                        .map(|header| {
                            let value = String::from_utf8_lossy(header.value).into_owned();
                            (header.name.to_ascii_lowercase(), value)
                        })
                        .collect();
                    self.buffer.drain(..length);
                    return Ok((status, headers, first_byte.unwrap_or_default()));
                }
            }
            if self.fill()? == 0 {
                bail!("the connection ended before the response's head did");
            }
        }
    }

    fn read_body(
        &mut self,
        method: &str,
        status: u16,
        headers: &[(String, String)],
    ) -> Result<Vec<u8>> {
        let find = |name: &str| {
            headers
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return Ok(Vec::new());
        }
        if find("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            return self.read_chunks();
        }
        if let Some(length) = find("content-length") {
            return self.take(length.parse()?);
        }
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }

    fn read_chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.take_line()?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let length = usize::from_str_radix(digits, 16)?;
            if length == 0 {
                while !self.take_line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(length)?);
            self.take(2)?;
        }
    }

    fn take_line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            if self.fill()? == 0 {
                bail!("the connection ended within a chunk");
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < length {
            if self.fill()? == 0 {
                bail!(
                    "the connection ended {} bytes early",
                    length - self.buffer.len()
                );
            }
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn fill(&mut self) -> Result<usize> {
        let mut piece = [0; 1 << 16];
        let read = self.stream.read(&mut piece)?;
        self.buffer.extend_from_slice(&piece[..read]);
        Ok(read)
    }
}
