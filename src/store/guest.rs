//! Writes by somebody who does not drive the run: lock it, decide, append.

use std::sync::Arc;

use crate::domain::answer::Refusal;
use crate::domain::event::Entry;
use crate::domain::ids::{NodeId, RunId, WorkspaceId};
use crate::domain::time::Timestamp;

use super::batch::RunUpdate;
use super::key::{KeyRow, NewKey};
use super::record::RunRecord;

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
