//! Writes of everybody who is not the driver.
//!
//! A guest locks the run's row, reads its facts, lets the domain decide, appends, and raises `rev`;
//! then the driver, if there is one, finds itself *behind* and looks again before it may go on. What
//! got its 202 is never left behind.

use std::sync::Arc;

use serde_json::Value;

use crate::clock::Clock;
use crate::domain::decide::Ending;
use crate::domain::event::{Entry, Event, StatusChanged};
use crate::domain::fold::{CallState, FoldError, Folded};
use crate::domain::ids::CallId;
use crate::domain::run::{ActionType, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::store::{GuestDecide, GuestDecision, Locked, Owner, RunUpdate};

/// The decision to cancel: a run that is driven or has children is asked to stop, any other ends at
/// once.
pub fn cancel(clock: &Clock) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| decide_cancel(locked, clock.now()))
}

fn decide_cancel(locked: &Locked, now: Timestamp) -> Result<GuestDecision, String> {
    let mut folded = Folded::read(&locked.facts).map_err(|error| error.to_string())?;
    let driven = locked.record.row.node_id.is_some();
    let has_children = folded.live_children().next().is_some();
    let (events, owner) = match folded.status {
        RunStatus::Completed
        | RunStatus::Incomplete
        | RunStatus::Failed
        | RunStatus::Cancelled
        | RunStatus::Expired => return Ok(GuestDecision::Nothing),
        // Asked before. If nobody drives it, whoever claims it next ends it.
        RunStatus::Cancelling => return Ok(GuestDecision::Nothing),
        RunStatus::Running | RunStatus::RequiresAction if driven => {
            (vec![cancelling()], Owner::Keep)
        }
        // It ends after its children, and somebody must ask them to.
        RunStatus::Running | RunStatus::RequiresAction if has_children => {
            (vec![cancelling()], Owner::DueIfUnowned(now))
        }
        // The same for one that is to go on after a pause: only a run that goes on can be asked to stop.
        RunStatus::Queued if has_children => {
            let mut events = write::started(&folded);
            events.push(cancelling());
            (events, Owner::DueIfUnowned(now))
        }
        // Queued and claimed, but not begun: its driver has lost it and stops.
        RunStatus::Queued | RunStatus::Running | RunStatus::RequiresAction => {
            (write::ended(&folded, Ending::Cancelled, now), Owner::Nobody { due_at: None })
        }
    };
    append(locked, &mut folded, &events, owner, now)
}

fn cancelling() -> Event {
    Event::RunCancelling(StatusChanged { status: RunStatus::Cancelling })
}

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
    let mut folded = Folded::read(&locked.facts).map_err(|error| error.to_string())?;
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
    let mut owner = Owner::Keep;
    if folded.status == RunStatus::RequiresAction {
        let run_id = locked.record.row.run_id;
        let waits = folded.required_actions(run_id);
        if waits.iter().all(|action| action.call_id == answer.call_id) {
            events.push(Event::RunResumed(StatusChanged { status: RunStatus::Queued }));
            owner = Owner::DueIfUnowned(now);
        }
    }
    append(locked, &mut folded, &events, owner, now)
}

/// Encodes the events behind the log, and folds them to know the row.
fn append(
    locked: &Locked,
    folded: &mut Folded,
    events: &[Event],
    owner: Owner,
    now: Timestamp,
) -> Result<GuestDecision, String> {
    let run_id = locked.record.row.run_id;
    let mut facts: Vec<Entry> = Vec::with_capacity(events.len());
    for (seq, event) in (locked.record.last_seq + 1..).zip(events) {
        facts.push(event.entry(run_id, seq, now).map_err(|error| error.to_string())?);
        folded.apply(seq, now, event.clone()).map_err(|error: FoldError| error.to_string())?;
    }
    Ok(GuestDecision::Append { facts, update: RunUpdate::of(folded, owner) })
}

/// The decision to erase: only what has ended can go. `Nothing` says that it has not.
pub fn erase(clock: &Clock) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| {
        Ok(if locked.record.row.status.is_final() {
            GuestDecision::Erase { at: clock.now() }
        } else {
            GuestDecision::Nothing
        })
    })
}
