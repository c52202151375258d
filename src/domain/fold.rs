//! The fold: a log read back into a state.
//!
//! Folding is total over everything that an engine or a guest can write, and needs facts only. It
//! checks as it goes: an event that does not fit what came before is a [`FoldError`], which means a
//! defect of ours and never a user's mistake.

use std::sync::Arc;

use serde_json::Value;

use super::conversation::history::History;
use super::event::{
    Approval, ApprovalDecision, Awaits, Entry, Event, MessageCompleted, RunEnded, SteeringInput,
    StepEnded, ToolCallCreated,
};
use super::family::Child;
use super::ids::{CallId, ConversationId, RunId};
use super::message::Input;
use super::model::FinishReason;
use super::money::Usd;
use super::run::{ActionType, IllegalMove, OpenAction, RequiredAction, RunStatus, Signal};
use super::step::{CallStatus, Step, StepCall, StepStatus};
use super::time::Timestamp;
use super::tool::Effect;
use super::usage::Usage;

/// A log that cannot be read: a defect, or an event of a newer version.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The stored text is not an event of its kind.
    #[error("event {seq} cannot be read")]
    Unreadable {
        /// Which.
        seq: i32,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
    /// The status machine has no such move.
    #[error("event {seq} makes an illegal move")]
    Illegal {
        /// Which.
        seq: i32,
        /// The move.
        #[source]
        source: IllegalMove,
    },
    /// It speaks of a step or a call that is not there.
    #[error("event {seq} ({event_type}) does not fit the log before it")]
    Misplaced {
        /// Which.
        seq: i32,
        /// Its `type`.
        event_type: &'static str,
    },
    /// There is no first event.
    #[error("the log is empty")]
    Empty,
}

/// A run, as its log tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// Where it is.
    pub status: RunStatus,
    /// The newest fact.
    pub last_fact_seq: i32,
    /// The conversation that it is a turn of.
    pub conversation_id: Option<ConversationId>,
    /// The run that called it.
    pub parent_run_id: Option<RunId>,
    /// How many runs are above it.
    pub depth: u32,
    /// The model it is pinned to.
    pub model: String,
    /// What was said in its conversation before it, which its log does not tell: empty unless
    /// [`Folded::with_history`] says otherwise.
    pub history: Arc<History>,
    /// What it was started with.
    pub input: Input,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it first ran.
    pub started_at: Option<Timestamp>,
    /// The steps, in order; at most the last is open.
    pub steps: Vec<Turn>,
    /// What came in while it ran, in order.
    pub steering: Vec<Steering>,
    /// Tokens of all steps that are over.
    pub usage: Usage,
    /// What all steps that are over cost; `None` once a used model had no price.
    pub cost: Option<Usd>,
    /// What its child runs cost that have answered; `None` once that is not known of one.
    pub children_cost: Option<Usd>,
    /// Actions of the runs below it that it waited for when it parked, for as long as it does: some may
    /// be answered since, which is in the logs of those runs.
    pub children_actions: Vec<RequiredAction>,
    /// Steps that are over.
    pub steps_completed: i32,
    /// Milliseconds in `running` before the present stretch.
    pub ran_ms: u64,
    /// Since when the present stretch of `running` lasts.
    pub running_since: Option<Timestamp>,
    /// How it ended.
    pub ended: Option<(RunEnded, Timestamp)>,
}

/// A step under way or over.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Its number, from 1.
    pub step: i32,
    /// The present attempt at its model call.
    pub attempt: i32,
    /// The model.
    pub model: String,
    /// When it began.
    pub started_at: Timestamp,
    /// Messages of its conversation that the model does not see in it.
    pub dropped_messages: i32,
    /// The event that opened the present attempt: what it showed comes after this `seq`.
    pub opened_seq: i32,
    /// What the model said, once it has.
    pub message: Option<MessageCompleted>,
    /// What it asked for.
    pub calls: Vec<Call>,
    /// How it ended, once it has.
    pub closed: Option<Closed>,
}

/// The end of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// Whether it did what it was for.
    pub completed: bool,
    /// Its numbers.
    pub end: StepEnded,
}

