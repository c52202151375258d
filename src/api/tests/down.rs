//! A database that does not answer: enough for everything that is decided before it is asked, and
//! for what an outage looks like from outside.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::agent::Agent;
use crate::domain::conversation::Conversation;
use crate::domain::conversation::message::Message;
use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, CallId, ConversationId, MessageId, NodeId, RunId, WorkspaceId};
use crate::domain::page::{Listed, Page};
use crate::domain::run::OpenApproval;
use crate::domain::time::Timestamp;
use crate::store::*;

/// The database.
pub struct Down;

fn down<T>() -> Result<T> {
    Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut))
}

#[async_trait]
impl Store for Down {
    async fn close(&self) {}
    fn is_exclusive(&self) -> bool {
        true
    }
    fn flush_interval(&self) -> Duration {
        Duration::ZERO
    }
    async fn find_key(&self, _: &IdempotencyKey) -> Result<Option<KeyRow>> {
        down()
    }
    async fn insert_agent(
        &self,
        _: WorkspaceId,
        _: &Agent,
        _: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        down()
    }
    async fn load_agent(
        &self,
        _: WorkspaceId,
        _: &AgentId,
        _: Option<i32>,
    ) -> Result<Option<Agent>> {
        panic!("the one call that fails in a way that nobody foresaw")
    }
    async fn list_agents(&self, _: WorkspaceId, _: &Page<AgentId>) -> Result<Listed<Agent>> {
        down()
    }
    async fn list_agent_versions(
        &self,
        _: WorkspaceId,
        _: &AgentId,
        _: &Page<i32>,
    ) -> Result<Listed<Agent>> {
        down()
    }
    async fn insert_agent_version(
        &self,
        _: WorkspaceId,
        _: &Agent,
        _: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        down()
    }
    async fn archive_agent(
        &self,
        _: WorkspaceId,
        _: &AgentId,
        _: Timestamp,
        _: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        down()
    }
    async fn list_config_agents(&self, _: WorkspaceId) -> Result<Vec<Agent>> {
        down()
    }
    async fn flush(&self, _: &Batch) -> Result<BatchOutcome> {
        down()
    }
    async fn resolve(&self, _: &Batch) -> Result<Option<BatchOutcome>> {
        down()
    }
    async fn guest(&self, _: GuestWrite) -> Result<GuestOutcome> {
        down()
    }
    async fn read_log(&self, _: WorkspaceId, _: RunId, _: LogRange) -> Result<Option<Vec<Entry>>> {
        down()
    }
    async fn read_facts(&self, _: WorkspaceId, _: RunId, _: i32) -> Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    async fn heads(&self, _: &[RunId]) -> Result<Vec<(RunId, i32)>> {
        down()
    }
    async fn load_run(&self, _: WorkspaceId, _: RunId) -> Result<Option<RunRecord>> {
        down()
    }
    async fn list_runs(
        &self,
        _: WorkspaceId,
        _: &RunFilter,
        _: &Page<RunId>,
    ) -> Result<Listed<RunRecord>> {
        down()
    }
    async fn list_approvals(
        &self,
        _: WorkspaceId,
        _: &Page<CallId>,
    ) -> Result<Listed<OpenApproval>> {
        down()
    }
    async fn recent_durations(&self, _: WorkspaceId, _: &AgentId) -> Result<Vec<i64>> {
        down()
    }
    async fn insert_conversation(
        &self,
        _: &Conversation,
        _: Option<&NewKey>,
    ) -> Result<Written<()>> {
        down()
    }
    async fn load_conversation(
        &self,
        _: WorkspaceId,
        _: ConversationId,
    ) -> Result<Option<Conversation>> {
        down()
    }
    async fn list_conversations(
        &self,
        _: WorkspaceId,
        _: Option<&AgentId>,
        _: &Page<ConversationId>,
    ) -> Result<Listed<Conversation>> {
        down()
    }
    async fn converse(&self, _: ConversationWrite) -> Result<ConversationOutcome> {
        down()
    }
    async fn read_messages(
        &self,
        _: WorkspaceId,
        _: ConversationId,
        _: MessageRange,
    ) -> Result<Vec<Message>> {
        down()
    }
    async fn message_index(
        &self,
        _: WorkspaceId,
        _: ConversationId,
        _: MessageId,
    ) -> Result<Option<i32>> {
        down()
    }
    async fn find_turn(
        &self,
        _: WorkspaceId,
        _: ConversationId,
        _: FindTurn,
    ) -> Result<Option<TurnPlace>> {
        down()
    }
    async fn to_be_cancelled(&self, _: i64) -> Result<Vec<(WorkspaceId, RunId)>> {
        down()
    }
    async fn sweep_conversations(&self, _: ConversationSweep) -> Result<SweptConversations> {
        down()
    }
    async fn register_node(&self, _: NodeId, _: Timestamp) -> Result<()> {
        down()
    }
    async fn beat(&self, _: NodeId) -> Result<bool> {
        down()
    }
    async fn other_nodes(&self, _: NodeId) -> Result<Vec<Neighbour>> {
        down()
    }
    async fn listen(&self, _: NodeId) -> Result<Option<Box<dyn Ear>>> {
        down()
    }
    async fn oldest_due(&self) -> Result<Option<Timestamp>> {
        down()
    }
    async fn bury(&self, _: NodeBeat) -> Result<bool> {
        down()
    }
    async fn retire_node(&self, _: NodeId) -> Result<()> {
        down()
    }
    async fn claim_due(&self, _: NodeId, _: Timestamp, _: i64) -> Result<Vec<Claim>> {
        down()
    }
    async fn claim_orphans(&self, _: NodeId, _: i64) -> Result<Vec<Claim>> {
        down()
    }
    async fn transfer(&self, _: Transfer) -> Result<Option<Claim>> {
        down()
    }
    async fn owned(&self, _: NodeId) -> Result<Vec<(RunId, i32)>> {
        down()
    }
    async fn load_driveable(&self, _: NodeId, _: RunId) -> Result<Option<Driveable>> {
        down()
    }
    async fn rouse_parents(&self, _: Timestamp, _: i64) -> Result<Roused> {
        down()
    }
    async fn erase_below(&self, _: WorkspaceId, _: RunId, _: Timestamp) -> Result<Below> {
        down()
    }
    async fn release(
        &self,
        _: NodeId,
        _: RunId,
        _: i32,
        _: Timestamp,
        _: Option<&str>,
    ) -> Result<bool> {
        down()
    }
    async fn prepare_days(&self) -> Result<()> {
        down()
    }
    async fn sweep_runs(&self, _: RunSweep) -> Result<Swept<RunId>> {
        down()
    }
    async fn sweep_keys(&self, _: KeySweep) -> Result<Swept<Timestamp>> {
        down()
    }
    async fn sweep_deltas(&self, _: Option<i64>, _: Timestamp) -> Result<SweptDeltas> {
        down()
    }
    async fn deltas_gone_before(&self) -> Result<Timestamp> {
        down()
    }
    async fn sweep_nodes(&self, _: Timestamp) -> Result<Swept<()>> {
        down()
    }
    async fn shrink(&self) -> Result<bool> {
        down()
    }
}

/// The database, shared.
pub fn store() -> SharedStore {
    Arc::new(Down)
}
