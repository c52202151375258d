//! Conversations: runs of one agent that come one after another and remember each other.
//!
//! - this file: what a conversation is, and the rules of its turns: who may begin one, who waits, who
//!   comes next. Pure: the store asks it under the conversation's lock.
//! - [`message`]: what is said in it, and what a run leaves behind in it.
//! - [`history`]: what of it a model gets to read.
//!
//! What this room must never do: let two runs be active at once, give an index twice, or leave a tool
//! call without an answer.

pub mod history;
pub mod message;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{AgentId, ConversationId, RunId, WorkspaceId};
use super::money::Usd;
use super::run::RunConfig;
use super::time::Timestamp;

/// Runs that may wait in one conversation: who has more is not waiting for answers.
pub const MAX_WAITING: i32 = 100;
/// Seconds after which a conversation in which nothing happens expires, if its creator does not say.
pub const DEFAULT_TIMEOUT_SECONDS: u32 = 1_800;
/// The longest that may be asked for: a year. For more there is `null`.
pub const MAX_TIMEOUT_SECONDS: u32 = 365 * 24 * 3_600;
/// Characters of a conversation's own instructions.
pub const MAX_SYSTEM_PROMPT_CHARS: usize = 100_000;
/// Messages of one conversation: far more than anybody reads, and few enough to be erased in one go.
pub const MAX_MESSAGES: i32 = 100_000;

/// Whether a conversation takes new turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConversationStatus {
    /// It does.
    Open,
    /// Somebody closed it. Its history stays readable.
    Closed,
    /// Nothing happened in it for `timeout_seconds`. Its history stays readable.
    Expired,
}

/// What becomes of a turn that is asked for while another one is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// It is refused with 409 `conversation_busy`.
    #[default]
    Reject,
    /// It waits for its turn, behind those that wait already; at most 100 wait.
    Enqueue,
    /// The run under way is cancelled, and this one comes next. A later one that interrupts takes its
    /// place; runs that are enqueued come after it.
    Interrupt,
}

/// A conversation, as its row tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Its id.
    pub conversation_id: ConversationId,
    /// Whose it is.
    pub workspace_id: WorkspaceId,
    /// The agent of all its runs, each at the version that is current when it is created.
    pub agent_id: AgentId,
    /// Instructions behind the agent's own.
    pub system_prompt: Option<String>,
    /// What its runs change about the agent, unless they say otherwise; `max_cost_usd` caps them all
    /// together.
    pub parameters: RunConfig,
    /// The client's notes.
    pub metadata: BTreeMap<String, String>,
    /// How long it stays open when nothing happens; `None`: for ever.
    pub timeout_seconds: Option<u32>,
    /// When somebody closed it.
    pub closed_at: Option<Timestamp>,
    /// When it expires, unless a run is under way then or waits.
    pub expires_at: Option<Timestamp>,
    /// The run whose turn it is.
    pub active_run_id: Option<RunId>,
    /// Runs that wait for their turn.
    pub queued_runs: i32,
    /// Turns that were ever asked for and not refused, which is the place of the next.
    pub turns: i32,
    /// Messages in it, which is the index of the next.
    pub message_count: i32,
    /// What its ended runs cost, with their children; `None` when that is not known of one.
    pub cost: Option<Usd>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When something last happened in it.
    pub last_active_at: Timestamp,
}

/// A conversation as clients read it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Conversation)]
pub struct ConversationView {
    /// Its id.
    pub conversation_id: ConversationId,
    /// The agent that answers in it.
    pub agent_id: AgentId,
    /// Instructions behind the agent's own.
    pub system_prompt: Option<String>,
    /// The default `config` of its runs. `max_cost_usd` in it caps all of them together.
    pub parameters: RunConfig,
    /// `open`, or why it takes no new turns.
    pub status: ConversationStatus,
    /// Messages in it. Those of a run enter as its turn begins and as its steps end.
    pub message_count: i32,
    /// The run whose turn it is; null when the conversation is free.
    pub active_run_id: Option<RunId>,
    /// Runs that wait for their turn.
    pub queued_runs: i32,
    /// Seconds without messages, runs and heartbeats after which it expires; null means never.
    pub timeout_seconds: Option<u32>,
    /// When it expires if nothing happens until then; null when it does not: while a run is under way
    /// or waits, when it is closed, and without `timeout_seconds`.
    pub expires_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When something last happened in it: a message, the begin or end of a run, a heartbeat.
    pub last_active_at: Timestamp,
    /// Your own notes.
    pub metadata: BTreeMap<String, String>,
}

/// Where a run of a conversation is in its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is the conversation's active run.
    Active,
    /// It waits, and comes when it is the oldest that does.
    Waiting,
    /// It waits for the end of the run that it interrupts, and comes next.
    Interrupting,
    /// It waited, and its turn will never come: somebody else came to interrupt after it, or the
    /// conversation was closed. It is to be cancelled.
    Superseded,
}

impl Turn {
    /// The number that the database keeps. Never changed once given.
    pub const fn code(self) -> i16 {
        match self {
            Self::Active => 1,
            Self::Waiting => 2,
            Self::Interrupting => 3,
            Self::Superseded => 4,
        }
    }

    /// The turn of a number.
    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Active),
            2 => Some(Self::Waiting),
            3 => Some(Self::Interrupting),
            4 => Some(Self::Superseded),
            _ => None,
        }
    }
}

/// Why something cannot be done in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Another run is under way.
    Busy {
        /// Which.
        active_run_id: RunId,
    },
    /// As many runs wait as may wait.
    Full {
        /// The run under way.
        active_run_id: RunId,
    },
    /// It is closed.
    Closed,
    /// It has expired.
    Expired,
    /// Its runs have cost what they may cost together.
    Spent {
        /// The cap.
        cap: Usd,
    },
    /// It holds as many messages as one may hold.
    TooLong,
    /// The last message needs no answer: it is the model's own, or there is none.
    NothingToAnswer,
}

