//! What people and programs say to a run: approvals, results of tools, messages.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::auth::Authenticated;
use crate::api::extract::{JsonBody, PathId};
use crate::api::pages::{ApprovalList, PageQuery};
use crate::api::query::Query;
use crate::api::{ApiError, ApiState, reply};
use crate::app::answers::replayed_message;
use crate::app::idempotency::Answer;
use crate::app::runs::RunRecord;
use crate::app::{AppError, Caller, Sought};
use crate::domain::answer::{Report, Said, Verdict};
use crate::domain::event::ApprovalDecision;
use crate::domain::ids::{CallId, MessageId, RunId};
use crate::domain::message::Content;
use crate::domain::page::{Order, Page};
use crate::domain::run::Run;

const TOOL_RESULTS: &str = "POST /v1/runs/{run_id}/tool-results";
const APPROVALS: &str = "POST /v1/runs/{run_id}/approvals";
const MESSAGES: &str = "POST /v1/runs/{run_id}/messages";

/// What came of a tool call.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PostToolResultRequest, example = json!({
    "call_id": "call_019a0c5e7d2a7c3f8b1e2d3c4b5a6978", "success": true, "result": {"rows": 3}
}))]
pub struct ToolResult {
    /// The call, from `required_actions`.
    call_id: String,
    /// Whether the call did what it was for. Left out only with `retry`.
    #[serde(default)]
    success: Option<bool>,
    /// With `success: true`: what came back, any JSON. More than 256 KiB are cut, with a note.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Value>)]
    result: Option<Value>,
    /// With `success: false`: why it failed, in words for the model.
    #[serde(default)]
    error: Option<String>,
    /// True, only for an action of type `tool_outcome`: make the call again.
    #[serde(default)]
    retry: Option<bool>,
}

/// A field that is there, if only as null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl ToolResult {
    pub(super) fn report(self) -> Result<Report, AppError> {
        let refuse = |pointer: &str, message: &str| Err(AppError::invalid(pointer, message));
        let said = match (self.success, self.retry.unwrap_or(false)) {
            (Some(true), true) => return refuse("/retry", "cannot be, with success: true"),
            (_, true) if self.result.is_some() || self.error.is_some() => {
                return refuse("/retry", "stands alone: leave out result and error");
            }
            (_, true) => Said::Again,
            (None, false) => return refuse("/success", "is required"),
            (Some(true), false) if self.error.is_some() => {
                return refuse("/error", "goes with success: false");
            }
            (Some(true), false) => Said::Result(self.result.unwrap_or_default()),
            (Some(false), false) if self.result.as_ref().is_some_and(|r| !r.is_null()) => {
                return refuse("/result", "goes with success: true; tell why it failed in error");
            }
            (Some(false), false) => {
                Said::Failed(self.error.unwrap_or_else(|| "The call failed.".to_owned()))
            }
        };
        Ok(Report { call_id: call(&self.call_id)?, said, said_by: None })
    }
}

/// A call's id in a body addresses it: a malformed one is answered like one that nobody has.
fn call(text: &str) -> Result<CallId, AppError> {
    text.parse().map_err(|_| AppError::NotFound(Sought::Call))
}

/// Post a tool's result
///
/// Call this for each action of type `tool_result` in `required_actions`: run the tool that you
/// declared as `client` with the action's `arguments`, then post what came back (`success: true`,
/// `result`) or why it failed (`success: false`, `error`); the model reads either. For an action of type
/// `tool_outcome` the server made a call that must not be repeated and got no answer (the call's `error`
/// in `GET /v1/runs/{run_id}/steps` says what came instead): find out what happened and post it in the
/// same way, or send `retry: true` to have the call made again. Results may be posted as soon as the
/// action is there, in any order, also while the run still works on other calls; it goes on by itself. An
/// action of a child run may be answered at the child or at any run above it. Posting the same again is
/// fine; another result for the same call gets 409 `already_decided`.
#[utoipa::path(post, path = "/v1/runs/{run_id}/tool-results", operation_id = "post_tool_result", tag = "actions",
    params(("run_id" = RunId, Path, description = "The run.")),
    request_body = ToolResult,
    responses((status = 202, description = "The result is taken; the run as it is now.", body = Run)))]
pub async fn post_tool_result(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(TOOL_RESULTS, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(run) => Answer::replay(state.app.replayed_run(&caller, &run).await?),
        None => {
            let run_id = run_id.id()?;
            let report = body.read::<ToolResult>().and_then(|result| Ok(result.report()?));
            let report = state.run_first(&caller, run_id, report).await?;
            state.app.post_tool_result(&caller, run_id, report, key.as_ref()).await?
        }
    };
    taken(&state, &caller, answer).await
}

/// A decision about a call.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DecideApprovalRequest, example = json!({
    "call_id": "call_019a0c5e7d2a7c3f8b1e2d3c4b5a6978", "decision": "approve"
}))]
pub struct Decision {
    /// The call, from `required_actions` or from the list of approvals.
    call_id: String,
    /// Whether it may be made.
    decision: ApprovalDecision,
    /// With `approve`: make the call with these arguments instead. They must fit the tool's schema (that
    /// of an `mcp` tool is its server's: there the call fails if they do not); the model is told that a
    /// person changed them.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    arguments: Option<Value>,
    /// Why. The model reads the reason of a denial. At most 4096 characters.
    #[serde(default)]
    reason: Option<String>,
}

