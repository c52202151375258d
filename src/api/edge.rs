//! The outermost layer: a request's id, its size, its error in the one shape, and its log line.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest as _, Sha256};

use crate::domain::ids::{RequestId, RunId};

use super::{ApiError, ApiState, ErrorCode};

/// Longer addresses are refused.
const MAX_URI_BYTES: usize = 8 * 1024;
/// More headers, names and values counted, are refused.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Longer ids of clients are replaced or ignored.
const MAX_CLIENT_ID: usize = 128;

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_AGENT_ID: HeaderName = HeaderName::from_static("x-agent-id");

/// What handlers learn about a request that its log line tells.
#[derive(Debug, Clone, Default)]
pub struct Noted(Arc<Notes>);

#[derive(Debug, Default)]
struct Notes {
    run_id: OnceLock<RunId>,
    key_id: OnceLock<String>,
    key_hash: OnceLock<String>,
}

impl Noted {
    /// The run that the request is about.
    pub fn run_id(&self, run_id: RunId) {
        let _ = self.0.run_id.set(run_id);
    }

    /// The key that it showed, by its id.
    pub fn key_id(&self, key_id: &str) {
        let _ = self.0.key_id.set(key_id.to_owned());
    }

    /// Its idempotency key, of which only a hash is ever logged.
    pub fn idempotency_key(&self, key: &str) {
        let _ = self.0.key_hash.set(short_hash(key));
    }
}

/// The first 16 hex digits of the SHA-256: enough to find equal keys, too little to guess one.
fn short_hash(key: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(key.as_bytes()).iter().take(8).fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The agent that calls, as it named itself, if the name is sane.
pub fn caller_agent_id(headers: &HeaderMap) -> Option<&str> {
    sane(headers.get(&X_AGENT_ID)?)
}

fn sane(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?;
    let fits = (1..=MAX_CLIENT_ID).contains(&text.len());
    let calm = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (fits && text.bytes().all(calm)).then_some(text)
}

/// Wraps every request.
pub async fn edge(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let request_id = match request.headers().get(&X_REQUEST_ID).and_then(sane) {
        Some(theirs) => theirs.to_owned(),
        None => RequestId::from_uuid(state.app.clock().uuid()).to_string(),
    };
    let noted = Noted::default();
    request.extensions_mut().insert(noted.clone());
    let asked = Asked::of(&request);
    let response = match oversize(&request).or_else(|| ambiguous(&request)) {
        Some(error) => error.into_response(),
        None => next.run(request).await,
    };
    let response = finish(response, &request_id);
    asked.tell(&response, &request_id, &noted, began);
    response
}

fn oversize(request: &Request) -> Option<ApiError> {
    let uri = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if uri > MAX_URI_BYTES {
        return Some(ApiError::new(ErrorCode::UriTooLong, "The address is longer than 8 KiB."));
    }
    let headers: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (headers > MAX_HEADER_BYTES).then(|| {
        ApiError::new(ErrorCode::HeadersTooLarge, "The headers are larger than 16 KiB.").closing()
    })
}

/// A request with two hosts is one thing to a proxy and another to us (RFC 9112, section 3.2).
fn ambiguous(request: &Request) -> Option<ApiError> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    (hosts > 1).then(|| {
        let message = "The header Host is there more than once.";
        ApiError::new(ErrorCode::InvalidHeader, message).closing()
    })
}

/// Gives every response its id, and every error its body.
fn finish(mut response: Response, request_id: &str) -> Response {
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let error = match response.extensions_mut().remove::<ApiError>() {
            Some(error) => error,
            None => {
                // Made by a library: its status counts, and what it knows (Allow), not its words.
                let error = ApiError::of_status(status);
                *response.status_mut() = error.code().status();
                error
            }
        };
        // Our own types are always JSON; an empty body would only be less helpful.
        let body = serde_json::to_vec(&error.body(request_id)).unwrap_or_default();
        *response.body_mut() = Body::from(body);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(X_REQUEST_ID.clone(), id);
    }
    response
}

/// What the log line says of a request, kept while the handler has it.
struct Asked {
    method: Method,
    route: Option<MatchedPath>,
    run_id: Option<RunId>,
    caller_agent_id: Option<String>,
}

impl Asked {
    fn of(request: &Request) -> Self {
        Self {
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            run_id: run_in_path(request.uri().path()),
            caller_agent_id: caller_agent_id(request.headers()).map(str::to_owned),
        }
    }

    /// One line a request. For a stream it is written when the stream begins.
    fn tell(&self, response: &Response, request_id: &str, noted: &Noted, began: Instant) {
        let run_id = noted.0.run_id.get().copied().or(self.run_id);
        tracing::info!(
            target: "stepwell::request",
            method = %self.method,
            // The template, never the path: paths hold whatever people send.
            route = self.route.as_ref().map_or("", MatchedPath::as_str),
            status = response.status().as_u16(),
            duration_ms = began.elapsed().as_micros() as f64 / 1e3,
            request_id,
            key_id = noted.0.key_id.get().map(String::as_str),
            caller_agent_id = self.caller_agent_id.as_deref(),
            is_agent = self.caller_agent_id.is_some(),
            idempotency_key_hash = noted.0.key_hash.get().map(String::as_str),
            run_id = run_id.map(tracing::field::display),
            "request"
        );
    }
}

fn run_in_path(path: &str) -> Option<RunId> {
    path.strip_prefix("/v1/runs/")?.split('/').next()?.parse().ok()
}
