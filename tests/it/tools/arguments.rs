//! P28: what a model writes as arguments is checked before anything is called, and what is called gets
//! what the model wrote and nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{OPEN, log};
use crate::support::model_server::{ModelServer, Reply, Request, openai};
use crate::support::on_both_databases;
use crate::support::profile::Report;
use crate::support::server::Setup;
use crate::support::transcripts::assert_valid_openai;

on_both_databases! {
    nothing_is_called_with_arguments_that_do_not_fit;
    a_schema_that_cannot_be_checked_is_refused_or_told_and_keeps_nobody;
}

/// What must come of a call.
enum Then {
    /// The model is told, in words with these in them, and nothing is called.
    Told(&'static str),
    /// The tool gets this path and this body.
    Called(&'static str, &'static str),
}

use Then::{Called, Told};

#[rustfmt::skip]
const CASES: &[(&str, Then)] = &[
    // No JSON, or no object.
    ("not json", Told("not a JSON object")),
    ("[]", Told("not a JSON object")),
    ("\"Paris\"", Told("not a JSON object")),
    ("7", Told("not a JSON object")),
    ("null", Told("not a JSON object")),
    ("{\"city\": \"Paris\"", Told("not a JSON object")),
    ("{\"city\": \"Paris\"} {}", Told("not a JSON object")),
    ("{'city': 'Paris'}", Told("not a JSON object")),
    ("{\"city\": \"Paris\",}", Told("not a JSON object")),
    ("{\"city\": \"Paris\", \"days\": NaN}", Told("not a JSON object")),
    ("{\"city\": \"Paris\", \"days\": 1e400}", Told("not a JSON object")),
    ("{\"city\": \"\\ud800\"}", Told("not a JSON object")),
    ("```json\n{\"city\": \"Paris\"}\n```", Told("not a JSON object")),
    // An object that does not fit.
    ("", Told("city")),
    ("   ", Told("city")),
    ("{}", Told("city")),
    ("{\"city\": null}", Told("/city")),
    ("{\"city\": 7}", Told("/city")),
    ("{\"city\": \"\"}", Told("/city")),
    ("{\"city\": [\"Paris\"]}", Told("/city")),
    ("{\"City\": \"Paris\"}", Told("city")),
    ("{\"city\": \"Paris\", \"days\": \"3\"}", Told("/days")),
    ("{\"city\": \"Paris\", \"days\": 2.5}", Told("/days")),
    ("{\"city\": \"Paris\", \"days\": 11}", Told("/days")),
    ("{\"city\": \"Paris\", \"days\": -1}", Told("/days")),
    ("{\"city\": \"Paris\", \"unit\": \"k\"}", Told("/unit")),
    ("{\"city\": \"Paris\", \"tags\": [\"a\", 1]}", Told("/tags/1")),
    ("{\"city\": \"Paris\", \"__proto__\": {}}", Told("__proto__")),
    ("{\"city\": \"Paris\", \"url\": \"http://127.0.0.1/\"}", Told("url")),
    // A path is a path, and stays in its place.
    ("{\"city\": \".\"}", Told("must not be")),
    ("{\"city\": \"..\"}", Told("must not be")),
    ("{\"city\": \"../admin\"}", Called("/look/..%2Fadmin", "{}")),
    ("{\"city\": \"a?b=c#d&e\"}", Called("/look/a%3Fb%3Dc%23d%26e", "{}")),
    ("{\"city\": \"%2e%2e\"}", Called("/look/%252e%252e", "{}")),
    ("{\"city\": \"a\\r\\nX-A: b\"}", Called("/look/a%0D%0AX-A%3A%20b", "{}")),
    ("{\"city\": \"a\\u0000b\"}", Called("/look/a%00b", "{}")),
    ("{\"city\": \"{days}\", \"days\": 2}", Called("/look/%7Bdays%7D", "{\"days\":2}")),
    ("{\"city\": \"${secret.CRM}\"}", Called("/look/%24%7Bsecret.CRM%7D", "{}")),
    ("{\"city\": \"@evil.example\"}", Called("/look/%40evil.example", "{}")),
    ("{\"city\": \"São Paulo\"}", Called("/look/S%C3%A3o%20Paulo", "{}")),
    // What fits arrives as it was written.
    (" {\"city\": \"Paris\"}\n", Called("/look/Paris", "{}")),
    ("{\"city\": \"A\", \"city\": \"B\"}", Called("/look/B", "{}")),
    ("{\"city\": \"C\", \"days\": 3, \"unit\": \"c\"}", Called("/look/C", "{\"days\":3,\"unit\":\"c\"}")),
    ("{\"city\": \"D\", \"days\": 3.0}", Called("/look/D", "{\"days\":3.0}")),
    ("{\"city\": \"E\", \"tags\": [\"\\u00e9\", \"\\ud83d\\ude00\"]}", Called("/look/E", "{\"tags\":[\"é\",\"😀\"]}")),
];

async fn nothing_is_called_with_arguments_that_do_not_fit(url: String) {
    let database = if url.starts_with("sqlite") { "SQLite" } else { "Postgres" };
    let report = Report::new("P28", "arguments as models write them", database);
    let model = ModelServer::start().await;
    let deep = format!("{{\"city\": {}1{}}}", "[".repeat(80), "]".repeat(80));
    let long = format!("{{\"city\": \"{}\"}}", "x".repeat(300_000));
    let mut cases: Vec<(&str, &Then)> = CASES.iter().map(|(raw, then)| (*raw, then)).collect();
    cases.extend([(deep.as_str(), &Told("not a JSON object")), (long.as_str(), &Told("/city"))]);
    let calls: Vec<(&str, &str)> = cases.iter().map(|(raw, _)| ("look", *raw)).collect();
    model.script(vec![openai::tool_calls(&calls), openai::text("Done.")]);
    let tool = ModelServer::start().await;
    let came = Arc::new(Mutex::new(BTreeMap::<String, (String, Value)>::new()));
    let coming = came.clone();
    tool.answer_with(move |request: &Request| {
        let call_id = request.headers["idempotency-key"].rsplit(':').next().expect("a call");
        let what = (request.path.clone(), request.body.clone());
        let again = coming.lock().expect("no panic").insert(call_id.to_owned(), what);
        assert!(again.is_none(), "called twice");
        Reply::json(&json!({"ok": true}))
    });
    let provider =
        format!("providers:\n  p: {{ kind: openai, base_url: \"{}\" }}\n", model.base_url());
    let server = Setup::new(url, format!("{OPEN}{provider}")).start().await;
    let client = &server.client;
    let look = json!({
        "type": "http", "name": "look", "method": "POST", "url": format!("{}/look/{{city}}", tool.origin()),
        "effect": "once",
        "parameters": {
            "type": "object", "required": ["city"], "additionalProperties": false,
            "properties": {
                "city": {"type": "string", "minLength": 1, "maxLength": 50},
                "days": {"type": "integer", "minimum": 0, "maximum": 10},
                "unit": {"enum": ["c", "f"]},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
        },
    });
    let agent = json!({"agent_id": "looker", "model": "p/m", "tools": [look]});
    client.post("/v1/agents", &agent).await.expect(201);
    let run = client.run_to_end("looker", &json!({"input": "Look"})).await;
    let events = log(client, run["run_id"].as_str().expect("run_id")).await;
    report.check(run["status"] == "completed", || format!("{run:#}"));
    let created: Vec<&Value> =
        events.iter().filter(|event| event["type"] == "tool_call.created").collect();
    assert_eq!(created.len(), cases.len());
    let came = came.lock().expect("no panic");
    for ((raw, then), created) in cases.iter().zip(created) {
        let call_id = created["call_id"].as_str().expect("call_id");
        let of = |event_type: &str| {
            events.iter().find(|event| event["type"] == event_type && event["call_id"] == call_id)
        };
        let (started, failed) = (of("tool_call.started"), of("tool_call.failed"));
        let shown: String = raw.chars().take(60).collect();
        match then {
            Told(words) => {
                report.fault(true);
                let error = failed.and_then(|event| event["error"].as_str()).unwrap_or_default();
                report.check(error.contains(words) && error.len() < 2_500, || {
                    format!("{shown}: the model is told {error:?}, which has no {words:?}")
                });
                report.check(!came.contains_key(call_id), || format!("{shown}: was called"));
            }
            Called(path, body) => {
                report.fault(false);
                let body: Value = serde_json::from_str(body).expect("JSON");
                let is = came.get(call_id);
                report.check(is == Some(&((*path).to_owned(), body)), || {
                    format!("{shown}: the tool got {is:?}")
                });
                report.check(started.is_some() && failed.is_none(), || {
                    format!("{shown}: {failed:?}")
                });
            }
        }
    }
    // What the model reads next is valid, and has an answer for each call.
    let requests = model.requests();
    assert_eq!(requests.len(), 2);
    assert_valid_openai(&requests[1].body);
    let messages = requests[1].body["messages"].as_array().expect("messages");
    let answers = messages.iter().filter(|message| message["role"] == "tool").count();
    assert_eq!(answers, cases.len());
    let refused = cases.iter().filter(|(_, then)| matches!(then, Told(_))).count();
    report.note(format!("{refused} of {} calls refused", cases.len()));
    report.finish(refused as u64);
}

/// `levels` parts, each with two ways to the next one: 2^levels visits.
fn doubling(levels: usize) -> Value {
    let mut parts = serde_json::Map::new();
    for level in 0..levels {
        let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
        parts.insert(format!("l{level}"), json!({"anyOf": [next, next]}));
    }
    parts.insert(format!("l{levels}"), json!({"type": "string"}));
    json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/l0"}}, "$defs": parts})
}

async fn a_schema_that_cannot_be_checked_is_refused_or_told_and_keeps_nobody(url: String) {
    let server = Setup::new(url, OPEN).start().await;
    let client = &server.client;
    let agent = |agent_id: &str, parameters: &Value| {
        json!({
            "agent_id": agent_id, "model": "builtin/script",
            "tools": [{"type": "client", "name": "look", "parameters": parameters}],
            "script": [{"tool_calls": [{"tool": "look", "arguments": {"a": 1}}]}, {"text": "Done."}],
        })
    };
    // References in a row, which the validator follows on its stack.
    let chain: serde_json::Map<String, Value> = (0..20_000)
        .map(|i| (format!("l{i}"), json!({"$ref": format!("#/$defs/l{}", i + 1)})))
        .chain([("l20000".to_owned(), json!({}))])
        .collect();
    let chain = json!({"type": "object", "allOf": [{"$ref": "#/$defs/l0"}], "$defs": chain});
    let refused = client.post("/v1/agents", &agent("chain", &chain)).await.expect(422);
    assert_eq!(refused["details"]["errors"][0]["pointer"], "/tools/0/parameters", "{refused:#}");
    // Work without an end, of which the model hears.
    client.post("/v1/agents", &agent("doubling", &doubling(64))).await.expect(201);
    let run = client.run_to_end("doubling", &json!({"input": "Look"})).await;
    assert_eq!(run["status"], "completed", "{run:#}");
    let events = log(client, run["run_id"].as_str().expect("run_id")).await;
    let failed = super::only(&events, "tool_call.failed");
    let error = failed["error"].as_str().expect("error");
    assert!(error.contains("too many alternatives"), "{error}");
}
