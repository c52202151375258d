//! Somebody answers for a call: a tool whose driver has lost the run, or people and programs outside.

use std::sync::Arc;

use serde_json::Value;

use crate::clock::Clock;
use crate::domain::answer::{self, Refusal, Report, Verdict};
use crate::domain::event::Event;
use crate::domain::fold::{CallState, Folded};
use crate::domain::ids::{CallId, RunId};
use crate::domain::plan::Plan;
use crate::domain::run::{ActionType, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::store::{GuestDecide, GuestDecision, Locked, Owner};

/// What a tool answered.
#[derive(Debug, Clone)]
pub struct CallAnswer {
    /// Which call.
    pub call_id: CallId,
    /// Its result, or why there is none.
    pub answer: Result<Value, String>,
}

/// The decision to answer a call that was made: `Nothing` when it has an answer, or the run has ended.
pub fn answer(clock: &Clock, answer: CallAnswer) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| decide_answer(locked, &answer, clock.now()))
}

fn decide_answer(
    locked: &Locked,
    answer: &CallAnswer,
    now: Timestamp,
) -> Result<GuestDecision, String> {
    let mut folded = super::fold(locked)?;
    if folded.status.is_final() {
        return Ok(GuestDecision::Nothing);
    }
    let call = folded.open_step().and_then(|turn| {
        let call = turn.calls.iter().find(|call| call.call_id == answer.call_id)?;
        let unknown = CallState::Waiting(ActionType::ToolOutcome, None);
        let made = call.state == CallState::Started || call.state == unknown;
        made.then_some((turn.step, call))
    });
    let Some((step, call)) = call else { return Ok(GuestDecision::Nothing) };
    let mut events = vec![write::call_answered(step, call, answer.answer.clone(), now)];
    events.extend(answer::goes_on(&folded, call));
    super::append(locked, &mut folded, &events, |folded| owner(folded, now), now)
}

/// The decision of somebody who was asked whether a call may be made. `plan` is the run's.
pub fn decide(clock: &Clock, plan: Arc<Plan>, verdict: Verdict) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| {
        let now = clock.now();
        taken(locked, now, |folded| answer::decide(folded, &plan, &verdict, now))
    })
}

/// The decision of somebody who says what came of a call.
pub fn report(clock: &Clock, report: Report) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| {
        let now = clock.now();
        taken(locked, now, |folded| answer::report(folded, &report, now))
    })
}

/// The decision for a parked run when one of its children is known to wait for nobody any more.
pub fn child_goes_on(clock: &Clock, child: RunId) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| {
        let now = clock.now();
        let mut folded = super::fold(locked)?;
        let waits_for_it = folded.status == RunStatus::RequiresAction
            && folded.live_children().any(|(_, live)| live.run_id == child);
        if !waits_for_it {
            return Ok(GuestDecision::Nothing);
        }
        super::append(locked, &mut folded, &[write::resumed()], |folded| owner(folded, now), now)
    })
}

fn taken(
    locked: &Locked,
    now: Timestamp,
    decide: impl FnOnce(&Folded) -> Result<Vec<Event>, Refusal>,
) -> Result<GuestDecision, String> {
    let mut folded = super::fold(locked)?;
    match decide(&folded) {
        Err(refusal) => Ok(GuestDecision::Refuse(refusal)),
        // The same was said before.
        Ok(events) if events.is_empty() => Ok(GuestDecision::Nothing),
        Ok(events) => super::append(locked, &mut folded, &events, |folded| owner(folded, now), now),
    }
}

/// When an engine must look at the run, if none drives it: at once when it goes on; when it still waits,
/// as soon as the next of the open actions is over.
fn owner(folded: &Folded, now: Timestamp) -> Owner {
    match folded.status {
        RunStatus::Queued => return Owner::DueIfUnowned(now),
        RunStatus::RequiresAction => {}
        // Whoever let go of it said when.
        RunStatus::Running
        | RunStatus::Cancelling
        | RunStatus::Completed
        | RunStatus::Incomplete
        | RunStatus::Failed
        | RunStatus::Cancelled
        | RunStatus::Expired => return Owner::Keep,
    }
    let calls = folded.open_step().map(|turn| turn.calls.as_slice()).unwrap_or_default();
    let until = calls.iter().filter_map(|call| match call.state {
        CallState::Waiting(_, until) => until,
        CallState::Ready | CallState::Started | CallState::Completed(_) | CallState::Failed(_) => {
            None
        }
    });
    until.min().map_or(Owner::Keep, Owner::DueIfUnowned)
}
