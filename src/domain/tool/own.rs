//! Tools that users declare.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;
use utoipa::ToSchema;

use super::headers::check_headers;
use super::{Effect, any_object, default_timeout, default_wait, idempotent};
use crate::domain::ids::AgentId;
use crate::domain::problem::Problems;

/// A URL that Stepwell calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpTool {
    /// The name that the model calls it by: `^[a-zA-Z0-9_-]{1,64}$`.
    pub name: String,
    /// What the model is told about it: what it does and when to call it.
    #[serde(default)]
    pub description: String,
    /// A JSON Schema for its arguments; they are checked before anything is called.
    #[serde(default = "any_object")]
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// The method.
    #[serde(default)]
    pub method: HttpMethod,
    /// Where. `{name}` is filled, percent-encoded, from the arguments, never in scheme or host: in the path it
    /// must be there, and a `name={name}` of the query is left out if its argument is missing or null. The
    /// other arguments go into the query (GET, DELETE; a list as one pair for each of its values, an object
    /// as JSON, null not at all) or the JSON body; or into a form, if `headers` give the `content-type`
    /// `application/x-www-form-urlencoded`. `https`, and on the public internet, unless the server's
    /// operator has opened another place; names are resolved, and their addresses checked, at each call.
    /// Redirects are not followed. The answer is JSON if it parses, else text in its own charset, up to
    /// 256 KiB.
    #[schema(examples("https://crm.example.com/customers/{customer_id}"))]
    pub url: String,
    /// Headers; a value may hold `${secret.NAME}`, a secret of the server's operator for that host. Stepwell
    /// adds `Idempotency-Key: {run_id}:{call_id}` and `X-Run-Id`, the same on every attempt.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// What a call does to the world, and so whether it may be repeated.
    #[serde(default)]
    pub effect: Effect,
    /// Whether somebody must agree before each call.
    #[serde(default)]
    pub requires_approval: bool,
    /// Seconds after which one attempt has failed: 1–600.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
    /// Seconds after which an approval that nobody decided counts as denied: 1–2592000.
    #[serde(default = "default_wait")]
    pub approval_timeout_seconds: u32,
}

/// The method of an HTTP tool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "their names are all there is to say")]
pub enum HttpMethod {
    Get,
    #[default]
    Post,
    Put,
    Patch,
    Delete,
}

/// A tool that the caller runs: the run waits, and the caller posts the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientTool {
    /// The name that the model calls it by: `^[a-zA-Z0-9_-]{1,64}$`.
    pub name: String,
    /// What the model is told about it: what it does and when to call it.
    #[serde(default)]
    pub description: String,
    /// A JSON Schema for its arguments; they are checked before the caller is asked.
    #[serde(default = "any_object")]
    #[schema(value_type = Object)]
    pub parameters: Value,
    /// What a call does to the world. Shown in `tool_call.created`, for whoever runs it: Stepwell asks for
    /// a result once, whatever it says here.
    #[serde(default)]
    pub effect: Effect,
    /// Whether somebody must agree before the caller is asked.
    #[serde(default)]
    pub requires_approval: bool,
    /// Seconds that the caller has to post the result; then the call has failed: 1–2592000.
    #[serde(default = "default_wait")]
    pub timeout_seconds: u32,
    /// Seconds after which an approval that nobody decided counts as denied: 1–2592000.
    #[serde(default = "default_wait")]
    pub approval_timeout_seconds: u32,
}

