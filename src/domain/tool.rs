//! Tools: what a model may ask for.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::problem::Problems;
use super::schema::Schema;

/// A tool of an agent, told apart by `type`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Tool {
    /// Run by Stepwell itself: `current_time`, `echo` or `sleep`, chosen by `name`.
    Builtin(BuiltinTool),
}

/// Which effect a call has, and so whether it may be repeated after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// No side effect: repeated freely.
    Read,
    /// Safe to repeat with the same idempotency key.
    Idempotent,
    /// Must not be repeated.
    Once,
}

/// A tool that Stepwell runs itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuiltinTool {
    /// Which one: `current_time` (no arguments), `echo` (`{text}`) or `sleep` (`{seconds}`, at most 600).
    pub name: Builtin,
    /// What the model is told about it; a sensible text when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Seconds after which a call has failed: 1–600.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
}

fn default_timeout() -> u32 {
    30
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

/// A tool as the model is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    /// The name to call it by.
    pub name: String,
    /// When to call it.
    pub description: String,
    /// A JSON Schema for its arguments.
    pub parameters: Value,
}

impl Tool {
    /// The name that a model calls it by.
    pub fn name(&self) -> &str {
        match self {
            Self::Builtin(tool) => tool.name.name(),
        }
    }

    /// What the model is told.
    pub fn spec(&self) -> ToolSpec {
        match self {
            Self::Builtin(tool) => ToolSpec {
                name: tool.name.name().to_owned(),
                description: tool
                    .description
                    .clone()
                    .unwrap_or_else(|| tool.name.description().to_owned()),
                parameters: tool.name.parameters(),
            },
        }
    }

    /// What a call of it does to the world.
    pub const fn effect(&self) -> Effect {
        match self {
            Self::Builtin(_) => Effect::Read,
        }
    }

    /// Seconds after which one attempt has failed.
    pub const fn timeout_seconds(&self) -> u32 {
        match self {
            Self::Builtin(tool) => tool.timeout_seconds,
        }
    }

    /// Adds what is wrong with it.
    pub fn check(&self, pointer: &str, problems: &mut Problems) {
        problems.require(
            (1..=600).contains(&self.timeout_seconds()),
            &format!("{pointer}/timeout_seconds"),
            "must be 1 to 600",
        );
        if let Err(message) = Schema::compile(&self.spec().parameters) {
            problems.add(format!("{pointer}/parameters"), message);
        }
    }
}
