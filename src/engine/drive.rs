//! One run: decide → act → append, until it ends, parks or is lost.
//!
//! A driver holds nothing but memory. What it pushes is durable soon after; what must be durable
//! before something happens is awaited. When the fence does not hold, or somebody says so, it reads
//! the row again: then it goes on behind what others wrote, or stops quietly.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::domain::conversation::message::{Ended, Spoken};
use crate::domain::decide::{Decision, Ending, Now, decide};
use crate::domain::event::{Event, RunEnded};
use crate::domain::family::{self, ChildState};
use crate::domain::fold::Folded;
use crate::domain::ids::{CallId, RunId};
use crate::domain::overtaken;
use crate::domain::plan::Plan;
use crate::domain::run::{RunError, RunErrorCode, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::log::lane::{Closed, Haste, Lane, Unseen};
use crate::log::live::Watched;
use crate::store::{Driveable, Owner, RunRecord, RunUpdate, Said};
use crate::tools::mcp;

use super::Engine;
use super::trust::Faith;

/// Between two tries to read a row while the database is away.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A run being driven.
pub(super) struct Driver {
    pub(super) engine: Arc<Engine>,
    pub(super) record: RunRecord,
    pub(super) folded: Folded,
    pub(super) plan: Arc<Plan>,
    pub(super) lane: Arc<Lane>,
    /// The fence, for reconciliation to compare.
    rev: Arc<AtomicI32>,
    /// The step that this driver opened, or opened again.
    pub(super) opened: Option<i32>,
    /// The step for which this driver has looked what the plan's MCP servers have.
    pub(super) learned: Option<i32>,
    /// The sessions with its MCP servers, from the first call of one of their tools: they are closed when
    /// the driver and the calls under way are gone.
    pub(super) sessions: OnceLock<Arc<mcp::Sessions>>,
    /// Whether this node may act for the run.
    pub(super) faith: Faith,
    /// Calls under way. They end with the driver, unless it was the run that was lost.
    pub(super) calls: Calls,
    pub(super) in_flight: HashSet<CallId>,
    /// Children that were met since the row was last read, and how they were.
    pub(super) children: HashMap<CallId, ChildState>,
    /// Rung when the log has become as long as a log may be.
    pub(super) overlong: Arc<Notify>,
}

/// Calls under way, with what became of them.
pub(super) type Calls = JoinSet<(CallId, Made)>;

/// What became of a call.
#[derive(Debug, PartialEq)]
pub(super) enum Made {
    /// The tool answered, or failed.
    Answered(Result<Value, String>),
    /// It was sent, must not be sent again, and nobody can say what became of it.
    Unknown,
    /// It was not made: this node may not act at the moment.
    Withheld,
}

/// Why a driver does not simply go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The run ended, parked or was let go: there is nothing more to do here.
    Rest,
    /// Somebody else has it, or it is gone.
    Lost,
    /// The row must be read again before anything else.
    Look(Closed),
    /// This node may not act any more until it has beaten again.
    Doubt,
    /// Time has passed or the log is full: decide again.
    Decide,
    /// The server stops and cannot wait for the end of the step.
    Abort,
    /// Our own events do not fit our own log.
    Defect,
}

impl Driver {
    pub(super) fn new(
        engine: Arc<Engine>,
        record: RunRecord,
        folded: Folded,
        plan: Arc<Plan>,
        lane: Arc<Lane>,
        rev: Arc<AtomicI32>,
    ) -> Self {
        let faith = engine.trust.faith();
        Self {
            engine,
            record,
            folded,
            plan,
            lane,
            rev,
            opened: None,
            learned: None,
            sessions: OnceLock::new(),
            faith,
            calls: JoinSet::new(),
            in_flight: HashSet::new(),
            children: HashMap::new(),
            overlong: Arc::default(),
        }
    }

    pub(super) fn run_id(&self) -> RunId {
        self.lane.run_id
    }

    pub(super) fn now(&self) -> Timestamp {
        self.engine.clock.now()
    }

