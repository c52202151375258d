//! How a driver learns that something has changed, and goes on behind what others wrote.

use std::sync::atomic::Ordering;

use crate::domain::decide::Ending;
use crate::domain::fold::Folded;
use crate::domain::ids::RunId;
use crate::domain::overtaken;
use crate::domain::run::{RunError, RunErrorCode, RunStatus};
use crate::domain::time::Timestamp;
use crate::engine::Engine;
use crate::log::lane::{Closed, Unseen};
use crate::store::{Driveable, Owner};

use super::{Driver, LOOK_AGAIN, Stop};

impl Driver {
    /// When the run is over, unless it stops running before.
    pub(in crate::engine) fn deadline(&self) -> Option<Timestamp> {
        self.folded.deadline(self.plan.settings.timeout_seconds)
    }

    /// Resolves with why the driver must turn to something else while it waits for something: at the
    /// latest then.
    pub(in crate::engine) async fn interrupted(&self, until: Option<Timestamp>) -> Stop {
        let left = until.map(|until| until.since(self.now()));
        let due = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = self.lane.closed() => Stop::Look(why),
            () = self.lane.watch.poked() => Stop::Look(Closed::Missed),
            () = self.overlong.notified() => Stop::Decide,
            () = due => Stop::Decide,
            () = self.engine.aborting.cancelled() => Stop::Abort,
        }
    }

    /// Waits until this node may act again, and then reads the row: somebody else may have acted
    /// meanwhile.
    pub(in crate::engine) async fn regain(&mut self) -> Result<(), Stop> {
        tracing::warn!(run_id = %self.run_id(), "a run waits until this node has beaten again");
        tokio::select! {
            () = self.faith.renewed() => {}
            () = self.engine.aborting.cancelled() => return Err(Stop::Abort),
        }
        // A model call was dropped: what it showed is void.
        self.opened = None;
        self.look(Closed::Missed).await
    }

    /// Reads the row again: goes on behind what others wrote, pushing again what still holds.
    pub(in crate::engine) async fn look(&mut self, why: Closed) -> Result<(), Stop> {
        self.lane.quiesce().await;
        let run = self.engine.load_own(self.run_id()).await.ok_or(Stop::Lost)?;
        if run.record.row.epoch != self.record.row.epoch {
            // Others have driven it and this node has it back: that is for a driver of its own, which
            // does not believe in calls of before.
            return Err(Stop::Lost);
        }
        let Ok(folded) = Folded::read(&run.facts) else { return Err(Stop::Defect) };
        let row = &run.record.row;
        self.rev.store(row.rev, Ordering::Relaxed);
        let unseen = self.lane.reopen(row.rev, run.record.last_seq, run.log_bytes);
        self.record = run.record;
        self.folded = folded.with_history(self.folded.history.clone());
        self.children.clear();
        if why == Closed::Rejected {
            let message = "The run wrote something that the database cannot keep.".to_owned();
            let error = RunError { code: RunErrorCode::Internal, message, retryable: false };
            return self.end(Ending::Failed(error)).await;
        }
        if self.folded.status == RunStatus::Cancelling || self.folded.status.is_final() {
            return Ok(());
        }
        for unseen in unseen {
            match unseen {
                Unseen::Delta { step, .. } if !overtaken::is_being_written(&self.folded, step) => {}
                Unseen::Delta { event_type, step, content } => {
                    self.lane.push_delta(event_type, step, &content, self.now());
                }
                // Whether it may still end or park is decided again.
                Unseen::Fact(event) if event.event_type().is_rest() => break,
                Unseen::Fact(event) => {
                    let (seq, now) = (self.lane.next_seq(), self.now());
                    if overtaken::still_holds(&self.folded, seq, now, &event) {
                        self.push(vec![event], Owner::Keep)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Engine {
    /// A run with everything that driving needs, however long the database is away; `None`: it is not
    /// this node's.
    pub(in crate::engine) async fn load_own(&self, run_id: RunId) -> Option<Driveable> {
        loop {
            let node_id = self.log.journal.node_id();
            match self.log.store.load_driveable(node_id, run_id).await {
                Ok(run) => return run.map(with_first),
                Err(error) => {
                    tracing::warn!(%run_id, %error, "a run's row cannot be read; trying again");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        }
    }
}

/// The run with its first event in the record: how it ended is told from memory for a moment, and its
/// input is part of that.
pub(in crate::engine) fn with_first(mut run: Driveable) -> Driveable {
    run.record.first = run.facts.first().cloned();
    run
}
