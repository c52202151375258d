//! Somebody tells a run something while it goes on.

use std::sync::Arc;

use crate::clock::Clock;
use crate::domain::answer;
use crate::domain::ids::MessageId;
use crate::domain::message::Content;
use crate::store::{GuestDecide, GuestDecision, Owner};

/// The decision to let a run know something before its next model call. A run that waits for people
/// goes on waiting.
pub fn steer(clock: &Clock, message_id: MessageId, content: Content) -> GuestDecide {
    let clock = clock.clone();
    Arc::new(move |locked| {
        let mut folded = super::fold(locked)?;
        let log_bytes = locked.facts.iter().map(|fact| fact.data.len() as u64).sum();
        match answer::steer(&folded, log_bytes, message_id, &content) {
            Err(refusal) => Ok(GuestDecision::Refuse(refusal)),
            Ok(event) => super::append(locked, &mut folded, &[event], |_| Owner::Keep, clock.now()),
        }
    })
}
