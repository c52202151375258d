//! From a due run to a driver in a slot.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::domain::conversation::history::History;
use crate::domain::fold::Folded;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::limits;
use crate::domain::plan::Plan;
use crate::log::CallAnswer;
use crate::log::desk::Handover;
use crate::log::lane::Lane;
use crate::log::live::Watched;
use crate::shutdown::Tasks;
use crate::store::{Driveable, RunRecord, StoreError};

use super::drive::{Calls, Driver, Made, internal, with_first};
use super::isolate::poisoned;
use super::recall::recall;
use super::{Driven, Engine};

/// How often the queue is looked at when nobody says that something came.
const POLL: Duration = Duration::from_secs(1);
/// Runs that one claim takes at most: they are all loaded before the next claim.
const CLAIM: i64 = 100;
/// Claimed runs that are loaded at the same time: enough to be quick after a crash, few enough to
/// leave connections for others.
const LOADS: usize = 4;
/// How long reconciliation may take up runs before it lets the node beat again.
const TAKE_UP: Duration = Duration::from_millis(500);
/// How often, once a second, an answer is handed in before it is given up. The database is away.
const HAND_IN_TRIES: usize = 600;

impl Engine {
    /// Drives runs that were born claimed.
    pub(super) async fn take_handovers(
        self: Arc<Self>,
        mut handovers: mpsc::UnboundedReceiver<Handover>,
        tasks: &Tasks,
    ) {
        loop {
            let handover = tokio::select! {
                handover = handovers.recv() => handover,
                () = tasks.stopped() => return,
            };
            let Some(Handover { record, slot, watch }) = handover else { return };
            let facts: Vec<_> = record.first.iter().cloned().collect();
            let log_bytes = facts.iter().map(|entry| entry.data.len() as u64).sum();
            self.drive(Driveable { record, facts, log_bytes }, slot, watch, tasks);
        }
    }

