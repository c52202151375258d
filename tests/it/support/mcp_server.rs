//! An MCP server on a real socket that says what a test tells it to say, faults included.
//!
//! ```ignore
//! let server = McpServer::start().await;
//! server.on_call(|request| mcp_server::text(request, "done"));
//! // … run an agent with `server.tool("remote", "once")`, whose script calls `remote__act` …
//! assert_eq!(server.calls().len(), 1);
//! ```
//!
//! It is a [`ModelServer`] that knows the greetings of the protocol.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::model_server::{End, ModelServer, Piece, Reply, Request};

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

struct Play {
    on_list: Handler,
    on_call: Handler,
    on_resume: Handler,
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
            on_list: Arc::new(|request| tools(request, &json!([tool("act")]))),
            on_call: Arc::new(|request| text(request, "done")),
            on_resume: Arc::new(|_| Reply::status(405)),
        }));
        let playing = play.clone();
        http.answer_with(move |request| {
            let handler = {
                let play = playing.lock().expect("no panic");
                match request.body["method"].as_str() {
                    Some("initialize") => return initialized(request),
                    Some("tools/list") => play.on_list.clone(),
                    Some("tools/call") => play.on_call.clone(),
                    Some(_) => return accepted(),
                    None if request.headers.contains_key("last-event-id") => play.on_resume.clone(),
                    // The session is deleted, or a question of ours is answered.
                    None => return accepted(),
                }
            };
            handler(request)
        });
        Self { http, play }
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

    /// A tool of an agent that names this server.
    pub fn tool(&self, name: &str, effect: &str) -> Value {
        let url = self.http.base_url();
        json!({"type": "mcp", "name": name, "url": url, "effect": effect, "timeout_seconds": 5})
    }

    /// The calls that came, in order.
    pub fn calls(&self) -> Vec<Request> {
        self.requests("tools/call")
    }

    /// The messages of this method that came, in order.
    pub fn requests(&self, method: &str) -> Vec<Request> {
        let mut requests = self.http.requests();
        requests.retain(|request| request.body["method"] == method);
        requests
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

fn accepted() -> Reply {
    Reply::Whole { status: 202, headers: Vec::new(), body: Vec::new() }
}

fn initialized(request: &Request) -> Reply {
    let mut reply = result(
        request,
        &json!({
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "scripted", "version": "1"},
        }),
    );
    if let Reply::Whole { headers, .. } = &mut reply {
        headers.push(("mcp-session-id".to_owned(), "session-1".to_owned()));
    }
    reply
}
