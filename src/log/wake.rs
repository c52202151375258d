//! Words between the nodes of one database: *look again at these runs*.
//!
//! What this node has written is collected here and told to the others a moment later, together; what
//! they tell is passed on to those who sleep. Words carry no data, and losing them loses nothing: all
//! who are woken by them also look once a second by themselves.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::domain::ids::RunId;
use crate::shutdown::Tasks;
use crate::store::{Ear, Hint, Result, SharedStore};

use super::desk::Desk;
use super::journal::Journal;
use super::live::Live;
use super::pulse::{Presence, Pulse};

/// Between two rounds of words: whatever was written meanwhile goes together.
const ROUND: Duration = Duration::from_millis(20);
/// How often the connection is asked whether it still lives; see [`Pulse::present`].
const ASK: Duration = Duration::from_millis(500);
/// Between two tries to listen again.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// Runs that may wait to be told; of more the others learn by looking.
const MAX_WAITING: usize = 10_000;

/// What is to be told to the other nodes.
#[derive(Default)]
pub struct Wake {
    outbox: Mutex<Outbox>,
    rung: Notify,
    /// Rung when this node wrote that a child came to rest or goes on.
    signalled: Notify,
    /// Whether anybody is there to be told.
    neighbours: AtomicBool,
}

#[derive(Default)]
struct Outbox {
    grown: HashSet<RunId>,
    changed: HashSet<RunId>,
    due: bool,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.grown.is_empty() && self.changed.is_empty() && !self.due
    }
}

/// Who is woken here, and what the listener needs.
pub(super) struct Listener {
    pub(super) wake: Arc<Wake>,
    pub(super) store: SharedStore,
    pub(super) journal: Arc<Journal>,
    pub(super) live: Arc<Live>,
    pub(super) desk: Arc<Desk>,
    pub(super) pulse: Arc<Pulse>,
}

/// Why a conversation with the other nodes ended.
enum Ended {
    Stopped,
    Reborn,
}

impl Wake {
    /// Whether there are other nodes. Without any, nothing is collected.
    pub fn neighbours(&self, any: bool) {
        self.neighbours.store(any, Ordering::Relaxed);
    }

    /// These logs have grown.
    pub fn grown(&self, run_ids: impl IntoIterator<Item = RunId>) {
        self.put(|outbox| {
            if outbox.grown.len() < MAX_WAITING {
                outbox.grown.extend(run_ids);
            }
        });
    }

    /// These runs came to rest, or this node wrote to them as a guest.
    pub fn changed(&self, run_ids: impl IntoIterator<Item = RunId>) {
        self.put(|outbox| {
            if outbox.changed.len() < MAX_WAITING {
                outbox.changed.extend(run_ids);
            }
        });
    }

    /// A run waits for an engine.
    pub fn due(&self) {
        self.put(|outbox| outbox.due = true);
    }

    /// A child has come to rest or goes on: its parent must look. For this node alone, which wrote it.
    pub fn signal(&self) {
        self.signalled.notify_one();
    }

    /// Resolves once there was a signal since the last time.
    pub(super) async fn signalled(&self) {
        self.signalled.notified().await;
    }

    fn put(&self, add: impl FnOnce(&mut Outbox)) {
        if !self.neighbours.load(Ordering::Relaxed) {
            return;
        }
        let mut outbox = self.outbox();
        let first = outbox.is_empty();
        add(&mut outbox);
        drop(outbox);
        if first {
            self.rung.notify_one();
        }
    }

    fn take(&self) -> Vec<Hint> {
        let Outbox { mut grown, changed, due } = std::mem::take(&mut *self.outbox());
        grown.retain(|run_id| !changed.contains(run_id));
        let mut hints = Vec::new();
        if !grown.is_empty() {
            hints.push(Hint::Grown(grown.into_iter().collect()));
        }
        if !changed.is_empty() {
            hints.push(Hint::Changed(changed.into_iter().collect()));
        }
        if due {
            hints.push(Hint::Due);
        }
        hints
    }

    fn is_empty(&self) -> bool {
        self.outbox().is_empty()
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // What a panicking holder left behind is at worst a word that is not said.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// Listens and tells until it is time to stop, through every loss of the connection.
    pub(super) async fn run(self, tasks: &Tasks) {
        let mut heard = true;
        loop {
            let node_id = self.journal.node_id();
            let ended = match self.store.listen(node_id).await {
                // There is nobody to listen to.
                Ok(None) => return self.pulse.hears(true),
                Ok(Some(ear)) => {
                    heard = true;
                    self.pulse.hears(true);
                    // What was said while nobody listened.
                    self.live.look_everywhere();
                    self.desk.queued();
                    self.converse(ear, tasks).await
                }
                Err(error) => Err(error),
            };
            match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Reborn) => {}
                Err(error) => {
                    self.pulse.hears(false);
                    self.pulse.present(None);
                    if std::mem::take(&mut heard) {
                        tracing::warn!(%error, "other nodes are not heard; looking once a second");
                    }
                    tokio::select! {
                        () = sleep(TRY_AGAIN) => {}
                        () = tasks.stopped() => return,
                    }
                }
            }
        }
    }

    async fn converse(&self, mut ear: Box<dyn Ear>, tasks: &Tasks) -> Result<Ended> {
        let node_id = self.journal.node_id();
        let mut ask = interval(ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_round = Instant::now();
        let mut since = None;
        loop {
            let waiting = !self.wake.is_empty();
            tokio::select! {
                hint = ear.hear() => self.pass_on(hint?),
                () = sleep_until(next_round), if waiting => {
                    ear.tell(&self.wake.take()).await?;
                    next_round = Instant::now() + ROUND;
                }
                () = self.wake.rung.notified(), if !waiting => {}
                _ = ask.tick() => {
                    if self.journal.node_id() != node_id {
                        return Ok(Ended::Reborn);
                    }
                    let asked = std::time::Instant::now();
                    if ear.ask().await? {
                        let since = *since.get_or_insert_with(std::time::Instant::now);
                        self.pulse.present(Some(Presence { since, asked }));
                    }
                }
                () = tasks.stopped() => {
                    let last = self.wake.take();
                    if !last.is_empty() {
                        ear.tell(&last).await?;
                    }
                    return Ok(Ended::Stopped);
                }
            }
        }
    }

    fn pass_on(&self, hint: Hint) {
        match hint {
            Hint::Grown(run_ids) => run_ids.into_iter().for_each(|id| self.live.grown(id)),
            Hint::Changed(run_ids) => run_ids.into_iter().for_each(|id| self.live.hint(id)),
            Hint::Due => self.desk.queued(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn run(n: u128) -> RunId {
        RunId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn what_is_to_be_told_is_collected_while_there_is_somebody_to_tell_it_to() {
        let wake = Wake::default();
        wake.due();
        wake.grown([run(1)]);
        assert_eq!(wake.take(), []);
        wake.neighbours(true);
        wake.grown([run(1), run(2)]);
        wake.grown([run(2)]);
        wake.changed([run(1)]);
        wake.due();
        let told = wake.take();
        assert_eq!(told, [Hint::Grown(vec![run(2)]), Hint::Changed(vec![run(1)]), Hint::Due]);
        assert_eq!(wake.take(), []);
    }

    #[test]
    fn no_more_is_kept_than_is_worth_telling() {
        let wake = Wake::default();
        wake.neighbours(true);
        for n in 0..2 * MAX_WAITING {
            wake.grown([run(n as u128)]);
        }
        let Some(Hint::Grown(run_ids)) = wake.take().pop() else { panic!("nothing") };
        assert_eq!(run_ids.len(), MAX_WAITING);
    }
}
