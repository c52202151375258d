//! What one flush carries, with those who wait for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use crate::log::lane::{Closed, Lane};
use crate::store::{Append, Batch, CreateOutcome, NewRun, Result, StoreError};

use super::{Journal, source_of};

/// Those who wait for creations, in their order.
pub(super) type Replies = Vec<oneshot::Sender<Result<CreateOutcome>>>;

/// What a flush carries, with those who wait for it: replies belong to creations, lanes to appends.
#[derive(Default)]
pub(super) struct Load {
    pub(super) creates: Vec<NewRun>,
    pub(super) replies: Replies,
    pub(super) appends: Vec<Append>,
    pub(super) lanes: Vec<Arc<Lane>>,
}

impl Load {
    pub(super) fn is_empty(&self) -> bool {
        self.creates.is_empty() && self.appends.is_empty()
    }

    /// It as a batch of this loop, with a number of its own, and those who wait.
    pub(super) fn into_batch(self, journal: &Journal, of: i16) -> (Batch, Replies, Vec<Arc<Lane>>) {
        let batch = Batch {
            node_id: journal.node_id(),
            lane: of,
            number: journal.numbers.fetch_add(1, Ordering::Relaxed),
            at: journal.clock.now(),
            creates: self.creates,
            appends: self.appends,
        };
        (batch, self.replies, self.lanes)
    }

    /// Two halves, or the load itself when it is a single thing.
    pub(super) fn halves(mut self) -> std::result::Result<(Self, Self), Self> {
        let (creates, appends) = (self.creates.len(), self.appends.len());
        if creates + appends <= 1 {
            return Err(self);
        }
        // Creations apart from appends first, then each kind in the middle.
        let (creates_at, appends_at) = match (creates, appends) {
            (0, _) => (0, appends / 2),
            (_, 0) => (creates / 2, 0),
            (_, _) => (creates, 0),
        };
        let second = Self {
            creates: self.creates.split_off(creates_at),
            replies: self.replies.split_off(creates_at),
            appends: self.appends.split_off(appends_at),
            lanes: self.lanes.split_off(appends_at),
        };
        Ok((self, second))
    }

    /// The one thing in it is what the database refuses.
    pub(super) fn blame(self, error: StoreError) {
        for lane in &self.lanes {
            tracing::error!(run_id = %lane.run_id, source = source_of(&error), "a run's events were refused");
            lane.missed(Closed::Rejected);
        }
        refuse(self.replies, error);
    }
}

/// Tells all who wait why nothing was created.
pub(super) fn refuse(replies: Replies, error: StoreError) {
    let mut replies = replies.into_iter();
    let Some(first) = replies.next() else { return };
    for reply in replies {
        let _ = reply.send(Err(error.again()));
    }
    let _ = first.send(Err(error));
}
