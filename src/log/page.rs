//! Events as they stand in a stream: framed once, and shared by all who read them.
//!
//! The frame is that of server-sent events, which is what every stream of ours is made of. It is put
//! around the events here, and not where streams are served, because there it would be done for every
//! reader anew, and a reader that stopped reading would keep a copy of its own.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::domain::event::{Entry, EventType};

/// What surrounds an event's text: the longest type, a seq of ten digits, and the field names.
const FRAME_BYTES: usize = 64;

/// Events that follow each other, at least one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Page {
    /// The seq of the first.
    first: i32,
    /// What each is, and where its frame ends in `text`.
    marks: Arc<[Mark]>,
    /// How many of the first marks were read before.
    skipped: usize,
    text: Bytes,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    event_type: EventType,
    end: usize,
}

impl Page {
    /// Frames these events, whose seqs ascend by one; `None` when there is none.
    pub fn of(entries: &[Entry]) -> Option<Self> {
        let first = entries.first()?.seq;
        let size = entries.iter().map(|entry| entry.data.len() + FRAME_BYTES).sum();
        let (mut text, mut marks) = (Vec::with_capacity(size), Vec::with_capacity(entries.len()));
        for entry in entries {
            // Writing to a Vec cannot fail.
            let _ = write!(text, "id: {}\nevent: ", entry.seq);
            text.extend_from_slice(entry.event_type.as_str().as_bytes());
            text.extend_from_slice(b"\ndata: ");
            text.extend_from_slice(&entry.data);
            text.extend_from_slice(b"\n\n");
            marks.push(Mark { event_type: entry.event_type, end: text.len() });
        }
        // What it was too large by would be kept for as long as the page.
        text.shrink_to_fit();
        Some(Self { first, marks: marks.into(), skipped: 0, text: text.into() })
    }

    /// The seq of the first event.
    pub fn first_seq(&self) -> i32 {
        self.first + i32::try_from(self.skipped).unwrap_or(i32::MAX)
    }

    /// The seq of the last event.
    pub fn last_seq(&self) -> i32 {
        self.first - 1 + i32::try_from(self.marks.len()).unwrap_or(i32::MAX)
    }

    /// Whether the last event is a run's last.
    pub fn ends(&self) -> bool {
        self.marks.last().is_some_and(|mark| mark.event_type.is_final())
    }

    /// The page without the events up to `seq`; `None` when nothing is left, or when it begins later.
    pub fn behind(&self, seq: i32) -> Option<Self> {
        let skipped = usize::try_from(seq.checked_add(1)?.checked_sub(self.first)?).ok()?;
        (skipped < self.marks.len()).then(|| Self { skipped, ..self.clone() })
    }

    /// All of it.
    pub fn bytes(&self) -> Bytes {
        self.text.slice(self.offset(self.skipped)..)
    }

    /// Those of its events that `wants` their types; shared, too, when it wants all.
    pub fn only(&self, wants: impl Fn(EventType) -> bool) -> Bytes {
        let left = self.marks.get(self.skipped..).unwrap_or_default();
        if left.iter().all(|mark| wants(mark.event_type)) {
            return self.bytes();
        }
        let mut kept = Vec::new();
        for (index, mark) in (self.skipped..).zip(left) {
            if wants(mark.event_type) {
                let frame = self.text.get(self.offset(index)..mark.end);
                kept.extend_from_slice(frame.unwrap_or_default());
            }
        }
        kept.into()
    }

    /// Those of its events that `wants` their types, each with `prefix` in front of its id: where the
    /// events of several runs share a stream, a seq alone says too little.
    pub fn named(&self, prefix: &str, wants: impl Fn(EventType) -> bool) -> Bytes {
        const ID: &[u8] = b"id: ";
        let left = self.marks.get(self.skipped..).unwrap_or_default();
        let size = self.text.len() + left.len() * prefix.len();
        let mut named = Vec::with_capacity(size);
        for (index, mark) in (self.skipped..).zip(left) {
            let frame = self.text.get(self.offset(index)..mark.end).unwrap_or_default();
            if let Some(rest) = frame.strip_prefix(ID).filter(|_| wants(mark.event_type)) {
                named.extend_from_slice(ID);
                named.extend_from_slice(prefix.as_bytes());
                named.extend_from_slice(rest);
            }
        }
        named.into()
    }

