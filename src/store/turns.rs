//! What a batch does to conversations, decided in memory while their rows are locked; the same on both
//! databases.
//!
//! Whoever begins a turn, ends one or says something first locks the conversation's row (by ascending
//! id), then writes its runs, and then what came of it here: rows, messages, and the places of runs in
//! their queues. A batch has one creation for a conversation at most, so that a creation which comes to
//! nothing (a key that is taken, an agent that has moved) is simply not applied.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::domain::conversation::message::{self, NewMessage, Spoken};
use crate::domain::conversation::{Conversation, OnBusy, Turn};
use crate::domain::event::{Entry, Event};
use crate::domain::ids::{ConversationId, RunId};
use crate::domain::message::Input;
use crate::domain::money::Usd;
use crate::domain::time::Timestamp;

use super::{Batch, CreateOutcome, NewRun, Result, rows};

/// A turn that a new run asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTurn {
    /// In which conversation.
    pub conversation_id: ConversationId,
    /// What becomes of it while another run is under way.
    pub on_busy: OnBusy,
}

/// A run of a conversation, and its place among those that ever asked for a turn in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnPlace {
    /// Which run.
    pub run_id: RunId,
    /// From 0. Whoever has a smaller one entered before, whatever their ids say.
    pub turn_no: i32,
}

/// Which run of a conversation to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindTurn {
    /// The first behind this place; -1 for the first of all.
    Behind(i32),
    /// The last.
    Last,
    /// This one, also if it was erased: whoever was in the middle of it goes on behind it.
    Of(RunId),
}

/// The messages that a run's model reads before the run's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Of this conversation,
    pub conversation_id: ConversationId,
    /// the first so many.
    pub messages: i32,
}

/// How a run entered its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entrance {
    /// Whether its turn has begun.
    pub turn: Turn,
    /// What came before it, once its turn has begun.
    pub past: Option<Past>,
    /// What it may cost, where its conversation has a cap.
    pub cost_ceiling: Option<Usd>,
}

/// Where a run is in its queue from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) run_id: RunId,
    /// `None`: its turn is over.
    pub(super) turn: Option<Turn>,
    /// Which turn it is in its conversation, where it has just entered.
    pub(super) turn_no: Option<i32>,
    pub(super) past: Option<Past>,
    pub(super) cost_ceiling: Option<Usd>,
    /// When an engine must look at it, if that changes.
    pub(super) due_at: Option<Timestamp>,
}

impl Placed {
    /// A run whose turn is over.
    const fn over(run_id: RunId) -> Self {
        Self { run_id, turn: None, turn_no: None, past: None, cost_ceiling: None, due_at: None }
    }

    /// A fork of a run that was a turn: its model reads the same, and it is in no conversation.
    pub(super) fn of_fork(new: &NewRun) -> Option<Self> {
        let past = Some(new.row.past?);
        Some(Self { past, ..Self::over(new.row.run_id) })
    }
}

/// The next of those that wait, with its first event.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) conversation_id: ConversationId,
    pub(super) run_id: RunId,
    pub(super) first: Entry,
}

/// Conversations whose rows are locked, and what is to be written about them.
#[derive(Debug, Default)]
pub(super) struct Turns {
    held: BTreeMap<ConversationId, Held>,
}

#[derive(Debug)]
struct Held {
    conversation: Conversation,
    changed: bool,
    /// Its active run has ended, so that the next may begin.
    free: bool,
}

/// What is to be written. Afterwards [`Turns::freed`] may have more.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Conversations in which whoever waits to interrupt loses that place to somebody else.
    pub(super) superseded: Vec<ConversationId>,
    pub(super) placed: Vec<Placed>,
    pub(super) messages: Vec<(ConversationId, i32, NewMessage)>,
}

impl Changes {
    fn say(&mut self, conversation: &mut Conversation, messages: Vec<NewMessage>) {
        let first = conversation.take_indexes(messages.len());
        let id = conversation.conversation_id;
        self.messages.extend((first..).zip(messages).map(|(index, said)| (id, index, said)));
    }
}

