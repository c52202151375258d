//! Postgres: for production, and for more than one node.
//!
//! - [`connections`]: a few connections, of which a broken one is never used again.
//! - [`settings`]: what is set on each, and what the server must have.
//! - [`failure`]: what an error means.
//! - [`statements`], [`binding`], [`flush`]: group commit, and batches in doubt.
//! - [`listen`]: hints between nodes, and the lock that shows that a process is there.
//! - [`guest`], [`log`], [`runs`], [`families`], [`actions`], [`agents`], [`keys`], [`nodes`],
//!   [`retention`]: the other operations by room.
//!
//! What this room must never do: build SQL at run time, hold a transaction across anything but SQL,
//! or put a connection back whose last answer is not known.
//!
//! To add a method: the trait in `store/mod.rs` first, then a constant with the index that it relies
//! on in the comment, then its line in `impl Store` below. Writes that commit map their errors with
//! `failure::of_write`, everything else with `failure::of_read`.

mod actions;
mod agents;
mod binding;
mod connections;
mod conversations;
mod failure;
mod families;
mod flush;
mod guest;
mod keys;
mod listen;
mod log;
mod nodes;
mod retention;
mod runs;
mod settings;
mod statements;
mod turns;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

use crate::domain::agent::Agent;
use crate::domain::conversation::Conversation;
use crate::domain::conversation::message::Message;
use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, CallId, ConversationId, MessageId, NodeId, RunId, WorkspaceId};
use crate::domain::page::{Listed, Page};
use crate::domain::run::OpenApproval;
use crate::domain::time::Timestamp;

use super::{
    Batch, BatchOutcome, Below, Claim, ConversationOutcome, ConversationSweep, ConversationWrite,
    Driveable, Ear, FindTurn, GuestOutcome, GuestWrite, IdempotencyKey, KeyRow, KeySweep, LogRange,
    MessageRange, Neighbour, NewKey, NodeBeat, Result, Roused, RunFilter, RunRecord, RunSweep,
    Store, StoreError, Swept, SweptConversations, SweptDeltas, Transfer, TurnPlace, Written,
};
use connections::{Backend, Connections};
use flush::FlushId;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The schema that this version writes.
const SCHEMA_VERSION: i32 = 6;

/// How long a flush may take; longer than the server's own limit for a statement.
const FLUSH_DEADLINE: Duration = Duration::from_secs(6);
/// How long anything else may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// One flush at a time keeps a lane in order; there are three lanes, and sometimes a resolver.
const JOURNAL_CONNECTIONS: u32 = 4;
/// Days for which partitions of `run_deltas` are made ahead.
const PARTITIONS_AHEAD: i32 = 7;

/// All of `meta`: one row.
const META: &str = "\
select min_reader_version
from meta";

/// How to use a server.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections for everything but flushes, which have two of their own.
    pub max_connections: u32,
    /// Use a server even if it may lose what it committed.
    pub unsafe_durability: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_connections: 16, unsafe_durability: false }
    }
}

/// A Postgres database.
pub struct PostgresStore {
    options: PgConnectOptions,
    journal: Connections,
    general: Connections,
    /// Who was writing the batches whose answers were lost.
    in_doubt: Mutex<HashMap<FlushId, Backend>>,
}

impl PostgresStore {
    /// Connects to the database of a `postgres://` URL, and checks that it keeps what it commits.
    /// Touches no table: see [`PostgresStore::migrate`].
    ///
    /// # Errors
    /// [`StoreError::Unusable`] for an unreadable URL, a server that is too old or unsafe settings;
    /// [`StoreError::Unavailable`] when it cannot be reached.
    pub async fn open(url: &str, options: Options) -> Result<Self> {
        // The parser's error could quote the URL, password included.
        let server: PgConnectOptions = url.parse().map_err(|_: sqlx::Error| {
            StoreError::Unusable(
                "The database URL cannot be read. It looks like \
                 postgres://user:password@host:5432/database."
                    .to_owned(),
            )
        })?;
        let server = server.application_name("stepwell");
        let general =
            Connections::new(&server, settings::SESSION, options.max_connections.max(1), DEADLINE);
        let journal =
            Connections::new(&server, settings::SESSION, JOURNAL_CONNECTIONS, FLUSH_DEADLINE);
        let store = Self { options: server, journal, general, in_doubt: Mutex::default() };
        let mut lease = store.general.lease().await.map_err(failure::of_lease)?;
        settings::check(&mut lease, options.unsafe_durability).await?;
        drop(lease);
        Ok(store)
    }

