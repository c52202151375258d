//! JSON Schemas that users give: for tool arguments and for structured output.

use serde_json::Value;

/// A compiled JSON Schema. Compile once per agent version; checking is cheap.
#[derive(Debug)]
pub struct Schema(jsonschema::Validator);

/// How many violations are told at once: enough to mend the answer, little enough to read.
const MAX_TOLD: usize = 5;

impl Schema {
    /// Compiles `schema`. Remote `$ref`s are refused: nothing is fetched, now or later.
    ///
    /// # Errors
    /// What is wrong with the schema, for its author.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        if !schema.is_object() {
            return Err("must be a JSON Schema object".to_owned());
        }
        jsonschema::options()
            .build(schema)
            .map(Self)
            .map_err(|error| format!("is not a usable JSON Schema: {error}"))
    }

    /// Checks `value`.
    ///
    /// # Errors
    /// The violations in words, for the model that wrote the value.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        let told: Vec<String> = self
            .0
            .iter_errors(value)
            .take(MAX_TOLD)
            .map(|error| {
                let at = error.instance_path().to_string();
                let at = if at.is_empty() { "/".to_owned() } else { at };
                format!("{at}: {error}")
            })
            .collect();
        if told.is_empty() { Ok(()) } else { Err(told.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn violations_are_told_with_their_place() {
        let schema = Schema::compile(&json!({
            "type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}
        }))
        .unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(schema.check(&json!({"city": "Paris"})), Ok(()));
        let told = schema.check(&json!({"city": 7})).unwrap_err();
        assert!(told.starts_with("/city:"), "{told}");
    }

    #[test]
    fn a_remote_reference_is_refused() {
        assert!(Schema::compile(&json!({"$ref": "https://example.com/s.json"})).is_err());
    }
}