    /// Drives until there is nothing more to do here. Returns the calls that have no answer in the log
    /// when the run was lost.
    pub(super) async fn run(mut self: Box<Self>) -> Calls {
        loop {
            let stop = match self.advance().await {
                Ok(()) | Err(Stop::Decide) => continue,
                Err(Stop::Look(why)) => match Box::pin(self.look(why)).await {
                    Ok(()) => continue,
                    Err(stop) => stop,
                },
                Err(Stop::Doubt) => match Box::pin(self.regain()).await {
                    Ok(()) => continue,
                    Err(stop) => stop,
                },
                Err(Stop::Abort) => match Box::pin(self.let_go(self.now(), None)).await {
                    Ok(()) => Stop::Rest,
                    Err(stop) => stop,
                },
                Err(stop) => stop,
            };
            match stop {
                Stop::Rest => return Calls::new(),
                Stop::Lost => {
                    tracing::info!(run_id = %self.run_id(), "a run is driven by somebody else now");
                    self.lane.watch.end_tail();
                    return Box::pin(self.unanswered()).await;
                }
                Stop::Look(_) | Stop::Decide | Stop::Abort | Stop::Doubt => {}
                Stop::Defect => {
                    let (id, watch) = (self.run_id(), self.lane.watch.clone());
                    let engine = self.engine.clone();
                    Box::pin(engine.fail_run(id, watch, self.rev.clone(), internal())).await;
                    return Calls::new();
                }
            }
        }
    }

    /// The calls whose answers are not in the log: those that are under way, and those that were
    /// answered when the run was lost already.
    async fn unanswered(self: Box<Self>) -> Calls {
        self.lane.quiesce().await;
        let mut calls = self.calls;
        for unseen in self.lane.abandon() {
            let (call_id, answer) = match unseen {
                Unseen::Fact(Event::ToolCallCompleted(call)) => (call.call_id, Ok(call.result)),
                Unseen::Fact(Event::ToolCallFailed(call)) => (call.call_id, Err(call.error)),
                Unseen::Fact(_) | Unseen::Delta { .. } => continue,
            };
            calls.spawn(std::future::ready((call_id, Made::Answered(answer))));
        }
        calls
    }

    /// One decision and its deed.
    async fn advance(&mut self) -> Result<(), Stop> {
        let now = self.now();
        let (log_events, log_bytes) = self.lane.size();
        let circumstances = Now {
            at: now,
            in_flight: &self.in_flight,
            children: &self.children,
            log_events,
            log_bytes,
        };
        let decision = decide(&self.folded, &self.plan, &circumstances);
        let ends = matches!(decision, Decision::Done | Decision::End(_));
        let lets_go = self.engine.draining.is_cancelled()
            || self.engine.isolation.acquits(&self.record, self.folded.steps_completed);
        if !ends && lets_go && self.in_flight.is_empty() {
            return Box::pin(self.let_go(now, None)).await.and(Err(Stop::Rest));
        }
        // A run may end at a limit before it has begun, and fails no sooner than it runs.
        let begins = !ends || matches!(decision, Decision::End(Ending::Failed(_)));
        if begins && self.folded.status == RunStatus::Queued {
            let started = write::started(&self.folded);
            self.tell(started)?;
            if matches!(decision, Decision::AwaitChildren(_)) {
                // Its time runs from here on: until when it may wait is decided again.
                return Ok(());
            }
        }
        if let Some(resumed) = resumed(self.folded.status, &decision) {
            return self.push(vec![resumed], Owner::Keep).map(drop);
        }
        if self.plan.servers().next().is_some() {
            Box::pin(self.learn_for(&decision)).await?;
        }
        match decision {
            Decision::Done => Err(Stop::Rest),
            Decision::StartStep(step) => {
                let events = write::step_started(&self.folded, &self.plan, step);
                self.tell(events)?;
                self.opened = Some(step);
                self.call_model().await
            }
            Decision::CallModel => {
                self.reopen_step()?;
                self.call_model().await
            }
            Decision::CallTools(calls) => Box::pin(self.call_tools(&calls)).await,
            Decision::AwaitTools => Box::pin(self.await_tools()).await,
            Decision::MeetChildren(calls) => Box::pin(self.meet_children(&calls)).await,
            Decision::CancelChildren(calls) => Box::pin(self.cancel_children(&calls)).await,
            Decision::AwaitChildren(until) => Box::pin(self.await_children(until)).await,
            Decision::AskOutcome(calls) => {
                let events = self
                    .open_calls(&calls, |step, call, _| Some(write::outcome_unknown(step, call)));
                self.push(events, Owner::Keep).map(drop)
            }
            Decision::Expire(calls) => self.expire(&calls),
            Decision::CloseStep => {
                let turn = self.folded.open_step().ok_or(Stop::Defect)?;
                let event = write::step_completed(&self.folded, turn, now);
                self.push(vec![event], Owner::Keep).map(drop)
            }
            Decision::Park(until) => Box::pin(self.park(until)).await,
            Decision::End(ending) => self.end(ending).await,
        }
    }

