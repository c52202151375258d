//! The newest events of a run that this node drives, so that its readers need no database.
//!
//! A tail is contiguous or empty: what it gives is what the log has behind that place, or nothing.

use std::collections::VecDeque;

use crate::domain::event::Entry;

use super::page::Page;

/// Bytes of events that a tail keeps: a reader further behind reads the store.
const TAIL_BYTES: usize = 64 * 1024;
/// Events that a tail keeps.
const TAIL_EVENTS: usize = 1_024;
/// The newest committed events of one run, contiguous.
pub(super) struct Tail {
    batches: VecDeque<Batch>,
    events: usize,
    bytes: usize,
    head: i32,
}

/// What one flush brought.
struct Batch {
    first: i32,
    events: usize,
    bytes: usize,
    text: Text,
}

/// Framed when somebody reads it first: most runs have no reader.
enum Text {
    Plain(Vec<Entry>),
    Framed(Page),
}

/// What a tail says to a reader.
pub enum Glance {
    /// The next events.
    Events(Page),
    /// Nothing yet: sleep until the watch changes.
    Nothing,
    /// The tail does not reach back so far, or there is none: read the store.
    ReadStore,
}

impl Tail {
    /// Nothing yet, behind `head`.
    pub fn new(head: i32) -> Self {
        Self { batches: VecDeque::new(), events: 0, bytes: 0, head }
    }

    /// The newest seq.
    pub const fn head(&self) -> i32 {
        self.head
    }

    /// Bytes of the events that it has.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds what was committed, in which seqs ascend by one.
    pub fn push(&mut self, entries: Vec<Entry>) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let (first, last) = (first.seq, last.seq);
        if first != self.head + 1 {
            // A hole would be a lie: begin anew behind it.
            *self = Self::new(first - 1);
        }
        self.head = last;
        let (events, bytes) = (entries.len(), entries.iter().map(|e| e.data.len()).sum());
        self.events += events;
        self.bytes += bytes;
        self.batches.push_back(Batch { first, events, bytes, text: Text::Plain(entries) });
        while self.bytes > TAIL_BYTES || self.events > TAIL_EVENTS {
            let Some(old) = self.batches.pop_front() else { break };
            self.events -= old.events;
            self.bytes -= old.bytes;
        }
    }

    /// What comes after `after`, one batch at a time: whoever is further behind asks again.
    pub fn glance(&mut self, after: i32) -> Glance {
        if after >= self.head {
            return Glance::Nothing;
        }
        let next = after + 1;
        let above = self.batches.partition_point(|batch| batch.first <= next);
        let batch = above.checked_sub(1).and_then(|index| self.batches.get_mut(index));
        let page = batch.and_then(Batch::page).and_then(|page| page.behind(after));
        page.map_or(Glance::ReadStore, Glance::Events)
    }
}

impl Batch {
    fn page(&mut self) -> Option<&Page> {
        if let Text::Plain(entries) = &self.text {
            self.text = Text::Framed(Page::of(entries)?);
        }
        match &self.text {
            Text::Framed(page) => Some(page),
            Text::Plain(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::domain::event::EventType;

    fn entries(seqs: std::ops::RangeInclusive<i32>, bytes: usize) -> Vec<Entry> {
        let data = Bytes::from(vec![b'x'; bytes]);
        seqs.map(|seq| Entry { seq, event_type: EventType::MessageDelta, data: data.clone() })
            .collect()
    }

    /// The seqs of what is given, if it is not said to be in the store.
    fn given(tail: &mut Tail, after: i32) -> Option<(i32, i32)> {
        match tail.glance(after) {
            Glance::Events(page) => Some((page.first_seq(), page.last_seq())),
            Glance::Nothing => Some((after, after)),
            Glance::ReadStore => None,
        }
    }

    #[test]
    fn readers_get_what_is_behind_them_batch_by_batch() {
        let mut tail = Tail::new(4);
        assert_eq!(given(&mut tail, 4), Some((4, 4)), "nothing yet");
        tail.push(entries(5..=6, 1));
        tail.push(entries(7..=9, 1));
        assert_eq!(given(&mut tail, 3), None, "before it began");
        assert_eq!(given(&mut tail, 4), Some((5, 6)));
        assert_eq!(given(&mut tail, 5), Some((6, 6)));
        assert_eq!(given(&mut tail, 6), Some((7, 9)));
        assert_eq!(given(&mut tail, 8), Some((9, 9)));
        assert_eq!((given(&mut tail, 9), tail.head()), (Some((9, 9)), 9));
    }

    #[test]
    fn all_readers_get_the_same_bytes() {
        let mut tail = Tail::new(0);
        tail.push(entries(1..=3, 1));
        let mut bytes = || match tail.glance(0) {
            Glance::Events(page) => page.bytes(),
            Glance::Nothing | Glance::ReadStore => Bytes::new(),
        };
        let (one, other) = (bytes(), bytes());
        assert!(!one.is_empty());
        assert_eq!(one.as_ptr(), other.as_ptr());
    }

    #[test]
    fn a_hole_begins_a_new_tail() {
        let mut tail = Tail::new(0);
        tail.push(entries(1..=2, 1));
        tail.push(entries(5..=6, 1));
        assert_eq!(given(&mut tail, 0), None);
        assert_eq!(given(&mut tail, 2), None, "what is missing is in the store");
        assert_eq!(given(&mut tail, 4), Some((5, 6)));
    }

    #[test]
    fn a_tail_lets_go_of_the_oldest() {
        let mut tail = Tail::new(0);
        for first in (1..=100).step_by(10) {
            tail.push(entries(first..=first + 9, 1024));
        }
        assert!(tail.bytes() <= TAIL_BYTES);
        assert_eq!((given(&mut tail, 0), given(&mut tail, 90)), (None, Some((91, 100))));
        tail.push(entries(101..=101, 2 * TAIL_BYTES));
        assert_eq!(
            (tail.bytes(), given(&mut tail, 100), given(&mut tail, 101)),
            (0, None, Some((101, 101)))
        );
    }
}
