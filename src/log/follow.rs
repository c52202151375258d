//! A cursor over one run's log: `(run_id, after)`. It owns no queue; a slow reader costs nothing.
//!
//! A log has no holes but those that retention made: days of deltas. Every other hole is a defect of
//! ours, and no reader is led across it.

use std::time::Duration;

use crate::domain::event::Entry;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::retention;
use crate::store::{LogRange, SharedStore, StoreError};

use super::live::Watched;
use super::page::Page;
use super::tail::Glance;

/// Events that one page of the store has, at most.
const PAGE: i64 = 500;
/// Events that a reader's first page has: how large they are is not known yet.
const FIRST_PAGE: i64 = 128;
/// Bytes of events that are given at once, if it is not a single one: whoever stops reading keeps what
/// it was given last.
const PAGE_BYTES: usize = 32 * 1024;

/// How long a cursor waits for another one that reads the store for the same run.
const TURN: Duration = Duration::from_millis(250);

/// A reader's place in a log.
pub struct Cursor {
    store: SharedStore,
    watch: Watched,
    workspace_id: WorkspaceId,
    run_id: RunId,
    after: i32,
    /// Events that the next page has: as many as fit into [`PAGE_BYTES`], by those that were seen.
    page: i64,
}

impl Cursor {
    /// A cursor behind `after`.
    pub fn new(
        store: SharedStore,
        watch: Watched,
        workspace_id: WorkspaceId,
        run_id: RunId,
        after: i32,
    ) -> Self {
        Self { store, watch, workspace_id, run_id, after, page: FIRST_PAGE }
    }

    /// The last event that it gave.
    pub fn position(&self) -> i32 {
        self.after
    }

    /// What comes next; waits until there is something. Cancel-safe: what was not returned will be.
    /// Behind the final event nothing comes any more: do not ask again.
    ///
    /// # Errors
    /// When the store cannot be read: the cursor has not moved and may be asked again. When the run is
    /// gone or events are missing: it is no use to ask again.
    pub async fn next(&mut self) -> Result<Next, FollowError> {
        let next = self.found().await?;
        self.after = match &next {
            Next::Events(page) => page.last_seq(),
            Next::Gap(gap) => gap.to_seq,
        };
        Ok(next)
    }

    async fn found(&mut self) -> Result<Next, FollowError> {
        loop {
            let changed = self.watch.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = match self.watch.glance(self.after) {
                Glance::Events(page) => Some(Next::Events(page)),
                Glance::Nothing => None,
                Glance::ReadStore => {
                    let (found, page) = self.stored().await?;
                    self.page = page;
                    found
                }
            };
            if let Some(found) = found {
                return Ok(found);
            }
            let _asleep = self.watch.sleeper(self.after);
            changed.await;
        }
    }

    /// What the store has behind the cursor, read once for all who are at the same place; and how many
    /// events the next page should have.
    async fn stored(&self) -> Result<(Option<Next>, i64), FollowError> {
        let (place, limit) = ((self.workspace_id, self.run_id, self.after), self.page);
        let shelf = self.watch.shelf();
        if let Some(page) = shelf.page(place) {
            return Ok((Some(Next::Events(page)), limit));
        }
        // Whoever reads may be stuck with a database that hangs: then nobody waits behind it.
        let _alone = tokio::time::timeout(TURN, self.watch.reading()).await;
        if let Some(page) = shelf.page(place) {
            return Ok((Some(Next::Events(page)), limit));
        }
        let range = LogRange { above: self.after, below: i32::MAX, limit, descending: false };
        let mut events = self.read(range).await?;
        let limit = cut(&mut events, limit);
        let whole = (self.after + 1..).zip(&events).take_while(|(seq, e)| e.seq == *seq).count();
        if let Some(page) = events.get(..whole).and_then(Page::of) {
            // In front of a hole, if there is one: the hole comes with the next question.
            shelf.keep_page(place, page.clone());
            return Ok((Some(Next::Events(page)), limit));
        }
        let Some(behind) = events.first().map(|entry| entry.seq) else {
            return Ok((None, limit));
        };
        let gap = Gap { from_seq: self.after + 1, to_seq: behind - 1 };
        if !self.is_explained(behind).await? {
            return Err(FollowError::Hole(gap));
        }
        Ok((Some(Next::Gap(gap)), limit))
    }

    /// Whether retention can have taken what is missing in front of this event. Facts are never
    /// missing, so there is an event in front of the hole, and what is missing was written after it.
    async fn is_explained(&self, behind: i32) -> Result<bool, FollowError> {
        let range = LogRange { above: 0, below: behind, limit: 1, descending: true };
        let newest = self.read(range).await?;
        let Some(newest) = newest.first() else { return Ok(false) };
        let written_at = newest.created_at().map_err(|error| {
            StoreError::Corrupt(format!("the time of event {}: {error}", newest.seq))
        })?;
        let gone_before = self.store.deltas_gone_before().await?;
        Ok(retention::explains_a_hole(gone_before, written_at))
    }

    async fn read(&self, range: LogRange) -> Result<Vec<Entry>, FollowError> {
        let page = self.store.read_log(self.workspace_id, self.run_id, range).await?;
        page.ok_or(FollowError::Gone)
    }
}

/// Cuts a page of so many events down to its bytes. How many events the next one should have.
fn cut(events: &mut Vec<Entry>, limit: i64) -> i64 {
    let mut bytes = 0;
    let fits = |event: &&Entry| {
        bytes += event.data.len();
        bytes <= PAGE_BYTES
    };
    let fitting = events.iter().take_while(fits).count().max(1);
    if fitting < events.len() {
        events.truncate(fitting);
        return i64::try_from(fitting).unwrap_or(PAGE);
    }
    // One that came in full, with room left.
    if events.len() as i64 == limit { (limit * 2).min(PAGE) } else { limit }
}

/// What a cursor comes upon.
#[derive(Debug, Clone)]
pub enum Next {
    /// The next events.
    Events(Page),
    /// Events that retention took; the log goes on behind them.
    Gap(Gap),
}

/// Events that are not in the log (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first that is missing.
    pub from_seq: i32,
    /// The last that is missing.
    pub to_seq: i32,
}

/// Why a cursor cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run was deleted under the reader.
    #[error("the run was deleted")]
    Gone,
    /// Events are missing that nothing was allowed to take: somebody must find out why.
    #[error("events {} to {} are missing", .0.from_seq, .0.to_seq)]
    Hole(Gap),
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::event::EventType;

    fn page(count: i32, bytes: usize) -> Vec<Entry> {
        let entry = |seq| Entry {
            seq,
            event_type: EventType::MessageDelta,
            data: Bytes::from(vec![b'x'; bytes]),
        };
        (1..=count).map(entry).collect()
    }

    #[test]
    fn pages_hold_so_many_bytes_and_adapt_to_the_events() {
        for (count, bytes, kept, next) in [
            (128, 100, 128, 256),
            (100, 100, 100, 128),
            (128, 1024, 32, 32),
            (128, 4096, 8, 8),
            // A single event is given whatever it weighs.
            (2, 4 * PAGE_BYTES, 1, 1),
        ] {
            let mut events = page(count, bytes);
            assert_eq!(cut(&mut events, FIRST_PAGE), next, "{count} of {bytes}");
            assert_eq!(events.len(), kept, "{count} of {bytes}");
        }
        assert_eq!(cut(&mut page(400, 1), 400), PAGE);
        assert_eq!(cut(&mut page(1, 1), 1), 2, "after a heavy one they grow again");
        assert_eq!(cut(&mut Vec::new(), 7), 7);
    }
}
