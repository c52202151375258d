//! Messages of conversations.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::auth::Authenticated;
use crate::api::extract::{JsonBody, PathId};
use crate::api::pages::{MessageList, PageQuery};
use crate::api::query::Query;
use crate::api::{ApiError, ApiState, reply};
use crate::app::AppError;
use crate::app::conversations::messages::MessageRequest;
use crate::app::idempotency::Answer;
use crate::app::turns::ToolMessage;
use crate::domain::conversation::message::Message;
use crate::domain::ids::{CallId, ConversationId};
use crate::domain::message::{Content, Role};
use crate::domain::page::Order;

const POST: &str = "POST /v1/conversations/{conversation_id}/messages";

/// A message to be stored.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PostMessageRequest, example = json!({"role": "user", "content": "My order number is 4711."}))]
pub struct PostMessage {
    /// Who says it. `tool`: the answer to the tool call `call_id`, which the active run waits for.
    role: Role,
    /// A text, or a list of parts.
    content: Content,
    /// With `role: tool`, and only then: the call, from `required_actions` of the active run.
    #[serde(default)]
    call_id: Option<String>,
    /// Another word for `call_id`.
    #[serde(default)]
    tool_call_id: Option<String>,
    /// Your own notes: at most 16 pairs of text.
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
}

/// What a message is, once it is read.
enum Said {
    Message(MessageRequest),
    Tool(ToolMessage),
}

impl PostMessage {
    fn said(self) -> Result<Said, ApiError> {
        let call = self.call_id.or(self.tool_call_id);
        let metadata = self.metadata.unwrap_or_default();
        if self.role != Role::Tool {
            if call.is_some() {
                return Err(AppError::invalid("/call_id", "goes with role: tool").into());
            }
            let (role, content) = (self.role, self.content);
            return Ok(Said::Message(MessageRequest { role, content, metadata }));
        }
        if !metadata.is_empty() {
            let why = "cannot be kept with a tool's answer, which belongs to its run";
            return Err(AppError::invalid("/metadata", why).into());
        }
        let refuse = |why: &str| ApiError::from(AppError::invalid("/call_id", why));
        let call = call.ok_or_else(|| refuse("is required with role: tool"))?;
        let call_id: CallId = call.parse().map_err(|_| refuse("is not the id of a call"))?;
        Ok(Said::Tool(ToolMessage { call_id, content: self.content }))
    }
}

/// Post a message
///
/// Stores a message in the conversation and starts nothing: the next run reads it. Call this to tell the
/// agent something that needs no answer yet, or to bring in what was said elsewhere; for an answer, call
/// `…/complete` or `…/runs`. With `role: tool` it is the result of a call that the active run waits for,
/// as `…/tool-results` takes it: the run goes on. While a run is under way other messages get 409
/// `conversation_busy`: steer that run (`POST /v1/runs/{run_id}/messages`), or wait.
#[utoipa::path(post, path = "/v1/conversations/{conversation_id}/messages", operation_id = "post_message", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation.")),
    request_body = PostMessage,
    responses((status = 201, description = "The message, in its place.", body = Message)))]
pub async fn post_message(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(POST, body.value())?;
    let id = conversation_id.id();
    let named = id.as_ref().ok().copied();
    let replay = state.app.find_key(&caller, key.as_ref()).await?;
    let answer = match replay {
        // The key of a tool's answer stands for its run; what was said is in the request.
        Some(resource) if !resource.starts_with("run_") => {
            Answer::replay(state.app.replayed_message_of(&caller, id?, &resource).await?)
        }
        replay => {
            let id = id?;
            let said = body.read::<PostMessage>().and_then(PostMessage::said);
            match state.conversation_first(&caller, id, said).await? {
                Said::Message(request) => {
                    state.app.post_message(&caller, id, request, key.as_ref()).await?
                }
                Said::Tool(message) if replay.is_some() => {
                    Answer::replay(state.app.tool_message(&caller, id, message).await?)
                }
                Said::Tool(message) => {
                    state.app.post_tool_message(&caller, id, message, key.as_ref()).await?
                }
            }
        }
    };
    let mut response = reply::json(StatusCode::CREATED, &answer.value)?;
    if let Some(id) = named {
        let location = format!("{}/messages", state.app.links().conversation(id));
        reply::set(&mut response, header::LOCATION, &location);
    }
    Ok(reply::replayed(response, answer.replayed))
}

/// List messages
///
/// What was said in the conversation, oldest first: messages that were posted, and of each run its
/// input, the model's answers with their tool calls, and what the tools answered. A run's input enters as
/// its turn begins, the rest as each of its steps ends. The ids of this list are `message_id`s.
#[utoipa::path(get, path = "/v1/conversations/{conversation_id}/messages", operation_id = "list_messages", tag = "conversations",
    params(("conversation_id" = ConversationId, Path, description = "The conversation."), PageQuery),
    responses((status = 200, description = "A page of messages.", body = MessageList)))]
pub async fn list_messages(
    State(state): State<ApiState>,
    caller: Authenticated,
    conversation_id: PathId<ConversationId>,
    query: Query,
) -> Result<Response, ApiError> {
    let id = conversation_id.id()?;
    let page = query.read::<PageQuery>().and_then(|query| query.page(Order::Asc));
    let page = state.conversation_first(&caller, id, page).await?;
    let listed = state.app.list_messages(&caller, id, &page).await?;
    reply::json(StatusCode::OK, &MessageList::from(listed))
}
