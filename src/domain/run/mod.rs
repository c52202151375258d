//! Runs: one execution of an agent, from its input to its end.

mod action;
mod config;
mod status;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::ids::{AgentId, ConversationId, RunId};
use super::message::Input;
use super::money::Usd;
use super::step::Step;
use super::time::Timestamp;
use super::usage::Usage;

pub use action::{ActionType, OpenAction, OpenApproval, RequiredAction};
pub use config::RunConfig;
pub use status::{IllegalMove, RunStatus, Signal};

/// A run, as its row and its log tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// Its id.
    pub run_id: RunId,
    /// The agent that it executes.
    pub agent_id: AgentId,
    /// The version that it is pinned to.
    pub agent_version: i32,
    /// The conversation that it belongs to.
    pub conversation_id: Option<ConversationId>,
    /// The run that called this one as a tool.
    pub parent_run_id: Option<RunId>,
    /// The run that this one was forked from.
    pub forked_from_run_id: Option<RunId>,
    /// Your user, as you named them.
    pub end_user_id: Option<String>,
    /// Where it is.
    pub status: RunStatus,
    /// What it is doing, in a few words.
    pub status_message: Option<String>,
    /// What it was started with. Left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Input>,
    /// The model, in full.
    pub model: String,
    /// The answer, once there is one. Left out in lists.
    #[serde(default, skip_serializing_if = "ResultView::is_left_out")]
    #[schema(value_type = Option<RunResult>)]
    pub result: ResultView,
    /// Why it failed; null on every other status.
    pub error: Option<RunError>,
    /// At which limit it ended; null on every other status than `incomplete`.
    pub incomplete_reason: Option<IncompleteReason>,
    /// What waits for an answer, of this run and of the runs that it called, in any status. A run with
    /// status `requires_action` goes on when it is answered.
    pub required_actions: Vec<RequiredAction>,
    /// Steps that are over.
    pub steps_completed: i32,
    /// Steps that it may have.
    pub max_steps: u32,
    /// The share of `max_steps` used; at most 99 until it completes.
    pub progress_percent: u8,
    /// Seconds until it probably ends, from the agent's last 50 completed runs; null if unknown.
    pub estimated_completion_seconds: Option<u64>,
    /// Tokens so far.
    pub usage: Usage,
    /// What it cost so far; null when a model that it used has no price.
    pub cost_usd: Option<Usd>,
    /// What it and its child runs cost; those that still run count from their end on. Null when a
    /// model that one of them used has no price.
    pub tree_cost_usd: Option<Usd>,
    /// The worst case of its first model call, without what was said before it in its conversation; null
    /// without a price.
    pub estimated_cost_usd: Option<Usd>,
    /// The newest event of its log.
    pub last_seq: i32,
    /// Your own notes.
    pub metadata: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it first ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// From creation to end; null until then.
    pub duration_ms: Option<u64>,
    /// Where to read this.
    pub status_url: String,
    /// Where to follow its events.
    pub events_url: String,
    /// Where to cancel it.
    pub cancel_url: String,
    /// When to look again; null when looking again brings nothing by itself.
    pub retry_after_seconds: Option<u32>,
    /// What to do next, in words.
    pub instructions: Option<String>,
    /// Its steps, when `?include=steps` asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Step>>,
}

/// A run's result: shown (maybe as null) or left out, as in lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ResultView {
    /// Not part of this answer.
    #[default]
    LeftOut,
    /// Part of it.
    Shown(Option<RunResult>),
}

impl ResultView {
    /// Whether it is no part of this answer.
    pub const fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }
}

impl Serialize for ResultView {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::LeftOut => serializer.serialize_none(),
            Self::Shown(result) => result.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ResultView {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<RunResult>::deserialize(deserializer).map(Self::Shown)
    }
}

/// Why a run ended before its model was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncompleteReason {
    /// `max_steps` were used.
    MaxSteps,
    /// A spend cap would have been passed.
    Budget,
    /// `max_total_tokens` were used.
    MaxTotalTokens,
    /// The model hit `max_output_tokens`.
    MaxOutputTokens,
    /// The provider withheld the answer.
    ContentFilter,
    /// The log is as long as a log may be (50,000 events or 50 MB).
    LogSize,
}

/// What kind of failure ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunErrorCode {
    /// The model's provider failed, refused or talked nonsense.
    ModelError,
    /// A tool could not be used at all.
    ToolError,
    /// The final answer did not satisfy `output_schema`, twice.
    OutputInvalid,
    /// The prompt does not fit the model, or `max_context_tokens`, even without what was said before.
    ContextOverflow,
    /// The run took its server down three times.
    Poisoned,
    /// A defect of this server.
    Internal,
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunError {
    /// What kind of failure.
    pub code: RunErrorCode,
    /// For people.
    pub message: String,
    /// Whether a new run with the same input may succeed.
    pub retryable: bool,
}

/// What a run answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunResult {
    /// The last text that the model completed.
    pub content: String,
    /// The text parsed as JSON, when the agent has an `output_schema`; else null.
    pub output: Option<Value>,
}
