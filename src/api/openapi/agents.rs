//! Agents in the spec: flat objects, which `serde(flatten)` would describe as a composition.

use std::borrow::Cow;

use serde_json::{Value, json};
use utoipa::openapi::schema::{AdditionalProperties, Object, SchemaType, Type};
use utoipa::openapi::{Components, OneOfBuilder, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::app::reading;
use crate::domain::agent::{Agent, AgentSettings};
use crate::domain::ids::AgentId;
use crate::domain::tool::{MAX_TIMEOUT, MAX_WAIT, Tool};

/// The body of `POST /v1/agents`: `agent_id` and the settings, in one object.
pub struct CreateAgentRequest;

/// The body of `PATCH /v1/agents/{agent_id}`: any settings, each of which may be null.
pub struct UpdateAgentRequest;

impl PartialSchema for CreateAgentRequest {
    fn schema() -> RefOr<Schema> {
        let mut object = settings();
        object.description = Some("An agent to be created.".to_owned());
        let own = std::mem::take(&mut object.properties);
        object.properties.insert("agent_id".to_owned(), reference("AgentId"));
        object.properties.extend(own);
        object.required = vec!["agent_id".to_owned(), "model".to_owned()];
        set_defaults(&mut object);
        object.examples = vec![json!({
            "agent_id": "sales-analyst",
            "description": "Use for questions about sales figures.",
            "model": "openai/gpt-4o",
            "system_prompt": "You are a careful analyst.",
            "tools": [
                {"type": "http", "name": "get_sales", "method": "GET", "effect": "read",
                 "description": "Sales of a quarter, by region. Call it before you name a figure.",
                 "url": "https://sales.example.com/quarters/{quarter}",
                 "parameters": {"type": "object", "required": ["quarter"],
                                "properties": {"quarter": {"type": "string", "examples": ["2026-Q4"]}}}},
                {"type": "client", "name": "send_report", "requires_approval": true,
                 "description": "Sends the report to the board. Only when the user asks for it.",
                 "parameters": {"type": "object", "required": ["text"],
                                "properties": {"text": {"type": "string"}}}}
            ],
            "max_cost_usd": 0.5
        })];
        object.into()
    }
}

impl ToSchema for CreateAgentRequest {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("CreateAgentRequest")
    }
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(("AgentId".to_owned(), AgentId::schema()));
        AgentSettings::schemas(schemas);
    }
}

impl PartialSchema for UpdateAgentRequest {
    fn schema() -> RefOr<Schema> {
        let mut object = settings();
        object.description =
            Some("What to change about an agent; null takes a field to its default.".to_owned());
        object.required = Vec::new();
        let fields = std::mem::take(&mut object.properties);
        // A model is the one thing that has no default.
        let may_be_null = |(name, field)| {
            let field = if name == "model" { field } else { nullable(field) };
            (name, field)
        };
        object.properties = fields.into_iter().map(may_be_null).collect();
        object.examples = vec![json!({"system_prompt": "You are brief.", "max_steps": 5})];
        object.into()
    }
}

impl ToSchema for UpdateAgentRequest {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("UpdateAgentRequest")
    }
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        AgentSettings::schemas(schemas);
    }
}

/// Replaces the composition that the derive makes of [`Agent`] by one object.
pub fn make_flat(components: &mut Components) {
    let mut agent = Object::new();
    agent.description = Some("An agent at one of its versions.".to_owned());
    agent.properties.insert("agent_id".to_owned(), reference("AgentId"));
    let mut settings = settings();
    agent.properties.extend(std::mem::take(&mut settings.properties));
    if let RefOr::T(Schema::AllOf(parts)) = Agent::schema() {
        for part in parts.items {
            if let RefOr::T(Schema::Object(own)) = part {
                let new = own.properties.into_iter().filter(|(name, _)| name != "agent_id");
                agent.properties.extend(new.collect::<Vec<_>>());
            }
        }
    }
    agent.schema_type = SchemaType::Type(Type::Object);
    agent.required = agent.properties.keys().filter(|name| *name != "script").cloned().collect();
    components.schemas.insert("Agent".to_owned(), agent.into());
    components.schemas.remove("AgentSettings");
    if let Some(RefOr::T(Schema::Object(config))) = components.schemas.get_mut("RunConfig") {
        set_bounds(config);
    }
    for (name, bare) in bare_tools() {
        if let Some(RefOr::T(Schema::Object(tool))) = components.schemas.get_mut(name) {
            set_tool_bounds(tool, name, &bare);
        }
    }
}

