//! What people and programs outside say about a run: whether a call may be made, what came of one, and
//! what the model should know. Pure, like the rest: a folded run comes in, events or a refusal go out.
//!
//! Every answer is for one call. The first one counts; the same answer again changes nothing and is as
//! good as the first, so that whoever lost a reply can ask again, at any time, even after the end.

use serde_json::Value;

use super::event::{Approval, ApprovalDecision, Awaits, Event, SteeringInput, ToolCallFailed};
use super::fold::{Call, CallState, Folded};
use super::ids::{CallId, MessageId};
use super::limits;
use super::message::Content;
use super::plan::Plan;
use super::problem::Problems;
use super::run::{ActionType, RunStatus};
use super::time::Timestamp;
use super::write;

/// Why an answer is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The run has no such call.
    NoSuchCall,
    /// The call has an answer already, and it is another one; or it is too late for any.
    AlreadyDecided(CallId),
    /// The run is over, or about to be.
    RunEnded(RunStatus),
    /// It cannot be an answer to this.
    Invalid(Problems),
}

/// Whether a call may be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Which call.
    pub call_id: CallId,
    /// Whether.
    pub decision: ApprovalDecision,
    /// With these arguments instead of the model's.
    pub arguments: Option<Value>,
    /// Why.
    pub reason: Option<String>,
    /// The key of whoever decided.
    pub decided_by: Option<String>,
}

/// What came of a call that somebody else made.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which call.
    pub call_id: CallId,
    /// What came of it.
    pub said: Said,
    /// The key of whoever says so.
    pub said_by: Option<String>,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// It was made, with this result.
    Result(Value),
    /// It failed.
    Failed(String),
    /// Nobody knows: make it again.
    Again,
}

/// What an answer meets.
enum Met<'a> {
    /// Somebody waits for an answer of this kind.
    Open(i32, &'a Call, ActionType),
    /// Nobody waits any more.
    Closed(&'a Call),
}

fn meet(folded: &Folded, call_id: CallId, now: Timestamp) -> Result<Met<'_>, Refusal> {
    let (step, call) = folded.call(call_id).ok_or(Refusal::NoSuchCall)?;
    Ok(match call.state {
        // What is too late is too late, even if no engine has said so yet.
        CallState::Waiting(about, until)
            if !is_over(folded.status) && until.is_none_or(|until| now < until) =>
        {
            Met::Open(step, call, about)
        }
        CallState::Waiting(..)
        | CallState::Ready
        | CallState::Started
        | CallState::Completed(_)
        | CallState::Failed(_) => Met::Closed(call),
    })
}

/// A run that is being cancelled takes nothing any more: nobody would read it.
const fn is_over(status: RunStatus) -> bool {
    status.is_final() || matches!(status, RunStatus::Cancelling)
}

fn too_late(folded: &Folded, call: &Call) -> Refusal {
    // A step whose calls the end had to answer is never completed.
    let in_time = folded.steps.iter().any(|turn| {
        let completed = turn.closed.as_ref().is_some_and(|closed| closed.completed);
        completed && turn.calls.iter().any(|other| other.call_id == call.call_id)
    });
    let by_the_end = !in_time && call.decided.is_none() && (call.synthetic || call.is_open());
    if is_over(folded.status) && by_the_end {
        Refusal::RunEnded(folded.status)
    } else {
        Refusal::AlreadyDecided(call.call_id)
    }
}

fn invalid(pointer: &str, message: impl Into<String>) -> Refusal {
    Refusal::Invalid(Problems::one(pointer, message))
}

/// The events of a decision about a call; none when it was decided like this before.
///
/// # Errors
/// Why it does not count.
pub fn decide(
    folded: &Folded,
    plan: &Plan,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let (step, call) = match meet(folded, verdict.call_id, now)? {
        Met::Open(step, call, ActionType::Approval) => (step, call),
        Met::Open(_, call, _) | Met::Closed(call) if is_decided_so(call, verdict) => {
            return Ok(Vec::new());
        }
        Met::Open(_, call, ActionType::ToolResult | ActionType::ToolOutcome)
            if call.decided.is_none() =>
        {
            return Err(invalid(
                "/call_id",
                "is of a call that waits for its result, not for an approval: post it to tool-results",
            ));
        }
        Met::Open(_, call, _) | Met::Closed(call) => return Err(too_late(folded, call)),
    };
    let reason = verdict.reason.as_deref().unwrap_or_default();
    if reason.chars().count() > limits::MAX_REASON_CHARS {
        return Err(invalid("/reason", "must have at most 4096 characters"));
    }
    let mut decided = Approval {
        step,
        call_id: call.call_id,
        tool: call.tool.clone(),
        arguments: call.arguments.clone(),
        decision: Some(verdict.decision),
        reason: verdict.reason.clone(),
        decided_by: verdict.decided_by.clone(),
        awaits: None,
        expires_at: None,
    };
    let mut events = match verdict.decision {
        ApprovalDecision::Approve => {
            if let Some(arguments) = &verdict.arguments {
                plan.check_arguments(&call.tool, arguments)
                    .map_err(|problems| Refusal::Invalid(problems.under("/arguments")))?;
                decided.arguments = arguments.clone();
            }
            decided.expires_at = plan.tool(&call.tool).and_then(|t| write::result_due(t, now));
            decided.awaits = decided.expires_at.map(|_| Awaits::Client);
            vec![Event::ApprovalDecided(decided)]
        }
        ApprovalDecision::Deny if verdict.arguments.is_some() => {
            return Err(invalid("/arguments", "can only be changed by an approval"));
        }
        ApprovalDecision::Deny => {
            let error = match &verdict.reason {
                Some(reason) => format!("This call was denied: {reason}"),
                None => "This call was denied.".to_owned(),
            };
            vec![
                Event::ApprovalDecided(decided),
                Event::ToolCallFailed(ToolCallFailed {
                    step,
                    call_id: call.call_id,
                    tool: call.tool.clone(),
                    error,
                    duration_ms: 0,
                    synthetic: false,
                    child_cost_usd: None,
                }),
            ]
        }
    };
    let waits_on = matches!(
        events.as_slice(),
        [Event::ApprovalDecided(Approval { awaits: Some(Awaits::Client), .. })]
    );
    if !waits_on {
        events.extend(goes_on(folded, call));
    }
    Ok(events)
}

