//! Conversations: create, list, read, change, close, keep alive, delete.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::auth::Authenticated;
use crate::api::extract::{JsonBody, PathId};
use crate::api::pages::{ConversationList, PageQuery};
use crate::api::query::{self, Both, Query};
use crate::api::{ApiError, ApiState, reply};
use crate::app::conversations::ConversationRequest;
use crate::app::idempotency::Answer;
use crate::app::{AppError, Caller, Sought};
use crate::domain::conversation::{ConversationView, DEFAULT_TIMEOUT_SECONDS};
use crate::domain::ids::{AgentId, ConversationId};
use crate::domain::page::{Order, Page};
use crate::domain::run::RunConfig;
use crate::domain::time::Timestamp;

const CREATE: &str = "POST /v1/conversations";
const UPDATE: &str = "PATCH /v1/conversations/{conversation_id}";
const CLOSE: &str = "POST /v1/conversations/{conversation_id}/close";
const HEARTBEAT: &str = "POST /v1/conversations/{conversation_id}/heartbeat";
const DELETE: &str = "DELETE /v1/conversations/{conversation_id}";

/// A conversation to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateConversationRequest, example = json!({
    "agent_id": "support", "system_prompt": "The customer is Ada. She pays with a card.",
    "metadata": {"customer": "c_7"}
}))]
pub struct CreateConversation {
    /// The agent that answers in it. Each run is of the agent's version at that time.
    agent_id: AgentId,
    /// Instructions behind the agent's own, for this conversation alone.
    #[serde(default)]
    system_prompt: Option<String>,
    /// The default `config` of its runs. Limits only go down; `max_cost_usd` caps all runs of the
    /// conversation together.
    #[serde(default)]
    parameters: Option<RunConfig>,
    /// Your own notes: at most 16 pairs of text.
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
    /// Seconds without messages, runs and heartbeats after which it expires, for good; null means
    /// never. 1800 when left out.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 31_536_000, default = 1_800)]
    timeout_seconds: Given<u32>,
}

/// A field that may be left out, be null, or have a value: all three mean something else.
#[derive(Debug, Default)]
enum Given<T> {
    #[default]
    LeftOut,
    Null,
    Value(T),
}

fn given<'de, D, T>(deserializer: D) -> Result<Given<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.map_or(Given::Null, Given::Value))
}

impl CreateConversation {
    fn request(self) -> ConversationRequest {
        ConversationRequest {
            agent_id: self.agent_id,
            system_prompt: self.system_prompt,
            parameters: self.parameters.unwrap_or_default(),
            metadata: self.metadata.unwrap_or_default(),
            timeout_seconds: match self.timeout_seconds {
                Given::LeftOut => Some(DEFAULT_TIMEOUT_SECONDS),
                Given::Null => None,
                Given::Value(seconds) => Some(seconds),
            },
        }
    }
}

/// Create a conversation
///
/// Call this when an agent is to remember what was said before: each run in a conversation reads the
/// messages of those before it. Then take turns with `POST /v1/conversations/{conversation_id}/complete`
/// (one question, one answer) or `…/runs` (streams, tools, long work). One run at a time: `on_busy` says
/// what becomes of another. A conversation in which nothing happens for `timeout_seconds` expires; call
/// `…/heartbeat` to keep it open while somebody thinks.
#[utoipa::path(post, path = "/v1/conversations", operation_id = "create_conversation", tag = "conversations",
    request_body = CreateConversation,
    responses((status = 201, description = "The conversation.", body = ConversationView)))]
pub async fn create_conversation(
    State(state): State<ApiState>,
    caller: Authenticated,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(CREATE, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(id) => Answer::replay(state.app.replayed_conversation(&caller, &id).await?),
        None => {
            super::create_run::no_list(body.value(), "parameters")?;
            let request = body.read::<CreateConversation>()?.request();
            state.app.create_conversation(&caller, request, key.as_ref()).await?
        }
    };
    let mut response = reply::json(StatusCode::CREATED, &answer.value)?;
    let location = state.app.links().conversation(answer.value.conversation_id);
    reply::set(&mut response, header::LOCATION, &location);
    Ok(reply::replayed(response, answer.replayed))
}

/// Which conversations to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ConversationsQuery {
    /// Conversations with this agent.
    agent_id: Option<String>,
}

/// List conversations
///
/// Newest first. Closed and expired ones are listed too, until they are deleted.
#[utoipa::path(get, path = "/v1/conversations", operation_id = "list_conversations", tag = "conversations",
    params(PageQuery, ConversationsQuery),
    responses((status = 200, description = "A page of conversations.", body = ConversationList)))]
pub async fn list_conversations(
    State(state): State<ApiState>,
    caller: Authenticated,
    query: Query,
) -> Result<Response, ApiError> {
    let Both(page, filter) = query.read_both::<PageQuery, ConversationsQuery>()?;
    let page: Page<ConversationId> = page.page(Order::Desc)?;
    let agent_id: Option<AgentId> =
        query::parse("agent_id", filter.agent_id.as_deref(), "must be an agent_id")?;
    let listed = state.app.list_conversations(&caller, agent_id.as_ref(), &page).await?;
    reply::json(StatusCode::OK, &ConversationList::from(listed))
}

/// Get a conversation
///
/// Call this to see whether it is `open`, and whose turn it is: `active_run_id`. Its messages are at
/// `…/messages`.
#[utoipa::path(get, path = "/v1/conversations/{conversation_id}", operation_id = "get_conversation", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation.")),
    responses((status = 200, description = "The conversation.", body = ConversationView)))]
