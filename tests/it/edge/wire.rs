//! A socket, and what comes back on it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection.
pub struct Wire {
    pub socket: TcpStream,
    /// What came and was not looked at yet.
    got: Vec<u8>,
}

/// An answer, in HTTP/1.1.
#[derive(Debug)]
pub struct Said {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: Vec<u8>,
}

impl Said {
    pub fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &&str| line.split_once(':').is_some_and(|(n, _)| n == name);
        let (_, value) = self.head.lines().find(of)?.split_once(':')?;
        Some(value.trim())
    }

    /// The body, if it is JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Wire {
    pub async fn open(server: SocketAddr) -> Self {
        Self::new(TcpSocket::new_v4().expect("a socket"), server).await
    }

    /// As another host of this machine's own network: `127.0.0.N`.
    pub async fn open_as(server: SocketAddr, host: u8) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).expect("it is ours");
        Self::new(socket, server).await
    }

    /// With as few bytes waiting at this end as the system allows.
    pub async fn open_narrow(server: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 * 1024).expect("a size");
        Self::new(socket, server).await
    }

    async fn new(socket: TcpSocket, server: SocketAddr) -> Self {
        let socket = socket.connect(server).await.expect("a connection");
        socket.set_nodelay(true).expect("no delay");
        Self { socket, got: Vec::new() }
    }

    /// Sends as much of this as the server takes.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        // An error is no news: the answer says why, if there is one.
        let sent = tokio::time::timeout(PATIENCE, self.socket.write_all(bytes)).await;
        sent.is_ok_and(|sent| sent.is_ok())
    }

    /// Sends a byte a second of these, over and over, until the server says something or closes.
    pub async fn drip(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().cycle() {
            if self.socket.write_all(&[*byte]).await.is_err() {
                return;
            }
            let mut some = [0; 1024];
            let read = tokio::time::timeout(Duration::from_secs(1), self.socket.read(&mut some));
            match read.await {
                Err(_) => {}
                Ok(Ok(count)) => return self.got.extend_from_slice(&some[..count]),
                Ok(Err(_)) => return,
            }
        }
    }

    /// How long until the server closes, whatever it says before that.
    pub async fn closes(&mut self) -> Duration {
        let began = Instant::now();
        let all = tokio::time::timeout(PATIENCE, self.socket.read_to_end(&mut self.got)).await;
        assert!(all.is_ok(), "the connection is still open after {PATIENCE:?}");
        began.elapsed()
    }

    /// The next answer; `None` if the server closes without one.
    pub async fn answer(&mut self) -> Option<Said> {
        loop {
            if let Some((said, length)) = whole(&self.got) {
                self.got.drain(..length);
                return Some(said);
            }
            let read = tokio::time::timeout(PATIENCE, self.socket.read_buf(&mut self.got)).await;
            if !matches!(read.expect("an answer in time"), Ok(1..)) {
                return None;
            }
        }
    }
}

/// An answer that is there in full, and how many bytes it has.
fn whole(bytes: &[u8]) -> Option<(Said, usize)> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.trim().parse().ok()?;
    let mut said = Said { status, head, body: Vec::new() };
    // The answer to an Expect: the real one follows.
    if status == 100 {
        let (said, length) = whole(&bytes[end..])?;
        return Some((said, end + length));
    }
    if said.header("transfer-encoding") == Some("chunked") {
        let (body, is_whole) = dechunked(&bytes[end..]);
        said.body = body;
        return is_whole.then_some((said, bytes.len()));
    }
    let length: usize = said.header("content-length").map_or(0, |l| l.parse().expect("a length"));
    said.body = bytes.get(end..end + length)?.to_vec();
    Some((said, end + length))
}

/// The body in these chunks, as far as it has come, and whether that is all of it.
pub fn dechunked(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = memchr::memmem::find(bytes, b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).ok();
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok()).expect("a size");
        if size == 0 {
            return (body, true);
        }
        let rest = &bytes[end + 2..];
        body.extend_from_slice(&rest[..size.min(rest.len())]);
        let Some(rest) = rest.get(size + 2..) else { break };
        bytes = rest;
    }
    (body, false)
}
