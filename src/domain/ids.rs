//! Identifiers. Each is a type of its own, parsed once at the edge.
//!
//! Generated ids are a prefix and a UUIDv7 in 32 lower-case hex digits, so they sort by creation.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

/// A text that is no id of the kind asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed {0}")]
pub struct MalformedId(pub &'static str);

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// Wraps a UUID, which the clock's home makes (version 7) or the database returns.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bare UUID, as the database stores it.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = MalformedId;
            fn from_str(text: &str) -> Result<Self, MalformedId> {
                parse_hex(text, $prefix).map(Self).ok_or(MalformedId(stringify!($name)))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some($what))
                    .pattern(Some(concat!("^", $prefix, "[0-9a-f]{32}$")))
                    .examples([concat!($prefix, "019a0c5e7d2a7c3f8b1e2d3c4b5a6978")])
                    .into()
            }
        }

        impl ToSchema for $name {}
    )*};
}

uuid_ids! {
    /// A run.
    RunId = "run_", "Identifies a run. Use it in every path under /v1/runs.";
    /// A conversation.
    ConversationId = "conv_", "Identifies a conversation.";
    /// A message that the log or a conversation holds.
    MessageId = "msg_", "Identifies a message.";
    /// One call of a tool. Given by Stepwell: what the model called it is never seen outside.
    CallId = "call_", "Identifies one tool call of one run. Results and approvals name it.";
    /// One HTTP request; for logs and support.
    RequestId = "req_", "Identifies one HTTP request. Quote it when you report a problem.";
    /// One start of a server process.
    NodeId = "node_", "Identifies one start of a server process.";
}

fn parse_hex(text: &str, prefix: &str) -> Option<Uuid> {
    let hex = text.strip_prefix(prefix)?;
    let canonical =
        hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    canonical.then(|| Uuid::try_parse(hex).ok()).flatten()
}

/// An agent's name in paths, chosen by its user: `^[a-z0-9][a-z0-9_-]{0,63}$`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct AgentId(Box<str>);

impl AgentId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentId {
    type Err = MalformedId;
    fn from_str(text: &str) -> Result<Self, MalformedId> {
        let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let rest = |b: u8| first(b) || b == b'_' || b == b'-';
        let fits = (1..=64).contains(&text.len())
            && text.bytes().next().is_some_and(first)
            && text.bytes().all(rest);
        if fits { Ok(Self(text.into())) } else { Err(MalformedId("AgentId")) }
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            D::Error::custom("must match ^[a-z0-9][a-z0-9_-]{0,63}$, for example \"sales-analyst\"")
        })
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl PartialSchema for AgentId {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("Names an agent; chosen by whoever creates it, and never reused."))
            .pattern(Some("^[a-z0-9][a-z0-9_-]{0,63}$"))
            .examples(["sales-analyst"])
            .into()
    }
}

impl ToSchema for AgentId {}

/// The small integer that stands for a workspace inside; users see `wsp_…` ids (a later issue).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkspaceId(pub i32);

impl WorkspaceId {
    /// The workspace that always exists.
    pub const DEFAULT: Self = Self(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_itself_and_nothing_else_does() {
        let id = RunId::from_uuid(Uuid::from_u128(0x019a_0c5e_7d2a_7c3f_8b1e_2d3c_4b5a_6978));
        assert_eq!(id.to_string(), "run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "019a0c5e7d2a7c3f8b1e2d3c4b5a6978",
            "conv_019a0c5e7d2a7c3f8b1e2d3c4b5a6978",
            "run_019A0C5E7D2A7C3F8B1E2D3C4B5A6978",
            "run_019a0c5e-7d2a-7c3f-8b1e-2d3c4b5a6978",
            "run_",
            "",
        ] {
            assert!(wrong.parse::<RunId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn agent_ids_are_lower_case_and_short() {
        for good in ["a", "sales-analyst", "0_x", &"a".repeat(64)] {
            assert!(good.parse::<AgentId>().is_ok(), "{good}");
        }
        for wrong in ["", "-a", "_a", "A", "a b", "ä", &"a".repeat(65)] {
            assert!(wrong.parse::<AgentId>().is_err(), "{wrong}");
        }
    }
}
