//! A run's plan: the settings it is pinned to, made ready for use. Derived, never stored.

use std::collections::HashMap;

use serde_json::Value;

use super::agent::AgentSettings;
use super::model::{Catalogue, ModelName};
use super::money::{Price, Usd};
use super::schema::Schema;
use super::tool::Tool;
use super::usage::Usage;

/// What a run was told to do.
#[derive(Debug)]
pub struct Plan {
    /// The agent's settings with the run's config over them.
    pub settings: AgentSettings,
    /// The model, if its name can still be read.
    pub model: Option<ModelName>,
    /// What the model costs, where the operator said so.
    pub price: Option<Price>,
    /// The compiled `output_schema`.
    output: Option<Schema>,
    /// The compiled schemas of the tools' arguments.
    arguments: HashMap<String, Schema>,
}

impl Plan {
    /// Makes the plan. Schemas were checked when they were stored; one that cannot be compiled any
    /// more is not enforced rather than failing runs that were accepted.
    pub fn new(settings: AgentSettings, catalogue: &Catalogue) -> Self {
        let model = ModelName::parse(&settings.model);
        let price = model.as_ref().and_then(|model| catalogue.price(model));
        let output = settings.output_schema.as_ref().and_then(|s| Schema::compile(s).ok());
        let compile = |tool: &Tool| {
            let schema = Schema::compile(&tool.spec()?.parameters).ok()?;
            Some((tool.name().to_owned(), schema))
        };
        let arguments = settings.tools.iter().filter_map(compile).collect();
        Self { settings, model, price, output, arguments }
    }

    /// The tool of this name.
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.settings.tools.iter().find(|tool| tool.name() == name)
    }

    /// Whether a call may be made with these arguments.
    ///
    /// # Errors
    /// In words for the model, which may try again.
    pub fn check_call(&self, tool: &str, arguments: &Value) -> Result<&Tool, String> {
        let Some(found) = self.tool(tool) else {
            let names: Vec<&str> = self.settings.tools.iter().map(Tool::name).collect();
            return Err(format!("There is no tool {tool:?}. Tools: {}.", names.join(", ")));
        };
        if !arguments.is_object() {
            return Err("The arguments are not a JSON object.".to_owned());
        }
        match self.arguments.get(tool) {
            Some(schema) => schema
                .check(arguments)
                .map(|()| found)
                .map_err(|told| format!("The arguments do not fit the tool's schema: {told}")),
            None => Ok(found),
        }
    }

    /// Reads a final text as the output that was asked for; `None` when none was.
    ///
    /// # Errors
    /// In words for the model, which is told once.
    pub fn output(&self, text: &str) -> Result<Option<Value>, String> {
        let Some(schema) = &self.output else { return Ok(None) };
        let value: Value = serde_json::from_str(unfenced(text))
            .map_err(|error| format!("it is not JSON ({error})"))?;
        schema.check(&value)?;
        Ok(Some(value))
    }

    /// What the model call cost.
    pub fn cost(&self, usage: &Usage) -> Option<Usd> {
        self.price.map(|price| price.cost(usage))
    }

    /// The most that a call with a prompt of this many bytes can cost; `None` without a price.
    ///
    /// Two bytes a token is less text than tokenizers in use make of a token (English has four,
    /// Chinese three), so this errs to refusal.
    pub fn worst_case(&self, prompt_bytes: usize) -> Option<Usd> {
        let input = u64::try_from(prompt_bytes / 2 + 16).unwrap_or(u64::MAX);
        self.cost(&Usage::new(input, 0, u64::from(self.settings.max_output_tokens), 0))
    }
}

/// The text without the Markdown fence that models like to put around JSON.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix("```").and_then(|t| t.strip_suffix("```")) else {
        return text;
    };
    inner.strip_prefix("json").unwrap_or(inner).trim()
}
