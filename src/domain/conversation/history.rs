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
    older: usize,
    turns: Vec<Vec<Turn>>,
}

impl History {
    /// Groups messages, oldest first, of a conversation in which `older` messages come before them:
    /// those need not be read when a model could not see them anyway. Every tool call must be answered
    /// before the next message of the user.
    ///
    /// A turn begins where the user speaks, or with the instructions (system messages) right before
    /// that; whatever comes before the first of them is a turn too. If there are older messages, it is
    /// the rest of a turn that was not read whole, and counts as not read.
    pub fn new(older: usize, messages: impl IntoIterator<Item = Turn>) -> Self {
        let mut history = Self { older, turns: Vec::new() };
        let mut open = Vec::new();
        for message in messages {
            let follows = |open: &[Turn]| open.iter().any(|said| !matches!(said, Turn::System(_)));
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
            self.older += turn.len();
        }
    }

    /// Messages of the conversation that are older than all of [`History::turns`].
    pub const fn older(&self) -> usize {
        self.older
    }

    /// Whole turns, oldest first.
    pub fn turns(&self) -> &[Vec<Turn>] {
        &self.turns
    }

    /// The messages of the turns that are left when (at least) the `dropped` oldest messages of the
    /// conversation are left out.
    pub fn without(&self, dropped: usize) -> impl Iterator<Item = &Turn> + Clone {
        let mut before = self.older;
        let is_left_out = move |turn: &&Vec<Turn>| {
            let begins_at = before;
            before += turn.len();
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
