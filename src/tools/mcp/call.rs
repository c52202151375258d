//! One attempt at a call.

use std::sync::Arc;

use async_trait::async_trait;
use rmcp::model::CallToolResult;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::session::Session;
use super::wire::{Connection, Lasts, Trouble};
use super::{Pinned, Servers, answer};
use crate::domain::tool::{Discovered, McpTool};
use crate::tools::{Outcome, Tool, ToolCall};

/// Bytes that a server may send for a call: pictures are large, and only named.
const MAX_CALL_BYTES: usize = 8 * 1024 * 1024;
/// Attempts at a call, if its effect allows for more than one.
const ATTEMPTS: u32 = 3;

/// A tool of an MCP server.
pub(super) struct RemoteTool {
    pub servers: Arc<Servers>,
    /// The run's agent, for which the server was asked what it has.
    pub of: Pinned,
    /// What that says of the server.
    pub server: McpTool,
    /// What the server says of the tool.
    pub tool: Arc<Discovered>,
}

#[async_trait]
impl Tool for RemoteTool {
    /// One attempt, in a session of its own. That goes on in a task of its own, so that whoever drops
    /// this is rid of it at once and the server is told all the same.
    async fn call(&self, call: ToolCall) -> Outcome {
        let with = match self.servers.connection(
            &self.server,
            call.workspace_id,
            MAX_CALL_BYTES,
            call.departure,
        ) {
            Ok(with) => with,
            Err(trouble) => return unmade(trouble, false),
        };
        let (told, answer) = oneshot::channel();
        let call = Call {
            tool: self.tool.remote_name.clone(),
            arguments: call.arguments.as_object().cloned().unwrap_or_default(),
            key: format!("{}:{}", call.run_id, call.call_id),
            told,
        };
        let stop = self.servers.tasks.token();
        self.servers.tasks.spawn(async move {
            tokio::select! {
                () = make(with, call) => {}
                () = stop.cancelled() => {}
            }
        });
        let outcome = match answer.await {
            Ok(Answer::Result(result)) => answer::outcome(result),
            Ok(Answer::Refused { words, unknown_tool }) => {
                if unknown_tool {
                    self.servers.known.doubt(&self.of, &self.server.name);
                }
                Outcome::Failed(format!("The MCP server refused the call: {words}"))
            }
            Ok(Answer::None { why, left }) => unmade(why, left),
            // The server stops, or the session took its task down.
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
        (true, true, Lasts::NotLong | Lasts::UntilWeMayAct) => Outcome::Busy(words, None),
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

/// A call, and who waits for it.
struct Call {
    tool: String,
    arguments: Map<String, Value>,
    key: String,
    told: oneshot::Sender<Answer>,
}

/// Makes a call. When nobody waits for it any more, the server is told to stop.
async fn make(with: Connection, mut call: Call) {
    let opened = tokio::select! {
        opened = Session::open(with) => opened,
        // Nothing has been asked of it yet: closing the connection says it all.
        () = call.told.closed() => return,
    };
    let session = match opened {
        Ok(session) => session,
        Err(why) => {
            let _ = call.told.send(Answer::None { why, left: false });
            return;
        }
    };
    let mut asked = match session.ask(&call.tool, call.arguments, call.key).await {
        Ok(asked) => asked,
        Err(answer) => {
            let _ = call.told.send(answer);
            return session.close().await;
        }
    };
    let answer = tokio::select! {
        answer = session.answer(&mut asked) => answer,
        () = call.told.closed() => return session.cancel(asked).await,
    };
    let _ = call.told.send(answer);
    session.close().await;
}
