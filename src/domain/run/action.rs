//! What a run waits for: answers of people and programs.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use crate::domain::ids::{AgentId, CallId, RunId};
use crate::domain::time::Timestamp;

/// What kind of answer an open action waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionType {
    /// The result of a tool that the caller runs.
    ToolResult,
    /// Leave to make a call.
    Approval,
    /// What became of a call whose answer was lost.
    ToolOutcome,
}

/// Something that a person or a program must answer before the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RequiredAction {
    /// What is asked for.
    #[serde(rename = "type")]
    pub action_type: ActionType,
    /// The run whose call it is.
    pub run_id: RunId,
    /// The call.
    pub call_id: CallId,
    /// The tool.
    pub tool: String,
    /// What it was called with.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// Until when an answer counts; null means without end.
    pub expires_at: Option<Timestamp>,
}

impl ActionType {
    /// The number that the database keeps. Never changed once given.
    pub const fn code(self) -> i16 {
        match self {
            Self::ToolResult => 1,
            Self::Approval => 2,
            Self::ToolOutcome => 3,
        }
    }
}

/// An action that nobody has answered yet.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenAction {
    /// What is asked for.
    pub action: RequiredAction,
    /// Since when.
    pub created_at: Timestamp,
}

/// Lists of approvals have no other type.
fn approval() -> Object {
    let word = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["approval"]));
    word.description(Some("Always `approval`.")).build()
}

/// An approval that nobody has decided yet, of any run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OpenApproval {
    /// `approval`.
    #[serde(rename = "type")]
    #[schema(schema_with = approval)]
    pub action_type: ActionType,
    /// The run that wants to make the call.
    pub run_id: RunId,
    /// The call.
    pub call_id: CallId,
    /// The tool.
    pub tool: String,
    /// What it is to be called with.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// Until when a decision counts; then the call is denied.
    pub expires_at: Option<Timestamp>,
    /// The agent whose run it is.
    pub agent_id: AgentId,
    /// When it was asked for.
    pub created_at: Timestamp,
}
