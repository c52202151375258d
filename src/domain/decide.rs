//! What comes next: a pure function of the folded run.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use super::family::ChildState;
use super::fold::{CallState, Folded, Turn};
use super::ids::CallId;
use super::limits;
use super::model::FinishReason;
use super::plan::Plan;
use super::run::{IncompleteReason, RunError, RunErrorCode, RunStatus};
use super::time::Timestamp;
use super::tool::Effect;
use super::transcript;

/// What a driver must do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// The run is over.
    Done,
    /// Open step number so-and-so, then call the model.
    StartStep(i32),
    /// Call the model for the open step, which was opened by somebody else or broken off.
    CallModel,
    /// Make these calls: they were never made, or are safe to make again.
    CallTools(Vec<CallId>),
    /// Calls are being made by this driver: wait for one of them.
    AwaitTools,
    /// See to it that these calls have their child runs, and how those are.
    MeetChildren(Vec<CallId>),
    /// Ask the child runs of these calls to stop: a run ends after its children.
    CancelChildren(Vec<CallId>),
    /// Let go of the run, which stays as it is, until a child run has something to say, or until then.
    AwaitChildren(Timestamp),
    /// Ask somebody what became of these calls, which must not be made twice.
    AskOutcome(Vec<CallId>),
    /// Nobody answered these in time.
    Expire(Vec<CallId>),
    /// All calls are answered: the step is over.
    CloseStep,
    /// Let go of the run until somebody answers, or until then.
    Park(Option<Timestamp>),
    /// The run is over, like this.
    End(Ending),
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// Well, with the output that was asked for.
    Completed(Option<Value>),
    /// At a limit.
    Incomplete(IncompleteReason),
    /// By a failure.
    Failed(RunError),
    /// By somebody's wish.
    Cancelled,
    /// By its deadline.
    Expired,
}

impl Ending {
    /// The status of a run that ended so.
    pub const fn status(&self) -> RunStatus {
        match self {
            Self::Completed(_) => RunStatus::Completed,
            Self::Incomplete(_) => RunStatus::Incomplete,
            Self::Failed(_) => RunStatus::Failed,
            Self::Cancelled => RunStatus::Cancelled,
            Self::Expired => RunStatus::Expired,
        }
    }
}

/// What the log does not say and a decision needs.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// The time.
    pub at: Timestamp,
    /// Calls that this driver is making at this moment.
    pub in_flight: &'a HashSet<CallId>,
    /// How the child runs are that this driver has met.
    pub children: &'a HashMap<CallId, ChildState>,
    /// Events in the log, deltas included.
    pub log_events: i32,
    /// Bytes in the log.
    pub log_bytes: u64,
}

/// How soon a run that ends looks again at children that do not.
const LOOK_AFTER_CHILDREN: Duration = Duration::from_secs(10);
/// How long after an action of a child was to expire its parent looks at it: the child comes first.
const CHILD_FIRST: Duration = Duration::from_secs(1);
/// When a run with nothing to wake it is looked at again.
const SOME_DAY: Duration = Duration::from_secs(24 * 3600);

/// Says what comes next.
pub fn decide(folded: &Folded, plan: &Plan, now: &Now<'_>) -> Decision {
    if folded.status.is_final() {
        return Decision::Done;
    }
    if folded.status == RunStatus::Cancelling {
        return after_children(folded, now, Ending::Cancelled);
    }
    let deadline = folded.deadline(plan.settings.timeout_seconds);
    if deadline.is_some_and(|deadline| now.at >= deadline) {
        return after_children(folded, now, Ending::Expired);
    }
    if now.log_events >= limits::MAX_EVENTS || now.log_bytes >= limits::MAX_LOG_BYTES {
        let full = Ending::Incomplete(IncompleteReason::LogSize);
        return after_children(folded, now, full);
    }
    match folded.steps.last() {
        Some(turn) if turn.closed.is_none() => within(turn, deadline, now),
        Some(turn) => between(folded, plan, turn),
        None => next_step(folded, plan),
    }
}

