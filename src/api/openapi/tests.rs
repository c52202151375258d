use super::*;
use crate::domain::event::{Event, EventType};
use crate::domain::ids::RunId;
use crate::domain::time::Timestamp;
use crate::domain::usage::Usage;
use serde_json::Value;

fn spec() -> Value {
    serde_json::to_value(document()).unwrap()
}

fn operations(spec: &Value) -> Vec<(String, Value)> {
    let paths = spec["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &Value)| {
        let item = item.as_object().unwrap().clone();
        let path = path.clone();
        item.into_iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    };
    paths.iter().flat_map(of_path).collect()
}

#[test]
fn the_committed_spec_is_the_one_that_the_code_makes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
    #[expect(clippy::disallowed_methods, reason = "a test that is asked to write instead")]
    if std::env::var("STEPWELL_WRITE_OPENAPI").is_ok() {
        std::fs::write(path, yaml()).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == yaml(),
        "openapi.yaml is stale: STEPWELL_WRITE_OPENAPI=1 cargo test --lib openapi"
    );
}

#[test]
fn every_operation_says_what_it_is_for_and_how_it_can_fail() {
    for (name, operation) in operations(&spec()) {
        for field in ["operationId", "summary", "description", "tags"] {
            assert!(!operation[field].is_null(), "{name} has no {field}");
        }
        let responses = operation["responses"].as_object().unwrap();
        for response in responses.values() {
            let told = response["description"].as_str().is_some_and(|text| !text.is_empty());
            assert!(told || response["$ref"].is_string(), "{name}: {response}");
        }
        if name.contains("/v1/") {
            for status in ["401", "406", "500", "503"] {
                assert!(responses.contains_key(status), "{name} has no {status}");
            }
            assert_eq!(
                responses.contains_key("404"),
                name.contains('{') || name.starts_with("post")
            );
        }
        let keyed = operation["parameters"].as_array().is_some_and(|parameters| {
            parameters.iter().any(|parameter| parameter["name"] == "Idempotency-Key")
        });
        assert_eq!(keyed, !name.starts_with("get "), "{name}");
    }
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    fn references(value: &Value, found: &mut std::collections::BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(place)) = fields.get("$ref") {
                    found.insert(place.clone());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let spec = spec();
    let mut found = std::collections::BTreeSet::new();
    references(&spec, &mut found);
    let mut there = std::collections::BTreeSet::new();
    for kind in ["schemas", "responses"] {
        let names = spec["components"][kind].as_object().unwrap().keys();
        there.extend(names.map(|name| format!("#/components/{kind}/{name}")));
    }
    assert_eq!(found.difference(&there).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(there.difference(&found).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn agents_are_flat_objects_with_every_field() {
    let spec = spec();
    let schemas = &spec["components"]["schemas"];
    for (name, field) in [
        ("Agent", "version"),
        ("Agent", "model"),
        ("CreateAgentRequest", "agent_id"),
        ("CreateAgentRequest", "script"),
        ("UpdateAgentRequest", "tools"),
    ] {
        assert_eq!(schemas[name]["type"], "object", "{name}");
        assert!(!schemas[name]["properties"][field].is_null(), "{name}.{field}");
    }
    assert_eq!(schemas["CreateAgentRequest"]["properties"]["max_steps"]["default"], 20);
    assert_eq!(schemas["CreateAgentRequest"]["additionalProperties"], false);
    assert!(schemas["Agent"]["additionalProperties"].is_null());
}

#[test]
fn every_event_has_a_flat_schema_with_its_own_type_and_a_place_in_both_unions() {
    let spec = spec();
    let schemas = &spec["components"]["schemas"];
    for event_type in crate::domain::event::EventType::ALL {
        let word = event_type.as_str();
        for union in ["RunEvent", "StreamEvent"] {
            let place = schemas[union]["discriminator"]["mapping"][word].as_str().unwrap();
            let name = place.rsplit('/').next().unwrap();
            assert_eq!(schemas[name]["properties"]["type"]["enum"], serde_json::json!([word]));
            for field in ["type", "seq", "run_id", "created_at"] {
                let required = schemas[name]["required"].as_array().unwrap();
                assert!(required.iter().any(|name| name == field), "{name}.{field}");
            }
        }
    }
    for word in ["stream.gap", "stream.end"] {
        assert!(schemas["RunEvent"]["discriminator"]["mapping"][word].is_null());
        assert!(!schemas["StreamEvent"]["discriminator"]["mapping"][word].is_null());
    }
}

#[test]
fn tools_and_parts_are_told_apart_by_their_type() {
    let spec = spec();
    let schemas = &spec["components"]["schemas"];
    for (union, tag, name) in [
        ("Tool", "builtin", "BuiltinTool"),
        ("Tool", "http", "HttpTool"),
        ("Part", "text", "TextPart"),
        ("Part", "data", "DataPart"),
    ] {
        let place = format!("#/components/schemas/{name}");
        assert_eq!(schemas[union]["discriminator"]["mapping"][tag], place);
        assert_eq!(schemas[name]["properties"]["type"]["enum"], serde_json::json!([tag]));
        let required = schemas[name]["required"].as_array().unwrap();
        assert!(required.iter().any(|field| field == "type"), "{name}");
    }
}

#[test]
fn tools_tell_their_bounds_and_their_defaults() {
    let spec = spec();
    for (name, field, bound, default) in [
        ("BuiltinTool", "timeout_seconds", 600, 30),
        ("HttpTool", "timeout_seconds", 600, 30),
        ("McpTool", "timeout_seconds", 600, 30),
        ("AgentTool", "timeout_seconds", 600, 30),
        ("ClientTool", "timeout_seconds", 2_592_000, 86_400),
        ("HttpTool", "approval_timeout_seconds", 2_592_000, 86_400),
    ] {
        let field = &spec["components"]["schemas"][name]["properties"][field];
        assert_eq!((&field["minimum"], &field["maximum"]), (&1.into(), &bound.into()), "{name}");
        assert_eq!(field["default"], default, "{name}");
    }
    let http = &spec["components"]["schemas"]["HttpTool"]["properties"];
    assert_eq!(
        (&http["effect"]["default"], &http["method"]["default"]),
        (&"once".into(), &"POST".into())
    );
}

#[test]
fn events_have_what_their_schemas_require_even_where_there_is_nothing_to_say() {
    let call = "\"step\":1,\"call_id\":\"call_00000000000000000000000000000001\",\"tool\":\"t\"";
    let run = "\"status\":\"queued\",\"agent_id\":\"a\",\"agent_version\":1,\"model\":\"m\",\"input\":\"i\"";
    let message = "\"message_id\":\"msg_00000000000000000000000000000001\",\"role\":\"assistant\",\"content\":\"\",\"finish_reason\":\"stop\"";
    let spec = spec();
    for (word, fields) in [
        ("run.queued", run.to_owned()),
        ("tool_call.started", format!("{call},\"attempt\":1")),
        ("tool_call.completed", format!("{call},\"result\":1,\"duration_ms\":1")),
        ("tool_call.failed", format!("{call},\"error\":\"e\",\"duration_ms\":1")),
        ("message.completed", format!("\"step\":1,{message},\"model_usage\":{{}}")),
    ] {
        let event_type = EventType::from_word(word).unwrap();
        let mut fields: serde_json::Value = serde_json::from_str(&format!("{{{fields}}}")).unwrap();
        if word == "message.completed" {
            fields["model_usage"] = serde_json::to_value(Usage::default()).unwrap();
        }
        let event = Event::read(event_type, fields.to_string().as_bytes()).unwrap();
        let (run_id, at) = (RunId::from_uuid(uuid::Uuid::nil()), Timestamp::from_millis(1));
        let written = event.entry(run_id, 1, at).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&written.data).unwrap();
        let place = spec["components"]["schemas"]["RunEvent"]["discriminator"]["mapping"][word]
            .as_str()
            .and_then(|place| place.rsplit('/').next())
            .unwrap();
        for field in spec["components"]["schemas"][place]["required"].as_array().unwrap() {
            assert!(written.get(field.as_str().unwrap()).is_some(), "{word} without {field}");
        }
    }
}
