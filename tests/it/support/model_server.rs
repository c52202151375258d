//! A model provider on a real socket that says what a test tells it to say, faults included.
//!
//! ```ignore
//! let server = ModelServer::start().await;
//! server.script(vec![openai::text("Hello world"), Reply::status(503)]);
//! // … call `server.base_url()` twice …
//! assert_eq!(server.requests()[0].body["model"], "m");
//! ```
//!
//! Replies are played in the order in which requests come; [`ModelServer::answer_with`] computes them
//! instead. HTTP is written by hand, so that it can be written wrongly.

pub mod anthropic;
pub mod openai;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use stepwell::models::{ProviderSettings, Timeouts, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::peers::Ends;

/// A request that came.
#[derive(Debug, Clone)]
pub struct Request {
    /// For example `POST`.
    pub method: String,
    /// For example `/v1/chat/completions`.
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The JSON that was sent.
    pub body: Value,
    /// The connection that it came on.
    pub ends: Ends,
}

/// A piece of a streamed body.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Bytes, sent as one HTTP chunk.
    Bytes(Vec<u8>),
    /// Bytes, sent as one HTTP chunk of so many times these bytes.
    Repeat(Vec<u8>, usize),
    /// Time that passes.
    Wait(Duration),
    /// The test opens it; until then the stream stands still.
    Gate(Gate),
}

/// How a streamed body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As HTTP says.
    Clean,
    /// The connection is closed in the middle of the body.
    Close,
    /// The connection is reset.
    Reset,
    /// Never.
    Hang,
}

/// Something that a stream waits for.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Opens it for good: who waits at it for a permit is told that there will be none, and goes on.
    pub fn open(&self) {
        self.0.close();
    }
}

/// What a request is answered with.
#[derive(Debug, Clone)]
pub enum Reply {
    /// 200 and a body of pieces.
    Stream {
        /// Headers beside `content-type: text/event-stream`, which they may replace.
        headers: Vec<(String, String)>,
        /// The body.
        pieces: Vec<Piece>,
        /// How it ends.
        end: End,
    },
    /// A status and a whole body.
    Whole {
        /// The status.
        status: u16,
        /// All headers but the length.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
    /// A status, and nothing of the body.
    Head {
        /// The status.
        status: u16,
        /// All headers.
        headers: Vec<(String, String)>,
    },
    /// The connection is reset before the head of an answer.
    Reset,
    /// Nothing is ever answered.
    Hang,
}

impl Reply {
    /// A stream of these chunks that ends as it should.
    pub fn stream(chunks: Vec<Vec<u8>>) -> Self {
        Self::Stream {
            headers: Vec::new(),
            pieces: chunks.into_iter().map(Piece::Bytes).collect(),
            end: End::Clean,
        }
    }

    /// An error of this status, as providers word them.
    pub fn status(status: u16) -> Self {
        Self::error(status, json!({"type": "some_error", "message": "provider text"}), &[])
    }

    /// An error of this status, with this error object and these headers.
    pub fn error(status: u16, error: Value, headers: &[(&str, &str)]) -> Self {
        let mut all = vec![("content-type".to_owned(), "application/json".to_owned())];
        all.extend(headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let body = json!({"type": "error", "error": error}).to_string().into_bytes();
        Self::Whole { status, headers: all, body }
    }

    /// 200 and a JSON text instead of a stream.
    pub fn json(body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self::Whole { status: 200, headers, body: body.to_string().into_bytes() }
    }

    /// The same stream with another end.
    #[must_use]
    pub fn ending(mut self, as_: End) -> Self {
        if let Self::Stream { end, .. } = &mut self {
            *end = as_;
        }
        self
    }

    /// The same stream, cut off behind its first `count` pieces.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        if let Self::Stream { pieces, .. } = &mut self {
            pieces.truncate(count);
        }
        self
    }

    /// The same stream with a wait before each piece.
    #[must_use]
    pub fn slowly(mut self, wait: Duration) -> Self {
        if let Self::Stream { pieces, .. } = &mut self {
            *pieces = pieces.drain(..).flat_map(|piece| [Piece::Wait(wait), piece]).collect();
        }
        self
    }

    /// The same stream with a piece put in at a place.
    #[must_use]
    pub fn with(mut self, at: usize, piece: Piece) -> Self {
        if let Self::Stream { pieces, .. } = &mut self {
            pieces.insert(at, piece);
        }
        self
    }

