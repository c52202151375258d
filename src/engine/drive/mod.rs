//! One run: decide → act → append, until it ends, parks or is lost.
//!
//! A driver holds nothing but memory. What it pushes is durable soon after; what must be durable
//! before something happens is awaited. When the fence does not hold, or somebody says so, it reads
//! the row again: then it goes on behind what others wrote, or stops quietly.
//!
//! - [`append`]: what it adds to the log; [`look`]: how it learns what others wrote.
//! - [`rest`]: how it leaves its run; [`fail`]: the end of a run that cannot be driven.

mod append;
mod fail;
mod look;
mod rest;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::domain::decide::{Decision, Now, decide};
use crate::domain::event::Event;
use crate::domain::family::ChildState;
use crate::domain::fold::Folded;
use crate::domain::ids::{CallId, RunId};
use crate::domain::plan::Plan;
use crate::domain::run::RunStatus;
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::log::lane::{Closed, Lane};
use crate::store::{Owner, RunRecord};
use crate::tools::mcp;

use super::Engine;
use super::trust::Faith;

pub(super) use fail::internal;
pub(super) use look::with_first;

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

/// What is said of a call that another process had under way, which is not there any more.
const ABANDONED: &str = "The server that made the call was stopped or lost before the answer came.";

/// Calls under way, with what became of them.
pub(super) type Calls = JoinSet<(CallId, Made)>;

/// What became of a call.
#[derive(Debug, PartialEq)]
pub(super) enum Made {
    /// The tool answered, or failed.
    Answered(Result<Value, String>),
    /// It was sent, must not be sent again, and nobody can say what became of it; what happened instead
    /// of an answer.
    Unknown(String),
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
        if decision.needs_running() && self.folded.status == RunStatus::Queued {
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
            Decision::AwaitTools(until) => Box::pin(self.await_tools(until)).await,
            Decision::MeetChildren(calls) => Box::pin(self.meet_children(&calls)).await,
            Decision::CancelChildren(calls) => Box::pin(self.cancel_children(&calls)).await,
            Decision::AwaitChildren(until) => Box::pin(self.await_children(until)).await,
            Decision::AskOutcome(calls) => {
                let events = self.open_calls(&calls, |step, call, _| {
                    Some(write::outcome_unknown(step, call, ABANDONED.to_owned()))
                });
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
}

/// What is said before a parked run does something again.
fn resumed(status: RunStatus, decision: &Decision) -> Option<Event> {
    let acts = match decision {
        Decision::StartStep(_)
        | Decision::CallModel
        | Decision::CallTools(_)
        | Decision::AwaitTools(_)
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
