//! The tools that Stepwell runs itself. They have no side effect.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::domain::tool::Builtin;

use super::{Outcome, Tool, ToolCall};

/// `current_time`, `echo` or `sleep`.
pub struct BuiltinTool {
    which: Builtin,
    clock: Clock,
}

impl BuiltinTool {
    /// The tool of this name.
    pub const fn new(which: Builtin, clock: Clock) -> Self {
        Self { which, clock }
    }
}

#[async_trait]
impl Tool for BuiltinTool {
    async fn call(&self, call: ToolCall) -> Outcome {
        Outcome::Completed(match self.which {
            Builtin::CurrentTime => json!({"utc": self.clock.now()}),
            Builtin::Echo => call.arguments.get("text").cloned().unwrap_or_default(),
            Builtin::Sleep => {
                let seconds = call.arguments.get("seconds").and_then(Value::as_f64).unwrap_or(0.0);
                tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 600.0))).await;
                json!({"slept_seconds": seconds})
            }
        })
    }
}