    /// Adds facts to the log and to the fold. Returns the last one's seq; it is not durable yet.
    pub(super) fn push(&mut self, events: Vec<Event>, owner: Owner) -> Result<i32, Stop> {
        self.add(events, owner, Haste::AtOnce)
    }

    /// The same for facts that nothing waits for: what has begun is told with its first text.
    pub(super) fn tell(&mut self, events: Vec<Event>) -> Result<i32, Stop> {
        self.add(events, Owner::Keep, Haste::WithText)
    }

    fn add(&mut self, events: Vec<Event>, owner: Owner, haste: Haste) -> Result<i32, Stop> {
        let at = self.now();
        let first = self.lane.next_seq();
        let before = self.folded.open_actions(self.run_id());
        for (seq, event) in (first..).zip(&events) {
            if let Err(error) = self.folded.apply(seq, at, event.clone()) {
                tracing::error!(run_id = %self.run_id(), %error, "own events do not fit the log");
                return Err(Stop::Defect);
            }
        }
        let said = Said { run_id: self.run_id(), events: &events, at };
        let update = RunUpdate::since(&before, &self.folded, said, owner);
        let pushed = if self.folded.status.is_final() {
            self.lane.push_last_facts(&events, update, at, self.record.clone())
        } else {
            self.lane.push_facts(&events, update, at, haste)
        };
        pushed.map_err(|error| {
            tracing::error!(run_id = %self.run_id(), %error, "an event cannot be encoded");
            Stop::Defect
        })
    }

    /// Waits until everything up to `seq` is durable.
    pub(super) async fn flushed(&self, seq: i32) -> Result<(), Stop> {
        self.lane.flushed(seq).await.map_err(Stop::Look)
    }

    /// The open step's calls of these ids, as events.
    pub(super) fn open_calls(
        &self,
        calls: &[CallId],
        event: impl Fn(i32, &crate::domain::fold::Call, &Plan) -> Option<Event>,
    ) -> Vec<Event> {
        let Some(turn) = self.folded.open_step() else { return Vec::new() };
        let of = turn.calls.iter().filter(|call| calls.contains(&call.call_id));
        of.filter_map(|call| event(turn.step, call, &self.plan)).collect()
    }

    fn expire(&mut self, calls: &[CallId]) -> Result<(), Stop> {
        let events = write::expired(&self.folded, calls);
        self.push(events, Owner::Keep).map(drop)
    }

    async fn park(&mut self, until: Option<Timestamp>) -> Result<(), Stop> {
        let of_children = self.children_actions();
        if self.folded.status == RunStatus::RequiresAction {
            let said = self.folded.children_actions.iter().map(|open| open.action.call_id);
            let now = of_children.iter().map(|action| action.call_id);
            if said.collect::<HashSet<_>>() != now.collect() {
                // Its children wait for something else by now: it says so when it parks again.
                return self.push(vec![write::resumed()], Owner::Keep).map(drop);
            }
            // Looked at too early: it waits as before.
            let until = until.unwrap_or_else(|| self.now().plus(Duration::from_secs(3600)));
            return self.let_go(until, None).await.and(Err(Stop::Rest));
        }
        let event = write::parked(&self.folded, self.run_id());
        let event = family::with_actions(event, of_children);
        let seq = self.push(vec![event], Owner::Nobody { due_at: until })?;
        self.flushed(seq).await?;
        self.lane.watch.end_tail();
        Err(Stop::Rest)
    }

    pub(super) async fn end(&mut self, ending: Ending) -> Result<(), Stop> {
        let events = write::ended(&self.folded, ending, self.now());
        let seq = self.push(events, Owner::Nobody { due_at: None })?;
        self.flushed(seq).await?;
        tracing::debug!(
            run_id = %self.run_id(),
            status = self.folded.status.as_str(),
            steps = self.folded.steps_completed,
            "a run ended"
        );
        Err(Stop::Rest)
    }

