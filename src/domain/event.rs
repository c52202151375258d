//! Events: the entries of a run's log, and the exact text that readers get.
//!
//! A stored event is one line of JSON: `type`, `seq`, `run_id`, `created_at`, then the fields of its
//! type. It is serialised once, written once and sent as it is, to everyone. Its JSON only ever
//! grows: `tests/it/corpus` keeps old ones, which must stay readable.
//!
//! *Facts* are what the fold needs; *deltas* are only for the eye, and may go by retention.

use std::fmt::Write as _;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::ids::{AgentId, CallId, ConversationId, MessageId, RunId};
use super::message::{Content, Input, Role};
use super::model::FinishReason;
use super::money::Usd;
use super::run::{IncompleteReason, RequiredAction, RunError, RunResult, RunStatus};
use super::time::Timestamp;
use super::tool::Effect;
use super::usage::Usage;

/// The run exists. Always `seq` 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunQueued {
    /// `queued`.
    pub status: RunStatus,
    /// The agent.
    pub agent_id: AgentId,
    /// The version that the run is pinned to.
    pub agent_version: i32,
    /// The model, in full.
    pub model: String,
    /// What the run was started with.
    pub input: Input,
    /// The conversation that it belongs to.
    pub conversation_id: Option<ConversationId>,
    /// The run that called this one as a tool.
    pub parent_run_id: Option<RunId>,
    /// The run that this one was forked from.
    pub forked_from_run_id: Option<RunId>,
    /// How many runs are above it; left out for 0, a run that no other run called.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The run's status changed: an engine has begun, or a cancel was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusChanged {
    /// The status from here on.
    pub status: RunStatus,
}

/// Nothing executes; somebody must answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunRequiresAction {
    /// `requires_action`.
    pub status: RunStatus,
    /// What must be answered.
    pub required_actions: Vec<RequiredAction>,
}

/// The run is over. The last event of every run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunEnded {
    /// How it ended.
    pub status: RunStatus,
    /// The answer; a run that ended early keeps its last completed text.
    pub result: Option<RunResult>,
    /// Why it failed; null unless it did.
    pub error: Option<RunError>,
    /// At which limit it ended; null unless it is `incomplete`.
    pub incomplete_reason: Option<IncompleteReason>,
    /// Tokens of all steps.
    pub usage: Usage,
    /// What all steps cost; null when a used model has no price.
    pub cost_usd: Option<Usd>,
    /// Steps that are over.
    pub steps_completed: i32,
}

/// A step began: the model is called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepStarted {
    /// Its number, from 1.
    pub step: i32,
    /// 1: the first attempt.
    pub attempt: i32,
    /// The model.
    pub model: String,
    /// How many of the oldest messages of its conversation the model does not see in this step, because
    /// they do not fit (`max_context_tokens`); the conversation keeps them. 0: it sees all.
    pub dropped_messages: i32,
    /// The share of `max_steps` used.
    pub progress_percent: u8,
    /// What the run is doing, in a few words.
    pub status_message: String,
}

/// The step's model is called again. What the step showed from `discard_from_seq` on is void.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepRestarted {
    /// The step.
    pub step: i32,
    /// The attempt that begins.
    pub attempt: i32,
    /// Forget the step's text from this `seq` on.
    pub discard_from_seq: i32,
    /// When the provider said that the prompt is too long: how many of the oldest messages of its
    /// conversation the model does not see from this attempt on. Left out when that stays as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_messages: Option<i32>,
}

/// A step is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepEnded {
    /// The step.
    pub step: i32,
    /// From its beginning, in milliseconds.
    pub duration_ms: u64,
    /// Tokens of this step.
    pub usage: Usage,
    /// What this step cost; null without a price.
    pub cost_usd: Option<Usd>,
    /// Tokens of the run so far.
    pub run_usage: Usage,
    /// What the run cost so far; null when a used model has no price.
    pub run_cost_usd: Option<Usd>,
    /// Why it failed; null unless it did.
    pub error: Option<RunError>,
}

/// A piece of text, as the model wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delta {
    /// The step.
    pub step: i32,
    /// The piece; append it.
    pub content: String,
}

/// A whole message of the model. Stands for its deltas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MessageCompleted {
    /// The step.
    pub step: i32,
    /// The message's id.
    pub message_id: MessageId,
    /// `assistant`.
    pub role: Role,
    /// Its text; empty when the model only called tools.
    pub content: String,
    /// Its reasoning, where the provider shows it.
    pub reasoning: Option<String>,
    /// Why the model stopped.
    pub finish_reason: FinishReason,
    /// Tokens of the model call, the same that the step's end reports.
    pub model_usage: Usage,
    /// What the model call cost; null without a price.
    pub model_cost_usd: Option<Usd>,
    /// Opaque: what this provider wants back untouched with the next request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_state: Option<Value>,
}

