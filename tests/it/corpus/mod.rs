//! Every event that a released version could write, one file a version, one line an event. Logs are
//! never rewritten: whatever is in these files must stay readable for ever. When an event grows, add a
//! file; never change one.

use std::collections::HashSet;

use bytes::Bytes;
use stepwell::domain::event::{Entry, Envelope, EventType};

const VERSIONS: &[(&str, &str)] = &[("0.1.0", include_str!("0.1.0.jsonl"))];

#[test]
fn every_event_that_was_ever_written_can_still_be_read() {
    for (version, lines) in VERSIONS {
        for line in lines.lines() {
            let event_type = Entry::type_of(line.as_bytes())
                .unwrap_or_else(|| panic!("{version}: no known type: {line}"));
            let envelope: Envelope = serde_json::from_str(line).expect("an envelope");
            let entry = Entry { seq: envelope.seq, event_type, data: Bytes::from(line) };
            let (event, at) =
                entry.read().unwrap_or_else(|error| panic!("{version}: {error}: {line}"));
            // What was read says the same when it is written again, apart from fields that came since.
            let run_id = serde_json::from_str::<serde_json::Value>(line).expect("JSON")["run_id"]
                .as_str()
                .expect("run_id")
                .parse()
                .expect("a run id");
            let again = event.entry(run_id, entry.seq, at).expect("an entry");
            let old: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let new: serde_json::Value = serde_json::from_slice(&again.data).expect("JSON");
            for (field, value) in old.as_object().expect("an object") {
                assert_eq!(new.get(field), Some(value), "{version}: {field} of {line}");
            }
        }
    }
}

#[test]
fn the_newest_version_has_a_sample_of_every_type() {
    let (_, newest) = VERSIONS.last().expect("a version");
    let sampled: HashSet<_> =
        newest.lines().filter_map(|line| Entry::type_of(line.as_bytes())).collect();
    for event_type in EventType::ALL {
        assert!(sampled.contains(event_type), "no sample of {}", event_type.as_str());
    }
}
