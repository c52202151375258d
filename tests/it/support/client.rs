//! A user: JSON over HTTP, and event streams.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

/// Longer than anything here takes, and than the longest `wait`.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often something is tried again, a second later each time.
const MAX_INSISTED: usize = 30;
/// How often a run is waited for, a minute each time.
const MAX_WAITS: usize = 4;

/// A user of one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

/// An answer in JSON.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, if the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }
}

impl Client {
    pub fn new(base: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(128)
            // The server closes what is idle for longer, maybe while we write to it.
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .expect("a client");
        Self { http, base: base.to_owned() }
    }

    /// Where the server is.
    pub fn address(&self) -> SocketAddr {
        let address = self.base.strip_prefix("http://").expect("plain HTTP");
        address.parse().expect("an address")
    }

    /// The same user, who speaks HTTP/2 from the first byte on.
    pub fn over_http2(&self) -> Self {
        let http = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build();
        Self { http: http.expect("a client"), base: self.base.clone() }
    }

    /// The same user, who opens a connection for each request and keeps none: what is open then does not
    /// hang on whether an answer was put back in time for the next request.
    pub fn keeping_nothing(&self) -> Self {
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build();
        Self { http: http.expect("a client"), base: self.base.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let response = tokio::time::timeout(PATIENCE, request.send())
            .await
            .expect("an answer in time")
            .expect("an answer");
        read(response).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// The same under this key, and again while the answer is that the database has no time: so says the
    /// error itself, and so it is where many want one lock of a busy machine.
    pub async fn insist(&self, path: &str, key: &str, body: &Value) -> Answer {
        let ask = || {
            let request = self.request(Method::POST, path).header("idempotency-key", key);
            self.send(request.json(body))
        };
        let mut answer = ask().await;
        for _ in 0..MAX_INSISTED {
            if answer.status != 503 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            answer = ask().await;
        }
        answer
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Opens an event stream; panics unless it is one.
    pub async fn stream(&self, request: RequestBuilder) -> Stream {
        let response = tokio::time::timeout(PATIENCE, request.send())
            .await
            .expect("an answer in time")
            .expect("an answer");
        assert_eq!(response.status(), 200, "{:?}", response.text().await);
        Stream::new(response)
    }

    /// The events of a run behind a cursor.
    pub async fn events(&self, run_id: &str, after: i64) -> Stream {
        let path = format!("/v1/runs/{run_id}/events?after={after}");
        self.stream(self.request(Method::GET, &path)).await
    }

    /// Creates a run and waits for its end.
    pub async fn run_to_end(&self, agent_id: &str, body: &Value) -> Value {
        let path = format!("/v1/agents/{agent_id}/runs");
        let run = self.post(&path, body).await;
        assert!(matches!(run.status, 200 | 202), "{}", run.body);
        self.wait(run.body["run_id"].as_str().expect("run_id")).await
    }

    /// Waits for a run's end or its next pause; gives it as it is if there is none in some minutes.
    pub async fn wait(&self, run_id: &str) -> Value {
        let path = format!("/v1/runs/{run_id}?wait=60");
        let mut run = Value::Null;
        for _ in 0..MAX_WAITS {
            run = self.get(&path).await.expect(200);
            if !["queued", "running", "cancelling"].contains(&run["status"].as_str().unwrap_or(""))
            {
                break;
            }
        }
        run
    }
}

async fn read(response: Response) -> Answer {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await.expect("a body");
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
    };
    Answer { status, headers, body }
}

/// One event of a stream, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub id: Option<String>,
    pub event: String,
    pub data: String,
}

impl Frame {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).expect("an event is JSON")
    }

    pub fn seq(&self) -> i64 {
        self.id.as_deref().and_then(|id| id.parse().ok()).expect("a seq")
    }

    pub fn is_final(&self) -> bool {
        ["run.completed", "run.incomplete", "run.failed", "run.cancelled", "run.expired"]
            .contains(&self.event.as_str())
    }
}

/// An open event stream.
pub struct Stream {
    pub response: Response,
    text: Vec<u8>,
    frames: VecDeque<Frame>,
    pub retry: Option<u64>,
    pub comments: usize,
}

impl Stream {
    pub fn new(response: Response) -> Self {
        let frames = VecDeque::new();
        Self { response, text: Vec::new(), frames, retry: None, comments: 0 }
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk());
            // A server that is killed breaks its streams: that is an end too.
            let chunk = chunk.await.expect("a stream that goes on").unwrap_or(None)?;
            self.text.extend_from_slice(&chunk);
            self.parse();
        }
    }

    /// All events until the end of the stream.
    pub async fn rest(mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }

    /// The next event of this type.
    pub async fn until(&mut self, event: &str) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("no {event} came"));
            if frame.event == event {
                return frame;
            }
        }
    }

    fn parse(&mut self) {
        while let Some(end) = memchr::memmem::find(&self.text, b"\n\n") {
            let block: Vec<u8> = self.text.drain(..end + 2).collect();
            let block = String::from_utf8(block).expect("streams are UTF-8");
            let mut frame = Frame { id: None, event: "message".to_owned(), data: String::new() };
            let mut has_data = false;
            for line in block.lines() {
                match line.split_once(": ").unwrap_or((line, "")) {
                    ("id", value) => frame.id = Some(value.to_owned()),
                    ("event", value) => value.clone_into(&mut frame.event),
                    ("data", value) => {
                        has_data = true;
                        frame.data.push_str(value);
                    }
                    ("retry", value) => self.retry = value.parse().ok(),
                    _ if line.starts_with(':') => self.comments += 1,
                    _ => {}
                }
            }
            if has_data {
                self.frames.push_back(frame);
            }
        }
    }
}

/// The events of the log among what a stream gave (without `stream.*`).
pub fn log_of(frames: &[Frame]) -> Vec<Frame> {
    frames.iter().filter(|frame| frame.id.is_some()).cloned().collect()
}
