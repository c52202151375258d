//! Runs that may take their process down get one of their own.
//!
//! A run that lost two drivers without a committed step in between is a suspect: its neighbours died
//! with it, and nobody can say who was to blame. It goes on in a child process, which has a node of
//! its own and nothing else to do. If that dies, the run is convicted and ends `failed/poisoned`; once a
//! step is committed the run is acquitted, and given back to go on as any other: the next suspect needs
//! the place. The child's side is `alone.rs`.
//!
//! The parent alone convicts, as the witness of its child's end, and only if the child had taken the
//! run over. A machine that goes down with both of them convicts nobody.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::domain::ids::{NodeId, RunId};
use crate::domain::limits;
use crate::domain::run::{RunError, RunErrorCode};
use crate::shutdown::Tasks;
use crate::store::{Neighbour, RunRecord, Transfer};

use super::{DRAIN, Engine};

/// Children at a time. Each is a process with connections and memory of its own, and suspects are few.
const CHILDREN: usize = 4;
/// Suspects that wait for a child of this node. They hold no slot, for innocents need those, so they
/// need a bound of their own; what exceeds it is for the other nodes, or for later.
const WAITING: usize = 32;
/// How long a suspect is left alone for which there was no child.
const LATER: Duration = Duration::from_secs(5);
/// Between a child's death and the conviction: whoever killed both (`pkill`, a machine that goes down)
/// gets to us soon after. Much shorter than it takes others to find the child's node dead.
const GRACE: Duration = Duration::from_millis(500);
/// How long a child that has lost its run, or was told to stop, may take to go by itself.
const FAREWELL: Duration = Duration::from_secs(5);
/// Between two tries to write while the database is away.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// What a child is told: drive this run, which you take over from that node, as this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The run.
    pub run_id: RunId,
    /// The parent, who owns the run.
    pub from: NodeId,
    /// The child. Given by the parent, who takes the run back from it in the end.
    pub node_id: NodeId,
}

/// How a child is started: its command line and environment. Standard input is the engine's: the child
/// must stop when it ends.
pub type ChildCommand = Arc<dyn Fn(&Order) -> Command + Send + Sync>;

/// Suspects that wait for a child or are in one.
pub(super) struct Isolation {
    /// `None`: this process is such a child itself.
    command: Option<ChildCommand>,
    places: Semaphore,
    runs: Mutex<HashMap<RunId, Arc<Child>>>,
}

/// A child that is, or is to be.
struct Child {
    run_id: RunId,
    /// The run's, when this node claimed it; raised when the child takes it over.
    epoch: i32,
    node_id: NodeId,
    /// Whether its beat was ever seen.
    alive: AtomicBool,
    /// Its beat was seen and is not any more: it retired, or somebody buried it.
    gone: CancellationToken,
}

/// What became of a run that needs a child.
enum Admission {
    /// It gets one.
    Granted(Arc<Child>),
    /// It is there already.
    Known,
    /// There is no room.
    Full,
}

impl Isolation {
    pub(super) fn new(command: Option<ChildCommand>) -> Self {
        Self { command, places: Semaphore::new(CHILDREN), runs: Mutex::default() }
    }

    /// Whether the run must not be driven in this process.
    pub(super) fn is_for(&self, run: &RunRecord) -> bool {
        self.command.is_some() && run.row.crashes == limits::SUSPECT
    }

    /// Whether a run that this process drives is acquitted: it was a suspect, and has since come to the
    /// end of `steps` steps, which is more than it had.
    pub(super) fn acquits(&self, run: &RunRecord, steps: i32) -> bool {
        // What was read again since then says it by itself.
        self.command.is_none()
            && (run.row.crashes < limits::SUSPECT || steps > run.row.steps_completed)
    }

    /// Whether the run waits for a child or is in one.
    pub(super) fn holds(&self, run_id: RunId) -> bool {
        self.runs().contains_key(&run_id)
    }

    /// Whether it holds no run.
    pub(super) fn is_empty(&self) -> bool {
        self.runs().is_empty()
    }

    /// Compares the children with the nodes that live by the database: one that is not among them any
    /// more has nothing to do, whether it knows or not.
    pub(super) fn look(&self, neighbours: &[Neighbour]) {
        for child in self.runs().values() {
            if neighbours.iter().any(|neighbour| neighbour.seen.node_id == child.node_id) {
                child.alive.store(true, Ordering::Relaxed);
            } else if child.alive.load(Ordering::Relaxed) {
                child.gone.cancel();
            }
        }
    }

