//! This process as the database knows it.
//!
//! Once a second: beat; look at the others' beats and bury those that stand still; compare what is
//! ours by the database with what we drive. That comparison alone covers every lost claim, lost hint
//! and leak.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ids::NodeId;
use crate::shutdown::Tasks;
use crate::store::{NodeBeat, StoreError};

use super::Engine;

/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// A node whose beat stands still for so long, while our own reads succeed, is dead.
const DEAD_AFTER: Duration = Duration::from_secs(15);

/// Beats of others as this process has seen them. No clocks are compared.
#[derive(Default)]
struct Seen(HashMap<NodeId, (i64, Instant)>);

impl Seen {
    /// Takes in what was just read; returns those that stood still for too long. `away`: how long the
    /// database could not be read before, during which nobody could beat.
    fn look(&mut self, beats: &[NodeBeat], now: Instant, away: Duration) -> Vec<NodeBeat> {
        self.0.retain(|node_id, _| beats.iter().any(|beat| beat.node_id == *node_id));
        let mut still = Vec::new();
        for beat in beats {
            let entry = self.0.entry(beat.node_id).or_insert((beat.beat, now));
            if entry.0 == beat.beat {
                entry.1 += away;
                if now.saturating_duration_since(entry.1) >= DEAD_AFTER {
                    still.push(*beat);
                }
            } else {
                *entry = (beat.beat, now);
            }
        }
        still
    }
}

impl Engine {
    /// Beats, buries and reconciles until it is time to stop.
    pub(super) async fn live_on(self: &Arc<Self>, tasks: &Tasks) {
        let mut tick = tokio::time::interval(BEAT);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = Seen::default();
        let mut last_look = Instant::now();
        loop {
            tokio::select! {
                () = tasks.stopped() => return,
                _ = tick.tick() => {}
            }
            if let Err(error) = self.beat().await {
                tracing::warn!(%error, "this node could not beat");
                continue;
            }
            let now = Instant::now();
            let away = now.saturating_duration_since(last_look).saturating_sub(BEAT * 2);
            last_look = now;
            if let Err(error) = self.bury_the_still(&mut seen, now, away).await {
                tracing::warn!(%error, "other nodes could not be looked at");
            }
            if self.slots > 0
                && let Err(error) = self.reconcile(tasks).await
            {
                tracing::warn!(%error, "own runs could not be compared with the database");
            }
        }
    }

    async fn beat(&self) -> Result<(), StoreError> {
        let node_id = self.log.journal.node_id();
        if self.log.store.beat(node_id).await? {
            return Ok(());
        }
        // Others took this node for dead and may have taken its runs: nothing of it counts any more.
        tracing::error!(%node_id, "this node was declared dead; going on as a new one");
        let reborn = NodeId::from_uuid(self.clock.uuid());
        self.log.store.register_node(reborn, self.clock.now()).await?;
        self.log.journal.become_node(reborn);
        if self.slots > 0 && !self.draining.is_cancelled() {
            self.log.desk.open_as(Some(reborn));
        }
        for driven in self.drivers().values() {
            driven.watch.poke();
        }
        Ok(())
    }

    /// On a database that nobody else can use, every other node is dead.
    pub(super) async fn bury_all(&self) -> Result<(), StoreError> {
        for beat in self.log.store.other_nodes(self.log.journal.node_id()).await? {
            self.log.store.bury(beat).await?;
        }
        Ok(())
    }

    async fn bury_the_still(
        &self,
        seen: &mut Seen,
        now: Instant,
        away: Duration,
    ) -> Result<(), StoreError> {
        let beats = self.log.store.other_nodes(self.log.journal.node_id()).await?;
        self.isolation.look(&beats);
        for still in seen.look(&beats, now, away) {
            if self.log.store.bury(still).await? {
                tracing::warn!(node_id = %still.node_id, "a node is dead; its runs are taken over");
                self.log.desk.queued();
            }
        }
        Ok(())
    }

    async fn reconcile(self: &Arc<Self>, tasks: &Tasks) -> Result<(), StoreError> {
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
        for run_id in owned.into_keys() {
            if self.drivers().contains_key(&run_id) || self.isolation.holds(run_id) {
                continue;
            }
            let Ok(slot) = self.log.desk.slots().clone().try_acquire_owned() else { break };
            self.take_up(run_id, slot, tasks).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_node_is_dead_when_its_beat_stands_still_and_not_when_the_database_was_away() {
        let beat = |n| NodeBeat { node_id: NodeId::from_uuid(Uuid::from_u128(1)), beat: n };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        assert!(seen.look(&[beat(1)], at(0), Duration::ZERO).is_empty());
        assert!(seen.look(&[beat(2)], at(14), Duration::ZERO).is_empty());
        assert!(seen.look(&[beat(2)], at(28), Duration::ZERO).is_empty());
        // A minute in which nobody could beat.
        assert!(seen.look(&[beat(2)], at(88), Duration::from_secs(60)).is_empty());
        assert_eq!(seen.look(&[beat(2)], at(90), Duration::ZERO), vec![beat(2)]);
    }
}
