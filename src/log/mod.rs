//! THE RUN LOG. The only door through which a run changes, and the only one through which it is read.
//!
//! - [`journal`]: group commit. Creations and appends of all runs of this node, flushed together.
//! - [`guest`]: writes of everybody who is not the driver (cancel, erase, later answers and steering).
//! - [`lane`]: one driven run's way into the journal: seqs, merging, the fence.
//! - [`live`]: what this process knows of runs that somebody watches or drives; [`tail`]: their newest events.
//! - [`follow`]: a cursor over one run's log; `follow_conversation`: over a conversation's runs.
//! - [`page`]: events as they stand in a stream, framed once; [`shelf`]: what was read a moment ago.
//! - [`turns`]: conversations, as far as they are more than their runs.
//! - [`wake`]: words between nodes (look again); [`pulse`]: how this process does.
//! - [`desk`]: where created runs meet free slots of this node's engine; [`draft`]: how they are
//!   written; [`family`]: parents hear of their children.
//!
//! What this room must never do: show anything before its commit, hold a queue for a reader, let what
//! woke somebody be data, or guess the fate of a commit.

pub mod desk;
mod draft;
mod family;
pub mod follow;
mod follow_conversation;
pub mod guest;
pub mod journal;
pub mod lane;
pub mod live;
pub mod page;
pub mod pulse;
pub mod shelf;
pub mod tail;
mod turns;
pub mod wake;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::domain::conversation::{Refusal, Turn};
use crate::domain::event::EventType;
use crate::domain::ids::{NodeId, RunId, WorkspaceId};
use crate::domain::run::RunStatus;
use crate::shutdown::Tasks;
use crate::store::{
    CreateOutcome, GuestOutcome, GuestWrite, KeyRow, NewKey, NewRun, Result, RunRecord, SharedStore,
};

use desk::{Desk, Handover};
pub use draft::Draft;
pub use follow::{Cursor, FollowError, Gap, Next};
pub use follow_conversation::{ConversationCursor, Heard};
pub use guest::CallAnswer;
use journal::Journal;
use live::Live;
use pulse::Pulse;
use wake::{Listener, Wake};

/// The run log of this process. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    /// The database below.
    pub store: SharedStore,
    /// Group commit.
    pub journal: Arc<Journal>,
    /// Tails and wake-ups.
    pub live: Arc<Live>,
    /// Free slots.
    pub desk: Arc<Desk>,
    /// What other nodes are told.
    pub wake: Arc<Wake>,
    /// How this process does.
    pub pulse: Arc<Pulse>,
    /// The time.
    pub clock: Clock,
}

/// What became of a creation.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    /// The run is there.
    New(Box<RunRecord>),
    /// Its conversation does not take it at the moment, or ever.
    Refused(Refusal),
    /// There is no such conversation.
    ConversationGone,
    /// The agent has another current version than `row.agent_version` by now, is archived or gone.
    AgentMoved,
    /// The idempotency key was bound already; nothing was created.
    KeyTaken(KeyRow),
    /// Its family is as large as families may be.
    FamilyFull,
}

/// What became of an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erased {
    /// It is gone.
    Done,
    /// No such run.
    Absent,
    /// This one has not ended: itself, or one below it.
    Active(RunId),
    /// The key was bound already.
    KeyTaken(KeyRow),
}

impl Log {
    /// A log over `store` that writes as `node_id`, with so many slots at its desk. What is handed
    /// over at the desk comes out of the receiver.
    pub fn new(
        store: SharedStore,
        clock: Clock,
        node_id: NodeId,
        slots: usize,
    ) -> (Self, mpsc::UnboundedReceiver<Handover>) {
        let (desk, handovers) = Desk::new(slots);
        let wake: Arc<Wake> = Arc::default();
        let log = Self {
            journal: Journal::new(store.clone(), clock.clone(), node_id, wake.clone()),
            wake,
            pulse: Arc::default(),
            store,
            live: Arc::default(),
            desk: Arc::new(desk),
            clock,
        };
        (log, handovers)
    }