/// What a call must wait for before it can be made or answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Awaits {
    /// Somebody's leave.
    Approval,
    /// The caller's result.
    Client,
}

/// The model asked for a tool call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallCreated {
    /// The step.
    pub step: i32,
    /// The call's id.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// Its arguments; the raw text where the model wrote no JSON object.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// What a call of the tool does to the world.
    pub effect: Effect,
    /// What it waits for; null when it is made at once.
    pub awaits: Option<Awaits>,
    /// Until when the caller may post the result (`awaits: client`); null otherwise.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
}

/// The call is being made. Durable before anything is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallStarted {
    /// The step.
    pub step: i32,
    /// The call.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// Which time, from 1.
    pub attempt: i32,
    /// The run that answers the call, for tools of type `agent`: it has a log of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_run_id: Option<RunId>,
    /// The most that the child run and its own children may cost, when this run has a cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_max_cost_usd: Option<Usd>,
}

/// The call was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallCompleted {
    /// The step.
    pub step: i32,
    /// The call.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// What came back.
    pub result: Value,
    /// From the call to its answer, in milliseconds.
    pub duration_ms: u64,
    /// What the child run and its own children cost, for tools of type `agent`; left out when
    /// a model that they used has no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_cost_usd: Option<Usd>,
}

/// The call failed. The model is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallFailed {
    /// The step.
    pub step: i32,
    /// The call.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// Why, in words for the model.
    pub error: String,
    /// From the call to its answer, in milliseconds.
    pub duration_ms: u64,
    /// True when the server had to answer for the tool, because the run stopped.
    #[serde(default)]
    pub synthetic: bool,
    /// What the child run and its own children cost, for tools of type `agent`; left out when
    /// that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_cost_usd: Option<Usd>,
}

/// A call was made and no answer came back: it may or may not have happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCallOutcomeUnknown {
    /// The step.
    pub step: i32,
    /// The call.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
}

/// What somebody decided about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalDecision {
    /// Make it.
    Approve,
    /// Do not make it; the model is told.
    Deny,
}

/// A call's approval: asked for, decided, or too late.
///
/// Also decided behind `tool_call.outcome_unknown`: somebody wants the call made again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    /// The step.
    pub step: i32,
    /// The call.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// Its arguments, as approved where somebody edited them.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// What was decided; null until then.
    pub decision: Option<ApprovalDecision>,
    /// Why, in the words of whoever decided.
    pub reason: Option<String>,
    /// The key that decided.
    pub decided_by: Option<String>,
    /// What an approved call waits for next: `client` when its result is now the caller's to post;
    /// null otherwise.
    #[serde(default)]
    pub awaits: Option<Awaits>,
    /// Until when an answer counts: the decision, or behind it the caller's result (`awaits`).
    pub expires_at: Option<Timestamp>,
}

/// Somebody steered the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SteeringInput {
    /// The message's id.
    pub message_id: MessageId,
    /// What was said.
    pub content: Content,
    /// `input.received`: the step that was under way; `input.applied`: the step that reads it first.
    pub step: i32,
}

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident($body:ident) = $code:literal, $name:literal, $class:ident;)*) => {
        /// What kind of event. The numbers are what the database keeps; never changed once given.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventType { $($(#[$doc])* $variant,)* }

        impl EventType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number that the database keeps.
            pub const fn code(self) -> i16 { match self { $(Self::$variant => $code,)* } }

            /// The word of the API.
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $name,)* } }

            /// Whether it is only for the eye: never needed to fold.
            pub const fn is_delta(self) -> bool {
                match self { $(Self::$variant => events!(@delta $class),)* }
            }

            /// Whether nothing can follow it.
            pub const fn is_final(self) -> bool {
                match self { $(Self::$variant => events!(@final $class),)* }
            }

            /// Whether nothing follows it by itself: the run has ended, or waits for somebody.
            pub const fn is_rest(self) -> bool {
                self.is_final() || matches!(self, Self::RunRequiresAction)
            }
        }

        /// An event without its envelope.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Event { $($(#[$doc])* $variant($body),)* }

        impl Event {
            /// What kind it is.
            pub const fn event_type(&self) -> EventType {
                match self { $(Self::$variant(_) => EventType::$variant,)* }
            }

            /// Its own fields as a JSON object.
            fn body(&self) -> serde_json::Result<String> {
                match self { $(Self::$variant(body) => serde_json::to_string(body),)* }
            }

            /// Reads a stored event of a known kind.
            ///
            /// # Errors
            /// When the text is not an event of that kind.
            pub fn read(event_type: EventType, data: &[u8]) -> serde_json::Result<Self> {
                match event_type {
                    $(EventType::$variant => serde_json::from_slice(data).map(Self::$variant),)*
                }
            }
        }

        /// Each event's name in the spec, its `type`, and the schema of its own fields.
        pub fn schemas() -> Vec<(&'static str, &'static str, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
            use utoipa::PartialSchema as _;
            vec![$((stringify!($variant), $name, $body::schema()),)*]
        }

        /// Every schema that the events' fields refer to.
        pub fn referred_schemas() -> Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
            let mut all = Vec::new();
            $(<$body as ToSchema>::schemas(&mut all);)*
            all
        }
    };
    (@delta delta) => { true };
    (@delta $other:ident) => { false };
    (@final last) => { true };
    (@final $other:ident) => { false };
}

