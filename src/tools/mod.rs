//! WHO ACTS. What a model may call.
//!
//! A [`Tool`] makes one attempt at one call and says what came of it, in words for the model.
//! Arguments were checked against the tool's schema before, and `tool_call.started` is durable
//! before [`Tool::call`] is polled. Dropping the future abandons the call. Whether a call is tried
//! again is the engine's to say, by what its tool declared that it does to the world.
//!
//! What this room must never do: call anything whose start is not durable, repeat a call, reach a host
//! that a user or a model named except through `egress`, or let a secret into an [`Outcome`].
//!
//! To add a kind of tool: a variant in `domain::tool::Tool`, a file here, and its line in
//! [`Tools::find`].

mod builtin;
mod http;
pub mod mcp;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::clock::Clock;
use crate::domain::ids::{CallId, RunId, WorkspaceId};
use crate::domain::tool;
use crate::egress::{Gate, Secrets};
use crate::shutdown::Tasks;

pub use crate::egress::{Departure, Left};

/// Attempts at a call to somebody else, the first included, if its effect allows for more than one: the
/// run holds a slot meanwhile, and what is broken for longer is for the model to read.
const ATTEMPTS: u32 = 3;

/// One attempt at a call of a tool.
#[derive(Clone)]
pub struct ToolCall {
    /// The run that makes it.
    pub run_id: RunId,
    /// Whose run that is.
    pub workspace_id: WorkspaceId,
    /// Its id; the same on every attempt.
    pub call_id: CallId,
    /// Its arguments: an object that fits the tool's schema.
    pub arguments: Value,
    /// For tools that send something: to be asked right before it is sent, and told.
    pub departure: Arc<Departure>,
}

impl ToolCall {
    /// By what whoever is called may know that this is the same call as before.
    fn idempotency_key(&self) -> String {
        format!("{}:{}", self.run_id, self.call_id)
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The tool did it.
    Completed(Value),
    /// The tool did not do it, and trying again would not help; why.
    Failed(String),
    /// The tool says that it cannot at the moment; why, and how long it asks to be left alone.
    Busy(String, Option<Duration>),
    /// Nothing was sent, since there was nobody to send it to; why.
    NotSent(String),
    /// Nothing was sent, since this process may not act at the moment.
    Withheld,
    /// It was sent, or may have been, and nobody can say what became of it; what happened instead.
    Unknown(String),
}

impl Outcome {
    /// An answer of this status, which is no success; why, and how long the tool asks to be left alone.
    pub const fn refused(status: u16, why: String, asked: Option<Duration>) -> Self {
        match status {
            429 | 500.. => Self::Busy(why, asked),
            _ => Self::Failed(why),
        }
    }
}

/// Something that can be called.
#[async_trait]
pub trait Tool: Send + Sync {
    /// Makes one attempt at a call.
    async fn call(&self, call: ToolCall) -> Outcome;

    /// Attempts at one call, the first included, if its effect allows for more than one.
    fn attempts(&self) -> u32 {
        1
    }
}

/// What tools need to be called. Shared behind an `Arc`.
pub struct Tools {
    clock: Clock,
    gate: Arc<Gate>,
    secrets: Arc<Secrets>,
    /// The MCP servers of all agents.
    pub servers: Arc<mcp::Servers>,
}

impl Tools {
    /// Tools with these means. What goes on behind their back is one of `tasks`.
    pub fn new(clock: Clock, gate: Gate, secrets: Secrets, tasks: Tasks) -> Self {
        let (gate, secrets) = (Arc::new(gate), Arc::new(secrets));
        let servers = mcp::Servers::new(gate.clone(), secrets.clone(), tasks);
        Self { clock, gate, secrets, servers }
    }

    /// The tool that a definition means; `None` where this room cannot know it by that alone, or nothing
    /// is called.
    pub fn find(&self, tool: &tool::Tool) -> Option<Box<dyn Tool>> {
        match tool {
            tool::Tool::Builtin(builtin) => {
                Some(Box::new(builtin::BuiltinTool::new(builtin.name, self.clock.clone())))
            }
            tool::Tool::Http(http) => {
                let (gate, secrets) = (self.gate.clone(), self.secrets.clone());
                Some(Box::new(http::Http::new(http.clone(), gate, secrets)))
            }
            // Found by what its server has told of it: `mcp::Servers::tool`.
            tool::Tool::Mcp(_) => None,
            // Answered by whoever posts the result, and by a run of its own: nothing is called here.
            tool::Tool::Client(_) | tool::Tool::Agent(_) => None,
        }
    }
}
