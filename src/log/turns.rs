//! Conversations, as far as they are more than their runs: who comes next is told that it does, who was
//! overtaken is told to stop, and what is erased goes.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::domain::ids::{ConversationId, RunId};
use crate::shutdown::Tasks;
use crate::store::{ConversationOutcome, ConversationSweep, ConversationWrite, Result};

use super::Log;
use super::live::Watched;

/// How often somebody looks for runs that were overtaken and not told.
const LOOK: Duration = Duration::from_secs(1);
/// Runs that are told in one go.
const TOLD: i64 = 100;

impl Log {
    /// Makes runs begin whose turn has come, and stops those that were overtaken, until it is time to
    /// stop.
    pub(super) async fn take_turns(&self, tasks: &Tasks) {
        // By the clock, not by the last promotion: where turns end all the time somebody must look, too.
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.journal.promoted() => self.queued(),
                _ = looks.tick() => self.cancel_overtaken_soon().await,
                () = tasks.stopped() => return,
            }
        }
    }

    /// Cancels runs that another one waits to interrupt, those that lost that place to a later one, and
    /// those that wait in a conversation that was closed. What cannot be done now, or if this is the end of
    /// the process, any node does within about a second.
    pub async fn cancel_overtaken_soon(&self) {
        if let Err(error) = self.cancel_overtaken().await {
            tracing::warn!(%error, "overtaken runs could not be cancelled yet");
        }
    }

    async fn cancel_overtaken(&self) -> Result<()> {
        let mut last = Vec::new();
        loop {
            let overtaken = self.store.to_be_cancelled(TOLD).await?;
            // What is asked to stop and goes on for a moment must not be asked for ever.
            if overtaken.is_empty() || overtaken == last {
                return Ok(());
            }
            for (workspace_id, run_id) in &overtaken {
                self.cancel_tree(*workspace_id, *run_id, None).await?;
            }
            last = overtaken;
        }
    }

    /// A write to a conversation that is no run's.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn converse(&self, write: ConversationWrite) -> Result<ConversationOutcome> {
        let conversation_id = write.conversation_id;
        let outcome = self.store.converse(write).await?;
        if matches!(outcome, ConversationOutcome::Done(_)) {
            self.spoke(conversation_id);
        }
        Ok(outcome)
    }

    /// Erases the runs of a conversation that was erased, with all below them. Should this be the end of the process,
    /// housekeeping goes on with it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn erase_runs_of(&self, conversation_id: ConversationId) -> Result<()> {
        let sweep = ConversationSweep {
            only: Some(conversation_id),
            quiet_since: None,
            now: self.clock.now(),
        };
        loop {
            let swept = self.store.sweep_conversations(sweep).await?;
            self.erased(&swept.runs);
            if !swept.more {
                return Ok(());
            }
        }
    }

    /// Something happened in a conversation: whoever follows it looks.
    pub(super) fn spoke(&self, conversation_id: ConversationId) {
        let place = place(conversation_id);
        self.live.hint(place);
        self.wake.changed([place]);
    }

    /// What tells when something happened in a conversation.
    pub(super) fn watch_conversation(&self, conversation_id: ConversationId) -> Watched {
        self.live.watch(place(conversation_id))
    }
}

/// Conversations are watched like runs, under their own ids: no run has the same.
fn place(conversation_id: ConversationId) -> RunId {
    RunId::from_uuid(conversation_id.uuid())
}
