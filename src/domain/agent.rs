//! Agents: a model, instructions, tools and limits under a name. Every change is a new version.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::egress::Outbound;
use super::ids::{AgentId, WorkspaceId};
use super::limits;
use super::model::{Catalogue, ReasoningEffort, ToolChoice};
use super::money::Usd;
use super::problem::Problems;
use super::schema::Schema;
use super::time::Timestamp;
use super::tool::{OutboundProblems, Tool};
use super::usage::Usage;

/// What an agent is: everything that makes a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// A name for people; at most 200 characters.
    #[serde(default)]
    pub name: Option<String>,
    /// When to use this agent. Other agents read it to decide whether to call.
    #[serde(default)]
    pub description: Option<String>,
    /// `provider/model`; a bare name uses the server's default provider. `builtin/echo` and
    /// `builtin/script` need no provider.
    #[schema(examples("openai/gpt-4o", "builtin/script"))]
    pub model: String,
    /// Instructions in front of every conversation.
    #[serde(default)]
    pub system_prompt: Option<String>,
    /// What the model may call.
    #[serde(default)]
    pub tools: Vec<Tool>,
    /// Whether it may, must or must not.
    #[serde(default)]
    pub tool_choice: ToolChoice,
    /// Sampling temperature, 0–2; the provider's default when null.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Nucleus sampling, 0–1; the provider's default when null.
    #[serde(default)]
    pub top_p: Option<f64>,
    /// Tokens that one model call may write. A run that hits it ends `incomplete`.
    #[serde(default = "default_max_output_tokens")]
    pub max_output_tokens: u32,
    /// How much a reasoning model may think.
    #[serde(default)]
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Merged into the body of every request to the provider, for options not listed here.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub provider_options: Map<String, Value>,
    /// Steps (a model call and the tools it asked for) after which a run ends `incomplete`.
    #[serde(default = "default_max_steps")]
    pub max_steps: u32,
    /// Seconds in `running` after which a run ends `expired`.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Money after which a run ends `incomplete`. The model needs a price for it.
    #[serde(default)]
    pub max_cost_usd: Option<Usd>,
    /// Tokens (input and output, all steps) after which a run ends `incomplete`; overrun by at most one step.
    #[serde(default)]
    pub max_total_tokens: Option<u64>,
    /// Tokens that a prompt may have, as Stepwell estimates them: instructions, tools, what was said
    /// before and what is said now. Before each model call the oldest whole turns of the conversation
    /// are left out of what the model sees until the prompt fits (`dropped_messages` of `step.started`
    /// says how many messages); the conversation keeps them. A turn that does not fit by itself fails
    /// with `context_overflow`. Null: what the model takes less `max_output_tokens`, where the operator
    /// has said it, else no limit.
    #[serde(default)]
    pub max_context_tokens: Option<u64>,
    /// A JSON Schema that the final answer must satisfy; the parsed answer is `result.output`.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub output_schema: Option<Value>,
    /// Your own notes: at most 16 pairs of text.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// What `builtin/script` plays: one turn for each model call of a run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub script: Vec<ScriptTurn>,
}

fn default_max_output_tokens() -> u32 {
    4096
}
fn default_max_steps() -> u32 {
    20
}
fn default_timeout_seconds() -> u64 {
    600
}

/// One turn of `builtin/script`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScriptTurn {
    /// What it says, word by word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// What it thinks first, word by word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Which tools it asks for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ScriptCall>,
    /// Milliseconds before its first word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Milliseconds between words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_delay_ms: Option<u64>,
    /// The tokens it claims to have used; words are counted when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<ScriptUsage>,
    /// A failure to play instead, to try what the server does about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<ScriptFailure>,
}

/// A tool call of `builtin/script`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScriptCall {
    /// The tool's name.
    pub tool: String,
    /// Its arguments: an object, unless you want to see what becomes of a call with others.
    #[serde(default)]
    #[schema(value_type = Value)]
    pub arguments: Value,
}

