//! What comes next: a pure function of the folded run.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;

use super::family::ChildState;
use super::fold::{Call, CallState, Folded, Turn};
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
    /// Calls are being made by this driver: wait for one of them, or until then.
    AwaitTools(Option<Timestamp>),
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
    if folded.status == RunStatus::RequiresAction {
        return parked(folded, now);
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

/// How the children of the open step are, as far as they were met.
#[derive(Default)]
struct Children {
    /// Not met yet.
    unknown: Vec<CallId>,
    /// One of them goes on by itself.
    active: bool,
    /// One of them waits for somebody: until then, if it knows.
    parked: Option<Option<Timestamp>>,
}

fn children(calls: &[Call], now: &Now<'_>) -> Children {
    let mut all = Children::default();
    let live = |call: &&Call| call.child.is_some() && call.state == CallState::Started;
    for call in calls.iter().filter(live) {
        match now.children.get(&call.call_id) {
            None => all.unknown.push(call.call_id),
            Some(ChildState::Active | ChildState::Stopping) => all.active = true,
            Some(ChildState::Parked(actions)) => {
                let expires_at = actions.iter().filter_map(|action| action.expires_at).min();
                let after = expires_at.map(|at| at.max(now.at).plus(CHILD_FIRST));
                all.parked = Some(earliest(all.parked.flatten(), after));
            }
        }
    }
    all
}

/// In a run that waits for people: nothing of it executes until the last of them has answered, or can
/// no more.
fn parked(folded: &Folded, now: &Now<'_>) -> Decision {
    let calls = folded.open_step().map(|turn| turn.calls.as_slice()).unwrap_or_default();
    let children = children(calls, now);
    let (late, until) = waits(calls, now.at);
    if !children.unknown.is_empty() {
        Decision::MeetChildren(children.unknown)
    } else if children.active {
        // It does not only wait for people any more.
        Decision::AwaitChildren(until.flatten().unwrap_or_else(|| now.at.plus(SOME_DAY)))
    } else if let (true, Some(until)) = (late.is_empty(), later(until, children.parked)) {
        Decision::Park(until)
    } else {
        // With nobody to wait for, it goes on too.
        Decision::Expire(late)
    }
}

/// Until when two may be waited for, of whom one may not be there.
fn later(
    one: Option<Option<Timestamp>>,
    other: Option<Option<Timestamp>>,
) -> Option<Option<Timestamp>> {
    match (one, other) {
        (Some(a), Some(b)) => Some(earliest(a, b)),
        (a, b) => a.or(b),
    }
}

/// The calls that nobody answered in time, and until when the others may be waited for; `None` when
/// there are no others.
fn waits(calls: &[Call], now: Timestamp) -> (Vec<CallId>, Option<Option<Timestamp>>) {
    let mut late = Vec::new();
    let mut until: Option<Option<Timestamp>> = None;
    for call in calls {
        match call.state {
            CallState::Waiting(_, Some(at)) if at <= now => late.push(call.call_id),
            CallState::Waiting(_, at) => until = Some(earliest(until.flatten(), at)),
            CallState::Ready
            | CallState::Started
            | CallState::Completed(_)
            | CallState::Failed(_) => {}
        }
    }
    (late, until)
}

/// In an open step.
fn within(turn: &Turn, deadline: Option<Timestamp>, now: &Now<'_>) -> Decision {
    if turn.message.is_none() {
        return Decision::CallModel;
    }
    let mut make = Vec::new();
    let mut ask = Vec::new();
    let (expired, until) = waits(&turn.calls, now.at);
    let mut running = false;
    let children = children(&turn.calls, now);
    for call in &turn.calls {
        match &call.state {
            CallState::Ready => make.push(call.call_id),
            // The child answers it.
            CallState::Started if call.child.is_some() => {}
            CallState::Started if now.in_flight.contains(&call.call_id) => running = true,
            // Made by a driver that is gone: its answer will not come.
            CallState::Started => match call.effect {
                Effect::Read | Effect::Idempotent => make.push(call.call_id),
                Effect::Once => ask.push(call.call_id),
            },
            CallState::Waiting(..) | CallState::Completed(_) | CallState::Failed(_) => {}
        }
    }
    if !make.is_empty() {
        Decision::CallTools(make)
    } else if !children.unknown.is_empty() {
        Decision::MeetChildren(children.unknown)
    } else if !ask.is_empty() {
        Decision::AskOutcome(ask)
    } else if !expired.is_empty() {
        Decision::Expire(expired)
    } else if running {
        // What nobody answers in time expires then, however long the others take.
        Decision::AwaitTools(earliest(until.flatten(), deadline))
    } else if children.active {
        let until = earliest(until.flatten(), deadline);
        Decision::AwaitChildren(until.unwrap_or_else(|| now.at.plus(SOME_DAY)))
    } else if let Some(until) = later(until, children.parked) {
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
    // Whoever steered got an acknowledgement: the model reads it before the run may end by itself.
    if folded.steering.iter().any(|s| s.applied_in.is_none()) {
        return next_step(folded, plan);
    }
    match message.finish_reason {
        FinishReason::Length => {
            return Decision::End(Ending::Incomplete(IncompleteReason::MaxOutputTokens));
        }
        FinishReason::ContentFilter => {
            return Decision::End(Ending::Incomplete(IncompleteReason::ContentFilter));
        }
        FinishReason::Stop | FinishReason::ToolCalls => {}
    }
    if !turn.calls.is_empty() {
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
    if let Err(overflow) = transcript::fit(folded, plan, next) {
        return Decision::End(Ending::Failed(overflow.run_error(plan)));
    }
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
