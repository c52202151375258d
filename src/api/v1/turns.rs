//! Turns of conversations: runs in them, one question and its answer, results of tools.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::actions::ToolResult;
use super::create_run::{self, OnDisconnect, WaitQuery};
use crate::api::auth::Authenticated;
use crate::api::extract::{JsonBody, PathId};
use crate::api::reply::{self, Mode};
use crate::api::{ApiError, ApiState, accept};
use crate::app::idempotency::Answer;
use crate::app::runs::{RunRecord, RunRequest};
use crate::app::{AppError, Caller};
use crate::domain::conversation::OnBusy;
use crate::domain::ids::{ConversationId, MessageId, RunId};
use crate::domain::message::{Content, Input, InputMessage, Role};
use crate::domain::money::Usd;
use crate::domain::problem::Problems;
use crate::domain::run::{IncompleteReason, ResultView, Run, RunConfig, RunError, RunStatus};
use crate::domain::usage::Usage;

const RUNS: &str = "POST /v1/conversations/{conversation_id}/runs";
const COMPLETE: &str = "POST /v1/conversations/{conversation_id}/complete";
const TOOL_RESULTS: &str = "POST /v1/conversations/{conversation_id}/tool-results";

/// A turn to be taken.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateConversationRunRequest, example = json!({"input": "And in October?", "on_busy": "enqueue"}))]
pub struct CreateTurn {
    /// What is said to the agent: a text, or a list of messages. May be left out to answer the messages
    /// that are there.
    #[serde(default)]
    input: Option<Input>,
    /// What this run changes about its agent, on top of the conversation's `parameters`.
    #[serde(default)]
    config: Option<RunConfig>,
    /// What happens when another run is under way; `reject` when left out.
    #[serde(default)]
    on_busy: Option<OnBusy>,
    /// True: the answer is the run's event stream instead of JSON. Left out, `Accept` decides.
    #[serde(default)]
    stream: Option<bool>,
    /// What happens to the run when you close the connection of this request while it streams or
    /// waits. `continue` when left out: nothing.
    #[serde(default)]
    on_disconnect: Option<OnDisconnect>,
    /// Your own user, by whatever id you use; runs can be listed by it. At most 256 characters.
    #[serde(default)]
    end_user_id: Option<String>,
    /// Your own notes: at most 16 pairs of text. Runs can be listed by them.
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    /// The same as the header `Idempotency-Key`, for models that cannot set headers.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    #[expect(dead_code, reason = "read before the body is, for a replay is answered first")]
    idempotency_key: Option<String>,
    /// Reserved for webhooks; must be null in this version.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    callback_url: Option<Value>,
    /// Reserved for webhooks; must be null in this version.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    callback_events: Option<Value>,
}

/// Run the agent in a conversation
///
/// Takes a turn: the agent reads what was said before, then `input`. Answers in the same three ways as
/// `POST /v1/agents/{agent_id}/runs`: poll, wait, or stream. One run at a time: while another is under way
/// you get 409 `conversation_busy`, unless `on_busy` says to `enqueue` (wait for your turn; the run stays
/// `queued`) or to `interrupt` (that run is cancelled, and yours comes next). Send an idempotency key
/// that follows from what you want done: the same request then never takes a second turn.
#[utoipa::path(post, path = "/v1/conversations/{conversation_id}/runs", operation_id = "create_conversation_run", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation."), WaitQuery,
        ("Prefer" = Option<String>, Header, description = "`wait=30`: the same as `?wait=30`.", example = "wait=30"),
        ("Last-Event-ID" = Option<String>, Header, description = "On a repeated streaming request: the id of the last event that you have.")),
    request_body = Option<CreateTurn>,
    responses(
        (status = 202, description = "The run was created and goes on, or waits for its turn: look again after `retry_after_seconds`.", body = Run),
        (status = 200, description = "With `wait`: the run, which has ended or needs somebody. With `stream`: its events, from the first.",
            content((Run = "application/json"), (crate::api::openapi::events::StreamEvent = "text/event-stream")))))]
pub async fn create_conversation_run(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key_also_in_body(RUNS, body.value())?;
    let replay = state.app.find_key(&caller, key.as_ref()).await?;
    let asked = read(body, &headers);
    let (answer, mode) = match replay {
        Some(run) => (Answer::replay(state.app.replayed_run(&caller, &run).await?), asked?.1),
        None => {
            let id = conversation_id.id()?;
            let (asked, mode) = state.conversation_first(&caller, id, asked).await?;
            let request = asked.request(&state, &caller, id).await?;
            (state.app.create_turn(&caller, request, key.as_ref()).await?, mode)
        }
    };
    reply::started(&state, &caller, answer, mode, &headers).await
}

/// A turn as it was read; its conversation is looked up when everything else is in order.
#[derive(Debug)]
struct Asked {
    input: Option<Input>,
    config: RunConfig,
    on_busy: OnBusy,
    end_user_id: Option<String>,
    metadata: BTreeMap<String, String>,
}

