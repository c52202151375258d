//! JSON Schemas that users give: for tool arguments and for structured output.

use serde_json::Value;

use super::problem::Problems;

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
    /// The first violations, each with its place in the value, for whoever wrote it.
    pub fn check(&self, value: &Value) -> Result<(), Problems> {
        let mut problems = Problems::new();
        for error in self.0.iter_errors(value).take(MAX_TOLD) {
            problems.add(error.instance_path().to_string(), error.to_string());
        }
        problems.into_result()
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
        let told = schema.check(&json!({"city": 7})).unwrap_err().to_string();
        assert!(told.starts_with("/city: "), "{told}");
        let told = schema.check(&json!({})).unwrap_err().to_string();
        assert!(told.starts_with("/: "), "{told}");
    }

    #[test]
    fn a_remote_reference_is_refused() {
        assert!(Schema::compile(&json!({"$ref": "https://example.com/s.json"})).is_err());
    }
}
