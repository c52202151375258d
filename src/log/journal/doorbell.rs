//! What waits to be written, and the bell that says so.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::log::lane::Lane;
use crate::store::{Append, CreateOutcome, NewRun, Result};

/// Creations that may wait for one flush; more are refused, since they would wait for too long.
const MAX_WAITING_CREATES: usize = 10_000;
/// Creations in one flush.
const CREATES_PER_FLUSH: usize = 512;
/// Runs in one flush.
const LANES_PER_FLUSH: usize = 1_024;
/// Text of one run beyond which a flush begins at once.
const FULL_AT: usize = 256 * 1024;

/// Where lanes tell the journal that something waits.
pub struct Doorbell {
    inbox: Mutex<Inbox>,
    rung: Notify,
}

#[derive(Default)]
struct Inbox {
    lanes: Vec<Arc<Lane>>,
    creates: Vec<Create>,
    /// Taken from their lanes by the loop of appends, which leaves them to the loop of turns.
    spoken: Vec<(Append, Arc<Lane>)>,
    urgent: bool,
}

impl Inbox {
    const fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.creates.is_empty() && self.spoken.is_empty()
    }

    /// Turns for a flush: as many as may be, and one a conversation at most.
    fn take_turns(&mut self) -> Vec<Create> {
        let mut seen = HashSet::new();
        let (mut now, mut later) = (Vec::new(), Vec::new());
        for create in std::mem::take(&mut self.creates) {
            let is_first = create.run.turn.is_none_or(|turn| seen.insert(turn.conversation_id));
            let taken = is_first && now.len() < CREATES_PER_FLUSH;
            if taken { &mut now } else { &mut later }.push(create);
        }
        self.creates = later;
        now
    }
}

/// A creation, and who waits for it.
pub(super) struct Create {
    pub(super) run: NewRun,
    pub(super) reply: oneshot::Sender<Result<CreateOutcome>>,
}

/// What one flush takes along.
pub(super) struct Taken {
    pub(super) creates: Vec<Create>,
    pub(super) lanes: Vec<Arc<Lane>>,
    pub(super) spoken: Vec<(Append, Arc<Lane>)>,
}

impl Doorbell {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { inbox: Mutex::default(), rung: Notify::new() })
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing waits, and whether a flush is to begin at once.
    pub(super) fn looked_at(&self) -> (bool, bool) {
        let inbox = self.inbox();
        (inbox.is_empty(), inbox.urgent)
    }

    /// Resolves when something comes that the journal must look at.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
    }

    /// Takes what may go together: for turns, one creation a conversation.
    pub(super) fn take(&self, turns: bool) -> Taken {
        let mut inbox = self.inbox();
        let creates = if turns {
            inbox.take_turns()
        } else {
            take_some(&mut inbox.creates, CREATES_PER_FLUSH)
        };
        let lanes = take_some(&mut inbox.lanes, LANES_PER_FLUSH);
        let spoken = take_some(&mut inbox.spoken, LANES_PER_FLUSH);
        inbox.urgent = !inbox.is_empty();
        Taken { creates, lanes, spoken }
    }

    /// How much of one run makes a flush begin at once.
    pub(in crate::log) const fn full_at(&self) -> usize {
        FULL_AT
    }

    /// A lane has something to write.
    pub(in crate::log) fn list(&self, lane: Arc<Lane>, urgent: bool) {
        let mut inbox = self.inbox();
        // The journal waits for the first thing to come and for urgent ones, not for each.
        let ring = inbox.is_empty() || (urgent && !inbox.urgent);
        inbox.lanes.push(lane);
        inbox.urgent |= urgent;
        drop(inbox);
        if ring {
            self.rung.notify_one();
        }
    }

    /// What a lane on the list has got meanwhile cannot wait.
    pub(in crate::log) fn hurry(&self) {
        let mut inbox = self.inbox();
        let ring = !inbox.urgent;
        inbox.urgent = true;
        drop(inbox);
        if ring {
            self.rung.notify_one();
        }
    }

    /// Something is said in a conversation, or its turn is over: always urgent, for it ends a step.
    pub(super) fn speak(&self, append: Append, lane: Arc<Lane>) {
        let mut inbox = self.inbox();
        let ring = !inbox.urgent || inbox.is_empty();
        inbox.spoken.push((append, lane));
        inbox.urgent = true;
        drop(inbox);
        if ring {
            self.rung.notify_one();
        }
    }

    /// A run is to be created; `false` when too many wait already.
    pub(super) fn create(&self, create: Create) -> bool {
        let mut inbox = self.inbox();
        if inbox.creates.len() >= MAX_WAITING_CREATES {
            return false;
        }
        inbox.creates.push(create);
        let ring = !inbox.urgent || inbox.creates.len() == 1;
        inbox.urgent = true;
        drop(inbox);
        if ring {
            self.rung.notify_one();
        }
        true
    }
}

fn take_some<T>(from: &mut Vec<T>, most: usize) -> Vec<T> {
    if from.len() <= most {
        return std::mem::take(from);
    }
    let rest = from.split_off(most);
    std::mem::replace(from, rest)
}