    /// Brings the schema up to this version, one node at a time, and makes the partitions of the next
    /// days. A newer schema is left alone if it says that this version can still read it.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when a migration failed or the schema is too new.
    pub async fn migrate(&self) -> Result<()> {
        let mut connection = self.options.connect().await.map_err(failure::of_lease)?;
        connection.execute(settings::MIGRATION).await.map_err(failure::of_read)?;
        let mut migrator =
            Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
        // During a rolling upgrade the schema may be ahead of this node.
        migrator.set_ignore_missing(true);
        migrator
            .run(&mut connection)
            .await
            .map_err(|e| StoreError::Unusable(format!("The database cannot be migrated: {e}")))?;
        let _ = connection.close().await;
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let row = lease.row(sqlx::query(META)).await.map_err(failure::of_read)?;
        let row = row.ok_or_else(|| StoreError::Corrupt("meta is empty".to_owned()))?;
        let oldest: i32 = row.try_get(0).map_err(failure::of_value)?;
        if oldest > SCHEMA_VERSION {
            return Err(StoreError::Unusable(format!(
                "The database has a schema that needs a newer Stepwell: it can be read from schema \
                 version {oldest} on, and this is {SCHEMA_VERSION}."
            )));
        }
        drop(lease);
        self.make_partitions().await
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn close(&self) {
        self.journal.close().await;
        self.general.close().await;
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn flush_interval(&self) -> Duration {
        Duration::from_millis(4)
    }

    async fn find_key(&self, key: &IdempotencyKey) -> Result<Option<KeyRow>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        keys::find(&mut lease, key).await
    }

    async fn insert_agent(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        self.insert_agent_row(workspace_id, agent, key).await
    }

    async fn load_agent(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        version: Option<i32>,
    ) -> Result<Option<Agent>> {
        self.load_agent_row(workspace_id, agent_id, version).await
    }

    async fn list_agents(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<AgentId>,
    ) -> Result<Listed<Agent>> {
        self.list_agent_rows(workspace_id, page).await
    }

    async fn list_agent_versions(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        page: &Page<i32>,
    ) -> Result<Listed<Agent>> {
        self.list_agent_version_rows(workspace_id, agent_id, page).await
    }

    async fn insert_agent_version(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        self.insert_agent_version_row(workspace_id, agent, key).await
    }

    async fn archive_agent(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        at: Timestamp,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        self.archive_agent_row(workspace_id, agent_id, at, key).await
    }

    async fn list_config_agents(&self, workspace_id: WorkspaceId) -> Result<Vec<Agent>> {
        self.list_config_agent_rows(workspace_id).await
    }

    async fn flush(&self, batch: &Batch) -> Result<BatchOutcome> {
        self.flush_batch(batch).await
    }

    async fn resolve(&self, batch: &Batch) -> Result<Option<BatchOutcome>> {
        self.resolve_batch(batch).await
    }

    async fn guest(&self, write: GuestWrite) -> Result<GuestOutcome> {
        self.guest_write(&write).await
    }

    async fn read_log(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        range: LogRange,
    ) -> Result<Option<Vec<Entry>>> {
        self.read_log_rows(workspace_id, run_id, range).await
    }

    async fn read_facts(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        above: i32,
    ) -> Result<Vec<Entry>> {
        self.read_fact_rows(workspace_id, run_id, above).await
    }

    async fn heads(&self, run_ids: &[RunId]) -> Result<Vec<(RunId, i32)>> {
        self.head_rows(run_ids).await
    }

    async fn load_run(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
    ) -> Result<Option<RunRecord>> {
        self.load_run_row(workspace_id, run_id).await
    }

    async fn list_runs(
        &self,
        workspace_id: WorkspaceId,
        filter: &RunFilter,
        page: &Page<RunId>,
    ) -> Result<Listed<RunRecord>> {
        self.list_run_rows(workspace_id, filter, page).await
    }

    async fn list_approvals(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<CallId>,
    ) -> Result<Listed<OpenApproval>> {
        self.list_approval_rows(workspace_id, page).await
    }

    async fn recent_durations(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
    ) -> Result<Vec<i64>> {
        self.recent_duration_rows(workspace_id, agent_id).await
    }

    async fn insert_conversation(
        &self,
        conversation: &Conversation,
        key: Option<&NewKey>,
    ) -> Result<Written<()>> {
        self.insert_conversation_row(conversation, key).await
    }

    async fn load_conversation(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
    ) -> Result<Option<Conversation>> {
        self.load_conversation_row(workspace_id, conversation_id).await
    }

    async fn list_conversations(
        &self,
        workspace_id: WorkspaceId,
        agent_id: Option<&AgentId>,
        page: &Page<ConversationId>,
    ) -> Result<Listed<Conversation>> {
        self.list_conversation_rows(workspace_id, agent_id, page).await
    }

    async fn converse(&self, write: ConversationWrite) -> Result<ConversationOutcome> {
        self.converse_in(&write).await
    }

    async fn read_messages(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        range: MessageRange,
    ) -> Result<Vec<Message>> {
        self.read_message_rows(workspace_id, conversation_id, range).await
    }

    async fn message_index(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<Option<i32>> {
        self.message_index_row(workspace_id, conversation_id, message_id).await
    }

    async fn find_turn(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        find: FindTurn,
    ) -> Result<Option<TurnPlace>> {
        self.find_turn_row(workspace_id, conversation_id, find).await
    }

    async fn to_be_cancelled(&self, limit: i64) -> Result<Vec<(WorkspaceId, RunId)>> {
        self.to_be_cancelled_rows(limit).await
    }

    async fn sweep_conversations(&self, sweep: ConversationSweep) -> Result<SweptConversations> {
        self.sweep_conversation_rows(sweep).await
    }

    async fn register_node(&self, node_id: NodeId, at: Timestamp) -> Result<()> {
        self.register_node_row(node_id, at).await
    }

    async fn beat(&self, node_id: NodeId) -> Result<bool> {
        self.beat_row(node_id).await
    }

    async fn other_nodes(&self, node_id: NodeId) -> Result<Vec<Neighbour>> {
        self.other_node_rows(node_id).await
    }

    async fn listen(&self, node_id: NodeId) -> Result<Option<Box<dyn Ear>>> {
        listen::listen(&self.options, node_id).await.map(Some)
    }

    async fn oldest_due(&self) -> Result<Option<Timestamp>> {
        self.oldest_due_row().await
    }

    async fn bury(&self, seen: NodeBeat) -> Result<bool> {
        self.bury_row(seen).await
    }

    async fn retire_node(&self, node_id: NodeId) -> Result<()> {
        self.retire_node_row(node_id).await
    }

    async fn claim_due(&self, node_id: NodeId, now: Timestamp, limit: i64) -> Result<Vec<Claim>> {
        self.claim_due_rows(node_id, now, limit).await
    }

    async fn claim_orphans(&self, node_id: NodeId, limit: i64) -> Result<Vec<Claim>> {
        self.claim_orphan_rows(node_id, limit).await
    }

    async fn transfer(&self, transfer: Transfer) -> Result<Option<Claim>> {
        self.transfer_row(transfer).await
    }

    async fn owned(&self, node_id: NodeId) -> Result<Vec<(RunId, i32)>> {
        self.owned_rows(node_id).await
    }

    async fn load_driveable(&self, node_id: NodeId, run_id: RunId) -> Result<Option<Driveable>> {
        self.load_driveable_row(node_id, run_id).await
    }

    async fn rouse_parents(&self, now: Timestamp, limit: i64) -> Result<Roused> {
        self.rouse_parent_rows(now, limit).await
    }

    async fn erase_below(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        at: Timestamp,
    ) -> Result<Below> {
        self.erase_below_rows(workspace_id, run_id, at).await
    }

    async fn release(
        &self,
        node_id: NodeId,
        run_id: RunId,
        rev: i32,
        due_at: Timestamp,
        status_message: Option<&str>,
    ) -> Result<bool> {
        self.release_row(nodes::Release { node_id, run_id, rev, due_at, status_message }).await
    }

    async fn prepare_days(&self) -> Result<()> {
        self.make_partitions_if_free().await
    }

    async fn sweep_runs(&self, sweep: RunSweep) -> Result<Swept<RunId>> {
        self.sweep_run_rows(sweep).await
    }

    async fn sweep_keys(&self, sweep: KeySweep) -> Result<Swept<Timestamp>> {
        self.sweep_key_rows(sweep).await
    }

    async fn sweep_deltas(
        &self,
        _after: Option<i64>,
        written_before: Timestamp,
    ) -> Result<SweptDeltas> {
        self.sweep_delta_rows(written_before).await
    }

    async fn deltas_gone_before(&self) -> Result<Timestamp> {
        self.gone_before().await
    }

    async fn sweep_nodes(&self, before: Timestamp) -> Result<Swept<()>> {
        self.sweep_node_rows(before).await
    }

    /// Vacuum makes room for new rows, and dropped days give theirs back at once.
    async fn shrink(&self) -> Result<bool> {
        Ok(false)
    }
}
