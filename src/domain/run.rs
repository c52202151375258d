//! Runs: one execution of an agent, from its input to its end.

use std::collections::{BTreeMap, HashSet};

use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::agent::{
    AgentSettings, Numbers, ScriptTurn, check_numbers, check_output_schema, check_script,
};
use super::ids::{AgentId, CallId, ConversationId, RunId};
use super::limits;
use super::message::Input;
use super::model::{Catalogue, ReasoningEffort, ToolChoice};
use super::money::Usd;
use super::problem::Problems;
use super::step::Step;
use super::time::Timestamp;
use super::tool::{ClientTool, Tool};
use super::usage::Usage;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Waiting for a free slot.
    Queued,
    /// A model or a tool is at work.
    Running,
    /// Waiting for people or programs: see `required_actions`.
    RequiresAction,
    /// Asked to stop; it is stopping.
    Cancelling,
    /// Ended well; `result` has the answer.
    Completed,
    /// Ended at a limit, see `incomplete_reason`; `result` has what there was.
    Incomplete,
    /// Ended by a failure, see `error`.
    Failed,
    /// Ended because somebody cancelled it.
    Cancelled,
    /// Ended because `timeout_seconds` had passed.
    Expired,
}

/// What can move a run from one status to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// An engine begins or goes on.
    Started,
    /// Nothing executes and an action is open.
    Parked,
    /// The last open action was answered.
    Resumed,
    /// Somebody asked to cancel, and a driver must stop first.
    CancelRequested,
    /// It is over, with this end.
    Ended(RunStatus),
}

/// A move that the status machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run that is {from:?} cannot take {signal:?}")]
pub struct IllegalMove {
    /// Where it was.
    pub from: RunStatus,
    /// What was tried.
    pub signal: Signal,
}

impl RunStatus {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Running,
        Self::RequiresAction,
        Self::Cancelling,
        Self::Completed,
        Self::Incomplete,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The number that the database keeps. Never changed once given.
    pub const fn code(self) -> i16 {
        match self {
            Self::Queued => 1,
            Self::Running => 2,
            Self::RequiresAction => 3,
            Self::Cancelling => 4,
            Self::Completed => 10,
            Self::Incomplete => 11,
            Self::Failed => 12,
            Self::Cancelled => 13,
            Self::Expired => 14,
        }
    }

    /// The status of a number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == code)
    }

    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::RequiresAction => "requires_action",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The status of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Whether it is over.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::RequiresAction | Self::Cancelling => false,
            Self::Completed | Self::Incomplete | Self::Failed | Self::Cancelled | Self::Expired => {
                true
            }
        }
    }

    /// The status after `signal`.
    ///
    /// # Errors
    /// When the machine has no such move.
    pub const fn after(self, signal: Signal) -> Result<Self, IllegalMove> {
        use RunStatus as S;
        let illegal = Err(IllegalMove { from: self, signal });
        match (self, signal) {
            // A take-over after a crash starts again and changes no status.
            (S::Queued | S::Running, Signal::Started) => Ok(S::Running),
            (S::Cancelling, Signal::Started) => Ok(S::Cancelling),
            // Parked again: something else is asked for.
            (S::Running | S::RequiresAction, Signal::Parked) => Ok(S::RequiresAction),
            (S::RequiresAction, Signal::Resumed) => Ok(S::Queued),
            (S::Running | S::RequiresAction, Signal::CancelRequested) => Ok(S::Cancelling),
            (S::Queued, Signal::Ended(end)) => match end {
                S::Cancelled | S::Incomplete => Ok(end),
                S::Queued
                | S::Running
                | S::RequiresAction
                | S::Cancelling
                | S::Completed
                | S::Failed
                | S::Expired => illegal,
            },
            (S::Running, Signal::Ended(end)) => {
                if end.is_final() {
                    Ok(end)
                } else {
                    illegal
                }
            }
            (S::RequiresAction | S::Cancelling, Signal::Ended(end)) => match end {
                S::Cancelled => Ok(end),
                S::Queued
                | S::Running
                | S::RequiresAction
                | S::Cancelling
                | S::Completed
                | S::Incomplete
                | S::Failed
                | S::Expired => illegal,
            },
            (S::RequiresAction, Signal::Started)
            | (S::Queued, Signal::Parked | Signal::Resumed | Signal::CancelRequested)
            | (S::Running, Signal::Resumed)
            | (S::Cancelling, Signal::Parked | Signal::Resumed | Signal::CancelRequested)
            | (S::Completed | S::Incomplete | S::Failed | S::Cancelled | S::Expired, _) => illegal,
        }
    }
}