    /// Claims due runs and those of dead nodes while there are free slots.
    pub(super) async fn claim_due_runs(self: Arc<Self>, tasks: &Tasks) {
        loop {
            if tasks.is_stopping() || self.draining.is_cancelled() {
                return;
            }
            let more = match self.claim_some(tasks).await {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!(%error, "due runs could not be claimed");
                    false
                }
            };
            self.log.desk.queue_waits(more);
            if more {
                // The queue is longer than there were slots: go on as soon as one is free.
                tokio::select! {
                    slot = self.log.desk.slots().acquire() => drop(slot),
                    () = tasks.stopped() => return,
                    () = self.draining.cancelled() => return,
                }
                continue;
            }
            tokio::select! {
                () = self.log.desk.arrival() => {}
                () = tokio::time::sleep(POLL) => {}
                () = tasks.stopped() => return,
                () = self.draining.cancelled() => return,
            }
        }
    }

    /// Claims as many as there are free slots. Returns whether more may be waiting.
    async fn claim_some(self: &Arc<Self>, tasks: &Tasks) -> Result<bool, StoreError> {
        let free = self.log.desk.slots().available_permits();
        let limit = i64::try_from(free).unwrap_or(CLAIM).min(CLAIM);
        if limit == 0 {
            return Ok(true);
        }
        let node_id = self.log.journal.node_id();
        let mut claims = self.log.store.claim_orphans(node_id, limit).await?;
        let left = limit - i64::try_from(claims.len()).unwrap_or(limit);
        if left > 0 {
            claims.extend(self.log.store.claim_due(node_id, self.clock.now(), left).await?);
        }
        let more = i64::try_from(claims.len()).unwrap_or(limit) >= limit;
        let taken = futures_util::stream::iter(claims).for_each_concurrent(LOADS, async |claim| {
            // Slots may have gone to created runs since: then this one waits for the next.
            let Ok(slot) = self.log.desk.slots().clone().acquire_owned().await else { return };
            if let Err(error) = self.take_up(claim.run_id, slot, tasks).await {
                tracing::warn!(run_id = %claim.run_id, %error, "a claimed run could not be loaded");
            }
        });
        taken.await;
        Ok(more)
    }

    /// Drives runs that are this node's by the database and that nobody drives.
    ///
    /// # Errors
    /// The first that cannot be loaded; the others wait for the next time.
    pub(super) async fn take_up_all(
        self: &Arc<Self>,
        run_ids: impl IntoIterator<Item = RunId>,
        tasks: &Tasks,
    ) -> Result<(), StoreError> {
        let began = Instant::now();
        for run_id in run_ids {
            if self.drivers().contains_key(&run_id) || self.isolation.holds(run_id) {
                continue;
            }
            let Ok(slot) = self.log.desk.slots().clone().try_acquire_owned() else { break };
            self.take_up(run_id, slot, tasks).await?;
            if began.elapsed() >= TAKE_UP {
                break;
            }
        }
        Ok(())
    }

    /// Drives a run that is this node's by the database.
    ///
    /// # Errors
    /// It cannot be loaded now; reconciliation finds it again.
    pub(super) async fn take_up(
        self: &Arc<Self>,
        run_id: RunId,
        slot: OwnedSemaphorePermit,
        tasks: &Tasks,
    ) -> Result<(), StoreError> {
        let node_id = self.log.journal.node_id();
        match self.log.store.load_driveable(node_id, run_id).await? {
            Some(run) if self.isolation.is_for(&run.record) => {
                drop(slot);
                self.isolate(&run.record, tasks).await;
            }
            Some(run) => {
                let watch = self.log.live.watch(run_id);
                self.drive(with_first(run), slot, watch, tasks);
            }
            None => {}
        }
        Ok(())
    }

    /// Starts a driver, unless the run has one.
    fn drive(
        self: &Arc<Self>,
        run: Driveable,
        slot: OwnedSemaphorePermit,
        watch: Watched,
        tasks: &Tasks,
    ) {
        let run_id = run.record.row.run_id;
        let rev = Arc::new(AtomicI32::new(run.record.row.rev));
        {
            let mut drivers = self.drivers();
            if drivers.contains_key(&run_id) {
                return;
            }
            drivers.insert(run_id, Driven { watch: watch.clone(), rev: rev.clone() });
        }
        let engine = self.clone();
        let place = (run.record.row.workspace_id, run_id);
        // A future has room for every place that a value is moved through: there are as many of these
        // as there are runs, so what is large, or rarely done, is on the heap.
        let run = Box::new(run);
        tasks.spawn(async move {
            let entry = Entry { engine: engine.clone(), run_id };
            let calls = engine.drive_to_rest(run, watch, rev).await;
            // The run may be driven here again while old calls are waited for.
            drop((entry, slot));
            engine.hand_in(place, calls).await;
        });
    }

    /// Answers of calls that were under way when their run was lost: what was done is not done again.
    async fn hand_in(&self, run: (WorkspaceId, RunId), mut calls: Calls) {
        while let Some(call) = calls.join_next().await {
            let Ok((call_id, Made::Answered(answer))) = call else { continue };
            if let Err(error) = self.hand_in_one(run, CallAnswer { call_id, answer }).await {
                tracing::error!(run_id = %run.1, %call_id, %error, "an answer could not be handed in");
            }
        }
    }

    async fn hand_in_one(
        &self,
        run: (WorkspaceId, RunId),
        answer: CallAnswer,
    ) -> Result<(), StoreError> {
        for _ in 1..HAND_IN_TRIES {
            match self.log.answer_call(run, answer.clone()).await {
                Err(error) if error.is_passing() => tokio::time::sleep(POLL).await,
                handed_in => return handed_in,
            }
        }
        self.log.answer_call(run, answer).await
    }

    async fn drive_to_rest(
        self: &Arc<Self>,
        run: Box<Driveable>,
        watch: Watched,
        rev: Arc<AtomicI32>,
    ) -> Calls {
        let run_id = run.record.row.run_id;
        if run.record.row.crashes >= limits::CONVICTED {
            // Whoever convicted it did not come to end it.
            Box::pin(self.fail_run(run_id, watch, rev, poisoned())).await;
            return Calls::new();
        }
        let failed = match Box::pin(self.driver(run, watch.clone(), rev.clone())).await {
            Ok(driver) => {
                let driven = AssertUnwindSafe(driver.run()).catch_unwind().await;
                match driven {
                    Ok(calls) => return calls,
                    Err(_panic) => "a panic",
                }
            }
            Err(error) => {
                tracing::error!(%run_id, error = error.as_str(), "a run cannot be driven");
                "a defect"
            }
        };
        tracing::error!(%run_id, "{failed} stopped a run; it is ended as failed");
        Box::pin(self.fail_run(run_id, watch, rev, internal())).await;
        Calls::new()
    }

    /// What a run was told to do, and what was said in its conversation before it.
    async fn told(&self, record: &RunRecord) -> Result<(Arc<Plan>, Option<History>), StoreError> {
        let plan = self.plans.of(record).await?;
        let Some(past) = record.row.past else { return Ok((plan, None)) };
        let workspace_id = record.row.workspace_id;
        let history = Box::pin(recall(&self.log.store, workspace_id, past, &plan)).await?;
        Ok((plan, Some(history)))
    }

    /// Makes a driver out of what the store has.
    async fn driver(
        self: &Arc<Self>,
        run: Box<Driveable>,
        watch: Watched,
        rev: Arc<AtomicI32>,
    ) -> Result<Box<Driver>, String> {
        let mut folded = Folded::read(&run.facts).map_err(|error| error.to_string())?;
        let (plan, history) = loop {
            match self.told(&run.record).await {
                Ok(told) => break told,
                Err(error) if error.is_passing() => tokio::time::sleep(POLL).await,
                Err(error) => return Err(error.to_string()),
            }
        };
        if let Some(history) = history {
            folded = folded.with_history(Arc::new(history));
        }
        let row = &run.record.row;
        let lane = Lane::new(
            row.run_id,
            row.rev,
            run.record.last_seq,
            run.log_bytes,
            watch,
            self.log.journal.doorbell(),
        );
        Ok(Box::new(Driver::new(self.clone(), run.record, folded, plan, lane, rev)))
    }
}

/// Takes a driver out of the list when it is gone, however it went.
struct Entry {
    engine: Arc<Engine>,
    run_id: RunId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let driven = self.engine.drivers().remove(&self.run_id);
        self.engine.let_go.notify_waiters();
        // A watch takes its shard's lock when it goes: not under ours.
        drop(driven);
    }
}
