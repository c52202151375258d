//! JSON into types, with a pointer to what is wrong.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::AppError;

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
        .map_err(|error| explain(&pointer(error.path()), &error.inner().to_string()))
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

/// serde has no typed error for these two: its words are the only way to tell them apart, and the
/// tests below hold it to them.
fn explain(pointer: &str, message: &str) -> AppError {
    let quoted = |lead: &str| {
        let rest = message.strip_prefix(lead)?;
        rest.split_once('`').map(|(name, _)| name.to_owned())
    };
    if let Some(field) = quoted("unknown field `") {
        let named = pointer.rsplit('/').next() == Some(escape(&field).as_str());
        let pointer =
            if named { pointer.to_owned() } else { format!("{pointer}/{}", escape(&field)) };
        return AppError::UnknownField { pointer, field };
    }
    if let Some(field) = quoted("missing field `") {
        return AppError::invalid(format!("{pointer}/{}", escape(&field)), "is required");
    }
    AppError::invalid(pointer, message)
}

fn pointer(path: &Path) -> String {
    use std::fmt::Write as _;
    let mut pointer = String::new();
    for segment in path {
        // Writing to a String cannot fail.
        let _ = match segment {
            Segment::Seq { index } => write!(pointer, "/{index}"),
            Segment::Map { key } => write!(pointer, "/{}", escape(key)),
            // The variant's name is no place in the document.
            Segment::Enum { .. } | Segment::Unknown => Ok(()),
        };
    }
    pointer
}

/// One step of a JSON pointer (RFC 6901).
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::agent::AgentSettings;
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