events! {
    /// The run exists.
    RunQueued(RunQueued) = 1, "run.queued", fact;
    /// An engine has begun, or goes on after a pause.
    RunRunning(StatusChanged) = 2, "run.running", fact;
    /// A cancel was asked for; a driver is stopping.
    RunCancelling(StatusChanged) = 3, "run.cancelling", fact;
    /// Nothing executes; somebody must answer.
    RunRequiresAction(RunRequiresAction) = 4, "run.requires_action", fact;
    /// The last open action was answered.
    RunResumed(StatusChanged) = 5, "run.resumed", fact;
    /// The run ended well.
    RunCompleted(RunEnded) = 10, "run.completed", last;
    /// The run ended at a limit.
    RunIncomplete(RunEnded) = 11, "run.incomplete", last;
    /// The run failed.
    RunFailed(RunEnded) = 12, "run.failed", last;
    /// The run was cancelled.
    RunCancelled(RunEnded) = 13, "run.cancelled", last;
    /// The run took longer than it may.
    RunExpired(RunEnded) = 14, "run.expired", last;
    /// A step began.
    StepStarted(StepStarted) = 20, "step.started", fact;
    /// A step's model is called again.
    StepRestarted(StepRestarted) = 21, "step.restarted", fact;
    /// A step is over.
    StepCompleted(StepEnded) = 22, "step.completed", fact;
    /// A step is over without what it was for.
    StepFailed(StepEnded) = 23, "step.failed", fact;
    /// A piece of the model's text.
    MessageDelta(Delta) = 30, "message.delta", delta;
    /// A piece of the model's reasoning.
    ReasoningDelta(Delta) = 31, "reasoning.delta", delta;
    /// A whole message of the model.
    MessageCompleted(MessageCompleted) = 32, "message.completed", fact;
    /// The model asked for a tool call.
    ToolCallCreated(ToolCallCreated) = 40, "tool_call.created", fact;
    /// The call is being made.
    ToolCallStarted(ToolCallStarted) = 41, "tool_call.started", fact;
    /// The call was answered.
    ToolCallCompleted(ToolCallCompleted) = 42, "tool_call.completed", fact;
    /// The call failed.
    ToolCallFailed(ToolCallFailed) = 43, "tool_call.failed", fact;
    /// The call was made and no answer came back.
    ToolCallOutcomeUnknown(ToolCallOutcomeUnknown) = 44, "tool_call.outcome_unknown", fact;
    /// A call waits for somebody's leave.
    ApprovalRequested(Approval) = 50, "approval.requested", fact;
    /// Somebody decided about a call.
    ApprovalDecided(Approval) = 51, "approval.decided", fact;
    /// Nobody decided in time.
    ApprovalExpired(Approval) = 52, "approval.expired", fact;
    /// Somebody steered the run.
    InputReceived(SteeringInput) = 60, "input.received", fact;
    /// The model reads it from this step on.
    InputApplied(SteeringInput) = 61, "input.applied", fact;
}

impl EventType {
    /// The kind of a number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.code() == code)
    }

    /// The kind of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.as_str() == word)
    }
}

/// What every stored event has, whatever its kind.
#[derive(Debug, Clone, Deserialize)]
pub struct Envelope {
    /// Its place in the log.
    pub seq: i32,
    /// When it was written.
    pub created_at: Timestamp,
}

/// An entry of a log as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub seq: i32,
    /// What kind it is.
    pub event_type: EventType,
    /// The exact text that readers get, one line of JSON.
    pub data: Bytes,
}

