//! What rmcp sends and receives, through the gate and within bounds.
//!
//! rmcp has a client of its own over reqwest. This one differs in what we must know and it does not tell:
//! whether a call left, and what went wrong, in words without a URL. And in what a hostile server must not
//! be able to do: send without end, or keep a connection after its session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, RequestId, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::egress::{
    Departure, Failure, Gate, HeaderMap, HeaderName, HeaderValue, Left, Unreached,
};

/// Where an answer broke off, it is taken up again so often: a server may ask for it without end.
const MAX_RESUMPTIONS: u32 = 5;
/// The shortest and the longest time that a server may make us wait before that, in milliseconds.
const RESUME_AFTER: (u64, u64) = (100, 5_000);
/// Bytes of an answer that is no success: enough for an error in words.
const MAX_REFUSAL: usize = 16 * 1024;
/// Characters of a server's own words that are passed on.
const MAX_WORDS: usize = 500;

const ACCEPT: HeaderName = HeaderName::from_static("accept");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const BOTH_WAYS: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What went wrong in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What the server did, or what befell it: words that follow "The MCP server".
    pub what: String,
    /// Whether it may be gone the next time.
    pub lasts: Lasts,
    /// Whether it is the server's answer to the session's call, and says that it was not made.
    pub is_answer: bool,
}

/// Whether something that went wrong may be gone the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// It will not.
    On,
    /// It may.
    NotLong,
    /// It was us: this process may not act at the moment.
    UntilWeMayAct,
}

impl Trouble {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        Self { what: what.into(), lasts: Lasts::NotLong, is_answer: false }
    }

    pub(super) fn lasting(what: impl Into<String>) -> Self {
        Self { what: what.into(), lasts: Lasts::On, is_answer: false }
    }
}

/// For rmcp, which only passes it on: [`Wire::trouble`] is what we go by.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WireError(String);

type HttpError = StreamableHttpError<WireError>;

/// The connections of one session, which makes one call at most.
#[derive(Clone)]
pub(super) struct Wire(Arc<Inner>);

struct Inner {
    gate: Arc<Gate>,
    url: Url,
    /// The agent's headers.
    headers: HeaderMap,
    /// Every connection is closed when this is cancelled.
    life: CancellationToken,
    /// Bytes that the server may still send.
    bytes_left: AtomicUsize,
    resumptions: AtomicU32,
    /// Asked before the session's call leaves, and told when it does.
    departure: Arc<Departure>,
    trouble: Mutex<Option<Trouble>>,
}

/// What a session is opened with.
pub(super) struct Connection {
    /// The way out.
    pub gate: Arc<Gate>,
    /// Where the server is.
    pub url: Url,
    /// The agent's headers.
    pub headers: HeaderMap,
    /// Bytes that the server may send in all.
    pub most_bytes: usize,
    /// Asked before a call leaves, and told when it does.
    pub departure: Arc<Departure>,
}

impl Wire {
    /// No connection yet; none is open any more when `life` has been cancelled.
    pub(super) fn new(with: Connection, life: CancellationToken) -> Self {
        with.departure.announce();
        Self(Arc::new(Inner {
            gate: with.gate,
            url: with.url,
            headers: with.headers,
            life,
            bytes_left: AtomicUsize::new(with.most_bytes),
            resumptions: AtomicU32::new(0),
            departure: with.departure,
            trouble: Mutex::new(None),
        }))
    }

    /// The first thing that went wrong.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the session's call may have reached the server.
    pub(super) fn call_left(&self) -> bool {
        self.0.departure.left() == Left::Yes
    }

    /// Where the server is.
    pub(super) fn url(&self) -> Arc<str> {
        Arc::from(self.0.url.as_str())
    }

    fn note(&self, trouble: Trouble) -> HttpError {
        let error = StreamableHttpError::Client(WireError(trouble.what.clone()));
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(trouble);
        error
    }