    /// Bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        self.text.len() + self.marks.len() * size_of::<Mark>()
    }

    /// Where the frame of the event at this index begins.
    fn offset(&self, index: usize) -> usize {
        let before = index.checked_sub(1).and_then(|before| self.marks.get(before));
        before.map_or(0, |mark| mark.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: i32, event_type: EventType) -> Entry {
        let data = format!("{{\"type\":\"{}\",\"seq\":{seq}}}", event_type.as_str());
        Entry { seq, event_type, data: Bytes::from(data) }
    }

    fn text(bytes: Bytes) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    const QUEUED: &str = "id: 7\nevent: run.queued\ndata: {\"type\":\"run.queued\",\"seq\":7}\n\n";
    const DELTA: &str =
        "id: 8\nevent: message.delta\ndata: {\"type\":\"message.delta\",\"seq\":8}\n\n";
    const DONE: &str =
        "id: 9\nevent: run.completed\ndata: {\"type\":\"run.completed\",\"seq\":9}\n\n";

    fn page() -> Page {
        let types = [EventType::RunQueued, EventType::MessageDelta, EventType::RunCompleted];
        let entries: Vec<Entry> = (7..).zip(types).map(|(seq, t)| entry(seq, t)).collect();
        Page::of(&entries).unwrap()
    }

    #[test]
    fn events_are_framed_exactly_and_in_one_piece() {
        assert_eq!(text(page().bytes()), [QUEUED, DELTA, DONE].concat());
        assert_eq!((page().last_seq(), page().ends()), (9, true));
        assert!(Page::of(&[]).is_none());
    }

    #[test]
    fn a_page_can_be_gone_on_with_from_any_of_its_events() {
        assert_eq!(text(page().behind(6).unwrap().bytes()), [QUEUED, DELTA, DONE].concat());
        assert_eq!(text(page().behind(7).unwrap().bytes()), [DELTA, DONE].concat());
        assert_eq!(text(page().behind(8).unwrap().bytes()), DONE);
        let rest = page().behind(8).unwrap();
        assert_eq!((rest.first_seq(), rest.last_seq()), (9, 9));
        assert!(page().behind(9).is_none() && page().behind(i32::MAX).is_none());
        assert!(page().behind(5).is_none(), "what is missing in front of it is not passed over");
    }

    #[test]
    fn types_can_be_left_out() {
        let page = page();
        let deltas = |t: EventType| t.is_delta() || t.is_final();
        assert_eq!(text(page.only(deltas)), [DELTA, DONE].concat());
        assert_eq!(text(page.behind(8).unwrap().only(deltas)), DONE);
        assert_eq!(text(page.behind(7).unwrap().only(EventType::is_delta)), DELTA);
        assert_eq!(text(page.only(|_| false)), "");
        assert_eq!(page.only(|_| true).as_ptr(), page.bytes().as_ptr(), "shared");
    }

    #[test]
    fn ids_can_be_named_after_their_run() {
        let named = text(page().behind(7).unwrap().named("run_1:", EventType::is_final));
        assert_eq!(named, DONE.replace("id: 9", "id: run_1:9"));
        let all = text(page().named("r:", |_| true));
        assert!(all.starts_with("id: r:7\n") && all.contains("\n\nid: r:8\n"), "{all}");
    }

    #[test]
    fn the_buffer_never_grows() {
        for event_type in EventType::ALL {
            let entry = entry(i32::MAX, *event_type);
            let page = Page::of(std::slice::from_ref(&entry)).unwrap();
            assert!(page.bytes().len() <= entry.data.len() + FRAME_BYTES);
        }
    }
}
