//! Runs: list, read, cancel, erase.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::create_run::WaitQuery;
use crate::api::auth::Authenticated;
use crate::api::docs::names;
use crate::api::extract::{JsonBody, PathId};
use crate::api::pages::{PageQuery, RunList};
use crate::api::query::{self, Both, Query};
use crate::api::{ApiError, ApiState, reply};
use crate::app::idempotency::Answer;
use crate::app::runs::RunFilter;
use crate::domain::ids::RunId;
use crate::domain::page::{Listed, Order, Page};
use crate::domain::run::{Run, RunStatus};

const CANCEL: &str = "POST /v1/runs/{run_id}/cancel";
const DELETE: &str = "DELETE /v1/runs/{run_id}";

/// Which runs to list. All conditions must hold.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RunsQuery {
    /// Runs of this agent.
    agent_id: Option<String>,
    /// Runs of this conversation.
    conversation_id: Option<String>,
    /// Runs in one of these statuses, separated by commas.
    #[param(example = "queued,running")]
    status: Option<String>,
    /// Runs that this run started.
    parent_run_id: Option<String>,
    /// Runs for this user of yours.
    end_user_id: Option<String>,
    /// Runs created at this time or later (RFC 3339).
    #[param(value_type = Option<crate::domain::time::Timestamp>)]
    created_after: Option<String>,
    /// Runs created at this time or earlier (RFC 3339).
    #[param(value_type = Option<crate::domain::time::Timestamp>)]
    created_before: Option<String>,
    /// Runs with this pair of metadata, as `KEY:VALUE`. May be given several times.
    #[param(example = json!(["ticket:42"]))]
    metadata: Option<Vec<String>>,
}

impl RunsQuery {
    fn filter(self) -> Result<RunFilter, ApiError> {
        let run = "must be an id like run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978";
        let time = "must be an RFC 3339 time, for example 2026-11-22T09:30:00Z";
        let (agent, conversation) = ("must be an agent_id", "must be a conversation_id");
        let text = Option::as_deref;
        Ok(RunFilter {
            agent_id: query::parse("agent_id", text(&self.agent_id), agent)?,
            statuses: statuses(self.status.as_deref().unwrap_or_default())?,
            conversation_id: query::parse(
                "conversation_id",
                text(&self.conversation_id),
                conversation,
            )?,
            parent_run_id: query::parse("parent_run_id", text(&self.parent_run_id), run)?,
            end_user_id: self.end_user_id,
            created_after: query::parse("created_after", text(&self.created_after), time)?,
            created_before: query::parse("created_before", text(&self.created_before), time)?,
            metadata: self
                .metadata
                .unwrap_or_default()
                .iter()
                .map(|text| pair(text))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn statuses(list: &str) -> Result<Vec<RunStatus>, ApiError> {
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| {
            RunStatus::from_word(word).ok_or_else(|| {
                let known = RunStatus::ALL.map(RunStatus::as_str).join(", ");
                query::invalid("status", &format!("must be a list of: {known}"))
            })
        })
        .collect()
}

fn pair(text: &str) -> Result<(String, String), ApiError> {
    text.split_once(':')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| query::invalid("metadata", "must be KEY:VALUE"))
}

/// List runs
///
/// Newest first, without `input` and `result`: get one run for those. Use the filters to find what
/// is still going on (`status=queued,running,requires_action,cancelling`) or what belongs to
/// something of yours (`metadata=ticket:42`).
#[utoipa::path(get, path = "/v1/runs", operation_id = "list_runs", tag = "runs",
    params(PageQuery, RunsQuery),
    responses((status = 200, description = "A page of runs.", body = RunList)))]
pub async fn list_runs(
    State(state): State<ApiState>,
    caller: Authenticated,
    query: Query,
) -> Result<Response, ApiError> {
    let Both(page, filter) = query.read_both::<PageQuery, RunsQuery>()?;
    let page: Page<RunId> = page.page(Order::Desc)?;
    let listed = state.app.list_runs(&caller, &filter.filter()?, &page).await?;
    let views = listed.rows.into_iter().map(|record| state.app.view_in_list(record));
    let rows = views.collect::<Result<_, _>>()?;
    reply::json(StatusCode::OK, &RunList::from(Listed { rows, has_more: listed.has_more }))
}

/// What to add to a run.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RunQuery {
    /// `steps`: the run's steps too.
    #[param(value_type = Option<Include>)]
    include: Option<String>,
}

/// What can be added to a run.
#[derive(Debug, Clone, Copy, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Include {
    /// Its steps.
    Steps,
}

impl RunQuery {
    fn with_steps(&self) -> Result<bool, ApiError> {
        match self.include.as_deref() {
            None | Some("") => Ok(false),
            Some("steps") => Ok(true),
            Some(_) => Err(query::invalid("include", "must be steps")),
        }
    }
}