    /// Gives the run back without an event: another driver goes on with it from `due_at`.
    pub(super) async fn let_go(
        &mut self,
        due_at: Timestamp,
        status_message: Option<&str>,
    ) -> Result<(), Stop> {
        self.flushed(self.lane.next_seq() - 1).await?;
        let node_id = self.engine.log.journal.node_id();
        let (run_id, rev) = (self.run_id(), self.lane.rev());
        loop {
            let store = &self.engine.log.store;
            match store.release(node_id, run_id, rev, due_at, status_message).await {
                Ok(true) => {
                    self.lane.watch.end_tail();
                    if due_at <= self.now() {
                        self.engine.log.queued();
                    }
                    return Ok(());
                }
                // Somebody wrote to it: read that first.
                Ok(false) => return Err(Stop::Look(Closed::Missed)),
                Err(error) if error.is_passing() => tokio::time::sleep(LOOK_AGAIN).await,
                Err(error) => {
                    tracing::error!(%run_id, %error, "a run could not be released");
                    return Err(Stop::Lost);
                }
            }
        }
    }

    /// Resolves with why the driver must turn to something else while it waits for something.
    pub(super) async fn interrupted(&self) -> Stop {
        let deadline = self.folded.deadline(self.plan.settings.timeout_seconds);
        let left = deadline.map(|deadline| deadline.since(self.now()));
        let expiry = async {
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            why = self.lane.closed() => Stop::Look(why),
            () = self.lane.watch.poked() => Stop::Look(Closed::Missed),
            () = self.overlong.notified() => Stop::Decide,
            () = expiry => Stop::Decide,
            () = self.engine.aborting.cancelled() => Stop::Abort,
        }
    }

    /// Waits until this node may act again, and then reads the row: somebody else may have acted
    /// meanwhile.
    pub(super) async fn regain(&mut self) -> Result<(), Stop> {
        tracing::warn!(run_id = %self.run_id(), "a run waits until this node has beaten again");
        tokio::select! {
            () = self.faith.renewed() => {}
            () = self.engine.aborting.cancelled() => return Err(Stop::Abort),
        }
        // A model call was dropped: what it showed is void.
        self.opened = None;
        self.look(Closed::Missed).await
    }

