//! Tools: what a model may ask for.

mod builtin;
mod discovered;
mod headers;
mod own;
mod template;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use url::Url;
use utoipa::ToSchema;

use super::egress::Outbound;
use super::ids::WorkspaceId;
use super::place;
use super::problem::Problems;
use super::schema::Schema;

pub use builtin::{Builtin, BuiltinTool};
pub(in crate::domain) use discovered::prefix;
pub use discovered::{Discovered, Listed, Listing};
pub use headers::{HeaderPart, header_parts};
pub use own::{AgentTool, ClientTool, HttpMethod, HttpTool, McpTool};
pub use template::{MAX_URL, UrlTemplate};

/// Seconds that a call may take, for tools that do not say.
const DEFAULT_TIMEOUT: u32 = 30;
/// Seconds that a call may take at most.
pub const MAX_TIMEOUT: u32 = 600;
/// Seconds that the caller has for a `client` tool, and anybody for an approval, if nobody says.
const DEFAULT_WAIT: u32 = 86_400;
/// The most that anybody has for an answer: 30 days.
pub const MAX_WAIT: u32 = 30 * 86_400;
/// Bytes of a description: every model call pays for it.
const MAX_DESCRIPTION: usize = 4_096;

/// A tool of an agent, told apart by `type`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Tool {
    /// Stepwell calls a URL.
    Http(HttpTool),
    /// Run by the caller, who posts the result to `tool-results`.
    Client(ClientTool),
    /// Every tool of an MCP server over streamable HTTP, named `{name}__{tool}`.
    Mcp(McpTool),
    /// Another agent, as a child run; takes `{input: string}`.
    Agent(AgentTool),
    /// Run by Stepwell itself: `current_time`, `echo` or `sleep`, chosen by `name`.
    Builtin(BuiltinTool),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Http,
    Client,
    Mcp,
    Agent,
    Builtin,
}

impl<'de> Deserialize<'de> for Tool {
    // By hand, because a tagged enum loses which field was wrong.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let Some(kind) = fields.remove("type") else {
            return Err(D::Error::missing_field("type"));
        };
        let tool = Value::Object(fields);
        match place::read_at("/type", kind)? {
            Kind::Http => place::read_at("", tool).map(Self::Http),
            Kind::Client => place::read_at("", tool).map(Self::Client),
            Kind::Mcp => place::read_at("", tool).map(Self::Mcp),
            Kind::Agent => place::read_at("", tool).map(Self::Agent),
            Kind::Builtin => place::read_at("", tool).map(Self::Builtin),
        }
    }
}

/// Which effect a call has, and so whether it may be repeated after a crash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// No side effect: repeated freely.
    Read,
    /// Safe to repeat with the same idempotency key.
    Idempotent,
    /// Must not be repeated.
    #[default]
    Once,
}

fn default_timeout() -> u32 {
    DEFAULT_TIMEOUT
}

fn default_wait() -> u32 {
    DEFAULT_WAIT
}

/// The call names its child: a second attempt finds the first one's.
fn idempotent() -> Effect {
    Effect::Idempotent
}

/// What Stepwell runs itself changes nothing.
fn read() -> Effect {
    Effect::Read
}

/// The schema of a tool that takes no arguments it knows of.
fn any_object() -> Value {
    json!({"type": "object"})
}

/// A tool as the model is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolSpec {
    /// The name to call it by.
    pub name: String,
    /// When to call it.
    pub description: String,
    /// A JSON Schema for its arguments.
    pub parameters: Value,
}

impl Tool {
    /// The name that a model calls it by; what the tools of an MCP server begin with.
    pub fn name(&self) -> &str {
        match self {
            Self::Http(tool) => &tool.name,
            Self::Client(tool) => &tool.name,
            Self::Mcp(tool) => &tool.name,
            Self::Agent(tool) => &tool.name,
            Self::Builtin(tool) => tool.name.name(),
        }
    }

    /// What the model is told; `None` where only its server knows.
    pub fn spec(&self) -> Option<ToolSpec> {
        let spec = |name: &str, description: &str, parameters: Value| ToolSpec {
            name: name.to_owned(),
            description: description.to_owned(),
            parameters,
        };
        match self {
            Self::Http(t) => Some(spec(&t.name, &t.description, t.parameters.clone())),
            Self::Client(t) => Some(spec(&t.name, &t.description, t.parameters.clone())),
            Self::Agent(t) => Some(spec(&t.name, &t.description, own::agent_parameters())),
            Self::Mcp(_) => None,
            Self::Builtin(t) => Some(t.spec()),
        }
    }

    /// What a call of it does to the world.
    pub const fn effect(&self) -> Effect {
        match self {
            Self::Http(tool) => tool.effect,
            Self::Client(tool) => tool.effect,
            Self::Mcp(tool) => tool.effect,
            Self::Agent(tool) => tool.effect,
            Self::Builtin(tool) => tool.effect,
        }
    }