pub async fn get_conversation(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    query: Query,
) -> Result<Response, ApiError> {
    let id = conversation_id.id()?;
    state.conversation_first(&caller, id, query.nothing()).await?;
    reply::json(StatusCode::OK, &state.app.get_conversation(&caller, id).await?)
}

/// What can be changed about a conversation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = UpdateConversationRequest, example = json!({"metadata": {"topic": "refund"}}))]
pub struct UpdateConversation {
    /// Your own notes, as a JSON Merge Patch: a key with null goes, keys that are left out stay; null
    /// takes back all of them.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<BTreeMap<String, Option<String>>>)]
    metadata: Given<BTreeMap<String, Option<String>>>,
}

/// Change a conversation
///
/// Changes its metadata, in any status. Nothing else can be changed: who answers, and with which
/// instructions, is settled when it is created.
#[utoipa::path(patch, path = "/v1/conversations/{conversation_id}", operation_id = "update_conversation", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation.")),
    request_body = UpdateConversation,
    responses((status = 200, description = "The conversation as it is now.", body = ConversationView)))]
pub async fn update_conversation(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(UPDATE, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(id) => Answer::replay(state.app.replayed_conversation(&caller, &id).await?),
        None => {
            let id = conversation_id.id()?;
            let patch = body.read::<UpdateConversation>();
            let patch = state.conversation_first(&caller, id, patch).await?;
            let patch = match patch.metadata {
                Given::LeftOut => Some(BTreeMap::new()),
                Given::Null => None,
                Given::Value(patch) => Some(patch),
            };
            state.app.patch_conversation(&caller, id, patch, key.as_ref()).await?
        }
    };
    Ok(reply::replayed(reply::json(StatusCode::OK, &answer.value)?, answer.replayed))
}

/// Close a conversation
///
/// Call this when nothing more is to be said: new turns get 409 `conversation_closed` from then on. Its
/// active run finishes, runs that wait are cancelled, its history stays readable. There is no way back.
/// Closing again is fine.
#[utoipa::path(post, path = "/v1/conversations/{conversation_id}/close", operation_id = "close_conversation", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation.")),
    responses((status = 200, description = "The conversation as it is now.", body = ConversationView)))]
pub async fn close_conversation(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(CLOSE, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(id) => Answer::replay(state.app.replayed_conversation(&caller, &id).await?),
        None => {
            let id = conversation_id.id()?;
            state.conversation_first(&caller, id, body.nothing()).await?;
            state.app.close_conversation(&caller, id, key.as_ref()).await?
        }
    };
    Ok(reply::replayed(reply::json(StatusCode::OK, &answer.value)?, answer.replayed))
}

/// A conversation that lives on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Heartbeat {
    /// `alive`.
    status: Alive,
    /// When it expires if nothing happens until then; null when it does not: without
    /// `timeout_seconds`, and while a run is under way or waits.
    expires_at: Option<Timestamp>,
}

/// What a heartbeat finds.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Alive {
    /// The conversation takes new turns.
    Alive,
}

/// Keep a conversation alive
///
/// Call this now and then while a person reads or writes, so that the conversation does not expire:
/// it stays open for another `timeout_seconds`. 409 `conversation_closed` or `conversation_expired` says
/// that it is over: start a new one.
#[utoipa::path(post, path = "/v1/conversations/{conversation_id}/heartbeat", operation_id = "keep_conversation", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation.")),
    responses((status = 200, description = "It is open.", body = Heartbeat)))]
pub async fn keep_conversation(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(HEARTBEAT, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(id) => Answer::replay(state.app.replayed_conversation(&caller, &id).await?),
        None => {
            let id = conversation_id.id()?;
            state.conversation_first(&caller, id, body.nothing()).await?;
            state.app.keep_conversation(&caller, id, key.as_ref()).await?
        }
    };
    let heartbeat = Heartbeat { status: Alive::Alive, expires_at: answer.value.expires_at };
    Ok(reply::replayed(reply::json(StatusCode::OK, &heartbeat)?, answer.replayed))
}

/// Delete a conversation
///
/// Erases it with its messages and runs, and the runs that these called, for good. While a run is under way or waits it gets 409
/// `conversation_busy`: cancel that run first, or wait for it.
#[utoipa::path(delete, path = "/v1/conversations/{conversation_id}", operation_id = "delete_conversation", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation.")),
    responses((status = 204, description = "The conversation is gone.")))]
pub async fn delete_conversation(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(DELETE, body.value())?;
    if state.app.find_key(&caller, key.as_ref()).await?.is_some() {
        return Ok(reply::no_content(&Answer::replay(())));
    }
    let id = conversation_id.id()?;
    state.conversation_first(&caller, id, body.nothing()).await?;
    let answer = state.app.erase_conversation(&caller, id, key.as_ref()).await?;
    Ok(reply::no_content(&answer))
}

impl ApiState {
    /// What was read from a request about a conversation; when it cannot be read, a conversation that
    /// is not there is told first.
    ///
    /// # Errors
    /// `not_found`, or the one that came in.
    pub async fn conversation_first<T, E: Into<ApiError>>(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        read: Result<T, E>,
    ) -> Result<T, ApiError> {
        match read {
            Ok(read) => Ok(read),
            Err(error) => {
                self.app.get_conversation(caller, conversation_id).await?;
                Err(error.into())
            }
        }
    }
}

/// A conversation that a body names: one that is not there is no missing path.
pub(super) fn named_in_body(error: AppError) -> AppError {
    match error {
        AppError::NotFound(Sought::Conversation) => {
            AppError::invalid("/conversation_id", "there is no such conversation")
        }
        other => other,
    }
}
