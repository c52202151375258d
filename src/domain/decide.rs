//! What comes next: a pure function of the folded run.

use std::collections::HashSet;

use serde_json::Value;

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
    /// Calls are being made by this driver: wait for one of them.
    AwaitTools,
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
    /// Events in the log, deltas included.
    pub log_events: i32,
    /// Bytes in the log.
    pub log_bytes: u64,
}

/// Says what comes next.
pub fn decide(folded: &Folded, plan: &Plan, now: &Now<'_>) -> Decision {
    if folded.status.is_final() {
        return Decision::Done;
    }
    if folded.status == RunStatus::Cancelling {
        return Decision::End(Ending::Cancelled);
    }
    if folded.status == RunStatus::RequiresAction {
        return parked(folded, now);
    }
    if folded.deadline(plan.settings.timeout_seconds).is_some_and(|deadline| now.at >= deadline) {
        return Decision::End(Ending::Expired);
    }
    if now.log_events >= limits::MAX_EVENTS || now.log_bytes >= limits::MAX_LOG_BYTES {
        return Decision::End(Ending::Incomplete(IncompleteReason::LogSize));
    }
    match folded.steps.last() {
        Some(turn) if turn.closed.is_none() => within(turn, now),
        Some(turn) => between(folded, plan, turn),
        None => next_step(folded, plan),
    }
}

/// In a run that waits for people: nothing of it executes until the last of them has answered, or can
/// no more.
fn parked(folded: &Folded, now: &Now<'_>) -> Decision {
    let calls = folded.open_step().map(|turn| turn.calls.as_slice()).unwrap_or_default();
    let (late, until) = waits(calls, now.at);
    match until {
        Some(until) if late.is_empty() => Decision::Park(until),
        // With nobody to wait for, which nothing leaves behind, it goes on too.
        Some(_) | None => Decision::Expire(late),
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
            CallState::Waiting(_, at) => {
                until = Some(match (until.flatten(), at) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                });
            }
            CallState::Ready
            | CallState::Started
            | CallState::Completed(_)
            | CallState::Failed(_) => {}
        }
    }
    (late, until)
}

/// In an open step.
fn within(turn: &Turn, now: &Now<'_>) -> Decision {
    if turn.message.is_none() {
        return Decision::CallModel;
    }
    let mut make = Vec::new();
    let mut ask = Vec::new();
    let (expired, until) = waits(&turn.calls, now.at);
    let mut running = false;
    for call in &turn.calls {
        match &call.state {
            CallState::Ready => make.push(call.call_id),
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
    } else if !ask.is_empty() {
        Decision::AskOutcome(ask)
    } else if !expired.is_empty() {
        Decision::Expire(expired)
    } else if running {
        Decision::AwaitTools
    } else if let Some(until) = until {
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
    if let Some(cap) = settings.max_cost_usd {
        let prompt = transcript::bytes(&transcript::turns(folded, plan, next), plan);
        // A cap needs a price; without one (it was taken out of the configuration since) nothing
        // may be spent.
        let fits = match (folded.cost, plan.worst_case(prompt)) {
            (Some(spent), Some(worst)) => spent.plus(worst) <= cap,
            (None, _) | (_, None) => false,
        };
        if !fits {
            return incomplete(IncompleteReason::Budget);
        }
    }
    Decision::StartStep(next)
}
