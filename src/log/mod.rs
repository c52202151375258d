//! THE RUN LOG. The only door through which a run changes, and the only one through which it is read.
//!
//! - [`journal`]: group commit. Creations and appends of all runs of this node, flushed together.
//! - [`guest`]: writes of everybody who is not the driver (cancel, erase, later answers and steering).
//! - [`lane`]: one driven run's way into the journal: seqs, merging, the fence.
//! - [`live`]: what this process knows of runs that somebody watches or drives: tails and wake-ups.
//! - [`follow`]: a cursor over one run's log.
//! - [`desk`]: where created runs meet free slots of this node's engine.
//!
//! What this room must never do: show anything before its commit, hold a queue for a reader, let what
//! woke somebody be data, or guess the fate of a commit.

use std::time::Duration;

use crate::clock::Clock;
use crate::domain::event::Entry;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::{GuestOutcome, KeyRow, NewKey, NewRun, Result, RunRecord, SharedStore};

/// The run log of this process. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    /// The database below.
    pub store: SharedStore,
    /// The time.
    pub clock: Clock,
}

/// What became of a creation.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// The run is there.
    New(Box<RunRecord>),
    /// The agent has another current version than `row.agent_version` by now, is archived or gone.
    AgentMoved,
    /// The idempotency key was bound already; nothing was created.
    KeyTaken(KeyRow),
}

/// What became of an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erased {
    /// It is gone.
    Done,
    /// No such run.
    Absent,
    /// It has not ended.
    Active,
    /// The key was bound already.
    KeyTaken(KeyRow),
}

impl Log {
    /// Creates a run: durable when this returns. `row.node_id` is None and `row.due_at` is now: if
    /// this node's engine has a free slot, the log fills them in and hands the run over.
    pub async fn create(&self, _run: NewRun) -> Result<Created> {
        todo!()
    }
    /// The run as it is, from memory where that is current, else from the store.
    pub async fn load_run(&self, _ws: WorkspaceId, _run_id: RunId) -> Result<Option<RunRecord>> {
        todo!()
    }
    /// Asks the run to stop; nothing happens to one that has ended. The record is loaded afterwards.
    pub async fn cancel(
        &self,
        _ws: WorkspaceId,
        _run_id: RunId,
        _key: Option<NewKey>,
    ) -> Result<GuestOutcome> {
        todo!()
    }
    /// Erases an ended run.
    pub async fn erase(
        &self,
        _ws: WorkspaceId,
        _run_id: RunId,
        _key: Option<NewKey>,
    ) -> Result<Erased> {
        todo!()
    }
    /// A cursor over the log: what comes after `after`.
    pub fn follow(&self, _ws: WorkspaceId, _run_id: RunId, _after: i32) -> Cursor {
        todo!()
    }
    /// The run once it has ended or waits for somebody, or as it is after `patience`.
    pub async fn settled(
        &self,
        _ws: WorkspaceId,
        _run_id: RunId,
        _patience: Duration,
    ) -> Result<Option<RunRecord>> {
        todo!()
    }
}

/// A cursor over one run's log.
pub struct Cursor {}

impl Cursor {
    /// The next events, at least one: waits until there are some. Cancel-safe. After the final event
    /// was given there is nothing more to ask for: do not call again.
    pub async fn next(&mut self) -> Result<Vec<Entry>> {
        todo!()
    }
}