/// Why a run ended before its model was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncompleteReason {
    /// `max_steps` were used.
    MaxSteps,
    /// A spend cap would have been passed.
    Budget,
    /// `max_total_tokens` were used.
    MaxTotalTokens,
    /// The model hit `max_output_tokens`.
    MaxOutputTokens,
    /// The provider withheld the answer.
    ContentFilter,
    /// The log is as long as a log may be (50,000 events or 50 MB).
    LogSize,
}

/// What kind of failure ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunErrorCode {
    /// The model's provider failed, refused or talked nonsense.
    ModelError,
    /// A tool could not be used at all.
    ToolError,
    /// The final answer did not satisfy `output_schema`, twice.
    OutputInvalid,
    /// The prompt does not fit the model, or `max_context_tokens`, even without what was said before.
    ContextOverflow,
    /// The run took its server down three times.
    Poisoned,
    /// A defect of this server.
    Internal,
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunError {
    /// What kind of failure.
    pub code: RunErrorCode,
    /// For people.
    pub message: String,
    /// Whether a new run with the same input may succeed.
    pub retryable: bool,
}

/// What a run answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunResult {
    /// The last text that the model completed.
    pub content: String,
    /// The text parsed as JSON, when the agent has an `output_schema`; else null.
    pub output: Option<Value>,
}

/// What kind of answer an open action waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionType {
    /// The result of a tool that the caller runs.
    ToolResult,
    /// Leave to make a call.
    Approval,
    /// What became of a call whose answer was lost.
    ToolOutcome,
}

/// Something that a person or a program must answer before the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RequiredAction {
    /// What is asked for.
    #[serde(rename = "type")]
    pub action_type: ActionType,
    /// The run whose call it is.
    pub run_id: RunId,
    /// The call.
    pub call_id: CallId,
    /// The tool.
    pub tool: String,
    /// What it was called with.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// Until when an answer counts; null means without end.
    pub expires_at: Option<Timestamp>,
}

impl ActionType {
    /// The number that the database keeps. Never changed once given.
    pub const fn code(self) -> i16 {
        match self {
            Self::ToolResult => 1,
            Self::Approval => 2,
            Self::ToolOutcome => 3,
        }
    }
}

/// An action that nobody has answered yet.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenAction {
    /// What is asked for.
    pub action: RequiredAction,
    /// Since when.
    pub created_at: Timestamp,
}

