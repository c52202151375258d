//! Which events a decision leaves behind. Pure: ids and times come in.

mod calls;

use super::decide::Ending;
use super::event::{
    Event, MessageCompleted, RunEnded, RunRequiresAction, StatusChanged, StepEnded, StepRestarted,
    StepStarted, ToolCallCreated,
};
use super::fold::{Call, Folded, Turn};
use super::ids::{CallId, MessageId, RunId};
use super::limits;
use super::message::Role;
use super::model::{FinishReason, ModelAnswer};
use super::plan::Plan;
use super::run::{RunResult, RunStatus};
use super::time::Timestamp;
use super::tool::{Effect, Tool};
use super::transcript;
use super::usage::Usage;

pub(super) use calls::synthetic;
use calls::{arguments, created_for};
pub use calls::{call_answered, call_started, cut, cut_text, expired, outcome_unknown, result_due};

/// An engine begins, or goes on after a pause. Nothing to say when it takes over from a crash.
pub fn started(folded: &Folded) -> Vec<Event> {
    match folded.status {
        RunStatus::Queued => {
            vec![Event::RunRunning(StatusChanged { status: RunStatus::Running })]
        }
        RunStatus::Running
        | RunStatus::RequiresAction
        | RunStatus::Cancelling
        | RunStatus::Completed
        | RunStatus::Incomplete
        | RunStatus::Failed
        | RunStatus::Cancelled
        | RunStatus::Expired => Vec::new(),
    }
}

/// Step number `step` begins; what came in meanwhile is read in it.
pub fn step_started(folded: &Folded, plan: &Plan, step: i32) -> Vec<Event> {
    let mut events = vec![Event::StepStarted(StepStarted {
        step,
        attempt: 1,
        model: plan.settings.model.clone(),
        dropped_messages: transcript::dropped(folded, plan, step),
        progress_percent: progress(step - 1, plan.settings.max_steps),
        status_message: format!("Calling {}", plan.settings.model),
    })];
    for steering in folded.steering.iter().filter(|s| s.applied_in.is_none()) {
        let mut applied = steering.input.clone();
        applied.step = step;
        events.push(Event::InputApplied(applied));
    }
    events
}

/// The share of `max_steps` used; 100 is for completed runs alone.
pub fn progress(steps_over: i32, max_steps: u32) -> u8 {
    let over = u64::try_from(steps_over).unwrap_or(0);
    u8::try_from((over * 100 / u64::from(max_steps.max(1))).min(99)).unwrap_or(99)
}

/// The open step's model is called again.
pub fn step_restarted(turn: &Turn, attempt: i32) -> Event {
    Event::StepRestarted(StepRestarted {
        step: turn.step,
        attempt,
        discard_from_seq: turn.opened_seq + 1,
        dropped_messages: None,
    })
}

/// The open step's model is called again with a shorter prompt; `None` when nothing can go from it.
pub fn step_shortened(folded: &Folded, attempt: i32) -> Option<Event> {
    let turn = folded.open_step()?;
    Some(Event::StepRestarted(StepRestarted {
        step: turn.step,
        attempt,
        discard_from_seq: turn.opened_seq + 1,
        dropped_messages: Some(transcript::fewer(folded)?),
    }))
}

/// New ids for what a model's answer makes, and the time from which on it may be waited for.
pub trait NewIds {
    /// The time.
    fn now(&self) -> Timestamp;
    /// An id for a message.
    fn message_id(&mut self) -> MessageId;
    /// An id for a tool call.
    fn call_id(&mut self) -> CallId;
}

/// The model answered.
pub fn answered(step: i32, plan: &Plan, answer: ModelAnswer, ids: &mut dyn NewIds) -> Vec<Event> {
    // A text cut off in the middle may have cut a call's arguments too: none of them is made.
    let whole = match answer.finish_reason {
        FinishReason::Stop | FinishReason::ToolCalls => true,
        FinishReason::Length | FinishReason::ContentFilter => false,
    };
    let calls = if whole { answer.tool_calls } else { Vec::new() };
    let finish_reason = match (whole, calls.is_empty()) {
        (true, true) => FinishReason::Stop,
        (true, false) => FinishReason::ToolCalls,
        (false, _) => answer.finish_reason,
    };
    let mut events = vec![Event::MessageCompleted(MessageCompleted {
        step,
        message_id: ids.message_id(),
        role: Role::Assistant,
        content: answer.content,
        reasoning: Some(answer.reasoning).filter(|r| !r.is_empty()),
        finish_reason,
        model_usage: answer.usage,
        model_cost_usd: plan.cost(&answer.usage),
        provider_state: answer.provider_state,
    })];
    for call in calls.into_iter().take(limits::MAX_CALLS_PER_STEP) {
        let arguments = arguments(call.arguments);
        let tool = plan.tool(&call.tool);
        // Nobody is asked about a call that cannot be made: the model is told why.
        let waits = tool.filter(|_| plan.check_call(&call.tool, &arguments).is_ok());
        let created = ToolCallCreated {
            step,
            call_id: ids.call_id(),
            effect: tool.map_or(Effect::Read, Tool::effect),
            tool: call.tool,
            arguments,
            awaits: None,
            expires_at: None,
        };
        events.extend(created_for(waits, created, ids.now()));
    }
    events
}