impl Asked {
    async fn request(
        self,
        state: &ApiState,
        caller: &Caller,
        id: ConversationId,
    ) -> Result<RunRequest, ApiError> {
        let turn = state.app.turn_in(caller, id, self.on_busy).await?;
        Ok(RunRequest {
            input: self.input,
            turn: Some(turn),
            config: self.config,
            end_user_id: self.end_user_id,
            metadata: self.metadata,
        })
    }
}

fn read(mut body: JsonBody, headers: &HeaderMap) -> Result<(Asked, Mode), ApiError> {
    let wait = body.take_query().read::<WaitQuery>()?.wait;
    create_run::no_list(body.value(), "config")?;
    let turn: CreateTurn = body.read_or_empty()?;
    create_run::supported(turn.callback_url.as_ref(), turn.callback_events.as_ref())?;
    let mode = Mode {
        stream: turn.stream.unwrap_or_else(|| accept::prefers_stream(headers)),
        wait: reply::wait(wait.as_deref(), headers)?,
        cancel_on_disconnect: turn.on_disconnect == Some(OnDisconnect::Cancel),
    };
    let asked = Asked {
        input: turn.input,
        config: turn.config.unwrap_or_default(),
        on_busy: turn.on_busy.unwrap_or_default(),
        end_user_id: turn.end_user_id,
        metadata: turn.metadata.unwrap_or_default(),
    };
    Ok((asked, mode))
}

/// A question to be answered.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CompleteRequest, example = json!({"content": "What did I order last week?"}))]
pub struct Complete {
    /// What the user says: a text, or a list of parts. May be left out to answer the messages that are
    /// there.
    #[serde(default)]
    content: Option<Content>,
    /// What this turn changes about the agent, on top of the conversation's `parameters`.
    #[serde(default)]
    config: Option<RunConfig>,
    /// What happens when another run is under way; `reject` when left out.
    #[serde(default)]
    on_busy: Option<OnBusy>,
    /// Your own notes about the run: at most 16 pairs of text.
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    /// The same as the header `Idempotency-Key`, for models that cannot set headers.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    #[expect(dead_code, reason = "read before the body is, for a replay is answered first")]
    idempotency_key: Option<String>,
}

/// The answer of one turn.
#[derive(Debug, Serialize, ToSchema)]
pub struct Completion {
    /// What the agent answers; null when the run failed or said nothing.
    response: Option<String>,
    /// The run of this turn.
    run_id: RunId,
    /// The message that answers, in the conversation; null when there is none.
    message_id: Option<MessageId>,
    /// Tokens of the whole turn.
    usage: Usage,
    /// What the turn cost; null when a model that it used has no price.
    cost_usd: Option<Usd>,
    /// The model, in full.
    model: String,
    /// Why the turn is over. Anything but `stop` means that the answer is not all that it could be.
    finish_reason: TurnEnd,
    /// Why it failed; null unless `finish_reason` is `error`.
    error: Option<RunError>,
}

/// Why a turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnEnd {
    /// The agent has said everything.
    Stop,
    /// The model hit `max_output_tokens`.
    Length,
    /// The provider withheld the answer.
    ContentFilter,
    /// `max_steps` were used.
    MaxSteps,
    /// `max_total_tokens` were used.
    MaxTotalTokens,
    /// The run's log is as long as a log may be.
    LogSize,
    /// A spend cap would have been passed.
    Budget,
    /// The run failed: see `error`.
    Error,
    /// Somebody cancelled or interrupted it.
    Cancelled,
    /// `timeout_seconds` of the agent had passed.
    Expired,
}

impl TurnEnd {
    const fn of(status: RunStatus, reason: Option<IncompleteReason>) -> Self {
        match (status, reason) {
            (RunStatus::Failed, _) => Self::Error,
            (RunStatus::Cancelled, _) => Self::Cancelled,
            (RunStatus::Expired, _) => Self::Expired,
            (_, Some(IncompleteReason::MaxSteps)) => Self::MaxSteps,
            (_, Some(IncompleteReason::Budget)) => Self::Budget,
            (_, Some(IncompleteReason::MaxTotalTokens)) => Self::MaxTotalTokens,
            (_, Some(IncompleteReason::MaxOutputTokens)) => Self::Length,
            (_, Some(IncompleteReason::ContentFilter)) => Self::ContentFilter,
            (_, Some(IncompleteReason::LogSize)) => Self::LogSize,
            (_, None) => Self::Stop,
        }
    }
}

