//! JSON Schemas that users give: for tool arguments and for structured output.

mod effort;

use serde_json::Value;

use effort::{Look, Weight, is_plain, visits};

/// A compiled JSON Schema. Compile once per agent version; checking is cheap.
#[derive(Debug)]
pub struct Schema {
    validator: jsonschema::Validator,
    /// The schema, where what it costs depends on the value.
    branching: Option<Value>,
}

/// How many violations are told at once: enough to mend the answer, little enough to read.
const MAX_TOLD: usize = 5;
/// Characters of each that are told.
const MAX_TOLD_CHARS: usize = 500;
/// Visits of parts of a value that a check may take: about a tenth of a second.
const MAX_VISITS: u64 = 1_000_000;
/// `$ref`s in a schema. The validator follows them on its stack, when it compiles and when it checks.
const MAX_REFERENCES: usize = 1_000;
/// Regular expressions in a schema.
const MAX_PATTERNS: usize = 100;

impl Schema {
    /// Compiles `schema`. Remote `$ref`s are refused: nothing is fetched, now or later.
    ///
    /// # Errors
    /// What is wrong with the schema, for its author.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        if !schema.is_object() {
            return Err("must be a JSON Schema object".to_owned());
        }
        let weight = Weight::of(schema);
        if weight.references > MAX_REFERENCES {
            return Err(format!("has more than {MAX_REFERENCES} references ($ref)"));
        }
        if weight.patterns > MAX_PATTERNS {
            return Err(format!("has more than {MAX_PATTERNS} regular expressions (pattern)"));
        }
        let validator = jsonschema::options()
            .build(schema)
            .map_err(|error| format!("is not a usable JSON Schema: {error}"))?;
        Ok(Self { validator, branching: (!is_plain(schema)).then(|| schema.clone()) })
    }

    /// Checks `value`, if that comes to an end soon: a schema that branches again and again may make
    /// more work of a small value than anybody waits for.
    ///
    /// # Errors
    /// The violations in words, for the model that wrote the value.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        if let Some(schema) = &self.branching
            && visits(schema, value, Look::Everywhere) > MAX_VISITS
        {
            if visits(schema, value, Look::WhereItMatters) > MAX_VISITS {
                return Err(
                    "the schema has too many alternatives for a value of this size and depth: \
                            make it smaller or flatter"
                        .to_owned(),
                );
            }
            return if self.validator.is_valid(value) {
                Ok(())
            } else {
                Err("it does not fit any of the schema's alternatives (there are too many to say \
                     where): check each part against the schema, or make it smaller"
                    .to_owned())
            };
        }
        let told: Vec<String> = self
            .validator
            .iter_errors(value)
            .take(MAX_TOLD)
            .map(|error| {
                let at = error.instance_path().to_string();
                let at = if at.is_empty() { "/".to_owned() } else { at };
                let told = format!("{at}: {error}");
                // The words of some repeat the value, which may be large.
                match told.char_indices().nth(MAX_TOLD_CHARS) {
                    Some((end, _)) => format!("{}…", told.get(..end).unwrap_or_default()),
                    None => told,
                }
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

    fn compiled(schema: &Value) -> Schema {
        Schema::compile(schema).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// Each of `levels` parts has two ways to the next one.
    fn doubling(levels: usize) -> Value {
        let mut parts = serde_json::Map::new();
        for level in 0..levels {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            parts.insert(format!("l{level}"), json!({"anyOf": [next, next]}));
        }
        parts.insert(format!("l{levels}"), json!({"type": "string"}));
        json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/l0"}}, "$defs": parts})
    }

    /// A tree whose nodes are of one of these kinds, and have their children in the same property.
    fn tree_of_kinds(kinds: usize) -> Value {
        let kind = |i| {
            json!({
                "type": "object", "required": ["kind", "args"],
                "properties": {
                    "args": {"type": "array", "items": {"$ref": "#"}},
                    "kind": {"const": format!("k{i}")},
                },
            })
        };
        json!({"anyOf": (0..kinds).map(kind).collect::<Vec<_>>()})
    }

    fn nested(depth: usize, kind: &str, innermost: &str) -> Value {
        let leaf = json!({"kind": innermost, "args": []});
        (0..depth).fold(leaf, |inner, _| json!({"kind": kind, "args": [inner]}))
    }

    #[test]
    fn a_schema_that_would_keep_the_validator_for_ever_is_not_begun_with() {
        let few = compiled(&doubling(8));
        assert_eq!(few.check(&json!({"a": "text"})), Ok(()));
        assert!(few.check(&json!({"a": 1})).is_err());
        let told = compiled(&doubling(64)).check(&json!({"a": 1})).unwrap_err();
        assert!(told.contains("too many alternatives"), "{told}");
        // What the value does not have costs nothing.
        assert_eq!(compiled(&doubling(64)).check(&json!({"b": 1})), Ok(()));
    }

    #[test]
    fn a_deep_value_whose_parts_say_what_they_are_is_checked_and_its_mistakes_do_not_explode() {
        let schema = compiled(&tree_of_kinds(10));
        assert_eq!(schema.check(&nested(20, "k9", "k0")), Ok(()));
        let told = schema.check(&nested(20, "k9", "nope")).unwrap_err();
        assert!(told.contains("does not fit any"), "{told}");
        let told = schema.check(&nested(1, "k9", "nope")).unwrap_err();
        assert!(told.starts_with("/:"), "{told}");
        // Two kinds are not told apart before they are looked at.
        let told = compiled(&tree_of_kinds(2)).check(&nested(28, "k1", "k0")).unwrap_err();
        assert!(told.contains("too many alternatives"), "{told}");
    }

    #[test]
    fn references_have_an_end() {
        let chain = |links: usize| {
            let mut parts = serde_json::Map::new();
            for link in 0..links {
                let next = json!({"$ref": format!("#/$defs/l{}", link + 1)});
                parts.insert(format!("l{link}"), json!({"properties": {"a": {"allOf": [next]}}}));
            }
            parts.insert(format!("l{links}"), json!({"type": "string"}));
            json!({"$ref": "#/$defs/l0", "$defs": parts})
        };
        // On a stack as small as that of a server's thread.
        let longest = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
            let schema = compiled(&chain(MAX_REFERENCES - 1));
            let value = (0..60).fold(json!({}), |inner, _| json!({"a": inner}));
            assert_eq!(schema.check(&value), Ok(()));
        });
        assert!(longest.is_ok_and(|thread| thread.join().is_ok()));
        let told = Schema::compile(&chain(MAX_REFERENCES)).unwrap_err();
        assert!(told.contains("1000 references"), "{told}");
    }

    #[test]
    fn regular_expressions_are_few() {
        let with = |count: usize| {
            let named = |i| (format!("p{i}"), json!({"pattern": format!("^{i}$")}));
            let properties: serde_json::Map<String, Value> = (1..count).map(named).collect();
            json!({"properties": properties, "patternProperties": {"^x": {}}})
        };
        assert!(Schema::compile(&with(MAX_PATTERNS)).is_ok());
        let told = Schema::compile(&with(MAX_PATTERNS + 1)).unwrap_err();
        assert!(told.contains("100 regular expressions"), "{told}");
    }

    #[test]
    fn a_schema_may_speak_of_itself() {
        for schema in [json!({"$ref": "#"}), json!({"allOf": [{"$ref": "#"}]})] {
            assert_eq!(compiled(&schema).check(&json!({"a": 1})), Ok(()));
        }
        let list = compiled(&json!({
            "$ref": "#item", "$defs": {"item": {
                "$anchor": "item", "required": ["v"],
                "properties": {"v": {"type": "integer"}, "next": {"$ref": "#item"}},
            }},
        }));
        let value = (0..60).fold(json!({"v": 0}), |next, _| json!({"v": 1, "next": next}));
        assert_eq!(list.check(&value), Ok(()));
        assert!(list.check(&json!({"v": 1, "next": {}})).is_err());
    }

    #[test]
    fn a_violation_is_told_in_few_words_whatever_the_value() {
        let schema = compiled(&json!({"properties": {"a": {"enum": ["b"]}}}));
        let told = schema.check(&json!({"a": "é".repeat(100_000)})).unwrap_err();
        assert_eq!(told.chars().count(), MAX_TOLD_CHARS + 1);
    }
}