/// Get a run
///
/// Call this after `retry_after_seconds` until `status` is one of `completed`, `incomplete`, `failed`,
/// `cancelled`, `expired`; or send `?wait=30` and be answered as soon as the run ends or needs
/// somebody. On `requires_action`, answer each of `required_actions`: type `approval` with `POST
/// /v1/runs/{run_id}/approvals`, the others with `POST /v1/runs/{run_id}/tool-results`. Send
/// `If-None-Match` with the last `ETag` and get 304 while nothing has happened.
#[utoipa::path(get, path = "/v1/runs/{run_id}", operation_id = "get_run", tag = "runs",
    params(("run_id" = RunId, Path, description = "The run."), WaitQuery, RunQuery,
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the answer that you have.", example = "W/\"42\"")),
    responses((status = 200, description = "The run.", body = Run),
        (status = 304, description = "Nothing has happened since the answer that you have.")))]
pub async fn get_run(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let run_id = run_id.id()?;
    let asked = asked(query, &headers);
    let (wait, with_steps) = state.run_first(&caller, run_id, asked).await?;
    let record = reply::settled(&state, &caller, run_id, wait).await?;
    let etag = etag(record.last_seq);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &etag)) {
        return Ok(tagged(not_modified(), etag));
    }
    let mut run = state.app.view(&caller, record).await?;
    if with_steps {
        run.steps = Some(state.app.steps(&caller, run_id).await?);
    }
    Ok(tagged(reply::run_response(StatusCode::OK, &run)?, etag))
}

fn asked(query: Query, headers: &HeaderMap) -> Result<(std::time::Duration, bool), ApiError> {
    let Both(wait, run) = query.read_both::<WaitQuery, RunQuery>()?;
    Ok((reply::wait(wait.wait.as_deref(), headers)?, run.with_steps()?))
}

/// Weak: what is counted down (`estimated_completion_seconds`) changes without an event.
fn etag(last_seq: i32) -> HeaderValue {
    HeaderValue::try_from(format!("W/\"{last_seq}\"")).unwrap_or(HeaderValue::from_static("W/\"\""))
}

fn tagged(mut response: Response, etag: HeaderValue) -> Response {
    response.headers_mut().insert(header::ETAG, etag);
    response
}

fn not_modified() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// Cancel a run
///
/// Asks the run to stop, and the runs that it has called as tools. 202: it is `cancelling` and will end
/// `cancelled` within seconds; poll it or follow its events. 200: it has ended, now or before, and is
/// given as it is. Calling it again does no harm, and it never fails for a run that exists.
#[utoipa::path(post, path = "/v1/runs/{run_id}/cancel", operation_id = "cancel_run", tag = "runs",
    params(("run_id" = RunId, Path, description = "The run.")),
    responses((status = 202, description = "The run is being cancelled.", body = Run),
        (status = 200, description = "The run has ended.", body = Run)))]
pub async fn cancel_run(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(CANCEL, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(run) => Answer::replay(state.app.replayed_run(&caller, &run).await?),
        None => {
            let run_id = run_id.id()?;
            state.run_first(&caller, run_id, body.nothing()).await?;
            state.app.cancel_run(&caller, run_id, key.as_ref()).await?
        }
    };
    let cancelling = answer.value.row.status == RunStatus::Cancelling;
    let status = if cancelling { StatusCode::ACCEPTED } else { StatusCode::OK };
    let run = state.app.view(&caller, answer.value).await?;
    Ok(reply::replayed(reply::run_response(status, &run)?, answer.replayed))
}

/// Delete a run
///
/// Erases an ended run with its input, result, events and steps, for good, and with it the runs that it
/// called (`parent_run_id`), and those that they called. While it or one of them has not ended it gets 409
/// `run_active`, and `details` name that run: cancel it first. Call this to erase a run early: some time after their end
/// (30 days, unless the server's operator says otherwise) runs are deleted anyway.
#[utoipa::path(delete, path = "/v1/runs/{run_id}", operation_id = "delete_run", tag = "runs",
    params(("run_id" = RunId, Path, description = "The run.")),
    responses((status = 204, description = "The run is gone.")))]
pub async fn delete_run(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(DELETE, body.value())?;
    if state.app.find_key(&caller, key.as_ref()).await?.is_some() {
        return Ok(reply::no_content(&Answer::replay(())));
    }
    let run_id = run_id.id()?;
    state.run_first(&caller, run_id, body.nothing()).await?;
    let answer = state.app.erase_run(&caller, run_id, key.as_ref()).await?;
    Ok(reply::no_content(&answer))
}
