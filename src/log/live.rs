//! What this process knows of runs that somebody watches or drives.
//!
//! A [`Watch`] is shared by all who look at one run here. While this node drives the run it holds a
//! *tail*: the newest committed events, contiguous, so that readers need no database. A tail is
//! contiguous or empty; it is reset on claim, loss and whenever somebody else wrote to the run.
//!
//! Waking carries no data: whoever wakes looks again, at the tail or in the store.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::domain::event::Entry;
use crate::domain::ids::RunId;
use crate::shutdown::Tasks;
use crate::store::{RunRecord, SharedStore};

use super::shelf::Shelf;
use super::tail::{Glance, Tail};

/// How long an ended run stays in memory.
const ENDED_KEPT: Duration = Duration::from_secs(2);
/// Bytes of events that an ended run keeps in memory; a longer log is read from the store.
const ENDED_TAIL_BYTES: usize = 16 * 1024;
/// Ended runs in memory at most.
const MAX_ENDED: usize = 4_096;
/// How often sleeping cursors of runs driven elsewhere look again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Run ids in one look-up of heads.
const HEADS_PER_QUERY: usize = 1_000;
/// Locks among which the runs are spread.
const SHARDS: usize = 16;

type Shard = Mutex<HashMap<RunId, Arc<Watch>>>;

/// All watches of this process.
pub struct Live {
    shards: [Shard; SHARDS],
    ended: Mutex<VecDeque<(Instant, Watched)>>,
    /// What was read from the store a moment ago.
    pub shelf: Shelf,
}

/// What is known of one run.
pub struct Watch {
    /// Which run.
    pub run_id: RunId,
    state: Mutex<State>,
    /// For cursors: there may be something new.
    changed: Notify,
    /// For those who wait for an end: it may be there.
    rested: Notify,
    /// For the driver: somebody else wrote.
    poked: Notify,
    /// Held by the cursor that reads the store: the others find on the shelf what it read.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// The newest committed events, while this node drives the run.
    tail: Option<Tail>,
    /// The highest seq that anybody here has seen; what sleeping cursors compare heads with.
    seen: i32,
    /// The run as it ended, for a moment.
    ended: Option<Arc<RunRecord>>,
    /// Cursors asleep on a run that is driven elsewhere.
    sleepers: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while one of these locks is held leaves nothing half-done that matters: all they guard
    // can be read again from the store.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Live {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Shard::default()),
            ended: Mutex::default(),
            shelf: Shelf::default(),
        }
    }
}

impl Live {
    fn shard(&self, run_id: RunId) -> &Shard {
        // The last byte of a UUIDv7 is random.
        let index = run_id.uuid().as_bytes().last().copied().unwrap_or(0);
        let [first, ..] = &self.shards;
        self.shards.get(usize::from(index) % SHARDS).unwrap_or(first)
    }

    /// The watch of a run, made if there is none.
    pub fn watch(self: &Arc<Self>, run_id: RunId) -> Watched {
        let mut shard = lock(self.shard(run_id));
        let watch = shard.entry(run_id).or_insert_with(|| {
            Arc::new(Watch {
                run_id,
                state: Mutex::default(),
                changed: Notify::new(),
                rested: Notify::new(),
                poked: Notify::new(),
                reading: tokio::sync::Mutex::default(),
            })
        });
        Watched { watch: watch.clone(), live: self.clone() }
    }

    /// The watch of a run, if somebody has one.
    fn find(self: &Arc<Self>, run_id: RunId) -> Option<Watched> {
        let watch = lock(self.shard(run_id)).get(&run_id).cloned()?;
        Some(Watched { watch, live: self.clone() })
    }

    /// Tells everybody here to look at this run again, its driver included.
    pub fn hint(self: &Arc<Self>, run_id: RunId) {
        if let Some(watch) = self.find(run_id) {
            watch.poked.notify_one();
            watch.wake_all();
        }
    }

    /// Tells cursors here to look at this run again: it has grown on another node.
    pub fn grown(self: &Arc<Self>, run_id: RunId) {
        if let Some(watch) = self.find(run_id) {
            watch.changed.notify_waiters();
        }
    }

    /// Tells everybody here to look at everything again: what was said meanwhile was not heard.
    pub fn look_everywhere(&self) {
        for shard in &self.shards {
            for watch in lock(shard).values() {
                watch.poked.notify_one();
                watch.wake_all();
            }
        }
    }

    /// The run as it ended a moment ago, if it is remembered.
    pub fn ended(self: &Arc<Self>, run_id: RunId) -> Option<Arc<RunRecord>> {
        let watch = self.find(run_id)?;
        lock(&watch.state).ended.clone()
    }

    /// Forgets how a run ended (it was erased).
    pub fn forget(self: &Arc<Self>, run_id: RunId) {
        self.shelf.forget(run_id);
        if let Some(watch) = self.find(run_id) {
            let mut state = lock(&watch.state);
            state.ended = None;
            state.tail = None;
        }
    }

