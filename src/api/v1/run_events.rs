//! A run's log: as a stream, as pages, and folded into steps.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::auth::Authenticated;
use crate::api::extract::PathId;
use crate::api::openapi::events::{LogPage, StreamEvent};
use crate::api::pages::{self, PageQuery, StepList};
use crate::api::query::Query;
use crate::api::sse::{self, EventFilter};
use crate::api::{ApiError, ApiState, accept, reply};
use crate::app::Caller;
use crate::domain::ids::RunId;
use crate::domain::page::Order;

/// Where to begin, and what to send.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventsQuery {
    /// Begin behind this event; the header `Last-Event-ID` wins over it.
    #[param(example = "17")]
    pub(super) after: Option<String>,
    /// Only these types, separated by commas; `run.*` is all of `run`. Final events and `stream.*`
    /// are always sent.
    #[param(example = "run.*,message.delta")]
    pub(super) types: Option<String>,
}

/// Follow a run's events
///
/// Server-sent events: everything that has happened from the first event on, then everything as it
/// happens, until the run ends. Any number of readers, at any time, also after the end. Join
/// `message.delta` for the text as it is written; `message.completed` stands for its deltas. When the
/// connection breaks, come back with the last `id` as `Last-Event-ID` and nothing is missed. The last
/// event is `stream.end`: with `reason` `run_ended` you are done; with any other, come back the same
/// way. 204 means that the run has ended and you have everything. In the log of an old run pieces of
/// text may be gone: `stream.gap`, without an id, stands for them, and the stream goes on behind it.
#[utoipa::path(get, path = "/v1/runs/{run_id}/events", operation_id = "stream_run_events", tag = "events",
    params(("run_id" = RunId, Path, description = "The run."), EventsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that you have.", example = "17")),
    responses((status = 200, description = "The events.", content_type = "text/event-stream", body = StreamEvent),
        (status = 204, description = "The run has ended, and there is nothing after your cursor.")))]
pub async fn stream_run_events(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    accept::a_stream(&headers)?;
    let run_id = run_id.id()?;
    let query = query.read::<EventsQuery>();
    let after = query.as_ref().ok().and_then(|query| query.after.as_deref());
    let after = sse::cursor(headers.get("last-event-id"), after);
    let last_seq = *after.as_ref().unwrap_or(&0);
    match open_run_events(&state, &caller, run_id, query, after).await {
        // A browser's EventSource gives up for good on an error: it is asked to come back instead.
        Err(error) if error.code().retry() && accept::prefers_stream(&headers) => {
            Ok(sse::come_back(state.app.clock().chance(), last_seq))
        }
        answer => answer,
    }
}

async fn open_run_events(
    state: &ApiState,
    caller: &Caller,
    run_id: RunId,
    query: Result<EventsQuery, ApiError>,
    after: Result<i32, ApiError>,
) -> Result<Response, ApiError> {
    // A run that is not there is told first.
    let record = state.app.get_run(caller, run_id).await?;
    let (query, after) = (query?, after?);
    let types = query.types.as_deref().filter(|types| !types.is_empty());
    let filter = types.map_or(Ok(EventFilter::ALL), EventFilter::parse)?;
    reply::stream(state, caller, &record, after, filter)
}

/// List a run's events
///
/// The same events as the stream's, as JSON in pages, oldest first; the ids of this list are `seq`.
/// Call this to read a log as it is, without waiting for more. Where `seq` jumps, pieces of text of an
/// old run are not kept any more; `message.completed` still has the whole text.
#[utoipa::path(get, path = "/v1/runs/{run_id}/log", operation_id = "list_run_log", tag = "events",
    params(("run_id" = RunId, Path, description = "The run."), PageQuery),
    responses((status = 200, description = "A page of events.", body = LogPage)))]
pub async fn list_run_log(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    query: Query,
) -> Result<Response, ApiError> {
    let run_id = run_id.id()?;
    let page = query.read::<PageQuery>().and_then(|query| query.page(Order::Asc));
    let page = state.run_first(&caller, run_id, page).await?;
    let listed = state.app.read_log(&caller, run_id, &page).await?;
    Ok(reply::raw_json(StatusCode::OK, pages::log_page(&listed)))
}

/// List a run's steps
///
/// A step is one model call and the tool calls that it asked for. Call this to see what a run did,
/// what each step cost, and which tool failed. Oldest first; the ids of this list are step numbers.
#[utoipa::path(get, path = "/v1/runs/{run_id}/steps", operation_id = "list_run_steps", tag = "events",
    params(("run_id" = RunId, Path, description = "The run."), PageQuery),
    responses((status = 200, description = "A page of steps.", body = StepList)))]
pub async fn list_run_steps(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    query: Query,
) -> Result<Response, ApiError> {
    let run_id = run_id.id()?;
    let page = query.read::<PageQuery>().and_then(|query| query.page(Order::Asc));
    let page = state.run_first(&caller, run_id, page).await?;
    let steps = state.app.steps(&caller, run_id).await?;
    let listed = pages::cut(steps, &page, |step| step.step);
    reply::json(StatusCode::OK, &StepList::from(listed))
}