    fn failed(&self, failure: Failure) -> HttpError {
        self.note(match failure {
            Failure::Refused(why) => Trouble::lasting(format!("was not asked: its URL {why}")),
            Failure::NoClient => Trouble::lasting(format!("was not asked: {failure}")),
            Failure::Withheld(_) => {
                let what = format!("was not asked: {failure}");
                Trouble { lasts: Lasts::UntilWeMayAct, ..Trouble::passing(what) }
            }
            Failure::NoConnection(Unreached::Host) => Trouble::passing("could not be reached"),
            Failure::NoConnection(why) if why.may_pass() => {
                Trouble::passing(format!("was not asked: {why}"))
            }
            Failure::NoConnection(why) => Trouble::lasting(format!("was not asked: {why}")),
            Failure::NoAnswer => Trouble::passing("closed the connection before it answered"),
        })
    }

    /// Headers of a request: the agent's, and over them the protocol's.
    fn headers(
        &self,
        protocol: HashMap<HeaderName, HeaderValue>,
        session_id: Option<&str>,
    ) -> HeaderMap {
        let mut headers = self.0.headers.clone();
        headers.extend(protocol);
        headers.insert(ACCEPT, BOTH_WAYS);
        headers.insert(CONTENT_TYPE, JSON);
        if let Some(id) = session_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(SESSION_ID, id);
        }
        headers
    }

    async fn post(
        &self,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        protocol: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let (asked, is_call) = match &message {
            ClientJsonRpcMessage::Request(request) => {
                let is_call = matches!(request.request, ClientRequest::CallToolRequest(_));
                (Some(request.id.clone()), is_call)
            }
            _ => (None, false),
        };
        let client = self.0.gate.client(&self.0.url).map_err(|failure| self.failed(failure))?;
        let headers = self.headers(protocol, session_id.as_deref());
        let body = serde_json::to_vec(&message)?;
        let sending = client.post(self.0.url.clone()).headers(headers).body(body).send();
        let response = match is_call {
            true => self.0.departure.clone().during(sending).await,
            false => sending.await,
        };
        let response = response.map_err(|error| self.failed(Failure::of(&error)))?;
        let status = response.status();
        let header = |name: HeaderName| response.headers().get(name)?.to_str().ok();
        let content_type = header(CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
        let session_id = header(SESSION_ID).map(str::to_owned);
        let body = self.bounded(response.bytes_stream());
        if !status.is_success() {
            let words = said(&read(body, MAX_REFUSAL).await.unwrap_or_default());
            let what = format!("answered with HTTP status {}{words}", status.as_u16());
            let passes = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
            let trouble = if passes { Trouble::passing(what) } else { Trouble::lasting(what) };
            return Err(self.note(Trouble { is_answer: is_call, ..trouble }));
        }
        // From here on the server has taken the request: what makes no sense says nothing of what it did.
        let Some(id) = asked else { return Ok(StreamableHttpPostResponse::Accepted) };
        if content_type.starts_with("text/event-stream") {
            return Ok(StreamableHttpPostResponse::Sse(events(body), session_id));
        }
        if !content_type.starts_with("application/json") {
            let what = "answered with neither JSON nor an event stream";
            return Err(self.note(Trouble::lasting(what)));
        }
        let body = read(body, usize::MAX).await.map_err(StreamableHttpError::Client)?;
        match answer_to(&id, &body) {
            Some(message) => Ok(StreamableHttpPostResponse::Json(message, session_id)),
            None => {
                let what = "answered with something that is no answer to the request";
                Err(self.note(Trouble::lasting(what)))
            }
        }
    }

    /// Takes up an answer where it broke off.
    async fn resume(
        &self,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        protocol: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, HttpError> {
        // Without an event to go on from, it is the stream of whatever the server has to say by itself:
        // nothing that we ask for is in it.
        let Some(last) = last_event_id.and_then(|id| HeaderValue::from_str(&id).ok()) else {
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        };
        if self.0.resumptions.fetch_add(1, Ordering::Relaxed) >= MAX_RESUMPTIONS
            || self.0.bytes_left.load(Ordering::Relaxed) == 0
        {
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        }
        let client = self.0.gate.client(&self.0.url).map_err(|failure| self.failed(failure))?;
        let mut headers = self.headers(protocol, session_id.as_deref());
        headers.insert(LAST_EVENT_ID, last);
        let response = client.get(self.0.url.clone()).headers(headers).send().await;
        let response = response.map_err(|error| self.failed(Failure::of(&error)))?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let what =
                format!("broke its answer off and did not go on with it: HTTP status {status}");
            self.note(Trouble::passing(what));
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        }
        Ok(events(self.bounded(response.bytes_stream())))
    }

    /// What comes in, as long as the session lives and has bytes left.
    fn bounded<E: std::error::Error>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> impl Stream<Item = Result<Bytes, WireError>> + Send + 'static {
        let wire = self.clone();
        let take = move |chunk: Result<Bytes, E>| {
            let trouble = match chunk {
                Ok(bytes) => {
                    let take = |left: usize| left.checked_sub(bytes.len());
                    let left = &wire.0.bytes_left;
                    if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                        return Ok(bytes);
                    }
                    left.store(0, Ordering::Relaxed);
                    Trouble::lasting("sent too much")
                }
                Err(_) => Trouble::passing("broke its answer off"),
            };
            let error = WireError(trouble.what.clone());
            wire.note(trouble);
            Err(error)
        };
        body.map(take).take_until(self.0.life.clone().cancelled_owned())
    }
}

