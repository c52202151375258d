//! What a driver adds to its run's log.

use crate::domain::event::Event;
use crate::domain::fold::Call;
use crate::domain::ids::CallId;
use crate::domain::plan::Plan;
use crate::domain::write;
use crate::log::lane::Haste;
use crate::store::{Owner, RunUpdate, Said};

use super::{Driver, Stop};

impl Driver {
    /// Adds facts to the log and to the fold. Returns the last one's seq; it is not durable yet.
    pub(in crate::engine) fn push(
        &mut self,
        events: Vec<Event>,
        owner: Owner,
    ) -> Result<i32, Stop> {
        self.add(events, owner, Haste::AtOnce)
    }

    /// The same for facts that nothing waits for: what has begun is told with its first text.
    pub(in crate::engine) fn tell(&mut self, events: Vec<Event>) -> Result<i32, Stop> {
        self.add(events, Owner::Keep, Haste::WithText)
    }

    fn add(&mut self, events: Vec<Event>, owner: Owner, haste: Haste) -> Result<i32, Stop> {
        let at = self.now();
        let first = self.lane.next_seq();
        let before = self.folded.open_actions(self.run_id());
        for (seq, event) in (first..).zip(&events) {
            if let Err(error) = self.folded.apply(seq, at, event.clone()) {
                tracing::error!(run_id = %self.run_id(), %error, "own events do not fit the log");
                return Err(Stop::Defect);
            }
        }
        let said = Said { run_id: self.run_id(), events: &events, at };
        let update = RunUpdate::since(&before, &self.folded, said, owner);
        let pushed = if self.folded.status.is_final() {
            self.lane.push_last_facts(&events, update, at, self.record.clone())
        } else {
            self.lane.push_facts(&events, update, at, haste)
        };
        pushed.map_err(|error| {
            tracing::error!(run_id = %self.run_id(), %error, "an event cannot be encoded");
            Stop::Defect
        })
    }

    /// Waits until everything up to `seq` is durable.
    pub(in crate::engine) async fn flushed(&self, seq: i32) -> Result<(), Stop> {
        self.lane.flushed(seq).await.map_err(Stop::Look)
    }

    /// The open step's calls of these ids, as events.
    pub(in crate::engine) fn open_calls(
        &self,
        calls: &[CallId],
        event: impl Fn(i32, &Call, &Plan) -> Option<Event>,
    ) -> Vec<Event> {
        let Some(turn) = self.folded.open_step() else { return Vec::new() };
        let of = turn.calls.iter().filter(|call| calls.contains(&call.call_id));
        of.filter_map(|call| event(turn.step, call, &self.plan)).collect()
    }

    pub(super) fn expire(&mut self, calls: &[CallId]) -> Result<(), Stop> {
        let events = write::expired(&self.folded, calls);
        self.push(events, Owner::Keep).map(drop)
    }
}
