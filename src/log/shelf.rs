//! What was read from the store a moment ago, for those who ask for the same.
//!
//! Many read the same: the tabs of a dashboard, clients that come back all at once, all readers of a
//! run that another node drives. Events never change and neither do ended runs, so what one of them
//! read serves the others, for two seconds: what is erased or compacted on another node is gone here
//! that much later, at most.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::ids::{RunId, WorkspaceId};
use crate::store::RunRecord;

use super::page::Page;

/// How long something stays.
const KEPT: Duration = Duration::from_secs(2);
/// Bytes of pages that stay.
const PAGE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of runs that stay.
const RUN_BYTES: usize = 8 * 1024 * 1024;
/// What a thing takes besides its text, roughly.
const OVERHEAD: usize = 512;

/// Where a page is: whose, of which run, behind which event.
type Place = (WorkspaceId, RunId, i32);

/// What was read a moment ago.
pub struct Shelf {
    pages: Mutex<Board<Place, Page>>,
    runs: Mutex<Board<RunId, Arc<RunRecord>>>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { pages: Board::of(PAGE_BYTES), runs: Board::of(RUN_BYTES) }
    }
}

impl Shelf {
    /// The page behind this event.
    pub fn page(&self, place: Place) -> Option<Page> {
        lock(&self.pages).get(&place)
    }

    /// Keeps a page, which holds what comes behind this event.
    pub fn keep_page(&self, place: Place, page: Page) {
        let weight = page.weight();
        lock(&self.pages).put(place, page, weight);
    }

    /// A run that has ended.
    pub fn run(&self, run_id: RunId) -> Option<Arc<RunRecord>> {
        lock(&self.runs).get(&run_id)
    }

    /// Keeps a run, if it has ended.
    pub fn keep_run(&self, run: &RunRecord) {
        if run.row.status.is_final() {
            let events = [&run.first, &run.newest_fact];
            let weight = events.iter().filter_map(|e| e.as_ref()).map(|e| e.data.len()).sum();
            lock(&self.runs).put(run.row.run_id, Arc::new(run.clone()), weight);
        }
    }

    /// Forgets a run: it was erased here.
    pub fn forget(&self, run_id: RunId) {
        lock(&self.runs).remove(|of| *of == run_id);
        lock(&self.pages).remove(|(_, of, _)| *of == run_id);
    }

    /// Lets go of what was there for long enough.
    pub fn let_go(&self) {
        let now = Instant::now();
        lock(&self.pages).let_go(now);
        lock(&self.runs).let_go(now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever a panic left here can be read again from the store.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Things of one kind, oldest first.
struct Board<K, V> {
    things: HashMap<K, Thing<V>>,
    order: VecDeque<(Instant, K)>,
    bytes: usize,
    most: usize,
}

struct Thing<V> {
    value: V,
    since: Instant,
    weight: usize,
}

impl<K: Hash + Eq + Copy, V: Clone> Board<K, V> {
    fn of(most: usize) -> Mutex<Self> {
        Mutex::new(Self { things: HashMap::new(), order: VecDeque::new(), bytes: 0, most })
    }

    fn get(&self, key: &K) -> Option<V> {
        let thing = self.things.get(key)?;
        (thing.since.elapsed() < KEPT).then(|| thing.value.clone())
    }

    fn put(&mut self, key: K, value: V, weight: usize) {
        let (since, weight) = (Instant::now(), weight + OVERHEAD);
        if weight > self.most {
            return;
        }
        self.take(&key);
        self.bytes += weight;
        self.things.insert(key, Thing { value, since, weight });
        self.order.push_back((since, key));
        while self.bytes > self.most && self.drop_oldest() {}
    }

    fn let_go(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(since, _)| now.duration_since(*since) >= KEPT) {
            self.drop_oldest();
        }
    }

    fn remove(&mut self, goes: impl Fn(&K) -> bool) {
        let keys: Vec<K> = self.things.keys().filter(|key| goes(key)).copied().collect();
        keys.iter().for_each(|key| self.take(key));
    }

    fn take(&mut self, key: &K) {
        if let Some(thing) = self.things.remove(key) {
            self.bytes -= thing.weight;
        }
    }

    /// Whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let Some((since, key)) = self.order.pop_front() else { return false };
        // Replaced since: the newer one has a place of its own in the order.
        if self.things.get(&key).is_some_and(|thing| thing.since == since) {
            self.take(&key);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_there_is_found_until_its_time_or_its_place_is_over() {
        let board: Mutex<Board<i32, &str>> = Board::of(3 * (OVERHEAD + 10));
        let mut board = lock(&board);
        for (key, value) in [(1, "one"), (2, "two"), (3, "three")] {
            board.put(key, value, 10);
        }
        assert_eq!(
            (board.get(&1), board.get(&3), board.get(&4)),
            (Some("one"), Some("three"), None)
        );
        board.put(2, "again", 10);
        assert_eq!((board.get(&1), board.get(&2)), (Some("one"), Some("again")));
        board.put(4, "four", 10);
        assert_eq!((board.get(&1), board.get(&2)), (None, Some("again")), "the oldest goes");
        board.put(5, "too large for the board", 4 * OVERHEAD);
        assert_eq!((board.get(&5), board.get(&4)), (None, Some("four")));
        board.remove(|key| *key == 4);
        assert_eq!(board.get(&4), None);
        board.let_go(Instant::now());
        assert_eq!(board.get(&2), Some("again"), "its time is not over");
        board.let_go(Instant::now() + KEPT);
        assert_eq!((board.things.len(), board.order.len(), board.bytes), (0, 0, 0));
    }
}
