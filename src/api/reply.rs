//! Answers: a run polled, waited for or streamed, an agent, nothing.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;

use crate::app::idempotency::Answer;
use crate::app::runs::RunRecord;
use crate::app::{AppError, Caller};
use crate::domain::agent::Agent;
use crate::domain::ids::{AgentId, RunId};
use crate::domain::run::{Run, RunStatus};

use super::disconnect::OnDisconnect;
use super::sse::{self, EventFilter, EventStream};
use super::{ApiError, ApiState, accept, query};

static IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
static PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// JSON with a status.
///
/// # Errors
/// `internal`, which none of our types can cause.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, ApiError> {
    Ok(raw_json(status, serde_json::to_vec(value).map_err(AppError::from)?.into()))
}

/// Text that is JSON already.
pub fn raw_json(status: StatusCode, text: Bytes) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// 204: done, and nothing to say about it.
pub fn no_content<T>(answer: &Answer<T>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    replayed(response, answer.replayed)
}

/// An agent, with its version as `ETag`.
///
/// # Errors
/// As [`json`].
pub fn agent(status: StatusCode, answer: &Answer<Agent>) -> Result<Response, ApiError> {
    let mut response = json(status, &answer.value)?;
    set(&mut response, header::ETAG, &format!("\"{}\"", answer.value.version));
    Ok(replayed(response, answer.replayed))
}

/// Says so when an earlier request did it.
pub fn replayed(mut response: Response, replayed: bool) -> Response {
    if replayed {
        let yes = HeaderValue::from_static("true");
        response.headers_mut().insert(IDEMPOTENT_REPLAYED.clone(), yes);
    }
    response
}

/// Sets a header to a text of ours.
pub fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// How a client wants to learn about the run that it creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// By its event stream; else by its state.
    pub stream: bool,
    /// How long the answer may be held back until the run has settled.
    pub wait: Duration,
    /// Whether the client's going away cancels the run.
    pub cancel_on_disconnect: bool,
}

/// How long to wait: `?wait=` beats `Prefer: wait=`, and 60 s is the most.
///
/// # Errors
/// `validation_failed` for a `?wait=` that is no number.
pub fn wait(query: Option<&str>, headers: &HeaderMap) -> Result<Duration, ApiError> {
    let must = "must be a number of seconds, 0 or more";
    let asked = query::parse("wait", query, must)?.or_else(|| accept::preferred_wait(headers));
    Ok(Duration::from_secs(asked.unwrap_or(0)).min(accept::MAX_WAIT))
}

/// Answers whoever created a run, or asked again for one that an earlier request created.
///
/// # Errors
/// Whatever reading the run can cause, and `invalid_cursor` for a replayed stream.
pub async fn started(
    state: &ApiState,
    caller: &Caller,
    answer: Answer<RunRecord>,
    mode: Mode,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let run_id = answer.value.row.run_id;
    let mut guard = mode
        .cancel_on_disconnect
        .then(|| OnDisconnect::cancel(state.clone(), caller.clone(), run_id));
    let response = if mode.stream {
        // A new run has no event that a client could have seen.
        let cursor = headers.get(&LAST_EVENT_ID).filter(|_| answer.replayed);
        let stream = sse::cursor(cursor, None)
            .and_then(|after| open(state, caller, &answer.value, after, EventFilter::ALL));
        match stream {
            Ok(Some(mut stream)) => {
                stream.on_disconnect = guard.take();
                Ok(stream.response())
            }
            Ok(None) => Ok(no_content(&Answer::new(()))),
            Err(error) => Err(error),
        }
    } else {
        waited(state, caller, answer.value, mode.wait).await
    };
    // Here is an answer, if only an error: whatever happens now, the client was there for it.
    if let Some(guard) = &mut guard {
        guard.done();
    }
    let mut response = response?;
    set(&mut response, header::LOCATION, &state.app.links().run(run_id));
    Ok(replayed(response, answer.replayed))
}

/// 200 as soon as the run has settled; 202 when it does not within the wait.
async fn waited(
    state: &ApiState,
    caller: &Caller,
    record: RunRecord,
    wait: Duration,
) -> Result<Response, ApiError> {
    let run_id = record.row.run_id;
    let waits = !wait.is_zero();
    let record = if waits { settled(state, caller, run_id, wait).await? } else { record };
    let in_time = waits && is_settled(record.row.status);
    let run = state.app.view(caller, record).await?;
    let status = if in_time { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = run_response(status, &run)?;
    if in_time {
        set(&mut response, PREFERENCE_APPLIED.clone(), &format!("wait={}", wait.as_secs()));
    }
    Ok(response)
}

/// The run once it has settled, or as it is after `wait`; or at once when the server stops.
///
/// # Errors
/// `not_found`, and the store's.
pub async fn settled(
    state: &ApiState,
    caller: &Caller,
    run_id: RunId,
    wait: Duration,
) -> Result<RunRecord, ApiError> {
    if wait.is_zero() {
        return Ok(state.app.get_run(caller, run_id).await?);
    }
    let settled = state.app.settled_run(caller, run_id, wait);
    let record = tokio::select! {
        biased;
        record = settled => record,
        () = state.stop.cancelled() => state.app.get_run(caller, run_id).await,
    };
    Ok(record?)
}

fn is_settled(status: RunStatus) -> bool {
    status.is_final() || status == RunStatus::RequiresAction
}

/// A run as JSON, with `Retry-After` while looking again brings something new.
///
/// # Errors
/// As [`json`].
pub fn run_response(status: StatusCode, run: &Run) -> Result<Response, ApiError> {
    let mut response = json(status, run)?;
    if let Some(seconds) = run.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    Ok(response)
}

/// The run's events after `after`, as an answer: 204 when nothing is left to come.
///
/// # Errors
/// `invalid_cursor` for a cursor past the head; `overloaded`.
pub fn stream(
    state: &ApiState,
    caller: &Caller,
    record: &RunRecord,
    after: i32,
    filter: EventFilter,
) -> Result<Response, ApiError> {
    let stream = open(state, caller, record, after, filter)?;
    // 204 is what stops an EventSource from coming back.
    Ok(stream.map_or_else(|| no_content(&Answer::new(())), EventStream::response))
}

/// The stream; `None` when the run has ended and nothing comes after the cursor.
fn open(
    state: &ApiState,
    caller: &Caller,
    record: &RunRecord,
    after: i32,
    filter: EventFilter,
) -> Result<Option<EventStream>, ApiError> {
    if after > record.last_seq {
        return Err(sse::past_or_malformed());
    }
    if record.row.status.is_final() && after == record.last_seq {
        return Ok(None);
    }
    let place = state.streams.open(caller.workspace_id).ok_or_else(sse::no_place)?;
    let (state, caller, run_id) = (state.clone(), caller.clone(), record.row.run_id);
    Ok(Some(EventStream { state, caller, run_id, after, filter, place, on_disconnect: None }))
}

impl ApiState {
    /// What was read from a request about a run; when it cannot be read, a run that is not there is
    /// told first.
    ///
    /// # Errors
    /// `not_found`, or the one that came in.
    pub async fn run_first<T>(
        &self,
        caller: &Caller,
        run_id: RunId,
        read: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if read.is_err() {
            self.app.get_run(caller, run_id).await?;
        }
        read
    }

    /// The same about an agent.
    ///
    /// # Errors
    /// `not_found`, or the one that came in.
    pub async fn agent_first<T>(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
        read: Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if read.is_err() {
            self.app.current_agent(caller, agent_id).await?;
        }
        read
    }
}
