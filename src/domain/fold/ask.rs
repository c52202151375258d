//! What a folded run answers when it is asked.

use crate::domain::family::Child;
use crate::domain::ids::{CallId, RunId};
use crate::domain::model::FinishReason;
use crate::domain::money::Usd;
use crate::domain::run::{ActionType, OpenAction, RequiredAction};
use crate::domain::step::{CallStatus, Step, StepCall, StepStatus};
use crate::domain::time::Timestamp;
use crate::domain::usage::Usage;

use super::{Call, CallState, Folded, Turn, millis};

impl Folded {
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
    /// Whether the model cannot be told an answer yet.
    pub const fn is_open(&self) -> bool {
        !self.state.is_answered()
    }

    fn view(&self) -> StepCall {
        let (status, result, error) = match &self.state {
            CallState::Ready => (CallStatus::Created, None, None),
            CallState::Waiting(ActionType::ToolOutcome, _) => {
                (CallStatus::Unknown, None, self.lost.clone())
            }
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
