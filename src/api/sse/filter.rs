//! Which events a reader wants to see.

use crate::api::{ApiError, query};
use crate::domain::event::EventType;

/// Which types of events a reader wants, as bits by [`EventType::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFilter(u64);

impl EventFilter {
    /// All of them.
    pub const ALL: Self = Self(u64::MAX);

    /// Reads a list like `run.*,message.delta`.
    ///
    /// # Errors
    /// `validation_failed` for a pattern that matches no type: it is misspelt.
    pub fn parse(patterns: &str) -> Result<Self, ApiError> {
        let mut bits = 0;
        for pattern in patterns.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let matched = EventType::ALL
                .iter()
                .filter(|event_type| matches(pattern, event_type.as_str()))
                .fold(0, |bits, event_type| bits | bit(*event_type));
            // What the server says about the stream itself passes anyway.
            let ours = ["stream.gap", "stream.end"].iter().any(|name| matches(pattern, name));
            if matched == 0 && !ours {
                let must = format!(
                    "has the pattern {pattern:?}, which matches no event type; \
                     write for example types=run.*,message.delta"
                );
                return Err(query::invalid("types", &must));
            }
            bits |= matched;
        }
        Ok(Self(bits))
    }

    /// Final events pass every filter: they are how a reader knows that it is over.
    pub fn lets(self, event_type: EventType) -> bool {
        self.0 & bit(event_type) != 0 || event_type.is_final()
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        Some(prefix) => prefix.ends_with('.') && name.starts_with(prefix),
        None => name == pattern,
    }
}

fn bit(event_type: EventType) -> u64 {
    1_u64.checked_shl(u32::try_from(event_type.code()).unwrap_or(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_lets_through_what_it_names_and_every_final_event() {
        let filter = EventFilter::parse("run.*, message.delta").unwrap();
        for (event_type, passes) in [
            (EventType::RunQueued, true),
            (EventType::MessageDelta, true),
            (EventType::MessageCompleted, false),
            (EventType::StepStarted, false),
        ] {
            assert_eq!(filter.lets(event_type), passes, "{event_type:?}");
        }
        let filter = EventFilter::parse("message.*").unwrap();
        assert!(filter.lets(EventType::RunCompleted) && !filter.lets(EventType::RunRunning));
        assert!(EventFilter::parse("stream.end").unwrap().lets(EventType::RunFailed));
        assert!(EventFilter::parse("*").unwrap().lets(EventType::StepStarted));
        for wrong in ["runs.*", "message", "message.delt*", "*.delta", "run.*,x"] {
            assert!(EventFilter::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_type_has_a_bit_of_its_own() {
        let all: Vec<u64> = EventType::ALL.iter().map(|t| bit(*t)).collect();
        assert!(all.iter().all(|bit| *bit != 0));
        assert_eq!(all.iter().fold(0, |sum, bit| sum | bit).count_ones() as usize, all.len());
    }
}