    /// Starts what runs in the background. `journal` must outlive everything that still writes.
    pub fn start(&self, tasks: &Tasks, journal: &Tasks) {
        self.live.start(self.store.clone(), tasks);
        self.journal.start(journal);
        let listener = Listener {
            wake: self.wake.clone(),
            store: self.store.clone(),
            journal: self.journal.clone(),
            live: self.live.clone(),
            desk: self.desk.clone(),
            pulse: self.pulse.clone(),
        };
        let own = tasks.clone();
        tasks.spawn(async move { listener.run(&own).await });
        let (log, own) = (self.clone(), tasks.clone());
        tasks.spawn(async move { log.rouse_parents(&own).await });
        let (log, own) = (self.clone(), tasks.clone());
        tasks.spawn(async move { log.take_turns(&own).await });
    }

    /// Creates a run: durable when this returns. If this node's engine has a free slot, the run is
    /// born claimed and handed over after the commit; else it waits in the queue.
    ///
    /// # Errors
    /// When the database is away, busy, or refuses the run.
    pub async fn create(&self, mut run: NewRun) -> Result<Created> {
        // What begins with more than its first event is read from the store by whoever claims it.
        let kept = if run.copied.is_empty() { self.desk.keep_slot() } else { None };
        if let Some(kept) = &kept {
            run.row.node_id = Some(kept.node_id);
            run.row.due_at = None;
            run.row.rev = 1;
            run.row.epoch = 1;
        }
        let mut record = RunRecord {
            row: run.row.clone(),
            body: run.body.clone(),
            last_seq: run.row.fact_seq,
            first: Some(run.first.clone()),
            newest_fact: None,
            actions: Vec::new(),
        };
        let turn = match self.journal.create(run).await? {
            CreateOutcome::AgentMoved => return Ok(Created::AgentMoved),
            CreateOutcome::KeyTaken(row) => return Ok(Created::KeyTaken(row)),
            CreateOutcome::Refused(refusal) => return Ok(Created::Refused(refusal)),
            CreateOutcome::ConversationGone => return Ok(Created::ConversationGone),
            CreateOutcome::FamilyFull => return Ok(Created::FamilyFull),
            CreateOutcome::Created => Turn::Active,
            CreateOutcome::Entered(entrance) => {
                record.row.past = entrance.past;
                record.row.cost_ceiling = entrance.cost_ceiling;
                entrance.turn
            }
        };
        match turn {
            Turn::Active => match kept {
                Some(kept) => {
                    // The tail begins here, so that a reader who comes at once finds it.
                    let watch = self.live.watch(record.row.run_id);
                    watch.begin_tail(0);
                    watch.publish(record.first.iter().cloned().collect());
                    let slot = kept.slot;
                    self.desk.hand_over(Handover { record: record.clone(), slot, watch });
                }
                None => self.queued(),
            },
            // Whoever ends the turn before it says that it is due.
            Turn::Waiting | Turn::Interrupting | Turn::Superseded => {
                (record.row.node_id, record.row.due_at, record.row.epoch) = (None, None, 0);
            }
        }
        if let Some(conversation_id) = record.row.conversation_id {
            self.spoke(conversation_id);
        }
        if turn == Turn::Interrupting {
            self.cancel_overtaken_soon().await;
        }
        Ok(Created::New(Box::new(record)))
    }

