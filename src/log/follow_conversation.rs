//! A cursor over a conversation: its runs' logs, one after another in the order in which they entered
//! it, each complete.

use std::time::Duration;

use crate::domain::conversation::ConversationStatus;
use crate::domain::ids::{ConversationId, RunId, WorkspaceId};
use crate::store::{FindTurn, TurnPlace};

use super::Log;
use super::follow::{Cursor, FollowError, Next};

/// How often somebody looks for the next run by himself. Whoever begins one says so, but a word between
/// nodes can be lost.
const LOOK: Duration = Duration::from_secs(5);
/// The same while other nodes are not heard.
const LOOK_UNTOLD: Duration = Duration::from_secs(1);

/// A reader's place in a conversation.
pub struct ConversationCursor {
    log: Log,
    workspace_id: WorkspaceId,
    conversation_id: ConversationId,
    /// The run that is read.
    reading: Option<(TurnPlace, Cursor)>,
    /// The place of the last run that was read to its end; -1 before the first.
    behind: i32,
}

/// What a look at a conversation finds.
enum Found {
    /// The next run, which is read from here on.
    Next,
    /// Nothing yet; it expires in so long, if it can.
    Nothing(Option<Duration>),
    /// Nothing, and nothing will come any more.
    End,
}

/// What a conversation's cursor comes upon.
#[derive(Debug, Clone)]
pub enum Heard {
    /// Something of this run.
    Run(RunId, Next),
    /// Nothing more comes: the conversation is over, and all its runs were read.
    Over,
}

impl Log {
    /// A cursor behind event `after` of that run; behind all of the run if that is `i32::MAX`, which it
    /// must be behind a final event; without one, in front of the first run.
    pub fn follow_conversation(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        after: Option<(TurnPlace, i32)>,
    ) -> ConversationCursor {
        let mut cursor = ConversationCursor {
            log: self.clone(),
            workspace_id,
            conversation_id,
            reading: None,
            behind: -1,
        };
        match after {
            Some((turn, i32::MAX)) => cursor.behind = turn.turn_no,
            Some((turn, seq)) => cursor.read(turn, seq),
            None => {}
        }
        cursor
    }
}

impl ConversationCursor {
    fn read(&mut self, turn: TurnPlace, after: i32) {
        self.reading = Some((turn, self.log.follow(self.workspace_id, turn.run_id, after)));
    }

    /// What comes next; waits until there is something. Cancel-safe.
    ///
    /// # Errors
    /// As [`Cursor::next`]; [`FollowError::Gone`] also when the conversation was deleted.
    pub async fn next(&mut self) -> std::result::Result<Heard, FollowError> {
        loop {
            if let Some((turn, cursor)) = &mut self.reading {
                let TurnPlace { run_id, turn_no } = *turn;
                let next = cursor.next().await?;
                if matches!(&next, Next::Events(page) if page.ends()) {
                    self.behind = turn_no;
                    self.reading = None;
                }
                return Ok(Heard::Run(run_id, next));
            }
            if self.find_next().await? {
                continue;
            }
            return Ok(Heard::Over);
        }
    }

    /// Whether nothing is left to come.
    ///
    /// # Errors
    /// As [`ConversationCursor::next`].
    pub async fn is_over(&mut self) -> std::result::Result<bool, FollowError> {
        Ok(self.reading.is_none() && matches!(self.look().await?, Found::End))
    }

    /// Waits for the next run. `false`: none can come any more.
    async fn find_next(&mut self) -> std::result::Result<bool, FollowError> {
        let watch = self.log.watch_conversation(self.conversation_id);
        loop {
            let changed = watch.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let expires_in = match self.look().await? {
                Found::Next => return Ok(true),
                Found::End => return Ok(false),
                Found::Nothing(expires_in) => expires_in,
            };
            let look = if self.log.pulse.is_told() { LOOK } else { LOOK_UNTOLD };
            // Nobody comes by to say that it has expired.
            let pause = expires_in.map_or(look, |expires_in| look.min(expires_in));
            let _ = tokio::time::timeout(pause, changed).await;
        }
    }

    async fn look(&mut self) -> std::result::Result<Found, FollowError> {
        let store = &self.log.store;
        // In this order: a run that came before the end is found behind it.
        let found = store.load_conversation(self.workspace_id, self.conversation_id).await?;
        let conversation = found.ok_or(FollowError::Gone)?;
        let next = FindTurn::Behind(self.behind);
        let next = store.find_turn(self.workspace_id, self.conversation_id, next).await?;
        if let Some(turn) = next {
            self.read(turn, 0);
            return Ok(Found::Next);
        }
        let now = self.log.clock.now();
        if conversation.status(now) != ConversationStatus::Open {
            return Ok(Found::End);
        }
        // One that is past and does not count, because a run is under way, is none.
        let expires_at = conversation.expires_at.filter(|at| *at > now);
        Ok(Found::Nothing(expires_at.map(|at| at.since(now))))
    }
}
