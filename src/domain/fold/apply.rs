//! One more event: what it makes of the state, and whether it fits.

use crate::domain::event::{
    Approval, ApprovalDecision, Awaits, Entry, Event, StepEnded, ToolCallCreated,
};
use crate::domain::family::Child;
use crate::domain::ids::CallId;
use crate::domain::money::Usd;
use crate::domain::run::{ActionType, RequiredAction, RunStatus, Signal};
use crate::domain::time::Timestamp;

use super::{Call, CallState, Closed, Decided, FoldError, Folded, Steering, Turn, millis, read};

impl Folded {
    /// Reads one more stored event. Deltas change nothing.
    ///
    /// # Errors
    /// When it cannot be read or does not fit.
    pub fn apply_entry(&mut self, entry: &Entry) -> Result<(), FoldError> {
        if entry.event_type.is_delta() {
            return Ok(());
        }
        let (event, at) = read(entry)?;
        self.apply(entry.seq, at, event)
    }

    /// Takes one more event into the state.
    ///
    /// # Errors
    /// When it does not fit what came before; the state is then of no use any more.
    pub fn apply(&mut self, seq: i32, at: Timestamp, event: Event) -> Result<(), FoldError> {
        let event_type = event.event_type();
        let unfit = || FoldError::Misplaced { seq, event_type: event_type.as_str() };
        match event {
            Event::RunQueued(_) => return Err(unfit()),
            Event::RunRunning(_) => {
                self.go(seq, at, Signal::Started)?;
                self.started_at.get_or_insert(at);
            }
            Event::RunCancelling(_) => self.go(seq, at, Signal::CancelRequested)?,
            Event::RunRequiresAction(parked) => {
                self.go(seq, at, Signal::Parked)?;
                let own = self.open_step().map(|turn| turn.calls.as_slice()).unwrap_or_default();
                let is_own = |a: &RequiredAction| own.iter().any(|call| call.call_id == a.call_id);
                let foreign = parked.required_actions.into_iter().filter(|a| !is_own(a)).collect();
                self.children_actions = foreign;
            }
            Event::RunResumed(_) => self.go(seq, at, Signal::Resumed)?,
            Event::RunCompleted(end)
            | Event::RunIncomplete(end)
            | Event::RunFailed(end)
            | Event::RunCancelled(end)
            | Event::RunExpired(end) => {
                self.go(seq, at, Signal::Ended(end.status))?;
                self.ended = Some((end, at));
            }
            Event::StepStarted(started) => {
                let expected = i32::try_from(self.steps.len()).unwrap_or(i32::MAX) + 1;
                if self.open_step().is_some() || started.step != expected {
                    return Err(unfit());
                }
                if self.steps.is_empty() {
                    // Most runs have one step, and a vector begins with room for four.
                    self.steps.reserve_exact(1);
                }
                self.steps.push(Turn {
                    step: started.step,
                    attempt: started.attempt,
                    model: started.model,
                    started_at: at,
                    dropped_messages: started.dropped_messages,
                    opened_seq: seq,
                    message: None,
                    calls: Vec::new(),
                    closed: None,
                });
            }
            Event::StepRestarted(restarted) => {
                let turn = self.turn(restarted.step).ok_or_else(unfit)?;
                if turn.message.is_some() {
                    return Err(unfit());
                }
                turn.attempt = restarted.attempt;
                turn.opened_seq = seq;
                if let Some(dropped) = restarted.dropped_messages {
                    turn.dropped_messages = dropped;
                }
            }
            Event::StepCompleted(end) => self.close(true, end).ok_or_else(unfit)?,
            Event::StepFailed(end) => self.close(false, end).ok_or_else(unfit)?,
            Event::MessageDelta(_) | Event::ReasoningDelta(_) => {}
            Event::MessageCompleted(message) => {
                let turn = self.turn(message.step).ok_or_else(unfit)?;
                if turn.message.is_some() {
                    return Err(unfit());
                }
                turn.message = Some(message);
            }
            Event::ToolCallCreated(created) => {
                let turn = self.turn(created.step).ok_or_else(unfit)?;
                if turn.message.is_none() || turn.calls.iter().any(|c| c.call_id == created.call_id)
                {
                    return Err(unfit());
                }
                turn.calls.push(Call::new(created, at));
            }
            Event::ToolCallStarted(started) => {
                let call = self.open_call(started.call_id).ok_or_else(unfit)?;
                call.state = CallState::Started;
                call.attempt = started.attempt;
                call.started_at = Some(at);
                let max_cost = started.child_max_cost_usd;
                call.child = started.child_run_id.map(|run_id| Child { run_id, max_cost });
            }
            Event::ToolCallCompleted(done) => {
                let call = self.open_call(done.call_id).ok_or_else(unfit)?;
                call.state = CallState::Completed(done.result);
                call.ended_at = Some(at);
                let child = call.child;
                self.child_answered(child, done.child_cost_usd);
            }
            Event::ToolCallFailed(failed) => {
                let call = self.open_call(failed.call_id).ok_or_else(unfit)?;
                call.state = CallState::Failed(failed.error);
                call.synthetic = failed.synthetic;
                call.ended_at = Some(at);
                let child = call.child;
                self.child_answered(child, failed.child_cost_usd);
            }
            Event::ToolCallOutcomeUnknown(unknown) => {
                let call = self.open_call(unknown.call_id).ok_or_else(unfit)?;
                call.state = CallState::Waiting(ActionType::ToolOutcome, None);
                call.lost = unknown.error;
                call.asked_at = Some(at);
            }
            Event::ApprovalRequested(asked) => {
                let call = self.open_call(asked.call_id).ok_or_else(unfit)?;
                call.state = CallState::Waiting(ActionType::Approval, asked.expires_at);
                call.asked_at = Some(at);
            }
            Event::ApprovalDecided(decided) => {
                let call = self.open_call(decided.call_id).ok_or_else(unfit)?;
                call.decide(decided, at).ok_or_else(unfit)?;
            }
            Event::ApprovalExpired(expired) => {
                // The failed call follows.
                let call = self.open_call(expired.call_id).ok_or_else(unfit)?;
                if !matches!(call.state, CallState::Waiting(ActionType::Approval, _)) {
                    return Err(unfit());
                }
            }
            Event::InputReceived(input) => self.steering.push(Steering { input, applied_in: None }),
            Event::InputApplied(applied) => {
                let steering = self
                    .steering
                    .iter_mut()
                    .find(|s| s.input.message_id == applied.message_id)
                    .ok_or_else(unfit)?;
                steering.applied_in = Some(applied.step);
            }
        }
        self.last_fact_seq = seq;
        Ok(())
    }