    /// Wakes cursors of runs that are driven elsewhere when their log has grown: one query a second
    /// for all of them. Also lets go of ended runs.
    pub fn start(self: &Arc<Self>, store: SharedStore, tasks: &Tasks) {
        let (live, own) = (self.clone(), tasks.clone());
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(LOOK_AGAIN);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = own.stopped() => return,
                    _ = tick.tick() => {}
                }
                live.let_go();
                live.look_again(&store).await;
            }
        });
    }

    fn let_go(&self) {
        self.shelf.let_go();
        let mut gone = Vec::new();
        let mut ended = lock(&self.ended);
        while let Some((since, _)) = ended.front()
            && (since.elapsed() >= ENDED_KEPT || ended.len() > MAX_ENDED)
        {
            gone.extend(ended.pop_front());
        }
        drop(ended);
        // Dropped outside the lock: a watch's last owner takes its shard's.
        drop(gone);
    }

    async fn look_again(self: &Arc<Self>, store: &SharedStore) {
        let mut asleep: HashMap<RunId, Watched> = HashMap::new();
        for shard in &self.shards {
            for (run_id, watch) in lock(shard).iter() {
                let state = lock(&watch.state);
                if state.sleepers > 0 && state.tail.is_none() {
                    let (watch, live) = (watch.clone(), self.clone());
                    asleep.insert(*run_id, Watched { watch, live });
                }
            }
        }
        let ids: Vec<RunId> = asleep.keys().copied().collect();
        for chunk in ids.chunks(HEADS_PER_QUERY) {
            // A database that is away is no news for readers: they go on sleeping.
            let Ok(heads) = store.heads(chunk).await else { return };
            for (run_id, head) in heads {
                let Some(watch) = asleep.get(&run_id) else { continue };
                if head > lock(&watch.state).seen {
                    watch.wake_all();
                }
            }
        }
    }

    fn drop_watch(&self, watch: &Arc<Watch>) {
        let mut shard = lock(self.shard(watch.run_id));
        // The map's and the caller's: nobody else can come by one without the shard's lock.
        if Arc::strong_count(watch) <= 2 {
            shard.remove(&watch.run_id);
        }
    }
}

/// A share in a run's watch; the last one to go takes the watch along.
pub struct Watched {
    watch: Arc<Watch>,
    live: Arc<Live>,
}

impl Clone for Watched {
    fn clone(&self) -> Self {
        Self { watch: self.watch.clone(), live: self.live.clone() }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.live.drop_watch(&self.watch);
    }
}

impl Watched {
    /// What was read from the store a moment ago.
    pub fn shelf(&self) -> &Shelf {
        &self.live.shelf
    }

    /// Remembers how the run ended, for those who ask in the next moments.
    pub fn remember(&self, record: RunRecord) {
        {
            let mut state = lock(&self.watch.state);
            state.ended = Some(Arc::new(record));
            if state.tail.as_ref().is_some_and(|tail| tail.bytes() > ENDED_TAIL_BYTES) {
                state.tail = None;
            }
        }
        let mut ended = lock(&self.live.ended);
        ended.push_back((Instant::now(), self.clone()));
        let surplus = if ended.len() > MAX_ENDED { ended.pop_front() } else { None };
        drop(ended);
        drop(surplus);
    }
}

impl std::ops::Deref for Watched {
    type Target = Watch;
    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Watch {
    /// Begins a tail behind `head`: this node drives the run from here on.
    pub fn begin_tail(&self, head: i32) {
        let mut state = lock(&self.state);
        state.tail = Some(Tail::new(head));
        state.seen = state.seen.max(head);
        drop(state);
        self.wake_all();
    }

    /// Ends the tail: readers go to the store.
    pub fn end_tail(&self) {
        lock(&self.state).tail = None;
        self.wake_all();
    }

    fn wake_all(&self) {
        self.changed.notify_waiters();
        self.rested.notify_waiters();
    }

    /// Shows committed events to everybody. Call after the commit, and only then.
    pub fn publish(&self, entries: Vec<Entry>) {
        let rests = entries.iter().any(|entry| entry.event_type.is_rest());
        let mut state = lock(&self.state);
        if let Some(last) = entries.last() {
            state.seen = state.seen.max(last.seq);
        }
        if let Some(tail) = &mut state.tail {
            tail.push(entries);
        }
        drop(state);
        self.changed.notify_waiters();
        if rests {
            self.rested.notify_waiters();
        }
    }

    /// What comes after `after`, as far as memory knows.
    pub fn glance(&self, after: i32) -> Glance {
        let mut state = lock(&self.state);
        let Some(tail) = &mut state.tail else { return Glance::ReadStore };
        tail.glance(after)
    }

    /// The newest committed seq, while this node drives the run.
    pub fn head(&self) -> Option<i32> {
        lock(&self.state).tail.as_ref().map(Tail::head)
    }

    /// Resolves when there may be something new. Create it, look, then await it: what happens in
    /// between is not lost.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Resolves when the run may have come to rest. Use it as [`Watch::changed`].
    pub fn rested(&self) -> tokio::sync::futures::Notified<'_> {
        self.rested.notified()
    }

    /// Resolves when the driver must look at the run's row again. One driver awaits it.
    pub async fn poked(&self) {
        self.poked.notified().await;
    }

    /// Tells the driver to look at the run's row again.
    pub fn poke(&self) {
        self.poked.notify_one();
    }

    /// Resolves with the right to read the store for this run, when no other cursor here does.
    pub async fn reading(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.reading.lock().await
    }

    /// Counts a sleeping cursor that has seen everything up to `seen`, for as long as it is held.
    pub fn sleeper(&self, seen: i32) -> Sleeper<'_> {
        let mut state = lock(&self.state);
        state.sleepers += 1;
        state.seen = state.seen.max(seen);
        Sleeper(self)
    }
}

/// A cursor asleep.
pub struct Sleeper<'a>(&'a Watch);

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).sleepers -= 1;
    }
}
