//! This process as the database knows it.
//!
//! Once a second: beat; look at the others' beats and bury those that are dead; compare what is ours
//! by the database with what we drive. That comparison alone covers every lost claim, lost hint and
//! leak.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::domain::ids::NodeId;
use crate::shutdown::Tasks;
use crate::store::{Result, StoreError};

use super::Engine;
use super::observe::Observer;

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// Between two beats while the database is away: others must not find this node missing once it is
/// back.
const BEAT_AGAIN: Duration = Duration::from_millis(250);
/// How long a beat may take.
const PATIENCE: Duration = Duration::from_secs(3);

impl Engine {
    /// Beats, buries and reconciles until it is time to stop.
    pub(super) async fn live_on(self: &Arc<Self>, tasks: &Tasks) {
        let mut observer = Observer::default();
        let mut beats = true;
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = tasks.stopped() => break,
                () = tokio::time::sleep(pause) => {}
            }
            self.models.close_idle_sockets();
            let began = Instant::now();
            let lived = self.live_once(&mut observer, tasks).await;
            if let Err(error) = &lived {
                observer.missed();
                if beats {
                    tracing::warn!(%error, "the database is away: runs wait until it is back");
                }
            } else if !beats {
                tracing::info!("the database is back");
            }
            beats = lived.is_ok();
            let interval = if beats { BEAT } else { BEAT_AGAIN };
            pause = interval.saturating_sub(began.elapsed());
        }
        self.log.pulse.stop();
    }

    async fn live_once(self: &Arc<Self>, observer: &mut Observer, tasks: &Tasks) -> Result<()> {
        in_time(self.beat()).await?;
        in_time(self.bury_the_dead(observer)).await?;
        in_time(self.see_who_waits()).await?;
        if self.slots > 0 {
            self.reconcile(tasks).await?;
        }
        Ok(())
    }

    async fn beat(&self) -> Result<()> {
        let node_id = self.log.journal.node_id();
        let sent = std::time::Instant::now();
        if self.log.store.beat(node_id).await? {
            self.trust.renew(node_id, sent);
        } else {
            self.be_reborn(node_id).await?;
        }
        self.log.pulse.beat();
        Ok(())
    }

    /// Others took this node for dead and may have taken its runs: nothing of it counts any more.
    async fn be_reborn(&self, dead: NodeId) -> Result<()> {
        tracing::error!(node_id = %dead, "this node was declared dead; going on as a new one");
        let reborn = NodeId::from_uuid(self.clock.uuid());
        let sent = std::time::Instant::now();
        self.log.store.register_node(reborn, self.clock.now()).await?;
        self.log.journal.become_node(reborn);
        self.trust.renew(reborn, sent);
        if self.slots > 0 && !self.draining.is_cancelled() {
            self.log.desk.open_as(Some(reborn));
        }
        for driven in self.drivers().values() {
            driven.watch.poke();
        }
        // As the dead one it could claim nothing.
        self.log.desk.queued();
        Ok(())
    }

    /// On a database that nobody else can use, every other node is dead.
    pub(super) async fn bury_all(&self) -> Result<()> {
        for neighbour in self.log.store.other_nodes(self.log.journal.node_id()).await? {
            self.log.store.bury(neighbour.seen).await?;
        }
        Ok(())
    }

    async fn bury_the_dead(&self, observer: &mut Observer) -> Result<()> {
        let neighbours = self.log.store.other_nodes(self.log.journal.node_id()).await?;
        self.log.wake.neighbours(!neighbours.is_empty());
        self.isolation.look(&neighbours);
        for dead in observer.look(&neighbours, Instant::now()) {
            if self.log.store.bury(dead).await? {
                tracing::warn!(node_id = %dead.node_id, "a node is dead; its runs are taken over");
                self.log.desk.queued();
            }
        }
        Ok(())
    }

    /// A queue that does not move although slots are free is told by `/readyz`.
    async fn see_who_waits(&self) -> Result<()> {
        let oldest = self.log.store.oldest_due().await?;
        let is_busy = self.log.desk.slots().available_permits() == 0;
        let since = oldest.filter(|_| !is_busy).map(|due_at| self.clock.now().since(due_at));
        self.log.pulse.waits(since.unwrap_or_default());
        Ok(())
    }

    async fn reconcile(self: &Arc<Self>, tasks: &Tasks) -> Result<()> {
        // Drivers that begin after this line are not judged by what was read before them.
        let driving: Vec<_> = {
            let drivers = self.drivers();
            drivers.iter().map(|(id, d)| (*id, d.watch.clone(), d.rev.clone())).collect()
        };
        let node_id = self.log.journal.node_id();
        let owned: HashMap<_, _> = self.log.store.owned(node_id).await?.into_iter().collect();
        for (run_id, watch, rev) in &driving {
            // Lost, or somebody wrote to it: either way its driver must read the row.
            if owned.get(run_id) != Some(&rev.load(Ordering::Relaxed)) {
                watch.poke();
            }
        }
        if self.draining.is_cancelled() {
            return Ok(());
        }
        self.take_up_all(owned.into_keys(), tasks).await
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(PATIENCE, asked).await.unwrap_or(Err(StoreError::Late))
}
