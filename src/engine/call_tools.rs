//! Making the tool calls of a step, in parallel.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use crate::domain::event::Event;
use crate::domain::fold::{Call, CallState};
use crate::domain::ids::CallId;
use crate::domain::write;
use crate::store::Owner;
use crate::tools::{self, ToolCall};

use super::drive::{Driver, Made, Stop};

impl Driver {
    /// Writes that these calls begin, and makes them once that is durable. Calls that do not fit
    /// their tool are answered at once.
    pub(super) async fn call_tools(&mut self, calls: &[CallId]) -> Result<(), Stop> {
        let events =
            self.open_calls(calls, |step, call, plan| Some(write::call_started(step, call, plan)));
        let started: Vec<CallId> = events
            .iter()
            .filter_map(|event| match event {
                Event::ToolCallStarted(started) => Some(started.call_id),
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
        let tool = tools::find(definition, &self.engine.clock);
        let patience = Duration::from_secs(u64::from(definition.timeout_seconds()));
        let request = ToolCall { run_id: self.run_id(), call_id, arguments };
        let faith = self.faith.clone();
        self.in_flight.insert(call_id);
        self.calls.spawn(async move {
            // The process may have been stopped since this was decided, and others may have been told
            // to ask what became of this call.
            if !faith.may_act() {
                return (call_id, Made::NotMade);
            }
            let attempt = AssertUnwindSafe(tool.call(request)).catch_unwind();
            let answer = match tokio::time::timeout(patience, attempt).await {
                Ok(Ok(answer)) => answer,
                // The panic hook has logged it.
                Ok(Err(_panic)) => Err("The tool failed inside the server.".to_owned()),
                Err(_) => Err(format!("The tool did not answer within {} s.", patience.as_secs())),
            };
            (call_id, Made::Answered(answer))
        });
    }

    /// Waits for one of the calls under way and writes its answer.
    pub(super) async fn await_tools(&mut self) -> Result<(), Stop> {
        let mut calls = std::mem::take(&mut self.calls);
        let answered = tokio::select! {
            answered = calls.join_next() => Ok(answered),
            stop = self.interrupted() => Err(stop),
        };
        self.calls = calls;
        // A panic is caught inside and nobody aborts a single call: an error cannot come.
        let Some(Ok((call_id, made))) = answered? else {
            // Nothing is under way after all: decide again.
            self.in_flight.clear();
            return Ok(());
        };
        self.in_flight.remove(&call_id);
        let Made::Answered(answer) = made else {
            self.regain().await?;
            // Nobody else has it: it is still to be made.
            if self.call(call_id).is_some_and(|(_, call)| call.state == CallState::Started) {
                self.make(call_id);
            }
            return Ok(());
        };
        let now = self.now();
        let event = match self.call(call_id) {
            Some((step, call)) if matches!(call.state, CallState::Started) => {
                write::call_answered(step, call, answer, now)
            }
            // Answered by somebody else meanwhile, or the step is over: too late.
            Some(_) | None => return Ok(()),
        };
        self.push(vec![event], Owner::Keep).map(drop)
    }

    fn call(&self, call_id: CallId) -> Option<(i32, &Call)> {
        let turn = self.folded.open_step()?;
        turn.calls.iter().find(|call| call.call_id == call_id).map(|call| (turn.step, call))
    }
}