/// The conversations that a batch touches, ascending.
pub(super) fn touched(batch: &Batch) -> Vec<ConversationId> {
    let joined = batch.creates.iter().filter_map(|new| new.turn).map(|turn| turn.conversation_id);
    let told = batch.appends.iter().filter_map(|append| append.update.as_ref()?.spoken.as_ref());
    let mut ids: Vec<_> = joined.chain(told.map(|spoken| spoken.conversation_id)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

impl Turns {
    /// These rows are locked.
    pub(super) fn new(conversations: Vec<Conversation>) -> Self {
        let held = |conversation: Conversation| {
            let id = conversation.conversation_id;
            (id, Held { conversation, changed: false, free: false })
        };
        Self { held: conversations.into_iter().map(held).collect() }
    }

    /// Whether a creation gets its turn, and how; nothing is changed yet.
    pub(super) fn admit(
        &self,
        new: &NewRun,
        now: Timestamp,
    ) -> std::result::Result<Admission, CreateOutcome> {
        let Some(turn) = new.turn else { return Ok(Admission::none()) };
        let held = self.held.get(&turn.conversation_id).ok_or(CreateOutcome::ConversationGone)?;
        let mut after = held.conversation.clone();
        if after.workspace_id != new.row.workspace_id {
            return Err(CreateOutcome::ConversationGone);
        }
        let said = input(&new.first).map_err(|_| CreateOutcome::AgentMoved)?;
        let messages = message::of_input(new.row.run_id, &said, now);
        let entered = after
            .must_have_room(messages.len())
            .and_then(|()| after.enter(new.row.run_id, turn.on_busy, now));
        let turn = entered.map_err(CreateOutcome::Refused)?;
        let mut changes = Changes::default();
        let entrance = match turn {
            Turn::Active => {
                let entrance = begin(&after);
                changes.say(&mut after, messages);
                entrance
            }
            Turn::Waiting | Turn::Interrupting | Turn::Superseded => {
                Entrance { turn, past: None, cost_ceiling: None }
            }
        };
        if turn == Turn::Interrupting {
            changes.superseded.push(after.conversation_id);
        }
        changes.placed.push(Placed {
            run_id: new.row.run_id,
            turn: Some(turn),
            // It counts this one already.
            turn_no: Some(after.turns - 1),
            past: entrance.past,
            cost_ceiling: entrance.cost_ceiling,
            due_at: None,
        });
        Ok(Admission { entrance: Some(entrance), after: Some(after), changes })
    }

    /// The run is there: what it was admitted with holds.
    pub(super) fn entered(&mut self, admission: Admission, changes: &mut Changes) {
        let Some(after) = admission.after else { return };
        if let Some(held) = self.held.get_mut(&after.conversation_id) {
            held.conversation = after;
            held.changed = true;
        }
        changes.superseded.extend(admission.changes.superseded);
        changes.placed.extend(admission.changes.placed);
        changes.messages.extend(admission.changes.messages);
    }

    /// A run has said something, or has ended.
    pub(super) fn heard(&mut self, run_id: RunId, spoken: &Spoken, changes: &mut Changes) {
        // An erased conversation hears nothing; it has no runs that go on either.
        let Some(held) = self.held.get_mut(&spoken.conversation_id) else { return };
        held.changed = true;
        held.conversation.touch(spoken.at);
        changes.say(&mut held.conversation, spoken.messages.clone());
        let Some(ended) = spoken.ended else { return };
        if held.conversation.leave(run_id, ended.cost, spoken.at) {
            held.free = true;
        }
        changes.placed.push(Placed::over(run_id));
    }

    /// Conversations in which the next of those that wait may begin. In one that is closed nobody
    /// does: they are to be cancelled.
    pub(super) fn freed(&self) -> Vec<ConversationId> {
        let waits = |held: &&Held| {
            let conversation = &held.conversation;
            held.free && conversation.queued_runs > 0 && conversation.closed_at.is_none()
        };
        self.held.values().filter(waits).map(|held| held.conversation.conversation_id).collect()
    }

    /// These are the next.
    ///
    /// # Errors
    /// A first event that cannot be read.
    pub(super) fn promote(&mut self, next: Vec<Waiting>, now: Timestamp) -> Result<Changes> {
        let mut changes = Changes::default();
        for waiting in next {
            let Some(held) = self.held.get_mut(&waiting.conversation_id) else { continue };
            let conversation = &mut held.conversation;
            conversation.promote(waiting.run_id);
            let entrance = begin(conversation);
            let said = input(&waiting.first)?;
            changes.say(conversation, message::of_input(waiting.run_id, &said, now));
            changes.placed.push(Placed {
                run_id: waiting.run_id,
                turn: Some(entrance.turn),
                turn_no: None,
                past: entrance.past,
                cost_ceiling: entrance.cost_ceiling,
                due_at: Some(now),
            });
        }
        Ok(changes)
    }

    /// The rows that are not as they were.
    pub(super) fn changed(&self) -> Vec<&Conversation> {
        self.held.values().filter(|held| held.changed).map(|held| &held.conversation).collect()
    }
}

/// What becomes of a creation, should its run come to be.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) entrance: Option<Entrance>,
    after: Option<Conversation>,
    changes: Changes,
}

impl Admission {
    fn none() -> Self {
        Self { entrance: None, after: None, changes: Changes::default() }
    }

    /// The run as it is written: one that waits is nobody's, and nobody must look at it.
    pub(super) fn row<'a>(&self, new: &'a NewRun) -> Cow<'a, NewRun> {
        if self.entrance.is_none_or(|entrance| entrance.turn == Turn::Active) {
            return Cow::Borrowed(new);
        }
        let mut new = new.clone();
        (new.row.node_id, new.row.due_at, new.row.epoch) = (None, None, 0);
        Cow::Owned(new)
    }

    /// What whoever asked for the run is told.
    pub(super) fn outcome(&self) -> CreateOutcome {
        self.entrance.map_or(CreateOutcome::Created, CreateOutcome::Entered)
    }
}

/// The turn of a conversation's active run, before its own messages are in.
fn begin(conversation: &Conversation) -> Entrance {
    Entrance {
        turn: Turn::Active,
        past: Some(Past {
            conversation_id: conversation.conversation_id,
            messages: conversation.message_count,
        }),
        cost_ceiling: conversation.money_left(),
    }
}

fn input(first: &Entry) -> Result<Input> {
    match first.read().map_err(|e| rows::corrupt("a run's first event", e))?.0 {
        Event::RunQueued(queued) => Ok(queued.input),
        other => Err(rows::corrupt("a run's first event", other.event_type().as_str())),
    }
}
