//! Making the tool calls of a step, in parallel.

use std::time::Duration;

use crate::domain::event::Event;
use crate::domain::family;
use crate::domain::fold::{Call, CallState};
use crate::domain::ids::CallId;
use crate::domain::time::Timestamp;
use crate::domain::write;
use crate::store::Owner;

use super::attempts::Making;
use super::drive::{Driver, Made, Stop};

impl Driver {
    /// Writes that these calls begin, and makes them once that is durable. Calls that do not fit
    /// their tool are answered at once.
    pub(super) async fn call_tools(&mut self, calls: &[CallId]) -> Result<(), Stop> {
        let mut events =
            self.open_calls(calls, |step, call, plan| Some(write::call_started(step, call, plan)));
        family::grant(&self.folded, &self.plan, &mut events);
        let started: Vec<CallId> = events
            .iter()
            .filter_map(|event| match event {
                // Children are met next.
                Event::ToolCallStarted(started) if started.child_run_id.is_none() => {
                    Some(started.call_id)
                }
                _ => None,
            })
            .collect();
        let seq = self.push(events, Owner::Keep)?;
        self.flushed(seq).await?;
        for call_id in started {
            self.make(call_id);
        }
        Ok(())
    }

    fn make(&mut self, call_id: CallId) {
        let Some((_, call)) = self.call(call_id) else { return };
        let arguments = call.arguments.clone();
        let Some(definition) = self.plan.tool(&call.tool) else { return };
        let Some(tool) = self.tool(&call.tool, definition) else { return };
        let making = Making {
            tool,
            effect: call.effect,
            patience: Duration::from_secs(u64::from(definition.timeout_seconds())),
            run_id: self.run_id(),
            workspace_id: self.record.row.workspace_id,
            call_id,
            arguments,
            faith: self.faith.clone(),
            clock: self.engine.clock.clone(),
        };
        self.in_flight.insert(call_id);
        self.calls.spawn(async move { (call_id, making.make().await) });
    }

    /// Waits for one of the calls under way and writes its answer; or until something else is due.
    pub(super) async fn await_tools(&mut self, until: Option<Timestamp>) -> Result<(), Stop> {
        let mut calls = std::mem::take(&mut self.calls);
        let answered = tokio::select! {
            answered = calls.join_next() => Ok(answered),
            stop = self.interrupted(until) => Err(stop),
        };
        self.calls = calls;
        // A panic is caught inside and nobody aborts a single call: an error cannot come.
        let Some(Ok((call_id, made))) = answered? else {
            // Nothing is under way after all: decide again.
            self.in_flight.clear();
            return Ok(());
        };
        self.in_flight.remove(&call_id);
        let now = self.now();
        let event = match (made, self.call(call_id)) {
            (Made::Withheld, _) => {
                self.regain().await?;
                // Nobody else has it: it is still to be made.
                if self.call(call_id).is_some_and(|(_, call)| call.state == CallState::Started) {
                    self.make(call_id);
                }
                return Ok(());
            }
            (Made::Answered(answer), Some((step, call))) if call.state == CallState::Started => {
                write::call_answered(step, call, answer, now)
            }
            (Made::Unknown(why), Some((step, call))) if call.state == CallState::Started => {
                write::outcome_unknown(step, call, why)
            }
            // Answered by somebody else meanwhile, or the step is over: too late.
            (Made::Answered(_) | Made::Unknown(_), _) => return Ok(()),
        };
        self.push(vec![event], Owner::Keep).map(drop)
    }

    pub(super) fn call(&self, call_id: CallId) -> Option<(i32, &Call)> {
        let turn = self.folded.open_step()?;
        turn.calls.iter().find(|call| call.call_id == call_id).map(|call| (turn.step, call))
    }
}
