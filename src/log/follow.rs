//! A cursor over one run's log: `(run_id, after)`. It owns no queue; a slow reader costs nothing.

use crate::domain::event::Entry;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::store::{LogRange, Result, SharedStore};

use super::live::{Glance, Watched};

/// Events that one page of the store has.
const PAGE: i64 = 500;

/// A reader's place in a log.
pub struct Cursor {
    store: SharedStore,
    watch: Watched,
    workspace_id: WorkspaceId,
    run_id: RunId,
    after: i32,
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
        Self { store, watch, workspace_id, run_id, after }
    }

    /// The last event that it gave.
    pub fn position(&self) -> i32 {
        self.after
    }

    /// The next events, at least one; waits until there are some. Cancel-safe: events that were not
    /// returned will be. Behind the final event nothing comes any more: do not ask again.
    ///
    /// # Errors
    /// When the store cannot be read. The cursor has not moved and may be asked again.
    pub async fn next(&mut self) -> Result<Vec<Entry>> {
        loop {
            let Self { store, watch, workspace_id, run_id, after } = self;
            let changed = watch.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let events = match watch.glance(*after) {
                Glance::Events(events) => events,
                Glance::Nothing => Vec::new(),
                Glance::ReadStore => {
                    let range =
                        LogRange { above: *after, below: i32::MAX, limit: PAGE, descending: false };
                    store.read_log(*workspace_id, *run_id, range).await?.unwrap_or_default()
                }
            };
            if let Some(last) = events.last() {
                *after = last.seq;
                return Ok(events);
            }
            let _asleep = watch.sleeper(*after);
            changed.await;
        }
    }
}