    fn go(&mut self, seq: i32, at: Timestamp, signal: Signal) -> Result<(), FoldError> {
        let was = self.status;
        self.status = was.after(signal).map_err(|source| FoldError::Illegal { seq, source })?;
        if self.status != RunStatus::RequiresAction {
            self.children_actions.clear();
        }
        // Only time in `running` counts towards `timeout_seconds`.
        match (was == RunStatus::Running, self.status == RunStatus::Running) {
            (false, true) => self.running_since = Some(at),
            (true, false) => {
                let stretch = self.running_since.take().map_or(0, |since| millis(at, since));
                self.ran_ms = self.ran_ms.saturating_add(stretch);
            }
            (true, true) | (false, false) => {}
        }
        Ok(())
    }

    fn close(&mut self, completed: bool, end: StepEnded) -> Option<()> {
        let turn = self.turn(end.step)?;
        if completed && (turn.message.is_none() || turn.calls.iter().any(Call::is_open)) {
            return None;
        }
        let used_model = turn.message.is_some();
        let usage = self.usage.plus(&end.usage);
        if used_model {
            self.cost = match (self.cost, end.cost_usd) {
                (Some(sum), Some(more)) => Some(sum.plus(more)),
                (None, _) | (_, None) => None,
            };
        }
        self.usage = usage;
        self.steps_completed += i32::from(completed);
        let turn = self.turn(end.step)?;
        turn.closed = Some(Closed { completed, end });
        Some(())
    }

    fn child_answered(&mut self, child: Option<Child>, cost: Option<Usd>) {
        if child.is_some() {
            self.children_cost = match (self.children_cost, cost) {
                (Some(sum), Some(more)) => Some(sum.plus(more)),
                (None, _) | (_, None) => None,
            };
        }
    }

    /// The open step, if it has this number.
    fn turn(&mut self, step: i32) -> Option<&mut Turn> {
        self.steps.last_mut().filter(|turn| turn.step == step && turn.closed.is_none())
    }

    fn open_call(&mut self, call_id: CallId) -> Option<&mut Call> {
        let turn = self.steps.last_mut().filter(|turn| turn.closed.is_none())?;
        turn.calls.iter_mut().find(|call| call.call_id == call_id && call.is_open())
    }
}

impl Call {
    fn new(created: ToolCallCreated, at: Timestamp) -> Self {
        let is_the_caller_s = created.awaits == Some(Awaits::Client);
        Self {
            call_id: created.call_id,
            tool: created.tool,
            arguments: created.arguments,
            edited_from: None,
            decided: None,
            retried: false,
            synthetic: false,
            effect: created.effect,
            child: None,
            state: match created.awaits {
                None => CallState::Ready,
                Some(Awaits::Approval) => CallState::Waiting(ActionType::Approval, None),
                Some(Awaits::Client) => {
                    CallState::Waiting(ActionType::ToolResult, created.expires_at)
                }
            },
            attempt: 0,
            lost: None,
            asked_at: created.awaits.map(|_| at),
            started_at: is_the_caller_s.then_some(at),
            ended_at: None,
        }
    }

    /// Takes a decision; `None` when nobody had asked for one. Behind a denial the failed call follows.
    fn decide(&mut self, decided: Approval, at: Timestamp) -> Option<()> {
        let CallState::Waiting(about, _) = self.state else { return None };
        let decision = decided.decision?;
        match about {
            ActionType::ToolResult => return None,
            ActionType::ToolOutcome => self.retried = true,
            ActionType::Approval => {
                self.decided = Some(Decided { decision, reason: decided.reason });
            }
        }
        if decision == ApprovalDecision::Deny {
            return Some(());
        }
        if decided.arguments != self.arguments {
            let before = std::mem::replace(&mut self.arguments, decided.arguments);
            self.edited_from = Some(before);
        }
        self.state = match decided.awaits {
            Some(Awaits::Client) => {
                (self.asked_at, self.started_at) = (Some(at), Some(at));
                CallState::Waiting(ActionType::ToolResult, decided.expires_at)
            }
            Some(Awaits::Approval) | None => CallState::Ready,
        };
        Some(())
    }
}
