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
mod reply;
mod serve;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;
use stepwell::models::{ProviderSettings, Timeouts, Wire};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use self::serve::serve;
use super::peers::Ends;

pub use self::reply::{End, Gate, Piece, Reply};

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
