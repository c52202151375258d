//! Steps, as `GET …/steps` shows them: the fold of a run's log, turn by turn.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::ids::{CallId, RunId};
use super::money::Usd;
use super::time::Timestamp;
use super::usage::Usage;

/// One turn of a run: a model call and the tool calls that it asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// Its number, from 1.
    pub step: i32,
    /// Where it is.
    pub status: StepStatus,
    /// The model that was called.
    pub model: String,
    /// What the model said; null until it has.
    pub content: Option<String>,
    /// Tokens of the model call; null until it is over.
    pub usage: Option<Usage>,
    /// What the model call cost; null until it is over, or without a price.
    pub cost_usd: Option<Usd>,
    /// How often the model was called for it.
    pub attempt: i32,
    /// When it began.
    pub started_at: Timestamp,
    /// From its beginning to its end; null until then.
    pub duration_ms: Option<u64>,
    /// What the model asked for.
    pub tool_calls: Vec<StepCall>,
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Under way.
    Running,
    /// Over.
    Completed,
    /// Over, without an answer of the model or all its tools.
    Failed,
}

/// One tool call of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepCall {
    /// Its id.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// What it was called with.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// Where it is.
    pub status: CallStatus,
    /// What came back; null until something has.
    pub result: Option<Value>,
    /// Why it failed, or while its status is `unknown`, what happened instead of an answer; null
    /// otherwise.
    pub error: Option<String>,
    /// The run that answers it, for tools of type `agent`; left out otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child_run_id: Option<RunId>,
    /// How often it was begun, as in `tool_call.started`; 0 before that, and for tools of type `client`.
    pub attempt: i32,
    /// When it was last made.
    pub started_at: Option<Timestamp>,
    /// From when it was last made to its answer; null until then.
    pub duration_ms: Option<u64>,
}

/// Where a tool call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallStatus {
    /// Asked for by the model.
    Created,
    /// Waiting for a person or a program.
    Waiting,
    /// Being made.
    Running,
    /// Answered.
    Completed,
    /// Answered with an error.
    Failed,
    /// Made, and no answer came back.
    Unknown,
}
