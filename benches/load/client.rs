//! A client that costs next to nothing: HTTP/1.1 on a bare socket, requests made ready before.
//!
//! It shares two processors with what it measures, so it reads no more than it must. It knows what our
//! server and axum write, and is of no use for anything else.

use std::io;
use std::net::SocketAddr;

use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One read takes so much at most: some hundred events.
const READ: usize = 64 * 1024;
/// Longer heads, chunk sizes and events than these are not ours.
const MAX_HEAD: usize = 16 * 1024;

/// A request's bytes.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n");
    let body = match method {
        "GET" => "\r\n".to_owned(),
        _ => format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"),
    };
    (head + &body).into_bytes()
}

/// A connection, used for one request after another.
pub struct Connection {
    socket: TcpStream,
    /// What was read; what is before `at` is done with.
    buffer: Vec<u8>,
    at: usize,
}

/// How an answer begins.
#[derive(Debug)]
pub struct Head {
    /// Such as 200.
    pub status: u16,
    /// The length of the body; without one it comes in chunks.
    length: Option<usize>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, buffer: Vec::new(), at: 0 })
    }

    /// Sends a request and reads the whole answer.
    pub async fn exchange(&mut self, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let head = self.begin(request).await?;
        let mut body = Vec::new();
        self.body(&head, |piece| body.extend_from_slice(piece)).await?;
        Ok((head.status, body))
    }

    /// Sends a request and reads the head of the answer.
    pub async fn begin(&mut self, request: &[u8]) -> io::Result<Head> {
        self.socket.write_all(request).await?;
        let end = self.find(b"\r\n\r\n").await?;
        let head = self.buffer.get(self.at..end).unwrap_or_default();
        let head = parse_head(head).ok_or_else(|| broken("no head of HTTP/1.1"))?;
        self.at = end + 4;
        Ok(head)
    }

    /// Reads the body of an answer, piece by piece as it comes.
    pub async fn body(&mut self, head: &Head, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        if let Some(length) = head.length {
            return self.pieces(length, &mut take).await;
        }
        loop {
            let end = self.find(b"\r\n").await?;
            let line = self.buffer.get(self.at..end).unwrap_or_default();
            let size =
                std::str::from_utf8(line).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
            let size = size.ok_or_else(|| broken("no size of a chunk"))?;
            self.at = end + 2;
            self.pieces(size, &mut take).await?;
            self.pieces(2, &mut |_| {}).await?;
            if size == 0 {
                return Ok(());
            }
        }
    }

    async fn pieces(&mut self, mut left: usize, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
        while left > 0 {
            if self.at == self.buffer.len() {
                self.fill().await?;
            }
            let here = self.buffer.get(self.at..).unwrap_or_default();
            let piece = here.get(..left).unwrap_or(here);
            take(piece);
            left -= piece.len();
            self.at += piece.len();
        }
        Ok(())
    }

    /// Where this stands, from `at` on; reads until it does.
    async fn find(&mut self, what: &[u8]) -> io::Result<usize> {
        loop {
            let here = self.buffer.get(self.at..).unwrap_or_default();
            if let Some(found) = memmem::find(here, what) {
                return Ok(self.at + found);
            }
            if here.len() > MAX_HEAD {
                return Err(broken("a line without an end"));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.reserve(READ);
        if self.socket.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

fn parse_head(head: &[u8]) -> Option<Head> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let mut fields = lines.filter_map(|line| line.split_once(": "));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    Some(Head { status, length: length.and_then(|(_, value)| value.parse().ok()) })
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// An event of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// What to come back with; none for what the server says beside the log.
    pub seq: Option<usize>,
    /// Its type.
    pub name: &'a [u8],
    /// Its text.
    pub data: &'a [u8],
}

/// Cuts a stream into its events.
#[derive(Debug, Default)]
pub struct Events {
    /// The beginning of an event whose end has not come yet.
    begun: Vec<u8>,
}

impl Events {
    /// Takes what came, and gives every event that it completes to `on_event`.
    pub fn take(&mut self, piece: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        let mut rest = piece;
        if !self.begun.is_empty() {
            // Its end may lie across the border: the blank line is looked for in both.
            let before = self.begun.len();
            self.begun.extend_from_slice(piece);
            let from = before.saturating_sub(1);
            let found = self.begun.get(from..).and_then(|here| memmem::find(here, b"\n\n"));
            let Some(found) = found else { return };
            let end = from + found;
            event(self.begun.get(..end).unwrap_or_default(), on_event);
            rest = piece.get(end + 2 - before..).unwrap_or_default();
            self.begun.clear();
        }
        while let Some(end) = memmem::find(rest, b"\n\n") {
            event(rest.get(..end).unwrap_or_default(), on_event);
            rest = rest.get(end + 2..).unwrap_or_default();
        }
        self.begun.extend_from_slice(rest);
    }
}

fn event(block: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
    let (mut seq, mut name, mut data) = (None, &b""[..], &b""[..]);
    for line in block.split(|byte| *byte == b'\n') {
        if let Some(value) = line.strip_prefix(b"data: ") {
            data = value;
        } else if let Some(value) = line.strip_prefix(b"event: ") {
            name = value;
        } else if let Some(value) = line.strip_prefix(b"id: ") {
            seq = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        }
    }
    if !data.is_empty() {
        on_event(Event { seq, name, data });
    }
}

/// The tokens of a piece of text, which the model server marked; see `model.rs`.
pub fn stamps(data: &[u8]) -> impl Iterator<Item = u64> + '_ {
    memchr::memchr_iter(b'@', data).map(|at| {
        let digits = data.get(at + 1..).unwrap_or_default().iter();
        let digits = digits.take_while(|byte| byte.is_ascii_digit());
        digits.fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
    })
}