/// One tool of each kind that says nothing but what it must, by its schema.
fn bare_tools() -> [(&'static str, Value); 5] {
    [
        ("HttpTool", json!({"type": "http", "name": "t", "url": "https://example.com"})),
        ("ClientTool", json!({"type": "client", "name": "t"})),
        ("McpTool", json!({"type": "mcp", "name": "t", "url": "https://example.com"})),
        ("AgentTool", json!({"type": "agent", "name": "t", "agent_id": "a"})),
        ("BuiltinTool", json!({"type": "builtin", "name": "echo"})),
    ]
}

/// The bounds that `Tool::check` keeps, and the defaults that serde fills in.
fn set_tool_bounds(tool: &mut Object, name: &str, bare: &Value) {
    let longest = if name == "ClientTool" { MAX_WAIT } else { MAX_TIMEOUT };
    for (field, maximum) in [("timeout_seconds", longest), ("approval_timeout_seconds", MAX_WAIT)] {
        if let Some(RefOr::T(Schema::Object(field))) = tool.properties.get_mut(field) {
            field.minimum = Some(1_usize.into());
            field.maximum = Some((maximum as usize).into());
        }
    }
    let whole = reading::read::<Tool>(bare.clone()).ok();
    let Some(Value::Object(whole)) = whole.and_then(|tool| serde_json::to_value(tool).ok()) else {
        return;
    };
    let defaults = whole.into_iter().filter(|(name, _)| bare.get(name).is_none());
    fill_in(tool, defaults);
}

/// The settings as the derive describes them, with the bounds that `AgentSettings::check` keeps.
fn settings() -> Object {
    let RefOr::T(Schema::Object(mut object)) = AgentSettings::schema() else {
        return Object::new();
    };
    set_bounds(&mut object);
    object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    object
}

fn set_bounds(object: &mut Object) {
    use crate::domain::limits::{MAX_CONTEXT_TOKENS, MAX_STEPS, MAX_TIMEOUT_SECONDS};
    let bounds = [
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("max_output_tokens", 1, 10_000_000),
        ("max_steps", 1, MAX_STEPS as usize),
        ("timeout_seconds", 1, usize::try_from(MAX_TIMEOUT_SECONDS).unwrap_or(usize::MAX)),
        ("max_context_tokens", 1, usize::try_from(MAX_CONTEXT_TOKENS).unwrap_or(usize::MAX)),
    ];
    for (name, minimum, maximum) in bounds {
        if let Some(RefOr::T(Schema::Object(field))) = object.properties.get_mut(name) {
            field.minimum = Some(minimum.into());
            field.maximum = Some(maximum.into());
        }
    }
}

/// The defaults that serde fills in, read from an agent that says nothing but its model.
fn set_defaults(object: &mut Object) {
    let bare = reading::read::<AgentSettings>(json!({"model": "builtin/echo"}));
    let Some(Value::Object(defaults)) = bare.ok().and_then(|s| serde_json::to_value(s).ok()) else {
        return;
    };
    fill_in(object, defaults.into_iter().filter(|(name, _)| name != "model"));
}

fn fill_in(object: &mut Object, defaults: impl Iterator<Item = (String, Value)>) {
    for (name, default) in defaults.filter(|(_, default)| !default.is_null()) {
        match object.properties.get_mut(&name) {
            Some(RefOr::T(Schema::Object(field))) => field.default = Some(default),
            Some(RefOr::T(Schema::Array(field))) => field.default = Some(default),
            Some(RefOr::Ref(field)) => field.default = Some(default),
            _ => {}
        }
    }
}

fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(utoipa::openapi::Ref::from_schema_name(name))
}

/// The same or null.
fn nullable(field: RefOr<Schema>) -> RefOr<Schema> {
    let with_null = |schema_type: SchemaType| match schema_type {
        SchemaType::Type(one) => SchemaType::Array(vec![one, Type::Null]),
        other => other,
    };
    match field {
        RefOr::T(Schema::Object(mut object)) => {
            object.schema_type = with_null(object.schema_type);
            RefOr::T(Schema::Object(object))
        }
        RefOr::T(Schema::Array(mut array)) => {
            array.schema_type = with_null(array.schema_type);
            RefOr::T(Schema::Array(array))
        }
        RefOr::Ref(mut reference) => {
            let description = std::mem::take(&mut reference.description);
            let mut null = Object::new();
            null.schema_type = SchemaType::Type(Type::Null);
            let either = OneOfBuilder::new().item(null).item(RefOr::Ref(reference));
            either.description(Some(description).filter(|text| !text.is_empty())).into()
        }
        // A composition says null already where a field may be.
        other => other,
    }
}