/// What is in front of an event's own fields, the same for every event of a run but for three places.
fn open(out: &mut String, event_type: EventType, seq: i32, run_id: RunId, at: Timestamp) {
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{{\"type\":\"{}\",\"seq\":{seq},\"run_id\":\"{run_id}\",\"created_at\":\"{at}\",",
        event_type.as_str()
    );
}

impl Event {
    /// The stored form of this event.
    ///
    /// # Errors
    /// Only if a value inside cannot be JSON, which none of our types allows.
    pub fn entry(&self, run_id: RunId, seq: i32, at: Timestamp) -> serde_json::Result<Entry> {
        let event_type = self.event_type();
        let body = self.body()?;
        let mut data = String::with_capacity(body.len() + 160);
        open(&mut data, event_type, seq, run_id, at);
        // Every body is an object with at least one field: its brace is already there.
        data.push_str(body.strip_prefix('{').unwrap_or(&body));
        Ok(Entry { seq, event_type, data: Bytes::from(data) })
    }
}

impl Entry {
    /// The stored form of a piece of text, written without an intermediate value: this is the hot
    /// path of every token.
    ///
    /// # Errors
    /// Never for a valid `str`; kept because the JSON writer's signature says so.
    pub fn delta(
        event_type: EventType,
        run_id: RunId,
        seq: i32,
        at: Timestamp,
        step: i32,
        content: &str,
    ) -> serde_json::Result<Self> {
        let mut data = String::with_capacity(content.len() + 176);
        open(&mut data, event_type, seq, run_id, at);
        let _ = write!(data, "\"step\":{step},\"content\":");
        let mut data = data.into_bytes();
        serde_json::to_writer(&mut data, content)?;
        data.push(b'}');
        Ok(Self { seq, event_type, data: Bytes::from(data) })
    }

    /// The text as `str`, as databases want it.
    pub fn text(&self) -> &str {
        // `data` is only ever made from a String, from serde_json's output or from a text column.
        std::str::from_utf8(&self.data).unwrap_or_default()
    }

    /// The kind that a stored text says it is.
    pub fn type_of(data: &[u8]) -> Option<EventType> {
        let rest = data.strip_prefix(b"{\"type\":\"")?;
        let end = memchr::memchr(b'"', rest)?;
        EventType::from_word(std::str::from_utf8(rest.get(..end)?).ok()?)
    }

    /// When it was written.
    ///
    /// # Errors
    /// When the stored text has no time.
    pub fn created_at(&self) -> serde_json::Result<Timestamp> {
        serde_json::from_slice(&self.data).map(|envelope: Envelope| envelope.created_at)
    }

    /// Reads the event and when it was written.
    ///
    /// # Errors
    /// When the stored text is not an event of its kind.
    pub fn read(&self) -> serde_json::Result<(Event, Timestamp)> {
        let envelope: Envelope = serde_json::from_slice(&self.data)?;
        Ok((Event::read(self.event_type, &self.data)?, envelope.created_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_delta_reads_back_as_the_same_event_either_way_it_was_written() {
        let run_id = RunId::from_uuid(Uuid::from_u128(7));
        let at = Timestamp::from_millis(1_795_340_613_042);
        let content = "a \"quoted\" \u{0} \u{1F600}\n";
        let event = Event::MessageDelta(Delta { step: 2, content: content.to_owned() });
        let slow = event.entry(run_id, 17, at).unwrap_or_else(|e| unreachable!("{e}"));
        let fast = Entry::delta(EventType::MessageDelta, run_id, 17, at, 2, content)
            .unwrap_or_else(|e| unreachable!("{e}"));
        assert_eq!(slow, fast);
        assert_eq!(fast.read().ok(), Some((event, at)));
        assert_eq!(Entry::type_of(&fast.data), Some(EventType::MessageDelta));
        assert_eq!(
            fast.text(),
            "{\"type\":\"message.delta\",\"seq\":17,\"run_id\":\"run_00000000000000000000000000000007\",\
             \"created_at\":\"2026-11-22T09:43:33.042Z\",\"step\":2,\
             \"content\":\"a \\\"quoted\\\" \\u0000 😀\\n\"}"
        );
    }

    #[test]
    fn codes_and_words_are_unique_and_read_back() {
        for event_type in EventType::ALL {
            assert_eq!(EventType::from_code(event_type.code()), Some(*event_type));
            assert_eq!(EventType::from_word(event_type.as_str()), Some(*event_type));
        }
    }
}
