//! A run's plan: the settings it is pinned to, made ready for use. Derived, never stored.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::agent::AgentSettings;
use super::depth::is_too_deep;
use super::limits;
use super::limits::MAX_DEPTH;
use super::model::{Catalogue, ModelName};
use super::money::{Price, Usd};
use super::problem::Problems;
use super::schema::Schema;
use super::tool::{self, Discovered, Listing, Tool, ToolSpec};
use super::usage::Usage;

/// What a run was told to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The agent's settings with the run's config over them.
    pub settings: AgentSettings,
    /// The model, if its name can still be read.
    pub model: Option<ModelName>,
    /// What the model costs, where the operator said so.
    pub price: Option<Price>,
    /// The tokens that a prompt may have: the agent's `max_context_tokens`, or what the model takes less
    /// the answer that it may give, if that is less. `None`: nobody said.
    pub max_prompt_tokens: Option<u64>,
    /// The compiled `output_schema`.
    output: Option<Arc<Schema>>,
    /// The compiled schemas of the tools' arguments.
    arguments: HashMap<String, Arc<Schema>>,
    /// The tools of its MCP servers; `None` until they were asked.
    discovered: Option<Vec<Arc<Discovered>>>,
}

impl Plan {
    /// Makes the plan. Schemas were checked when they were stored; one that cannot be compiled any
    /// more is not enforced rather than failing runs that were accepted.
    pub fn new(settings: AgentSettings, catalogue: &Catalogue) -> Self {
        let model = ModelName::parse(&settings.model);
        let price = model.as_ref().and_then(|model| catalogue.price(model));
        let taken = model.as_ref().and_then(|model| catalogue.context_tokens(model));
        let room = taken.map(|all| all.saturating_sub(u64::from(settings.max_output_tokens)));
        let max_prompt_tokens = settings.max_context_tokens.into_iter().chain(room).min();
        let output = settings.output_schema.as_ref().and_then(|s| Schema::compile(s).ok());
        let output = output.map(Arc::new);
        let compile = |tool: &Tool| {
            let schema = Schema::compile(&tool.spec()?.parameters).ok()?;
            Some((tool.name().to_owned(), Arc::new(schema)))
        };
        let arguments = settings.tools.iter().filter_map(compile).collect();
        Self { settings, model, price, max_prompt_tokens, output, arguments, discovered: None }
    }

    /// The tools of the agent that name MCP servers.
    pub fn servers(&self) -> impl Iterator<Item = &tool::McpTool> {
        self.settings.tools.iter().filter_map(|tool| match tool {
            Tool::Mcp(server) => Some(server),
            Tool::Http(_) | Tool::Client(_) | Tool::Agent(_) | Tool::Builtin(_) => None,
        })
    }

    /// The same plan with what its MCP servers have, and the names that it has no room for: a model
    /// takes so many tools and no more, and each under a name of its own.
    pub fn with_discovered(&self, listings: &[Listing]) -> (Self, Vec<String>) {
        let own = self.settings.tools.iter().filter_map(Tool::spec);
        let mut names: HashSet<String> = own.map(|spec| spec.name).collect();
        let (mut offered, mut left_out) = (Vec::new(), Vec::new());
        for tool in listings.iter().flat_map(|listing| listing.iter()) {
            let name = &tool.spec.name;
            if names.len() < limits::MAX_TOOLS && names.insert(name.clone()) {
                offered.push(tool.clone());
            } else {
                left_out.push(name.clone());
            }
        }
        (Self { discovered: Some(offered), ..self.clone() }, left_out)
    }

    /// What the model is told that it may call.
    pub fn specs(&self) -> Vec<ToolSpec> {
        let own = self.settings.tools.iter().filter_map(Tool::spec);
        own.chain(self.offered().iter().map(|tool| tool.spec.clone())).collect()
    }

    /// The tool of an MCP server that the model calls by this name.
    pub fn discovered(&self, name: &str) -> Option<&Arc<Discovered>> {
        self.offered().iter().find(|tool| tool.spec.name == name)
    }

    fn offered(&self) -> &[Arc<Discovered>] {
        self.discovered.as_deref().unwrap_or_default()
    }

    /// The tool of this name; for one of an MCP server, what the agent says of that server. Where the
    /// servers were not asked yet, every name that begins like one of theirs is taken for one.
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        let is_meant = |tool: &&Tool| match tool {
            Tool::Mcp(server) => match &self.discovered {
                Some(_) => self.discovered(name).is_some_and(|found| found.server == server.name),
                None => name.starts_with(&tool::prefix(&server.name)),
            },
            Tool::Http(_) | Tool::Client(_) | Tool::Agent(_) | Tool::Builtin(_) => {
                tool.name() == name
            }
        };
        self.settings.tools.iter().find(is_meant)
    }

    /// Whether a call may be made with these arguments.
    ///
    /// # Errors
    /// In words for the model, which may try again.
    pub fn check_call(&self, tool: &str, arguments: &Value) -> Result<&Tool, String> {
        let Some(found) = self.tool(tool) else {
            let names: Vec<String> = self.specs().into_iter().map(|spec| spec.name).collect();
            return Err(format!("There is no tool {tool:?}. Tools: {}.", names.join(", ")));
        };
        if !arguments.is_object() {
            return Err("The arguments are not a JSON object.".to_owned());
        }
        self.check_arguments(tool, arguments)
            .map(|()| found)
            .map_err(|told| format!("The arguments do not fit the tool's schema: {told}"))
    }

    /// Whether these arguments fit the tool, as far as its schema is known.
    ///
    /// # Errors
    /// With places in the arguments, for whoever wrote them.
    pub fn check_arguments(&self, tool: &str, arguments: &Value) -> Result<(), Problems> {
        if !arguments.is_object() {
            return Err(Problems::one("", "must be a JSON object"));
        }
        let theirs = || self.discovered(tool).and_then(|found| found.arguments.as_ref());
        let schema = self.arguments.get(tool).map(Arc::as_ref).or_else(theirs);
        schema.map_or(Ok(()), |schema| schema.check(arguments))
    }

    /// Reads a final text as the output that was asked for; `None` when none was.
    ///
    /// # Errors
    /// In words for the model, which is told once.
    pub fn output(&self, text: &str) -> Result<Option<Value>, String> {
        let Some(schema) = &self.output else { return Ok(None) };
        let value: Value = serde_json::from_str(unfenced(text))
            .map_err(|error| format!("it is not JSON ({error})"))?;
        if is_too_deep(&value) {
            return Err(format!("it is nested more than {MAX_DEPTH} levels deep"));
        }
        schema.check(&value).map_err(|told| told.to_string())?;
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
