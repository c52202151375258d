//! Tools of MCP servers: which there are, and calling them. The protocol is rmcp's (the official client,
//! over streamable HTTP); its types stay in this folder, since they change with every major version.
//!
//! - [`sessions`]: a run has one session with each of its servers, which its calls share, from the first
//!   call until its driver lets go of it: it ended, parked, is handed over. What a server keeps in it (a
//!   browser, a shell) lives as long; after a crash there is a new one. A list has a session of its own.
//! - [`session`]: greetings, lists, calls, good-byes; [`usage`]: sessions that are idle, or too many, are closed.
//! - [`wire`]: what rmcp sends and receives goes through the gate; [`exchange`] and [`body`]: within bounds,
//!   which each call has for itself; [`trouble`]: what went wrong, and what to do about it.
//! - [`known`]: what servers have told of their tools, for ten minutes.
//! - [`call`]: one attempt at a call, and what is known behind it; [`answer`]: results, as the model
//!   and the log get them.
//!
//! **Names.** A model knows the tool `t` of the server `s` as `s__t`; a name that models' wires do not
//! take is made to fit (`domain::tool::Discovered`). `allowed_tools` are names as the server gives them;
//! one that it does not have is left out, and logged.
//!
//! **What is known of a call.** Greetings may come first; the call has left when its `Departure` says so.
//! Until then it certainly was not made. Behind it, an error of the protocol and a status that is no
//! success are known failures; a connection that breaks, a time-out, an answer that makes no sense or has
//! no end leave the call unknown. What may be repeated follows from the effect that the agent declares
//! (`engine::attempts`): a server's own `readOnlyHint` is a claim of somebody we do not know.
//!
//! **What a hostile server can do** is to fail its own calls, late, and to tell the model something in
//! at most as many bytes as any tool. Bytes, pages, tools, resumptions, time and the length of its
//! words are bounded; what it asks of us (sampling, elicitation) is declined; redirects are not followed.
//!
//! Not here: OAuth (a header with a secret does), servers on standard input and output, resources, prompts.

mod answer;
mod body;
mod call;
mod exchange;
mod known;
mod session;
mod sessions;
mod trouble;
mod usage;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use url::Url;

use crate::domain::ids::WorkspaceId;
use crate::domain::limits;
use crate::domain::tool::{Discovered, Listing, McpTool};
use crate::egress::{Gate, Secrets};
use crate::shutdown::Tasks;

use super::Tool;
use call::RemoteTool;
use known::Known;
pub use known::Pinned;
use session::Session;
pub use sessions::Sessions;
use trouble::{Lasts, Trouble};
use usage::Kept;
use wire::Connection;

/// How long a server may take to list its tools.
const LIST_WITHIN: Duration = Duration::from_secs(10);
/// Bytes that a server may send for greetings and lists: some thousand tools, of which an agent chooses
/// a few.
const MAX_LIST_BYTES: usize = 4 * 1024 * 1024;

/// Why a server's tools are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlisted {
    /// In words that name the agent's tool and no URL.
    pub message: String,
    /// Whether it may be gone when asked again.
    pub passing: bool,
}

/// The MCP servers of all agents, as far as they were needed.
pub struct Servers {
    gate: Arc<Gate>,
    secrets: Arc<Secrets>,
    /// Sessions are opened and closed, and calls cancelled, behind the back of those who gave them up.
    tasks: Tasks,
    known: Known,
    kept: Kept,
}

impl Servers {
    /// None asked yet.
    pub fn new(gate: Arc<Gate>, secrets: Arc<Secrets>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { gate, secrets, tasks, known: Known::default(), kept: Kept::default() })
    }

    /// The tools of the server that an agent's version names: from memory if they were listed less than
    /// ten minutes ago, else asked for within 10 s. A server that is silent now but was not before keeps
    /// the tools that it had.
    ///
    /// # Errors
    /// Why they are not known.
    pub async fn tools(
        self: &Arc<Self>,
        of: &Pinned,
        server: &McpTool,
    ) -> Result<Listing, Unlisted> {
        let (servers, definition, workspace_id) = (self.clone(), server.clone(), of.workspace_id);
        let asking = async move {
            timeout(LIST_WITHIN, servers.list(&definition, workspace_id)).await.unwrap_or_else(
                |_| {
                    let seconds = LIST_WITHIN.as_secs();
                    Err(Trouble::passing(format!("did not list its tools within {seconds} s")))
                },
            )
        };
        self.known.listing(of, &server.name, asking).await.map_err(|trouble| {
            let message = format!("The MCP server of the tool {:?} {}.", server.name, trouble.what);
            let passing = trouble.lasts != Lasts::On;
            Unlisted { message: self.secrets.redact(&message), passing }
        })
    }

    /// Room for the sessions of a run that is driven.
    pub fn sessions(self: &Arc<Self>) -> Arc<Sessions> {
        Sessions::new(self.clone())
    }

    /// A tool of the server that an agent's version names, ready to be called in the run's sessions.
    pub fn tool(
        self: &Arc<Self>,
        of: Pinned,
        sessions: Arc<Sessions>,
        server: &McpTool,
        tool: Arc<Discovered>,
    ) -> Box<dyn Tool> {
        Box::new(RemoteTool { servers: self.clone(), sessions, of, server: server.clone(), tool })
    }

    async fn list(&self, server: &McpTool, workspace_id: WorkspaceId) -> Result<Listing, Trouble> {
        let (mut listed, whole) = self.session(server, workspace_id).await?.tools().await?;
        // A server that echoes a secret gets no place for it in names, and the model does not read it.
        listed.retain(|tool| self.secrets.redact(&tool.name) == tool.name);
        for tool in &mut listed {
            tool.description = self.secrets.redact(&tool.description);
        }
        if let Some(allowed) = &server.allowed_tools {
            listed.retain(|tool| allowed.contains(&tool.name));
            let absent = allowed.iter().filter(|name| !listed.iter().any(|t| t.name == **name));
            for name in absent {
                tracing::warn!(
                    tool = server.name,
                    name,
                    "allowed_tools names a tool that the MCP server lacks"
                );
            }
        }
        if !whole || listed.len() > limits::MAX_TOOLS {
            listed.truncate(limits::MAX_TOOLS);
            tracing::warn!(
                tool = server.name,
                taken = listed.len(),
                "an MCP server has more tools than a model takes: choose some with allowed_tools"
            );
        }
        let discovered =
            listed.into_iter().map(|tool| Arc::new(Discovered::new(&server.name, tool)));
        Ok(discovered.collect())
    }

    async fn session(
        &self,
        server: &McpTool,
        workspace_id: WorkspaceId,
    ) -> Result<Session, Trouble> {
        let url = Url::parse(&server.url)
            .map_err(|_| Trouble::lasting("was not asked: its URL cannot be read"))?;
        let headers = self
            .secrets
            .headers(&server.headers, &url, workspace_id)
            .map_err(|why| Trouble::lasting(format!("was not asked: {why}")))?;
        let with = Connection { gate: self.gate.clone(), url, headers, most_bytes: MAX_LIST_BYTES };
        Session::open(with, &self.tasks).await
    }
}