    /// The run as it is; one that has ended comes from memory if somebody asked for it a moment ago.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn load_run(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
    ) -> Result<Option<RunRecord>> {
        if let Some(record) = self.live.ended(run_id).or_else(|| self.live.shelf.run(run_id)) {
            let own = record.row.workspace_id == workspace_id;
            return Ok(own.then(|| RunRecord::clone(&record)));
        }
        let record = self.store.load_run(workspace_id, run_id).await?;
        if let Some(record) = &record {
            self.live.shelf.keep_run(record);
        }
        Ok(record)
    }

    /// Asks the run to stop; one that has ended stays as it is.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn cancel(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        key: Option<NewKey>,
    ) -> Result<GuestOutcome> {
        let decide = guest::cancel(&self.clock);
        let outcome = self.store.guest(GuestWrite { workspace_id, run_id, key, decide }).await?;
        self.wrote(run_id);
        if let GuestOutcome::Done { node_id: None, appended, .. } = &outcome
            && !appended.is_empty()
        {
            // Its parent may wait for it, or it for its children: then somebody must go on with it.
            self.wake.signal();
            self.queued();
        }
        Ok(outcome)
    }

    /// Hands in what a tool answered, for a driver that has lost its run meanwhile: what was done is
    /// not done again. Nothing happens when the call was answered by somebody else.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn answer_call(&self, run: (WorkspaceId, RunId), answer: CallAnswer) -> Result<()> {
        let (workspace_id, run_id) = run;
        let decide = guest::answer(&self.clock, answer);
        self.store.guest(GuestWrite { workspace_id, run_id, key: None, decide }).await?;
        self.wrote(run_id);
        self.queued();
        Ok(())
    }

    /// Lets somebody who does not drive a run write to it. The run goes on if that was what it waited
    /// for.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn visit(&self, write: GuestWrite) -> Result<GuestOutcome> {
        let run_id = write.run_id;
        let outcome = self.store.guest(write).await?;
        if let GuestOutcome::Done { appended, .. } = &outcome
            && !appended.is_empty()
        {
            self.wrote(run_id);
            self.wake.signal();
            if appended.iter().any(|fact| fact.event_type == EventType::RunResumed) {
                self.queued();
            }
        }
        Ok(outcome)
    }

    /// Somebody who does not drive this run has written to it.
    fn wrote(&self, run_id: RunId) {
        self.live.hint(run_id);
        self.wake.changed([run_id]);
    }

    /// A run waits for an engine, of this node or another.
    pub fn queued(&self) {
        self.desk.queued();
        self.wake.due();
    }

    /// Erases an ended run with all below it: their bodies and their logs go, their ids stay taken. Those
    /// below go first, slice by slice: if this breaks off, whoever asks again finds what is left.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn erase(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        key: Option<NewKey>,
    ) -> Result<Erased> {
        let Some(record) = self.store.load_run(workspace_id, run_id).await? else {
            return Ok(Erased::Absent);
        };
        // Ended is ended: what is final now cannot become active before the write.
        if !record.row.status.is_final() {
            return Ok(Erased::Active(run_id));
        }
        loop {
            let now = self.clock.now();
            let below = self.store.erase_below(workspace_id, run_id, now).await?;
            self.erased(&below.erased);
            if let Some(alive) = below.alive {
                return Ok(Erased::Active(alive));
            }
            if !below.more {
                break;
            }
        }
        let decide = guest::erase(&self.clock);
        let outcome = self.store.guest(GuestWrite { workspace_id, run_id, key, decide }).await?;
        self.erased(&[run_id]);
        Ok(match outcome {
            GuestOutcome::Absent => Erased::Absent,
            GuestOutcome::KeyTaken(row) => Erased::KeyTaken(row),
            GuestOutcome::Done { .. } | GuestOutcome::Refused(_) => Erased::Done,
        })
    }

    /// These were erased: nobody is to read what is remembered of them.
    fn erased(&self, run_ids: &[RunId]) {
        for run_id in run_ids {
            self.live.forget(*run_id);
            self.wrote(*run_id);
        }
    }

    /// A cursor over the log: what comes behind `after`.
    pub fn follow(&self, workspace_id: WorkspaceId, run_id: RunId, after: i32) -> Cursor {
        Cursor::new(self.store.clone(), self.live.watch(run_id), workspace_id, run_id, after)
    }

    /// The run once it has ended or waits for somebody, or as it is after `patience`.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn settled(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        patience: Duration,
    ) -> Result<Option<RunRecord>> {
        let deadline = tokio::time::Instant::now() + patience;
        let watch = self.live.watch(run_id);
        loop {
            let rested = watch.rested();
            tokio::pin!(rested);
            rested.as_mut().enable();
            let head = match watch.head() {
                // Driven here, so it has not come to rest: nobody has to be asked.
                Some(head) if self.live.ended(run_id).is_none() => head,
                _ => {
                    let Some(record) = self.load_run(workspace_id, run_id).await? else {
                        return Ok(None);
                    };
                    let status = record.row.status;
                    // Parked with nothing open: a run below it was answered, and it will go on.
                    let waits = status == RunStatus::RequiresAction && !record.actions.is_empty();
                    if status.is_final() || waits {
                        return Ok(Some(record));
                    }
                    record.last_seq
                }
            };
            let _asleep = watch.sleeper(head);
            if tokio::time::timeout_at(deadline, rested).await.is_err() {
                return self.load_run(workspace_id, run_id).await;
            }
        }
    }
}
