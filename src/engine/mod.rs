//! THE HEARTBEAT. Finds runs that must move, and moves them.
//!
//! - [`node`]: this process as the database knows it: beat, burial of the dead, reconciliation.
//! - [`observe`]: who else is dead; [`trust`]: whether we may believe that we are not.
//! - [`claim`]: from a due run to a driver in a slot.
//! - [`drive`]: one run: decide → act → append, until it ends, parks or is lost.
//! - [`isolate`]: runs that may take their process down get one of their own; [`alone`] is its side.
//! - [`call_model`] and [`call_tools`]: the two ways to act; [`attempts`]: when a call is tried again.
//! - [`children`]: runs that answer calls; [`discover`]: before a step, what the run's MCP servers have.
//! - [`housekeeping`]: what is old goes.
//! - [`plans`]: what runs were told to do, ready for use.
//!
//! What this room must never do: decide (that is the domain's), change a run except through the log,
//! keep anything that a restart would miss, or let one run's failure touch another.

mod alone;
mod attempts;
mod call_model;
mod call_tools;
mod children;
mod claim;
mod discover;
mod drive;
pub mod housekeeping;
mod isolate;
mod node;
pub mod observe;
mod plans;
mod recall;
#[cfg(test)]
mod tests;
pub mod trust;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::ids::RunId;
use crate::domain::model::Catalogue;
use crate::domain::retention::Retention;
use crate::log::Log;
use crate::log::desk::Handover;
use crate::log::live::Watched;
use crate::models::Models;
use crate::shutdown::Tasks;
use crate::store::StoreError;
use crate::tools::Tools;

use housekeeping::Housekeeping;
pub use isolate::{ChildCommand, Order};

/// What an engine needs.
pub struct Parts {
    /// The run log.
    pub log: Log,
    /// The models.
    pub models: Arc<Models>,
    /// Their names and prices.
    pub catalogue: Arc<Catalogue>,
    /// The tools.
    pub tools: Tools,
    /// Slots: runs that are driven at the same time. 0: this node only answers the API.
    pub slots: usize,
    /// How a process for a single run is started. `None`: this is one.
    pub child: Option<ChildCommand>,
    /// How long logs are kept.
    pub retention: Retention,
}

/// The engine of this process.
pub struct Engine {
    log: Log,
    clock: Clock,
    models: Arc<Models>,
    tools: Tools,
    plans: plans::Plans,
    slots: usize,
    housekeeping: Housekeeping,
    drivers: Mutex<HashMap<RunId, Driven>>,
    trust: Arc<trust::Trust>,
    isolation: isolate::Isolation,
    /// Drivers let go of their runs at the next step.
    draining: CancellationToken,
    /// Drivers let go of their runs now.
    aborting: CancellationToken,
    /// Rung when a driver has let go of its run.
    let_go: Notify,
}

/// A run that this process drives.
struct Driven {
    watch: Watched,
    rev: Arc<std::sync::atomic::AtomicI32>,
}

/// How long drivers have to reach the end of a step before it is broken off.
const DRAIN: Duration = Duration::from_secs(20);
/// How long they have to give back what was broken off.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Engine {
    /// An engine that does nothing yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let housekeeping = Housekeeping {
            store: parts.log.store.clone(),
            clock: parts.log.clock.clone(),
            keep: parts.retention,
        };
        Arc::new(Self {
            housekeeping,
            clock: parts.log.clock.clone(),
            trust: trust::Trust::new(
                parts.log.journal.node_id(),
                parts.log.pulse.clone(),
                parts.log.store.is_exclusive(),
            ),
            plans: plans::Plans::new(parts.log.store.clone(), parts.catalogue),
            log: parts.log,
            models: parts.models,
            tools: parts.tools,
            slots: parts.slots,
            drivers: Mutex::default(),
            isolation: isolate::Isolation::new(parts.child),
            draining: CancellationToken::new(),
            aborting: CancellationToken::new(),
            let_go: Notify::new(),
        })
    }

    /// Registers this node, takes over what dead ones left, and starts the loops.
    ///
    /// # Errors
    /// When the database cannot be written: then there is no engine.
    pub async fn start(
        self: &Arc<Self>,
        handovers: mpsc::UnboundedReceiver<Handover>,
        tasks: &Tasks,
    ) -> Result<(), StoreError> {
        let node_id = self.log.journal.node_id();
        self.log.store.register_node(node_id, self.clock.now()).await?;
        if self.log.store.is_exclusive() {
            self.bury_all().await?;
        }
        self.log.pulse.beat();
        if self.slots > 0 {
            self.log.desk.open_as(Some(node_id));
            let (engine, own) = (self.clone(), tasks.clone());
            tasks.spawn(async move { engine.take_handovers(handovers, &own).await });
            let (engine, own) = (self.clone(), tasks.clone());
            tasks.spawn(async move { engine.claim_due_runs(&own).await });
        }
        let (engine, own) = (self.clone(), tasks.clone());
        tasks.spawn(async move { engine.live_on(&own).await });
        let (housekeeping, own) = (self.housekeeping.clone(), tasks.clone());
        tasks.spawn(async move { housekeeping.run(&own).await });
        Ok(())
    }

    /// Lets go of all runs: each at the end of its step, or after 20 s in the middle of it. Call
    /// before the tasks are told to stop. What cannot be let go of in time (the database is away) is
    /// found by others, like the runs of a node that died.
    pub async fn drain(&self) {
        self.log.desk.open_as(None);
        self.draining.cancel();
        if timeout(DRAIN, self.idle()).await.is_err() {
            self.aborting.cancel();
            if timeout(LAST_WORDS, self.idle()).await.is_err() {
                tracing::warn!(runs = self.driving(), "some runs could not be handed back");
                return;
            }
        }
        let node_id = self.log.journal.node_id();
        if let Err(error) = self.log.store.retire_node(node_id).await {
            tracing::warn!(%error, "this node could not sign off; others will find it dead");
        }
    }

    /// Resolves when nothing is driven here.
    async fn idle(&self) {
        loop {
            let let_go = self.let_go.notified();
            tokio::pin!(let_go);
            let_go.as_mut().enable();
            if self.drivers().is_empty() && self.isolation.is_empty() {
                return;
            }
            let_go.await;
        }
    }

    /// How many runs this process drives.
    pub fn driving(&self) -> usize {
        self.drivers().len()
    }

    fn drivers(&self) -> MutexGuard<'_, HashMap<RunId, Driven>> {
        // What a panicking holder could leave behind is an entry too many, which reconciliation pokes.
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
