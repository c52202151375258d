//! Writes of everybody who is not the driver.
//!
//! A guest locks the run's row, reads its facts, lets the domain decide, appends, and raises `rev`;
//! then the driver, if there is one, finds itself *behind* and looks again before it may go on. What
//! got its 202 is never left behind.
//!
//! - [`cancel()`] and [`erase`]: the end of a run, and of its log.
//! - [`answers`]: tools that answered for a driver which has lost its run; people who decide about calls
//!   or say what came of them.
//! - [`mod@steer`]: people who tell a run something while it goes on.
//! - [`child_goes_on`]: a parent waits for people no more.

pub mod answers;
mod cancel;
mod steer;

use std::sync::Arc;

use crate::clock::Clock;
use crate::domain::event::{Entry, Event};
use crate::domain::fold::{FoldError, Folded};
use crate::domain::run::RunStatus;
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::store::{GuestDecide, GuestDecision, Locked, Owner, RunUpdate, Said};

pub use answers::{CallAnswer, answer, child_goes_on, decide, report};
pub use cancel::cancel;
pub use steer::steer;

fn fold(locked: &Locked) -> Result<Folded, String> {
    Folded::read(&locked.facts).map_err(|error| error.to_string())
}

/// Encodes the events behind the log, and folds them to know the row.
fn append(
    locked: &Locked,
    folded: &mut Folded,
    events: &[Event],
    owner: impl FnOnce(&Folded) -> Owner,
    now: Timestamp,
) -> Result<GuestDecision, String> {
    let run_id = locked.record.row.run_id;
    let before = folded.open_actions(run_id);
    let mut facts: Vec<Entry> = Vec::with_capacity(events.len());
    let mut push = |folded: &mut Folded, seq: i32, event: &Event| {
        facts.push(event.entry(run_id, seq, now).map_err(|error| error.to_string())?);
        folded.apply(seq, now, event.clone()).map_err(|error: FoldError| error.to_string())
    };
    let mut seq = locked.record.last_seq;
    for event in events {
        seq += 1;
        push(folded, seq, event)?;
    }
    // Whoever waits for the run to ask for something learns what it asks for now.
    let asks = folded.open_actions(run_id).iter().any(|action| !before.contains(action));
    if folded.status == RunStatus::RequiresAction && asks {
        let again = if folded.children_actions.is_empty() {
            write::parked(folded, run_id)
        } else {
            // What its children wait for is not known here: its driver says it when it parks again.
            write::resumed()
        };
        push(folded, seq + 1, &again)?;
    }
    let said = Said { run_id, events, at: now };
    let update = RunUpdate::since(&before, folded, said, owner(folded));
    Ok(GuestDecision::Append { facts, update: Box::new(update) })
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
