//! Making the tool calls of a step, in parallel.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;

use crate::domain::event::Event;
use crate::domain::family;
use crate::domain::fold::{Call, CallState};
use crate::domain::ids::CallId;
use crate::domain::write;
use crate::store::Owner;
use crate::tools::{self, Tool, ToolCall};

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
        let Some(tool) = tools::find(definition, &self.engine.clock) else { return };
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
            (call_id, Made::Answered(attempt(&*tool, request, patience).await))
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

    pub(super) fn call(&self, call_id: CallId) -> Option<(i32, &Call)> {
        let turn = self.folded.open_step()?;
        turn.calls.iter().find(|call| call.call_id == call_id).map(|call| (turn.step, call))
    }
}

/// One attempt at a call. Whatever the tool does, the model gets an answer.
async fn attempt(tool: &dyn Tool, call: ToolCall, patience: Duration) -> Result<Value, String> {
    let attempt = AssertUnwindSafe(tool.call(call)).catch_unwind();
    match tokio::time::timeout(patience, attempt).await {
        Ok(Ok(answer)) => answer,
        // The panic hook has logged it.
        Ok(Err(_panic)) => Err("The tool failed inside the server.".to_owned()),
        Err(_) => Err(format!("The tool did not answer within {} s.", patience.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use uuid::Uuid;

    use crate::domain::ids::RunId;

    use super::*;

    struct Panics;
    struct Sleeps;

    #[async_trait]
    impl Tool for Panics {
        async fn call(&self, _: ToolCall) -> Result<Value, String> {
            panic!("on purpose")
        }
    }

    #[async_trait]
    impl Tool for Sleeps {
        async fn call(&self, _: ToolCall) -> Result<Value, String> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_tool_that_panics_or_sleeps_is_a_failed_call_and_no_more() {
        let call = ToolCall {
            run_id: RunId::from_uuid(Uuid::nil()),
            call_id: CallId::from_uuid(Uuid::nil()),
            arguments: Value::Null,
        };
        let answer = attempt(&Panics, call.clone(), Duration::from_secs(60)).await;
        assert_eq!(answer, Err("The tool failed inside the server.".to_owned()));
        let answer = attempt(&Sleeps, call, Duration::ZERO).await;
        assert_eq!(answer, Err("The tool did not answer within 0 s.".to_owned()));
    }
}
