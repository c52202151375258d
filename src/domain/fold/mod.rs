//! The fold: a log read back into a state.
//!
//! Folding is total over everything that an engine or a guest can write, and needs facts only. It
//! checks as it goes: an event that does not fit what came before is a [`FoldError`], which means a
//! defect of ours and never a user's mistake.
//!
//! Here is what a run is made of; [`apply`] takes events into it, [`ask`] says what it comes to.

mod apply;
mod ask;

use std::sync::Arc;

use serde_json::Value;

use super::conversation::history::History;
use super::event::{
    ApprovalDecision, Entry, Event, MessageCompleted, RunEnded, SteeringInput, StepEnded,
};
use super::family::Child;
use super::ids::{CallId, ConversationId, RunId};
use super::message::Input;
use super::money::Usd;
use super::run::{ActionType, IllegalMove, RequiredAction, RunStatus};
use super::time::Timestamp;
use super::tool::Effect;
use super::usage::Usage;

/// A log that cannot be read: a defect, or an event of a newer version.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The stored text is not an event of its kind.
    #[error("event {seq} cannot be read")]
    Unreadable {
        /// Which.
        seq: i32,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
    /// The status machine has no such move.
    #[error("event {seq} makes an illegal move")]
    Illegal {
        /// Which.
        seq: i32,
        /// The move.
        #[source]
        source: IllegalMove,
    },
    /// It speaks of a step or a call that is not there.
    #[error("event {seq} ({event_type}) does not fit the log before it")]
    Misplaced {
        /// Which.
        seq: i32,
        /// Its `type`.
        event_type: &'static str,
    },
    /// There is no first event.
    #[error("the log is empty")]
    Empty,
}

/// A run, as its log tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// Where it is.
    pub status: RunStatus,
    /// The newest fact.
    pub last_fact_seq: i32,
    /// The conversation that it is a turn of.
    pub conversation_id: Option<ConversationId>,
    /// The run that called it.
    pub parent_run_id: Option<RunId>,
    /// How many runs are above it.
    pub depth: u32,
    /// The model it is pinned to.
    pub model: String,
    /// What was said in its conversation before it, which its log does not tell: empty unless
    /// [`Folded::with_history`] says otherwise.
    pub history: Arc<History>,
    /// What it was started with.
    pub input: Input,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it first ran.
    pub started_at: Option<Timestamp>,
    /// The steps, in order; at most the last is open.
    pub steps: Vec<Turn>,
    /// What came in while it ran, in order.
    pub steering: Vec<Steering>,
    /// Tokens of all steps that are over.
    pub usage: Usage,
    /// What all steps that are over cost; `None` once a used model had no price.
    pub cost: Option<Usd>,
    /// What its child runs cost that have answered; `None` once that is not known of one.
    pub children_cost: Option<Usd>,
    /// Actions of the runs below it that it waited for when it parked, for as long as it does: some may
    /// be answered since, which is in the logs of those runs.
    pub children_actions: Vec<RequiredAction>,
    /// Steps that are over.
    pub steps_completed: i32,
    /// Milliseconds in `running` before the present stretch.
    pub ran_ms: u64,
    /// Since when the present stretch of `running` lasts.
    pub running_since: Option<Timestamp>,
    /// How it ended.
    pub ended: Option<(RunEnded, Timestamp)>,
}

/// A step under way or over.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Its number, from 1.
    pub step: i32,
    /// The present attempt at its model call.
    pub attempt: i32,
    /// The model.
    pub model: String,
    /// When it began.
    pub started_at: Timestamp,
    /// Messages of its conversation that the model does not see in it.
    pub dropped_messages: i32,
    /// The event that opened the present attempt: what it showed comes after this `seq`.
    pub opened_seq: i32,
    /// What the model said, once it has.
    pub message: Option<MessageCompleted>,
    /// What it asked for.
    pub calls: Vec<Call>,
    /// How it ended, once it has.
    pub closed: Option<Closed>,
}

