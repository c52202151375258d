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
mod ear;
pub mod error;
mod open;
pub mod postgres;
mod retention;
mod rows;
pub mod sqlite;
mod turns;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::agent::Agent;
use crate::domain::answer::Refusal;
use crate::domain::conversation::message::{Message, NewMessage};
use crate::domain::conversation::{self, Conversation};
use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, CallId, ConversationId, MessageId, NodeId, RunId, WorkspaceId};
use crate::domain::page::{Listed, Page};
use crate::domain::run::{OpenApproval, RequiredAction};
use crate::domain::time::Timestamp;

pub use batch::{
    Append, AppendOutcome, Batch, BatchOutcome, CreateOutcome, NewRun, Owner, RunBody, RunRow,
    RunUpdate, Said,
};
pub use ear::{Ear, Hint};
pub use error::StoreError;
pub use open::{OpenOptions, open};
pub use retention::{Below, KeySweep, OLDEST, RunSweep, Swept, SweptConversations, SweptDeltas};
pub use turns::{Entrance, FindTurn, NewTurn, Past, TurnPlace};

/// The answer of a store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A store that many share.
pub type SharedStore = Arc<dyn Store>;

/// An idempotency key as a client sent it, with what the request asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// Whose key.
    pub workspace_id: WorkspaceId,
    /// Method and route template, for example `POST /v1/agents`.
    pub scope: &'static str,
    /// The key, 1–255 visible ASCII.
    pub key: String,
    /// SHA-256 of the path and the canonical body.
    pub fingerprint: [u8; 32],
}

/// An idempotency key that is to be bound to what a write makes, in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// The key.
    pub key: IdempotencyKey,
    /// What it stands for: an `agent_id` or a `run_id`.
    pub resource: String,
    /// When it was bound.
    pub created_at: Timestamp,
}

/// A key that is bound already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// What the first request asked for; another fingerprint is another request.
    pub fingerprint: [u8; 32],
    /// What the first request made.
    pub resource: String,
}

/// A write that names an idempotency key: done, or done before by somebody with the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written<T> {
    /// Done now, and the key (if any) bound.
    Done(T),
    /// The key was bound already; nothing was changed.
    KeyTaken(KeyRow),
}

/// A run as the API and the engine read it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// Its row.
    pub row: RunRow,
    /// What it was created with, apart from its input.
    pub body: RunBody,
    /// The newest event of the whole log, deltas included.
    pub last_seq: i32,
    /// `run.queued`, which holds the input; left out in lists.
    pub first: Option<Entry>,
    /// The newest fact, when the run has ended or waits for somebody: it says how it ended.
    pub newest_fact: Option<Entry>,
    /// What somebody must answer, in the order of the calls; left out where the log is read.
    pub actions: Vec<RequiredAction>,
}

/// Which runs a list shows. All conditions must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunFilter {
    /// Of this agent.
    pub agent_id: Option<AgentId>,
    /// In one of these statuses; empty means any.
    pub statuses: Vec<crate::domain::run::RunStatus>,
    /// Of this conversation.
    pub conversation_id: Option<crate::domain::ids::ConversationId>,
    /// Called by this run.
    pub parent_run_id: Option<RunId>,
    /// For this user.
    pub end_user_id: Option<String>,
    /// Created at or after.
    pub created_after: Option<Timestamp>,
    /// Created at or before.
    pub created_before: Option<Timestamp>,
    /// With all these pairs of metadata.
    pub metadata: Vec<(String, String)>,
}

/// Which part of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRange {
    /// Only events with a larger `seq`.
    pub above: i32,
    /// Only events with a smaller `seq`; `i32::MAX` for no end.
    pub below: i32,
    /// Events at most.
    pub limit: i64,
    /// Newest first?
    pub descending: bool,
}

/// A run that this node has just become the owner of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Which.
    pub run_id: RunId,
    /// Whose.
    pub workspace_id: WorkspaceId,
    /// The fence that appends must name.
    pub rev: i32,
    /// How often the run was claimed.
    pub epoch: i32,
}

/// A run that goes from one node to another, by agreement of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Which run.
    pub run_id: RunId,
    /// Who owns it now.
    pub from: NodeId,
    /// Who shall own it.
    pub to: NodeId,
    /// What `crashes` becomes; `None`: it stays.
    pub crashes: Option<i32>,
}

/// A run with everything that a driver folds.
#[derive(Debug, Clone)]
pub struct Driveable {
    /// Its row, body, and last seq.
    pub record: RunRecord,
    /// All its facts, in order.
    pub facts: Vec<Entry>,
    /// Bytes of `data` in its log, deltas included.
    pub log_bytes: u64,
}

/// What a guest writer sees while it holds the run's lock.
#[derive(Debug)]
pub struct Locked {
    /// The run; `first` and `newest_fact` are not filled in.
    pub record: RunRecord,
    /// All its facts, in order.
    pub facts: Vec<Entry>,
}