    /// The same stream, all of its bytes in chunks of this size.
    #[must_use]
    pub fn in_chunks_of(self, size: usize) -> Self {
        let bytes = self.bytes();
        Self::stream(bytes.chunks(size).map(<[u8]>::to_vec).collect())
    }

    /// The bytes of a streamed body.
    pub fn bytes(&self) -> Vec<u8> {
        let Self::Stream { pieces, .. } = self else { return Vec::new() };
        pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Bytes(bytes) => Some(bytes.clone()),
                Piece::Repeat(bytes, times) => Some(bytes.repeat(*times)),
                Piece::Wait(_) | Piece::Gate(_) => None,
            })
            .collect::<Vec<_>>()
            .concat()
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

#[derive(Default)]
struct State {
    queue: VecDeque<Reply>,
    handler: Option<Arc<Handler>>,
    requests: Vec<Request>,
    connections: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    came: Notify,
    closed_early: watch::Sender<usize>,
    /// Connections that are served.
    open: watch::Sender<usize>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn reply_to(&self, request: Request) -> Reply {
        let mut state = self.state();
        let reply = match (state.queue.pop_front(), state.handler.clone()) {
            (Some(reply), _) => reply,
            (None, Some(handler)) => {
                drop(state);
                let reply = handler(&request);
                state = self.state();
                reply
            }
            // No failure that would be retried, so that a test that forgot a reply sees it.
            (None, None) => Reply::status(418),
        };
        state.requests.push(request);
        drop(state);
        self.came.notify_waiters();
        reply
    }
}

/// A socket at this address, which may be one of several there.
fn socket_at(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn listen(socket: TcpSocket) -> TcpListener {
    socket.listen(BACKLOG).unwrap()
}

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// The server. It ends with its last handle.
pub struct ModelServer {
    address: SocketAddr,
    /// Never listens: nobody else is given the port while this server refuses.
    _port: TcpSocket,
    shared: Arc<Shared>,
    accepting: Mutex<AbortHandle>,
    tasks: Mutex<JoinSet<()>>,
}

impl ModelServer {
    /// Starts a server on a free port.
    pub async fn start() -> Self {
        let listener = listen(socket_at(([127, 0, 0, 1], 0).into()));
        let address = listener.local_addr().unwrap();
        let port = socket_at(address);
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        let accepting = tasks.spawn(accept(listener, Arc::clone(&shared)));
        let (accepting, tasks) = (Mutex::new(accepting), Mutex::new(tasks));
        Self { address, _port: port, shared, accepting, tasks }
    }

    /// For a provider's `base_url`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Where it is, for tools: it answers whatever it is told to, so it plays them too.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Settings of a provider that this server plays, with the usual time-outs.
    pub fn settings(&self, name: &str, wire: Wire) -> ProviderSettings {
        ProviderSettings {
            name: name.to_owned(),
            wire,
            base_url: self.base_url(),
            api_key: Some("sk-canary-key".into()),
            timeouts: Timeouts::default(),
        }
    }

    /// Adds replies to the queue.
    pub fn script(&self, replies: Vec<Reply>) {
        self.shared.state().queue.extend(replies);
    }

    /// Answers with `handler` whenever the queue is empty.
    pub fn answer_with(&self, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.shared.state().handler = Some(Arc::new(handler));
    }

    /// The requests that came, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// How many connections were ever accepted.
    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Resolves when `count` requests have come.
    pub async fn wait_requests(&self, count: usize) {
        loop {
            let came = self.shared.came.notified();
            let mut came = std::pin::pin!(came);
            came.as_mut().enable();
            if self.shared.state().requests.len() >= count {
                return;
            }
            came.await;
        }
    }

    /// Resolves when every connection that came is over, and so whatever was sent on it is in the list of
    /// requests.
    pub async fn wait_nobody(&self) {
        let mut open = self.shared.open.subscribe();
        open.wait_for(|open| *open == 0).await.unwrap();
    }

    /// How often a client closed its socket before its answer had ended.
    pub fn closed_early(&self) -> usize {
        *self.shared.closed_early.borrow()
    }

    /// Resolves when clients have closed their sockets early `count` times.
    pub async fn wait_closed_early(&self, count: usize) {
        let mut closed = self.shared.closed_early.subscribe();
        closed.wait_for(|closed| *closed >= count).await.unwrap();
    }

    /// From now on connections are refused; those that are open are dropped.
    pub async fn refuse(&self) {
        self.accepting.lock().unwrap().abort();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        tasks.shutdown().await;
    }

    /// Takes connections again, on the same port.
    pub fn listen_again(&self) {
        let listener = listen(socket_at(self.address));
        let accepting =
            self.tasks.lock().unwrap().spawn(accept(listener, Arc::clone(&self.shared)));
        *self.accepting.lock().unwrap() = accepting;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        shared.state().connections += 1;
        let (open, shared) = (Open::new(Arc::clone(&shared)), Arc::clone(&shared));
        connections.spawn(async move {
            serve(socket, shared).await;
            drop(open);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// A connection that counts until this is dropped.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.send_modify(|open| *open += 1);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

/// Whether the connection may take another request.
#[derive(PartialEq, Eq)]
enum After {
    KeepAlive,
    Close,
}

async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    let _ = socket.set_nodelay(true);
    let (Ok(ours), Ok(theirs)) = (socket.local_addr(), socket.peer_addr()) else { return };
    let ends = Ends { ours, theirs };
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut socket, &mut buffer, ends).await {
        let reply = shared.reply_to(request);
        let (mut from, mut to) = socket.split();
        let mut spare = [0; 64];
        let after = tokio::select! {
            biased;
            after = write_reply(reply, &mut to) => after,
            // A client that sends nothing more can only close.
            _ = from.read(&mut spare) => Err(std::io::ErrorKind::ConnectionAborted.into()),
        };
        match after {
            Ok(After::KeepAlive) => {}
            Ok(After::Close) => return,
            Err(error)
                if error.kind() == std::io::ErrorKind::ConnectionReset && is_wanted(&error) =>
            {
                let _ = socket.set_zero_linger();
                return;
            }
            Err(_) => {
                shared.closed_early.send_modify(|count| *count += 1);
                return;
            }
        }
    }
}

const WANTED: &str = "the script says so";

fn is_wanted(error: &std::io::Error) -> bool {
    error.to_string() == WANTED
}

fn reset() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, WANTED)
}

async fn read_request(socket: &mut TcpStream, buffer: &mut Vec<u8>, ends: Ends) -> Option<Request> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).ok()?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while buffer.len() < length {
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body: Vec<u8> = buffer.drain(..length).collect();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Request { method, path, headers, body, ends })
}