/// A tool call.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Its id.
    pub call_id: CallId,
    /// The tool's name.
    pub tool: String,
    /// Its arguments, as approved.
    pub arguments: Value,
    /// The model's own arguments, where somebody changed them.
    pub edited_from: Option<Value>,
    /// Whether it may be made, where somebody was asked.
    pub decided: Option<Decided>,
    /// Whether somebody wanted it made again, not knowing what had become of it.
    pub retried: bool,
    /// Whether the server answered for it: it ran out of time, or the run stopped.
    pub synthetic: bool,
    /// What it does to the world.
    pub effect: Effect,
    /// The run that answers it, once it was made as one.
    pub child: Option<Child>,
    /// Where it is.
    pub state: CallState,
    /// How often it was made.
    pub attempt: i32,
    /// Since when somebody is asked about it.
    pub asked_at: Option<Timestamp>,
    /// When it was last made.
    pub started_at: Option<Timestamp>,
    /// When it was answered.
    pub ended_at: Option<Timestamp>,
}

/// What somebody decided about a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// Whether it may be made.
    pub decision: ApprovalDecision,
    /// Why.
    pub reason: Option<String>,
}

/// Where a tool call is.
#[derive(Debug, Clone, PartialEq)]
pub enum CallState {
    /// To be made.
    Ready,
    /// Waiting for somebody, until then.
    Waiting(ActionType, Option<Timestamp>),
    /// Being made.
    Started,
    /// Answered.
    Completed(Value),
    /// Failed, with words for the model.
    Failed(String),
}

impl CallState {
    /// Whether the model can be told an answer.
    pub const fn is_answered(&self) -> bool {
        match self {
            Self::Completed(_) | Self::Failed(_) => true,
            Self::Ready | Self::Waiting(..) | Self::Started => false,
        }
    }
}

/// A message that came in while the run ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    /// What was said.
    pub input: SteeringInput,
    /// The step that reads it first, once that is settled.
    pub applied_in: Option<i32>,
}

impl Folded {
    /// Reads a log, or its facts, from the beginning.
    ///
    /// # Errors
    /// When an event cannot be read or does not fit; see [`FoldError`].
    pub fn read<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Self, FoldError> {
        let mut entries = entries.into_iter().filter(|entry| !entry.event_type.is_delta());
        let first = entries.next().ok_or(FoldError::Empty)?;
        let (event, at) = read(first)?;
        let Event::RunQueued(queued) = event else {
            return Err(misplaced(first.seq, &event));
        };
        let mut folded = Self {
            status: RunStatus::Queued,
            last_fact_seq: first.seq,
            conversation_id: queued.conversation_id,
            parent_run_id: queued.parent_run_id,
            depth: queued.depth,
            model: queued.model,
            history: Arc::default(),
            input: queued.input,
            created_at: at,
            started_at: None,
            steps: Vec::new(),
            steering: Vec::new(),
            usage: Usage::default(),
            cost: Some(Usd::ZERO),
            children_cost: Some(Usd::ZERO),
            children_actions: Vec::new(),
            steps_completed: 0,
            ran_ms: 0,
            running_since: None,
            ended: None,
        };
        for entry in entries {
            folded.apply_entry(entry)?;
        }
        Ok(folded)
    }

    /// The same run behind what was said in its conversation before it.
    #[must_use]
    pub fn with_history(self, history: Arc<History>) -> Self {
        Self { history, ..self }
    }

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

    /// The step under way.
    pub fn open_step(&self) -> Option<&Turn> {
        self.steps.last().filter(|turn| turn.closed.is_none())
    }

    /// The last text that the model completed.
    pub fn last_text(&self) -> Option<&str> {
        let texts = self.steps.iter().rev().filter_map(|turn| turn.message.as_ref());
        texts.map(|message| message.content.as_str()).find(|text| !text.is_empty())
    }

    /// Milliseconds in `running` until `now`.
    pub fn running_ms(&self, now: Timestamp) -> u64 {
        self.ran_ms.saturating_add(self.running_since.map_or(0, |since| millis(now, since)))
    }

    /// When a run with this many seconds is over, unless it stops running before.
    pub fn deadline(&self, timeout_seconds: u64) -> Option<Timestamp> {
        let left = timeout_seconds.saturating_mul(1_000).saturating_sub(self.ran_ms);
        self.running_since.map(|since| since.plus(std::time::Duration::from_millis(left)))
    }

    /// Tokens so far, those of an open step's model call included.
    pub fn usage_so_far(&self) -> Usage {
        let open = self.open_step().and_then(|turn| turn.message.as_ref());
        open.map_or(self.usage, |message| self.usage.plus(&message.model_usage))
    }

    /// What it cost so far, an open step's model call included.
    pub fn cost_so_far(&self) -> Option<Usd> {
        match self.open_step().and_then(|turn| turn.message.as_ref()) {
            None => self.cost,
            Some(message) => Some(self.cost?.plus(message.model_cost_usd?)),
        }
    }

