//! A conversation's event stream: the logs of its runs, one after another.

use std::convert::Infallible;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;

use super::run_events::EventsQuery;
use crate::api::auth::Authenticated;
use crate::api::extract::PathId;
use crate::api::openapi::events::StreamEvent;
use crate::api::query::Query;
use crate::api::sse::{self, EventFilter, Pace, StreamEndReason};
use crate::api::streams::OpenStream;
use crate::api::{ApiError, ApiState, ErrorCode, accept, reply};
use crate::app::Caller;
use crate::app::idempotency::Answer;
use crate::app::runs::Next;
use crate::app::turns::{ConversationCursor, Heard};
use crate::domain::ids::{ConversationId, RunId};

/// Follow a conversation's events
///
/// Server-sent events of its runs, one after another in the order of their creation, each complete; ids
/// are `run_id:seq`. Without a cursor it begins with the active run's first event, or else with the next
/// run; with `Last-Event-ID` (or `?after=`) it goes on behind that event. It stays open between turns,
/// and ends when the conversation is over: `stream.end` with `reason` `conversation_closed`, and from then
/// on 204. Any other reason means: come back with your cursor.
#[utoipa::path(get, path = "/v1/conversations/{conversation_id}/events", operation_id = "stream_conversation_events", tag = "events",
    params(("conversation_id" = ConversationId, Path, description = "The conversation."), EventsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that you have.",
            example = "run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978:17")),
    responses((status = 200, description = "The events.", content_type = "text/event-stream", body = StreamEvent),
        (status = 204, description = "The conversation is over, and there is nothing after your cursor.")))]
pub async fn stream_conversation_events(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    accept::a_stream(&headers)?;
    let id = conversation_id.id()?;
    let query = query.read::<EventsQuery>();
    match open(&state, &caller, id, query, headers.get("last-event-id")).await {
        // A browser's EventSource gives up for good on an error: it is asked to come back instead.
        Err(error) if error.code().retry() && accept::prefers_stream(&headers) => {
            Ok(sse::come_back(state.app.clock().chance(), 0))
        }
        answer => answer,
    }
}

async fn open(
    state: &ApiState,
    caller: &Caller,
    id: ConversationId,
    query: Result<EventsQuery, ApiError>,
    last_event_id: Option<&HeaderValue>,
) -> Result<Response, ApiError> {
    let query = state.conversation_first(caller, id, query).await?;
    let after = cursor(last_event_id, query.after.as_deref());
    let after = state.conversation_first(caller, id, after).await?;
    let types = query.types.as_deref().filter(|types| !types.is_empty());
    let filter = types.map_or(Ok(EventFilter::ALL), EventFilter::parse);
    let filter = state.conversation_first(caller, id, filter).await?;
    let mut cursor = state.app.follow_conversation(caller, id, after).await?;
    if cursor.is_over().await.map_err(|_| unavailable())? {
        // 204 is what stops an EventSource from coming back.
        return Ok(reply::no_content(&Answer::new(())));
    }
    let place = state.streams.open(caller.workspace_id).ok_or_else(sse::no_place)?;
    let stream = ConversationStream { state: state.clone(), id, filter, cursor, _place: place };
    Ok(sse::stream_of(axum::body::Body::from_stream(stream.chunks())))
}

fn unavailable() -> ApiError {
    ApiError::new(ErrorCode::StorageUnavailable, "The database does not answer.")
}

/// Where a reader was: `Last-Event-ID` beats `?after=`, and an empty one is none.
fn cursor(
    last_event_id: Option<&HeaderValue>,
    after: Option<&str>,
) -> Result<Option<(RunId, i32)>, ApiError> {
    let header = last_event_id.map(|value| value.to_str().unwrap_or("?"));
    let given = header.filter(|text| !text.is_empty()).or(after.filter(|text| !text.is_empty()));
    let Some(text) = given else { return Ok(None) };
    let read = text.split_once(':').and_then(|(run, seq)| {
        // Digits alone: "+5" would parse, and was never an id of ours.
        let digits = seq.bytes().all(|b| b.is_ascii_digit());
        Some((run.parse().ok()?, seq.parse().ok().filter(|_| digits)?))
    });
    let message = "The cursor is not the id of an event that this conversation has had.";
    read.map(Some).ok_or_else(|| ApiError::new(ErrorCode::InvalidCursor, message))
}

/// A stream that is open.
struct ConversationStream {
    state: ApiState,
    id: ConversationId,
    filter: EventFilter,
    cursor: ConversationCursor,
    _place: OpenStream,
}

enum Woken<T> {
    Heard(T),
    Stopped,
    Timer,
}

impl ConversationStream {
    fn chunks(mut self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        async_stream::stream! {
            let stop = self.state.stop.clone();
            let stopped = stop.cancelled();
            tokio::pin!(stopped);
            let mut pace = Pace::new(self.state.streams.lifetime());
            let mut last_seq = 0;
            yield Ok(sse::hello(self.state.app.clock().chance()));
            let reason = loop {
                let woken = tokio::select! {
                    biased;
                    heard = self.cursor.next() => Woken::Heard(heard),
                    () = &mut stopped => Woken::Stopped,
                    () = pace.tick() => Woken::Timer,
                };
                match woken {
                    Woken::Heard(Ok(Heard::Run(run_id, Next::Events(page)))) => {
                        last_seq = page.last_seq();
                        let id = format!("{run_id}:");
                        let chunk = page.named(&id, |event_type| self.filter.lets(event_type));
                        if !chunk.is_empty() {
                            pace.sent();
                            yield Ok(chunk);
                        }
                    }
                    Woken::Heard(Ok(Heard::Run(_, Next::Gap(missing)))) => {
                        pace.sent();
                        yield Ok(sse::gap(missing));
                    }
                    Woken::Heard(Ok(Heard::Over)) => break StreamEndReason::ConversationClosed,
                    Woken::Heard(Err(error)) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(conversation_id = %self.id, error, "a stream broke off");
                        break StreamEndReason::Unavailable;
                    }
                    Woken::Stopped => break StreamEndReason::Draining,
                    Woken::Timer => {
                        if pace.is_silent() {
                            yield Ok(sse::comment());
                        }
                    }
                }
                if pace.is_over() {
                    break StreamEndReason::Rotated;
                }
            };
            let mut chunk = Vec::new();
            sse::end(&mut chunk, reason, last_seq);
            yield Ok(Bytes::from(chunk));
        }
    }
}
