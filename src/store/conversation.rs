//! Writes to a conversation that are no run's, and what of it to read.

use std::sync::Arc;

use crate::domain::conversation::message::NewMessage;
use crate::domain::conversation::{Conversation, Refusal};
use crate::domain::ids::{ConversationId, WorkspaceId};
use crate::domain::time::Timestamp;

use super::key::{KeyRow, NewKey};

/// A conversation's row is locked: what is to become of it.
#[derive(Debug, Clone)]
pub enum ConversationDecision {
    /// Change nothing. (A new idempotency key is bound all the same.)
    Nothing,
    /// The row as it is from here on, and what is said in it: `message_count` counts that already. Whoever
    /// waits in one that is closed with it waits in vain.
    Change {
        /// The row.
        conversation: Box<Conversation>,
        /// In order; the last has the index below `message_count`.
        messages: Vec<NewMessage>,
    },
    /// Change nothing, bind no key, and say why.
    Refuse(Refusal),
    /// Erase it with its messages; its runs cannot be read any more, and are erased by
    /// [`Store::sweep_conversations`](super::Store::sweep_conversations).
    Erase {
        /// When.
        at: Timestamp,
    },
}

/// The pure decision about a conversation. May be called again if the transaction had to be repeated.
pub type ConversationDecide = Arc<dyn Fn(&Conversation) -> ConversationDecision + Send + Sync>;

/// A write to a conversation that is no run's: locks it, decides, changes.
pub struct ConversationWrite {
    /// Whose conversation.
    pub workspace_id: WorkspaceId,
    /// Which conversation.
    pub conversation_id: ConversationId,
    /// Bound in the same transaction.
    pub key: Option<NewKey>,
    /// Decides under the lock.
    pub decide: ConversationDecide,
}

/// What became of a write to a conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum ConversationOutcome {
    /// There is no such conversation in the workspace (or it was erased).
    Absent,
    /// The key was bound already; nothing was changed.
    KeyTaken(KeyRow),
    /// What was decided is not to be; nothing was changed.
    Refused(Refusal),
    /// Done; the row as it is now.
    Done(Box<Conversation>),
}

/// Which messages of a conversation to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageRange {
    /// Only larger indexes; -1 for all.
    pub above: i32,
    /// Only smaller indexes; `i32::MAX` for no end.
    pub below: i32,
    /// Messages at most.
    pub limit: i64,
    /// Newest first?
    pub descending: bool,
}

/// One step of a sweep through conversations that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationSweep {
    /// Only this one, which was erased; `None`: all that were, and those that are old.
    pub only: Option<ConversationId>,
    /// Closed and expired ones go in which nothing happened since; `None`: none goes by its age.
    pub quiet_since: Option<Timestamp>,
    /// The time.
    pub now: Timestamp,
}