    /// What it and its child runs that have answered cost so far.
    pub fn tree_cost_so_far(&self) -> Option<Usd> {
        Some(self.cost_so_far()?.plus(self.children_cost?))
    }

    /// The open calls that child runs answer.
    pub fn live_children(&self) -> impl Iterator<Item = (&Call, Child)> {
        let calls = self.open_step().map(|turn| turn.calls.as_slice()).unwrap_or_default();
        let live = calls.iter().filter(|call| call.state == CallState::Started);
        live.filter_map(|call| call.child.map(|child| (call, child)))
    }

    /// What somebody outside must answer for its own calls.
    pub fn required_actions(&self, run_id: RunId) -> Vec<RequiredAction> {
        self.open_actions(run_id).into_iter().map(|open| open.action).collect()
    }

    /// The same, and since when.
    pub fn open_actions(&self, run_id: RunId) -> Vec<OpenAction> {
        let Some(turn) = self.open_step() else { return Vec::new() };
        let mut actions = Vec::new();
        for call in &turn.calls {
            if let CallState::Waiting(action_type, expires_at) = call.state {
                let action = RequiredAction {
                    action_type,
                    run_id,
                    call_id: call.call_id,
                    tool: call.tool.clone(),
                    arguments: call.arguments.clone(),
                    expires_at,
                };
                let created_at = call.asked_at.unwrap_or(turn.started_at);
                actions.push(OpenAction { action, created_at });
            }
        }
        actions
    }

    /// A call of any step, and the step's number.
    pub fn call(&self, call_id: CallId) -> Option<(i32, &Call)> {
        self.steps.iter().rev().find_map(|turn| {
            let call = turn.calls.iter().find(|call| call.call_id == call_id)?;
            Some((turn.step, call))
        })
    }

    /// The steps as the API shows them.
    pub fn steps(&self) -> Vec<Step> {
        self.steps.iter().map(Turn::view).collect()
    }
}

fn read(entry: &Entry) -> Result<(Event, Timestamp), FoldError> {
    entry.read().map_err(|source| FoldError::Unreadable { seq: entry.seq, source })
}

fn misplaced(seq: i32, event: &Event) -> FoldError {
    FoldError::Misplaced { seq, event_type: event.event_type().as_str() }
}

fn millis(later: Timestamp, earlier: Timestamp) -> u64 {
    u64::try_from(later.since(earlier).as_millis()).unwrap_or(u64::MAX)
}

impl Turn {
    /// Why the model stopped, once it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.message.as_ref().map(|message| message.finish_reason)
    }

    fn view(&self) -> Step {
        let message = self.message.as_ref();
        Step {
            step: self.step,
            status: match &self.closed {
                None => StepStatus::Running,
                Some(closed) if closed.completed => StepStatus::Completed,
                Some(_) => StepStatus::Failed,
            },
            model: self.model.clone(),
            content: message.map(|m| m.content.clone()),
            usage: message.map(|m| m.model_usage),
            cost_usd: message.and_then(|m| m.model_cost_usd),
            attempt: self.attempt,
            started_at: self.started_at,
            duration_ms: self.closed.as_ref().map(|closed| closed.end.duration_ms),
            tool_calls: self.calls.iter().map(Call::view).collect(),
        }
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
            asked_at: created.awaits.map(|_| at),
            started_at: is_the_caller_s.then_some(at),
            ended_at: None,
        }
    }

    /// Whether the model cannot be told an answer yet.
    pub const fn is_open(&self) -> bool {
        !self.state.is_answered()
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

    fn view(&self) -> StepCall {
        let (status, result, error) = match &self.state {
            CallState::Ready => (CallStatus::Created, None, None),
            CallState::Waiting(ActionType::ToolOutcome, _) => (CallStatus::Unknown, None, None),
            CallState::Waiting(ActionType::ToolResult | ActionType::Approval, _) => {
                (CallStatus::Waiting, None, None)
            }
            CallState::Started => (CallStatus::Running, None, None),
            CallState::Completed(result) => (CallStatus::Completed, Some(result.clone()), None),
            CallState::Failed(error) => (CallStatus::Failed, None, Some(error.clone())),
        };
        StepCall {
            call_id: self.call_id,
            tool: self.tool.clone(),
            arguments: self.arguments.clone(),
            status,
            result,
            error,
            child_run_id: self.child.map(|child| child.run_id),
            attempt: self.attempt,
            started_at: self.started_at,
            duration_ms: match (self.started_at, self.ended_at) {
                (Some(started), Some(ended)) => Some(millis(ended, started)),
                (None, _) | (_, None) => None,
            },
        }
    }
}