/// The tokens of a scripted turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScriptUsage {
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
}

impl ScriptUsage {
    /// As a model's usage.
    pub fn usage(self) -> Usage {
        Usage::new(self.input_tokens, 0, self.output_tokens, 0)
    }
}

/// A scripted failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScriptFailure {
    /// How it fails.
    pub kind: FailureKind,
    /// The HTTP status that `status` answers with; 500 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// A `Retry-After` to go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// How many attempts fail before one succeeds; all of them when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

/// How a scripted turn fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// An HTTP error before the first word.
    Status,
    /// The connection breaks in the middle of the text.
    Reset,
    /// Nothing comes until the time-out.
    Hang,
    /// The text ends without an end marker.
    Cut,
}

impl AgentSettings {
    /// Everything that is wrong with these settings; makes `model` a full name.
    ///
    /// # Errors
    /// The problems, with pointers into the settings.
    pub fn check(&mut self, catalogue: &Catalogue) -> Result<(), Problems> {
        let mut problems = Problems::new();
        let p = &mut problems;
        match catalogue.resolve(&self.model) {
            Ok(model) => {
                p.require(
                    self.max_cost_usd.is_none() || catalogue.price(&model).is_some(),
                    "/max_cost_usd",
                    format!("{model} has no price: set prices for it in the configuration"),
                );
                self.model = model.to_string();
            }
            Err(message) => p.add("/model", message),
        }
        p.require(chars(self.name.as_deref()) <= 200, "/name", "at most 200 characters");
        p.require(
            chars(self.description.as_deref()) <= 4_000,
            "/description",
            "at most 4000 characters",
        );
        p.require(self.tools.len() <= limits::MAX_TOOLS, "/tools", "at most 128 tools");
        let mut names = HashSet::new();
        for (i, tool) in self.tools.iter().enumerate() {
            tool.check(&format!("/tools/{i}"), p);
            p.require(
                names.insert(tool.name()),
                &format!("/tools/{i}/name"),
                "two tools have this name",
            );
        }
        check_numbers(
            &Numbers {
                temperature: self.temperature,
                top_p: self.top_p,
                max_output_tokens: Some(self.max_output_tokens),
                max_steps: Some(self.max_steps),
                timeout_seconds: Some(self.timeout_seconds),
                max_context_tokens: self.max_context_tokens,
            },
            p,
        );
        check_output_schema(self.output_schema.as_ref(), p);
        check_metadata(&self.metadata, "/metadata", p);
        check_script(&self.script, p);
        problems.into_result()
    }
}

impl AgentSettings {
    /// What the operator's rules have against where its tools reach, with pointers into the settings.
    pub fn check_outbound(
        &self,
        outbound: &Outbound,
        workspace_id: WorkspaceId,
    ) -> OutboundProblems {
        let mut problems = OutboundProblems::default();
        for (i, tool) in self.tools.iter().enumerate() {
            tool.check_outbound(&format!("/tools/{i}"), outbound, workspace_id, &mut problems);
        }
        problems
    }
}

fn chars(text: Option<&str>) -> usize {
    text.map_or(0, |t| t.chars().count())
}

/// The numbers that agents and run configs share.
pub struct Numbers {
    /// See [`AgentSettings::temperature`].
    pub temperature: Option<f64>,
    /// See [`AgentSettings::top_p`].
    pub top_p: Option<f64>,
    /// See [`AgentSettings::max_output_tokens`].
    pub max_output_tokens: Option<u32>,
    /// See [`AgentSettings::max_steps`].
    pub max_steps: Option<u32>,
    /// See [`AgentSettings::timeout_seconds`].
    pub timeout_seconds: Option<u64>,
    /// See [`AgentSettings::max_context_tokens`].
    pub max_context_tokens: Option<u64>,
}

