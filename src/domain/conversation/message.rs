//! What is said in a conversation, and what a run leaves behind in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::event::Event;
use crate::domain::fold::{self, Call, Folded};
use crate::domain::ids::{CallId, ConversationId, MessageId, RunId};
use crate::domain::message::{Content, Input, Role};
use crate::domain::model::{CallTurn, Turn};
use crate::domain::money::Usd;
use crate::domain::time::Timestamp;
use crate::domain::transcript;

/// A tool call that a message of the model asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageCall {
    /// The call.
    pub call_id: CallId,
    /// The tool.
    pub tool: String,
    /// What the model called it with.
    #[schema(value_type = Object)]
    pub arguments: Value,
}

/// A message of a conversation, before it has its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewMessage {
    /// Its id.
    pub message_id: MessageId,
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: Content,
    /// What the model wants called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<MessageCall>,
    /// The call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    /// The tool that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Whether that answer is a failure.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_error: bool,
    /// The run that said it, or was asked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The client's notes.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// When it entered the conversation.
    pub created_at: Timestamp,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Its id.
    pub message_id: MessageId,
    /// Its place in the conversation, from 0, without gaps.
    pub message_index: i32,
    /// Who says it: `user`, `assistant` (the model), `system`, or `tool` (the answer to a tool call).
    pub role: Role,
    /// What is said: text, or a list of parts.
    pub content: Content,
    /// The tool calls that the model asked for with it. Each is answered by a message of role `tool`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<MessageCall>,
    /// The tool call that it answers; only on messages of role `tool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<CallId>,
    /// The tool that answers; only on messages of role `tool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Whether that answer is a failure.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_error: bool,
    /// The run that said it or was asked it; left out for messages that were posted without a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// Your own notes.
    pub metadata: BTreeMap<String, String>,
    /// When it entered the conversation.
    pub created_at: Timestamp,
}

impl NewMessage {
    /// Something that a client or a model says.
    pub const fn new(
        message_id: MessageId,
        role: Role,
        content: Content,
        created_at: Timestamp,
    ) -> Self {
        Self {
            message_id,
            role,
            content,
            tool_calls: Vec::new(),
            call_id: None,
            tool: None,
            is_error: false,
            run_id: None,
            metadata: BTreeMap::new(),
            created_at,
        }
    }

    /// The message at its place.
    pub fn at(self, message_index: i32) -> Message {
        Message {
            message_id: self.message_id,
            message_index,
            role: self.role,
            content: self.content,
            tool_calls: self.tool_calls,
            call_id: self.call_id,
            tool: self.tool,
            is_error: self.is_error,
            run_id: self.run_id,
            metadata: self.metadata,
            created_at: self.created_at,
        }
    }
}

impl Message {
    /// The message as a model reads it.
    pub fn turn(self) -> Turn {
        match self.role {
            Role::User => Turn::User(self.content),
            Role::System => Turn::System(self.content.text().into_owned()),
            Role::Assistant => Turn::Assistant {
                content: self.content,
                // Only the run itself shows its provider what the provider had said in secret.
                provider_state: None,
                tool_calls: self.tool_calls.into_iter().map(MessageCall::turn).collect(),
            },
            Role::Tool => Turn::Tool {
                call_id: self.call_id.map(|id| id.to_string()).unwrap_or_default(),
                tool: self.tool.unwrap_or_default(),
                content: self.content.text().into_owned(),
                is_error: self.is_error,
            },
        }
    }
}

impl MessageCall {
    fn turn(self) -> CallTurn {
        CallTurn { call_id: self.call_id.to_string(), tool: self.tool, arguments: self.arguments }
    }
}

/// What facts of a run mean for its conversation. Written in the transaction of those facts.
#[derive(Debug, Clone, PartialEq)]
pub struct Spoken {
    /// Which conversation.
    pub conversation_id: ConversationId,
    /// When.
    pub at: Timestamp,
    /// What enters it, in order.
    pub messages: Vec<NewMessage>,
    /// Set when the run is over with it.
    pub ended: Option<Ended>,
}

/// The end of a run, for its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// What the run and its children cost; `None` when that is not known.
    pub cost: Option<Usd>,
}