impl Decision {
    fn verdict(self) -> Result<Verdict, AppError> {
        let Self { decision, arguments, reason, .. } = self;
        let call_id = call(&self.call_id)?;
        Ok(Verdict { call_id, decision, arguments, reason, decided_by: None })
    }
}

/// Approve or deny a tool call
///
/// Call this for an action of type `approval`, once a person (or whoever may decide in their place) has
/// looked at `tool` and `arguments`. `approve`: the call is made, with `arguments` if you send any; in a
/// run that is `requires_action` as soon as nothing else of it is open.
/// `deny`: it is not made; the model is told, with your `reason`, and goes on. Undecided calls are denied
/// at `expires_at`. The first decision counts: the same again is fine, another gets 409
/// `already_decided`. Never decide for a person who did not ask you to.
#[utoipa::path(post, path = "/v1/runs/{run_id}/approvals", operation_id = "decide_approval", tag = "actions",
    params(("run_id" = RunId, Path, description = "The run.")),
    request_body = Decision,
    responses((status = 202, description = "The decision counts; the run as it is now.", body = Run)))]
pub async fn decide_approval(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(APPROVALS, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(run) => Answer::replay(state.app.replayed_run(&caller, &run).await?),
        None => {
            let run_id = run_id.id()?;
            let verdict = body.read::<Decision>().and_then(|decision| Ok(decision.verdict()?));
            let verdict = state.run_first(&caller, run_id, verdict).await?;
            state.app.decide_approval(&caller, run_id, verdict, key.as_ref()).await?
        }
    };
    taken(&state, &caller, answer).await
}

/// The run that an answer was taken for.
pub(super) async fn taken(
    state: &ApiState,
    caller: &Caller,
    answer: Answer<RunRecord>,
) -> Result<Response, ApiError> {
    let run = state.app.view(caller, answer.value).await?;
    let response = reply::run_response(StatusCode::ACCEPTED, &run)?;
    Ok(reply::replayed(response, answer.replayed))
}

/// List open approvals
///
/// Every tool call, of any run, that waits for somebody to approve it: an inbox. Call this to show a
/// person what there is to decide, then answer with `POST /v1/runs/{run_id}/approvals`. Newest first; the
/// ids of this list are `call_id`s. A call of a child run is listed once, with the child's `run_id`. What was
/// decided, has expired or belongs to an ended run is not listed.
#[utoipa::path(get, path = "/v1/approvals", operation_id = "list_approvals", tag = "actions",
    params(PageQuery),
    responses((status = 200, description = "A page of open approvals.", body = ApprovalList)))]
pub async fn list_approvals(
    State(state): State<ApiState>,
    caller: Authenticated,
    query: Query,
) -> Result<Response, ApiError> {
    let page: Page<CallId> = query.read::<PageQuery>()?.page(Order::Desc)?;
    let listed = state.app.list_approvals(&caller, &page).await?;
    reply::json(StatusCode::OK, &ApprovalList::from(listed))
}

/// Something that a run's model should know.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SteerRunRequest, example = json!({"content": "Leave out the figures of October."}))]
pub struct Steering {
    /// A text, or a list of parts.
    content: Content,
}

/// A message that a run has taken.
#[derive(Debug, Serialize, ToSchema)]
pub struct SteeringTaken {
    /// The message's id; `input.received` and `input.applied` in the run's events have the same.
    message_id: MessageId,
}

/// Tell a run something
///
/// Steers a run that has not ended: its model reads `content` as a message of the user before its next
/// call. The event `input.received` comes at once, `input.applied` when the model gets to read it. A run
/// that would complete first makes one more step. A run that waits for `required_actions` goes on waiting.
/// An ended run gets 409 `run_ended`: start a new run, or fork this one.
#[utoipa::path(post, path = "/v1/runs/{run_id}/messages", operation_id = "steer_run", tag = "actions",
    params(("run_id" = RunId, Path, description = "The run.")),
    request_body = Steering,
    responses((status = 202, description = "The message is taken.", body = SteeringTaken)))]
pub async fn steer_run(
    State(state): State<ApiState>,
    caller: Authenticated,
    path: PathId<RunId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(MESSAGES, body.value())?;
    let run_id = path.id();
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(message) => Answer::replay(replayed_message(&message)?),
        None => {
            let run_id = run_id.clone()?;
            let steering = state.run_first(&caller, run_id, body.read::<Steering>()).await?;
            state.app.steer_run(&caller, run_id, steering.content, key.as_ref()).await?
        }
    };
    let taken = SteeringTaken { message_id: answer.value };
    let mut response = reply::json(StatusCode::ACCEPTED, &taken)?;
    if let Ok(run_id) = run_id {
        reply::set(&mut response, header::LOCATION, &state.app.links().run(run_id));
    }
    Ok(reply::replayed(response, answer.replayed))
}