/// An approval that nobody has decided yet, of any run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OpenApproval {
    /// `approval`.
    #[serde(rename = "type")]
    pub action_type: ActionType,
    /// The run that wants to make the call.
    pub run_id: RunId,
    /// The call.
    pub call_id: CallId,
    /// The tool.
    pub tool: String,
    /// What it is to be called with.
    #[schema(value_type = Object)]
    pub arguments: Value,
    /// Until when a decision counts; then the call is denied.
    pub expires_at: Option<Timestamp>,
    /// The agent whose run it is.
    pub agent_id: AgentId,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// A run, as its row and its log tell it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// Its id.
    pub run_id: RunId,
    /// The agent that it executes.
    pub agent_id: AgentId,
    /// The version that it is pinned to.
    pub agent_version: i32,
    /// The conversation that it belongs to.
    pub conversation_id: Option<ConversationId>,
    /// The run that called this one as a tool.
    pub parent_run_id: Option<RunId>,
    /// The run that this one was forked from.
    pub forked_from_run_id: Option<RunId>,
    /// Your user, as you named them.
    pub end_user_id: Option<String>,
    /// Where it is.
    pub status: RunStatus,
    /// What it is doing, in a few words.
    pub status_message: Option<String>,
    /// What it was started with. Left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Input>,
    /// The model, in full.
    pub model: String,
    /// The answer, once there is one. Left out in lists.
    #[serde(default, skip_serializing_if = "ResultView::is_left_out")]
    #[schema(value_type = Option<RunResult>)]
    pub result: ResultView,
    /// Why it failed; null on every other status.
    pub error: Option<RunError>,
    /// At which limit it ended; null on every other status than `incomplete`.
    pub incomplete_reason: Option<IncompleteReason>,
    /// What waits for an answer, of this run and of the runs that it called, in any status. A run with
    /// status `requires_action` goes on when it is answered.
    pub required_actions: Vec<RequiredAction>,
    /// Steps that are over.
    pub steps_completed: i32,
    /// Steps that it may have.
    pub max_steps: u32,
    /// The share of `max_steps` used; at most 99 until it completes.
    pub progress_percent: u8,
    /// Seconds until it probably ends, from the agent's last 50 completed runs; null if unknown.
    pub estimated_completion_seconds: Option<u64>,
    /// Tokens so far.
    pub usage: Usage,
    /// What it cost so far; null when a model that it used has no price.
    pub cost_usd: Option<Usd>,
    /// What it and its child runs cost; those that still run count from their end on. Null when a
    /// model that one of them used has no price.
    pub tree_cost_usd: Option<Usd>,
    /// The worst case of its first model call; null without a price.
    pub estimated_cost_usd: Option<Usd>,
    /// The newest event of its log.
    pub last_seq: i32,
    /// Your own notes.
    pub metadata: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it first ran.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// From creation to end; null until then.
    pub duration_ms: Option<u64>,
    /// Where to read this.
    pub status_url: String,
    /// Where to follow its events.
    pub events_url: String,
    /// Where to cancel it.
    pub cancel_url: String,
    /// When to look again; null when looking again brings nothing by itself.
    pub retry_after_seconds: Option<u32>,
    /// What to do next, in words.
    pub instructions: Option<String>,
    /// Its steps, when `?include=steps` asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Step>>,
}

/// A run's result: shown (maybe as null) or left out, as in lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ResultView {
    /// Not part of this answer.
    #[default]
    LeftOut,
    /// Part of it.
    Shown(Option<RunResult>),
}

impl ResultView {
    /// Whether it is no part of this answer.
    pub const fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }
}

impl Serialize for ResultView {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::LeftOut => serializer.serialize_none(),
            Self::Shown(result) => result.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ResultView {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<RunResult>::deserialize(deserializer).map(Self::Shown)
    }
}

/// What a run changes about its agent, for itself alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Another model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Other instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// Names of the agent's tools that this run may use; all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// Whether tools may, must or must not be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// Sampling temperature, 0–2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus sampling, 0–1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// A lower limit than the agent's (the smaller wins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// How much to think.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Merged over the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub provider_options: Option<Map<String, Value>>,
    /// A lower limit than the agent's (the smaller wins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u32>,
    /// A lower limit than the agent's (the smaller wins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// A lower limit than the agent's (the smaller wins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<Usd>,
    /// A lower limit than the agent's (the smaller wins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_total_tokens: Option<u64>,
    /// A lower limit than the agent's (the smaller wins).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_context_tokens: Option<u64>,
    /// A JSON Schema that the final answer must satisfy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub output_schema: Option<Value>,
    /// What `builtin/script` plays in this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Vec<ScriptTurn>>,
    /// More tools, which you run yourself: when the model calls one, the run waits until you post the
    /// result to `tool-results`. Their names must not be those of the agent's tools.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "client_tools")]
    #[schema(value_type = Option<Vec<ClientTool>>)]
    pub client_tools: Option<Vec<ClientTool>>,
}

