//! Group commit: creations and appends of all runs of this node go to the database together.
//!
//! One flush is under way at a time; what comes meanwhile waits for the next, so batches grow by
//! themselves with the load. Facts and creations are flushed at once and take the waiting text
//! along; text alone waits a few milliseconds after the last flush began.
//!
//! Creations with an idempotency key have a loop of their own, so that somebody else's open key never
//! holds up a token. So have turns of conversations, for the same reason: creations that ask for one, and
//! appends that say something in one or end it. Each run's own order stays, for a lane gives nothing more
//! away until what it gave is settled.
//!
//! What becomes of a batch is never guessed: *unavailable* means that nothing was written and the same
//! batch is tried again; *in doubt* is resolved by the database; *rejected* is bisected until the one
//! row that is to blame stands alone.

mod doorbell;
mod load;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::ids::NodeId;
use crate::domain::run::RunStatus;
use crate::shutdown::Tasks;
use crate::store::{
    Append, AppendOutcome, Batch, BatchOutcome, CreateOutcome, NewRun, Result, SharedStore,
    StoreError,
};

use super::lane::{Closed, Lane};
use super::wake::Wake;

pub use doorbell::Doorbell;
use doorbell::{Create, Taken};
use load::{Load, Replies, refuse};

/// The loop of appends, and of creations that need nothing else.
const APPENDS: i16 = 0;
/// The loop of creations with keys.
const KEYED: i16 = 1;
/// The loop in which turns begin and end.
const TURNS: i16 = 2;
/// How long a client waits for a creation before it is told that nobody knows.
const CREATE: Duration = Duration::from_secs(8);
/// Waits between tries while the database is away.
const AWAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The journal of this process.
pub struct Journal {
    store: SharedStore,
    clock: Clock,
    node: Mutex<NodeId>,
    numbers: AtomicI64,
    appends: Arc<Doorbell>,
    keyed: Arc<Doorbell>,
    turns: Arc<Doorbell>,
    /// The loop of appends has ended.
    appended: CancellationToken,
    /// Rung when a run that waited for its turn is due.
    promoted: Notify,
    wake: Arc<Wake>,
}

