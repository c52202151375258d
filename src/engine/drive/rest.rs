//! How a driver leaves its run: parked, ended, or for another driver to go on with.

use std::time::Duration;

use crate::domain::decide::Ending;
use crate::domain::event::Event;
use crate::domain::family;
use crate::domain::run::{RequiredAction, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::log::lane::{Closed, Unseen};
use crate::store::Owner;

use super::{Calls, Driver, LOOK_AGAIN, Made, Stop};

impl Driver {
    pub(super) async fn park(&mut self, until: Option<Timestamp>) -> Result<(), Stop> {
        let of_children = self.children_actions();
        if self.folded.status == RunStatus::RequiresAction {
            let said = |action: &RequiredAction| self.folded.children_actions.contains(action);
            if !of_children.iter().all(said) {
                // Its children wait for something else by now: it says so when it parks again.
                return self.push(vec![write::resumed()], Owner::Keep).map(drop);
            }
            // Looked at too early, or one of several answers came: it waits on.
            let until = until.unwrap_or_else(|| self.now().plus(Duration::from_secs(3600)));
            return self.let_go(until, None).await.and(Err(Stop::Rest));
        }
        let event = write::parked(&self.folded, self.run_id());
        let event = family::with_actions(event, of_children);
        let seq = self.push(vec![event], Owner::Nobody { due_at: until })?;
        self.flushed(seq).await?;
        self.lane.watch.end_tail();
        Err(Stop::Rest)
    }

    pub(in crate::engine) async fn end(&mut self, ending: Ending) -> Result<(), Stop> {
        let events = write::ended(&self.folded, ending, self.now());
        let seq = self.push(events, Owner::Nobody { due_at: None })?;
        self.flushed(seq).await?;
        tracing::debug!(
            run_id = %self.run_id(),
            status = self.folded.status.as_str(),
            steps = self.folded.steps_completed,
            "a run ended"
        );
        Err(Stop::Rest)
    }

    /// Gives the run back without an event: another driver goes on with it from `due_at`.
    pub(in crate::engine) async fn let_go(
        &mut self,
        due_at: Timestamp,
        status_message: Option<&str>,
    ) -> Result<(), Stop> {
        self.flushed(self.lane.next_seq() - 1).await?;
        let node_id = self.engine.log.journal.node_id();
        let (run_id, rev) = (self.run_id(), self.lane.rev());
        loop {
            let store = &self.engine.log.store;
            match store.release(node_id, run_id, rev, due_at, status_message).await {
                Ok(true) => {
                    self.lane.watch.end_tail();
                    if due_at <= self.now() {
                        self.engine.log.queued();
                    }
                    return Ok(());
                }
                // Somebody wrote to it: read that first.
                Ok(false) => return Err(Stop::Look(Closed::Missed)),
                Err(error) if error.is_passing() => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => {
                    tracing::error!(%run_id, %error, "a run could not be released");
                    return Err(Stop::Lost);
                }
            }
        }
    }

    /// The calls whose answers are not in the log: those that are under way, and those that were
    /// answered when the run was lost already.
    pub(super) async fn unanswered(self: Box<Self>) -> Calls {
        self.lane.quiesce().await;
        let mut calls = self.calls;
        for unseen in self.lane.abandon() {
            let (call_id, answer) = match unseen {
                Unseen::Fact(Event::ToolCallCompleted(call)) => (call.call_id, Ok(call.result)),
                Unseen::Fact(Event::ToolCallFailed(call)) => (call.call_id, Err(call.error)),
                Unseen::Fact(_) | Unseen::Delta { .. } => continue,
            };
            calls.spawn(std::future::ready((call_id, Made::Answered(answer))));
        }
        calls
    }
}