impl Spoken {
    /// What these events, which `folded` has taken in, mean for the run's conversation: a step that is
    /// over leaves its messages behind, with every call answered; a run that is over ends its turn.
    pub fn of(
        folded: &Folded,
        run_id: RunId,
        events: &[Event],
        at: Timestamp,
    ) -> Option<Box<Self>> {
        let conversation_id = folded.conversation_id?;
        let mut messages = Vec::new();
        let mut ended = None;
        for event in events {
            match event {
                Event::StepCompleted(end) | Event::StepFailed(end) => {
                    let step = folded.steps.iter().rev().find(|turn| turn.step == end.step);
                    messages.extend(step.into_iter().flat_map(|turn| of_step(folded, turn, at)));
                }
                event if event.event_type().is_final() => {
                    messages.extend(unread(folded, at));
                    ended = Some(Ended { cost: folded.tree_cost_so_far() });
                }
                _ => {}
            }
        }
        if messages.is_empty() && ended.is_none() {
            return None;
        }
        for message in &mut messages {
            message.run_id = Some(run_id);
        }
        Some(Box::new(Self { conversation_id, at, messages, ended }))
    }

    /// This, and what came behind it.
    #[must_use]
    pub fn and(mut self: Box<Self>, later: Option<Box<Self>>) -> Box<Self> {
        if let Some(later) = later {
            self.messages.extend(later.messages);
            self.ended = self.ended.or(later.ended);
            self.at = later.at;
        }
        self
    }
}

/// What a run is asked, as it enters the conversation when the run's turn begins.
pub fn of_input(run_id: RunId, input: &Input, at: Timestamp) -> Vec<NewMessage> {
    (0..)
        .zip(input.messages())
        .map(|(n, message)| NewMessage {
            run_id: Some(run_id),
            ..NewMessage::new(input_id(run_id, n), message.role, message.content, at)
        })
        .collect()
}

/// The id of a run's `n`th input message: the run's own, counted on. Whoever writes it, however often
/// it is tried, gives it the same.
fn input_id(run_id: RunId, n: u128) -> MessageId {
    MessageId::from_uuid(Uuid::from_u128(run_id.uuid().as_u128().wrapping_add(n)))
}

/// The id of the message that answers a call: the call's own.
pub const fn answer_id(call_id: CallId) -> MessageId {
    MessageId::from_uuid(call_id.uuid())
}

/// What was said in a step, in the order in which its model and the next one read it.
fn of_step(folded: &Folded, turn: &fold::Turn, at: Timestamp) -> Vec<NewMessage> {
    let read = folded.steering.iter().filter(|s| s.applied_in == Some(turn.step));
    let mut messages: Vec<NewMessage> = read.map(|steering| said(steering, at)).collect();
    let Some(message) = &turn.message else { return messages };
    if message.content.is_empty() && turn.calls.is_empty() {
        return messages;
    }
    let content = Content::Text(message.content.clone());
    messages.push(NewMessage {
        tool_calls: turn.calls.iter().map(asked).collect(),
        ..NewMessage::new(message.message_id, Role::Assistant, content, at)
    });
    messages.extend(turn.calls.iter().map(|call| answered(call, at)));
    messages
}

/// What came in too late for the run's model: the next run's reads it.
fn unread(folded: &Folded, at: Timestamp) -> impl Iterator<Item = NewMessage> {
    let unread = folded.steering.iter().filter(|steering| steering.applied_in.is_none());
    unread.map(move |steering| said(steering, at))
}

fn said(steering: &fold::Steering, at: Timestamp) -> NewMessage {
    let input = &steering.input;
    NewMessage::new(input.message_id, Role::User, input.content.clone(), at)
}

fn asked(call: &Call) -> MessageCall {
    MessageCall {
        call_id: call.call_id,
        tool: call.tool.clone(),
        arguments: call.edited_from.as_ref().unwrap_or(&call.arguments).clone(),
    }
}

fn answered(call: &Call, at: Timestamp) -> NewMessage {
    let (content, is_error) = transcript::answer(call);
    NewMessage {
        call_id: Some(call.call_id),
        tool: Some(call.tool.clone()),
        is_error,
        ..NewMessage::new(answer_id(call.call_id), Role::Tool, Content::Text(content), at)
    }
}
