//! THE MEMORY. The only room with SQL: one trait, two databases.
//!
//! Every method is one atomic business operation: it happens whole or not at all. Decisions are the
//! domain's; where one must be made under a lock it comes in as a pure closure ([`GuestWrite`]).
//! Both databases give the same answers: `tests/it/store` runs every method on both, and a
//! differential test replays random operations on both and compares.
//!
//! What this room must never do: decide what a run does, publish anything, retry on its own, or hold
//! a transaction across anything but SQL.
//!
//! Invariants that the statements here keep (`ARCHITECTURE.md`, section "The log"):
//! - `(run_id, seq)` is unique and never changed; facts and deltas share one seq space.
//! - A driver's append names its claim (`rev` and node) and changes nothing when it has lost it.
//! - Everyone else raises `rev`, so that the driver notices.
//! - The workspace is the first predicate of every look-up that the API reaches.
//! - Rows are locked in one order everywhere: idempotency → conversations → agents → runs (ascending)
//!   → actions. A flush binds the keys of new turns behind their conversations' locks: keys of one
//!   route are never bound in another.
//!
//! To add a method: write its contract here, its conformance test in `tests/it/store`, then both
//! implementations.

pub mod batch;
mod conversation;
mod ear;
pub mod error;
mod guest;
mod key;
mod open;
mod ownership;
pub mod postgres;
mod record;
mod retention;
mod rows;
pub mod sqlite;
mod turns;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::agent::Agent;
use crate::domain::conversation::Conversation;
use crate::domain::conversation::message::Message;
use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, CallId, ConversationId, MessageId, NodeId, RunId, WorkspaceId};
use crate::domain::page::{Listed, Page};
use crate::domain::run::OpenApproval;
use crate::domain::time::Timestamp;

pub use batch::{
    Append, AppendOutcome, Batch, BatchOutcome, CreateOutcome, NewRun, Owner, RunBody, RunRow,
    RunUpdate, Said,
};
pub use conversation::{
    ConversationDecide, ConversationDecision, ConversationOutcome, ConversationSweep,
    ConversationWrite, MessageRange,
};
pub use ear::{Ear, Hint};
pub use error::StoreError;
pub use guest::{GuestDecide, GuestDecision, GuestOutcome, GuestWrite, Locked};
pub use key::{IdempotencyKey, KeyRow, NewKey, Written};
pub use open::{OpenOptions, open};
pub use ownership::{Claim, Driveable, Neighbour, NodeBeat, Roused, Transfer};
pub use record::{LogRange, RunFilter, RunRecord};
pub use retention::{Below, KeySweep, OLDEST, RunSweep, Swept, SweptConversations, SweptDeltas};
pub use turns::{Entrance, FindTurn, NewTurn, Past, TurnPlace};

/// The answer of a store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A store that many share.
pub type SharedStore = Arc<dyn Store>;

