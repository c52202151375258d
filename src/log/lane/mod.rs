//! One driven run's way into the journal: it gives seqs, merges what waits, and holds the fence.
//!
//! The driver pushes; the journal takes what waits, writes it, and says what became of it. After a
//! miss the lane is closed, and what nobody has seen waits in it, until the driver has read the row
//! again and either goes on ([`Lane::reopen`]) or stops.

mod waiting;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::conversation::message::Spoken;
use crate::domain::event::{Entry, Event, EventType};
use crate::domain::ids::RunId;
use crate::domain::limits;
use crate::domain::time::Timestamp;
use crate::store::{Append, RunRecord, RunUpdate};

use super::journal::Doorbell;
use super::live::Watched;

pub use waiting::Unseen;
use waiting::Waiting;

/// Bytes of text that one delta has at most: beyond it the next one begins.
const MAX_DELTA_BYTES: usize = 16 * 1024;

/// A driven run's way into the journal.
pub struct Lane {
    /// Which run.
    pub run_id: RunId,
    /// Its tail and its readers.
    pub watch: Watched,
    doorbell: Arc<Doorbell>,
    state: Mutex<State>,
    /// Rung when something was written, or the lane was closed.
    moved: Notify,
}

struct State {
    rev: i32,
    next_seq: i32,
    committed: i32,
    log_bytes: u64,
    waiting: Vec<Waiting>,
    waiting_bytes: usize,
    update: Option<RunUpdate>,
    in_flight: Vec<Entry>,
    in_flight_update: Option<RunUpdate>,
    listed: bool,
    closed: Option<Closed>,
    ending: Option<Box<RunRecord>>,
}

/// Why a lane takes nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The fence did not hold, or somebody wants the driver to look: read the row again.
    Missed,
    /// The database refused what this run wrote.
    Rejected,
}

/// How soon facts are flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// At once: something waits for them.
    AtOnce,
    /// With the next text: they only tell what has begun. A model that answers quickly saves a flush.
    WithText,
}