impl Journal {
    /// A journal that writes as `node_id`, and tells `wake` what it wrote. It does nothing until
    /// started.
    pub fn new(store: SharedStore, clock: Clock, node_id: NodeId, wake: Arc<Wake>) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock,
            node: Mutex::new(node_id),
            numbers: AtomicI64::new(1),
            appends: Doorbell::new(),
            keyed: Doorbell::new(),
            turns: Doorbell::new(),
            appended: CancellationToken::new(),
            promoted: Notify::new(),
            wake,
        })
    }

    /// Starts the three loops. They stop when `tasks` stop and everything that waited is written.
    pub fn start(self: &Arc<Self>, tasks: &Tasks) {
        for (lane, doorbell) in self.doorbells() {
            let (journal, own) = (self.clone(), tasks.clone());
            tasks.spawn(async move { journal.run(lane, &doorbell, &own).await });
        }
    }

    fn doorbells(&self) -> [(i16, Arc<Doorbell>); 3] {
        [(APPENDS, self.appends.clone()), (KEYED, self.keyed.clone()), (TURNS, self.turns.clone())]
    }

    /// Resolves once a run that waited for its turn in a conversation has become due.
    pub(super) async fn promoted(&self) {
        self.promoted.notified().await;
    }

    /// The node that the journal writes as.
    pub fn node_id(&self) -> NodeId {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on as another node: the old one was buried, and its lanes are all lost.
    pub fn become_node(&self, node_id: NodeId) {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner) = node_id;
    }

    /// Where lanes of this journal ring.
    pub fn doorbell(&self) -> Arc<Doorbell> {
        self.appends.clone()
    }

    /// Creates a run; durable when this returns `Created`.
    ///
    /// # Errors
    /// When the database is away or refuses the run, or too many creations wait already.
    /// [`StoreError::Late`] when its fate is not known in time: it may be there, or come to be.
    pub async fn create(&self, run: NewRun) -> Result<CreateOutcome> {
        let (reply, answer) = oneshot::channel();
        // What takes long, or may have to wait for somebody, holds up no token.
        let aside = run.key.is_some() || !run.copied.is_empty();
        let doorbell = match (run.turn, aside) {
            (Some(_), _) => &self.turns,
            (None, true) => &self.keyed,
            (None, false) => &self.appends,
        };
        if !doorbell.create(Create { run, reply }) {
            return Err(StoreError::Overloaded);
        }
        match tokio::time::timeout(CREATE, answer).await {
            // The sender is dropped only when the journal has stopped.
            Ok(answer) => answer.unwrap_or(Err(StoreError::Overloaded)),
            // What was not taken by then never will be: its receiver is gone.
            Err(_) => Err(StoreError::Late),
        }
    }

    async fn run(&self, lane: i16, doorbell: &Doorbell, tasks: &Tasks) {
        let interval = self.store.flush_interval();
        let mut began = Instant::now();
        loop {
            let (idle, urgent) = doorbell.looked_at();
            if idle {
                tokio::select! {
                    () = doorbell.rung() => {}
                    () = self.may_stop(lane, tasks) => {
                        // Whoever still pushes after this has been told to stop.
                        if doorbell.looked_at().0 {
                            if lane == APPENDS {
                                self.appended.cancel();
                            }
                            return;
                        }
                    }
                }
                continue;
            }
            if !urgent && !tasks.is_stopping() {
                tokio::select! {
                    () = tokio::time::sleep_until(began + interval) => {}
                    () = doorbell.rung() => continue,
                }
            }
            began = Instant::now();
            self.flush_once(lane, doorbell).await;
        }
    }

    /// Resolves when a loop that has nothing to do may end. The loop of turns gets its work from that of
    /// appends, and ends after it.
    async fn may_stop(&self, lane: i16, tasks: &Tasks) {
        tasks.stopped().await;
        if lane == TURNS {
            self.appended.cancelled().await;
        }
    }

    /// Takes what waits and writes it.
    async fn flush_once(&self, lane: i16, doorbell: &Doorbell) {
        let Taken { creates, lanes, spoken } = doorbell.take(lane == TURNS);
        let mut load = Load::default();
        // Whoever gave up waiting was told so, and may have tried again.
        for create in creates.into_iter().filter(|create| !create.reply.is_closed()) {
            load.creates.push(create.run);
            load.replies.push(create.reply);
        }
        for lane in lanes {
            match lane.take() {
                Ok(Some(append)) if append.speaks() => self.turns.speak(append, lane),
                Ok(Some(append)) => {
                    load.appends.push(append);
                    load.lanes.push(lane);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(run_id = %lane.run_id, %error, "an event cannot be encoded");
                    lane.missed(Closed::Rejected);
                }
            }
        }
        for (append, lane) in spoken {
            load.appends.push(append);
            load.lanes.push(lane);
        }
        self.write(lane, load).await;
    }

    /// Writes a load, halving it as long as the database refuses something in it.
    async fn write(&self, lane: i16, load: Load) {
        let mut todo = vec![load];
        while let Some(load) = todo.pop() {
            if load.is_empty() {
                continue;
            }
            let (batch, replies, lanes) = load.into_batch(self, lane);
            let signals = batch.appends.iter().any(may_signal);
            match self.settle(batch, replies.len()).await {
                Settled::Written(outcome) => {
                    if outcome.promoted {
                        self.promoted.notify_one();
                    }
                    self.distribute(outcome, replies, &lanes);
                    if signals {
                        self.wake.signal();
                    }
                }
                Settled::CreatesRefused(error, batch) => {
                    refuse(replies, error);
                    todo.push(Load {
                        creates: Vec::new(),
                        replies: Vec::new(),
                        appends: batch.appends,
                        lanes,
                    });
                }
                Settled::Rejected(error, batch) => {
                    let load =
                        Load { creates: batch.creates, replies, appends: batch.appends, lanes };
                    match load.halves() {
                        Ok((first, second)) => todo.extend([second, first]),
                        Err(load) => load.blame(error),
                    }
                }
            }
        }
    }

    /// Flushes a batch until its fate is known.
    async fn settle(&self, mut batch: Batch, creates: usize) -> Settled {
        let mut wait = AWAY.0;
        loop {
            let error = match self.store.flush(&batch).await {
                Ok(outcome) => return Settled::Written(outcome),
                Err(error @ StoreError::Rejected(_)) => return Settled::Rejected(error, batch),
                Err(StoreError::InDoubt(source)) => {
                    tracing::warn!(error = %source, "the answer to a flush was lost; asking again");
                    match self.resolve(&batch).await {
                        Some(outcome) => return Settled::Written(outcome),
                        None => {
                            // Its number is spent: the late arrival of the old one must fail.
                            batch.number = self.numbers.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                    }
                }
                Err(error) => error,
            };
            tracing::warn!(%error, source = source_of(&error), "a flush failed; trying again");
            // Nothing was written. Clients can try again by themselves; runs have to wait.
            if creates > 0 {
                return Settled::CreatesRefused(error, batch);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AWAY.1);
        }
    }

    /// After the commit: shows what was written, and tells whoever waits for it.
    fn distribute(&self, outcome: BatchOutcome, replies: Replies, lanes: &[Arc<Lane>]) {
        let (mut grown, mut rested) = (Vec::new(), Vec::new());
        for (lane, outcome) in lanes.iter().zip(outcome.appends) {
            match outcome {
                AppendOutcome::Written => {
                    let told = if lane.written() { &mut rested } else { &mut grown };
                    told.push(lane.run_id);
                }
                AppendOutcome::Missed => lane.missed(Closed::Missed),
            }
        }
        for (reply, outcome) in replies.into_iter().zip(outcome.creates) {
            // Whoever asked may have gone; the run is there all the same.
            let _ = reply.send(Ok(outcome));
        }
        self.wake.grown(grown);
        self.wake.changed(rested);
    }

    /// Settles a batch in doubt, however long that takes.
    async fn resolve(&self, batch: &Batch) -> Option<BatchOutcome> {
        let mut wait = AWAY.0;
        loop {
            match self.store.resolve(batch).await {
                Ok(outcome) => return outcome,
                Err(error) => {
                    tracing::warn!(%error, "a flush in doubt cannot be settled yet");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(AWAY.1);
                }
            }
        }
    }
}

/// What became of a batch. What was not written comes back.
enum Settled {
    Written(BatchOutcome),
    CreatesRefused(StoreError, Batch),
    Rejected(StoreError, Batch),
}

/// The driver's words behind an error, for the log alone.
fn source_of(error: &StoreError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// Whether it may leave a signal for the run's parent. One that is not told here is found by looking.
fn may_signal(append: &Append) -> bool {
    append.update.as_ref().is_some_and(|update| {
        let rests = update.status.is_final() || update.status == RunStatus::RequiresAction;
        rests && update.parent_run_id.is_some()
    })
}