    fn admit(&self, child: Child) -> Admission {
        let mut runs = self.runs();
        let room = runs.len() < CHILDREN + WAITING;
        match runs.entry(child.run_id) {
            Entry::Occupied(_) => Admission::Known,
            Entry::Vacant(_) if !room => Admission::Full,
            Entry::Vacant(entry) => Admission::Granted(entry.insert(Arc::new(child)).clone()),
        }
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Child>>> {
        // Entries are whole or not there.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a run out of the list when it is done with, however that went.
struct Admitted {
    engine: Arc<Engine>,
    run_id: RunId,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.engine.isolation.runs().remove(&self.run_id);
        self.engine.let_go.notify_waiters();
    }
}

impl Engine {
    /// Sees to it that a run of this node goes on in a child, as soon as there is room for one.
    pub(super) async fn isolate(self: &Arc<Self>, run: &RunRecord, tasks: &Tasks) {
        let (run_id, epoch) = (run.row.run_id, run.row.epoch);
        let child = Child {
            run_id,
            epoch,
            node_id: NodeId::from_uuid(self.clock.uuid()),
            alive: AtomicBool::new(false),
            gone: CancellationToken::new(),
        };
        match self.isolation.admit(child) {
            Admission::Known => {}
            Admission::Full => self.put_off(run_id, epoch, LATER).await,
            Admission::Granted(child) => {
                let admitted = Admitted { engine: self.clone(), run_id };
                tasks.spawn(async move {
                    admitted.engine.drive_in_child(&child).await;
                    drop(admitted);
                });
            }
        }
    }

    async fn drive_in_child(self: &Arc<Self>, child: &Child) {
        let Child { run_id, epoch, node_id, .. } = *child;
        let place = tokio::select! {
            biased;
            () = self.draining.cancelled() => None,
            place = self.isolation.places.acquire() => place.ok(),
        };
        let (Some(_place), Some(command)) = (place, &self.isolation.command) else {
            return self.put_off(run_id, epoch, Duration::ZERO).await;
        };
        let order = Order { run_id, from: self.log.journal.node_id(), node_id };
        match self.accompany(command(&order), &order, child).await {
            Ok(None) => self.sign_off(&order).await,
            Ok(Some(status)) => self.witness(&order, status).await,
            Err(error) => {
                tracing::error!(%run_id, %error, "a run needs a process, and none can be started");
            }
        }
        let wait = if self.draining.is_cancelled() { Duration::ZERO } else { LATER };
        self.put_off(run_id, epoch, wait).await;
    }

    /// Starts a child and stays with it to its end. Returns how it died; `None`: it went by itself, or
    /// because it was told to or made to by us, which proves nothing.
    async fn accompany(
        &self,
        mut command: Command,
        order: &Order,
        watched: &Child,
    ) -> io::Result<Option<ExitStatus>> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let stdin = child.stdin.take();
        tracing::warn!(
            run_id = %order.run_id, node_id = %order.node_id, pid = child.id(),
            "a run that lost two drivers goes on in a process of its own"
        );
        let patience = tokio::select! {
            status = child.wait() => {
                return status.map(|status| (!status.success()).then_some(status));
            }
            () = self.draining.cancelled() => DRAIN + FAREWELL,
            () = watched.gone.cancelled() => FAREWELL,
        };
        // The end of its input tells it to stop.
        drop(stdin);
        match tokio::time::timeout(patience, child.wait()).await {
            Ok(status) => status.map(drop)?,
            Err(_late) => {
                tracing::warn!(run_id = %order.run_id, "a process does not stop; it is killed");
                child.kill().await?;
            }
        }
        Ok(None)
    }

    /// A child died. If it had the run, the run is to blame.
    async fn witness(self: &Arc<Self>, order: &Order, status: ExitStatus) {
        tokio::time::sleep(GRACE).await;
        if self.draining.is_cancelled() {
            // Somebody stops everything here, and may have killed it.
            return self.sign_off(order).await;
        }
        let run_id = order.run_id;
        let back = Transfer {
            run_id,
            from: order.node_id,
            to: self.log.journal.node_id(),
            crashes: Some(limits::CONVICTED),
        };
        while let Err(error) = self.log.store.transfer(back).await {
            tracing::warn!(%run_id, %error, "a run cannot be taken back yet");
            if !error.is_passing() {
                break;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        self.sign_off(order).await;
        // An answer may have been lost on the way: what counts is the row.
        match self.load_own(run_id).await.map(|run| run.record.row.crashes) {
            None => {}
            Some(limits::CONVICTED..) => {
                tracing::error!(%run_id, %status, "a run took its own process down: it is poisoned");
                let (watch, rev) = (self.log.live.watch(run_id), Arc::new(AtomicI32::new(0)));
                self.fail_run(run_id, watch, rev, poisoned()).await;
            }
            Some(_) => {
                // Its settings or the database are the reason, and it has said so itself.
                tracing::error!(%run_id, %status, "a process ended badly, but not with its run");
            }
        }
    }

    /// Gives a run back with which nobody has begun since this node claimed it: its epoch says so. If
    /// that fails, reconciliation finds it.
    async fn put_off(&self, run_id: RunId, epoch: i32, wait: Duration) {
        let (store, node_id) = (&self.log.store, self.log.journal.node_id());
        let done = match store.load_driveable(node_id, run_id).await {
            Ok(Some(run)) if run.record.row.epoch == epoch => {
                let (rev, due_at) = (run.record.row.rev, self.clock.now().plus(wait));
                store.release(node_id, run_id, rev, due_at, None).await.map(drop)
            }
            Ok(Some(_) | None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(%run_id, %error, "a run could not be put off");
        }
    }

    /// Signs a child off that is gone, in case it could not: what it left behind is free at once. If
    /// that fails, its beat stands still.
    async fn sign_off(&self, order: &Order) {
        if let Err(error) = self.log.store.retire_node(order.node_id).await {
            tracing::warn!(node_id = %order.node_id, %error, "a child could not be signed off");
        }
    }
}

/// What a convicted run ends with.
pub(super) fn poisoned() -> RunError {
    RunError {
        code: RunErrorCode::Poisoned,
        message: format!(
            "This run stopped the server process {} times, the last time one that it had for itself.",
            limits::CONVICTED
        ),
        retryable: false,
    }
}
