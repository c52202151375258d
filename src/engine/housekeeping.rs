//! What is old goes: runs, idempotency keys, deltas, and what nodes left behind.
//!
//! Every node does it: on Postgres they step over each other's rows. A pass works in small slices and
//! rests between them for longer than each took, so that it may take an hour and nobody notices. It
//! may be cut off after any slice; the next pass goes on with what is left.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
use crate::domain::retention::{self, Retention};
use crate::shutdown::Tasks;
use crate::store::{ConversationSweep, KeySweep, OLDEST, RunSweep, SharedStore, StoreError};

/// The first pass comes when recovery is over and clients have come back.
const FIRST: Duration = Duration::from_secs(60);
/// Between two passes: days are counted, so an hour more or less is nothing.
const EVERY: Duration = Duration::from_secs(3600);
/// How much earlier or later each may come, as a share: nodes that started together drift apart.
const JITTER: f64 = 0.25;
/// Of the time of a slice, how long the pass rests after it: four fifths of the time it does nothing.
const REST: u32 = 4;
/// How long it rests at least: a few flushes.
const REST_AT_LEAST: Duration = Duration::from_millis(20);

/// Deletes what is old.
#[derive(Clone)]
pub struct Housekeeping {
    /// Out of here.
    pub store: SharedStore,
    /// What is old is counted from its now.
    pub clock: Clock,
    /// How long logs are kept.
    pub keep: Retention,
}

/// What a pass deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Runs with everything of theirs.
    pub runs: u64,
    /// Conversations that were over, and runs that were left of erased ones.
    pub conversations: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Numbers of flushes of nodes that are gone.
    pub flushes: u64,
    /// Days of deltas.
    pub delta_days: u64,
    /// Deltas that did not go with their day.
    pub deltas: u64,
}

impl Housekeeping {
    /// Passes now and then, until it is time to stop.
    pub(super) async fn run(self, tasks: &Tasks) {
        let mut wait = FIRST;
        loop {
            let jitter = 1.0 + JITTER * (2.0 * self.clock.chance() - 1.0);
            tokio::select! {
                () = tokio::time::sleep(wait.mul_f64(jitter)) => {}
                () = tasks.stopped() => return,
            }
            self.pass(tasks).await;
            wait = EVERY;
        }
    }

    /// One pass through everything. It ends early when it is time to stop, and on the first error,
    /// which is logged: the next pass goes on. Returns what was deleted.
    pub async fn pass(&self, tasks: &Tasks) -> Pass {
        let mut pass = Pass::default();
        let result = self.sweep(&mut pass, tasks).await;
        if pass != Pass::default() {
            let Pass { runs, conversations, keys, flushes, delta_days, deltas } = pass;
            tracing::info!(
                runs,
                conversations,
                keys,
                flushes,
                delta_days,
                deltas,
                "deleted what was old"
            );
        }
        if let Err(error) = result {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "what is old was not all deleted; the next pass goes on");
        }
        pass
    }

    async fn sweep(&self, pass: &mut Pass, tasks: &Tasks) -> Result<(), StoreError> {
        let (store, now) = (&self.store, self.clock.now());
        let mut turns = Turns::new(tasks);

        let ended_before = self.keep.runs_ended_before(now);
        let mut sweep = RunSweep { after: OLDEST, ended_before, now };
        while turns.next().await {
            let swept = store.sweep_runs(sweep).await?;
            pass.runs += swept.gone;
            let Some(more) = swept.more else { break };
            sweep.after = more;
        }

        // Also what was erased when a process ended over it.
        let quiet_since = Some(self.keep.runs_ended_before(now));
        let sweep = ConversationSweep { only: None, quiet_since, now };
        while turns.next().await {
            let swept = store.sweep_conversations(sweep).await?;
            pass.conversations += swept.gone;
            if !swept.more {
                break;
            }
        }

        let bound_before = retention::keys_bound_before(now);
        let ended_before = retention::keys_of_runs_ended_before(now);
        let mut sweep = KeySweep { after: None, bound_before, ended_before };
        while turns.next().await {
            let swept = store.sweep_keys(sweep).await?;
            pass.keys += swept.gone;
            let Some(more) = swept.more else { break };
            sweep.after = Some(more);
        }

        let taken_before = retention::flushes_before(now);
        while turns.next().await {
            let swept = store.sweep_nodes(taken_before).await?;
            pass.flushes += swept.gone;
            if swept.more.is_none() {
                break;
            }
        }

        if turns.next().await {
            store.prepare_days().await?;
        }
        let written_before = self.keep.deltas_written_before(now);
        let mut after = None;
        while turns.next().await {
            let swept = store.sweep_deltas(after, written_before).await?;
            pass.delta_days += swept.days;
            pass.deltas += swept.deltas;
            let Some(more) = swept.more else { break };
            after = Some(more);
        }

        while turns.next().await {
            let more = store.shrink().await?;
            if !more {
                break;
            }
        }
        Ok(())
    }
}

/// The turns of a pass: a slice each, and a rest before the next.
struct Turns<'a> {
    tasks: &'a Tasks,
    began: Option<Instant>,
}

impl<'a> Turns<'a> {
    fn new(tasks: &'a Tasks) -> Self {
        Self { tasks, began: None }
    }

    /// Waits until the next slice may begin. `false`: it is time to stop.
    async fn next(&mut self) -> bool {
        if let Some(began) = self.began {
            let rest = (began.elapsed() * REST).max(REST_AT_LEAST);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = self.tasks.stopped() => {}
            }
        }
        self.began = Some(Instant::now());
        !self.tasks.is_stopping()
    }
}
