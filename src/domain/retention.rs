//! How long what is kept. Whoever deletes asks here; nothing else decides what is old.

use std::time::Duration;

use super::time::Timestamp;

/// One day.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long an idempotency key stands for what it made: longer than anybody tries again.
const KEYS: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a key outlives the run that it made: who started a long run can still ask what became of it.
const KEYS_AFTER_END: Duration = DAY;
/// How long the flush numbers of a node that is gone are kept: far longer than a statement can be on
/// its way, and as long as those of a node that lives.
const FLUSHES: Duration = Duration::from_secs(3600);
/// How far the clocks of nodes and of the database may lie apart where a time of one is held against
/// a time of another.
const CLOCKS: Duration = Duration::from_secs(3600);

/// How long logs are kept, as the operator said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Days after its end that a run is kept, with everything of it.
    pub run_days: u32,
    /// Days after they were written that deltas are kept, if their run still is.
    pub delta_days: u32,
}

impl Retention {
    /// Runs that ended before go.
    pub fn runs_ended_before(self, now: Timestamp) -> Timestamp {
        now.minus(DAY.saturating_mul(self.run_days))
    }

    /// Deltas that were written before go. Postgres keeps the rest of that day.
    pub fn deltas_written_before(self, now: Timestamp) -> Timestamp {
        now.minus(DAY.saturating_mul(self.delta_days))
    }
}

/// Keys that were bound before go, as far as [`keys_of_runs_ended_before`] lets them.
pub fn keys_bound_before(now: Timestamp) -> Timestamp {
    now.minus(KEYS)
}

/// Keys of runs that ended later, or have not ended, stay whatever their age.
pub fn keys_of_runs_ended_before(now: Timestamp) -> Timestamp {
    now.minus(KEYS_AFTER_END)
}

/// Flush numbers of nodes that are gone and that were taken before go.
pub fn flushes_before(now: Timestamp) -> Timestamp {
    now.minus(FLUSHES)
}

/// Whether retention can have made the hole behind an event that was written at `written_at`, when
/// it has deleted deltas from before `gone_before`: those of the hole are younger than the event.
pub fn explains_a_hole(gone_before: Timestamp, written_at: Timestamp) -> bool {
    written_at < gone_before.plus(CLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_340_613_042);

    #[test]
    fn days_count_back_from_now() {
        let keep = Retention { run_days: 30, delta_days: 1 };
        assert_eq!(NOW.since(keep.runs_ended_before(NOW)), 30 * DAY);
        assert_eq!(NOW.since(keep.deltas_written_before(NOW)), DAY);
        assert_eq!(NOW.since(keys_bound_before(NOW)), 7 * DAY);
    }

    #[test]
    fn a_hole_is_explained_by_older_deletions_only() {
        let gone_before = NOW.minus(DAY);
        assert!(explains_a_hole(gone_before, NOW.minus(2 * DAY)));
        assert!(explains_a_hole(gone_before, gone_before));
        assert!(!explains_a_hole(gone_before, NOW));
        // Nothing was ever deleted.
        assert!(!explains_a_hole(Timestamp::from_millis(0), NOW.minus(365 * DAY)));
    }
}