fn is_decided_so(call: &Call, verdict: &Verdict) -> bool {
    let Some(decided) = &call.decided else { return false };
    let asked = call.edited_from.as_ref().unwrap_or(&call.arguments);
    let same_arguments = match verdict.decision {
        ApprovalDecision::Approve => verdict.arguments.as_ref().unwrap_or(asked) == &call.arguments,
        ApprovalDecision::Deny => verdict.arguments.is_none(),
    };
    decided.decision == verdict.decision && decided.reason == verdict.reason && same_arguments
}

/// The events of what came of a call; none when the same was said before.
///
/// # Errors
/// Why it does not count.
pub fn report(folded: &Folded, report: &Report, now: Timestamp) -> Result<Vec<Event>, Refusal> {
    let (step, call, about) = match meet(folded, report.call_id, now)? {
        Met::Open(_, _, ActionType::Approval) => {
            return Err(invalid(
                "/call_id",
                "is of a call that waits for an approval first: decide it at approvals",
            ));
        }
        Met::Open(step, call, about) => (step, call, about),
        Met::Closed(call) if is_said_so(call, &report.said) => return Ok(Vec::new()),
        Met::Closed(call) => return Err(too_late(folded, call)),
    };
    let event = match (&report.said, about) {
        (Said::Result(result), _) => write::call_answered(step, call, Ok(result.clone()), now),
        (Said::Failed(error), _) => {
            write::call_answered(step, call, Err(write::cut_text(error.clone())), now)
        }
        (Said::Again, ActionType::ToolOutcome) => Event::ApprovalDecided(Approval {
            step,
            call_id: call.call_id,
            tool: call.tool.clone(),
            arguments: call.arguments.clone(),
            decision: Some(ApprovalDecision::Approve),
            reason: None,
            decided_by: report.said_by.clone(),
            awaits: None,
            expires_at: None,
        }),
        (Said::Again, ActionType::ToolResult | ActionType::Approval) => {
            let message = "goes with actions of type tool_outcome only";
            return Err(invalid("/retry", message));
        }
    };
    let mut events = vec![event];
    events.extend(goes_on(folded, call));
    Ok(events)
}

fn is_said_so(call: &Call, said: &Said) -> bool {
    match (said, &call.state) {
        (Said::Result(result), CallState::Completed(known)) => write::cut(result.clone()) == *known,
        (Said::Failed(error), CallState::Failed(known)) => {
            !call.synthetic && write::cut_text(error.clone()) == *known
        }
        (Said::Again, _) => call.retried,
        (Said::Result(_) | Said::Failed(_), _) => false,
    }
}

/// A parked run goes on once nobody else has to answer.
pub fn goes_on(folded: &Folded, answered: &Call) -> Option<Event> {
    let calls = folded.open_step().map(|turn| turn.calls.as_slice()).unwrap_or_default();
    let others = calls.iter().any(|call| {
        call.call_id != answered.call_id && matches!(call.state, CallState::Waiting(..))
    });
    (folded.status == RunStatus::RequiresAction && !others).then(write::resumed)
}

/// The event of a message to a run that goes on.
///
/// # Errors
/// Why nobody would read it.
pub fn steer(
    folded: &Folded,
    log_bytes: u64,
    message_id: MessageId,
    content: &Content,
) -> Result<Event, Refusal> {
    if is_over(folded.status) {
        return Err(Refusal::RunEnded(folded.status));
    }
    let waiting = folded.steering.iter().filter(|s| s.applied_in.is_none()).count();
    if waiting >= limits::MAX_STEERING {
        return Err(invalid("/content", "100 messages wait to be read by this run already"));
    }
    if log_bytes >= limits::MAX_LOG_BYTES {
        return Err(invalid("/content", "the log of this run is full"));
    }
    let step = folded.steps.last().map_or(1, |turn| turn.step);
    Ok(Event::InputReceived(SteeringInput { message_id, content: content.clone(), step }))
}
