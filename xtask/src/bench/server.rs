//! Servers under measurement: started, waited for, and ended with the bench.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A child that does not outlive the bench.
pub(super) struct Kept(pub(super) Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address of the loopback that is free now.
///
/// # Errors
/// When there is none.
pub(super) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// Asks until the answer is no error.
///
/// # Errors
/// The last one, after ten seconds.
pub(super) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() > Duration::from_secs(10) => {
                return Err(error.context(format!("{what} does not come up")));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The body of an answer to GET; HTTP/1.0, so that it is neither chunked nor kept alive.
///
/// # Errors
/// When nobody answers within five seconds, or not with 200.
pub(super) fn get(address: SocketAddr, path: &str) -> Result<String> {
    get_within(address, path, ANSWER_TIMEOUT)
}

/// As [`get`], with another limit.
///
/// # Errors
/// As `get`.
pub(super) fn get_within(address: SocketAddr, path: &str, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    expect_ok(head, path)?;
    Ok(body.to_owned())
}

/// One client's connection that is kept alive.
pub(super) struct KeptAlive {
    stream: TcpStream,
    request: String,
    answer: Vec<u8>,
}

impl KeptAlive {
    /// Connects; each exchange will GET that path.
    ///
    /// # Errors
    /// When nobody listens.
    pub(super) fn new(address: SocketAddr, path: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            request: format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"),
            answer: Vec::new(),
        })
    }

    /// Sends the request and reads the answer to its last byte.
    ///
    /// # Errors
    /// When it is not 200 with a Content-Length.
    pub(super) fn exchange(&mut self) -> Result<()> {
        self.stream.write_all(self.request.as_bytes())?;
        self.answer.clear();
        let mut len_bytes = usize::MAX;
        while self.answer.len() < len_bytes {
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer)?;
            if read == 0 {
                bail!("the server closed the connection");
            }
            self.answer.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&self.answer);
            let Some((head, _)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            expect_ok(head, &self.request)?;
            len_bytes = head.len() + 4 + content_length(head)?;
        }
        Ok(())
    }
}

fn expect_ok(head: &str, asked: &str) -> Result<()> {
    if head.split_whitespace().nth(1) != Some("200") {
        bail!("{asked}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(())
}

fn content_length(head: &str) -> Result<usize> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without Content-Length")?;
    Ok(value.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_body() {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\nX: y";
        assert_eq!(content_length(head).unwrap(), 12);
        assert!(content_length("HTTP/1.1 200 OK").is_err());
        assert!(expect_ok(head, "/").is_ok());
        assert!(expect_ok("HTTP/1.1 502 Bad Gateway", "/").is_err());
    }
}
