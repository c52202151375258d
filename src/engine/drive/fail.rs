//! The end of a run that cannot be driven: its driver panicked, its log is unfit, or it took its process
//! down.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::domain::conversation::message::{Ended, Spoken};
use crate::domain::decide::Ending;
use crate::domain::event::{Event, RunEnded};
use crate::domain::fold::Folded;
use crate::domain::ids::RunId;
use crate::domain::run::{RunError, RunErrorCode, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::engine::Engine;
use crate::log::lane::Lane;
use crate::log::live::Watched;
use crate::store::{Driveable, Owner, RunUpdate, Said};

impl Engine {
    /// Ends a run that cannot be driven as failed with this error: its driver panicked, its log is
    /// unfit, or it took its process down.
    pub(in crate::engine) async fn fail_run(
        self: &Arc<Self>,
        run_id: RunId,
        watch: Watched,
        rev: Arc<AtomicI32>,
        error: RunError,
    ) {
        loop {
            let Some(run) = self.load_own(run_id).await else { return };
            let (row, at) = (&run.record.row, self.clock.now());
            rev.store(row.rev, Ordering::Relaxed);
            let doorbell = self.log.journal.doorbell();
            let lane = Lane::new(
                run_id,
                row.rev,
                run.record.last_seq,
                run.log_bytes,
                watch.clone(),
                doorbell,
            );
            let error = error.clone();
            let (events, update) = match Folded::read(&run.facts) {
                Ok(mut folded) => {
                    self.abandon_children(row, &folded).await;
                    let ending = match folded.status {
                        RunStatus::Cancelling => Ending::Cancelled,
                        RunStatus::Queued
                        | RunStatus::Running
                        | RunStatus::RequiresAction
                        | RunStatus::Completed
                        | RunStatus::Incomplete
                        | RunStatus::Failed
                        | RunStatus::Cancelled
                        | RunStatus::Expired => Ending::Failed(error.clone()),
                    };
                    let before = folded.open_actions(run_id);
                    let mut events = write::awakened(&folded);
                    events.extend(write::ended(&folded, ending, at));
                    let fits = (lane.next_seq()..)
                        .zip(&events)
                        .all(|(seq, event)| folded.apply(seq, at, event.clone()).is_ok());
                    let owner = Owner::Nobody { due_at: None };
                    let said = Said { run_id, events: &events, at };
                    let update = RunUpdate::since(&before, &folded, said, owner);
                    if fits { (events, update) } else { unreadable(&run, error, at) }
                }
                Err(_) => unreadable(&run, error, at),
            };
            match lane.push_last_facts(&events, update, at, run.record) {
                Ok(seq) if lane.flushed(seq).await.is_ok() => return,
                Ok(_) => lane.quiesce().await,
                Err(error) => {
                    tracing::error!(%run_id, %error, "a failed run cannot be ended");
                    return;
                }
            }
        }
    }
}

/// What a run ends with because of a defect of this server.
pub(in crate::engine) fn internal() -> RunError {
    let message = "The server could not go on with this run.".to_owned();
    RunError { code: RunErrorCode::Internal, message, retryable: true }
}

/// The end of a run whose log cannot be folded: what its row says is all that is known.
fn unreadable(run: &Driveable, error: RunError, at: Timestamp) -> (Vec<Event>, RunUpdate) {
    let row = &run.record.row;
    let end = RunEnded {
        status: RunStatus::Failed,
        result: None,
        error: Some(error),
        incomplete_reason: None,
        usage: row.usage,
        cost_usd: row.cost,
        steps_completed: row.steps_completed,
    };
    let update = RunUpdate {
        status: RunStatus::Failed,
        fact_seq: 0,
        steps_completed: row.steps_completed,
        usage: row.usage,
        cost: row.cost,
        children_cost: row.children_cost,
        parent_run_id: row.parent_run_id,
        status_message: None,
        started_at: row.started_at,
        completed_at: Some(at),
        actions: Some(Vec::new()),
        // Its conversation goes on without knowing what was said in it.
        spoken: row.conversation_id.map(|conversation_id| {
            let ended = Some(Ended { cost: row.tree_cost() });
            Box::new(Spoken { conversation_id, at, messages: Vec::new(), ended })
        }),
        owner: Owner::Nobody { due_at: None },
    };
    (vec![Event::RunFailed(end)], update)
}
