//! What runs were told to do. Agent versions are immutable, so plans of runs without a config of
//! their own are made once a version.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::ids::{AgentId, WorkspaceId};
use crate::domain::model::Catalogue;
use crate::domain::plan::Plan;
use crate::domain::run::RunConfig;
use crate::store::{RunRecord, SharedStore, StoreError};

/// Plans in memory at most; beyond it they are all made again.
const MAX_PLANS: usize = 1_000;

type Key = (WorkspaceId, AgentId, i32);

/// Plans by agent version.
pub struct Plans {
    store: SharedStore,
    catalogue: Arc<Catalogue>,
    made: Mutex<HashMap<Key, Arc<Plan>>>,
}

impl Plans {
    /// None made yet.
    pub fn new(store: SharedStore, catalogue: Arc<Catalogue>) -> Self {
        Self { store, catalogue, made: Mutex::default() }
    }

    /// The models' names and prices.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The plan of a run.
    ///
    /// # Errors
    /// When the store cannot be read, or does not have the agent's version.
    pub async fn of(&self, record: &RunRecord) -> Result<Arc<Plan>, StoreError> {
        let row = &record.row;
        let key = (row.workspace_id, row.agent_id.clone(), row.agent_version);
        let shared = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let base = match shared {
            Some(plan) => plan,
            None => self.make(key).await?,
        };
        let ceiling = row.cost_ceiling;
        if record.body.config == RunConfig::default() && ceiling.is_none() {
            return Ok(base);
        }
        let mut settings = record.body.config.over(&base.settings);
        settings.max_cost_usd = match (settings.max_cost_usd, ceiling) {
            (Some(own), Some(left)) => Some(own.min(left)),
            (own, left) => own.or(left),
        };
        Ok(Arc::new(Plan::new(settings, &self.catalogue)))
    }

    async fn make(&self, key: Key) -> Result<Arc<Plan>, StoreError> {
        let (workspace_id, agent_id, version) = &key;
        let agent = self.store.load_agent(*workspace_id, agent_id, Some(*version)).await?;
        let agent = agent.ok_or_else(|| {
            StoreError::Corrupt(format!("version {version} of agent {agent_id} is not there"))
        })?;
        let plan = Arc::new(Plan::new(agent.settings, &self.catalogue));
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= MAX_PLANS {
            made.clear();
        }
        made.insert(key, plan.clone());
        Ok(plan)
    }
}
