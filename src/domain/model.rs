//! Models by name: `provider/model`, what they cost and how much they read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::message::Content;
use super::money::Price;
use super::tool::ToolSpec;
use super::usage::Usage;

/// A model of a provider that is configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelName {
    /// The provider's name in the configuration.
    pub provider: String,
    /// The model's name at the provider; may hold slashes.
    pub model: String,
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

impl ModelName {
    /// Reads a full name, as runs and agents keep it.
    pub fn parse(full: &str) -> Option<Self> {
        let (provider, model) = full.split_once('/')?;
        (!provider.is_empty() && !model.is_empty())
            .then(|| Self { provider: provider.to_owned(), model: model.to_owned() })
    }
}

/// The built-in provider, which needs nothing.
pub const BUILTIN: &str = "builtin";
/// Streams the input back word by word.
pub const ECHO: &str = "echo";
/// Plays an agent's `script`.
pub const SCRIPT: &str = "script";

/// What is known of the providers: names, prices, sizes. No keys and no addresses.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// Used for bare model names.
    pub default_provider: Option<String>,
    /// By name; `builtin` is always there.
    pub providers: BTreeMap<String, ProviderFacts>,
}

/// What is known of one provider.
#[derive(Debug, Clone, Default)]
pub struct ProviderFacts {
    /// By model; `*` for all others.
    pub prices: BTreeMap<String, Price>,
    /// Tokens that its models take, prompt and answer together, where the operator said so.
    pub context_tokens: Option<u64>,
}

impl Catalogue {
    /// Finds the model that `name` means.
    ///
    /// # Errors
    /// In words for the user: the provider is unknown, or a bare name is ambiguous.
    pub fn resolve(&self, name: &str) -> Result<ModelName, String> {
        let known = |provider: &str| provider == BUILTIN || self.providers.contains_key(provider);
        if let Some(full) = ModelName::parse(name)
            && known(&full.provider)
        {
            if full.provider == BUILTIN && full.model != ECHO && full.model != SCRIPT {
                return Err("builtin models are builtin/echo and builtin/script".to_owned());
            }
            return Ok(full);
        }
        if name.is_empty() {
            return Err("must be \"provider/model\"".to_owned());
        }
        let mut configured = self.providers.keys().filter(|p| *p != BUILTIN);
        let only = match (configured.next(), configured.next()) {
            (Some(only), None) => Some(only),
            (None, _) | (Some(_), Some(_)) => None,
        };
        // "meta/llama-3" may be a bare name with a slash of its own, but only where the operator
        // named a default: otherwise it is more likely a misspelt provider.
        let home = self.default_provider.as_ref().or(if name.contains('/') { None } else { only });
        match home {
            Some(provider) => Ok(ModelName { provider: provider.clone(), model: name.to_owned() }),
            None => Err(self.explain(name)),
        }
    }

    fn explain(&self, name: &str) -> String {
        let mut providers: Vec<&str> = self.providers.keys().map(String::as_str).collect();
        if !providers.contains(&BUILTIN) {
            providers.push(BUILTIN);
        }
        let providers = providers.join(", ");
        match name.split_once('/') {
            Some((provider, _)) => {
                format!(
                    "provider {provider:?} is not configured; configured: {providers}. The operator \
                     adds others in stepwell.yaml; for openai and anthropic OPENAI_API_KEY or \
                     ANTHROPIC_API_KEY in the server's environment is enough"
                )
            }
            None => format!(
                "a bare model name needs default_provider; write \"provider/{name}\" with one of: {providers}"
            ),
        }
    }

    /// What `model` costs, if the operator said so.
    pub fn price(&self, model: &ModelName) -> Option<Price> {
        let prices = &self.providers.get(&model.provider)?.prices;
        prices.get(&model.model).or_else(|| prices.get("*")).copied()
    }

    /// The tokens that `model` takes, prompt and answer together, if the operator said so.
    pub fn context_tokens(&self, model: &ModelName) -> Option<u64> {
        self.providers.get(&model.provider)?.context_tokens
    }
}

/// How much a model may think before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningEffort {
    /// Hardly.
    Minimal,
    /// A little.
    Low,
    /// Some.
    Medium,
    /// As much as it can.
    High,
}

/// Whether the model may, must or must not call tools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// As it sees fit.
    #[default]
    Auto,
    /// Never.
    None,
    /// It must call one in its first turn; afterwards as it sees fit.
    Required,
}

/// One entry of the transcript that a model reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// Instructions.
    System(String),
    /// What the user said.
    User(Content),
    /// What the model said and asked for before.
    Assistant {
        /// Its text; may be empty when it only called tools.
        content: Content,
        /// What the provider wants back untouched (signed thinking, for example).
        provider_state: Option<Value>,
        /// The calls it asked for. Each is answered by a [`Turn::Tool`] that follows at once.
        tool_calls: Vec<CallTurn>,
    },
    /// The answer to one call of the assistant turn before it.
    Tool {
        /// Which call.
        call_id: String,
        /// The tool's name.
        tool: String,
        /// The result or the error, as text.
        content: String,
        /// Whether the call failed.
        is_error: bool,
    },
}

impl Turn {
    /// Whether it instructs the model.
    pub const fn is_system(&self) -> bool {
        matches!(self, Self::System(_))
    }
}

/// A tool call inside an assistant turn.
#[derive(Debug, Clone, PartialEq)]
pub struct CallTurn {
    /// Stepwell's id of the call; providers take any.
    pub call_id: String,
    /// The tool's name.
    pub tool: String,
    /// Its arguments: an object, or the raw text where the model wrote no JSON object.
    pub arguments: Value,
}

/// Everything that one model call needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelRequest {
    /// The model's name at its provider.
    pub model: String,
    /// The transcript; system turns first.
    pub turns: Vec<Turn>,
    /// The tools on offer.
    pub tools: Vec<ToolSpec>,
    /// Whether they may be called.
    pub tool_choice: ToolChoice,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Tokens that the answer may have. Always sent.
    pub max_output_tokens: u32,
    /// How much to think.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Merged into the request body, for what this list does not know.
    pub provider_options: Map<String, Value>,
    /// A JSON Schema that the final text must satisfy.
    pub output_schema: Option<Value>,
    /// Which turn of `builtin/script` this call plays: the step's number less one.
    pub script_turn: usize,
    /// What `builtin/script` plays.
    pub script: Vec<super::agent::ScriptTurn>,
    /// Which attempt at this call this is, from 1.
    pub attempt: i32,
}

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It had said everything.
    Stop,
    /// It wants tools called.
    ToolCalls,
    /// `max_output_tokens` was reached.
    Length,
    /// The provider withheld the answer.
    ContentFilter,
}

/// A complete answer of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelAnswer {
    /// Its text, deltas joined.
    pub content: String,
    /// Its reasoning, where the provider shows it.
    pub reasoning: String,
    /// The calls it asks for, in order, with their arguments as the model wrote them.
    pub tool_calls: Vec<RequestedCall>,
    /// Why it stopped.
    pub finish_reason: FinishReason,
    /// Tokens, as the provider counted them, or estimated from words where it did not.
    pub usage: Usage,
    /// What the provider wants back untouched with the next request.
    pub provider_state: Option<Value>,
}

/// A tool call as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedCall {
    /// The tool's name; may be unknown.
    pub tool: String,
    /// Meant to be a JSON object; may be anything.
    pub arguments: String,
}
