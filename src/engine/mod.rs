//! THE HEARTBEAT. Finds runs that must move, and moves them.
//!
//! - [`node`]: this process as the database knows it: beat, burial of the dead, reconciliation.
//! - [`claim`]: from a due run to a driver in a slot.
//! - [`drive`]: one run: decide → act → append, until it ends, parks or is lost.
//! - [`call_model`] and [`call_tools`]: the two ways to act.
//! - [`housekeeping`]: what is old goes.
//! - [`plans`]: what runs were told to do, ready for use.
//!
//! What this room must never do: decide (that is the domain's), change a run except through the log,
//! keep anything that a restart would miss, or let one run's failure touch another.

mod call_model;
mod call_tools;
mod claim;
mod drive;
pub mod housekeeping;
mod node;
mod plans;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
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

use housekeeping::Housekeeping;

/// What an engine needs.
pub struct Parts {
    /// The run log.
    pub log: Log,
    /// The models.
    pub models: Arc<Models>,
    /// Their names and prices.
    pub catalogue: Arc<Catalogue>,
    /// Slots: runs that are driven at the same time. 0: this node only answers the API.
    pub slots: usize,
    /// How long logs are kept.
    pub retention: Retention,
}

/// The engine of this process.
pub struct Engine {
    log: Log,
    clock: Clock,
    models: Arc<Models>,
    plans: plans::Plans,
    slots: usize,
    housekeeping: Housekeeping,
    drivers: Mutex<HashMap<RunId, Driven>>,
    /// Drivers let go of their runs at the next step.
    draining: CancellationToken,
    /// Drivers let go of their runs now.
    aborting: CancellationToken,
    alive: Arc<AtomicBool>,
}

/// A run that this process drives.
struct Driven {
    watch: Watched,
    rev: Arc<std::sync::atomic::AtomicI32>,
}

/// How long drivers have to reach the end of a step before it is broken off.
const DRAIN: Duration = Duration::from_secs(20);

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
            plans: plans::Plans::new(parts.log.store.clone(), parts.catalogue),
            log: parts.log,
            models: parts.models,
            slots: parts.slots,
            drivers: Mutex::default(),
            draining: CancellationToken::new(),
            aborting: CancellationToken::new(),
            alive: Arc::default(),
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
        self.alive.store(true, Ordering::Relaxed);
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

    /// Whether the engine's loops run; for `/readyz`.
    pub fn alive(&self) -> Arc<AtomicBool> {
        self.alive.clone()
    }

    /// Lets go of all runs: each at the end of its step, or after 20 s in the middle of it. Call
    /// before the tasks are told to stop.
    pub async fn drain(&self) {
        self.log.desk.open_as(None);
        self.draining.cancel();
        let patience = tokio::time::Instant::now() + DRAIN;
        while !self.drivers().is_empty() {
            if tokio::time::Instant::now() >= patience {
                self.aborting.cancel();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let node_id = self.log.journal.node_id();
        if let Err(error) = self.log.store.retire_node(node_id).await {
            tracing::warn!(%error, "this node could not sign off; others will find it dead");
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
