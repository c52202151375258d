//! What a lane holds: what waits for a flush, and what is left of it when the lane was closed.

use crate::domain::event::{Entry, Event, EventType};
use crate::domain::ids::RunId;
use crate::domain::time::Timestamp;

/// Something that waits for a flush. Its seq is given already.
pub(super) enum Waiting {
    Delta { seq: i32, event_type: EventType, step: i32, at: Timestamp, content: String },
    Fact(Entry),
}

/// What a closed lane held that nobody has seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Unseen {
    /// A piece of text.
    Delta {
        /// Text or reasoning.
        event_type: EventType,
        /// The step.
        step: i32,
        /// The piece.
        content: String,
    },
    /// A fact.
    Fact(Event),
}

impl Waiting {
    /// The stored form.
    ///
    /// # Errors
    /// Never for valid text.
    pub(super) fn entry(self, run_id: RunId) -> serde_json::Result<Entry> {
        match self {
            Self::Fact(entry) => Ok(entry),
            Self::Delta { seq, event_type, step, at, content } => {
                Entry::delta(event_type, run_id, seq, at, step, &content)
            }
        }
    }

    /// The same for a driver that must decide what of it still holds.
    pub(super) fn unseen(self) -> Option<Unseen> {
        let entry = match self {
            Self::Delta { event_type, step, content, .. } => {
                return Some(Unseen::Delta { event_type, step, content });
            }
            Self::Fact(entry) => entry,
        };
        // Deltas that were taken come back as entries.
        let event_type = entry.event_type;
        match entry.read().ok()?.0 {
            Event::MessageDelta(delta) | Event::ReasoningDelta(delta) => {
                Some(Unseen::Delta { event_type, step: delta.step, content: delta.content })
            }
            fact => Some(Unseen::Fact(fact)),
        }
    }
}