/// The end of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// Whether it did what it was for.
    pub completed: bool,
    /// Its numbers.
    pub end: StepEnded,
}

/// A tool call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Its id.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// Its arguments, as approved.
    pub arguments: Value,
    /// The model's own arguments, where somebody changed them.
    pub edited_from: Option<Value>,
    /// Whether it may be made, where somebody was asked.
    pub decided: Option<Decided>,
    /// Whether somebody wanted it made again, not knowing what had become of it.
    pub retried: bool,
    /// Whether the server answered for it: it ran out of time, or the run stopped.
    pub synthetic: bool,
    /// What it does to the world.
    pub effect: Effect,
    /// The run that answers it, once it was made as one.
    pub child: Option<Child>,
    /// Where it is.
    pub state: CallState,
    /// How often it was begun.
    pub attempt: i32,
    /// What happened instead of an answer, where nobody knows what became of it.
    pub lost: Option<String>,
    /// Since when somebody is asked about it.
    pub asked_at: Option<Timestamp>,
    /// When it was last made.
    pub started_at: Option<Timestamp>,
    /// When it was answered.
    pub ended_at: Option<Timestamp>,
}

/// What somebody decided about a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// Whether it may be made.
    pub decision: ApprovalDecision,
    /// Why.
    pub reason: Option<String>,
}

/// Where a tool call is.
#[derive(Debug, Clone, PartialEq)]
pub enum CallState {
    /// To be made.
    Ready,
    /// Waiting for somebody, until then.
    Waiting(ActionType, Option<Timestamp>),
    /// Being made.
    Started,
    /// Answered.
    Completed(Value),
    /// Failed, with words for the model.
    Failed(String),
}

impl CallState {
    /// Whether the model can be told an answer.
    pub const fn is_answered(&self) -> bool {
        match self {
            Self::Completed(_) | Self::Failed(_) => true,
            Self::Ready | Self::Waiting(..) | Self::Started => false,
        }
    }
}

/// A message that came in while the run ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    /// What was said.
    pub input: SteeringInput,
    /// The step that reads it first, once that is settled.
    pub applied_in: Option<i32>,
}

impl Folded {
    /// Reads a log, or its facts, from the beginning.
    ///
    /// # Errors
    /// When an event cannot be read or does not fit; see [`FoldError`].
    pub fn read<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Self, FoldError> {
        let mut entries = entries.into_iter().filter(|entry| !entry.event_type.is_delta());
        let first = entries.next().ok_or(FoldError::Empty)?;
        let (event, at) = read(first)?;
        let Event::RunQueued(queued) = event else {
            return Err(misplaced(first.seq, &event));
        };
        let mut folded = Self {
            status: RunStatus::Queued,
            last_fact_seq: first.seq,
            conversation_id: queued.conversation_id,
            parent_run_id: queued.parent_run_id,
            depth: queued.depth,
            model: queued.model,
            history: Arc::default(),
            input: queued.input,
            created_at: at,
            started_at: None,
            steps: Vec::new(),
            steering: Vec::new(),
            usage: Usage::default(),
            cost: Some(Usd::ZERO),
            children_cost: Some(Usd::ZERO),
            children_actions: Vec::new(),
            steps_completed: 0,
            ran_ms: 0,
            running_since: None,
            ended: None,
        };
        for entry in entries {
            folded.apply_entry(entry)?;
        }
        Ok(folded)
    }

    /// The same run behind what was said in its conversation before it.
    #[must_use]
    pub fn with_history(self, history: Arc<History>) -> Self {
        Self { history, ..self }
    }
}

fn read(entry: &Entry) -> Result<(Event, Timestamp), FoldError> {
    entry.read().map_err(|source| FoldError::Unreadable { seq: entry.seq, source })
}

fn misplaced(seq: i32, event: &Event) -> FoldError {
    FoldError::Misplaced { seq, event_type: event.event_type().as_str() }
}

fn millis(later: Timestamp, earlier: Timestamp) -> u64 {
    u64::try_from(later.since(earlier).as_millis()).unwrap_or(u64::MAX)
}
