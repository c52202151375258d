//! Families: a call of an `agent` tool is answered by a run of its own.
//!
//! The call names its child: both have the same UUID, so a second attempt at the call finds what the
//! first one made. What a child may cost is granted in the event with which its call begins, before the
//! child is there: however often it is tried to make the child, the ceilings of a family hold.

use serde_json::Value;

use super::event::{Event, RunEnded, ToolCallFailed};
use super::fold::Folded;
use super::ids::{CallId, RunId};
use super::limits;
use super::money::Usd;
use super::plan::Plan;
use super::run::{IncompleteReason, RequiredAction, RunConfig, RunStatus};
use super::time::Timestamp;
use super::tool::{AgentTool, Tool};

/// A child run, as the event of its call names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// Its id.
    pub run_id: RunId,
    /// What it and its own children may cost at most.
    pub max_cost: Option<Usd>,
}

/// How a child run is that has not ended.
#[derive(Debug, Clone, PartialEq)]
pub enum ChildState {
    /// It goes on by itself.
    Active,
    /// It waits for somebody, with these actions (its own children's among them).
    Parked(Vec<RequiredAction>),
    /// This driver has asked it to stop.
    Stopping,
}

/// The run that answers a call of an `agent` tool.
pub const fn child_of(call_id: CallId) -> RunId {
    RunId::from_uuid(call_id.uuid())
}

/// Makes calls of `agent` tools that are about to begin name their children, with an equal share for
/// each of what this run may still spend. Those that may not have a child are refused, in words for
/// the model.
pub fn grant(folded: &Folded, plan: &Plan, events: &mut [Event]) {
    let starts = |event: &Event| match event {
        Event::ToolCallStarted(started) => agent_tool(plan, &started.tool).is_some(),
        _ => false,
    };
    let count = events.iter().filter(|event| starts(event)).count();
    let share = plan.settings.max_cost_usd.map(|cap| left(folded, cap).shared_by(count));
    for event in events {
        let Event::ToolCallStarted(started) = event else { continue };
        if agent_tool(plan, &started.tool).is_none() {
            continue;
        }
        let refusal = if folded.depth >= limits::MAX_GENERATIONS {
            Some(format!(
                "Agents may call agents {} levels deep, and this is the last: no other can be called.",
                limits::MAX_GENERATIONS
            ))
        } else if share == Some(Usd::ZERO) {
            Some("No money is left in this run's max_cost_usd for another agent.".to_owned())
        } else {
            None
        };
        match refusal {
            Some(error) => {
                *event = Event::ToolCallFailed(ToolCallFailed {
                    step: started.step,
                    call_id: started.call_id,
                    tool: std::mem::take(&mut started.tool),
                    error,
                    duration_ms: 0,
                    synthetic: false,
                    child_cost_usd: None,
                });
            }
            None => {
                started.child_run_id = Some(child_of(started.call_id));
                started.child_max_cost_usd = share;
            }
        }
    }
}

/// Why a call gets no child, in words for the model, when its family is as large as families may be.
pub fn full() -> String {
    format!(
        "{} runs work on this task already, which is as many as may: no other agent can be called.",
        limits::MAX_FAMILY
    )
}

/// What of its cap a run has neither spent nor granted to children that have not answered.
fn left(folded: &Folded, cap: Usd) -> Usd {
    let Some(spent) = folded.tree_cost_so_far() else { return Usd::ZERO };
    let granted = folded.live_children().filter_map(|(_, child)| child.max_cost);
    cap.less(granted.fold(spent, Usd::plus))
}

/// The tool of this name, if another agent is behind it.
pub fn agent_tool<'a>(plan: &'a Plan, name: &str) -> Option<&'a AgentTool> {
    match plan.tool(name)? {
        Tool::Agent(tool) => Some(tool),
        Tool::Http(_) | Tool::Client(_) | Tool::Mcp(_) | Tool::Builtin(_) => None,
    }
}

/// The ceilings of a child that is made now: the tool's own time-out, what its parent has left of its
/// time, and the grant. The smaller wins against what the child's agent says.
pub fn ceilings(
    folded: &Folded,
    plan: &Plan,
    tool: &AgentTool,
    child: Child,
    now: Timestamp,
) -> RunConfig {
    let deadline = folded.deadline(plan.settings.timeout_seconds);
    let left = deadline.map_or(u64::MAX, |deadline| deadline.since(now).as_secs().max(1));
    RunConfig {
        max_cost_usd: child.max_cost,
        timeout_seconds: Some(u64::from(tool.timeout_seconds).min(left)),
        ..RunConfig::default()
    }
}

/// What the parent's model is told about how a child ended.
///
/// # Errors
/// In words, unless the child completed.
pub fn answer(ended: RunEnded) -> Result<Value, String> {
    let said = ended.result.as_ref().map(|result| result.content.as_str()).unwrap_or_default();
    let failed = match ended.status {
        RunStatus::Completed => {
            let result = ended.result.map(|r| r.output.unwrap_or(Value::String(r.content)));
            return Ok(result.unwrap_or_default());
        }
        RunStatus::Incomplete => {
            let limit = ended.incomplete_reason.map_or("a limit", limit);
            format!("The agent stopped at {limit} before it was done.")
        }
        RunStatus::Failed => match &ended.error {
            Some(error) => format!("The agent failed: {}", error.message),
            None => "The agent failed.".to_owned(),
        },
        RunStatus::Cancelled => "The agent's run was cancelled.".to_owned(),
        RunStatus::Expired => "The agent ran out of time.".to_owned(),
        RunStatus::Queued
        | RunStatus::Running
        | RunStatus::RequiresAction
        | RunStatus::Cancelling => "The agent gave no answer.".to_owned(),
    };
    Err(if said.is_empty() {
        failed
    } else {
        let end = said.floor_char_boundary(limits::MAX_RESULT_BYTES);
        let said = said.get(..end).unwrap_or_default();
        format!("{failed} The last that it said: {said}")
    })
}

const fn limit(reason: IncompleteReason) -> &'static str {
    match reason {
        IncompleteReason::MaxSteps => "max_steps",
        IncompleteReason::Budget => "its max_cost_usd",
        IncompleteReason::MaxTotalTokens => "max_total_tokens",
        IncompleteReason::MaxOutputTokens => "max_output_tokens",
        IncompleteReason::ContentFilter => "its provider's content filter",
        IncompleteReason::LogSize => "the largest size of a log",
    }
}

/// Says in the event that answers a call what its child cost.
pub fn at_cost(mut event: Event, cost: Option<Usd>) -> Event {
    match &mut event {
        Event::ToolCallCompleted(done) => done.child_cost_usd = cost,
        Event::ToolCallFailed(failed) => failed.child_cost_usd = cost,
        _ => {}
    }
    event
}

/// Adds to the event with which a run parks what its children wait for.
pub fn with_actions(mut event: Event, of_children: Vec<RequiredAction>) -> Event {
    if let Event::RunRequiresAction(parked) = &mut event {
        parked.required_actions.extend(of_children);
    }
    event
}
