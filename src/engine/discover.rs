//! What a run's MCP servers have, before it calls its model or a tool.
//!
//! Each step begins with a look at what is known; after a crash, the new driver asks anew. A server that
//! cannot be asked does not brick the run, nor does the run go on without tools that it was given: it
//! waits for 30 s, and then ends `failed/tool_error`, which may be retried. A server that was known and
//! is silent now keeps the tools that it had (`tools::mcp`), so this meets runs only where nobody knows
//! them.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;

use crate::domain::decide::{Decision, Ending};
use crate::domain::run::{RunError, RunErrorCode, RunStatus};
use crate::domain::tool::{self, Listing};
use crate::tools::Tool;
use crate::tools::mcp::{Pinned, Unlisted};

use super::drive::{Driver, Stop};

/// How long a run waits for servers that do not list their tools.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause behind the first attempt; each later one doubles it, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

impl Driver {
    /// Takes the tools of the plan's MCP servers into the plan, if what was decided needs them and this
    /// driver has not looked for this step yet.
    pub(super) async fn learn_for(&mut self, decision: &Decision) -> Result<(), Stop> {
        let step = match decision {
            Decision::StartStep(step) => *step,
            Decision::CallModel | Decision::CallTools(_) => {
                self.folded.open_step().ok_or(Stop::Defect)?.step
            }
            Decision::Done
            | Decision::AwaitTools(_)
            | Decision::MeetChildren(_)
            | Decision::CancelChildren(_)
            | Decision::AwaitChildren(_)
            | Decision::AskOutcome(_)
            | Decision::Expire(_)
            | Decision::CloseStep
            | Decision::Park(_)
            | Decision::End(_) => return Ok(()),
        };
        if self.learned == Some(step) {
            return Ok(());
        }
        let listings = self.list().await?;
        let (plan, left_out) = self.plan.with_discovered(&listings);
        if !left_out.is_empty() {
            tracing::warn!(
                run_id = %self.run_id(), tools = left_out.len(), first = left_out.first(),
                "there is no room or no free name for some tools of MCP servers"
            );
        }
        self.plan = std::sync::Arc::new(plan);
        self.learned = Some(step);
        // Time has passed, and what a model call costs has changed.
        Err(Stop::Decide)
    }

    /// What the plan's servers have. Goes on through what others write to the run, as long as it runs.
    async fn list(&mut self) -> Result<Vec<Listing>, Stop> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let (plan, engine, of) = (self.plan.clone(), self.engine.clone(), self.pinned());
            let all = plan.servers().map(|server| engine.tools.servers.tools(&of, server));
            let unlisted = match self.unless_interrupted(try_join_all(all)).await? {
                Ok(listings) => return Ok(listings),
                Err(unlisted) => unlisted,
            };
            let wait = pause.mul_f64(self.engine.clock.chance());
            if !unlisted.passing || began.elapsed() + wait > PATIENCE {
                return self.end(unavailable(unlisted)).await.and(Err(Stop::Rest));
            }
            tracing::warn!(run_id = %self.run_id(), why = unlisted.message,
                "the tools of an MCP server are not known; asking again");
            self.unless_interrupted(tokio::time::sleep(wait)).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for something outbound, and looks at what others write meanwhile.
    async fn unless_interrupted<T>(&mut self, wait: impl Future<Output = T>) -> Result<T, Stop> {
        let mut wait = std::pin::pin!(wait);
        loop {
            let stop = tokio::select! {
                biased;
                () = self.faith.lost() => Stop::Doubt,
                done = &mut wait => return Ok(done),
                stop = self.interrupted(self.deadline()) => stop,
            };
            let Stop::Look(why) = stop else { return Err(stop) };
            self.look(why).await?;
            if self.folded.status != RunStatus::Running {
                return Err(Stop::Decide);
            }
        }
    }

    /// The tool that the model calls by this name.
    pub(super) fn tool(&self, name: &str, definition: &tool::Tool) -> Option<Box<dyn Tool>> {
        match definition {
            tool::Tool::Mcp(server) => {
                let (servers, of) = (&self.engine.tools.servers, self.pinned());
                let tool = self.plan.discovered(name)?.clone();
                let sessions = self.sessions.get_or_init(|| servers.sessions()).clone();
                Some(servers.tool(of, sessions, server, tool))
            }
            tool::Tool::Http(_)
            | tool::Tool::Client(_)
            | tool::Tool::Agent(_)
            | tool::Tool::Builtin(_) => self.engine.tools.find(definition),
        }
    }

    fn pinned(&self) -> Pinned {
        let row = &self.record.row;
        Pinned {
            workspace_id: row.workspace_id,
            agent_id: row.agent_id.clone(),
            version: row.agent_version,
        }
    }
}

fn unavailable(unlisted: Unlisted) -> Ending {
    Ending::Failed(RunError {
        code: RunErrorCode::ToolError,
        message: unlisted.message,
        retryable: unlisted.passing,
    })
}