/// The events of a stream. How long a server wants us to wait before we take it up again is kept
/// within reason.
fn events(
    body: impl Stream<Item = Result<Bytes, WireError>> + Send + 'static,
) -> BoxStream<'static, Result<Sse, SseError>> {
    let patient = |event: Result<Sse, SseError>| {
        event.map(|mut event| {
            event.retry = event.retry.map(|wait| wait.clamp(RESUME_AFTER.0, RESUME_AFTER.1));
            event
        })
    };
    SseStream::from_bytes_stream(body).map(patient).boxed()
}

/// The whole body, or its first `most` bytes.
async fn read(
    body: impl Stream<Item = Result<Bytes, WireError>>,
    most: usize,
) -> Result<Vec<u8>, WireError> {
    let mut body = std::pin::pin!(body);
    let mut whole = Vec::new();
    while let Some(bytes) = body.next().await {
        whole.extend_from_slice(&bytes?);
        if whole.len() >= most {
            whole.truncate(most);
            break;
        }
    }
    Ok(whole)
}

/// The answer to the request `id` in a body; `None` if it is none.
fn answer_to(id: &RequestId, body: &[u8]) -> Option<ServerJsonRpcMessage> {
    let mut message: ServerJsonRpcMessage = serde_json::from_slice(body).ok()?;
    let theirs = match &mut message {
        ServerJsonRpcMessage::Response(response) => &response.id,
        // A server that could not read the request cannot say which it was.
        ServerJsonRpcMessage::Error(error) => error.id.get_or_insert_with(|| id.clone()),
        ServerJsonRpcMessage::Request(_) | ServerJsonRpcMessage::Notification(_) => return None,
    };
    // Some servers give a number back as a string.
    (theirs.to_string() == id.to_string()).then_some(message)
}

/// What a server says in an answer that is no success, where it speaks JSON-RPC.
fn said(body: &[u8]) -> String {
    match serde_json::from_slice(body) {
        Ok(ServerJsonRpcMessage::Error(error)) => format!(": {}", in_short(&error.error.message)),
        Ok(_) | Err(_) => String::new(),
    }
}

/// The beginning of a server's words.
pub(super) fn in_short(words: &str) -> String {
    words.chars().take(MAX_WORDS).collect()
}

impl StreamableHttpClient for Wire {
    type Error = WireError;

    async fn post_message(
        &self,
        _url: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        tokio::select! {
            biased;
            () = self.0.life.cancelled() => Err(StreamableHttpError::TransportChannelClosed),
            answer = self.post(message, session_id, headers) => answer,
        }
    }

    async fn delete_session(
        &self,
        _url: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), HttpError> {
        // Whether it works or not, we are gone: the server forgets the session in its own time.
        let Ok(client) = self.0.gate.client(&self.0.url) else { return Ok(()) };
        let headers = self.headers(headers, Some(&session_id));
        tokio::select! {
            () = self.0.life.cancelled() => {}
            _ = client.delete(self.0.url.clone()).headers(headers).send() => {}
        }
        Ok(())
    }

    async fn get_stream(
        &self,
        _url: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, HttpError> {
        tokio::select! {
            biased;
            () = self.0.life.cancelled() => Err(StreamableHttpError::TransportChannelClosed),
            stream = self.resume(session_id, last_event_id, headers) => stream,
        }
    }
}
