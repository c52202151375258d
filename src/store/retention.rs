//! What retention asks of a store, and how a slice of it is cut; the same on both databases.
//!
//! A sweep is a walk in small steps. Each call is one *slice*: one short transaction that leaves the
//! database whole, so a process may end between any two of them. Nobody remembers how far a sweep had
//! come: a new one begins at the start and finds what is left.
//!
//! A run goes whole in one slice if its log is short. A longer one is marked as deleted first, in the
//! slice that takes the end of its log; from then on nobody reads it, and `fact_seq` says how much of
//! its log is still there. Its row goes last.

use std::collections::HashMap;

use sqlx::types::Uuid;

use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::time::Timestamp;

use super::rows;

/// Before every run.
pub const OLDEST: RunId = RunId::from_uuid(Uuid::nil());

/// Runs that somebody erases in one transaction: each has 50,000 events at most, and most have twenty.
pub(super) const ERASED_IN_A_SLICE: usize = 20;

/// One step of a sweep through old runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSweep {
    /// Go on behind this run; [`OLDEST`] begins at the beginning.
    pub after: RunId,
    /// Runs that ended before this go.
    pub ended_before: Timestamp,
    /// The time, for runs that cannot go in one slice: they are marked as deleted.
    pub now: Timestamp,
}

/// One step of a sweep through old idempotency keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeySweep {
    /// Go on behind keys that were bound then; `None` begins at the oldest.
    pub after: Option<Timestamp>,
    /// Keys that were bound before this go,
    pub bound_before: Timestamp,
    /// unless the run that they stand for has not ended before this.
    pub ended_before: Timestamp,
}

/// What a slice did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept<Cursor> {
    /// How many are gone for good now.
    pub gone: u64,
    /// Where to go on; `None`: there is no more to do for now.
    pub more: Option<Cursor>,
}

impl<Cursor> Swept<Cursor> {
    /// Nothing was there to do.
    pub const NOTHING: Self = Self { gone: 0, more: None };
}

/// What a slice of erasing conversations did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweptConversations {
    /// How many runs and conversations are gone.
    pub gone: u64,
    /// The runs among them, in any order.
    pub runs: Vec<RunId>,
    /// Whether there is more to do for now.
    pub more: bool,
}

impl SweptConversations {
    /// Nothing was there to do.
    pub const NOTHING: Self = Self { gone: 0, runs: Vec::new(), more: false };
}

/// What a slice of erasing the runs below another one did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// These are gone, in any order.
    pub erased: Vec<RunId>,
    /// This one has not ended, so nothing was erased.
    pub alive: Option<RunId>,
    /// Whether there may be more of them.
    pub more: bool,
}

impl Below {
    pub(super) const fn alive(run_id: RunId) -> Self {
        Self { erased: Vec::new(), alive: Some(run_id), more: false }
    }

    /// These, of so many that were found where no more than `room` were looked for. Somebody else may
    /// have been quicker.
    pub(super) fn erased(erased: Vec<RunId>, found: usize, room: usize) -> Self {
        let more = found >= room || erased.len() < found;
        Self { erased, alive: None, more }
    }
}

/// What a slice of deltas did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweptDeltas {
    /// Whole days that are gone, with nobody knows how many deltas (Postgres).
    pub days: u64,
    /// Deltas that went one by one (SQLite, and on Postgres those without a day of their own).
    pub deltas: u64,
    /// What to go on with; it means something to the store only.
    pub more: Option<i64>,
}

/// Bounds of a slice of runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Runs that are looked at, most of which may have to stay.
    pub(super) walked: usize,
    /// Runs that are deleted from.
    pub(super) runs: usize,
    /// Events that are deleted.
    pub(super) events: i32,
}

/// A run that the walk came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Walked {
    pub(super) run_id: RunId,
    /// Whether it is over, and for long enough.
    pub(super) is_old: bool,
}

/// An old run that nobody else is working on: its row is locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) run_id: RunId,
    /// What SQLite keeps its events under; 0 on Postgres.
    pub(super) run_no: i64,
    pub(super) workspace_id: WorkspaceId,
    /// The newest event that is still there.
    pub(super) fact_seq: i32,
    /// What its labels are found by; `None` once they are gone.
    pub(super) metadata: Option<String>,
}

impl Held {
    /// Its labels. Those of metadata that cannot be read stay: they name a run that is not there,
    /// which lists pass over.
    pub(super) fn labels(&self) -> Vec<(String, String)> {
        let metadata = self.metadata.as_deref().map(rows::read_metadata);
        metadata.and_then(Result::ok).unwrap_or_default().into_iter().collect()
    }
}

/// What one slice deletes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// Runs that go with everything of theirs.
    pub(super) whole: Vec<Held>,
    /// A run whose log loses its end: everything behind this `seq`.
    pub(super) part: Option<(Held, i32)>,
    /// Where the next slice begins.
    pub(super) more: Option<RunId>,
}