/// Reads client tools with or without the `type` that an agent's tools have.
fn client_tools<'de, D>(deserializer: D) -> Result<Option<Vec<ClientTool>>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    struct Given(ClientTool);

    impl<'de> Deserialize<'de> for Given {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let mut fields = Map::<String, Value>::deserialize(deserializer)?;
            match fields.remove("type") {
                Some(Value::String(kind)) if kind == "client" => {}
                None => {}
                Some(_) => return Err(D::Error::custom("type must be \"client\"")),
            }
            serde_json::from_value(Value::Object(fields)).map(Self).map_err(D::Error::custom)
        }
    }

    let given = Option::<Vec<Given>>::deserialize(deserializer)?;
    Ok(given.map(|tools| tools.into_iter().map(|given| given.0).collect()))
}

fn lower<T: Ord>(agent: Option<T>, run: Option<T>) -> Option<T> {
    match (agent, run) {
        (Some(a), Some(r)) => Some(a.min(r)),
        (a, r) => a.or(r),
    }
}

impl RunConfig {
    /// The agent's settings as this run uses them.
    #[must_use]
    pub fn over(&self, agent: &AgentSettings) -> AgentSettings {
        let mut s = agent.clone();
        if let Some(model) = &self.model {
            s.model.clone_from(model);
        }
        if let Some(names) = &self.tools {
            s.tools.retain(|tool| names.iter().any(|name| name == tool.name()));
        }
        s.tools.extend(self.client_tools.iter().flatten().cloned().map(Tool::Client));
        if let Some(options) = &self.provider_options {
            s.provider_options.extend(options.clone());
        }
        if let Some(script) = &self.script {
            s.script.clone_from(script);
        }
        s.system_prompt = self.system_prompt.clone().or(s.system_prompt);
        s.tool_choice = self.tool_choice.unwrap_or(s.tool_choice);
        s.temperature = self.temperature.or(s.temperature);
        s.top_p = self.top_p.or(s.top_p);
        s.reasoning_effort = self.reasoning_effort.or(s.reasoning_effort);
        s.output_schema = self.output_schema.clone().or(s.output_schema);
        s.max_output_tokens = s.max_output_tokens.min(self.max_output_tokens.unwrap_or(u32::MAX));
        s.max_steps = s.max_steps.min(self.max_steps.unwrap_or(u32::MAX));
        s.timeout_seconds = s.timeout_seconds.min(self.timeout_seconds.unwrap_or(u64::MAX));
        s.max_cost_usd = lower(s.max_cost_usd, self.max_cost_usd);
        s.max_total_tokens = lower(s.max_total_tokens, self.max_total_tokens);
        s.max_context_tokens = lower(s.max_context_tokens, self.max_context_tokens);
        s
    }

    /// This config, and where it says nothing, what `defaults` says. Limits of both hold.
    #[must_use]
    pub fn or(&self, defaults: &Self) -> Self {
        fn first<T: Clone>(run: Option<&T>, default: Option<&T>) -> Option<T> {
            run.or(default).cloned()
        }
        let (r, d) = (self, defaults);
        let options = match (&r.provider_options, &d.provider_options) {
            (Some(run), Some(default)) => {
                let mut all = default.clone();
                all.extend(run.clone());
                Some(all)
            }
            (run, default) => first(run.as_ref(), default.as_ref()),
        };
        Self {
            model: first(r.model.as_ref(), d.model.as_ref()),
            system_prompt: first(r.system_prompt.as_ref(), d.system_prompt.as_ref()),
            tools: first(r.tools.as_ref(), d.tools.as_ref()),
            tool_choice: r.tool_choice.or(d.tool_choice),
            temperature: r.temperature.or(d.temperature),
            top_p: r.top_p.or(d.top_p),
            max_output_tokens: lower(d.max_output_tokens, r.max_output_tokens),
            reasoning_effort: r.reasoning_effort.or(d.reasoning_effort),
            provider_options: options,
            max_steps: lower(d.max_steps, r.max_steps),
            timeout_seconds: lower(d.timeout_seconds, r.timeout_seconds),
            max_cost_usd: lower(d.max_cost_usd, r.max_cost_usd),
            max_total_tokens: lower(d.max_total_tokens, r.max_total_tokens),
            max_context_tokens: lower(d.max_context_tokens, r.max_context_tokens),
            output_schema: first(r.output_schema.as_ref(), d.output_schema.as_ref()),
            script: first(r.script.as_ref(), d.script.as_ref()),
            client_tools: first(r.client_tools.as_ref(), d.client_tools.as_ref()),
        }
    }