/// The end, once no child run is left: what they cost is then known, and nobody works for nobody.
fn after_children(folded: &Folded, now: &Now<'_>, ending: Ending) -> Decision {
    let (mut meet, mut cancel, mut stopping) = (Vec::new(), Vec::new(), false);
    for (call, _) in folded.live_children() {
        match now.children.get(&call.call_id) {
            // It may not be there yet, and come to be: only one that is there can be cancelled.
            None => meet.push(call.call_id),
            Some(ChildState::Active | ChildState::Parked(_)) => cancel.push(call.call_id),
            Some(ChildState::Stopping) => stopping = true,
        }
    }
    if !meet.is_empty() {
        Decision::MeetChildren(meet)
    } else if !cancel.is_empty() {
        Decision::CancelChildren(cancel)
    } else if stopping {
        Decision::AwaitChildren(now.at.plus(LOOK_AFTER_CHILDREN))
    } else {
        Decision::End(ending)
    }
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// In an open step.
fn within(turn: &Turn, deadline: Option<Timestamp>, now: &Now<'_>) -> Decision {
    if turn.message.is_none() {
        return Decision::CallModel;
    }
    let mut make = Vec::new();
    let mut ask = Vec::new();
    let mut expired = Vec::new();
    let mut waiting = false;
    let mut until: Option<Timestamp> = None;
    let mut running = false;
    let mut meet = Vec::new();
    let mut children = false;
    for call in &turn.calls {
        match &call.state {
            CallState::Ready => make.push(call.call_id),
            CallState::Started if call.child.is_some() => match now.children.get(&call.call_id) {
                None => meet.push(call.call_id),
                Some(ChildState::Active | ChildState::Stopping) => children = true,
                Some(ChildState::Parked(actions)) => {
                    waiting = true;
                    let expires_at = actions.iter().filter_map(|action| action.expires_at).min();
                    let after = |at: Timestamp| at.max(now.at).plus(CHILD_FIRST);
                    until = earliest(until, expires_at.map(after));
                }
            },
            CallState::Started if now.in_flight.contains(&call.call_id) => running = true,
            // Made by a driver that is gone: its answer will not come.
            CallState::Started => match call.effect {
                Effect::Read | Effect::Idempotent => make.push(call.call_id),
                Effect::Once => ask.push(call.call_id),
            },
            CallState::Waiting(_, Some(at)) if *at <= now.at => expired.push(call.call_id),
            CallState::Waiting(_, at) => {
                waiting = true;
                until = earliest(until, *at);
            }
            CallState::Completed(_) | CallState::Failed(_) => {}
        }
    }
    if !make.is_empty() {
        Decision::CallTools(make)
    } else if !meet.is_empty() {
        Decision::MeetChildren(meet)
    } else if !ask.is_empty() {
        Decision::AskOutcome(ask)
    } else if !expired.is_empty() {
        Decision::Expire(expired)
    } else if running {
        Decision::AwaitTools
    } else if children {
        let until = earliest(until, deadline).unwrap_or_else(|| now.at.plus(SOME_DAY));
        Decision::AwaitChildren(until)
    } else if waiting {
        Decision::Park(until)
    } else {
        Decision::CloseStep
    }
}

/// Behind a step that is over.
fn between(folded: &Folded, plan: &Plan, turn: &Turn) -> Decision {
    let (Some(message), Some(true)) = (&turn.message, turn.closed.as_ref().map(|c| c.completed))
    else {
        // A step fails in the same append that ends its run, so no log stops here.
        return Decision::End(Ending::Failed(RunError {
            code: RunErrorCode::Internal,
            message: "The run stopped behind a failed step.".to_owned(),
            retryable: true,
        }));
    };
    match message.finish_reason {
        FinishReason::Length => {
            return Decision::End(Ending::Incomplete(IncompleteReason::MaxOutputTokens));
        }
        FinishReason::ContentFilter => {
            return Decision::End(Ending::Incomplete(IncompleteReason::ContentFilter));
        }
        FinishReason::Stop | FinishReason::ToolCalls => {}
    }
    // Whoever steered got an acknowledgement: the model reads it before the run may complete.
    let steered = folded.steering.iter().any(|s| s.applied_in.is_none());
    if !turn.calls.is_empty() || steered {
        return next_step(folded, plan);
    }
    match plan.output(&message.content) {
        Ok(output) => Decision::End(Ending::Completed(output)),
        Err(problem) => {
            let told = folded.steps.iter().filter(|t| transcript::mismatch(t, plan).is_some());
            if told.count() > 1 {
                return Decision::End(Ending::Failed(RunError {
                    code: RunErrorCode::OutputInvalid,
                    message: format!("The answer does not satisfy output_schema: {problem}"),
                    retryable: true,
                }));
            }
            next_step(folded, plan)
        }
    }
}

/// One more step, if the limits allow it.
fn next_step(folded: &Folded, plan: &Plan) -> Decision {
    let settings = &plan.settings;
    let steps = folded.steps.len();
    let incomplete = |reason| Decision::End(Ending::Incomplete(reason));
    if steps >= usize::try_from(settings.max_steps).unwrap_or(usize::MAX) {
        return incomplete(IncompleteReason::MaxSteps);
    }
    if settings.max_total_tokens.is_some_and(|max| folded.usage.total_tokens >= max) {
        return incomplete(IncompleteReason::MaxTotalTokens);
    }
    let next = i32::try_from(steps).unwrap_or(i32::MAX).saturating_add(1);
    if let Some(cap) = settings.max_cost_usd {
        let prompt = transcript::bytes(&transcript::turns(folded, plan, next), plan);
        // A cap needs a price; without one (it was taken out of the configuration since) nothing
        // may be spent.
        let fits = match (folded.tree_cost_so_far(), plan.worst_case(prompt)) {
            (Some(spent), Some(worst)) => spent.plus(worst) <= cap,
            (None, _) | (_, None) => false,
        };
        if !fits {
            return incomplete(IncompleteReason::Budget);
        }
    }
    Decision::StartStep(next)
}
