//! Runs about to be written: whoever asks for one, a client or a run that calls an agent, writes it
//! the same way.

use std::collections::BTreeMap;

use crate::domain::agent::Agent;
use crate::domain::event::{Entry, Event, RunQueued};
use crate::domain::fold::Folded;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::message::Input;
use crate::domain::money::Usd;
use crate::domain::plan::Plan;
use crate::domain::run::{RunConfig, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::transcript;
use crate::domain::usage::Usage;
use crate::store::{NewKey, NewRun, NewTurn, RunBody, RunRow};

/// A run about to be written.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Its id.
    pub run_id: RunId,
    /// Whose it is.
    pub workspace_id: WorkspaceId,
    /// The agent, at the version that the run is pinned to.
    pub agent: &'a Agent,
    /// The agent's settings with `config` over them.
    pub plan: &'a Plan,
    /// What it starts from.
    pub input: Input,
    /// What it changes about its agent.
    pub config: RunConfig,
    /// The client's own user.
    pub end_user_id: Option<String>,
    /// The client's notes.
    pub metadata: BTreeMap<String, String>,
    /// The turn that it asks for.
    pub turn: Option<NewTurn>,
    /// The run that calls it.
    pub parent_run_id: Option<RunId>,
    /// The run at the top of that one's family, which may be that one.
    pub root_run_id: Option<RunId>,
    /// How many runs are above it.
    pub depth: u32,
    /// Bound in the same transaction.
    pub key: Option<NewKey>,
    /// When it is written.
    pub at: Timestamp,
}

impl Draft<'_> {
    /// The run as it is written: its row, body and first event. Also gives the input back, which may be
    /// large, for whoever has to write it again.
    ///
    /// # Errors
    /// Only if the input cannot be JSON, which none of our types allows.
    pub fn write(self) -> serde_json::Result<(NewRun, Input)> {
        let settings = &self.plan.settings;
        let queued = RunQueued {
            status: RunStatus::Queued,
            agent_id: self.agent.agent_id.clone(),
            agent_version: self.agent.version,
            model: settings.model.clone(),
            input: self.input,
            conversation_id: self.turn.map(|turn| turn.conversation_id),
            parent_run_id: self.parent_run_id,
            forked_from_run_id: None,
            depth: self.depth,
        };
        let event = Event::RunQueued(queued);
        let first = event.entry(self.run_id, 1, self.at)?;
        let input = match event {
            Event::RunQueued(queued) => queued.input,
            _ => Input::Text(String::new()),
        };
        let body = RunBody {
            model: settings.model.clone(),
            config: self.config,
            max_steps: settings.max_steps,
            estimated_cost: worst_case(self.plan, &first),
            metadata: self.metadata,
        };
        let row = RunRow {
            run_id: self.run_id,
            workspace_id: self.workspace_id,
            agent_id: self.agent.agent_id.clone(),
            agent_version: self.agent.version,
            status: RunStatus::Queued,
            node_id: None,
            rev: 1,
            epoch: 0,
            due_at: Some(self.at),
            crashes: 0,
            fact_seq: 1,
            steps_completed: 0,
            usage: Usage::default(),
            cost: Some(Usd::ZERO),
            children_cost: Some(Usd::ZERO),
            status_message: None,
            conversation_id: self.turn.map(|turn| turn.conversation_id),
            parent_run_id: self.parent_run_id,
            root_run_id: self.root_run_id,
            forked_from_run_id: None,
            end_user_id: self.end_user_id,
            past: None,
            cost_ceiling: None,
            created_at: self.at,
            started_at: None,
            completed_at: None,
        };
        Ok((NewRun { row, body, first, copied: Vec::new(), turn: self.turn, key: self.key }, input))
    }
}

/// The most that the first model call can cost; `None` without a price.
fn worst_case(plan: &Plan, first: &Entry) -> Option<Usd> {
    plan.price?;
    let folded = Folded::read([first]).ok()?;
    let turns = transcript::turns(&folded, plan, 1);
    plan.worst_case(transcript::bytes(&turns, plan))
}
