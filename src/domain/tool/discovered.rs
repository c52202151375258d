//! Tools that an MCP server told of: under which name, with which description and schema a model gets
//! to know them.

use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{MAX_DESCRIPTION, ToolSpec};
use crate::domain::schema::Schema;

/// Bytes of a tool's name on models' wires.
const MAX_NAME: usize = 64;
/// Bytes of a hash that tell two names apart which had to be changed.
const MARK: usize = 4;

/// A tool as its server tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its name there.
    pub name: String,
    /// What it does, if the server says so.
    pub description: String,
    /// A JSON Schema for its arguments.
    pub parameters: Map<String, Value>,
}

/// A tool of an MCP server as the model is told of it.
#[derive(Debug)]
pub struct Discovered {
    /// The agent's tool that names the server.
    pub server: String,
    /// Its name there.
    pub remote_name: String,
    /// What the model is told.
    pub spec: ToolSpec,
    /// `None`: the server's schema cannot be compiled; it checks its arguments itself.
    pub(in crate::domain) arguments: Option<Schema>,
}

/// The tools of one server: shared by all runs of an agent's version.
pub type Listing = Arc<[Arc<Discovered>]>;

impl Discovered {
    /// The tool `listed` of the server that its agent calls `server`.
    pub fn new(server: &str, listed: Listed) -> Self {
        let mut description = listed.description;
        description.truncate(description.floor_char_boundary(MAX_DESCRIPTION));
        let mut parameters = listed.parameters;
        // Without it, providers refuse the whole request for the sake of one tool.
        parameters.entry("type").or_insert_with(|| Value::from("object"));
        let parameters = Value::Object(parameters);
        Self {
            server: server.to_owned(),
            arguments: Schema::compile(&parameters).ok(),
            spec: ToolSpec { name: name_for_models(server, &listed.name), description, parameters },
            remote_name: listed.name,
        }
    }
}

/// What the names of a server's tools begin with.
pub(in crate::domain) fn prefix(server: &str) -> String {
    format!("{server}__")
}

/// `{server}__{tool}`, where models' wires take that. A name that is too long or has other characters
/// is made to fit, and ends in digits of its hash: so it stays the same whatever else the server has,
/// and two such names are not confused.
fn name_for_models(server: &str, tool: &str) -> String {
    let whole = format!("{}{tool}", prefix(server));
    if super::is_name(&whole) && !tool.is_empty() {
        return whole;
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let mut name: String = whole.chars().take(MAX_NAME - 2 * MARK - 1).map(plain).collect();
    name.push('_');
    for byte in Sha256::digest(whole.as_bytes()).iter().take(MARK) {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listed(name: &str, parameters: Value) -> Listed {
        let Value::Object(parameters) = parameters else { unreachable!("an object") };
        Listed { name: name.to_owned(), description: String::new(), parameters }
    }

    #[test]
    fn names_that_fit_stay_and_others_are_made_to_fit() {
        assert_eq!(name_for_models("crm", "find_customer"), "crm__find_customer");
        let dotted = name_for_models("crm", "find.customer");
        assert!(dotted.starts_with("crm__find_customer_"), "{dotted}");
        assert_ne!(dotted, name_for_models("crm", "find/customer"), "they are not confused");
        assert_eq!(dotted, name_for_models("crm", "find.customer"), "it stays the same");
        let long = "x".repeat(200);
        let strange = ["", "é", "a b", &long, "💣", "a\0b"];
        for tool in strange {
            for server in ["s", &"s".repeat(64)] {
                let name = name_for_models(server, tool);
                assert!(super::super::is_name(&name), "{name}");
            }
        }
    }

    #[test]
    fn a_schema_that_cannot_be_compiled_is_offered_and_not_enforced() {
        let bad = json!({"properties": {"a": {"type": "no such type"}}});
        let tool = Discovered::new("s", listed("t", bad));
        assert!(tool.arguments.is_none());
        assert_eq!(tool.spec.parameters["type"], "object");
        assert_eq!(tool.spec.parameters["properties"]["a"]["type"], "no such type");
    }

    #[test]
    fn a_long_description_is_cut_between_two_characters() {
        let mut long = listed("t", json!({}));
        long.description = "é".repeat(5_000);
        assert_eq!(Discovered::new("s", long).spec.description.len(), 4_096);
    }
}
