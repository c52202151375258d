//! What was said in a conversation before a run: read once, when the run is taken up.
//!
//! Messages are read from the newest backwards, and no further than a prompt reaches: one more turn of
//! a long conversation costs what one of a short one costs.

use crate::domain::conversation::history::History;
use crate::domain::conversation::message::Message;
use crate::domain::ids::WorkspaceId;
use crate::domain::plan::Plan;
use crate::domain::tokens;
use crate::store::{MessageRange, Past, Result, SharedStore};

/// Messages that are read at a time.
const PAGE: i64 = 100;
/// Tokens beyond which no model reads, where nobody has said how many it takes: a driver holds what it
/// reads as long as it drives.
const MAX_TOKENS: u64 = 1_000_000;
/// Messages for the same reason: empty ones weigh little.
const MAX_MESSAGES: usize = 20_000;

/// The history in front of a run: all of it, or as much of its end as can fit into a prompt of `plan`.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn recall(
    store: &SharedStore,
    workspace_id: WorkspaceId,
    past: Past,
    plan: &Plan,
) -> Result<History> {
    let most = plan.max_prompt_tokens.unwrap_or(MAX_TOKENS).min(MAX_TOKENS);
    let (mut newest_first, mut weight) = (Vec::new(), 0_u64);
    let mut oldest = past.messages;
    while oldest > 0 && weight <= most && newest_first.len() < MAX_MESSAGES {
        let range = MessageRange { above: -1, below: oldest, limit: PAGE, descending: true };
        let page = store.read_messages(workspace_id, past.conversation_id, range).await?;
        let Some(last) = page.last().map(|message| message.message_index) else { break };
        oldest = last;
        for turn in page.into_iter().map(Message::turn) {
            weight = weight.saturating_add(tokens::of_turn(&turn));
            newest_first.push(turn);
        }
    }
    let first = oldest.min(past.messages);
    Ok(History::new(first, newest_first.into_iter().rev()))
}
