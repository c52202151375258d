//! Creating a run, and the three ways to get its answer.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::conversations::named_in_body;
use crate::api::auth::Authenticated;
use crate::api::extract::{JsonBody, PathId};
use crate::api::reply::{self, Mode};
use crate::api::{ApiError, ApiState, accept};
use crate::app::AppError;
use crate::app::idempotency::Answer;
use crate::app::runs::RunRequest;
use crate::domain::conversation::OnBusy;
use crate::domain::ids::{AgentId, ConversationId};
use crate::domain::message::Input;
use crate::domain::problem::Problems;
use crate::domain::run::{Run, RunConfig};

const CREATE: &str = "POST /v1/agents/{agent_id}/runs";

/// A run to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateRunRequest, example = json!({
    "input": "Analyze Q4 sales performance",
    "config": {"max_steps": 10, "max_cost_usd": 0.25},
    "end_user_id": "u_7", "metadata": {"ticket": "42"}
}))]
pub struct CreateRun {
    /// What the agent is to work on: a text, or a list of messages.
    input: Input,
    /// What this run changes about its agent, for itself alone. Limits only go down: of the agent's
    /// and the run's the smaller wins.
    #[serde(default)]
    config: Option<RunConfig>,
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
    /// The same as the header `Idempotency-Key`, for models that cannot set headers: derive it from
    /// what you want done, so that asking again for the same thing never does it twice.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    #[expect(dead_code, reason = "read before the body is, for a replay is answered first")]
    idempotency_key: Option<String>,
    /// A conversation with this agent, of which the run is to be a turn: it reads what was said there
    /// before. The same as `POST /v1/conversations/{conversation_id}/runs`.
    #[serde(default)]
    #[schema(value_type = Option<ConversationId>)]
    conversation_id: Option<String>,
    /// What happens when another run is under way in the conversation; `reject` when left out. Of no
    /// effect without a conversation.
    #[serde(default)]
    on_busy: Option<OnBusy>,
    /// Reserved for webhooks; must be null in this version.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    callback_url: Option<Value>,
    /// Reserved for webhooks; must be null in this version.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    callback_events: Option<Value>,
}

/// What a client's going away does to the run that it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// Nothing: the run goes on, and can be followed again.
    Continue,
    /// The run is cancelled.
    Cancel,
}

/// How long to wait for a run.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Hold the answer back for so many seconds until the run ends or needs somebody; above 60 is 60.
    #[param(value_type = Option<u64>, minimum = 0, example = 30)]
    pub wait: Option<String>,
}

/// Run an agent
///
/// Starts a run and answers in one of three ways; the run is the same and goes on whatever happens to
/// your connection. **Poll** (default): 202 with the run; follow `instructions`. **Wait**: send
/// `?wait=30` or `Prefer: wait=30` and get 200 as soon as the run has ended or needs somebody, or 202 if
/// that takes longer.
/// **Stream**: send `"stream": true` or `Accept: text/event-stream` and get its events as they happen.
/// Send an idempotency key that follows from what you want done: the same request then never starts
/// a second run, and gives you the first one as it is today. When the run ends `incomplete` or
/// `failed`, the answer is still 200: look at `status`, `result`, `error` and `incomplete_reason`. On
/// `requires_action` it waits for you or a person: answer each of its `required_actions`.
#[utoipa::path(post, path = "/v1/agents/{agent_id}/runs", operation_id = "create_run", tag = "runs",
    params(("agent_id" = AgentId, Path, description = "The agent to run."), WaitQuery,
        ("Prefer" = Option<String>, Header, description = "`wait=30`: the same as `?wait=30`.", example = "wait=30"),
        ("Last-Event-ID" = Option<String>, Header, description = "On a repeated streaming request: the id of the last event that you have.")),
    request_body = CreateRun,
    responses(
        (status = 202, description = "The run was created and goes on: look again after `retry_after_seconds`.", body = Run),
        (status = 200, description = "With `wait`: the run, which has ended or needs somebody. With `stream`: its events, from the first.",
            content((Run = "application/json"), (crate::api::openapi::events::StreamEvent = "text/event-stream")))))]
pub async fn create_run(
    State(state): State<ApiState>,
    caller: Authenticated,
    agent_id: PathId<AgentId>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key_also_in_body(CREATE, body.value())?;
    let replay = state.app.find_key(&caller, key.as_ref()).await?;
    let asked = read(body, &headers);
    let (answer, mode) = match replay {
        Some(run) => (Answer::replay(state.app.replayed_run(&caller, &run).await?), asked?.1),
        None => {
            let agent = state.app.current_agent(&caller, &agent_id.id()?).await?;
            let (mut request, mode, turn) = asked?;
            if let Some((conversation_id, on_busy)) = turn {
                let turn = state.app.turn_in(&caller, conversation_id, on_busy).await;
                let turn = turn.map_err(named_in_body)?;
                if turn.conversation.agent_id != agent.agent.agent_id {
                    let message = format!("is a conversation with {}", turn.conversation.agent_id);
                    return Err(AppError::invalid("/conversation_id", message).into());
                }
                request.turn = Some(turn);
            }
            (state.app.create_run(&caller, agent, request, key.as_ref()).await?, mode)
        }
    };
    reply::started(&state, &caller, answer, mode, &headers).await
}

/// What is asked for, and how to answer. Judged by the caller when its turn comes.
fn read(mut body: JsonBody, headers: &HeaderMap) -> Result<Asked, ApiError> {
    let wait = body.take_query().read::<WaitQuery>()?.wait;
    object_or_null(body.value())?;
    let run: CreateRun = body.read()?;
    supported(run.callback_url.as_ref(), run.callback_events.as_ref())?;
    let conversation_id = run.conversation_id.map(|id| {
        id.parse().map_err(|_| AppError::invalid("/conversation_id", "is not a conversation's id"))
    });
    let turn = conversation_id.transpose()?.map(|id| (id, run.on_busy.unwrap_or_default()));
    let mode = Mode {
        stream: run.stream.unwrap_or_else(|| accept::prefers_stream(headers)),
        wait: reply::wait(wait.as_deref(), headers)?,
        cancel_on_disconnect: run.on_disconnect == Some(OnDisconnect::Cancel),
    };
    let request = RunRequest {
        input: Some(run.input),
        turn: None,
        config: run.config.unwrap_or_default(),
        end_user_id: run.end_user_id,
        metadata: run.metadata.unwrap_or_default(),
    };
    Ok((request, mode, turn))
}

/// What is asked for, how to answer, and in which conversation.
type Asked = (RunRequest, Mode, Option<(ConversationId, OnBusy)>);

/// serde would read a list as a config, field by field.
pub(super) fn object_or_null(body: &Value) -> Result<(), AppError> {
    no_list(body, "config")
}

/// The same for another field.
pub(super) fn no_list(body: &Value, field: &str) -> Result<(), AppError> {
    match body.get(field) {
        Some(Value::Array(_)) => Err(AppError::invalid(format!("/{field}"), "must be an object")),
        _ => Ok(()),
    }
}

/// Fields of later versions may be sent with nothing in them.
pub(super) fn supported(
    callback_url: Option<&Value>,
    callback_events: Option<&Value>,
) -> Result<(), AppError> {
    for (pointer, value) in [("/callback_url", callback_url), ("/callback_events", callback_events)]
    {
        if value.is_some_and(|value| !is_nothing(value)) {
            return Err(unsupported(pointer));
        }
    }
    Ok(())
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn unsupported(pointer: &str) -> AppError {
    let message = "is not supported in this version: leave it out, or null";
    AppError::Invalid(Problems::one(pointer, message))
}
