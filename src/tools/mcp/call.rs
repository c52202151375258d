//! One attempt at a call.

use std::sync::Arc;

use async_trait::async_trait;
use rmcp::model::CallToolResult;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::trouble::{Lasts, Trouble};
use super::{Pinned, Servers, Sessions, answer};
use crate::domain::ids::WorkspaceId;
use crate::domain::tool::{Discovered, McpTool};
use crate::egress::Departure;
use crate::tools::{ATTEMPTS, Outcome, Tool, ToolCall};

/// A tool of an MCP server.
pub(super) struct RemoteTool {
    pub servers: Arc<Servers>,
    /// Those of the run.
    pub sessions: Arc<Sessions>,
    /// The run's agent, for which the server was asked what it has.
    pub of: Pinned,
    /// What that says of the server.
    pub server: McpTool,
    /// What the server says of the tool.
    pub tool: Arc<Discovered>,
}

#[async_trait]
impl Tool for RemoteTool {
    /// One attempt, in the run's session with the server. It goes on in a task of its own, so that
    /// whoever drops this is rid of it at once and the server is told all the same.
    async fn call(&self, call: ToolCall) -> Outcome {
        // Greetings come first, and may take long.
        call.departure.announce();
        let (told, answer) = oneshot::channel();
        let making = Making {
            sessions: self.sessions.clone(),
            server: self.server.clone(),
            workspace_id: call.workspace_id,
            tool: self.tool.remote_name.clone(),
            arguments: call.arguments.as_object().cloned().unwrap_or_default(),
            key: call.idempotency_key(),
            departure: call.departure,
            told,
        };
        self.servers.tasks.spawn(making.make());
        let outcome = match answer.await {
            Ok(Answer::Result(result)) => answer::outcome(result),
            Ok(Answer::Refused { words, unknown_tool }) => {
                if unknown_tool {
                    self.servers.known.doubt(&self.of, &self.server.name);
                }
                Outcome::Failed(format!("The MCP server refused the call: {words}"))
            }
            Ok(Answer::None { why, left }) => unmade(why, left),
            // The panic hook has logged why.
            Err(_) => Outcome::Unknown("The call was broken off inside the server.".to_owned()),
        };
        self.without_secrets(outcome)
    }

    fn attempts(&self) -> u32 {
        ATTEMPTS
    }
}

impl RemoteTool {
    /// A server may echo the headers that it got.
    fn without_secrets(&self, outcome: Outcome) -> Outcome {
        let secrets = &self.servers.secrets;
        match outcome {
            Outcome::Completed(result) => Outcome::Completed(secrets.redact_json(result)),
            Outcome::Failed(why) => Outcome::Failed(secrets.redact(&why)),
            Outcome::Busy(why, asked) => Outcome::Busy(secrets.redact(&why), asked),
            Outcome::NotSent(why) => Outcome::NotSent(secrets.redact(&why)),
            Outcome::Unknown(why) => Outcome::Unknown(secrets.redact(&why)),
            Outcome::Withheld => Outcome::Withheld,
        }
    }
}

/// What is known of a call that has no result. `left`: it may have reached the server.
fn unmade(why: Trouble, left: bool) -> Outcome {
    let words = format!("The MCP server {}.", why.what);
    match (left, why.is_answer, why.lasts) {
        (false, _, Lasts::UntilWeMayAct) => Outcome::Withheld,
        (false, _, Lasts::NotLong) => Outcome::NotSent(words),
        (false, _, Lasts::On) | (true, true, Lasts::On) => Outcome::Failed(words),
        (true, true, Lasts::NotLong | Lasts::UntilWeMayAct) => Outcome::Busy(words, why.asked),
        (true, false, _) => Outcome::Unknown(words),
    }
}

/// What came of a call.
pub(super) enum Answer {
    /// The tool's result.
    Result(CallToolResult),
    /// An error of the protocol.
    Refused {
        /// The server's words.
        words: String,
        /// Whether it does not know the tool (any more).
        unknown_tool: bool,
    },
    /// None.
    None {
        /// What came instead.
        why: Trouble,
        /// Whether the call may have reached the server.
        left: bool,
    },
}

/// A call to be made, and who waits for it.
struct Making {
    sessions: Arc<Sessions>,
    server: McpTool,
    workspace_id: WorkspaceId,
    tool: String,
    arguments: Map<String, Value>,
    key: String,
    departure: Arc<Departure>,
    told: oneshot::Sender<Answer>,
}

impl Making {
    /// Makes the call. When nobody waits for it any more, the server is told to stop. However it goes,
    /// the session stays: other calls of the run use it, or will.
    async fn make(mut self) {
        let found = tokio::select! {
            found = self.sessions.with(&self.server, self.workspace_id) => found,
            // Nothing has been asked of the server yet: there is nothing to tell it.
            () = self.told.closed() => return,
        };
        let (session, _in_use) = match found {
            Ok(found) => found,
            Err(why) => {
                let _ = self.told.send(Answer::None { why, left: false });
                return;
            }
        };
        let asked = session.ask(&self.tool, self.arguments, self.key, self.departure).await;
        let mut asked = match asked {
            Ok(asked) => asked,
            Err(answer) => {
                let _ = self.told.send(answer);
                return;
            }
        };
        tokio::select! {
            answer = asked.answer() => {
                let _ = self.told.send(answer);
            }
            () = self.told.closed() => asked.cancel().await,
        }
    }
}
