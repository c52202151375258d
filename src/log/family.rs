//! What goes up and down a tree of runs.
//!
//! Up: a run that comes to rest, or goes on again, leaves a signal for the run that called it, in the same
//! transaction. Any node takes it and rouses the parent, whose driver then looks how its children are:
//! a signal carries nothing, and to lose one costs no more than time.
//!
//! Down: who asks a run to stop asks all below it, and an answer that is posted to a run finds the run
//! below it that waits for it.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::domain::fold::Folded;
use crate::domain::ids::{CallId, RunId, WorkspaceId};
use crate::domain::limits;
use crate::domain::page::{From, Order, Page};
use crate::domain::run::RunStatus;
use crate::shutdown::Tasks;
use crate::store::{GuestOutcome, GuestWrite, NewKey, Result, RunFilter, RunRow, StoreError};

use super::{Log, guest};

/// How often signals are looked for when nobody says that there are any.
const LOOK: Duration = Duration::from_secs(1);
/// Signals taken at a time: the runs that they rouse are locked together.
const SIGNALS: i64 = 256;
/// Runs of a family that are read for one request: no family has more.
const MAX_READ: usize = limits::MAX_FAMILY;
/// Runs of one level of a tree whose children are asked to stop at the same time.
const AT_ONCE: usize = 16;
/// Children that are listed at a time.
const PAGE: u32 = 100;

impl Log {
    /// Rouses parents until it is time to stop.
    pub(super) async fn rouse_parents(&self, tasks: &Tasks) {
        let mut away = false;
        loop {
            tokio::select! {
                () = self.wake.signalled() => {}
                () = tokio::time::sleep(LOOK) => {}
                () = tasks.stopped() => return,
            }
            match self.take_signals().await {
                Ok(()) => away = false,
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        tracing::warn!(%error, "parents of ended runs cannot be roused; trying again");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => {}
                        () = tasks.stopped() => return,
                    }
                }
            }
        }
    }

    async fn take_signals(&self) -> Result<()> {
        loop {
            let roused = self.store.rouse_parents(self.clock.now(), SIGNALS).await?;
            for run_id in &roused.run_ids {
                self.live.hint(*run_id);
            }
            if !roused.run_ids.is_empty() {
                self.wake.changed(roused.run_ids);
                self.queued();
            }
            if roused.signals < SIGNALS {
                return Ok(());
            }
        }
    }

    /// Has the runs above this one go on with it, if they were parked and it is not. A signal does the
    /// same a moment later; but whoever was told that an answer is taken looks at the run that was asked
    /// for it, and is not to find it waiting for that answer.
    ///
    /// # Errors
    /// When the store is away: then signals do it.
    pub async fn lead_on(&self, run: &RunRow) -> Result<()> {
        let (workspace_id, mut child) = (run.workspace_id, run.clone());
        while let Some(run_id) = child.parent_run_id
            && child.status != RunStatus::RequiresAction
        {
            let decide = guest::child_goes_on(&self.clock, child.run_id);
            self.visit(GuestWrite { workspace_id, run_id, key: None, decide }).await?;
            match self.load_run(workspace_id, run_id).await? {
                Some(parent) => child = parent.row,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Asks a run to stop, and all that it has called and waits for, down to the last. What stops a tree for
    /// good is its drivers: each asks its own children, as often as it takes, and ends behind them. But a
    /// run that waits for a child has no driver, and may get none as long as its own tree has all the slots.
    ///
    /// # Errors
    /// When the run itself cannot be asked. Those below it are left to the drivers then.
    pub async fn cancel_tree(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        key: Option<NewKey>,
    ) -> Result<GuestOutcome> {
        let outcome = self.cancel(workspace_id, run_id, key).await?;
        if goes_on(&outcome)
            && let Err(error) = self.cancel_below(workspace_id, run_id).await
        {
            tracing::warn!(%run_id, %error, "runs below a cancelled one are not asked to stop yet");
        }
        Ok(outcome)
    }

    async fn cancel_below(&self, workspace_id: WorkspaceId, run_id: RunId) -> Result<()> {
        let (mut level, mut seen) = (vec![run_id], HashSet::from([run_id]));
        while !level.is_empty() {
            let asked = level.into_iter().map(|parent| self.cancel_children(workspace_id, parent));
            let asked = stream::iter(asked).buffer_unordered(AT_ONCE);
            let below: Vec<Vec<RunId>> = asked.try_collect().await?;
            let fresh = |id: &RunId| seen.len() < MAX_READ && seen.insert(*id);
            level = below.into_iter().flatten().filter(fresh).collect();
        }
        Ok(())
    }

    /// Asks the children of a run to stop that have not ended. Returns those that may have children
    /// themselves. One that is not there yet is its parent's driver's affair.
    async fn cancel_children(
        &self,
        workspace_id: WorkspaceId,
        parent: RunId,
    ) -> Result<Vec<RunId>> {
        let alive = RunFilter {
            parent_run_id: Some(parent),
            statuses: RunStatus::ALL.into_iter().filter(|status| !status.is_final()).collect(),
            ..RunFilter::default()
        };
        let mut page = Page { limit: PAGE, from: From::Start, order: Order::Asc };
        let mut left = Vec::new();
        loop {
            let children = self.store.list_runs(workspace_id, &alive, &page).await?;
            for child in &children.rows {
                let run_id = child.row.run_id;
                if goes_on(&self.cancel(workspace_id, run_id, None).await?) {
                    left.push(run_id);
                }
                page.from = From::After(run_id);
            }
            if !children.has_more {
                return Ok(left);
            }
        }
    }

    /// Which run has this call: `run_id` or one below it. An answer may be posted to any of them.
    /// `None`: none has, as far as the first 1,000 of them tell.
    ///
    /// # Errors
    /// When the store or a log cannot be read.
    pub async fn run_of_call(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        call_id: CallId,
    ) -> Result<Option<RunId>> {
        // What is open is listed with each run above it; only what was answered is to be looked for.
        let open = self.load_run(workspace_id, run_id).await?.map(|run| run.actions);
        if let Some(open) = open.iter().flatten().find(|open| open.call_id == call_id) {
            return Ok(Some(open.run_id));
        }
        let (mut waiting, mut seen) = (vec![run_id], HashSet::from([run_id]));
        while let Some(run_id) = waiting.pop() {
            let facts = self.store.read_facts(workspace_id, run_id, 0).await?;
            if facts.is_empty() {
                continue;
            }
            let unreadable = |error| StoreError::Corrupt(format!("the log of {run_id}: {error}"));
            let folded = Folded::read(&facts).map_err(unreadable)?;
            for call in folded.steps.iter().flat_map(|turn| &turn.calls) {
                if call.call_id == call_id {
                    return Ok(Some(run_id));
                }
                let child = call.child.map(|child| child.run_id);
                waiting.extend(child.filter(|child| seen.len() < MAX_READ && seen.insert(*child)));
            }
        }
        Ok(None)
    }
}

/// Whether a run that was asked to stop has not ended with that, as far as one can see: it is driven, or it
/// waits for its children.
fn goes_on(asked: &GuestOutcome) -> bool {
    match asked {
        GuestOutcome::Done { appended, .. } => {
            appended.last().is_none_or(|last| !last.event_type.is_final())
        }
        GuestOutcome::Absent | GuestOutcome::KeyTaken(_) | GuestOutcome::Refused(_) => false,
    }
}
