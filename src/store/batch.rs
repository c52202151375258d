//! What one flush writes: creations and appends of many runs, each decided for itself.

use std::collections::{BTreeMap, HashMap};

use crate::domain::conversation::Refusal;
use crate::domain::conversation::message::Spoken;
use crate::domain::event::{Entry, Event};
use crate::domain::fold::{Call, CallState, Folded};
use crate::domain::ids::{AgentId, ConversationId, NodeId, RunId, WorkspaceId};
use crate::domain::limits;
use crate::domain::money::Usd;
use crate::domain::run::{OpenAction, RunConfig, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::usage::Usage;

use super::turns::{Entrance, NewTurn, Past};
use super::{KeyRow, NewKey};

/// The row of a run: ids, status, ownership, counters. A cached fold of its log.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// Its id.
    pub run_id: RunId,
    /// Whose it is.
    pub workspace_id: WorkspaceId,
    /// The agent.
    pub agent_id: AgentId,
    /// The version it is pinned to.
    pub agent_version: i32,
    /// Where it is.
    pub status: RunStatus,
    /// Who drives it.
    pub node_id: Option<NodeId>,
    /// The fence: raised by every writer that is not the driver, claims included.
    pub rev: i32,
    /// How often it was claimed.
    pub epoch: i32,
    /// When an engine must look at it; `None` while driven, and for ever once ended.
    pub due_at: Option<Timestamp>,
    /// How many drivers died with it since its last committed step.
    pub crashes: i32,
    /// The newest fact.
    pub fact_seq: i32,
    /// Steps that are over.
    pub steps_completed: i32,
    /// Tokens of all steps that are over.
    pub usage: Usage,
    /// What they cost; `None` when a used model has no price.
    pub cost: Option<Usd>,
    /// What its child runs cost that have answered; `None` when that is not known of one.
    pub children_cost: Option<Usd>,
    /// What it is doing.
    pub status_message: Option<String>,
    /// Its conversation.
    pub conversation_id: Option<ConversationId>,
    /// The run that called it.
    pub parent_run_id: Option<RunId>,
    /// The run at the top of its family; `None` for that one, and for a run that nobody called.
    pub root_run_id: Option<RunId>,
    /// What it was forked from.
    pub forked_from_run_id: Option<RunId>,
    /// The client's own user.
    pub end_user_id: Option<String>,
    /// What its model reads before its own messages, once its turn has begun.
    pub past: Option<Past>,
    /// What is left of its conversation's money, where that has a cap.
    pub cost_ceiling: Option<Usd>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it first ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
}

impl RunRow {
    /// What it and its child runs that have answered cost; `None` when that is not known.
    pub fn tree_cost(&self) -> Option<Usd> {
        Some(self.cost?.plus(self.children_cost?))
    }
}

/// What a run was created with and never changes, apart from its input (which is in its log).
#[derive(Debug, Clone, PartialEq)]
pub struct RunBody {
    /// The model, in full.
    pub model: String,
    /// What differs from the agent.
    pub config: RunConfig,
    /// Steps it may have.
    pub max_steps: u32,
    /// The worst case of its first call.
    pub estimated_cost: Option<Usd>,
    /// The client's notes; also kept as labels, by which lists filter.
    pub metadata: BTreeMap<String, String>,
}

/// A run to be created.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    /// Its row. With a `node_id` it is born claimed (then `due_at` is `None`).
    pub row: RunRow,
    /// Its body.
    pub body: RunBody,
    /// `run.queued`, seq 1.
    pub first: Entry,
    /// Facts that it begins with, behind the first: those that a fork copies. `row` says what they make
    /// of it, and its agent's version need not be the current one.
    pub copied: Vec<Entry>,
    /// The turn that it asks for in its conversation. A batch has one creation for a conversation at
    /// most.
    pub turn: Option<NewTurn>,
    /// Bound in the same transaction.
    pub key: Option<NewKey>,
}

/// Events of one run, written by its driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    /// Which run.
    pub run_id: RunId,
    /// The fence: the append counts only if the row still has it and is this node's.
    pub rev: i32,
    /// Facts and deltas mixed, in order of `seq`.
    pub entries: Vec<Entry>,
    /// The row as the facts make it; `None` when there are only deltas.
    pub update: Option<RunUpdate>,
}

impl Append {
    /// Whether it means something to a conversation.
    pub fn speaks(&self) -> bool {
        self.update.as_ref().is_some_and(|update| update.spoken.is_some())
    }
}

/// What facts change in a run's row.
#[derive(Debug, Clone, PartialEq)]
pub struct RunUpdate {
    /// Where it is now.
    pub status: RunStatus,
    /// The newest fact.
    pub fact_seq: i32,
    /// Steps that are over. When this rises, `crashes` goes back to 0.
    pub steps_completed: i32,
    /// Tokens.
    pub usage: Usage,
    /// Money.
    pub cost: Option<Usd>,
    /// Money of its children.
    pub children_cost: Option<Usd>,
    /// Who must look when the run comes to rest or goes on again. Only to know whether anybody must:
    /// the row itself names its parent.
    pub parent_run_id: Option<RunId>,
    /// What it is doing.
    pub status_message: Option<String>,
    /// When it first ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// The actions that are open from here on; `None`: the same as before.
    pub actions: Option<Vec<OpenAction>>,
    /// What its conversation hears.
    pub spoken: Option<Box<Spoken>>,
    /// Who owns it from here on.
    pub owner: Owner,
}

