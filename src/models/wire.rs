//! What both wires ask in the same words.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::domain::model::{ModelRequest, Turn};

/// Characters of a tool's name that both wires take.
const MAX_NAME: usize = 64;

/// All instructions as one text: some servers' templates know only one system message.
pub(super) fn system(request: &ModelRequest) -> String {
    let mut system = String::new();
    for turn in &request.turns {
        if let Turn::System(text) = turn
            && !text.trim().is_empty()
        {
            if !system.is_empty() {
                system.push_str("\n\n");
            }
            system.push_str(text);
        }
    }
    system
}

/// A tool's name as the wires take it. A model may have called a tool that does not exist by a name
/// that its provider then would not take back.
pub(super) fn tool_name(name: &str) -> Cow<'_, str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fits) {
        return Cow::Borrowed(name);
    }
    let name: String = name.chars().take(MAX_NAME).map(|c| if fits(c) { c } else { '_' }).collect();
    Cow::Owned(if name.is_empty() { "unknown".to_owned() } else { name })
}

/// Lays the agent's `provider_options` over a request: they know best, and `null` takes a field out.
pub(super) fn lay_over(body: &mut Map<String, Value>, options: &Map<String, Value>) {
    for (key, value) in options {
        if value.is_null() {
            body.remove(key);
        } else {
            body.insert(key.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_name_is_made_to_fit() {
        assert_eq!(tool_name("get_weather-2"), "get_weather-2");
        assert_eq!(tool_name("get weather ü!"), "get_weather___");
        assert_eq!(tool_name(""), "unknown");
        assert_eq!(tool_name(&"x".repeat(100)).len(), MAX_NAME);
    }
}