/// The runs of a walk that a slice may delete from.
pub(super) fn candidates(walked: &[Walked], bounds: Bounds) -> Vec<Uuid> {
    let old = walked.iter().filter(|run| run.is_old);
    old.take(bounds.runs).map(|run| run.run_id.uuid()).collect()
}

/// Cuts a slice out of a walk that began behind `after`. Of the candidates only those count that are
/// `held`; the others are somebody else's at this moment, or gone, and are passed over.
pub(super) fn cut(after: RunId, walked: &[Walked], held: Vec<Held>, bounds: Bounds) -> Slice {
    let mut held: HashMap<RunId, Held> = held.into_iter().map(|run| (run.run_id, run)).collect();
    let mut slice = Slice { whole: Vec::new(), part: None, more: None };
    let (mut runs, mut room) = (0, bounds.events);
    let mut passed = after;
    for run in walked {
        if run.is_old {
            if runs == bounds.runs {
                slice.more = Some(passed);
                return slice;
            }
            runs += 1;
            if let Some(held) = held.remove(&run.run_id) {
                if held.fact_seq > room {
                    // What is short goes whole: only a log that no slice has room for is cut.
                    if held.fact_seq > bounds.events && room == bounds.events {
                        let keep = held.fact_seq - room;
                        slice.part = Some((held, keep));
                    }
                    slice.more = Some(passed);
                    return slice;
                }
                room -= held.fact_seq;
                slice.whole.push(held);
            }
        }
        passed = run.run_id;
    }
    if walked.len() == bounds.walked {
        slice.more = Some(passed);
    }
    slice
}

/// What every run that was created before this has a smaller id than: a UUIDv7 begins with its time.
pub(super) fn ids_before(at: Timestamp) -> Uuid {
    let millis = u128::try_from(at.millis()).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { walked: 4, runs: 3, events: 100 };

    fn id(n: u128) -> RunId {
        RunId::from_uuid(Uuid::from_u128(n))
    }

    fn walk(old: &[bool]) -> Vec<Walked> {
        (1..).zip(old).map(|(n, is_old)| Walked { run_id: id(n), is_old: *is_old }).collect()
    }

    fn held(n: u128, fact_seq: i32) -> Held {
        Held {
            run_id: id(n),
            run_no: 0,
            workspace_id: WorkspaceId::DEFAULT,
            fact_seq,
            metadata: None,
        }
    }

    #[test]
    fn a_short_walk_is_the_end_and_a_full_one_goes_on_behind_its_last_run() {
        let slice = cut(OLDEST, &walk(&[true, false]), vec![held(1, 7)], BOUNDS);
        assert_eq!(slice, Slice { whole: vec![held(1, 7)], part: None, more: None });
        let slice = cut(OLDEST, &walk(&[false; 4]), vec![], BOUNDS);
        assert_eq!(slice, Slice { whole: vec![], part: None, more: Some(id(4)) });
    }

    #[test]
    fn a_slice_has_so_many_runs_and_events_and_no_more() {
        let all = || (1..=4).map(|n| held(n, 10)).collect();
        let slice = cut(OLDEST, &walk(&[true; 4]), all(), BOUNDS);
        assert_eq!((slice.whole.len(), slice.more), (3, Some(id(3))));
        let runs = vec![held(1, 60), held(2, 60)];
        let slice = cut(OLDEST, &walk(&[true; 2]), runs, BOUNDS);
        assert_eq!((slice.whole, slice.part, slice.more), (vec![held(1, 60)], None, Some(id(1))));
    }

    #[test]
    fn a_long_log_loses_its_end_first_and_comes_again() {
        let slice = cut(id(9), &walk(&[true]), vec![held(1, 250)], BOUNDS);
        assert_eq!((slice.part, slice.more), (Some((held(1, 250), 150)), Some(id(9))));
        let slice = cut(id(9), &walk(&[true]), vec![held(1, 100)], BOUNDS);
        assert_eq!((slice.whole, slice.more), (vec![held(1, 100)], None));
        // It waits for a slice of its own.
        let runs = vec![held(1, 1), held(2, 250)];
        let slice = cut(id(9), &walk(&[true; 2]), runs, BOUNDS);
        assert_eq!((slice.part, slice.more), (None, Some(id(1))));
    }

    #[test]
    fn what_somebody_else_holds_is_passed_over() {
        let slice = cut(OLDEST, &walk(&[true; 4]), vec![held(2, 1)], BOUNDS);
        assert_eq!((slice.whole, slice.more), (vec![held(2, 1)], Some(id(3))));
        let slice = cut(OLDEST, &walk(&[true; 2]), vec![], BOUNDS);
        assert_eq!((slice.whole, slice.more), (vec![], None));
    }
}
