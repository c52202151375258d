//! What events say: the fields of each kind, beside those that all have.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::domain::ids::{AgentId, CallId, ConversationId, MessageId, RunId};
use crate::domain::message::{Content, Input, Role};
use crate::domain::model::FinishReason;
use crate::domain::money::Usd;
use crate::domain::run::{IncompleteReason, RequiredAction, RunError, RunResult, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::tool::Effect;
use crate::domain::usage::Usage;

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
    /// Which time, from 1: a call begins again behind a crash, or when somebody wants it made again.
    /// Several quick attempts of a call that may be repeated are one time.
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
    /// What happened instead of an answer; left out by servers that did not write it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