/// Adds what is wrong with the numbers.
pub fn check_numbers(n: &Numbers, p: &mut Problems) {
    let within = |value: Option<f64>, top: f64| value.is_none_or(|v| (0.0..=top).contains(&v));
    p.require(within(n.temperature, 2.0), "/temperature", "must be 0 to 2");
    p.require(within(n.top_p, 1.0), "/top_p", "must be 0 to 1");
    p.require(
        n.max_output_tokens.is_none_or(|v| (1..=10_000_000).contains(&v)),
        "/max_output_tokens",
        "must be 1 to 10000000",
    );
    p.require(
        n.max_steps.is_none_or(|v| (1..=limits::MAX_STEPS).contains(&v)),
        "/max_steps",
        "must be 1 to 10000",
    );
    p.require(
        n.timeout_seconds.is_none_or(|v| (1..=limits::MAX_TIMEOUT_SECONDS).contains(&v)),
        "/timeout_seconds",
        "must be 1 to 2592000",
    );
    p.require(
        n.max_context_tokens.is_none_or(|v| (1..=limits::MAX_CONTEXT_TOKENS).contains(&v)),
        "/max_context_tokens",
        "must be 1 to 100000000",
    );
}

/// Adds what is wrong with an output schema.
pub fn check_output_schema(schema: Option<&Value>, p: &mut Problems) {
    if let Some(Err(message)) = schema.map(Schema::compile) {
        p.add("/output_schema", message);
    }
}

/// Adds what is wrong with a script.
pub fn check_script(script: &[ScriptTurn], p: &mut Problems) {
    p.require(script.len() <= limits::MAX_SCRIPT_TURNS, "/script", "at most 1000 turns");
    for (i, turn) in script.iter().enumerate() {
        let calm = |ms: Option<u64>| ms.is_none_or(|v| v <= 3_600_000);
        p.require(
            calm(turn.delay_ms) && calm(turn.chunk_delay_ms),
            &format!("/script/{i}"),
            "delays are at most 3600000 ms",
        );
        p.require(
            turn.tool_calls.len() <= limits::MAX_CALLS_PER_STEP,
            &format!("/script/{i}/tool_calls"),
            "at most 128 calls",
        );
        p.require(
            turn.usage.is_none_or(|u| {
                u.input_tokens.max(u.output_tokens) <= limits::MAX_PLAUSIBLE_TOKENS
            }),
            &format!("/script/{i}/usage"),
            "at most 100000000 tokens",
        );
        p.require(
            turn.fail.is_none_or(|f| f.status.is_none_or(|s| (400..=599).contains(&s))),
            &format!("/script/{i}/fail/status"),
            "must be 400 to 599",
        );
    }
}

/// Adds what is wrong with metadata.
pub fn check_metadata(metadata: &BTreeMap<String, String>, at: &str, p: &mut Problems) {
    p.require(metadata.len() <= limits::MAX_METADATA, at, "at most 16 pairs");
    for (key, value) in metadata {
        p.require(
            (1..=limits::MAX_METADATA_KEY).contains(&key.chars().count()),
            at,
            "keys have 1 to 64 characters",
        );
        p.require(
            value.chars().count() <= limits::MAX_METADATA_VALUE,
            at,
            "values have at most 512 characters",
        );
        // Labels are text columns, and Postgres has no NUL in text.
        p.require(!key.contains('\0') && !value.contains('\0'), at, "must not contain U+0000");
    }
}

/// Who may change an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManagedBy {
    /// The API.
    Api,
    /// `stepwell.yaml`: changing it through the API is refused as `read_only`.
    Config,
}

/// An agent at one of its versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// Its name in paths.
    pub agent_id: AgentId,
    /// What it is.
    #[serde(flatten)]
    pub settings: AgentSettings,
    /// Counts changes, from 1. A run keeps the version that it started with.
    pub version: i32,
    /// Who may change it.
    pub managed_by: ManagedBy,
    /// Since when it takes no new runs; null while it does.
    pub archived_at: Option<Timestamp>,
    /// When its first version was made.
    pub created_at: Timestamp,
    /// When this version was made.
    pub updated_at: Timestamp,
}
