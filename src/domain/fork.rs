//! Forks: what a new run takes over from one that exists. Nothing is called for it.
//!
//! A fork begins with copies of the recorded facts of the steps in front of the one that it goes on
//! from: what the model said, what its tools answered, who approved what. They get ids of the fork's
//! own, and cost it nothing: what they cost is in the run that they are copied from. What is no step
//! (that the run began, waited or was cancelled) is not copied, nor is what was only for the eye.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::event::{Entry, Event, StepEnded};
use super::fold::FoldError;
use super::ids::{CallId, MessageId};
use super::money::Usd;
use super::usage::Usage;
use super::write::NewIds;

/// The facts of the steps before `from_step`, out of a run's log, in their order.
///
/// # Errors
/// When a fact cannot be read.
pub fn copied(
    facts: &[Entry],
    from_step: i32,
    ids: &mut dyn NewIds,
) -> Result<Vec<Event>, FoldError> {
    let mut events = Vec::with_capacity(facts.len());
    for fact in facts.iter().filter(|fact| !fact.event_type.is_delta()) {
        let read = fact.read().map_err(|source| FoldError::Unreadable { seq: fact.seq, source });
        events.push(read?.0);
    }
    // A message counts for the step that read it, not for the one in which it came.
    let heard: HashSet<MessageId> = events
        .iter()
        .filter_map(|event| match event {
            Event::InputApplied(input) if input.step < from_step => Some(input.message_id),
            _ => None,
        })
        .collect();
    let mut copies = Copies { from_step, heard, calls: HashMap::new(), messages: HashMap::new() };
    Ok(events.into_iter().filter_map(|event| copies.copy(event, ids)).collect())
}

struct Copies {
    from_step: i32,
    heard: HashSet<MessageId>,
    calls: HashMap<CallId, CallId>,
    messages: HashMap<MessageId, MessageId>,
}

impl Copies {
    fn copy(&mut self, event: Event, ids: &mut dyn NewIds) -> Option<Event> {
        let before = |step: i32| step < self.from_step;
        let copy = match event {
            Event::StepStarted(started) if before(started.step) => Event::StepStarted(started),
            Event::StepCompleted(end) if before(end.step) => Event::StepCompleted(free(end)),
            Event::MessageCompleted(mut message) if before(message.step) => {
                message.message_id = ids.message_id();
                message.model_usage = Usage::default();
                message.model_cost_usd = Some(Usd::ZERO);
                Event::MessageCompleted(message)
            }
            Event::ToolCallCreated(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                Event::ToolCallCreated(call)
            }
            Event::ToolCallStarted(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                // Its child is the other run's, and so is what that cost.
                (call.child_run_id, call.child_max_cost_usd) = (None, None);
                Event::ToolCallStarted(call)
            }
            Event::ToolCallCompleted(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                call.child_cost_usd = None;
                Event::ToolCallCompleted(call)
            }
            Event::ToolCallFailed(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                call.child_cost_usd = None;
                Event::ToolCallFailed(call)
            }
            Event::ToolCallOutcomeUnknown(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                Event::ToolCallOutcomeUnknown(call)
            }
            Event::ApprovalRequested(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                Event::ApprovalRequested(call)
            }
            Event::ApprovalDecided(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                Event::ApprovalDecided(call)
            }
            Event::ApprovalExpired(mut call) if before(call.step) => {
                call.call_id = renamed(&mut self.calls, call.call_id, || ids.call_id());
                Event::ApprovalExpired(call)
            }
            Event::InputReceived(mut input) if self.heard.contains(&input.message_id) => {
                input.message_id =
                    renamed(&mut self.messages, input.message_id, || ids.message_id());
                Event::InputReceived(input)
            }
            Event::InputApplied(mut input) if before(input.step) => {
                input.message_id =
                    renamed(&mut self.messages, input.message_id, || ids.message_id());
                Event::InputApplied(input)
            }
            Event::StepStarted(_)
            | Event::StepCompleted(_)
            | Event::MessageCompleted(_)
            | Event::ToolCallCreated(_)
            | Event::ToolCallStarted(_)
            | Event::ToolCallCompleted(_)
            | Event::ToolCallFailed(_)
            | Event::ToolCallOutcomeUnknown(_)
            | Event::ApprovalRequested(_)
            | Event::ApprovalDecided(_)
            | Event::ApprovalExpired(_)
            | Event::InputReceived(_)
            | Event::InputApplied(_)
            | Event::StepRestarted(_)
            | Event::StepFailed(_)
            | Event::MessageDelta(_)
            | Event::ReasoningDelta(_)
            | Event::RunQueued(_)
            | Event::RunRunning(_)
            | Event::RunCancelling(_)
            | Event::RunRequiresAction(_)
            | Event::RunResumed(_)
            | Event::RunCompleted(_)
            | Event::RunIncomplete(_)
            | Event::RunFailed(_)
            | Event::RunCancelled(_)
            | Event::RunExpired(_) => return None,
        };
        Some(copy)
    }
}

fn renamed<K: Copy + Eq + Hash>(names: &mut HashMap<K, K>, old: K, new: impl FnOnce() -> K) -> K {
    *names.entry(old).or_insert_with(new)
}

/// The end of a step that cost this run nothing.
fn free(end: StepEnded) -> StepEnded {
    StepEnded {
        usage: Usage::default(),
        cost_usd: Some(Usd::ZERO),
        run_usage: Usage::default(),
        run_cost_usd: Some(Usd::ZERO),
        ..end
    }
}