/// The tools of an MCP server, over streamable HTTP (the older HTTP+SSE transport is not spoken).
///
/// The server is asked for them before a run's first step, and what it says is remembered for ten
/// minutes. The model gets each as `{name}__{tool}`; where that is longer than 64 characters or has
/// others than letters, digits, `_` and `-`, it is made to fit and ends in 8 digits of a hash. A run does
/// not go on without tools that it was given: a server that cannot be asked for 30 s ends it `failed`
/// with `error.code` `tool_error`, one that refuses (401, 404, no MCP) at once; `error.message` says what
/// to change. One that was known and is silent now keeps the tools that it had.
///
/// A run has one session with each server, from its first call until it ends or parks: what the server
/// keeps in it (a browser, a shell) is there in the next step. After a park, a restart of this server
/// or five minutes without a call, the next call begins a new session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct McpTool {
    /// What the names of its tools begin with: `{name}__{tool}`; `^[a-zA-Z0-9_-]{1,64}$`.
    pub name: String,
    /// For people. The model is told what the server says of each of its tools.
    #[serde(default)]
    pub description: String,
    /// Its streamable HTTP endpoint. `https`, and on the public internet, unless the server's operator
    /// has opened another place.
    #[schema(examples("https://mcp.example.com/mcp"))]
    pub url: String,
    /// Headers of every request, for example `authorization`; a value may hold `${secret.NAME}`, a secret
    /// of the server's operator for that host.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Which of its tools the model may call, by their names there, at most 128; all when left out. A
    /// model does better with few: name those that the agent needs. One that the server does not have is
    /// left out, with a warning in the log of this server.
    #[serde(default)]
    #[schema(max_items = 128)]
    pub allowed_tools: Option<Vec<String>>,
    /// What a call of any of them does to the world, and so whether it may be repeated; what the server
    /// claims of its tools (`readOnlyHint`, `idempotentHint`) is not relied on. For tools of different effects, name the server twice,
    /// with different `allowed_tools`.
    #[serde(default)]
    pub effect: Effect,
    /// Whether somebody must agree before each call.
    #[serde(default)]
    pub requires_approval: bool,
    /// Seconds after which one attempt has failed: 1–600. What the server tells of its progress does not
    /// prolong it.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
    /// Seconds after which an approval that nobody decided counts as denied: 1–2592000.
    #[serde(default = "default_wait")]
    pub approval_timeout_seconds: u32,
}

/// Tools that an agent may choose from one server: more than a model takes would be a mistake.
const MAX_ALLOWED: usize = 128;

impl McpTool {
    /// Adds what is wrong with it and with no other kind of tool.
    pub(super) fn check(&self, pointer: &str, problems: &mut Problems) {
        let is_http = |url: Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        problems.require(
            Url::parse(&self.url).is_ok_and(is_http),
            &format!("{pointer}/url"),
            "must be an http or https URL",
        );
        check_headers(&self.headers, &format!("{pointer}/headers"), problems);
        for name in self.headers.keys() {
            let lower = name.to_ascii_lowercase();
            let is_protocol = matches!(lower.as_str(), "accept" | "content-type" | "last-event-id");
            problems.require(
                !is_protocol && !lower.starts_with("mcp-"),
                &format!("{pointer}/headers/{}", name.replace('~', "~0").replace('/', "~1")),
                "belongs to the protocol",
            );
        }
        let allowed = self.allowed_tools.as_ref();
        problems.require(
            allowed.is_none_or(|names| names.len() <= MAX_ALLOWED),
            &format!("{pointer}/allowed_tools"),
            "must name at most 128 tools",
        );
    }
}

/// Another agent. Each call takes `{input: string}` and makes a run of it, with a log of its own: a child
/// of the run that calls, which goes on when the child has ended. What the child answers (its `output`
/// if it has one, else its text) is the result; a child that ends in any other way is a failed result,
/// in words. The child may spend what its parent has left of `max_cost_usd`, shared equally by the calls
/// that are made at once, and of its time. Agents may call agents five levels deep, and
/// 1,000 runs in all may come of one: a call beyond that is a failed result, which the model reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentTool {
    /// The name that the model calls it by: `^[a-zA-Z0-9_-]{1,64}$`.
    pub name: String,
    /// What the model is told about it: what that agent is for.
    #[serde(default)]
    pub description: String,
    /// Which agent, at the version that is current when it is called. It may be the agent itself.
    pub agent_id: AgentId,
    /// What a call does to the world; `idempotent` when left out. Shown in `tool_call.created`. No call makes
    /// a second child, whatever it says here.
    #[serde(default = "idempotent")]
    pub effect: Effect,
    /// Whether somebody must agree before each call.
    #[serde(default)]
    pub requires_approval: bool,
    /// Seconds that the child may run, without those in which it waits for people: 1–600. The agent's
    /// own `timeout_seconds` counts if it is smaller.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: u32,
    /// Seconds after which an approval that nobody decided counts as denied: 1–2592000.
    #[serde(default = "default_wait")]
    pub approval_timeout_seconds: u32,
}

/// What every agent takes.
pub(super) fn agent_parameters() -> Value {
    json!({
        "type": "object",
        "properties": {"input": {"type": "string", "description": "What the agent is asked to do."}},
        "required": ["input"], "additionalProperties": false
    })
}