/// Take one turn and wait for the answer
///
/// The simplest way to talk to an agent: send `content`, get `response`. The request is held for up to
/// 60 s (or `Prefer: wait=`, at most 60); a turn that takes longer, or needs somebody (an approval, a
/// tool of yours), gets 202 with the run instead: follow its `instructions`, and find the answer in its
/// `result` or among the messages. A turn that fails is a 200 with `response` null and `error`. While
/// another run is under way you get 409 `conversation_busy`, unless `on_busy` says otherwise. Send an
/// idempotency key that follows from what is asked: the same request then never takes a second turn, and
/// gets the first one's answer.
#[utoipa::path(post, path = "/v1/conversations/{conversation_id}/complete", operation_id = "complete_conversation", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation."), WaitQuery,
        ("Prefer" = Option<String>, Header, description = "`wait=30`: wait no longer than that.", example = "wait=30")),
    request_body = Option<Complete>,
    responses((status = 200, description = "The answer.", body = Completion),
        (status = 202, description = "The run takes longer, or needs somebody.", body = Run)))]
pub async fn complete_conversation(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key_also_in_body(COMPLETE, body.value())?;
    let replay = state.app.find_key(&caller, key.as_ref()).await?;
    let asked = read_question(body, &headers);
    let (answer, wait) = match replay {
        Some(run) => (Answer::replay(state.app.replayed_run(&caller, &run).await?), asked?.1),
        None => {
            let id = conversation_id.id()?;
            let (asked, wait) = state.conversation_first(&caller, id, asked).await?;
            let request = asked.request(&state, &caller, id).await?;
            (state.app.create_turn(&caller, request, key.as_ref()).await?, wait)
        }
    };
    let (run_id, replayed) = (answer.value.row.run_id, answer.replayed);
    let record = reply::settled(&state, &caller, run_id, wait).await?;
    let mut response = if record.row.status.is_final() {
        completed(&state, &caller, record).await?
    } else {
        let run = state.app.view(&caller, record).await?;
        reply::run_response(StatusCode::ACCEPTED, &run)?
    };
    reply::set(&mut response, header::LOCATION, &state.app.links().run(run_id));
    Ok(reply::replayed(response, replayed))
}

fn read_question(
    mut body: JsonBody,
    headers: &HeaderMap,
) -> Result<(Asked, std::time::Duration), ApiError> {
    let wait = body.take_query().read::<WaitQuery>()?.wait;
    create_run::no_list(body.value(), "config")?;
    let question: Complete = body.read_or_empty()?;
    let mut problems = Problems::new();
    if let Some(content) = &question.content {
        content.check("/content", &mut problems);
    }
    problems.into_result().map_err(AppError::Invalid)?;
    let said_how_long = wait.is_some() || accept::preferred_wait(headers).is_some();
    let wait =
        if said_how_long { reply::wait(wait.as_deref(), headers)? } else { accept::MAX_WAIT };
    let said = |content| vec![InputMessage { role: Role::User, content }];
    let asked = Asked {
        input: question.content.map(|content| match content {
            Content::Text(text) => Input::Text(text),
            parts @ Content::Parts(_) => Input::Messages(said(parts)),
        }),
        config: question.config.unwrap_or_default(),
        on_busy: question.on_busy.unwrap_or_default(),
        end_user_id: None,
        metadata: question.metadata.unwrap_or_default(),
    };
    Ok((asked, wait))
}

async fn completed(
    state: &ApiState,
    caller: &Caller,
    record: RunRecord,
) -> Result<Response, ApiError> {
    let message_id = state.app.answer_of(caller, record.row.run_id).await?;
    let run = state.app.view(caller, record).await?;
    let failed = run.status == RunStatus::Failed;
    let response = match run.result {
        ResultView::Shown(Some(result)) if !failed => Some(result.content),
        ResultView::Shown(_) | ResultView::LeftOut => None,
    };
    let completion = Completion {
        response,
        run_id: run.run_id,
        message_id,
        usage: run.usage,
        cost_usd: run.cost_usd,
        model: run.model,
        finish_reason: TurnEnd::of(run.status, run.incomplete_reason),
        error: run.error,
    };
    reply::json(StatusCode::OK, &completion)
}

/// Post a tool's result to a conversation
///
/// The same as `POST /v1/runs/{run_id}/tool-results`, for callers that only know the conversation: the
/// result goes to the run that waits for `call_id`. A call that no run of it waits for gets 404. The
/// same result again is fine, however far the conversation is by then; another one gets 409
/// `already_decided`.
#[utoipa::path(post, path = "/v1/conversations/{conversation_id}/tool-results", operation_id = "post_conversation_tool_result", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation.")),
    request_body = ToolResult,
    responses((status = 202, description = "The result is taken; the run as it is now.", body = Run)))]
pub async fn post_conversation_tool_result(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(TOOL_RESULTS, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(run) => Answer::replay(state.app.replayed_run(&caller, &run).await?),
        None => {
            let id = conversation_id.id()?;
            let report = body.read::<ToolResult>().and_then(|result| Ok(result.report()?));
            let report = state.conversation_first(&caller, id, report).await?;
            state.app.post_tool_result_to(&caller, id, report, key.as_ref()).await?
        }
    };
    super::actions::taken(&state, &caller, answer).await
}
