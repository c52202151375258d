//! Who owns which run, and which nodes there are.

use crate::domain::event::Entry;
use crate::domain::ids::{NodeId, RunId, WorkspaceId};

use super::record::RunRecord;

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
