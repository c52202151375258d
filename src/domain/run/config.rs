//! What a run changes about its agent, for itself alone: limits only go down.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::domain::agent::{
    AgentSettings, Numbers, ScriptTurn, check_numbers, check_output_schema, check_script,
};
use crate::domain::limits;
use crate::domain::model::{Catalogue, ReasoningEffort, ToolChoice};
use crate::domain::money::Usd;
use crate::domain::place;
use crate::domain::problem::Problems;
use crate::domain::tool::{ClientTool, Tool};

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
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum OnlyClient {
        Client,
    }

    struct Given(ClientTool);

    impl<'de> Deserialize<'de> for Given {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let mut fields = Map::<String, Value>::deserialize(deserializer)?;
            if let Some(kind) = fields.remove("type") {
                let OnlyClient::Client = place::read_at("/type", kind)?;
            }
            place::read_at("", Value::Object(fields)).map(Self)
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