async fn write_reply(
    reply: Reply,
    to: &mut (impl AsyncWriteExt + Unpin),
) -> std::io::Result<After> {
    match reply {
        Reply::Reset => Err(reset()),
        Reply::Hang => std::future::pending().await,
        Reply::Head { status, headers } => {
            let mut head = format!("HTTP/1.1 {status} X\r\n");
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            to.write_all(head.as_bytes()).await?;
            std::future::pending().await
        }
        Reply::Whole { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            to.write_all(&[head.as_bytes(), &body].concat()).await?;
            Ok(After::KeepAlive)
        }
        Reply::Stream { mut headers, pieces, end } => {
            if !headers.iter().any(|(name, _)| name == "content-type") {
                headers.push(("content-type".to_owned(), "text/event-stream".to_owned()));
            }
            let mut head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n".to_owned();
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            to.write_all(head.as_bytes()).await?;
            for piece in pieces {
                match piece {
                    Piece::Wait(time) => tokio::time::sleep(time).await,
                    Piece::Gate(gate) => drop(gate.0.acquire().await),
                    Piece::Bytes(bytes) => {
                        let size = format!("{:x}\r\n", bytes.len());
                        to.write_all(&[size.as_bytes(), &bytes, b"\r\n"].concat()).await?;
                    }
                    Piece::Repeat(bytes, times) => {
                        to.write_all(format!("{:x}\r\n", bytes.len() * times).as_bytes()).await?;
                        for _ in 0..times {
                            to.write_all(&bytes).await?;
                        }
                        to.write_all(b"\r\n").await?;
                    }
                }
            }
            match end {
                End::Clean => {
                    to.write_all(b"0\r\n\r\n").await?;
                    Ok(After::KeepAlive)
                }
                End::Close => Ok(After::Close),
                End::Reset => Err(reset()),
                End::Hang => std::future::pending().await,
            }
        }
    }
}

fn data(value: &Value) -> Vec<u8> {
    format!("data: {value}\n\n").into_bytes()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

/// Cuts a text into pieces of about five bytes, as models write arguments.
fn fragments(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    // A long text in larger pieces: a thousand of them are enough to cut it in every way.
    chars.chunks(5.max(chars.len() / 1_000)).map(|chunk| chunk.iter().collect()).collect()
}
