//! Tool calls: asked for, made, answered, too late.

use serde_json::Value;

use crate::domain::depth::is_too_deep;
use crate::domain::event::{
    Approval, Awaits, Event, ToolCallCompleted, ToolCallCreated, ToolCallFailed,
    ToolCallOutcomeUnknown, ToolCallStarted,
};
use crate::domain::fold::{Call, CallState, Folded};
use crate::domain::ids::CallId;
use crate::domain::limits;
use crate::domain::plan::Plan;
use crate::domain::run::{ActionType, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::tool::Tool;

use super::{duration_ms, resumed};

/// A call as it is asked for: with the question whether it may be made, with the wait for its result,
/// or with neither.
pub(super) fn created_for(
    waits: Option<&Tool>,
    created: ToolCallCreated,
    now: Timestamp,
) -> Vec<Event> {
    if let Some(tool) = waits.filter(|tool| tool.requires_approval()) {
        let requested = Approval {
            step: created.step,
            call_id: created.call_id,
            tool: created.tool.clone(),
            arguments: created.arguments.clone(),
            decision: None,
            reason: None,
            decided_by: None,
            awaits: None,
            expires_at: Some(after(now, tool.approval_timeout_seconds())),
        };
        let created = ToolCallCreated { awaits: Some(Awaits::Approval), ..created };
        return vec![Event::ToolCallCreated(created), Event::ApprovalRequested(requested)];
    }
    let result = waits.and_then(|tool| result_due(tool, now));
    let awaits = result.map(|_| Awaits::Client);
    vec![Event::ToolCallCreated(ToolCallCreated { awaits, expires_at: result, ..created })]
}

/// Until when the caller may post the result of a call made now; `None` for what others run.
pub fn result_due(tool: &Tool, now: Timestamp) -> Option<Timestamp> {
    match tool {
        Tool::Client(_) => Some(after(now, tool.timeout_seconds())),
        Tool::Http(_) | Tool::Mcp(_) | Tool::Agent(_) | Tool::Builtin(_) => None,
    }
}

fn after(now: Timestamp, seconds: u32) -> Timestamp {
    now.plus(std::time::Duration::from_secs(u64::from(seconds)))
}

/// The arguments as an object, or as the raw text where the model wrote none or a bottomless one. Some models write
/// nothing at all for a tool without parameters.
pub(super) fn arguments(raw: String) -> Value {
    if raw.trim().is_empty() {
        return Value::Object(serde_json::Map::new());
    }
    match serde_json::from_str(&raw) {
        Ok(value @ Value::Object(_)) if !is_too_deep(&value) => value,
        Ok(_) | Err(_) => Value::String(raw),
    }
}

/// A call is about to be made, or refused because it does not fit its tool.
pub fn call_started(step: i32, call: &Call, plan: &Plan) -> Event {
    match plan.check_call(&call.tool, &call.arguments) {
        Ok(_) => Event::ToolCallStarted(ToolCallStarted {
            step,
            call_id: call.call_id,
            tool: call.tool.clone(),
            attempt: call.attempt + 1,
            child_run_id: None,
            child_max_cost_usd: None,
        }),
        Err(error) => Event::ToolCallFailed(ToolCallFailed {
            step,
            call_id: call.call_id,
            tool: call.tool.clone(),
            error,
            duration_ms: 0,
            synthetic: false,
            child_cost_usd: None,
        }),
    }
}

/// A tool answered.
pub fn call_answered(
    step: i32,
    call: &Call,
    answer: Result<Value, String>,
    now: Timestamp,
) -> Event {
    let duration_ms = call.started_at.map_or(0, |at| duration_ms(at, now));
    match answer {
        Ok(result) => Event::ToolCallCompleted(ToolCallCompleted {
            step,
            call_id: call.call_id,
            tool: call.tool.clone(),
            result: cut(result),
            duration_ms,
            child_cost_usd: None,
        }),
        Err(error) => Event::ToolCallFailed(ToolCallFailed {
            step,
            call_id: call.call_id,
            tool: call.tool.clone(),
            error,
            duration_ms,
            synthetic: false,
            child_cost_usd: None,
        }),
    }
}

/// A result that is too large becomes text with a note.
pub fn cut(result: Value) -> Value {
    let text = match &result {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            result.to_string()
        }
    };
    if text.len() <= limits::MAX_RESULT_BYTES { result } else { Value::String(cut_text(text)) }
}

/// A text that is too large, with a note where it ends.
pub fn cut_text(text: String) -> String {
    if text.len() <= limits::MAX_RESULT_BYTES {
        return text;
    }
    let end = text.floor_char_boundary(limits::MAX_RESULT_BYTES);
    let kept = text.get(..end).unwrap_or_default();
    format!("{kept}\n[cut: {} of {} bytes]", end, text.len())
}

/// Nobody can say whether a call happened. `error`: what happened instead of an answer.
pub fn outcome_unknown(step: i32, call: &Call, error: String) -> Event {
    Event::ToolCallOutcomeUnknown(ToolCallOutcomeUnknown {
        step,
        call_id: call.call_id,
        tool: call.tool.clone(),
        error: Some(error),
    })
}

/// Nobody answered these calls of the open step in time. When nothing else is waited for, a parked run
/// goes on.
pub fn expired(folded: &Folded, calls: &[CallId]) -> Vec<Event> {
    let (step, open) = folded.open_step().map_or((0, [].as_slice()), |t| (t.step, &t.calls));
    let late = |call: &&Call| calls.contains(&call.call_id);
    let mut events: Vec<Event> =
        open.iter().filter(late).flat_map(|call| late_answer(step, call)).collect();
    let others = |call: &Call| !late(&call) && matches!(call.state, CallState::Waiting(..));
    if folded.status == RunStatus::RequiresAction && !open.iter().any(others) {
        events.push(resumed());
    }
    events
}

/// What is written for a call that nobody answered in time.
fn late_answer(step: i32, call: &Call) -> Vec<Event> {
    match call.state {
        CallState::Waiting(ActionType::Approval, expires_at) => vec![
            Event::ApprovalExpired(Approval {
                step,
                call_id: call.call_id,
                tool: call.tool.clone(),
                arguments: call.arguments.clone(),
                decision: None,
                reason: None,
                decided_by: None,
                awaits: None,
                expires_at,
            }),
            synthetic(step, call, "This call was denied: nobody approved it in time."),
        ],
        CallState::Waiting(ActionType::ToolResult, _) => {
            vec![synthetic(step, call, "No result was posted in time.")]
        }
        CallState::Waiting(ActionType::ToolOutcome, _)
        | CallState::Ready
        | CallState::Started
        | CallState::Completed(_)
        | CallState::Failed(_) => Vec::new(),
    }
}

/// The server answers for a tool.
pub(in crate::domain) fn synthetic(step: i32, call: &Call, error: &str) -> Event {
    Event::ToolCallFailed(ToolCallFailed {
        step,
        call_id: call.call_id,
        tool: call.tool.clone(),
        error: error.to_owned(),
        duration_ms: 0,
        synthetic: true,
        child_cost_usd: None,
    })
}
