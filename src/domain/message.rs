//! Messages: what a person, a program or a model says.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::limits;
use super::place;
use super::problem::Problems;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The person or program that uses the agent.
    User,
    /// The model. `agent` is accepted as another word for it.
    Assistant,
    /// Instructions; they join the system prompt in order.
    System,
    /// The answer to a tool call.
    Tool,
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Cow::<'de, str>::deserialize(deserializer)?.as_ref() {
            "user" => Ok(Self::User),
            "assistant" | "agent" => Ok(Self::Assistant),
            "system" => Ok(Self::System),
            "tool" => Ok(Self::Tool),
            _ => Err(D::Error::custom("must be one of user, assistant, system, tool")),
        }
    }
}

/// Text, or a list of parts.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text, images, files and data, in order.
    Parts(Vec<Part>),
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// An image, inline or by address.
    Image {
        /// For example `image/png`.
        media_type: String,
        /// The bytes in base64; give this or `url`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<String>,
        /// Where the provider can fetch it; give this or `data`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// A name for the model to call it by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filename: Option<String>,
    },
    /// A file, inline or by address.
    File {
        /// For example `application/pdf`.
        media_type: String,
        /// The bytes in base64; give this or `url`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<String>,
        /// Where the provider can fetch it; give this or `data`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// A name for the model to call it by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filename: Option<String>,
    },
    /// Structured input. The model gets it as JSON text.
    Data {
        /// Any JSON object.
        #[schema(value_type = Object)]
        data: Map<String, Value>,
    },
}

impl<'de> Deserialize<'de> for Content {
    // By hand, because an untagged enum loses which field was wrong.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            parts @ Value::Array(_) => place::read_at("", parts).map(Self::Parts),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                Err(D::Error::custom("must be a text or a list of parts"))
            }
        }
    }
}

impl Content {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Parts(parts) => parts.is_empty(),
        }
    }

    /// Its text; data parts as JSON, images and files by their name.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => {
                Cow::Owned(parts.iter().map(Part::as_text).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// Adds what is wrong with it.
    pub fn check(&self, pointer: &str, problems: &mut Problems) {
        problems.require(!self.is_empty(), pointer, "must not be empty");
        let Self::Parts(parts) = self else { return };
        for (i, part) in parts.iter().enumerate() {
            match part {
                Part::Image { media_type, data, url, .. }
                | Part::File { media_type, data, url, .. } => {
                    let at = format!("{pointer}/{i}");
                    problems.require(
                        media_type.contains('/'),
                        &at,
                        "media_type must be a MIME type",
                    );
                    problems.require(
                        data.is_some() != url.is_some(),
                        &at,
                        "give either data (base64) or url",
                    );
                }
                Part::Text { .. } | Part::Data { .. } => {}
            }
        }
    }
}

impl Part {
    /// The part as text, for models and places that read nothing else.
    pub fn as_text(&self) -> Cow<'_, str> {
        match self {
            Self::Text { text } => Cow::Borrowed(text),
            Self::Image { filename, media_type, .. } | Self::File { filename, media_type, .. } => {
                Cow::Owned(format!("[{}]", filename.as_deref().unwrap_or(media_type)))
            }
            Self::Data { data } => Cow::Owned(serde_json::to_string(data).unwrap_or_default()),
        }
    }
}

/// One message of an input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputMessage {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: Content,
}

/// What a run starts from: text, which is one message of the user, or a list of messages.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Input {
    /// What the user says.
    Text(String),
    /// Messages, oldest first.
    Messages(Vec<InputMessage>),
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            list @ Value::Array(_) => place::read_at("", list).map(Self::Messages),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(
                D::Error::custom("must be a text or a list of messages {\"role\", \"content\"}"),
            ),
        }
    }
}

impl Input {
    /// Adds what is wrong with it.
    pub fn check(&self, pointer: &str, problems: &mut Problems) {
        let messages = match self {
            Self::Text(text) => {
                return problems.require(!text.is_empty(), pointer, "must not be empty");
            }
            Self::Messages(messages) => messages,
        };
        problems.require(
            messages.len() <= limits::MAX_INPUT_MESSAGES,
            pointer,
            format!("at most {} messages", limits::MAX_INPUT_MESSAGES),
        );
        problems.require(
            messages.iter().any(|m| m.role == Role::User),
            pointer,
            "needs at least one message of role user",
        );
        for (i, message) in messages.iter().enumerate() {
            message.content.check(&format!("{pointer}/{i}/content"), problems);
            problems.require(
                message.role != Role::Tool,
                &format!("{pointer}/{i}/role"),
                "a tool message answers a tool call, and a new run has none",
            );
        }
    }

    /// Whether nothing is said in it: a run answers what its conversation holds already.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Messages(messages) => messages.is_empty(),
        }
    }

    /// The messages, whichever form was sent.
    pub fn messages(&self) -> Vec<InputMessage> {
        match self {
            Self::Text(text) => {
                vec![InputMessage { role: Role::User, content: Content::Text(text.clone()) }]
            }
            Self::Messages(messages) => messages.clone(),
        }
    }
}
