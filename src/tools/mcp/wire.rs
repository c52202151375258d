//! What rmcp sends and receives, through the gate and within bounds.
//!
//! rmcp has a client of its own over reqwest. This one differs in what we must know and it does not tell:
//! whether a call left, and what went wrong, in words without a URL. And in what a hostile server must not
//! be able to do: send without end, or keep a connection after its session.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::BoxStream;
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, RequestId, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::Sse;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::body::{WireError, answer_to, bounded, error, events, read};
use super::exchange::Exchange;
use super::trouble::{Refusal, Trouble};
use crate::egress::{Departure, Failure, Gate, HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Bytes of an answer that is no success: enough for an error in words.
const MAX_REFUSAL: usize = 16 * 1024;
/// How long a server may take over them.
const REFUSAL_WITHIN: Duration = Duration::from_secs(5);

const ACCEPT: HeaderName = HeaderName::from_static("accept");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const BOTH_WAYS: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

type HttpError = StreamableHttpError<WireError>;

/// What a session is opened with.
#[derive(Clone)]
pub(super) struct Connection {
    /// The way out.
    pub gate: Arc<Gate>,
    /// Where the server is.
    pub url: Url,
    /// The agent's headers.
    pub headers: HeaderMap,
    /// Bytes that the server may send in answers to anything but calls.
    pub most_bytes: usize,
}

/// The connections of one session.
#[derive(Clone)]
pub(super) struct Wire(Arc<Inner>);

struct Inner {
    gate: Arc<Gate>,
    url: Url,
    /// The agent's headers.
    headers: HeaderMap,
    /// Every connection is closed when this is cancelled.
    life: CancellationToken,
    /// Whatever is no call.
    small_talk: Arc<Exchange>,
    /// Exchanges whose answers come as events. Their events' ids are given to rmcp with the number in
    /// front: when it takes a stream up again, that says whose it is.
    streams: Mutex<HashMap<u64, Weak<Exchange>>>,
    streamed: AtomicU64,
    /// The server said that it does not know the session any more.
    forgotten: AtomicBool,
}

impl Wire {
    /// No connection yet; none is open any more when `life` has been cancelled.
    pub(super) fn new(with: Connection, life: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            gate: with.gate,
            url: with.url,
            headers: with.headers,
            small_talk: Exchange::small_talk(life.clone(), with.most_bytes),
            life,
            streams: Mutex::default(),
            streamed: AtomicU64::new(0),
            forgotten: AtomicBool::new(false),
        }))
    }

    /// What is known of everything but the calls.
    pub(super) fn small_talk(&self) -> &Exchange {
        &self.0.small_talk
    }

    /// A call to be made over these connections: it is put into the extensions of its request.
    pub(super) fn call(&self, departure: Arc<Departure>, most_bytes: usize) -> Arc<Exchange> {
        Exchange::call(self.0.life.child_token(), departure, most_bytes)
    }

    /// Whether the server does not know the session any more.
    pub(super) fn is_forgotten(&self) -> bool {
        self.0.forgotten.load(Ordering::Relaxed)
    }

    /// Where the server is.
    pub(super) fn url(&self) -> Arc<str> {
        Arc::from(self.0.url.as_str())
    }

    /// The exchange that a message belongs to.
    fn exchange(&self, message: &ClientJsonRpcMessage) -> Arc<Exchange> {
        let of_call = match message {
            ClientJsonRpcMessage::Request(request) => match &request.request {
                ClientRequest::CallToolRequest(call) => call.extensions.get::<Arc<Exchange>>(),
                _ => None,
            },
            _ => None,
        };
        of_call.unwrap_or(&self.0.small_talk).clone()
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
        exchange: &Arc<Exchange>,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let asked = match &message {
            ClientJsonRpcMessage::Request(request) => Some(request.id.clone()),
            _ => None,
        };
        let client = self.0.gate.client(&self.0.url);
        let client = client.map_err(|failure| note(exchange, Trouble::no_answer(failure)))?;
        let headers = self.headers(protocol, session_id.as_deref());
        let body = serde_json::to_vec(&message)?;
        let sending = client.post(self.0.url.clone()).headers(headers).body(body).send();
        let response = match exchange.departure() {
            Some(departure) => departure.clone().during(sending).await,
            None => sending.await,
        };
        let response =
            response.map_err(|error| note(exchange, Trouble::no_answer(Failure::of(&error))))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = bounded(exchange.clone(), response.bytes_stream());
        if !status.is_success() {
            if let Some(departure) = exchange.departure() {
                departure.refused(status.as_u16());
            }
            // What it says beside its status is not worth waiting for.
            let body = timeout(REFUSAL_WITHIN, read(body, MAX_REFUSAL)).await;
            let error = error(&body.unwrap_or(Ok(Vec::new())).unwrap_or_default());
            let is_answer = exchange.departure().is_some();
            let in_session = session_id.is_some();
            return match (error, asked) {
                // Servers say in words of the protocol that they do not take these greetings.
                (Some(error), Some(id))
                    if !is_answer && !in_session && is_about_the_request(status) =>
                {
                    let message = ServerJsonRpcMessage::error(error, Some(id));
                    Ok(StreamableHttpPostResponse::Json(message, None))
                }
                (error, _) => {
                    let said = error.map(|error| error.message).unwrap_or_default();
                    let (url, sent) = (&self.0.url, &self.0.headers);
                    let refusal = Refusal {
                        status: status.as_u16(),
                        said: &said,
                        url,
                        sent,
                        received: &headers,
                        is_of_call: is_answer,
                    };
                    let trouble = self.refused(&refusal, in_session);
                    Err(note(exchange, Trouble { is_answer, ..trouble }))
                }
            };
        }
        // From here on the server has taken the request: what makes no sense says nothing of what it did.
        match asked {
            Some(id) => self.answered(&id, &headers, body, exchange).await,
            None => Ok(StreamableHttpPostResponse::Accepted),
        }
    }

    /// The answer to the request `id`, as JSON or as events.
    async fn answered(
        &self,
        id: &RequestId,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<Bytes, WireError>> + Send + 'static,
        exchange: &Arc<Exchange>,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let header = |name: HeaderName| headers.get(name)?.to_str().ok();
        let content_type = header(CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
        let session_id = header(SESSION_ID).map(str::to_owned);
        if content_type.starts_with("text/event-stream") {
            let number = self.number(exchange);
            return Ok(StreamableHttpPostResponse::Sse(events(number, body), session_id));
        }
        if !content_type.starts_with("application/json") {
            return Err(note(exchange, Trouble::strange_content(&content_type)));
        }
        let body = read(body, usize::MAX).await.map_err(StreamableHttpError::Client)?;
        match answer_to(id, &body) {
            Some(message) => Ok(StreamableHttpPostResponse::Json(message, session_id)),
            None => {
                let what = "answered with something that is no answer to the request";
                Err(note(exchange, Trouble::lasting(what)))
            }
        }
    }

    /// What is known after an answer that is no success.
    fn refused(&self, refusal: &Refusal<'_>, in_session: bool) -> Trouble {
        let Refusal { status, said, .. } = *refusal;
        // The protocol's word for it is 404. Servers after the pattern of its examples say 400, and the
        // rest in words.
        let forgets = status == 404 || (status == 400 && said.to_lowercase().contains("session"));
        if in_session && forgets {
            self.0.forgotten.store(true, Ordering::Relaxed);
            return Trouble::passing(format!(
                "has forgotten the session and what it kept in it (HTTP status {status}): what was asked \
                 was not done, and the next call begins a new session"
            ));
        }
        Trouble::refusal(refusal)
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
        let last = last_event_id.as_deref().and_then(|id| self.whose(id));
        let Some((number, exchange, last)) = last.filter(|(_, of, _)| of.may_resume()) else {
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        };
        let client = self.0.gate.client(&self.0.url);
        let client = client.map_err(|failure| note(&exchange, Trouble::no_answer(failure)))?;
        let mut headers = self.headers(protocol, session_id.as_deref());
        headers.insert(LAST_EVENT_ID, last);
        let sending = client.get(self.0.url.clone()).headers(headers).send();
        let response = tokio::select! {
            biased;
            () = exchange.life().cancelled() => {
                return Err(StreamableHttpError::ServerDoesNotSupportSse);
            }
            response = sending => response,
        };
        let response =
            response.map_err(|error| note(&exchange, Trouble::no_answer(Failure::of(&error))))?;
        if !response.status().is_success() {
            let status = response.status().as_u16();
            let what =
                format!("broke its answer off and did not go on with it: HTTP status {status}");
            exchange.note(Trouble::passing(what));
            return Err(StreamableHttpError::ServerDoesNotSupportSse);
        }
        Ok(events(number, bounded(exchange, response.bytes_stream())))
    }

    /// A number for the stream of an exchange.
    fn number(&self, exchange: &Arc<Exchange>) -> u64 {
        let number = self.0.streamed.fetch_add(1, Ordering::Relaxed);
        let mut streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|_, exchange| exchange.strong_count() > 0);
        streams.insert(number, Arc::downgrade(exchange));
        number
    }

    /// Whose event this is, as rmcp knows its id, and the id that the server gave it.
    fn whose(&self, event_id: &str) -> Option<(u64, Arc<Exchange>, HeaderValue)> {
        let (number, id) = event_id.split_once(':')?;
        let number = number.parse().ok()?;
        let id = HeaderValue::from_str(id).ok()?;
        let streams = self.0.streams.lock().unwrap_or_else(PoisonError::into_inner);
        Some((number, streams.get(&number)?.upgrade()?, id))
    }
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
        let exchange = self.exchange(&message);
        tokio::select! {
            biased;
            () = exchange.life().cancelled() => Err(StreamableHttpError::TransportChannelClosed),
            answer = self.post(message, session_id, headers, &exchange) => answer,
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
        self.resume(session_id, last_event_id, headers).await
    }
}

fn note(exchange: &Exchange, trouble: Trouble) -> HttpError {
    let error = StreamableHttpError::Client(WireError(trouble.what.clone()));
    exchange.note(trouble);
    error
}

/// Whether a status says that a request was not understood, and not who may ask or when.
fn is_about_the_request(status: StatusCode) -> bool {
    status.is_client_error() && !matches!(status.as_u16(), 401 | 403 | 408 | 429)
}
