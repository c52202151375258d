//! The child's side of `isolate.rs`: one run, taken over from the parent, driven until a step of it is
//! committed or it rests.

use std::sync::Arc;
use std::time::Duration;

use crate::shutdown::Tasks;
use crate::store::{StoreError, Transfer};

use super::Engine;
use super::isolate::Order;

/// Between two tries while the database is away.
const TRY_AGAIN: Duration = Duration::from_millis(500);

impl Engine {
    /// Enters a node, takes the run over from the parent's, and drives it until it has ended, parked,
    /// come to the end of a step or is somebody else's. Instead of [`Engine::start`];
    /// [`Engine::drain`] comes after it, as ever, and may come in the middle. The log's desk must have
    /// one slot.
    ///
    /// # Errors
    /// When the database cannot be written: then the run is still the parent's.
    pub async fn drive_alone(
        self: &Arc<Self>,
        order: Order,
        tasks: &Tasks,
    ) -> Result<(), StoreError> {
        let Order { run_id, from, node_id } = order;
        self.log.store.register_node(node_id, self.clock.now()).await?;
        self.log.pulse.beat();
        let (engine, own) = (self.clone(), tasks.clone());
        tasks.spawn(async move { engine.live_on(&own).await });

        let slots = self.log.desk.slots();
        if let Ok(slot) = slots.clone().acquire_owned().await {
            let over = Transfer { run_id, from, to: node_id, crashes: None };
            // Until it is known whether the run is ours: an error says that it is not.
            while let Err(error) = self.log.store.transfer(over).await {
                if !error.is_passing() {
                    return Err(error);
                }
                tracing::warn!(%run_id, %error, "a run cannot be taken over yet");
                tokio::time::sleep(TRY_AGAIN).await;
            }
            // If an answer was lost on the way, the row says whose it is.
            if let Err(error) = self.take_up(run_id, slot, tasks).await {
                tracing::warn!(%run_id, %error, "a run that was taken over could not be loaded");
            }
        }
        loop {
            // The one slot is free when the driver is gone.
            drop(slots.acquire().await);
            match self.log.store.owned(self.log.journal.node_id()).await {
                Ok(owned) if owned.is_empty() => return Ok(()),
                // It could not be loaded: reconciliation tries again every second.
                Ok(_) => {}
                Err(error) => tracing::warn!(%run_id, %error, "own runs cannot be read"),
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }
}
