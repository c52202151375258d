//! Agents that `stepwell.yaml` declares: the file is the truth, the store follows at start.

use std::collections::HashSet;

use crate::domain::agent::{Agent, AgentSettings, ManagedBy};
use crate::domain::ids::AgentId;
use crate::store::{StoreError, Written};

use super::agents::NewAgent;
use super::{App, AppError, Caller};

/// Nodes that start together with the same file race; each loser sees the winner's version next.
const MAX_RACES: usize = 16;

/// Why the store could not be made to agree with the file.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// An agent of the file cannot be used.
    #[error("agent {agent_id}")]
    Agent {
        /// Which.
        agent_id: AgentId,
        /// Why.
        #[source]
        source: AppError,
    },
    /// The store failed.
    #[error("the declared agents cannot be stored")]
    Store(#[from] StoreError),
}

impl App {
    /// Makes the store agree with the file, in workspace `default`: what changed is the next version,
    /// what vanished is archived, what came back takes runs again. Nothing is written when all is as
    /// before. Not one transaction: a crash in between leaves the rest for the next start.
    ///
    /// # Errors
    /// The first agent that cannot be used, with why (nothing was written then), or the store's.
    pub async fn sync_config(&self, declared: Vec<NewAgent>) -> Result<(), SyncError> {
        let mut agents = Vec::with_capacity(declared.len());
        for NewAgent { agent_id, mut settings } in declared {
            match self.check_settings(&Caller::open(), &mut settings) {
                Ok(()) => agents.push((agent_id, settings)),
                Err(source) => return Err(SyncError::Agent { agent_id, source }),
            }
        }
        for (agent_id, settings) in &agents {
            self.sync_one(agent_id, settings)
                .await
                .map_err(|source| SyncError::Agent { agent_id: agent_id.clone(), source })?;
        }
        self.archive_vanished(&agents.into_iter().map(|(agent_id, _)| agent_id).collect()).await?;
        Ok(())
    }

    async fn sync_one(&self, agent_id: &AgentId, settings: &AgentSettings) -> Result<(), AppError> {
        let caller = Caller::open();
        for _ in 0..MAX_RACES {
            let current = self.store().load_agent(caller.workspace_id, agent_id, None).await?;
            let written = match current {
                None => self.declare(agent_id, settings).await?,
                Some(current) if is_as_declared(&current, settings) => return Ok(()),
                Some(current) => {
                    let next = Agent {
                        settings: settings.clone(),
                        managed_by: ManagedBy::Config,
                        ..self.next_version(current)
                    };
                    self.write_version(&caller, &next, None).await?
                }
            };
            if written == Written::Done(true) {
                return Ok(());
            }
        }
        Err(AppError::Contended)
    }

    async fn declare(
        &self,
        agent_id: &AgentId,
        settings: &AgentSettings,
    ) -> Result<Written<bool>, AppError> {
        let now = self.now();
        let agent = Agent {
            agent_id: agent_id.clone(),
            settings: settings.clone(),
            version: 1,
            managed_by: ManagedBy::Config,
            archived_at: None,
            created_at: now,
            updated_at: now,
        };
        Ok(self.store().insert_agent(Caller::open().workspace_id, &agent, None).await?)
    }

    async fn archive_vanished(&self, declared: &HashSet<AgentId>) -> Result<(), StoreError> {
        let workspace_id = Caller::open().workspace_id;
        for agent in self.store().list_config_agents(workspace_id).await? {
            if !declared.contains(&agent.agent_id) {
                let (agent_id, at) = (&agent.agent_id, self.now());
                self.store().archive_agent(workspace_id, agent_id, at, None).await?;
                self.current.forget(workspace_id, agent_id);
            }
        }
        Ok(())
    }
}

fn is_as_declared(current: &Agent, settings: &AgentSettings) -> bool {
    current.settings == *settings
        && current.managed_by == ManagedBy::Config
        && current.archived_at.is_none()
}
