//! The tools that Stepwell runs itself.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{Effect, ToolSpec, default_timeout, default_wait, read};

/// A tool that Stepwell runs itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuiltinTool {
    /// Which one: `current_time` (no arguments), `echo` (`{text}`) or `sleep` (`{seconds}`, at most 600).
    pub name: Builtin,
    /// What the model is told about it; a sensible text when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether a call may be repeated after a crash. None of them changes anything, so `read` when left
    /// out; with `once` the run asks what happened instead, as for a tool that does.
    #[serde(default = "read")]
    pub effect: Effect,
    /// Seconds after which a call has failed: 1–600.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
    /// Whether somebody must agree before each call.
    #[serde(default)]
    pub requires_approval: bool,
    /// Seconds after which an approval that nobody decided counts as denied: 1–2592000.
    #[serde(default = "default_wait")]
    pub approval_timeout_seconds: u32,
}

impl BuiltinTool {
    pub(super) fn spec(&self) -> ToolSpec {
        let description = self.description.as_deref().unwrap_or(self.name.description());
        ToolSpec {
            name: self.name.name().to_owned(),
            description: description.to_owned(),
            parameters: self.name.parameters(),
        }
    }
}

/// The tools that Stepwell runs itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Builtin {
    /// The time of the server, in UTC.
    CurrentTime,
    /// Gives its text back.
    Echo,
    /// Waits.
    Sleep,
}

impl Builtin {
    /// Its name, as the model calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CurrentTime => "current_time",
            Self::Echo => "echo",
            Self::Sleep => "sleep",
        }
    }

    const fn description(self) -> &'static str {
        match self {
            Self::CurrentTime => "Tells the current date and time in UTC.",
            Self::Echo => "Returns the given text unchanged.",
            Self::Sleep => "Waits for the given number of seconds.",
        }
    }

    fn parameters(self) -> Value {
        match self {
            Self::CurrentTime => {
                json!({"type": "object", "properties": {}, "additionalProperties": false})
            }
            Self::Echo => json!({
                "type": "object",
                "properties": {"text": {"type": "string", "description": "What to return."}},
                "required": ["text"], "additionalProperties": false
            }),
            Self::Sleep => json!({
                "type": "object",
                "properties": {"seconds": {"type": "number", "minimum": 0, "maximum": 600}},
                "required": ["seconds"], "additionalProperties": false
            }),
        }
    }
}