/// What a guest writer decided under the lock.
#[derive(Debug, Clone)]
pub enum GuestDecision {
    /// Change nothing. (A new idempotency key is bound all the same.)
    Nothing,
    /// Append these facts, whose seqs follow [`RunRecord::last_seq`], and change the row.
    Append {
        /// In order, contiguous.
        facts: Vec<Entry>,
        /// The row as it is then.
        update: Box<RunUpdate>,
    },
    /// Change nothing, bind no key, and say why.
    Refuse(Refusal),
    /// Erase the run: its body, labels and log go; the row stays as a tombstone with `deleted_at`.
    Erase {
        /// When.
        at: Timestamp,
    },
}

/// The pure decision of a guest writer. May be called again if the transaction had to be repeated.
pub type GuestDecide =
    Arc<dyn Fn(&Locked) -> std::result::Result<GuestDecision, String> + Send + Sync>;

/// A write by somebody who is not the driver: locks the run, decides, appends.
pub struct GuestWrite {
    /// Whose run.
    pub workspace_id: WorkspaceId,
    /// Which run.
    pub run_id: RunId,
    /// Bound in the same transaction.
    pub key: Option<NewKey>,
    /// Decides under the lock.
    pub decide: GuestDecide,
}

/// What a guest write did.
#[derive(Debug, Clone, PartialEq)]
pub enum GuestOutcome {
    /// There is no such run in the workspace (or it was erased).
    Absent,
    /// The key was bound already; nothing was changed.
    KeyTaken(KeyRow),
    /// What was decided is not to be; nothing was changed.
    Refused(Refusal),
    /// Done.
    Done {
        /// The node that drives the run, which must look again; `None` when nobody does.
        node_id: Option<NodeId>,
        /// The facts that were appended; empty for `Nothing` and `Erase`.
        appended: Vec<Entry>,
        /// Whether a run that waited for the end of this one is due now.
        promoted: bool,
    },
}

/// Parents that must look at their children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roused {
    /// Signals that were taken; fewer than asked for: there are no more.
    pub signals: i64,
    /// The runs that were roused, ascending.
    pub run_ids: Vec<RunId>,
}

/// Another node, as the database knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeBeat {
    /// Which.
    pub node_id: NodeId,
    /// Its counter; a node whose counter stands still may be dead.
    pub beat: i64,
}

/// Another node, and whether its process is known to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its counter.
    pub seen: NodeBeat,
    /// Whether the database has a connection of its ear; `None` where there are no ears.
    pub listens: Option<bool>,
}

/// A conversation's row is locked: what is to become of it.
#[derive(Debug, Clone)]
pub enum ConversationDecision {
    /// Change nothing. (A new idempotency key is bound all the same.)
    Nothing,
    /// The row as it is from here on, and what is said in it: `message_count` counts that already. Whoever
    /// waits in one that is closed with it waits in vain.
    Change {
        /// The row.
        conversation: Box<Conversation>,
        /// In order; the last has the index below `message_count`.
        messages: Vec<NewMessage>,
    },
    /// Change nothing, bind no key, and say why.
    Refuse(conversation::Refusal),
    /// Erase it with its messages; its runs cannot be read any more, and are erased by
    /// [`Store::sweep_conversations`].
    Erase {
        /// When.
        at: Timestamp,
    },
}

/// The pure decision about a conversation. May be called again if the transaction had to be repeated.
pub type ConversationDecide = Arc<dyn Fn(&Conversation) -> ConversationDecision + Send + Sync>;

/// A write to a conversation that is no run's: locks it, decides, changes.
pub struct ConversationWrite {
    /// Whose conversation.
    pub workspace_id: WorkspaceId,
    /// Which conversation.
    pub conversation_id: ConversationId,
    /// Bound in the same transaction.
    pub key: Option<NewKey>,
    /// Decides under the lock.
    pub decide: ConversationDecide,
}

/// What became of a write to a conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum ConversationOutcome {
    /// There is no such conversation in the workspace (or it was erased).
    Absent,
    /// The key was bound already; nothing was changed.
    KeyTaken(KeyRow),
    /// What was decided is not to be; nothing was changed.
    Refused(conversation::Refusal),
    /// Done; the row as it is now.
    Done(Box<Conversation>),
}

/// Which messages of a conversation to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageRange {
    /// Only larger indexes; -1 for all.
    pub above: i32,
    /// Only smaller indexes; `i32::MAX` for no end.
    pub below: i32,
    /// Messages at most.
    pub limit: i64,
    /// Newest first?
    pub descending: bool,
}

/// One step of a sweep through conversations that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationSweep {
    /// Only this one, which was erased; `None`: all that were, and those that are old.
    pub only: Option<ConversationId>,
    /// Closed and expired ones go in which nothing happened since; `None`: none goes by its age.
    pub quiet_since: Option<Timestamp>,
    /// The time.
    pub now: Timestamp,
}

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
    /// `epoch` and `rev`, clears `due_at`.
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
