//! JSON into types, with a pointer to what is wrong.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::AppError;
use crate::domain::place::{self, escape};

/// Reads a parsed document as `T`.
///
/// # Errors
/// [`AppError::UnknownField`] for the first field that `T` does not have, [`AppError::Invalid`] for
/// the first value that does not fit.
pub fn read<T: DeserializeOwned>(document: Value) -> Result<T, AppError> {
    // serde would read a list as a struct, field by field.
    if document.is_array() {
        return Err(AppError::invalid("", "must be an object"));
    }
    serde_path_to_error::deserialize(document)
        .map_err(|error| explain(&place::pointer(error.path()), &error.inner().to_string()))
}

/// The same, for a document that others hold under `prefix`.
///
/// # Errors
/// As [`read`].
pub fn read_under<T: DeserializeOwned>(prefix: &str, document: Value) -> Result<T, AppError> {
    read(document).map_err(|error| match error {
        AppError::Invalid(problems) => AppError::Invalid(problems.under(prefix)),
        AppError::UnknownField { pointer, field } => {
            AppError::UnknownField { pointer: format!("{prefix}{pointer}"), field }
        }
        other => other,
    })
}

/// serde has no typed error for these: its words are the only way to tell them apart, and the tests
/// below hold it to them.
fn explain(pointer: &str, message: &str) -> AppError {
    let (inside, message) = place::split(message);
    let pointer = format!("{pointer}{inside}");
    let quoted = |lead: &str| {
        let rest = message.strip_prefix(lead)?;
        rest.split_once('`').map(|(name, _)| name.to_owned())
    };
    if let Some(field) = quoted("unknown field `") {
        let named = pointer.rsplit('/').next() == Some(escape(&field).as_str());
        let pointer = if named { pointer } else { format!("{pointer}/{}", escape(&field)) };
        return AppError::UnknownField { pointer, field };
    }
    if let Some(field) = quoted("missing field `") {
        return AppError::invalid(format!("{pointer}/{}", escape(&field)), "is required");
    }
    AppError::invalid(pointer, in_words(message))
}

/// What a value must be, without the words of the language that this is written in, and without the
/// value, which may be long.
fn in_words(message: &str) -> String {
    let mistyped = ["invalid type: ", "invalid value: ", "invalid length "];
    if let Some(rest) = mistyped.iter().find_map(|lead| message.strip_prefix(lead))
        && let Some((_, expected)) = rest.rsplit_once(", expected ")
    {
        return format!("must be {}", kind(expected));
    }
    if message.starts_with("unknown variant `")
        && let Some((_, expected)) = message.rsplit_once("`, expected ")
    {
        return format!("must be {}", expected.replace('`', "\""));
    }
    message.to_owned()
}

fn kind(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number, 0 to 255",
        "u32" => "a whole number, 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::domain::agent::AgentSettings;
    use crate::domain::message::Input;
    use serde_json::json;

    fn refused(document: Value) -> AppError {
        read::<AgentSettings>(document).unwrap_err()
    }

    #[test]
    fn an_unknown_field_is_named_with_its_place() {
        let AppError::UnknownField { pointer, field } =
            refused(json!({"model": "m", "script": [{"tool_calls": [], "a/b": 1}]}))
        else {
            panic!("another error");
        };
        assert_eq!((pointer.as_str(), field.as_str()), ("/script/0/a~1b", "a/b"));
    }

    #[test]
    fn an_unknown_field_inside_a_tagged_type_is_still_an_unknown_field() {
        let error = refused(json!({"model": "m", "tools": [
            {"type": "builtin", "name": "echo", "colour": "red"}
        ]}));
        assert!(matches!(error, AppError::UnknownField { ref field, .. } if field == "colour"));
    }

    #[test]
    fn what_is_wrong_inside_a_tool_or_a_message_is_told_with_its_own_place() {
        let tool = |tool: Value| json!({"model": "m", "tools": [{"type": "builtin", "name": "echo"}, tool]});
        for (document, pointer, message) in [
            (tool(json!({"name": "x"})), "/tools/1/type", "is required"),
            (
                tool(json!({"type": "x"})),
                "/tools/1/type",
                "must be one of \"http\", \"client\", \"mcp\", \"agent\", \"builtin\"",
            ),
            (tool(json!(7)), "/tools/1", "must be an object"),
            (tool(json!({"type": "client"})), "/tools/1/name", "is required"),
            (
                tool(json!({"type": "client", "name": "x", "timeout_seconds": "1"})),
                "/tools/1/timeout_seconds",
                "must be a whole number, 0 to 4294967295",
            ),
            (
                tool(json!({"type": "client", "name": "x", "requires_approval": "yes"})),
                "/tools/1/requires_approval",
                "must be true or false",
            ),
            (
                tool(json!({"type": "http", "name": "x", "url": "x", "headers": {"a/b": 1}})),
                "/tools/1/headers/a~1b",
                "must be a string",
            ),
            (
                tool(json!({"type": "agent", "name": "x", "agent_id": 5})),
                "/tools/1/agent_id",
                "must be a string",
            ),
        ] {
            let AppError::Invalid(problems) = refused(document) else { panic!("another error") };
            let problem = &problems.into_vec()[0];
            assert_eq!((problem.pointer.as_str(), problem.message.as_str()), (pointer, message));
        }
        let input = |document| match read::<BTreeMap<String, Input>>(document) {
            Err(AppError::Invalid(problems)) => problems.into_vec()[0].pointer.clone(),
            other => panic!("{other:?}"),
        };
        let parts = json!([{"type": "text", "text": "a"}, {"type": "smell"}]);
        let messages = json!([{"role": "user", "content": parts}]);
        assert_eq!(input(json!({"input": messages})), "/input/0/content/1/type");
        assert_eq!(input(json!({"input": [{"role": "king", "content": "x"}]})), "/input/0/role");
    }

    #[test]
    fn an_unknown_field_inside_a_tool_is_named_with_its_own_place() {
        let schema = json!({"type": "client", "name": "x", "parameter": {}});
        let AppError::UnknownField { pointer, .. } =
            refused(json!({"model": "m", "tools": [schema]}))
        else {
            panic!("another error");
        };
        assert_eq!(pointer, "/tools/0/parameter");
    }

    #[test]
    fn a_missing_field_and_a_wrong_value_are_told_with_their_place() {
        for (document, pointer) in [
            (json!({}), "/model"),
            (json!({"model": 7}), "/model"),
            (json!({"model": "m", "script": [{"text": 7}]}), "/script/0/text"),
            (json!([]), ""),
        ] {
            let AppError::Invalid(problems) = refused(document) else { panic!("another error") };
            assert_eq!(problems.into_vec()[0].pointer, pointer);
        }
    }
}
