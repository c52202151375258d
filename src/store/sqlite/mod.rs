//! SQLite: the store that needs nothing but a file, for one process.
//!
//! One connection writes ([`writer`]): every write of the trait is a piece of work in
//! `begin immediate … commit`, one after the other, so no write ever waits for a lock or meets another
//! one. A few others read ([`readers`]), each read one statement, in the snapshot of the last commit.
//! The file is in WAL mode with `synchronous = full`: what is answered is on the disk.
//!
//! - **In doubt.** The database runs in this process, so the answer to a commit is never lost on the
//!   way. Only a caller that stops waiting does not know what became of its batch; [`Store::resolve`]
//!   comes behind it on the writer and reads back what is there. There is no table of flushes.
//! - **One server.** An exclusive lock on `<file>.lock` keeps a second server out, whatever node it
//!   says it is. The lock goes with the process, however it ends. That is why [`Store::is_exclusive`].
//!   It lends the file to the processes that it starts for single runs ([`Options::lent`]): they write
//!   too, so `begin immediate` may have to wait for one of them, and is told so when it took too long.
//! - **No `:memory:`.** It would be another database on every connection.
//! - **Numbers.** A run has a local number, `run_no`, under which its events are kept: they are
//!   written side by side in the order of creation. Nobody outside this room sees it.
//!
//! What this room must never do: write outside the writer, or leave a read in the middle (the
//! write-ahead log cannot be cut behind a reader that stands still).
//!
//! To add a method: its statements and their code go to the file of its subject, as a function over
//! `&Readers` or `&Writer`; this file only names it.

mod actions;
mod agents;
mod checkpoint;
mod connect;
mod conversations;
mod creates;
mod events;
mod failure;
mod families;
mod flush;
mod guest;
mod keys;
mod list;
mod log;
mod nodes;
#[cfg(test)]
mod plans;
mod readers;
mod retention;
mod runs;
mod table;
mod turns;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{ConnectOptions as _, Row as _};

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
use checkpoint::Checkpoints;
use connect::Lock;
use readers::Readers;
use writer::Writer;

/// The newest `min_reader_version` that this server can open.
const READER_VERSION: i32 = 5;

/// Longer than on Postgres: a flush here costs an fsync and nothing else can be written meanwhile.
const FLUSH_INTERVAL: Duration = Duration::from_millis(5);

/// How a SQLite store works. The defaults serve everybody; tests make the limits small.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections that read.
    pub readers: usize,
    /// Bytes of a page, for a file that is not there yet; one that is there keeps its own.
    pub page_size: u32,
    /// Bytes of the write-ahead log that are not in the file yet, from which on they are copied.
    pub checkpoint_bytes: u64,
    /// Bytes of the write-ahead log from which on the writer stops for 20 ms to begin it anew.
    pub wal_limit_bytes: u64,
    /// Another process of ours holds the lock and has made the schema: take no lock, make nothing, and
    /// leave the write-ahead log to it in the end.
    pub lent: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readers: 4,
            // 1024 was measured against it and was no faster.
            page_size: 4096,
            checkpoint_bytes: 4 * 1024 * 1024,
            wal_limit_bytes: 64 * 1024 * 1024,
            lent: false,
        }
    }
}

/// A SQLite database.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    readers: Readers,
    reader_count: usize,
    writer: Writer,
    lent: bool,
}

