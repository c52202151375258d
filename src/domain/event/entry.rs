//! The stored form of events: written once, and read back.

use std::fmt::Write as _;

use bytes::Bytes;
use serde::Deserialize;

use crate::domain::ids::RunId;
use crate::domain::time::Timestamp;

use super::{Event, EventType};

/// What every stored event has, whatever its kind.
#[derive(Debug, Clone, Deserialize)]
pub struct Envelope {
    /// Its place in the log.
    pub seq: i32,
    /// When it was written.
    pub created_at: Timestamp,
}

/// An entry of a log as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub seq: i32,
    /// What kind it is.
    pub event_type: EventType,
    /// The exact text that readers get, one line of JSON.
    pub data: Bytes,
}

/// What is in front of an event's own fields, the same for every event of a run but for three places.
fn open(out: &mut String, event_type: EventType, seq: i32, run_id: RunId, at: Timestamp) {
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{{\"type\":\"{}\",\"seq\":{seq},\"run_id\":\"{run_id}\",\"created_at\":\"{at}\",",
        event_type.as_str()
    );
}

impl Event {
    /// The stored form of this event.
    ///
    /// # Errors
    /// Only if a value inside cannot be JSON, which none of our types allows.
    pub fn entry(&self, run_id: RunId, seq: i32, at: Timestamp) -> serde_json::Result<Entry> {
        let event_type = self.event_type();
        let body = self.body()?;
        let mut data = String::with_capacity(body.len() + 160);
        open(&mut data, event_type, seq, run_id, at);
        // Every body is an object with at least one field: its brace is already there.
        data.push_str(body.strip_prefix('{').unwrap_or(&body));
        Ok(Entry { seq, event_type, data: Bytes::from(data) })
    }
}

impl Entry {
    /// The stored form of a piece of text, written without an intermediate value: this is the hot
    /// path of every token.
    ///
    /// # Errors
    /// Never for a valid `str`; kept because the JSON writer's signature says so.
    pub fn delta(
        event_type: EventType,
        run_id: RunId,
        seq: i32,
        at: Timestamp,
        step: i32,
        content: &str,
    ) -> serde_json::Result<Self> {
        let mut data = String::with_capacity(content.len() + 176);
        open(&mut data, event_type, seq, run_id, at);
        let _ = write!(data, "\"step\":{step},\"content\":");
        let mut data = data.into_bytes();
        serde_json::to_writer(&mut data, content)?;
        data.push(b'}');
        Ok(Self { seq, event_type, data: Bytes::from(data) })
    }

    /// The text as `str`, as databases want it.
    pub fn text(&self) -> &str {
        // `data` is only ever made from a String, from serde_json's output or from a text column.
        std::str::from_utf8(&self.data).unwrap_or_default()
    }

    /// The kind that a stored text says it is.
    pub fn type_of(data: &[u8]) -> Option<EventType> {
        let rest = data.strip_prefix(b"{\"type\":\"")?;
        let end = memchr::memchr(b'"', rest)?;
        EventType::from_word(std::str::from_utf8(rest.get(..end)?).ok()?)
    }

    /// When it was written.
    ///
    /// # Errors
    /// When the stored text has no time.
    pub fn created_at(&self) -> serde_json::Result<Timestamp> {
        serde_json::from_slice(&self.data).map(|envelope: Envelope| envelope.created_at)
    }

    /// Reads the event and when it was written.
    ///
    /// # Errors
    /// When the stored text is not an event of its kind.
    pub fn read(&self) -> serde_json::Result<(Event, Timestamp)> {
        let envelope: Envelope = serde_json::from_slice(&self.data)?;
        Ok((Event::read(self.event_type, &self.data)?, envelope.created_at))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::event::Delta;

    #[test]
    fn a_delta_reads_back_as_the_same_event_either_way_it_was_written() {
        let run_id = RunId::from_uuid(Uuid::from_u128(7));
        let at = Timestamp::from_millis(1_795_340_613_042);
        let content = "a \"quoted\" \u{0} \u{1F600}\n";
        let event = Event::MessageDelta(Delta { step: 2, content: content.to_owned() });
        let slow = event.entry(run_id, 17, at).unwrap_or_else(|e| unreachable!("{e}"));
        let fast = Entry::delta(EventType::MessageDelta, run_id, 17, at, 2, content)
            .unwrap_or_else(|e| unreachable!("{e}"));
        assert_eq!(slow, fast);
        assert_eq!(fast.read().ok(), Some((event, at)));
        assert_eq!(Entry::type_of(&fast.data), Some(EventType::MessageDelta));
        assert_eq!(
            fast.text(),
            "{\"type\":\"message.delta\",\"seq\":17,\"run_id\":\"run_00000000000000000000000000000007\",\
             \"created_at\":\"2026-11-22T09:43:33.042Z\",\"step\":2,\
             \"content\":\"a \\\"quoted\\\" \\u0000 😀\\n\"}"
        );
    }
}