    /// Puts more instructions behind those that this config or its agent has.
    pub fn append_prompt(&mut self, agent: &AgentSettings, more: Option<&str>) {
        let Some(more) = more.filter(|more| !more.is_empty()) else { return };
        let first = self.system_prompt.as_ref().or(agent.system_prompt.as_ref());
        let first = first.filter(|first| !first.is_empty());
        self.system_prompt = Some(match first {
            Some(first) => format!("{first}\n\n{more}"),
            None => more.to_owned(),
        });
    }

    /// Everything that is wrong with it, for a run of `agent`; makes `model` a full name.
    ///
    /// # Errors
    /// The problems, with pointers into the config.
    pub fn check(&mut self, agent: &AgentSettings, catalogue: &Catalogue) -> Result<(), Problems> {
        let mut problems = Problems::new();
        let p = &mut problems;
        if let Some(model) = &mut self.model {
            match catalogue.resolve(model) {
                Ok(full) => *model = full.to_string(),
                Err(message) => p.add("/model", message),
            }
        }
        for (i, name) in self.tools.iter().flatten().enumerate() {
            p.require(
                agent.tools.iter().any(|tool| tool.name() == name),
                &format!("/tools/{i}"),
                "the agent has no tool of this name",
            );
        }
        self.check_client_tools(agent, p);
        check_numbers(
            &Numbers {
                temperature: self.temperature,
                top_p: self.top_p,
                max_output_tokens: self.max_output_tokens,
                max_steps: self.max_steps,
                timeout_seconds: self.timeout_seconds,
                max_context_tokens: self.max_context_tokens,
            },
            p,
        );
        check_output_schema(self.output_schema.as_ref(), p);
        check_script(self.script.as_deref().unwrap_or_default(), p);
        let model = self.model.as_ref().unwrap_or(&agent.model);
        if p.is_empty()
            && lower(agent.max_cost_usd, self.max_cost_usd).is_some()
            && catalogue.resolve(model).is_ok_and(|m| catalogue.price(&m).is_none())
        {
            p.add(
                "/max_cost_usd",
                format!("{model} has no price: set prices in the configuration"),
            );
        }
        problems.into_result()
    }

    fn check_client_tools(&self, agent: &AgentSettings, problems: &mut Problems) {
        let mut names: HashSet<&str> = agent.tools.iter().map(Tool::name).collect();
        let mine = self.client_tools.as_deref().unwrap_or_default();
        problems.require(
            agent.tools.len() + mine.len() <= limits::MAX_TOOLS,
            "/client_tools",
            "at most 128 tools, those of the agent included",
        );
        for (i, tool) in mine.iter().enumerate() {
            let place = format!("/client_tools/{i}");
            Tool::Client(tool.clone()).check(&place, problems);
            problems.require(
                names.insert(&tool.name),
                &format!("{place}/name"),
                "the agent or this run has a tool of this name already",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_is_ended() {
        let signals = [Signal::Started, Signal::Parked, Signal::Resumed, Signal::CancelRequested];
        let ends = RunStatus::ALL.into_iter().map(Signal::Ended);
        for signal in signals.into_iter().chain(ends) {
            for from in RunStatus::ALL.into_iter().filter(|s| s.is_final()) {
                assert!(from.after(signal).is_err(), "{from:?} {signal:?}");
            }
        }
    }

    #[test]
    fn a_run_that_is_being_cancelled_ends_cancelled_and_no_other_way() {
        for end in RunStatus::ALL {
            let moved = RunStatus::Cancelling.after(Signal::Ended(end));
            assert_eq!(moved.is_ok(), end == RunStatus::Cancelled, "{end:?}");
        }
    }

    #[test]
    fn codes_and_words_read_back() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::from_code(status.code()), Some(status));
            assert_eq!(RunStatus::from_word(status.as_str()), Some(status));
        }
    }
}