    /// Whether somebody must agree before it is called.
    pub const fn requires_approval(&self) -> bool {
        match self {
            Self::Http(tool) => tool.requires_approval,
            Self::Client(tool) => tool.requires_approval,
            Self::Mcp(tool) => tool.requires_approval,
            Self::Agent(tool) => tool.requires_approval,
            Self::Builtin(tool) => tool.requires_approval,
        }
    }

    /// Seconds for an approval.
    pub const fn approval_timeout_seconds(&self) -> u32 {
        match self {
            Self::Http(tool) => tool.approval_timeout_seconds,
            Self::Client(tool) => tool.approval_timeout_seconds,
            Self::Mcp(tool) => tool.approval_timeout_seconds,
            Self::Agent(tool) => tool.approval_timeout_seconds,
            Self::Builtin(tool) => tool.approval_timeout_seconds,
        }
    }

    /// Seconds after which one attempt has failed; for a `client` tool those that the caller has.
    pub const fn timeout_seconds(&self) -> u32 {
        match self {
            Self::Http(tool) => tool.timeout_seconds,
            Self::Client(tool) => tool.timeout_seconds,
            Self::Mcp(tool) => tool.timeout_seconds,
            Self::Agent(tool) => tool.timeout_seconds,
            Self::Builtin(tool) => tool.timeout_seconds,
        }
    }

    /// Adds what is wrong with it.
    pub fn check(&self, pointer: &str, problems: &mut Problems) {
        problems.require(
            is_name(self.name()),
            &format!("{pointer}/name"),
            "must match ^[a-zA-Z0-9_-]{1,64}$",
        );
        let (longest, must) = match self {
            Self::Client(_) => (MAX_WAIT, "must be 1 to 2592000 (30 days)"),
            Self::Http(_) | Self::Mcp(_) | Self::Agent(_) | Self::Builtin(_) => {
                (MAX_TIMEOUT, "must be 1 to 600")
            }
        };
        let timeout = format!("{pointer}/timeout_seconds");
        problems.require((1..=longest).contains(&self.timeout_seconds()), &timeout, must);
        problems.require(
            (1..=MAX_WAIT).contains(&self.approval_timeout_seconds()),
            &format!("{pointer}/approval_timeout_seconds"),
            "must be 1 to 2592000 (30 days)",
        );
        if let Self::Http(tool) = self {
            if let Err(why) = UrlTemplate::parse(&tool.url) {
                problems.add(format!("{pointer}/url"), why);
            }
            headers::check_headers(&tool.headers, &format!("{pointer}/headers"), problems);
        }
        if let Self::Mcp(tool) = self {
            tool.check(pointer, problems);
        }
        let Some(spec) = self.spec() else { return };
        problems.require(
            spec.description.len() <= MAX_DESCRIPTION,
            &format!("{pointer}/description"),
            "must have at most 4096 bytes",
        );
        if let Err(message) = Schema::compile(&spec.parameters) {
            problems.add(format!("{pointer}/parameters"), message);
        }
    }
}

/// What is wrong with where tools reach.
#[derive(Debug, Default)]
pub struct OutboundProblems {
    /// Places that must not be called.
    pub destinations: Problems,
    /// Secrets that must not be sent there.
    pub secrets: Problems,
}

impl Tool {
    /// Adds what the operator's rules have against where it reaches and what it sends there.
    pub fn check_outbound(
        &self,
        pointer: &str,
        outbound: &Outbound,
        workspace_id: WorkspaceId,
        problems: &mut OutboundProblems,
    ) {
        let (url, headers) = match self {
            Self::Http(tool) => {
                (UrlTemplate::parse(&tool.url).ok().map(|t| t.example().clone()), &tool.headers)
            }
            Self::Mcp(tool) => (Url::parse(&tool.url).ok(), &tool.headers),
            Self::Client(_) | Self::Agent(_) | Self::Builtin(_) => return,
        };
        // What is no URL at all is for `check` to say.
        let Some(url) = url else { return };
        if let Err(refused) = outbound.destinations.check(&url) {
            problems.destinations.add(format!("{pointer}/url"), refused.to_string());
        }
        let host = url.host_str().unwrap_or_default();
        for (name, value) in headers {
            for part in header_parts(value).into_iter().flatten() {
                if let HeaderPart::Secret(secret) = part
                    && let Err(refused) = outbound.secrets.check(secret, host, workspace_id)
                {
                    let place = format!("{pointer}/headers/{}", name.replace('/', "~1"));
                    problems.secrets.add(place, refused.to_string());
                }
            }
        }
    }
}

/// Whether models' wires take this as a tool's name.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(fits)
}
