//! An MCP server on a real socket that says what a test tells it to say, faults included.
//!
//! ```ignore
//! let server = McpServer::start().await;
//! server.on_call(|request| mcp_server::text(request, "done"));
//! // … run an agent with `server.tool("remote", "once")`, whose script calls `remote__act` …
//! assert_eq!(server.calls().len(), 1);
//! ```
//!
//! It is a [`ModelServer`] that knows the greetings of the protocol, and its sessions: `session-1`,
//! `session-2` and so on. What names a session that it does not know gets a 404.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::model_server::{End, ModelServer, Piece, Reply, Request};

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

struct Play {
    on_open: Handler,
    on_list: Handler,
    on_call: Handler,
    on_resume: Handler,
    on_close: Handler,
    opened: usize,
    sessions: BTreeSet<String>,
    closed: Vec<String>,
}

impl Play {
    /// Opens a session.
    fn open(&mut self) -> String {
        self.opened += 1;
        let session = format!("session-{}", self.opened);
        self.sessions.insert(session.clone());
        session
    }

    /// Whether it knows the session that a request names, if it names one.
    fn knows(&self, request: &Request) -> bool {
        session_of(request).is_none_or(|session| self.sessions.contains(session))
    }
}

/// The server. It ends with its last handle.
pub struct McpServer {
    pub http: ModelServer,
    play: Arc<Mutex<Play>>,
}

impl McpServer {
    /// A server with the tool `act`, which takes anything and answers `done`.
    pub async fn start() -> Self {
        let http = ModelServer::start().await;
        let play = Arc::new(Mutex::new(Play {
            on_open: Arc::new(initialized),
            on_list: Arc::new(|request| tools(request, &json!([tool("act")]))),
            on_call: Arc::new(|request| text(request, "done")),
            on_resume: Arc::new(|_| Reply::status(405)),
            on_close: Arc::new(|_| accepted()),
            opened: 0,
            sessions: BTreeSet::new(),
            closed: Vec::new(),
        }));
        let playing = play.clone();
        http.answer_with(move |request| {
            let handler = {
                let mut play = playing.lock().expect("no panic");
                if !play.knows(request) {
                    return error_status(request, 404, -32001, "Session not found");
                }
                match request.body["method"].as_str() {
                    Some("initialize" | "server/discover") => play.on_open.clone(),
                    Some("tools/list") => play.on_list.clone(),
                    Some("tools/call") => play.on_call.clone(),
                    Some(_) => return accepted(),
                    None if request.method == "DELETE" => {
                        let session = session_of(request).unwrap_or_default().to_owned();
                        play.sessions.remove(&session);
                        play.closed.push(session);
                        play.on_close.clone()
                    }
                    None if request.headers.contains_key("last-event-id") => play.on_resume.clone(),
                    // A question of ours is answered.
                    None => return accepted(),
                }
            };
            let mut reply = handler(request);
            if request.body["method"] == "initialize"
                && let Reply::Whole { status: 200, headers, .. } = &mut reply
                && !headers.iter().any(|(name, _)| name == "mcp-session-id")
            {
                let session = playing.lock().expect("no panic").open();
                headers.push(("mcp-session-id".to_owned(), session));
            }
            reply
        });
        Self { http, play }
    }

    /// How it greets. A success is given a session, if it has none of its own.
    pub fn on_open(&self, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.play.lock().expect("no panic").on_open = Arc::new(handler);
    }

    pub fn on_list(&self, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.play.lock().expect("no panic").on_list = Arc::new(handler);
    }

    pub fn on_call(&self, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.play.lock().expect("no panic").on_call = Arc::new(handler);
    }

    pub fn on_resume(&self, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.play.lock().expect("no panic").on_resume = Arc::new(handler);
    }

    /// How it answers when a session is closed.
    pub fn on_close(&self, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.play.lock().expect("no panic").on_close = Arc::new(handler);
    }

