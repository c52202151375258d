//! The context window: which messages of a conversation a model still sees when not all of them fit.
//!
//! The oldest whole turns are left out until the rest fits. The run's own turn (what it was started
//! with, its steps, its instructions and its tools) is never cut: a run whose own turn does not fit by
//! itself fails with `context_overflow`, and the next one finds it among what can be left out.
//!
//! Where nobody has said how much a model reads, or the estimate was too low, the provider says that a
//! prompt is too long. Then half of the turns in it go, and half of the rest, until it takes what is
//! left: a conversation must not end because it is long.

use super::conversation::history::History;
use super::plan::Plan;
use super::run::{RunError, RunErrorCode};
use super::tokens;

/// A run's own turn that is longer than a prompt may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("about {tokens} tokens do not fit into {limit}")]
pub struct Overflow {
    /// Its estimated tokens.
    pub tokens: u64,
    /// Those that a prompt may have.
    pub limit: u64,
}

impl Overflow {
    /// How a run that ends by it says so.
    pub fn run_error(self, plan: &Plan) -> RunError {
        let Self { tokens, limit } = self;
        let advice = if plan.settings.max_context_tokens == Some(limit) {
            "max_context_tokens: send less, or raise it"
        } else {
            "what the model reads less max_output_tokens: send less, lower max_output_tokens, or use a \
             model that reads more"
        };
        RunError {
            code: RunErrorCode::ContextOverflow,
            message: format!(
                "This turn alone, its instructions and tools included, has about {tokens} tokens, \
                 and the prompt may have {limit} ({advice})."
            ),
            retryable: false,
        }
    }
}

/// How many of the oldest messages are left out, so that what is left of the history has at most `room`
/// tokens. Only as much of the history is looked at as fits.
pub fn dropped(history: &History, mut room: u64) -> i32 {
    let mut from = history.end();
    for turn in history.turns().iter().rev() {
        let Some(left) = room.checked_sub(tokens::of_turns(turn)) else { break };
        room = left;
        from = from.saturating_sub(History::length(turn));
    }
    from
}

/// How many of the oldest messages are left out of the next try, when a provider has found a prompt too
/// long that had all but the `dropped` oldest: half of the turns that it had go. `None`: it had no turn
/// that can go, where the newest `kept` turns must stay.
pub fn fewer(history: &History, dropped: i32, kept: usize) -> Option<i32> {
    let mut at = history.older();
    let ends = history.turns().iter().map(|turn| {
        at = at.saturating_add(History::length(turn));
        at
    });
    let shown: Vec<i32> = ends.filter(|end| *end > dropped).collect();
    let can_go = shown.len().saturating_sub(kept);
    can_go.div_ceil(2).checked_sub(1).and_then(|last| shown.get(last).copied())
}
