//! Somebody wants a run to stop.

use std::sync::Arc;

use crate::clock::Clock;
use crate::domain::decide::Ending;
use crate::domain::event::{Event, StatusChanged};
use crate::domain::run::RunStatus;
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::store::{GuestDecide, GuestDecision, Locked, Owner};

/// The decision to cancel: a driven run is asked to stop, any other ends at once.
pub fn cancel(clock: &Clock) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| decide_cancel(locked, clock.now()))
}

fn decide_cancel(locked: &Locked, now: Timestamp) -> Result<GuestDecision, String> {
    let mut folded = super::fold(locked)?;
    let driven = locked.record.row.node_id.is_some();
    let (events, owner) = match folded.status {
        RunStatus::Completed
        | RunStatus::Incomplete
        | RunStatus::Failed
        | RunStatus::Cancelled
        | RunStatus::Expired => return Ok(GuestDecision::Nothing),
        // Asked before. If nobody drives it, whoever claims it next ends it.
        RunStatus::Cancelling => return Ok(GuestDecision::Nothing),
        RunStatus::Running | RunStatus::RequiresAction if driven => {
            let asked = StatusChanged { status: RunStatus::Cancelling };
            (vec![Event::RunCancelling(asked)], Owner::Keep)
        }
        // Queued and claimed, but not begun: its driver has lost it and stops.
        RunStatus::Queued | RunStatus::Running | RunStatus::RequiresAction => {
            (write::ended(&folded, Ending::Cancelled, now), Owner::Nobody { due_at: None })
        }
    };
    super::append(locked, &mut folded, &events, |_| owner, now)
}