    /// Reads the row again: goes on behind what others wrote, pushing again what still holds.
    pub(super) async fn look(&mut self, why: Closed) -> Result<(), Stop> {
        self.lane.quiesce().await;
        let run = self.engine.load_own(self.run_id()).await.ok_or(Stop::Lost)?;
        if run.record.row.epoch != self.record.row.epoch {
            // Others have driven it and this node has it back: that is for a driver of its own, which
            // does not believe in calls of before.
            return Err(Stop::Lost);
        }
        let Ok(folded) = Folded::read(&run.facts) else { return Err(Stop::Defect) };
        let folded = folded.with_history(self.folded.history.clone());
        let row = &run.record.row;
        self.rev.store(row.rev, Ordering::Relaxed);
        let unseen = self.lane.reopen(row.rev, run.record.last_seq, run.log_bytes);
        self.record = run.record;
        self.folded = folded.with_history(self.folded.history.clone());
        self.children.clear();
        if why == Closed::Rejected {
            let message = "The run wrote something that the database cannot keep.".to_owned();
            let error = RunError { code: RunErrorCode::Internal, message, retryable: false };
            return self.end(Ending::Failed(error)).await;
        }
        if self.folded.status == RunStatus::Cancelling || self.folded.status.is_final() {
            return Ok(());
        }
        for unseen in unseen {
            match unseen {
                Unseen::Delta { step, .. } if !overtaken::is_being_written(&self.folded, step) => {}
                Unseen::Delta { event_type, step, content } => {
                    self.lane.push_delta(event_type, step, &content, self.now());
                }
                // Whether it may still end or park is decided again.
                Unseen::Fact(event) if event.event_type().is_rest() => break,
                Unseen::Fact(event) => {
                    let (seq, now) = (self.lane.next_seq(), self.now());
                    if overtaken::still_holds(&self.folded, seq, now, &event) {
                        self.push(vec![event], Owner::Keep)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is said before a parked run does something again.
fn resumed(status: RunStatus, decision: &Decision) -> Option<Event> {
    let acts = match decision {
        Decision::StartStep(_)
        | Decision::CallModel
        | Decision::CallTools(_)
        | Decision::AwaitTools
        | Decision::AwaitChildren(_)
        | Decision::CloseStep => true,
        Decision::Done
        | Decision::MeetChildren(_)
        | Decision::CancelChildren(_)
        | Decision::AskOutcome(_)
        | Decision::Expire(_)
        | Decision::Park(_)
        | Decision::End(_) => false,
    };
    (acts && status == RunStatus::RequiresAction).then(write::resumed)
}

impl Engine {
    /// A run with everything that driving needs, however long the database is away; `None`: it is not
    /// this node's.
    pub(super) async fn load_own(&self, run_id: RunId) -> Option<Driveable> {
        loop {
            let node_id = self.log.journal.node_id();
            match self.log.store.load_driveable(node_id, run_id).await {
                Ok(run) => return run.map(with_first),
                Err(error) => {
                    tracing::warn!(%run_id, %error, "a run's row cannot be read; trying again");
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        }
    }

    /// Ends a run that cannot be driven as failed with this error: its driver panicked, its log is
    /// unfit, or it took its process down.
    pub(super) async fn fail_run(
        self: &Arc<Self>,
        run_id: RunId,
        watch: Watched,
        rev: Arc<AtomicI32>,
        error: RunError,
    ) {
        loop {
            let Some(run) = self.load_own(run_id).await else { return };
            let (row, at) = (&run.record.row, self.clock.now());
            rev.store(row.rev, Ordering::Relaxed);
            let doorbell = self.log.journal.doorbell();
            let lane = Lane::new(
                run_id,
                row.rev,
                run.record.last_seq,
                run.log_bytes,
                watch.clone(),
                doorbell,
            );
            let error = error.clone();
            let (events, update) = match Folded::read(&run.facts) {
                Ok(mut folded) => {
                    self.abandon_children(row, &folded).await;
                    let ending = match folded.status {
                        RunStatus::Cancelling => Ending::Cancelled,
                        RunStatus::Queued
                        | RunStatus::Running
                        | RunStatus::RequiresAction
                        | RunStatus::Completed
                        | RunStatus::Incomplete
                        | RunStatus::Failed
                        | RunStatus::Cancelled
                        | RunStatus::Expired => Ending::Failed(error.clone()),
                    };
                    let before = folded.open_actions(run_id);
                    let mut events = write::awakened(&folded);
                    events.extend(write::ended(&folded, ending, at));
                    let fits = (lane.next_seq()..)
                        .zip(&events)
                        .all(|(seq, event)| folded.apply(seq, at, event.clone()).is_ok());
                    let owner = Owner::Nobody { due_at: None };
                    let said = Said { run_id, events: &events, at };
                    let update = RunUpdate::since(&before, &folded, said, owner);
                    if fits { (events, update) } else { unreadable(&run, error, at) }
                }
                Err(_) => unreadable(&run, error, at),
            };
            match lane.push_last_facts(&events, update, at, run.record) {
                Ok(seq) if lane.flushed(seq).await.is_ok() => return,
                Ok(_) => lane.quiesce().await,
                Err(error) => {
                    tracing::error!(%run_id, %error, "a failed run cannot be ended");
                    return;
                }
            }
        }
    }
}

/// The run with its first event in the record: how it ended is told from memory for a moment, and its
/// input is part of that.
pub(super) fn with_first(mut run: Driveable) -> Driveable {
    run.record.first = run.facts.first().cloned();
    run
}

/// What a run ends with because of a defect of this server.
pub(super) fn internal() -> RunError {
    let message = "The server could not go on with this run.".to_owned();
    RunError { code: RunErrorCode::Internal, message, retryable: true }
}

/// The end of a run whose log cannot be folded: what its row says is all that is known.
fn unreadable(run: &Driveable, error: RunError, at: Timestamp) -> (Vec<Event>, RunUpdate) {
    let row = &run.record.row;
    let end = RunEnded {
        status: RunStatus::Failed,
        result: None,
        error: Some(error),
        incomplete_reason: None,
        usage: row.usage,
        cost_usd: row.cost,
        steps_completed: row.steps_completed,
    };
    let update = RunUpdate {
        status: RunStatus::Failed,
        fact_seq: 0,
        steps_completed: row.steps_completed,
        usage: row.usage,
        cost: row.cost,
        children_cost: row.children_cost,
        parent_run_id: row.parent_run_id,
        status_message: None,
        started_at: row.started_at,
        completed_at: Some(at),
        actions: Some(Vec::new()),
        // Its conversation goes on without knowing what was said in it.
        spoken: row.conversation_id.map(|conversation_id| {
            let ended = Some(Ended { cost: row.tree_cost() });
            Box::new(Spoken { conversation_id, at, messages: Vec::new(), ended })
        }),
        owner: Owner::Nobody { due_at: None },
    };
    (vec![Event::RunFailed(end)], update)
}