impl SqliteStore {
    /// Opens the database file at `path`, or makes it. Must be called within a tokio runtime.
    ///
    /// The schema is made or brought up to date by [`SqliteStore::migrate`], which comes next.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when the file cannot be opened, is no database, or is in use by another
    /// stepwell.
    pub async fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let name = path.as_os_str().to_string_lossy();
        if name.is_empty() || name.contains(":memory:") {
            return Err(StoreError::Unusable(
                "a SQLite database is a file here: an in-memory one would be another database on \
                 every connection"
                    .to_owned(),
            ));
        }
        let lock = if options.lent { None } else { Some(Lock::take(&path)?) };
        let unusable = |error: sqlx::Error| failure::of_open(&path, &error);
        let writes = connect::writer(&path, &options);
        let mut connection = writes.connect().await.map_err(unusable)?;
        let page_size: u32 = sqlx::query("pragma page_size")
            .fetch_one(&mut connection)
            .await
            .and_then(|row| row.try_get(0))
            .map_err(unusable)?;
        let checkpoints = Checkpoints::new(&options, page_size);
        let writer = Writer::start(connection, writes, checkpoints, lock);
        let reader_count = options.readers.max(1);
        let readers = Readers::new(connect::reader(&path), reader_count);
        Ok(Self { path, readers, reader_count, writer, lent: options.lent })
    }

    /// Makes the schema, or brings it up to date.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when a newer stepwell has changed it, or it cannot be made.
    pub async fn migrate(&self) -> Result<()> {
        let path = self.path.clone();
        self.writer
            .manage(move |connection| {
                Box::pin(async move {
                    let unusable = |error: &dyn std::fmt::Display| failure::of_open(&path, error);
                    sqlx::migrate!("migrations/sqlite")
                        .run_direct(None, &mut *connection, false)
                        .await
                        .map_err(|error| unusable(&error))?;
                    let needed: i32 = sqlx::query("select min_reader_version from meta")
                        .fetch_one(connection)
                        .await
                        .and_then(|row| row.try_get(0))
                        .map_err(|error| unusable(&error))?;
                    if needed > READER_VERSION {
                        return Err(unusable(&"it was made by a newer stepwell"));
                    }
                    Ok(())
                })
            })
            .await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn close(&self) {
        self.readers.close(self.reader_count).await;
        self.writer.close().await;
    }

    fn is_exclusive(&self) -> bool {
        !self.lent
    }

    fn flush_interval(&self) -> Duration {
        FLUSH_INTERVAL
    }

    async fn find_key(&self, key: &IdempotencyKey) -> Result<Option<KeyRow>> {
        keys::find(&self.readers, key).await
    }

    async fn insert_agent(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        let change = agents::Change::Insert(Box::new(agent.clone()));
        agents::change(&self.writer, workspace_id, change, key).await
    }

    async fn load_agent(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        version: Option<i32>,
    ) -> Result<Option<Agent>> {
        agents::load(&self.readers, workspace_id, agent_id, version).await
    }

    async fn list_agents(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<AgentId>,
    ) -> Result<Listed<Agent>> {
        agents::list(&self.readers, workspace_id, page).await
    }

    async fn list_agent_versions(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        page: &Page<i32>,
    ) -> Result<Listed<Agent>> {
        agents::list_versions(&self.readers, workspace_id, agent_id, page).await
    }

    async fn insert_agent_version(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        let change = agents::Change::Move(Box::new(agent.clone()));
        agents::change(&self.writer, workspace_id, change, key).await
    }

    async fn archive_agent(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        at: Timestamp,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>> {
        let change = agents::Change::Archive(agent_id.clone(), at);
        agents::change(&self.writer, workspace_id, change, key).await
    }

    async fn list_config_agents(&self, workspace_id: WorkspaceId) -> Result<Vec<Agent>> {
        agents::list_config(&self.readers, workspace_id).await
    }

    async fn flush(&self, batch: &Batch) -> Result<BatchOutcome> {
        flush::flush(&self.writer, batch).await
    }

    async fn resolve(&self, batch: &Batch) -> Result<Option<BatchOutcome>> {
        flush::resolve(&self.writer, batch).await
    }

    async fn guest(&self, write: GuestWrite) -> Result<GuestOutcome> {
        guest::guest(&self.writer, write).await
    }

    async fn read_log(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        range: LogRange,
    ) -> Result<Option<Vec<Entry>>> {
        log::read(&self.readers, workspace_id, run_id, range).await
    }

    async fn read_facts(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        above: i32,
    ) -> Result<Vec<Entry>> {
        log::read_facts(&self.readers, workspace_id, run_id, above, i32::MAX).await
    }

    async fn heads(&self, run_ids: &[RunId]) -> Result<Vec<(RunId, i32)>> {
        log::heads(&self.readers, run_ids).await
    }

    async fn load_run(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
    ) -> Result<Option<RunRecord>> {
        runs::load(&self.readers, workspace_id, run_id).await
    }

    async fn list_runs(
        &self,
        workspace_id: WorkspaceId,
        filter: &RunFilter,
        page: &Page<RunId>,
    ) -> Result<Listed<RunRecord>> {
        list::list(&self.readers, workspace_id, filter, page).await
    }

    async fn list_approvals(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<CallId>,
    ) -> Result<Listed<OpenApproval>> {
        actions::list(&self.readers, workspace_id, page).await
    }

    async fn recent_durations(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
    ) -> Result<Vec<i64>> {
        runs::recent_durations(&self.readers, workspace_id, agent_id).await
    }

    async fn insert_conversation(
        &self,
        conversation: &Conversation,
        key: Option<&NewKey>,
    ) -> Result<Written<()>> {
        conversations::insert(&self.writer, conversation, key).await
    }

    async fn load_conversation(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
    ) -> Result<Option<Conversation>> {
        conversations::load(&self.readers, workspace_id, conversation_id).await
    }

    async fn list_conversations(
        &self,
        workspace_id: WorkspaceId,
        agent_id: Option<&AgentId>,
        page: &Page<ConversationId>,
    ) -> Result<Listed<Conversation>> {
        conversations::list(&self.readers, workspace_id, agent_id, page).await
    }

    async fn converse(&self, write: ConversationWrite) -> Result<ConversationOutcome> {
        conversations::converse(&self.writer, write).await
    }

    async fn read_messages(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        range: MessageRange,
    ) -> Result<Vec<Message>> {
        conversations::messages(&self.readers, workspace_id, conversation_id, range).await
    }

    async fn message_index(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<Option<i32>> {
        let place = (workspace_id, conversation_id);
        conversations::message_index(&self.readers, place, message_id).await
    }

    async fn find_turn(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        find: FindTurn,
    ) -> Result<Option<TurnPlace>> {
        turns::find_turn(&self.readers, workspace_id, conversation_id, find).await
    }

    async fn to_be_cancelled(&self, limit: i64) -> Result<Vec<(WorkspaceId, RunId)>> {
        turns::to_be_cancelled(&self.readers, limit).await
    }

    async fn sweep_conversations(&self, sweep: ConversationSweep) -> Result<SweptConversations> {
        conversations::erase::sweep(&self.readers, &self.writer, sweep).await
    }

    async fn register_node(&self, node_id: NodeId, at: Timestamp) -> Result<()> {
        nodes::register(&self.writer, node_id, at).await
    }

    async fn beat(&self, node_id: NodeId) -> Result<bool> {
        nodes::beat(&self.writer, node_id).await
    }

    async fn other_nodes(&self, node_id: NodeId) -> Result<Vec<Neighbour>> {
        nodes::others(&self.readers, node_id).await
    }

    /// There is nobody to listen to.
    async fn listen(&self, _node_id: NodeId) -> Result<Option<Box<dyn Ear>>> {
        Ok(None)
    }

    async fn oldest_due(&self) -> Result<Option<Timestamp>> {
        nodes::oldest_due(&self.readers).await
    }

    async fn bury(&self, seen: NodeBeat) -> Result<bool> {
        nodes::bury(&self.writer, seen).await
    }

    async fn retire_node(&self, node_id: NodeId) -> Result<()> {
        nodes::retire(&self.writer, node_id).await
    }

    async fn claim_due(&self, node_id: NodeId, now: Timestamp, limit: i64) -> Result<Vec<Claim>> {
        nodes::claim_due(&self.writer, node_id, now, limit).await
    }

    async fn claim_orphans(&self, node_id: NodeId, limit: i64) -> Result<Vec<Claim>> {
        nodes::claim_orphans(&self.writer, node_id, limit).await
    }

    async fn transfer(&self, transfer: Transfer) -> Result<Option<Claim>> {
        nodes::transfer(&self.writer, transfer).await
    }

    async fn owned(&self, node_id: NodeId) -> Result<Vec<(RunId, i32)>> {
        nodes::owned(&self.readers, node_id).await
    }

    async fn load_driveable(&self, node_id: NodeId, run_id: RunId) -> Result<Option<Driveable>> {
        runs::load_driveable(&self.readers, node_id, run_id).await
    }

    async fn rouse_parents(&self, now: Timestamp, limit: i64) -> Result<Roused> {
        families::rouse(&self.readers, &self.writer, now, limit).await
    }

    async fn erase_below(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        at: Timestamp,
    ) -> Result<Below> {
        families::erase(&self.readers, &self.writer, (workspace_id, run_id), at).await
    }

    async fn release(
        &self,
        node_id: NodeId,
        run_id: RunId,
        rev: i32,
        due_at: Timestamp,
        status_message: Option<&str>,
    ) -> Result<bool> {
        let release = nodes::Release { node_id, run_id, rev, due_at, status_message };
        nodes::release(&self.writer, release).await
    }

    async fn prepare_days(&self) -> Result<()> {
        Ok(())
    }

    async fn sweep_runs(&self, sweep: RunSweep) -> Result<Swept<RunId>> {
        retention::sweep_runs(&self.readers, &self.writer, sweep).await
    }

    async fn sweep_keys(&self, sweep: KeySweep) -> Result<Swept<Timestamp>> {
        retention::sweep_keys(&self.readers, &self.writer, sweep).await
    }

    async fn sweep_deltas(
        &self,
        after: Option<i64>,
        written_before: Timestamp,
    ) -> Result<SweptDeltas> {
        retention::sweep_deltas(&self.readers, &self.writer, after, written_before).await
    }

    async fn deltas_gone_before(&self) -> Result<Timestamp> {
        retention::gone_before(&self.readers).await
    }

    async fn sweep_nodes(&self, _before: Timestamp) -> Result<Swept<()>> {
        nodes::forget(&self.writer).await.map(|()| Swept::NOTHING)
    }

    async fn shrink(&self) -> Result<bool> {
        retention::shrink(&self.readers, &self.writer).await
    }
}