impl Conversation {
    /// Whether it takes new turns at this time.
    pub fn status(&self, now: Timestamp) -> ConversationStatus {
        if self.closed_at.is_some() {
            return ConversationStatus::Closed;
        }
        match self.expires_at {
            Some(at) if at <= now && !self.is_busy() => ConversationStatus::Expired,
            Some(_) | None => ConversationStatus::Open,
        }
    }

    /// Whether a run is under way or waits.
    pub const fn is_busy(&self) -> bool {
        self.active_run_id.is_some() || self.queued_runs > 0
    }

    /// As clients read it at this time.
    pub fn view(self, now: Timestamp) -> ConversationView {
        let status = self.status(now);
        let ticking = !self.is_busy() && status != ConversationStatus::Closed;
        ConversationView {
            conversation_id: self.conversation_id,
            agent_id: self.agent_id,
            system_prompt: self.system_prompt,
            parameters: self.parameters,
            status,
            message_count: self.message_count,
            active_run_id: self.active_run_id,
            queued_runs: self.queued_runs,
            timeout_seconds: self.timeout_seconds,
            expires_at: self.expires_at.filter(|_| ticking),
            created_at: self.created_at,
            last_active_at: self.last_active_at,
            metadata: self.metadata,
        }
    }

    /// Something happened in it: it lives on from here.
    pub fn touch(&mut self, now: Timestamp) {
        // Clocks of nodes differ a little: what happened last never goes back.
        self.last_active_at = self.last_active_at.max(now);
        let left = self.timeout_seconds.map(|s| Duration::from_secs(s.into()));
        self.expires_at = left.map(|left| self.last_active_at.plus(left));
    }

    /// `Ok` while it takes new turns.
    ///
    /// # Errors
    /// [`Refusal::Closed`], [`Refusal::Expired`].
    pub fn must_be_open(&self, now: Timestamp) -> Result<(), Refusal> {
        match self.status(now) {
            ConversationStatus::Open => Ok(()),
            ConversationStatus::Closed => Err(Refusal::Closed),
            ConversationStatus::Expired => Err(Refusal::Expired),
        }
    }

    /// `Ok` while no run is under way.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub const fn must_be_free(&self) -> Result<(), Refusal> {
        match self.active_run_id {
            Some(active_run_id) => Err(Refusal::Busy { active_run_id }),
            None => Ok(()),
        }
    }

    /// `Ok` while so many more messages fit in.
    ///
    /// # Errors
    /// [`Refusal::TooLong`].
    pub fn must_have_room(&self, messages: usize) -> Result<(), Refusal> {
        let count = i32::try_from(messages).unwrap_or(i32::MAX);
        let fits = self.message_count.saturating_add(count) <= MAX_MESSAGES;
        if fits { Ok(()) } else { Err(Refusal::TooLong) }
    }

    /// What is left of the money that its runs may cost together; `None` without a cap.
    pub fn money_left(&self) -> Option<Usd> {
        let cap = self.parameters.max_cost_usd?;
        // What is not known counts as all of it: a cap is never passed.
        Some(self.cost.map_or(Usd::ZERO, |cost| cap.less(cost)))
    }

    /// A run asks for a turn. Afterwards it is the active one, or one more that waits.
    ///
    /// # Errors
    /// Why it gets none; then nothing has changed.
    pub fn enter(
        &mut self,
        run_id: RunId,
        on_busy: OnBusy,
        now: Timestamp,
    ) -> Result<Turn, Refusal> {
        self.must_be_open(now)?;
        if let (Some(left), Some(cap)) = (self.money_left(), self.parameters.max_cost_usd)
            && left == Usd::ZERO
        {
            return Err(Refusal::Spent { cap });
        }
        let turn = match (self.active_run_id, on_busy) {
            (None, _) => Turn::Active,
            (Some(active_run_id), OnBusy::Reject) => return Err(Refusal::Busy { active_run_id }),
            (Some(active_run_id), _) if self.queued_runs >= MAX_WAITING => {
                return Err(Refusal::Full { active_run_id });
            }
            (Some(_), OnBusy::Enqueue) => Turn::Waiting,
            (Some(_), OnBusy::Interrupt) => Turn::Interrupting,
        };
        match turn {
            Turn::Active => self.active_run_id = Some(run_id),
            Turn::Waiting | Turn::Interrupting | Turn::Superseded => self.queued_runs += 1,
        }
        self.turns = self.turns.saturating_add(1);
        self.touch(now);
        Ok(turn)
    }

    /// A run of it has ended. Returns whether that was its active run, so that the next may begin.
    pub fn leave(&mut self, run_id: RunId, cost: Option<Usd>, now: Timestamp) -> bool {
        self.cost = match (self.cost, cost) {
            (Some(before), Some(cost)) => Some(before.plus(cost)),
            (None, _) | (_, None) => None,
        };
        self.touch(now);
        let was_active = self.active_run_id == Some(run_id);
        if was_active {
            self.active_run_id = None;
        } else {
            self.queued_runs = (self.queued_runs - 1).max(0);
        }
        was_active
    }

    /// The next of those that wait begins its turn.
    pub fn promote(&mut self, run_id: RunId) {
        self.active_run_id = Some(run_id);
        self.queued_runs = (self.queued_runs - 1).max(0);
    }

    /// Takes indexes for so many messages. Returns the first.
    pub fn take_indexes(&mut self, messages: usize) -> i32 {
        let first = self.message_count;
        self.message_count = first.saturating_add(i32::try_from(messages).unwrap_or(i32::MAX));
        first
    }
}

#[cfg(test)]
mod tests;