    /// A tool of an agent that names this server.
    pub fn tool(&self, name: &str, effect: &str) -> Value {
        let url = self.http.base_url();
        json!({"type": "mcp", "name": name, "url": url, "effect": effect, "timeout_seconds": 60})
    }

    /// The calls that came, in order.
    pub fn calls(&self) -> Vec<Request> {
        self.requests("tools/call")
    }

    /// The sessions that were closed, in order.
    pub fn closed(&self) -> Vec<String> {
        self.play.lock().expect("no panic").closed.clone()
    }

    /// Resolves when so many sessions were closed, and the requests that closed them are among those that
    /// came.
    pub async fn wait_closed(&self, count: usize) {
        let goodbyes = || self.http.requests().iter().filter(|r| r.method == "DELETE").count();
        let mut all = 0;
        while goodbyes() < count || self.closed().len() < count {
            all += 1;
            self.http.wait_requests(all).await;
        }
    }

    /// What forgets all sessions, as a server that is started again does.
    pub fn forgetting(&self) -> impl Fn() + Send + Sync + 'static {
        let play = self.play.clone();
        move || play.lock().expect("no panic").sessions.clear()
    }

    /// The messages of this method that came, in order.
    pub fn requests(&self, method: &str) -> Vec<Request> {
        let mut requests = self.http.requests();
        requests.retain(|request| request.body["method"] == method);
        requests
    }

    /// Resolves when a request like this has come.
    pub async fn wait_until(&self, is: impl Fn(&Request) -> bool) {
        let mut all = 0;
        while !self.http.requests().iter().any(&is) {
            all += 1;
            self.http.wait_requests(all).await;
        }
    }

    /// Resolves when so many messages of this method have come.
    pub async fn wait_for(&self, method: &str, count: usize) {
        let mut all = 0;
        while self.requests(method).len() < count {
            all += 1;
            self.http.wait_requests(all).await;
        }
    }
}

/// A tool in a list.
pub fn tool(name: &str) -> Value {
    json!({"name": name, "description": format!("Does {name}."), "inputSchema": {"type": "object"}})
}

/// A page of a list: the only one.
pub fn tools(request: &Request, tools: &Value) -> Reply {
    result(request, &json!({"tools": tools}))
}

/// A text that a tool answers with.
pub fn text(request: &Request, text: &str) -> Reply {
    result(request, &json!({"content": [{"type": "text", "text": text}]}))
}

/// The answer to a request, as JSON.
pub fn result(request: &Request, result: &Value) -> Reply {
    Reply::json(&json!({"jsonrpc": "2.0", "id": request.body["id"], "result": result}))
}

/// An error of the protocol.
pub fn error(request: &Request, code: i32, message: &str) -> Reply {
    let error = json!({"code": code, "message": message});
    Reply::json(&json!({"jsonrpc": "2.0", "id": request.body["id"], "error": error}))
}

/// A stream of these events that ends like this.
pub fn events(events: &[String], end: End) -> Reply {
    let pieces = events.iter().map(|event| Piece::Bytes(event.clone().into_bytes()));
    Reply::Stream { headers: Vec::new(), pieces: pieces.collect(), end }
}

/// An event with an answer.
pub fn event(id: &Value, result: &Value) -> String {
    format!("data: {}\n\n", json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

/// An error of the protocol with a status that is no success.
pub fn error_status(request: &Request, status: u16, code: i32, message: &str) -> Reply {
    let mut reply = error(request, code, message);
    if let Reply::Whole { status: is, .. } = &mut reply {
        *is = status;
    }
    reply
}

/// The session that a request names.
pub fn session_of(request: &Request) -> Option<&str> {
    request.headers.get("mcp-session-id").map(String::as_str)
}

fn accepted() -> Reply {
    Reply::Whole { status: 202, headers: Vec::new(), body: Vec::new() }
}

/// The answer to the greeting.
pub fn initialized(request: &Request) -> Reply {
    let server = json!({"name": "scripted", "version": "1"});
    let capabilities = json!({"tools": {}});
    result(
        request,
        &json!({
            "protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": server,
        }),
    )
}
