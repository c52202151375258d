//! A cursor over a conversation: its runs' logs, one after another in the order of their creation, each
//! complete.

use std::time::Duration;

use crate::domain::conversation::ConversationStatus;
use crate::domain::ids::{ConversationId, RunId, WorkspaceId};
use crate::domain::page::{From, Order, Page};
use crate::store::{Result, RunFilter};

use super::Log;
use super::follow::{Cursor, FollowError, Next};

/// How often somebody looks for the next run if nothing says that there is one.
const LOOK: Duration = Duration::from_secs(1);

/// A reader's place in a conversation.
pub struct ConversationCursor {
    log: Log,
    workspace_id: WorkspaceId,
    conversation_id: ConversationId,
    /// The run that is read.
    reading: Option<(RunId, Cursor)>,
    /// The last run that was read to its end.
    behind: Option<RunId>,
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
        after: Option<(RunId, i32)>,
    ) -> ConversationCursor {
        let mut cursor = ConversationCursor {
            log: self.clone(),
            workspace_id,
            conversation_id,
            reading: None,
            behind: None,
        };
        match after {
            Some((run_id, i32::MAX)) => cursor.behind = Some(run_id),
            Some((run_id, seq)) => cursor.read(run_id, seq),
            None => {}
        }
        cursor
    }

    /// The newest run of a conversation.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn newest_run_of(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
    ) -> Result<Option<RunId>> {
        let page = Page { limit: 1, from: From::Start, order: Order::Desc };
        self.first_run_of(workspace_id, conversation_id, page).await
    }

    async fn first_run_of(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        page: Page<RunId>,
    ) -> Result<Option<RunId>> {
        let filter = RunFilter { conversation_id: Some(conversation_id), ..RunFilter::default() };
        let listed = self.store.list_runs(workspace_id, &filter, &page).await?;
        Ok(listed.rows.first().map(|record| record.row.run_id))
    }
}

impl ConversationCursor {
    fn read(&mut self, run_id: RunId, after: i32) {
        self.reading = Some((run_id, self.log.follow(self.workspace_id, run_id, after)));
    }

    /// What comes next; waits until there is something. Cancel-safe.
    ///
    /// # Errors
    /// As [`Cursor::next`]; [`FollowError::Gone`] also when the conversation was deleted.
    pub async fn next(&mut self) -> std::result::Result<Heard, FollowError> {
        loop {
            if let Some((run_id, cursor)) = &mut self.reading {
                let run_id = *run_id;
                let next = cursor.next().await?;
                if matches!(&next, Next::Events(page) if page.ends()) {
                    self.behind = Some(run_id);
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
        Ok(self.reading.is_none() && self.look().await? == Some(false))
    }

    /// Waits for the next run. `false`: none can come any more.
    async fn find_next(&mut self) -> std::result::Result<bool, FollowError> {
        let watch = self.log.watch_conversation(self.conversation_id);
        loop {
            let changed = watch.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = self.look().await? {
                return Ok(found);
            }
            // Nobody may come by to say that it has expired.
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }

    /// Whether there is a next run, which is read from here on; `None`: not yet.
    async fn look(&mut self) -> std::result::Result<Option<bool>, FollowError> {
        let store = &self.log.store;
        // In this order: a run that came before the end is found behind it.
        let found = store.load_conversation(self.workspace_id, self.conversation_id).await?;
        let conversation = found.ok_or(FollowError::Gone)?;
        let from = self.behind.map_or(From::Start, From::After);
        let page = Page { limit: 1, from, order: Order::Asc };
        let next = self.log.first_run_of(self.workspace_id, self.conversation_id, page).await?;
        if let Some(run_id) = next {
            self.read(run_id, 0);
            return Ok(Some(true));
        }
        let open = conversation.status(self.log.clock.now()) == ConversationStatus::Open;
        Ok(if open { None } else { Some(false) })
    }
}
