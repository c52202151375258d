//! The current versions of agents, which creating runs needs again and again.
//!
//! What is kept here may be old: another node may have changed the agent. The store checks the
//! version in the statement that creates a run, and refusals are made only after a fresh look.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::agent::Agent;
use crate::domain::ids::{AgentId, WorkspaceId};
use crate::domain::plan::Plan;

use super::{App, AppError, Caller};

/// Agents kept at most. Beyond it all are dropped: a store read each is what it costs.
const MAX_KEPT: usize = 1_000;

/// An agent at what was its current version, with the plan of a run that changes nothing about it.
#[derive(Debug)]
pub struct CurrentAgent {
    /// The agent.
    pub agent: Agent,
    /// Its plan.
    pub plan: Plan,
}

/// The agents that were asked for lately.
#[derive(Debug, Default)]
pub struct CurrentAgents(Mutex<HashMap<(WorkspaceId, AgentId), Arc<CurrentAgent>>>);

impl CurrentAgents {
    fn get(&self, caller: &Caller, agent_id: &AgentId) -> Option<Arc<CurrentAgent>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(&(caller.workspace_id, agent_id.clone())).cloned()
    }

    fn keep(&self, caller: &Caller, current: &Arc<CurrentAgent>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        let agent_id = current.agent.agent_id.clone();
        kept.insert((caller.workspace_id, agent_id), Arc::clone(current));
    }

    /// Forgets an agent that was changed here.
    pub fn forget(&self, workspace_id: WorkspaceId, agent_id: &AgentId) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(&(workspace_id, agent_id.clone()));
    }
}

impl App {
    /// The agent at a version that was current a moment ago; [`App::create_run`] deals with a newer one.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn current_agent(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
    ) -> Result<Arc<CurrentAgent>, AppError> {
        match self.current.get(caller, agent_id) {
            Some(current) => Ok(current),
            None => self.reload_agent(caller, agent_id).await,
        }
    }

    /// The agent at its current version, from the store.
    pub(super) async fn reload_agent(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
    ) -> Result<Arc<CurrentAgent>, AppError> {
        let agent = self.get_agent(caller, agent_id, None).await?;
        let plan = Plan::new(agent.settings.clone(), &self.catalogue);
        let current = Arc::new(CurrentAgent { agent, plan });
        self.current.keep(caller, &current);
        Ok(current)
    }
}
