//! Runs as they are read, and which of them.

use crate::domain::event::Entry;
use crate::domain::ids::{AgentId, ConversationId, RunId};
use crate::domain::run::{RequiredAction, RunStatus};
use crate::domain::time::Timestamp;

use super::batch::{RunBody, RunRow};

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
    pub statuses: Vec<RunStatus>,
    /// Of this conversation.
    pub conversation_id: Option<ConversationId>,
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