/// The last open action of a parked run is answered: an engine goes on with it.
pub fn resumed() -> Event {
    Event::RunResumed(StatusChanged { status: RunStatus::Queued })
}

/// What brings a run to `running`, from which on it may end in any way.
pub fn awakened(folded: &Folded) -> Vec<Event> {
    let running = Event::RunRunning(StatusChanged { status: RunStatus::Running });
    match folded.status {
        RunStatus::Queued => vec![running],
        RunStatus::RequiresAction => vec![resumed(), running],
        RunStatus::Running
        | RunStatus::Cancelling
        | RunStatus::Completed
        | RunStatus::Incomplete
        | RunStatus::Failed
        | RunStatus::Cancelled
        | RunStatus::Expired => Vec::new(),
    }
}

/// The run waits for people.
pub fn parked(folded: &Folded, run_id: RunId) -> Event {
    Event::RunRequiresAction(RunRequiresAction {
        status: RunStatus::RequiresAction,
        required_actions: folded.required_actions(run_id),
    })
}

/// The open step is over, with everything answered.
pub fn step_completed(folded: &Folded, turn: &Turn, now: Timestamp) -> Event {
    Event::StepCompleted(step_end(folded, turn, now))
}

fn step_end(folded: &Folded, turn: &Turn, now: Timestamp) -> StepEnded {
    let message = turn.message.as_ref();
    StepEnded {
        step: turn.step,
        duration_ms: duration_ms(turn.started_at, now),
        usage: message.map_or_else(Usage::default, |m| m.model_usage),
        cost_usd: message.and_then(|m| m.model_cost_usd),
        run_usage: folded.usage_so_far(),
        run_cost_usd: folded.cost_so_far(),
        error: None,
    }
}

/// The run is over: no call stays without an answer and no step stays open.
pub fn ended(folded: &Folded, ending: Ending, now: Timestamp) -> Vec<Event> {
    let mut events = Vec::new();
    let mut steps_completed = folded.steps_completed;
    let (reason, error) = match &ending {
        Ending::Failed(error) => ("The run failed before this call was answered.", Some(error)),
        Ending::Cancelled => ("The run was cancelled before this call was answered.", None),
        Ending::Expired => ("The run ran out of time before this call was answered.", None),
        Ending::Completed(_) | Ending::Incomplete(_) => {
            ("The run ended before this call was answered.", None)
        }
    };
    if let Some(turn) = folded.open_step() {
        let open: Vec<&Call> = turn.calls.iter().filter(|call| call.is_open()).collect();
        let whole = turn.message.is_some() && open.is_empty() && error.is_none();
        events.extend(open.into_iter().map(|call| synthetic(turn.step, call, reason)));
        let end = StepEnded { error: error.cloned(), ..step_end(folded, turn, now) };
        if whole {
            steps_completed += 1;
            events.push(Event::StepCompleted(end));
        } else {
            events.push(Event::StepFailed(end));
        }
    }
    let last_text = folded.last_text().map(str::to_owned);
    let mut end = RunEnded {
        status: ending.status(),
        result: last_text.map(|content| RunResult { content, output: None }),
        error: None,
        incomplete_reason: None,
        usage: folded.usage_so_far(),
        cost_usd: folded.cost_so_far(),
        steps_completed,
    };
    events.push(match ending {
        Ending::Completed(output) => {
            let content = final_text(folded);
            end.result = Some(RunResult { content, output });
            Event::RunCompleted(end)
        }
        Ending::Incomplete(reason) => {
            end.incomplete_reason = Some(reason);
            Event::RunIncomplete(end)
        }
        Ending::Failed(error) => {
            end.error = Some(error);
            Event::RunFailed(end)
        }
        Ending::Cancelled => Event::RunCancelled(end),
        Ending::Expired => Event::RunExpired(end),
    });
    events
}

/// The text of the last step, even if it is empty: a completed run has a result.
fn final_text(folded: &Folded) -> String {
    let last = folded.steps.last().and_then(|turn| turn.message.as_ref());
    last.map(|message| message.content.clone()).unwrap_or_default()
}

fn duration_ms(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}
