//! WHO ACTS. What a model may call.
//!
//! A [`Tool`] makes one attempt at one call and returns its result or why it failed, in words for the
//! model. Arguments were checked against the tool's schema before, and `tool_call.started` is
//! durable before [`Tool::call`] is polled. Dropping the future abandons the call.
//!
//! What this room must never do: call anything whose start is not durable, retry what must not be
//! repeated, or reach a host that a user or a model named except through `egress`.
//!
//! To add a kind of tool: a variant in `domain::tool::Tool`, a file here, and its line in [`find`].

mod builtin;

use async_trait::async_trait;
use serde_json::Value;

use crate::clock::Clock;
use crate::domain::ids::{CallId, RunId};
use crate::domain::tool;

/// One call of a tool.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// The run that makes it.
    pub run_id: RunId,
    /// Its id; the same on every attempt.
    pub call_id: CallId,
    /// Its arguments: an object that fits the tool's schema.
    pub arguments: Value,
}

/// Something that can be called.
#[async_trait]
pub trait Tool: Send + Sync {
    /// Makes one attempt at a call.
    ///
    /// # Errors
    /// Why it failed, in words for the model.
    async fn call(&self, call: ToolCall) -> Result<Value, String>;
}

/// The tool that a definition means; `None` where somebody else makes the call.
pub fn find(tool: &tool::Tool, clock: &Clock) -> Option<Box<dyn Tool>> {
    match tool {
        tool::Tool::Builtin(builtin) => {
            Some(Box::new(builtin::BuiltinTool::new(builtin.name, clock.clone())))
        }
        // Theirs to come: their agents are refused.
        tool::Tool::Http(_) | tool::Tool::Client(_) | tool::Tool::Mcp(_) | tool::Tool::Agent(_) => {
            None
        }
    }
}
