//! Somebody wants a run to stop.

use std::sync::Arc;

use crate::clock::Clock;
use crate::domain::decide::Ending;
use crate::domain::event::{Event, StatusChanged};
use crate::domain::run::RunStatus;
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::store::{GuestDecide, GuestDecision, Locked, Owner};

/// The decision to cancel: a run that is driven or has children is asked to stop, any other ends at
/// once.
pub fn cancel(clock: &Clock) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| decide_cancel(locked, clock.now()))
}

fn decide_cancel(locked: &Locked, now: Timestamp) -> Result<GuestDecision, String> {
    let mut folded = super::fold(locked)?;
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
    super::append(locked, &mut folded, &events, |_| owner, now)
}

fn cancelling() -> Event {
    Event::RunCancelling(StatusChanged { status: RunStatus::Cancelling })
}