/// The operations of a database.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Closes all connections, after everything that was begun is done.
    async fn close(&self);

    /// Whether no other process can use this database (SQLite): then every other node is dead.
    fn is_exclusive(&self) -> bool;

    /// How long appends may wait to be flushed together: 4 ms on Postgres, 5 ms on SQLite.
    fn flush_interval(&self) -> std::time::Duration;

    // Idempotency.

    /// The row of this key, whatever its fingerprint.
    async fn find_key(&self, key: &IdempotencyKey) -> Result<Option<KeyRow>>;

    // Agents.

    /// Stores version 1 of a new agent. `Done(false)`: the id is taken (archived ones keep theirs).
    async fn insert_agent(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>>;

    /// The agent at its current version (archived or not), or at `version`.
    async fn load_agent(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        version: Option<i32>,
    ) -> Result<Option<Agent>>;

    /// Agents at their current version, without archived ones.
    async fn list_agents(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<AgentId>,
    ) -> Result<Listed<Agent>>;

    /// All versions of one agent.
    async fn list_agent_versions(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        page: &Page<i32>,
    ) -> Result<Listed<Agent>>;

    /// Makes `agent` (whose version is one above) the current version, and takes over its
    /// `managed_by` and `archived_at`, if the current version is still `agent.version - 1`.
    /// `Done(false)`: it is not.
    async fn insert_agent_version(
        &self,
        workspace_id: WorkspaceId,
        agent: &Agent,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>>;

    /// Archives the agent; archiving again keeps the first time. `Done(false)`: no such agent.
    async fn archive_agent(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
        at: Timestamp,
        key: Option<&NewKey>,
    ) -> Result<Written<bool>>;

    /// Agents that a configuration file made and that are not archived.
    async fn list_config_agents(&self, workspace_id: WorkspaceId) -> Result<Vec<Agent>>;

    // The log. See `batch.rs` for what a batch is.

    /// Writes a batch in one transaction. The outcomes are in the order of the batch.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: nothing was written, the same batch may be tried again.
    /// [`StoreError::Rejected`]: nothing was written, because a row of it cannot be; bisect.
    /// [`StoreError::InDoubt`]: nobody knows; call [`Store::resolve`] with the same batch.
    async fn flush(&self, batch: &Batch) -> Result<BatchOutcome>;

    /// Settles a batch in doubt: `None` means that it is not in and can never come in any more.
    async fn resolve(&self, batch: &Batch) -> Result<Option<BatchOutcome>>;

    /// A write by somebody who is not the driver. Raises `rev` when it changes the run.
    async fn guest(&self, write: GuestWrite) -> Result<GuestOutcome>;

    /// A page of a log: facts and deltas by `seq`. `None`: no such run in the workspace.
    async fn read_log(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        range: LogRange,
    ) -> Result<Option<Vec<Entry>>>;

    /// The facts of a log with a `seq` above `above`, in order; empty for a run that is not there.
    async fn read_facts(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        above: i32,
    ) -> Result<Vec<Entry>>;

    /// The newest `seq` of each of these runs (those that exist), in any order; for sleeping cursors.
    async fn heads(&self, run_ids: &[RunId]) -> Result<Vec<(RunId, i32)>>;

    // Runs.

    /// A run; erased ones are not there.
    async fn load_run(&self, workspace_id: WorkspaceId, run_id: RunId)
    -> Result<Option<RunRecord>>;

    /// Runs that the filter lets through, by `run_id`.
    async fn list_runs(
        &self,
        workspace_id: WorkspaceId,
        filter: &RunFilter,
        page: &Page<RunId>,
    ) -> Result<Listed<RunRecord>>;

    /// Approvals that nobody has decided, of all runs, by `call_id`.
    async fn list_approvals(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<CallId>,
    ) -> Result<Listed<OpenApproval>>;

    /// Milliseconds from creation to end of the agent's newest completed runs, at most 50.
    async fn recent_durations(
        &self,
        workspace_id: WorkspaceId,
        agent_id: &AgentId,
    ) -> Result<Vec<i64>>;

    // Conversations. Turns in them begin and end with creations and appends: see `turns.rs`.

    /// Stores a new conversation.
    async fn insert_conversation(
        &self,
        conversation: &Conversation,
        key: Option<&NewKey>,
    ) -> Result<Written<()>>;

    /// A conversation; erased ones are not there.
    async fn load_conversation(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
    ) -> Result<Option<Conversation>>;

    /// Conversations, of one agent or of all, by `conversation_id`.
    async fn list_conversations(
        &self,
        workspace_id: WorkspaceId,
        agent_id: Option<&AgentId>,
        page: &Page<ConversationId>,
    ) -> Result<Listed<Conversation>>;

    /// A write to a conversation that is no run's.
    async fn converse(&self, write: ConversationWrite) -> Result<ConversationOutcome>;

    /// Messages of a conversation, by `message_index`; none for one that is not there.
    async fn read_messages(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        range: MessageRange,
    ) -> Result<Vec<Message>>;

    /// The place of a message in its conversation.
    async fn message_index(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<Option<i32>>;

    /// A run of a conversation by its place in it; erased ones are not there.
    async fn find_turn(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        find: FindTurn,
    ) -> Result<Option<TurnPlace>>;

    /// Runs that somebody's word has ended and that have not been told yet: active ones that another
    /// run waits to interrupt, those that lost that place to a later one, and those that wait in a
    /// conversation that is closed. At most so many, in any order.
    async fn to_be_cancelled(&self, limit: i64) -> Result<Vec<(WorkspaceId, RunId)>>;

    /// One slice of erasing: conversations that were erased lose their runs with all below them, and
    /// go; old ones are erased. A run with one below it that has not ended stays for a later sweep.
    async fn sweep_conversations(&self, sweep: ConversationSweep) -> Result<SweptConversations>;

    // Ownership.

    /// Enters a node, alive, with beat 0.
    async fn register_node(&self, node_id: NodeId, at: Timestamp) -> Result<()>;

    /// Raises the node's beat. `false`: it was buried, or is unknown.
    async fn beat(&self, node_id: NodeId) -> Result<bool>;

    /// All other nodes that are not dead.
    async fn other_nodes(&self, node_id: NodeId) -> Result<Vec<Neighbour>>;

    /// Opens this node's ear; `None` where no other process can use the database.
    async fn listen(&self, node_id: NodeId) -> Result<Option<Box<dyn Ear>>>;

    /// The earliest `due_at` of all runs that wait for an engine: how long the oldest one waits.
    async fn oldest_due(&self) -> Result<Option<Timestamp>>;

    /// Declares a node dead if its beat still is what was seen. `false`: it lives.
    async fn bury(&self, seen: NodeBeat) -> Result<bool>;

    /// Marks the own node as dead, after it released its runs; dead nodes that own nothing go.
    async fn retire_node(&self, node_id: NodeId) -> Result<()>;

    /// Claims runs that nobody owns and whose `due_at` has come, oldest first: sets node, raises
    /// `epoch` and `rev`, clears `due_at`. A node that was declared dead claims nothing.
    async fn claim_due(&self, node_id: NodeId, now: Timestamp, limit: i64) -> Result<Vec<Claim>>;

    /// Claims runs of dead nodes: as [`Store::claim_due`], and counts a crash for each, up to
    /// [`SUSPECT`](crate::domain::limits::SUSPECT): who died beside a run proves nothing against it.
    async fn claim_orphans(&self, node_id: NodeId, limit: i64) -> Result<Vec<Claim>>;

    /// Makes `to` the owner of a run that `from` still owns: raises `epoch` and `rev`, sets
    /// `crashes` if told to. Asks nobody whether they live. `None`: `from` does not own it (any more).
    async fn transfer(&self, transfer: Transfer) -> Result<Option<Claim>>;

    /// The runs that this node owns, with their fences.
    async fn owned(&self, node_id: NodeId) -> Result<Vec<(RunId, i32)>>;

    /// Everything that driving needs; `None` when the run is not this node's any more.
    async fn load_driveable(&self, node_id: NodeId, run_id: RunId) -> Result<Option<Driveable>>;

    /// Takes signals that children left when they came to rest or went on, at most so many, oldest
    /// first, and rouses their parents: one that nobody owns is due at once, one that is driven has
    /// its `rev` raised, so that its driver looks. Those that have ended are left alone.
    async fn rouse_parents(&self, now: Timestamp, limit: i64) -> Result<Roused>;

    /// One slice of erasing what is below an ended run: the runs that it called, those that they called,
    /// and so on, the deepest first, so that what is left can still be found. Nothing while one of them
    /// has not ended.
    async fn erase_below(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        at: Timestamp,
    ) -> Result<Below>;

    /// Lets go of a run without a new event: no owner, due at that time, this `status_message`.
    /// `false`: the claim was lost before.
    async fn release(
        &self,
        node_id: NodeId,
        run_id: RunId,
        rev: i32,
        due_at: Timestamp,
        status_message: Option<&str>,
    ) -> Result<bool>;

    // Retention. Each sweep is one slice, and one transaction: see `retention.rs`.

    /// Makes ready what writes of the next days need; nothing to do on SQLite. Without it writes go on,
    /// but what they leave behind is dearer to delete. Once a day is enough.
    async fn prepare_days(&self) -> Result<()>;

    /// Deletes runs that ended long enough ago, erased ones too, with all their events, bodies and
    /// labels. From the first slice of a run on, nobody finds it any more. Counts runs that are gone.
    async fn sweep_runs(&self, sweep: RunSweep) -> Result<Swept<RunId>>;

    /// Deletes old idempotency keys, but no key of a run that has not ended or has ended lately.
    /// Counts keys.
    async fn sweep_keys(&self, sweep: KeySweep) -> Result<Swept<Timestamp>>;

    /// Deletes deltas that were written before; but none behind the newest fact of a run that will go
    /// on, which would go on with a `seq` that was given before. Raises
    /// [`Store::deltas_gone_before`]. `after` is what the slice before said, or `None` to begin.
    async fn sweep_deltas(
        &self,
        after: Option<i64>,
        written_before: Timestamp,
    ) -> Result<SweptDeltas>;

    /// Before when deltas may have been deleted by retention; the beginning of time if none ever were.
    async fn deltas_gone_before(&self) -> Result<Timestamp>;

    /// Forgets dead nodes that own nothing, and on Postgres flush numbers taken before `before` by
    /// nodes that are forgotten. Counts flush numbers.
    async fn sweep_nodes(&self, before: Timestamp) -> Result<Swept<()>>;

    /// Gives a little of the free space in the database's file back to the system, unless there is so
    /// little that new rows will soon fill it. Whether there is more. Postgres sees to it by itself.
    async fn shrink(&self) -> Result<bool>;
}