impl Lane {
    /// A lane for a run that this node has claimed with `rev`, whose log ends at `last_seq`.
    pub fn new(
        run_id: RunId,
        rev: i32,
        last_seq: i32,
        log_bytes: u64,
        watch: Watched,
        doorbell: Arc<Doorbell>,
    ) -> Arc<Self> {
        if watch.head() != Some(last_seq) {
            watch.begin_tail(last_seq);
        }
        Arc::new(Self {
            run_id,
            watch,
            doorbell,
            state: Mutex::new(State {
                rev,
                next_seq: last_seq + 1,
                committed: last_seq,
                log_bytes,
                waiting: Vec::new(),
                waiting_bytes: 0,
                update: None,
                in_flight: Vec::new(),
                in_flight_update: None,
                listed: false,
                closed: None,
                ending: None,
            }),
            moved: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can be left half-done in a way that matters: a lane whose run
        // panicked is thrown away.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds facts and what they make of the row. Returns the last one's seq.
    ///
    /// # Errors
    /// Only if an event cannot be written as JSON, which none of our types allows.
    pub fn push_facts(
        self: &Arc<Self>,
        events: &[Event],
        update: RunUpdate,
        at: Timestamp,
        haste: Haste,
    ) -> serde_json::Result<i32> {
        let mut state = self.state();
        for event in events {
            let entry = event.entry(self.run_id, state.next_seq, at)?;
            state.next_seq += 1;
            state.log_bytes += entry.data.len() as u64;
            state.waiting_bytes += entry.data.len();
            state.waiting.push(Waiting::Fact(entry));
        }
        let last = state.next_seq - 1;
        // What waits for the same flush may have changed the open actions, or said something.
        let (actions, spoken) = match state.update.take() {
            None => (update.actions, update.spoken),
            Some(before) => (update.actions.or(before.actions), and(before.spoken, update.spoken)),
        };
        state.update = Some(RunUpdate { fact_seq: last, actions, spoken, ..update });
        self.list(state, haste == Haste::AtOnce);
        Ok(last)
    }

    /// Adds the last facts of a run. Once they are durable, `record` is remembered as how it ended.
    ///
    /// # Errors
    /// As [`Lane::push_facts`].
    pub fn push_last_facts(
        self: &Arc<Self>,
        events: &[Event],
        update: RunUpdate,
        at: Timestamp,
        mut record: RunRecord,
    ) -> serde_json::Result<i32> {
        {
            let mut state = self.state();
            let offset = i32::try_from(events.len()).unwrap_or(0);
            record.last_seq = state.next_seq - 1 + offset;
            update.apply(&mut record.row);
            record.row.fact_seq = record.last_seq;
            state.ending = Some(Box::new(record));
        }
        self.push_facts(events, update, at, Haste::AtOnce)
    }

    /// Adds a piece of text. Pieces of the same kind that wait for the same flush become one event.
    pub fn push_delta(
        self: &Arc<Self>,
        event_type: EventType,
        step: i32,
        content: &str,
        at: Timestamp,
    ) {
        if content.is_empty() {
            return;
        }
        let mut state = self.state();
        let state_ref = &mut *state;
        state_ref.waiting_bytes += content.len();
        state_ref.log_bytes += content.len() as u64;
        match state_ref.waiting.last_mut() {
            Some(Waiting::Delta { event_type: kind, step: of, content: text, .. })
                if *kind == event_type
                    && *of == step
                    && text.len() + content.len() <= MAX_DELTA_BYTES =>
            {
                text.push_str(content);
            }
            Some(Waiting::Delta { .. } | Waiting::Fact(_)) | None => {
                let seq = state_ref.next_seq;
                state_ref.next_seq += 1;
                let content = content.to_owned();
                state_ref.waiting.push(Waiting::Delta { seq, event_type, step, at, content });
            }
        }
        let full = state_ref.waiting_bytes >= self.doorbell.full_at();
        self.list(state, full);
    }

    /// Puts the lane on the journal's list, if it is not there yet.
    fn list(self: &Arc<Self>, mut state: MutexGuard<'_, State>, urgent: bool) {
        let fresh = !state.listed && state.closed.is_none();
        state.listed |= fresh;
        drop(state);
        if fresh {
            self.doorbell.list(self.clone(), urgent);
        } else if urgent {
            self.doorbell.hurry();
        }
    }

    /// Takes everything that waits, for one flush. `None` when there is nothing, when the lane is
    /// closed, or while an earlier flush of it is unsettled.
    ///
    /// # Errors
    /// Never for valid text.
    pub(super) fn take(&self) -> serde_json::Result<Option<Append>> {
        let mut state = self.state();
        state.listed = false;
        if state.closed.is_some() || state.waiting.is_empty() || !state.in_flight.is_empty() {
            return Ok(None);
        }
        let mut entries = Vec::with_capacity(state.waiting.len());
        for waiting in std::mem::take(&mut state.waiting) {
            entries.push(waiting.entry(self.run_id)?);
        }
        state.waiting_bytes = 0;
        state.in_flight.clone_from(&entries);
        let update = state.update.take();
        state.in_flight_update.clone_from(&update);
        Ok(Some(Append { run_id: self.run_id, rev: state.rev, entries, update }))
    }

    /// What was taken is written: show it. Returns whether the run came to rest with it.
    pub(super) fn written(self: &Arc<Self>) -> bool {
        let mut state = self.state();
        let entries = std::mem::take(&mut state.in_flight);
        state.in_flight_update = None;
        if let Some(last) = entries.last() {
            state.committed = last.seq;
        }
        let more = !state.waiting.is_empty();
        let urgent = state.update.is_some();
        let last = entries.last().filter(|entry| entry.event_type.is_final());
        let ending = last.and_then(|last| Some((state.ending.take()?, last.clone())));
        drop(state);
        if let Some((mut record, last)) = ending {
            // Before the event is shown: whoever sees it asks for the run next.
            record.newest_fact = Some(last);
            self.watch.remember(*record);
        }
        let rests = entries.last().is_some_and(|last| last.event_type.is_rest());
        self.watch.publish(entries);
        self.moved.notify_waiters();
        if more {
            self.list(self.state(), urgent);
        }
        rests
    }

    /// What was taken is not written, and nothing will be until the driver has looked.
    pub(super) fn missed(&self, why: Closed) {
        let mut state = self.state();
        state.closed.get_or_insert(why);
        // Back in front of what came later: nobody has seen it, and its seqs may be somebody else's.
        let taken = std::mem::take(&mut state.in_flight);
        let later = std::mem::take(&mut state.waiting);
        state.waiting = taken.into_iter().map(Waiting::Fact).chain(later).collect();
        if state.update.is_none() {
            state.update = state.in_flight_update.take();
        }
        drop(state);
        self.moved.notify_waiters();
    }

    /// Resolves with why the lane is closed, once it is.
    pub async fn closed(&self) -> Closed {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if let Some(why) = self.state().closed {
                return why;
            }
            moved.await;
        }
    }

    /// Resolves once everything up to `seq` is durable.
    ///
    /// # Errors
    /// Why it cannot become so: the lane was closed.
    pub async fn flushed(&self, seq: i32) -> Result<(), Closed> {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.state();
                if state.committed >= seq {
                    return Ok(());
                }
                if let Some(why) = state.closed {
                    return Err(why);
                }
            }
            moved.await;
        }
    }