impl RunUpdate {
    /// What these events, which `folded` has taken in, make of the run's row, of its open actions,
    /// which were these before, and of its conversation.
    pub fn since(before: &[OpenAction], folded: &Folded, said: Said<'_>, owner: Owner) -> Self {
        let actions = folded.open_actions(said.run_id);
        let actions = (actions != before).then_some(actions);
        let spoken = Spoken::of(folded, said.run_id, said.events, said.at);
        Self { actions, spoken, ..Self::of(folded, owner) }
    }

    /// What a folded run makes of its row; the same actions are open as before.
    pub fn of(folded: &Folded, owner: Owner) -> Self {
        Self {
            actions: None,
            spoken: None,
            status: folded.status,
            fact_seq: folded.last_fact_seq,
            steps_completed: folded.steps_completed,
            usage: folded.usage_so_far(),
            cost: folded.cost_so_far(),
            children_cost: folded.children_cost,
            parent_run_id: folded.parent_run_id,
            status_message: status_message(folded),
            started_at: folded.started_at,
            completed_at: folded.ended.as_ref().map(|(_, at)| *at),
            owner,
        }
    }

    /// Puts these values into a row.
    pub fn apply(&self, row: &mut RunRow) {
        row.status = self.status;
        row.fact_seq = self.fact_seq;
        if self.steps_completed > row.steps_completed {
            row.crashes = 0;
        }
        row.steps_completed = self.steps_completed;
        row.usage = self.usage;
        row.cost = self.cost;
        row.children_cost = self.children_cost;
        row.status_message.clone_from(&self.status_message);
        row.started_at = self.started_at;
        row.completed_at = self.completed_at;
        match self.owner {
            Owner::Keep => {}
            Owner::Nobody { due_at } => {
                row.node_id = None;
                row.due_at = due_at;
            }
            Owner::DueIfUnowned(at) => {
                if row.node_id.is_none() {
                    row.due_at = Some(at);
                }
            }
        }
    }
}

/// Events of one run, about to be written.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// Whose.
    pub run_id: RunId,
    /// In order.
    pub events: &'a [Event],
    /// When.
    pub at: Timestamp,
}

/// What a run is doing, in a few words.
fn status_message(folded: &Folded) -> Option<String> {
    if folded.status != RunStatus::Running {
        return None;
    }
    let turn = folded.open_step()?;
    if turn.message.is_none() {
        return Some(format!("Calling {}", turn.model));
    }
    let made = |call: &&Call| matches!(call.state, CallState::Ready | CallState::Started);
    let mut tools: Vec<&str> =
        turn.calls.iter().filter(made).map(|call| call.tool.as_str()).collect();
    tools.dedup();
    if tools.is_empty() { None } else { Some(format!("Calling {}", tools.join(", "))) }
}

/// What an update does to a run's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Nothing; `due_at` stays too.
    Keep,
    /// Nobody owns it any more; an engine must look at it then, or never.
    Nobody {
        /// When.
        due_at: Option<Timestamp>,
    },
    /// The owner stays; if there is none, an engine must look at it then.
    DueIfUnowned(Timestamp),
}

/// What one flush writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Who writes.
    pub node_id: NodeId,
    /// Which of the node's writers; each counts for itself.
    pub lane: i16,
    /// The number of this flush: unique with node and lane, and never used again once committed.
    pub number: i64,
    /// When (for the flush's own row).
    pub at: Timestamp,
    /// Runs to create.
    pub creates: Vec<NewRun>,
    /// Events to append; one entry a run.
    pub appends: Vec<Append>,
}

/// How many runs the family of each creation may have below its top already, so that there is room for it
/// and for those of the same family before it in the batch; `None` for a run that nobody called.
pub fn family_rooms<'a>(creates: impl IntoIterator<Item = &'a NewRun>) -> Vec<Option<i64>> {
    let mut counted: HashMap<RunId, usize> = HashMap::new();
    let room = |new: &NewRun| {
        let counted = counted.entry(new.row.root_run_id?).or_default();
        *counted += 1;
        // These, and the one at the top.
        let most = limits::MAX_FAMILY.saturating_sub(*counted + 1);
        Some(i64::try_from(most).unwrap_or(i64::MAX))
    };
    creates.into_iter().map(room).collect()
}

/// What became of a batch; in its order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BatchOutcome {
    /// One for each creation.
    pub creates: Vec<CreateOutcome>,
    /// One for each append.
    pub appends: Vec<AppendOutcome>,
    /// Whether a run that waited for its turn is due now.
    pub promoted: bool,
}

/// What became of a creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateOutcome {
    /// It is there.
    Created,
    /// It is there, and in its conversation.
    Entered(Entrance),
    /// Its conversation does not take it.
    Refused(Refusal),
    /// There is no such conversation.
    ConversationGone,
    /// The agent has another current version by now, is archived or is gone: read it again.
    AgentMoved,
    /// The key was bound already, before or by an earlier creation of this batch.
    KeyTaken(KeyRow),
    /// Its family has [`limits::MAX_FAMILY`] runs already. (Nodes that write at the same moment do not see
    /// what the other writes: each may make a few more.)
    FamilyFull,
}

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It is there.
    Written,
    /// The fence did not hold: somebody else wrote to the run, or owns it. Nothing was written for
    /// this run; read its row to learn which.
    Missed,
}
