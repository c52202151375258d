//! What of a driver's unseen facts still holds behind what others wrote meanwhile.
//!
//! A driver that was overtaken keeps what it cannot get again: what a model or a tool has said. What it
//! had only decided is decided again, for what it was decided upon may be different now; and whatever
//! was built upon that goes with it.

use super::event::Event;
use super::fold::{CallState, Folded};
use super::time::Timestamp;

/// Whether the fact may be pushed again, as number `seq`.
pub fn still_holds(folded: &Folded, seq: i32, at: Timestamp, event: &Event) -> bool {
    // Drivers are overtaken rarely, and have little unseen: a copy is cheap enough to try it on.
    !is_decided_again(folded, event) && folded.clone().apply(seq, at, event.clone()).is_ok()
}

/// Whether text of this step may be shown again.
pub fn is_being_written(folded: &Folded, step: i32) -> bool {
    folded.open_step().is_some_and(|turn| turn.step == step && turn.message.is_none())
}

fn is_decided_again(folded: &Folded, event: &Event) -> bool {
    match event {
        // What was done since was built upon it: it stays for as long as nobody has to answer.
        Event::RunResumed(_) => waits(folded),
        // Nothing was made of it yet: a call is made once its start is durable, and not before.
        Event::ToolCallStarted(_)
        | Event::ToolCallOutcomeUnknown(_)
        | Event::ApprovalExpired(_)
        | Event::RunRequiresAction(_)
        | Event::RunCompleted(_)
        | Event::RunIncomplete(_)
        | Event::RunFailed(_)
        | Event::RunCancelled(_)
        | Event::RunExpired(_) => true,
        // What the server says in place of a tool.
        Event::ToolCallFailed(failed) => failed.synthetic,
        Event::RunQueued(_)
        | Event::RunRunning(_)
        | Event::RunCancelling(_)
        | Event::StepStarted(_)
        | Event::StepRestarted(_)
        | Event::StepCompleted(_)
        | Event::StepFailed(_)
        | Event::MessageDelta(_)
        | Event::ReasoningDelta(_)
        | Event::MessageCompleted(_)
        | Event::ToolCallCreated(_)
        | Event::ToolCallCompleted(_)
        | Event::ApprovalRequested(_)
        | Event::ApprovalDecided(_)
        | Event::InputReceived(_)
        | Event::InputApplied(_) => false,
    }
}

/// Whether somebody must answer for one of the run's own calls.
fn waits(folded: &Folded) -> bool {
    let calls = folded.open_step().map(|turn| turn.calls.as_slice()).unwrap_or_default();
    calls.iter().any(|call| matches!(call.state, CallState::Waiting(..)))
}
