//! Parents hear of their children.
//!
//! A run that comes to rest, or goes on again, leaves a signal for the run that called it, in the same
//! transaction. Any node takes it and rouses the parent, whose driver then looks how its children are:
//! a signal carries nothing, and to lose one costs no more than time.

use std::collections::HashSet;
use std::time::Duration;

use crate::domain::fold::Folded;
use crate::domain::ids::{CallId, RunId, WorkspaceId};
use crate::domain::run::RunStatus;
use crate::shutdown::Tasks;
use crate::store::{GuestWrite, Result, RunRow, StoreError};

use super::{Log, guest};

/// How often signals are looked for when nobody says that there are any.
const LOOK: Duration = Duration::from_secs(1);
/// Signals taken at a time: the runs that they rouse are locked together.
const SIGNALS: i64 = 256;
/// Runs of a family that are read to find a call: it is asked for by a person, who can be told to name
/// the run itself.
const MAX_READ: usize = 1_000;

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
            let unreadable = |error: crate::domain::fold::FoldError| {
                StoreError::Corrupt(format!("the log of {run_id}: {error}"))
            };
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
