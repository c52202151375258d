//! What was said in a conversation before a run began: whole turns, oldest first.
//!
//! A turn is what somebody says and everything that answers it: texts of the model, its tool calls and
//! their results. Turns come and go whole, so whatever part of a history a model sees, no result stands
//! there without its call and no call without its result.

use std::mem;

use crate::domain::model::Turn;

/// The messages of a conversation that come before a run's own input.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    older: i32,
    turns: Vec<Vec<Turn>>,
}

impl History {
    /// Groups messages, oldest first, the first of which has the index `older` in its conversation:
    /// those before it need not be read when a model could not see them anyway. Every tool call must
    /// be answered before the next message of the user. A run without an input of its own answers the
    /// newest turn, which must be among them.
    ///
    /// A turn begins where the user speaks, or with the instructions (system messages) right before
    /// that; whatever comes before the first of them is a turn too. If there are older messages, it is
    /// the rest of a turn that was not read whole, and counts as not read.
    pub fn new(older: i32, messages: impl IntoIterator<Item = Turn>) -> Self {
        let mut history = Self { older, turns: Vec::new() };
        let mut open = Vec::new();
        for message in messages {
            let follows = |open: &[Turn]| open.iter().any(|said| !said.is_system());
            if is_opening(&message) && follows(&open) {
                history.close(mem::take(&mut open));
            }
            open.push(message);
        }
        history.close(open);
        history
    }

    fn close(&mut self, turn: Vec<Turn>) {
        let is_whole = self.older == 0 || !self.turns.is_empty();
        if is_whole || turn.first().is_some_and(is_opening) {
            self.turns.extend(Some(turn).filter(|turn| !turn.is_empty()));
        } else {
            self.older = self.older.saturating_add(Self::length(&turn));
        }
    }

    /// Messages of the conversation that are older than all of [`History::turns`].
    pub const fn older(&self) -> i32 {
        self.older
    }

    /// Messages of the conversation, those included that are older than all turns.
    pub fn end(&self) -> i32 {
        let ends = |at: i32, turn: &Vec<Turn>| at.saturating_add(Self::length(turn));
        self.turns.iter().fold(self.older, ends)
    }

    /// How many messages these are; a conversation counts its messages in an `i32`.
    pub fn length(messages: &[Turn]) -> i32 {
        i32::try_from(messages.len()).unwrap_or(i32::MAX)
    }

    /// Whole turns, oldest first.
    pub fn turns(&self) -> &[Vec<Turn>] {
        &self.turns
    }

    /// The messages that are left when the oldest whole turns that hold the `dropped` oldest messages
    /// of the conversation are left out.
    pub fn without(&self, dropped: i32) -> impl Iterator<Item = &Turn> + Clone {
        let mut before = self.older;
        let is_left_out = move |turn: &&Vec<Turn>| {
            let begins_at = before;
            before = before.saturating_add(Self::length(turn));
            begins_at < dropped
        };
        self.turns.iter().skip_while(is_left_out).flatten()
    }
}

/// Whether a turn may begin with this message.
const fn is_opening(message: &Turn) -> bool {
    match message {
        Turn::User(_) | Turn::System(_) => true,
        Turn::Assistant { .. } | Turn::Tool { .. } => false,
    }
}