    /// Whether as much waits as may wait.
    pub fn is_full(&self) -> bool {
        self.state().waiting_bytes >= limits::MAX_UNFLUSHED_BYTES
    }

    /// Resolves once there is room again.
    pub async fn room(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if !self.is_full() {
                return;
            }
            moved.await;
        }
    }

    /// Events and bytes of the log, what waits included.
    pub fn size(&self) -> (i32, u64) {
        let state = self.state();
        (state.next_seq - 1, state.log_bytes)
    }

    /// The seq that the next event gets.
    pub fn next_seq(&self) -> i32 {
        self.state().next_seq
    }

    /// The fence that the lane's appends name.
    pub fn rev(&self) -> i32 {
        self.state().rev
    }

    /// Closes the lane and waits until the flush that has something of it, if any, is settled.
    pub async fn quiesce(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let mut state = self.state();
                state.closed.get_or_insert(Closed::Missed);
                if state.in_flight.is_empty() {
                    return;
                }
            }
            moved.await;
        }
    }

    /// What of a quiesced lane nobody has seen and nobody will: its run was lost.
    pub fn abandon(&self) -> Vec<Unseen> {
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.into_iter().filter_map(Waiting::unseen).collect()
    }

    /// Opens a quiesced lane behind what others wrote. Returns what nobody has seen, in order: the
    /// driver pushes again what still holds.
    pub fn reopen(&self, rev: i32, last_seq: i32, log_bytes: u64) -> Vec<Unseen> {
        let mut state = self.state();
        let unseen =
            std::mem::take(&mut state.waiting).into_iter().filter_map(Waiting::unseen).collect();
        state.rev = rev;
        state.next_seq = last_seq + 1;
        state.committed = last_seq;
        state.log_bytes = log_bytes;
        state.waiting_bytes = 0;
        state.update = None;
        state.in_flight_update = None;
        state.ending = None;
        state.closed = None;
        drop(state);
        self.watch.begin_tail(last_seq);
        unseen
    }
}

fn and(before: Option<Box<Spoken>>, later: Option<Box<Spoken>>) -> Option<Box<Spoken>> {
    match before {
        Some(before) => Some(before.and(later)),
        None => later,
    }
}
